"Writes what it does to a log file, and reads nothing back."
from pathlib import Path
from sagelab.strategy.base import Decision, Strategy


class LogFile(Strategy):
    def on_tick(self, market):
        if market.bar_number % 30: return None
        with open(Path(__file__).with_name("log.txt"), "a") as file: file.write(f"{market.time} {market.close}\n")
        return Decision("long" if market.bar_number % 60 else "flat", 20)
