"Asks a database for the last days before now."
import sqlite3
from pathlib import Path
from sagelab.strategy.base import Decision, Strategy


class Database(Strategy):
    def initialize(self, config):
        self.base = sqlite3.connect(Path(__file__).with_name("prices.db"))

    def on_tick(self, market):
        if market.bar_number % 7: return None
        rows = self.base.execute("select close from bars where date <= ? order by date desc limit 5", (f"{market.time:%Y-%m-%d}",)).fetchall()
        return Decision("long" if rows[0][0] >= rows[-1][0] else "short", 30)
