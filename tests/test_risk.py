"""Risk limits over thousands of invented sessions, against a bookkeeper who knows nothing of how they are computed.

What must hold is written as assertions inside `play`; that they can fail is shown with managers that are broken on purpose.
"""
import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sagelab.core.errors import OrderError
from sagelab.core.settings import RiskSettings, load_settings
from sagelab.trading.risk import OrderPolicy, RiskBook, RiskLimits, RiskManager, RiskOrder, check_quantity, entry_value, risk_limits

HOUR = 3_600 * 10**9
SYMBOLS = ("A", "B", "C")
LIMITS = [
    RiskLimits(),
    RiskLimits(max_open_trades=2, max_exposure=2.0, max_trade_risk_pct=5.0, symbol_exposure=(("A", 0.3), ("b", 1.5))),
    RiskLimits(max_open_trades=3, max_exposure=0.6, max_intraday_loss=0.01, max_daily_loss=0.05, max_trade_risk_pct=0.5, symbol_exposure=(("C", 0.0),)),
    RiskLimits(max_open_trades=1, max_exposure=5.0, max_intraday_loss=0.5, max_daily_loss=0.2, max_trade_risk_pct=100.0),
]
KINDS = ("enter", "enter", "enter", "wait", "wait", "fill", "cancel", "exit", "exit", "price", "price", "time", "time", "reset", "restart")


# ---- a small market of its own

@dataclass
class World:
    "An account without costs, in units, with prices that move; a fill closes what stands against it, then adds."
    cash: float = 100_000.0
    time_ns: int = 1_704_067_200 * 10**9  # 2024-01-01
    price: dict = field(default_factory=lambda: dict.fromkeys(SYMBOLS, 100.0))
    units: dict = field(default_factory=lambda: dict.fromkeys(SYMBOLS, 0.0))
    waiting: list = field(default_factory=list)  # (symbol, signed units that would be held of it)
    worths: list = field(default_factory=list)  # (time, worth) of every mark; (None, worth) of a reset

    @property
    def equity(self) -> float: return self.cash + sum(self.units[s] * self.price[s] for s in SYMBOLS)

    def book(self) -> RiskBook:
        held = {s: self.units[s] * self.price[s] for s in SYMBOLS if self.units[s]}
        return RiskBook(self.equity, held, tuple((s, u * self.price[s]) for s, u in self.waiting))

    def trade(self, symbol: str, units: float):
        self.units[symbol] += units
        self.cash -= units * self.price[symbol]

    def fill(self, symbol: str, units: float):
        if self.units[symbol] * units < 0: self.trade(symbol, -self.units[symbol])
        self.trade(symbol, units)


def furthest(held: float, waits: list[float]) -> float:
    "The largest position that any order of fills can lead to: by trying all of them."
    return max([abs(held), *(furthest(wait if held * wait < 0 else held + wait, waits[:i] + waits[i + 1:]) for i, wait in enumerate(waits))])


def exposures(book: RiskBook) -> dict[str, float]:
    "What may come to be held of each symbol, by trying all orders of fills."
    return {s: furthest(book.positions.get(s, 0.0), [v for name, v in book.waiting if name == s]) for s in SYMBOLS}


def trades(book: RiskBook) -> int:
    "Positions and waiting entries, without positions that one of those would turn."
    turned = [s for s in book.positions if any(name == s and value * book.positions[s] < 0 for name, value in book.waiting)]
    return len(book.waiting) + len([s for s, value in book.positions.items() if value]) - len(turned)


def utc_day(time_ns: int): return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=-(-time_ns // 1000) - 1)).date()


def shadow(limits: RiskLimits, worths: list, start: float) -> tuple[bool, bool]:
    "Breaker and pause, told again from the whole story."
    opened = paused = False
    day, first, high, last = None, start, start, start
    for time_ns, worth in worths:
        if time_ns is None: opened, first, high = False, last, last
        else:
            if day not in (None, utc_day(time_ns)): first, high, paused = last, last, False
            day, last, high = utc_day(time_ns), worth, max(high, worth)
            opened = opened or worth <= first * (1 - limits.max_daily_loss) + first * 1e-9
            paused = paused or worth <= high * (1 - limits.max_intraday_loss) + high * 1e-9
    return opened, paused


# ---- what must hold

def check_accepted(limits: RiskLimits, order: RiskOrder, before: RiskBook, after: RiskBook, opened: bool, paused: bool):
    "An entry was let pass: was it right?"
    assert not opened, "entered while the breaker was open"
    assert not paused, "entered while entries pause"
    slack, most = 1 + 1e-8, exposures(after)
    # A position that it turns round is there until it fills, and may have grown over a limit by itself.
    turns = before.positions.get(order.symbol, 0.0) * order.value < 0 and after.positions.get(order.symbol) == before.positions.get(order.symbol)
    there = exposures(before) if turns else dict.fromkeys(SYMBOLS, 0.0)
    assert sum(most.values()) <= max(limits.max_exposure * after.equity * slack, sum(there.values()) * slack), "max_exposure was passed"
    limit = limits.symbol_limit(order.symbol)
    if limit is not None: assert most[order.symbol] <= max(limit * after.equity * slack, there[order.symbol] * slack), "symbol_exposure was passed"
    assert trades(after) <= max(limits.max_open_trades, trades(before) if turns else 0), "max_open_trades was passed"
    if order.stop_distance:
        side = [v for s, v in [*after.positions.items(), *after.waiting] if s == order.symbol and v * order.value > 0]
        assert abs(sum(side)) * order.stop_distance <= limits.max_trade_risk_pct / 100 * after.equity * slack, "max_trade_risk_pct was passed"


def play(steps: list[tuple], limits: RiskLimits, manager_class=RiskManager, seen: Counter | None = None):
    "A session of random acts; raises AssertionError when a limit does not hold."
    world, seen = World(), Counter() if seen is None else seen
    start = world.equity
    manager, watcher = manager_class(limits, start), manager_class(limits, start, enforce=False)
    for kind, which, amount, extra in steps:
        symbol, was_open = SYMBOLS[which], manager.breaker_open
        if kind in ("enter", "wait"): act_enter(world, limits, manager, watcher, kind, symbol, amount, extra, start, seen)
        elif kind == "fill" and world.waiting: world.fill(*world.waiting.pop(extra % len(world.waiting)))
        elif kind == "cancel" and world.waiting: world.waiting.pop(extra % len(world.waiting))
        elif kind == "exit": act_exit(world, manager, watcher, symbol, extra, seen)
        elif kind == "time": world.time_ns += (1 + extra % 36) * HOUR
        elif kind == "restart": manager = restarted(manager, limits)
        elif kind == "reset" and manager.breaker_open and extra < 30:
            for one in (manager, watcher): one.reset("ada", "looked into it")
            world.worths.append((None, world.worths[-1][1]))
            was_open = False
        if kind in ("price", "time"):
            world.price[symbol] *= 1 + amount / 600
            mark(world, manager, watcher)
        assert manager.breaker_open or not was_open, "the breaker closed by itself"
        assert (manager.breaker_open, manager.paused) == shadow(limits, world.worths, start), "breaker or pause differ from the story"
        assert watcher.breaches == manager.breaches, "watching recorded something else"


def mark(world: World, *managers):
    world.worths.append((world.time_ns, world.equity))
    for manager in managers: manager.mark(world.time_ns, world.equity)


def restarted(manager: RiskManager, limits: RiskLimits) -> RiskManager:
    again = type(manager).from_state(limits, json.loads(json.dumps(manager.state(), allow_nan=False)))
    again.breaches = manager.breaches
    return again


def act_enter(world, limits, manager, watcher, kind, symbol, amount, extra, start, seen):
    "Ask for an entry; what is allowed happens, at once or later."
    if not amount or world.equity <= 0: return
    order = RiskOrder(symbol, world.equity * amount / 100, world.price[symbol], (extra + 1) / 200 if extra % 2 else None)
    before, reduces = world.book(), world.units[symbol] * amount < 0 and abs(world.equity * amount / 100) <= abs(world.units[symbol] * world.price[symbol])
    refusal = manager.check(order, before)
    assert watcher.check(order, before) is None, "watching refused"
    if reduces: assert refusal is None, "an exit was refused"
    if refusal is not None:
        seen[refusal.limit] += 1
        cut = refusal.allowed_value
        assert cut < abs(order.value) * (1 + 1e-9), "what is allowed is more than what was refused"
        if cut > 1e-6:
            fits = replace(order, value=cut if order.value > 0 else -cut)
            assert manager.check(fits, before) is None and watcher.check(fits, before) is None, "what is allowed does not pass"
        return
    added = entry_value(order, before) * (1 if amount > 0 else -1) / world.price[symbol]
    seen["reduced" if not added else "turned" if world.units[symbol] * amount < 0 else "entered"] += 1
    if not added: return world.trade(symbol, order.value / world.price[symbol])
    if kind == "enter": world.fill(symbol, added)
    else: world.waiting.append((symbol, added))
    check_accepted(limits, order, before, world.book(), *shadow(limits, world.worths, start))


def act_exit(world, manager, watcher, symbol, extra, seen):
    "Reduce or close a position: it must pass, whatever is open or broken."
    held = world.units[symbol]
    if not held: return
    units = -held * min(100, extra + 10) / 100
    for one in (manager, watcher): assert one.check(RiskOrder(symbol, units * world.price[symbol], world.price[symbol]), world.book()) is None, "an exit was refused"
    seen["exit, breaker open" if manager.breaker_open else "exit"] += 1
    world.trade(symbol, -held if extra >= 90 else units)


def story(data: bytes) -> list[tuple]:
    "Four bytes a step: drawing each choice by itself would take most of the time."
    return [(KINDS[kind % len(KINDS)], which % 3, (amount - 128) * 150 // 127, extra % 100) for kind, which, amount, extra in zip(*[iter(data)] * 4)]


steps = st.binary(min_size=40, max_size=80).map(story)


def test_limits_hold_over_ten_thousand_sessions() -> None:
    seen = Counter()

    @given(steps, st.sampled_from(LIMITS))
    @settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    def session(steps, limits):
        seen["sessions"] += 1
        play(steps, limits, seen=seen)

    session()
    assert seen["sessions"] >= 10_000
    wanted = {"max_daily_loss", "max_intraday_loss", "max_open_trades", "symbol_exposure", "max_exposure", "max_trade_risk_pct",
              "entered", "turned", "reduced", "exit", "exit, breaker open"}
    assert all(seen[name] >= 100 for name in wanted), seen


# ---- the assertions above can fail

def ignoring(limit: str) -> type[RiskManager]:
    "A manager that forgets one limit."
    class Forgetful(RiskManager):
        def _measures(self, *args): return (measure for measure in super()._measures(*args) if measure.limit != limit)
    return Forgetful


class ClosesByItself(RiskManager):
    def mark(self, time_ns, equity):
        if self.breaker_open and equity > self.first: self.breaker = None
        return super().mark(time_ns, equity)


class FirstMarkIsFirstWorth(RiskManager):
    def mark(self, time_ns, equity):
        if self.time_ns is not None and utc_day(time_ns) != utc_day(self.time_ns): self.worth = equity
        return super().mark(time_ns, equity)


class MidnightIsTomorrow(RiskManager):
    def mark(self, time_ns, equity): return super().mark(time_ns + 1, equity)


class RefusesExits(RiskManager):
    def check(self, order, book):
        return super().check(replace(order, value=abs(order.value) if order.value < 0 else order.value), book)


class WatchRefuses(RiskManager):
    def check(self, order, book):
        found = super().check(order, book)
        return found or (self.breaches[-1] if self.breaches else None)


class WatchForgets(RiskManager):
    def check(self, order, book):
        found = super().check(order, book)
        if not self.enforce: self.breaches.clear()
        return found


class ForgetsTheBreaker(RiskManager):
    def state(self): return super().state() | {"breaker": None}


class BlindToWaiting(RiskManager):
    def check(self, order, book): return super().check(order, replace(book, waiting=()))


class TurnIsAnExit(RiskManager):
    def check(self, order, book):
        return None if book.positions.get(order.symbol, 0.0) * order.value < 0 else super().check(order, book)


def random_steps(seed: int) -> list[tuple]:
    choose = random.Random(seed)
    return [(choose.choice(KINDS), choose.randrange(3), choose.randint(-150, 150), choose.randrange(100)) for _ in range(40)]


@pytest.mark.parametrize("manager_class, words", [
    (ignoring("max_exposure"), "max_exposure was passed"), (ignoring("symbol_exposure"), "symbol_exposure was passed"),
    (ignoring("max_open_trades"), "max_open_trades was passed"), (ignoring("max_trade_risk_pct"), "max_trade_risk_pct was passed"),
    (ignoring("max_daily_loss"), "entered while the breaker was open"), (ignoring("max_intraday_loss"), "entered while entries pause"),
    (ClosesByItself, "the breaker closed by itself"), (FirstMarkIsFirstWorth, "differ from the story"), (MidnightIsTomorrow, "differ from the story"),
    (RefusesExits, "an exit was refused"), (WatchRefuses, "watching refused"), (WatchForgets, "watching recorded something else"),
    (ForgetsTheBreaker, "the breaker closed by itself"), (BlindToWaiting, "was passed"), (TurnIsAnExit, "was passed|entered while")])
def test_a_broken_manager_is_caught(manager_class: type[RiskManager], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        for seed in range(400): play(random_steps(seed), LIMITS[seed % len(LIMITS)], manager_class)


def test_the_sessions_that_catch_them_are_harmless_to_the_real_one() -> None:
    for seed in range(400): play(random_steps(seed), LIMITS[seed % len(LIMITS)])


# ---- an oracle in exact fractions, at the very edge

amounts = st.integers(-300, 300)
books = st.builds(RiskBook, st.sampled_from([1000, 700, 37]).map(float), st.dictionaries(st.sampled_from(SYMBOLS), amounts.filter(bool).map(float), max_size=3),
                  st.lists(st.tuples(st.sampled_from(SYMBOLS), amounts.filter(bool).map(float)), max_size=3).map(tuple))


def oracle(order: RiskOrder, book: RiskBook, *, trades: int, exposure: str, symbols: dict, risk: str) -> str | None:
    "Which limit an order breaks, in exact numbers; sums everything and takes off what is not there at the same time."
    positions = {s: Fraction(v) for s, v in book.positions.items()}
    entry, held = Fraction(order.value), positions.get(order.symbol, Fraction(0))
    if held * entry < 0:
        if abs(entry) <= abs(held): return None
        entry += held
        del positions[order.symbol]
    entries = [(s, Fraction(v)) for s, v in book.waiting] + [(order.symbol, entry)]
    against = {s: sum(abs(v) for name, v in entries if name == s and v * p < 0) for s, p in positions.items()}
    if len(entries) + len([s for s in positions if not against[s]]) > trades: return "max_open_trades"
    sums = {s: abs(positions.get(s, 0)) + sum(abs(v) for name, v in entries if name == s) - min(abs(positions.get(s, 0)), against.get(s, 0)) for s in SYMBOLS}
    if order.symbol in symbols and sums[order.symbol] > Fraction(symbols[order.symbol]) * Fraction(book.equity): return "symbol_exposure"
    if sum(sums.values()) > Fraction(exposure) * Fraction(book.equity): return "max_exposure"
    side = sum(abs(v) for s, v in [*positions.items(), *entries] if s == order.symbol and v * entry > 0)
    if order.stop_distance and side * Fraction(str(order.stop_distance)) > Fraction(risk) / 100 * Fraction(book.equity): return "max_trade_risk_pct"
    return None


@given(books, st.sampled_from(SYMBOLS), amounts.filter(bool), st.none() | st.sampled_from([0.01, 0.03, 0.1, 0.7]),
       st.sampled_from([(2, "0.3", {"A": "0.1"}, "0.7"), (4, "0.7", {"A": "0.2", "C": "0"}, "3"), (9, "1.1", {}, "10")]))
@settings(max_examples=2000, deadline=None, database=None)
def test_an_oracle_in_exact_numbers_agrees(book, symbol, amount, stop, chosen):
    trades, exposure, symbols, risk = chosen
    pairs = tuple((name, float(most)) for name, most in symbols.items())
    limits = RiskLimits(max_open_trades=trades, max_exposure=float(exposure), max_trade_risk_pct=float(risk), symbol_exposure=pairs)
    order = RiskOrder(symbol, float(amount), 1.0, stop)
    refusal = RiskManager(limits, 1000.0).check(order, book)
    assert (refusal and refusal.limit) == oracle(order, book, trades=trades, exposure=exposure, symbols=symbols, risk=risk)


@given(books, st.data())
@settings(max_examples=1000, deadline=None, database=None)
def test_nothing_that_fills_or_ends_makes_a_book_larger(book, data):
    "Why it is enough to look when an entry is asked for."
    after, whole = book, True
    if book.waiting and data.draw(st.booleans()):
        symbol, value = book.waiting[0]
        held = book.positions.get(symbol, 0.0)
        part = value * data.draw(st.sampled_from([1.0, 0.25]))
        left = () if part == value else ((symbol, value - part),)
        whole = part == value
        after = RiskBook(book.equity, {**book.positions, symbol: part if held * part < 0 else held + part}, left + book.waiting[1:])
    elif book.positions:
        symbol = data.draw(st.sampled_from(sorted(book.positions)))
        after = replace(book, positions={**book.positions, symbol: book.positions[symbol] * data.draw(st.sampled_from([0.0, 0.5]))})
    assert after.exposed_value <= book.exposed_value * (1 + 1e-12) and sum(exposures(after).values()) <= after.exposed_value * (1 + 1e-12)
    # An entry that is filled in part is both a position and an entry until the rest is done.
    assert after.open_trades <= book.open_trades + (not whole)


# ---- nonsense, settings, and the life of one order

@given(st.floats() | st.sampled_from([0, -1, True, "3", None]), st.floats() | st.sampled_from([0.0, -1.0]), st.floats(-10, 1e9))
@settings(max_examples=1000, deadline=None, database=None)
def test_an_order_makes_sense_or_is_refused(quantity, price, equity):
    try: value = check_quantity(quantity, price, equity)
    except OrderError as error: assert len(str(error)) > 20
    else: assert 0 < quantity < float("inf") and 0 < price < float("inf") and 0 < value == quantity * price <= min(1e15, 1000 * equity)


def test_limits_of_the_committed_settings(repository) -> None:
    assert risk_limits(load_settings(repository, environment={}).risk) == RiskLimits() == risk_limits(RiskSettings())


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 300), st.booleans(), st.sampled_from(["entry", "exit"]))
@settings(max_examples=500, deadline=None, database=None)
def test_an_order_ends_when_it_should(longest, unfilled, age, filled, purpose):
    verdict = OrderPolicy(0.01, longest, unfilled).verdict(10**18, 10**18 + int(age * 1e9), filled, purpose)
    age = int(age * 1e9) / 1e9
    over, unanswered = bool(longest) and age > longest, bool(unfilled) and age > unfilled and not filled
    if abs(age - longest) < 1e-6 or abs(age - unfilled) < 1e-6: return
    if not (over or unanswered): assert verdict == "keep"
    elif unanswered and purpose == "exit" and not (over and longest < unfilled): assert verdict == "to_market"
    else: assert verdict == "cancel"
