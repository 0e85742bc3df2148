"Whatever happens between an order and its fill, the books balance and nothing is filled that was not asked for."
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sagelab.core.errors import OrderError, Stopped
from sagelab.core.ledger import Ledger
from sagelab.core.stop import Latch
from sagelab.strategy.base import Decision
from sagelab.trading.account import Account
from sagelab.trading.broker import SimulatedBroker
from sagelab.trading.costs import Costs
from sagelab.trading.paper import Conditions, PaperBroker
from sagelab.trading.risk import OrderPolicy, RiskLimits, RiskManager
from sagelab.trading.routing import Journal, OrderDesk

DAY = 86_400 * 10**9
COSTS = Costs(fee=0.001, spread=0.0005, slippage=0.0002)


def bars(seed: int, count: int = 60):
    "A random walk as rows of a broker."
    dice, price = random.Random(seed), 100.0
    for number in range(1, count + 1):
        opened, price = price * (1 + dice.gauss(0, 0.01)), price * (1 + dice.gauss(0, 0.02))
        yield number * DAY, opened, max(opened, price) * (1 + dice.random() / 100), min(opened, price) * (1 - dice.random() / 100), price, 1000.0


ORDERS = st.lists(st.tuples(st.integers(1, 59), st.sampled_from(["buy", "sell"]), st.floats(0.1, 30), st.sampled_from(["market", "limit", "stop"]), st.floats(0.9, 1.1)), max_size=25)
CONDITIONS = st.builds(Conditions, latency_ms=st.sampled_from([(0, 0), (5, 90_000), (0, 80_000_000)]), partial_fill=st.sampled_from([0.0, 0.7]),
                       slippage=st.sampled_from([0.0, 0.01]), reject=st.sampled_from([0.0, 0.3]), disconnect=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 10**6))


def played(orders, conditions: Conditions, seed: int, **more) -> tuple[PaperBroker, list[float]]:
    "Send orders at their bars; answers the broker and the worth at each close."
    broker, worth = PaperBroker(Account(10_000.0, "X"), COSTS, conditions=conditions, bar_ns=DAY, **more), []
    for number, row in enumerate(bars(seed), 1):
        broker.match(row)
        broker.settle(row)
        broker.desk.clock.set(row[0])
        for at, side, quantity, kind, distance in orders:
            if at != number: continue
            try: broker.desk.create_order("X", side, quantity, kind, {} if kind == "market" else {"price": row[4] * distance})
            except Exception as error:
                if type(error).__module__ != "sagelab.core.errors": raise
        worth.append(broker.account().equity)
    return broker, worth


@settings(max_examples=400, deadline=None)
@given(ORDERS, CONDITIONS, st.integers(0, 1000))
def test_the_books_balance_under_any_conditions(orders, conditions, seed) -> None:
    broker, worth = played(orders, conditions, seed)
    bought = sum(f.direction * f.quantity for f in broker.fills)
    spent = sum(f.direction * f.quantity * f.price + f.fee for f in broker.fills)
    assert abs(broker.books.position - bought) < 1e-6 and abs(broker.books.cash - (10_000 - spent)) < 1e-5
    for order in broker.orders:
        filled = sum(f.quantity for f in broker.fills if f.order_id == order.order_id)
        assert order.quantity is None or filled <= order.quantity * (1 + 1e-9)
        assert abs(filled - order.filled) < 1e-9
        assert order.status != "filled" or order.filled >= order.quantity * (1 - 1e-9), "short of its quantity is not filled"
        assert order.status != "rejected" or not filled, "what was filled was not rejected"
        if order.kind == "limit":
            for f in broker.fills:
                if f.order_id == order.order_id: assert f.direction * (f.price - order.price) <= 1e-9, "a limit is never filled worse"
        for f in broker.fills:
            if f.order_id == order.order_id: assert f.time_ns > order.created_ns, "no fill before its order"
    for name, (request, state) in broker.desk.orders.items():
        known = broker.find(name)
        if known is not None: assert (state.filled, state.status) == (known.filled, known.status), "the desk knows what the broker knows"


DECISIONS = st.lists(st.tuples(st.integers(1, 58), st.sampled_from(["long", "short", "flat"]), st.sampled_from([100, 50, 10]), st.sampled_from(["market", "limit", "stop"]),
                                st.floats(0.95, 1.05), st.sampled_from([None, 0.02]), st.sampled_from([None, 86_400.0, 3 * 86_400.0])), max_size=25)


def decided(decisions, seed: int, broker):
    "Let a strategy decide at its bars."
    for number, row in enumerate(bars(seed), 1):
        broker.match(row)
        if broker.ruined: break
        for at, side, size, kind, distance, edge, seconds in decisions:
            if at == number: broker.submit(Decision(side, size, kind, None if kind == "market" else row[4] * distance, edge, edge, seconds, seconds), row[0], row[4])
        broker.settle(row)
    return broker


@settings(max_examples=200, deadline=None)
@given(DECISIONS, CONDITIONS, st.integers(0, 1000))
def test_the_orders_of_a_strategy_end_as_what_they_are(decisions, conditions, seed) -> None:
    broker = decided(decisions, seed, PaperBroker(Account(10_000.0, "X"), COSTS, conditions=conditions, bar_ns=DAY))
    for order in broker.orders:
        assert order.status != "rejected" or not order.filled
        assert order.status != "filled" or order.filled >= order.quantity * (1 - 1e-9)
        known = broker.desk.orders[order.client_order_id][1]
        assert (known.status, known.filled) == (order.status, order.filled), "the journal tells the end of every order"
    assert sum(order.purpose == "exit" and order.decision is None and not order.status in ("filled", "cancelled", "rejected") for order in broker.orders) <= 1, "one order ends a position's time"
    assert not broker.ruined or not broker.working


@settings(max_examples=200, deadline=None)
@given(DECISIONS, st.integers(0, 1000), st.sampled_from(["next_open", "close"]))
def test_without_trouble_it_is_the_broker_of_the_backtest(decisions, seed, fill) -> None:
    paper, plain = decided(decisions, seed, PaperBroker(Account(10_000.0, "X"), COSTS, fill, bar_ns=DAY)), decided(decisions, seed, SimulatedBroker(Account(10_000.0, "X"), COSTS, fill))
    assert paper.fills == plain.fills and paper.books.trades == plain.books.trades and [o.status for o in paper.orders] == [o.status for o in plain.orders]


@settings(max_examples=60, deadline=None)
@given(ORDERS, CONDITIONS, st.integers(0, 1000))
def test_the_same_seed_is_the_same_session(orders, conditions, seed) -> None:
    assert played(orders, conditions, seed)[0].fills == played(orders, conditions, seed)[0].fills


@settings(max_examples=100, deadline=None)
@given(ORDERS, CONDITIONS, st.integers(0, 1000))
def test_enforced_limits_hold_at_every_close(orders, conditions, seed) -> None:
    limits = RiskLimits(max_exposure=0.5, max_daily_loss=0.03)
    broker, _ = played(orders, conditions, seed, risk=RiskManager(limits, 10_000.0, True), policy=OrderPolicy(max_order_seconds=3 * 86_400))
    opened = broker.risk.breaker["time_ns"] if broker.risk.breaker else None
    held = 0.0
    for f in broker.fills:
        grows = abs(held + f.direction * f.quantity) > abs(held) + 1e-9
        held += f.direction * f.quantity
        if opened is not None and grows: assert f.time_ns <= opened, "nothing is entered behind an open circuit breaker"


def test_a_set_latch_keeps_an_order_from_leaving(lab) -> None:
    broker = PaperBroker(Account(1000.0, "X"), Costs(), bar_ns=DAY, latch=Latch(lab))
    broker.settle((DAY, 1.0, 1.0, 1.0, 1.0, 0.0))
    Latch(lab).set("enough")
    with pytest.raises(Stopped): broker.desk.create_order("X", "buy", 1)
    assert not broker.working


def test_every_refusal_is_recorded(tmp_path) -> None:
    ledger = Ledger(tmp_path/"ledger.jsonl")
    broker = PaperBroker(Account(1000.0, "SP500"), Costs(), bar_ns=DAY, journal=Journal(ledger, "s"))
    broker.settle((DAY, 1.0, 1.0, 1.0, 1.0, 0.0))
    wrong = [("SP500", "buy", 0), ("SP500", "buy", -1), ("SP500", "buy", float("nan")), ("SP500", "buy", 1e300), ("SP5000", "buy", 1), ("SP500", "hold", 1), ("SP500", "buy", "many")]
    for order in wrong:
        with pytest.raises(OrderError): broker.desk.create_order(*order)
    broker.desk.create_order("SP500", "buy", 1, params={"client_order_id": "twice"})
    with pytest.raises(OrderError, match="belongs to another order"): broker.desk.create_order("SP500", "sell", 1, params={"client_order_id": "twice"})
    assert [entry.kind for entry in ledger.entries()].count("order.refused") == len(wrong) + 1 and len(broker.working) == 1 and ledger.verify().ok
    assert OrderDesk.restored(broker, ledger, "s").orders.keys() == {"twice"}
