"Writes into the lab's ledger when it starts."
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import find_lab
from sagelab.strategy.base import Decision, Strategy


class Ledger(Strategy):
    def initialize(self, config):
        open_ledger(find_lab()).append("note", {"text": "started"})

    def on_tick(self, market):
        if market.time.day == 2: return Decision("long", 10)
