"Connectors against real HTTP servers that keep orders, throttle, stall, lie and die; and the gate in front of real money."
import logging
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from broker_servers import KEY, SECRET, AlpacaServer, BinanceServer, BrokerServer, hang, reset
from local_server import cut, drip, running, says
from pydantic import ValidationError

from sagelab.core.errors import BrokerError, BrokerUnreachable, MissingExtra, OrderError, PolicyError, SettingsError, Stopped, UnknownName, UsageError
from sagelab.core.ledger import open_ledger
from sagelab.core.policy import ScriptedTerminal, confirm_limits, limit_states, limit_text
from sagelab.core.settings import Settings, load_settings
from sagelab.core.stop import Latch
from sagelab.trading.alpaca import AlpacaAccount, AlpacaBroker, AlpacaConfig
from sagelab.trading.connectors import retry_after
from sagelab.trading.exchange import CcxtAccount, CcxtBroker, CcxtConfig
from sagelab.trading.live import account_check, connect_broker
from sagelab.trading.permission import LivePermission, live_gate
from sagelab.trading.routing import AccountState, Broker, OrderDesk, OrderRequest, SimulatedClock

SYMBOLS = {"BTCUSDT": "BTC/USDT", "ETHUSDT": "ETH/USDT"}
PHRASE = "trade rsi at {} with real money"
NAMES = [f"{broker}_{mode}_{kind}" for broker in ("ALPACA", "BINANCE") for mode in ("PAPER", "LIVE") for kind in ("KEY", "SECRET")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    "A lab with keys."
    (tmp_path/"config").mkdir()
    (tmp_path/"settings.ini").write_text("[lab]\n")
    (tmp_path/"config"/"secrets.env").write_text("\n".join(f'{name}="{KEY if name.endswith("KEY") else SECRET}"' for name in NAMES))
    (tmp_path/"config"/"secrets.env").chmod(0o600)
    return tmp_path


class Bench:
    "A broker, the server behind it, and the words that differ between the two."
    def __init__(self, kind: str, server: BrokerServer, root: Path):
        self.kind, self.server, self.root = kind, server, root
        self.symbol, self.other = ("AAPL", "BTCUSD") if kind == "alpaca" else ("BTCUSDT", "ETHUSDT")
        self.theirs = "AAPL" if kind == "alpaca" else "BTCUSDT"
        self.order_path = "/v2/orders" if kind == "alpaca" else "/api/v3/order"
        self.broker = self.connect()

    def config(self, **changes) -> AlpacaConfig | CcxtConfig:
        given = {"base_url": self.server.address, "timeout_seconds": 0.5, **changes}
        if self.kind == "alpaca": return AlpacaConfig(**{"symbols": {"BTCUSD": "BTC/USD"}, **given})
        return CcxtConfig(**{"exchange": "binance", "symbols": SYMBOLS, **given})

    def connect(self, **changes) -> Broker:
        return (AlpacaBroker if self.kind == "alpaca" else CcxtBroker)(self.config(**changes), self.root)

    def request(self, name: str = "s-1", quantity: float | None = 0.5, type: str = "market", price: float | None = None, side: str = "buy", **params) -> OrderRequest:
        return OrderRequest(name, self.symbol, side, quantity, type, price, params)

    def settings(self) -> Settings:
        "Settings of the lab that name this broker."
        (self.root/"settings.ini").write_text(f"[lab]\n[live]\nbroker = {self.kind}\n")
        return load_settings(self.root)

    def resting(self, name: str = "s-1", quantity: float = 0.5) -> OrderRequest:
        "An order that never fills by itself."
        return self.request(name, quantity, "limit", 100.0)


@pytest.fixture(params=["alpaca", "binance"])
def bench(request: pytest.FixtureRequest, root: Path):
    with running(AlpacaServer if request.param == "alpaca" else BinanceServer) as server: yield Bench(request.param, server, root)


@pytest.fixture
def alpaca(root: Path):
    with running(AlpacaServer) as server: yield Bench("alpaca", server, root)


@pytest.fixture
def binance(root: Path):
    with running(BinanceServer) as server: yield Bench("binance", server, root)


# --- the life of an order --------------------------------------------------------------------------------------------

def test_both_keep_the_protocol(bench: Bench):
    assert isinstance(bench.broker, Broker) and bench.broker.name == bench.kind and bench.server.asked == []


def test_a_market_order_fills(bench: Bench):
    state = bench.broker.place(bench.request())
    assert (state.client_order_id, state.symbol, state.side, state.quantity, state.filled, state.status) == ("s-1", bench.symbol, "buy", 0.5, 0.5, "filled")
    assert state.average_price == (180 if bench.kind == "alpaca" else 60_000) and state.broker_order_id and state.done
    assert bench.broker.find("s-1") == state and bench.broker.open_orders() == [] and bench.server.posts() == 1


def test_partial_fills_progress(bench: Bench):
    assert bench.broker.place(bench.resting(quantity=4.0)).status == "created"
    order = bench.server.orders["s-1"]
    order.fill(1.0, 100.0)
    assert (state := bench.broker.find("s-1")).status == "partial" and (state.filled, state.average_price) == (1.0, 100.0)
    order.fill(2.0, 97.0)
    assert bench.broker.open_orders() == [bench.broker.find("s-1")] and bench.broker.find("s-1").average_price == 98.0
    order.fill(1.0, 98.0)
    assert bench.broker.find("s-1").status == "filled" and bench.broker.open_orders() == []


def test_an_order_that_never_fills_is_cancelled(bench: Bench):
    bench.broker.place(bench.resting(quantity=4.0))
    bench.server.orders["s-1"].fill(1.0, 100.0)
    state = bench.broker.cancel("s-1")
    assert (state.status, state.filled, state.done) == ("cancelled", 1.0, True) and bench.broker.cancel("s-1") == state


def test_a_filled_order_is_not_cancelled_and_says_so(bench: Bench):
    bench.broker.place(bench.request())
    assert bench.broker.cancel("s-1").status == "filled" and not any(line.startswith("DELETE") for line in bench.server.asked)


def test_an_order_that_fills_while_it_is_cancelled(bench: Bench):
    bench.broker.place(bench.resting())
    refusal = (422, {"code": 42210000, "message": 'order is already in "filled" state'}) if bench.kind == "alpaca" else (400, {"code": -2011, "msg": "Unknown order sent."})
    bench.server.fail("DELETE", lambda handler: (bench.server.orders["s-1"].fill(0.5, 100.0), handler.reply(*refusal)))
    assert bench.broker.cancel("s-1").status == "filled"


def test_an_unknown_order(bench: Bench):
    assert bench.broker.find("s-404") is None
    with pytest.raises(BrokerError, match="knows no order 's-404'"): bench.broker.cancel("s-404")


def test_limit_and_stop_orders_are_told_as_they_are(bench: Bench):
    bench.broker.place(bench.request("s-1", 0.25, "limit", 100.5, time_in_force="gtc"))
    bench.broker.place(bench.request("s-2", 0.25, "stop", 99.5, side="sell"))
    limit, stop = bench.server.bodies
    if bench.kind == "alpaca":
        assert limit == {"client_order_id": "s-1", "symbol": "AAPL", "side": "buy", "type": "limit", "qty": "0.25", "time_in_force": "gtc", "limit_price": "100.5"}
        assert (stop["type"], stop["stop_price"], stop["time_in_force"], stop["side"]) == ("stop", "99.5", "day", "sell")
    else:
        told = {key: limit[key] for key in ("symbol", "side", "type", "quantity", "price", "newClientOrderId", "timeInForce")}
        assert told == {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "quantity": "0.25", "price": "100.5", "newClientOrderId": "s-1", "timeInForce": "GTC"}
        assert (stop["type"], stop["stopPrice"], stop["side"]) == ("STOP_LOSS", "99.5", "SELL")
    assert {state.client_order_id for state in bench.broker.open_orders()} == {"s-1", "s-2"}


def test_the_account(bench: Bench):
    bench.server.positions = {"AAPL": -5.0, "BTC/USD": 0.25} if bench.kind == "alpaca" else {"BTCUSDT": 0.25, "ETHUSDT": 0.0, "DOGEUSDT": 7.0}
    held = {"AAPL": -5.0, "BTCUSD": 0.25} if bench.kind == "alpaca" else {"BTCUSDT": 0.25}
    equity = 100_000 + 0.25 * 60_000 - (5 * 180 if bench.kind == "alpaca" else 0)
    assert bench.broker.account() == AccountState("ACTIVE", 100_000.0, equity, "USD" if bench.kind == "alpaca" else "USDT", held)


def test_an_account_that_may_not_trade(bench: Bench):
    bench.server.status = "ONBOARDING"
    assert bench.broker.account().status == ("ONBOARDING" if bench.kind == "alpaca" else "TRADING BARRED")


def test_a_blocked_account_is_not_active(alpaca: Bench):
    alpaca.server.echo = "blocked"
    assert alpaca.broker.account().status == "ACTIVE; trading_blocked"


# --- per cent of the account -----------------------------------------------------------------------------------------

def test_per_cent_of_equity_become_units(bench: Bench):
    price = 180.0 if bench.kind == "alpaca" else 60_000.0
    state = bench.broker.place(bench.request(quantity=None, size_pct=10, price_hint=price))
    assert state.quantity == pytest.approx(10_000 / price, abs=1e-4) and state.quantity <= 10_000 / price and state.status == "filled"
    bench.server.cash = 50_000.0  # the same order again, though the account is worth less by now
    assert bench.broker.place(bench.request(quantity=None, size_pct=10, price_hint=price)) == state and len(bench.server.orders) == 1


def test_per_cent_of_an_exit_are_of_the_position(bench: Bench):
    bench.server.positions = {bench.theirs: 0.5}
    state = bench.broker.place(bench.request(quantity=None, side="sell", size_pct=50, purpose="exit"))
    assert (state.side, state.quantity) == ("sell", 0.25)
    with pytest.raises(BrokerError, match="no quantity to buy"): bench.broker.place(bench.request("s-2", None, size_pct=50, purpose="exit"))


def test_per_cent_without_a_price_are_refused(bench: Bench):
    with pytest.raises(BrokerError, match="price_hint"): bench.broker.place(bench.request(quantity=None, size_pct=10))
    with pytest.raises(BrokerError, match="no quantity"): bench.broker.place(bench.request(quantity=None, size_pct=10, price_hint=1e15))
    assert bench.server.posts() == 0


@pytest.mark.parametrize("quantity", [0.0, -1.0, float("nan"), float("inf"), 1e13, True])
def test_no_quantity_is_no_order(bench: Bench, quantity: float):
    with pytest.raises(OrderError): bench.broker.place(bench.request(quantity=quantity))
    assert bench.server.posts() == 0


def test_a_parameter_nobody_would_read_is_refused(bench: Bench):
    with pytest.raises(BrokerError, match="'time_in_forc'"): bench.broker.place(bench.request(time_in_forc="gtc"))
    assert bench.server.posts() == 0


# --- once ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("type, price", [("market", None), ("limit", 100.0)])
def test_the_same_order_twice_is_one_order(bench: Bench, type: str, price: float | None):
    first = bench.broker.place(bench.request("s-1", 0.5, type, price))
    assert bench.broker.place(bench.request("s-1", 0.5, type, price)) == first and len(bench.server.orders) == 1
    assert bench.connect().place(bench.request("s-1", 0.5, type, price)) == first and len(bench.server.orders) == 1


def test_the_same_id_for_another_order_is_refused(bench: Bench):
    bench.broker.place(bench.resting())
    for other in (bench.resting(quantity=0.75), replace(bench.resting(), side="sell"), replace(bench.resting(), price=101.0)):
        with pytest.raises(BrokerError, match="has another order under s-1: it differs in") as refused: bench.broker.place(other)
        assert not isinstance(refused.value, BrokerUnreachable)
    assert len(bench.server.orders) == 1 and bench.server.orders["s-1"].quantity == 0.5


def test_an_id_that_is_used_and_unknown_is_a_refusal(alpaca: Bench):
    alpaca.server.fail("POST", says(422, {"code": 40010001, "message": "client_order_id must be unique"}))
    with pytest.raises(BrokerError, match="must be unique"): alpaca.broker.place(alpaca.request())


TROUBLE = {"reset": reset, "cut": cut, "hang": hang, "drip": drip, "500": says(500, '{"message": "oops"}'), "502": says(502, "<html>bad gateway</html>"), "503": says(503),
           "504": says(504, "late"), "408": says(408), "429": says(429, '{"code": 42910000, "message": "rate limit exceeded"}', Retry_After="7"), "garbage": says(200, "\x00{{{"),
           "half": says(200, '{"id": "b-1", "client_'), "empty": says(200, ""), "a list": says(200, []), "null": says(200, "null"), "a number": says(200, 7), "other": says(200, {"status": "ok"}),
           "teapot": says(418, "no"), "404": says(404, "<html>not found</html>"), "400": says(400, "<html>bad request</html>")}
SLOW_FOR_CCXT = {"drip"}  # ccxt has a limit on each wait and none on all of them; the desk's own timeout is for that


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "deaf"])
@pytest.mark.parametrize("name", TROUBLE)
def test_when_nobody_knows_it_is_said_and_sent_once(bench: Bench, name: str, heard: bool):
    bench.server.fail(f"POST {bench.order_path}", TROUBLE[name], heard)
    with pytest.raises(BrokerUnreachable) as lost: bench.broker.place(bench.request())
    assert bench.server.posts() == 1 and hasattr(lost.value, "retry_after") and len(bench.server.orders) == heard
    assert lost.value.retry_after == (7.0 if name == "429" else None)
    assert (bench.broker.find("s-1") is not None) == heard
    again = bench.broker.place(bench.request())
    assert again.status == "filled" and len(bench.server.orders) == 1 and len({order.number for order in bench.server.orders.values()}) == 1


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
@pytest.mark.parametrize("name", sorted(TROUBLE.keys() - SLOW_FOR_CCXT))
def test_a_question_without_an_answer_is_never_no(bench: Bench, name: str, fresh: bool):
    bench.broker.place(bench.resting())
    broker = bench.connect() if fresh else bench.broker
    for question in (lambda: broker.find("s-1"), broker.account, lambda: broker.cancel("s-1"), broker.open_orders):
        bench.server.faults.clear()
        bench.server.fail("GET", TROUBLE[name], times=9)
        try: answer = question()
        except BrokerError: continue
        assert answer == [] and name in ("a list", "other")  # no open orders is what a list without any says
    assert bench.server.orders["s-1"].status == "new"


def test_a_slow_answer_does_not_hold_anybody_up(alpaca: Bench):
    for trouble in (hang, drip):
        alpaca.server.fail("POST", trouble, heard=True)
        started = time.monotonic()
        with pytest.raises(BrokerUnreachable): alpaca.broker.place(alpaca.request())
        assert time.monotonic() - started < 1.2
    assert alpaca.broker.find("s-1").status == "filled" and len(alpaca.server.orders) == 1


def test_nobody_is_there(bench: Bench):
    bench.server.shutdown()
    bench.server.server_close()
    for question in (lambda: bench.broker.place(bench.request()), lambda: bench.broker.find("s-1"), bench.broker.account):
        with pytest.raises(BrokerUnreachable): question()


def test_an_endless_answer_is_given_up(alpaca: Bench):
    alpaca.server.fail("GET", says(200, '["' + "x" * 11_000_000 + '"]'))
    with pytest.raises(BrokerUnreachable, match="did not come to an end"): AlpacaAccount(alpaca.config(timeout_seconds=20), alpaca.root).account()


@pytest.mark.parametrize("trouble, posts", [("hang", 1), ("reset", 1), ("429", 2)])
def test_the_desk_gives_an_order_once(bench: Bench, trouble: str, posts: int):
    bench.server.fail(f"POST {bench.order_path}", TROUBLE[trouble], heard=trouble != "429")
    clock = SimulatedClock()
    state = OrderDesk(bench.broker, clock=clock, prefix="desk").create_order(bench.symbol, "buy", 0.5)
    assert state.status == "filled" and bench.server.posts() == posts and list(bench.server.orders) == ["desk-000001"]
    assert clock.now_ns() == (7e9 if trouble == "429" else 0)  # the pause that the broker asked for


def test_an_exchange_that_cannot_be_asked_is_not_sent_to(binance: Bench):
    # The first order was filled and its answer lost; the exchange would take the same id again.
    binance.server.fail("POST", reset, heard=True)
    with pytest.raises(BrokerUnreachable): binance.broker.place(binance.request())
    binance.server.fail("GET /api/v3/order", says(503), times=2)
    for _ in range(2):
        with pytest.raises(BrokerUnreachable): binance.broker.place(binance.request())
    assert binance.server.posts() == 1 and binance.broker.place(binance.request()).filled == 0.5 and len(binance.server.orders) == 1


# --- refusals --------------------------------------------------------------------------------------------------------

def refusal(function) -> BrokerError:
    "The refusal that a call ends with, which is not an open question."
    with pytest.raises(BrokerError) as refused: function()
    assert not isinstance(refused.value, BrokerUnreachable)
    return refused.value


def test_insufficient_buying_power(bench: Bench):
    error = refusal(lambda: bench.broker.place(bench.request(quantity=1000.0)))
    assert ("insufficient buying power (code 40310000)" if bench.kind == "alpaca" else "insufficient balance") in str(error)
    assert bench.server.posts() == 1 and bench.broker.find("s-1") is None


def test_an_unknown_symbol(bench: Bench):
    said = str(refusal(lambda: bench.broker.place(replace(bench.request(), symbol="NOSUCH"))))
    assert ('asset "NOSUCH" not found (code 42210000)' if bench.kind == "alpaca" else "NOSUCH is not among the markets") in said


@pytest.mark.parametrize("symbols, said", [({"X": "NO/SUCH"}, "does not have market symbol NO/SUCH"), ({"X": "BTC/EUR"}, "no spot market in USDT")])
def test_a_market_that_is_not_there(binance: Bench, symbols: dict, said: str):
    broker = binance.connect(symbols=symbols)
    assert said in str(refusal(lambda: broker.place(replace(binance.request(), symbol="X"))))


def test_too_small_for_the_market(binance: Bench):
    assert "0.0001" in str(refusal(lambda: binance.broker.place(binance.request(quantity=0.00001)))) and binance.server.posts() == 0


@pytest.mark.parametrize("code", [400, 403, 422])
def test_alpacas_own_words_are_passed_on(alpaca: Bench, code: int):
    alpaca.server.fail("POST", says(code, {"code": 40310000, "message": "potential wash trade detected"}))
    assert "potential wash trade detected (code 40310000)" in str(refusal(lambda: alpaca.broker.place(alpaca.request())))


def test_refusals_outside_of_place(alpaca: Bench):
    alpaca.broker.place(alpaca.resting())
    said = says(403, {"code": 40310000, "message": "new orders are rejected by user request"})
    for pattern, question in (("GET", alpaca.broker.account), ("GET", lambda: alpaca.broker.find("s-1")), ("DELETE", lambda: alpaca.broker.cancel("s-1"))):
        alpaca.server.fail(pattern, said)
        assert "by user request" in str(refusal(question))


def test_a_page_that_is_not_there_is_no_answer_about_an_order(alpaca: Bench):
    assert "endpoint not found" in str(refusal(lambda: alpaca.connect(base_url=f"{alpaca.server.address}/nowhere").find("s-1")))


@pytest.mark.parametrize("status", ["new", "accepted", "pending_new", "accepted_for_bidding", "held", "stopped", "suspended", "calculated", "done_for_day", "pending_cancel",
                                    "pending_replace", "pending_review", "partially_filled", "filled", "canceled", "expired", "replaced", "rejected"])
def test_alpacas_statuses(alpaca: Bench, status: str):
    alpaca.broker.place(alpaca.resting())
    order = alpaca.server.orders["s-1"]
    order.filled, order.average = {"partially_filled": (0.25, 100.0), "filled": (0.5, 100.0)}.get(status, (0.0, None))
    order.status = status
    expected = {"partially_filled": "partial", "filled": "filled", "canceled": "cancelled", "expired": "cancelled", "replaced": "cancelled", "rejected": "rejected"}.get(status, "created")
    state = alpaca.broker.find("s-1")
    assert state.status == expected and state.reason == (status if expected in ("cancelled", "rejected") else "")


def test_a_status_nobody_knows(bench: Bench):
    bench.broker.place(bench.resting())
    bench.server.orders["s-1"].status = "in_limbo"
    assert "'in_limbo', a status nobody here knows" in str(refusal(lambda: bench.broker.find("s-1")))
    with pytest.raises(BrokerError): bench.broker.open_orders()


ODD = {"status": {"status": "in_limbo"}, "other": {"client_order_id": "s-9", "clientOrderId": "s-9"}, "filled": {"filled_qty": "9", "executedQty": "9"},
       "number": {"filled_qty": "x", "executedQty": "1e999"}, "side": {"side": "sideways"}}


@pytest.mark.parametrize("name", ODD)
def test_an_order_that_was_taken_is_never_called_refused(bench: Bench, name: str):
    bench.server.fail("POST", lambda handler: handler.reply(200, {**handler.shown(bench.server.orders["s-1"]), **ODD[name]}), heard=True)
    with pytest.raises(BrokerUnreachable, match="sense"): bench.broker.place(bench.request())
    assert bench.server.posts() == 1 and bench.broker.find("s-1").status == "filled"


def test_an_order_that_contradicts_itself_is_not_believed(bench: Bench):
    bench.broker.place(bench.resting())
    shown = {"alpaca": {"filled_qty": "0.75"}, "binance": {"executedQty": "0.75"}}[bench.kind]
    bench.server.orders["s-1"].extra |= shown
    assert "0.75 of 0.5 units are filled" in str(refusal(lambda: bench.broker.find("s-1")))
    bench.server.orders["s-1"].extra = {**bench.server.orders["s-1"].extra, "client_order_id": "s-2", "clientOrderId": "s-2"}
    assert "tells of another" in str(refusal(lambda: bench.broker.find("s-1")))


def test_all_pages_of_open_orders(alpaca: Bench):
    for number in range(1203): alpaca.server.add(f"s-{number}", "AAPL", "buy", "limit", 1.0, 100.0)
    assert len({state.client_order_id for state in alpaca.broker.open_orders()}) == 1203 and len(alpaca.server.asked) == 3


def test_pages_that_repeat_come_to_an_end(alpaca: Bench):
    for number in range(500): alpaca.server.add(f"s-{number}", "AAPL", "buy", "limit", 1.0, 100.0, submitted_at="1")
    assert len(alpaca.broker.open_orders()) == 500 and len(alpaca.server.asked) == 2


def test_crypto_at_alpaca_has_our_name(alpaca: Bench):
    state = alpaca.broker.place(replace(alpaca.request(), symbol="BTCUSD"))
    assert state.symbol == "BTCUSD" and alpaca.server.bodies[0]["symbol"] == "BTC/USD" and alpaca.server.bodies[0]["time_in_force"] == "gtc"


def test_pauses_are_read_in_every_spelling(bench: Bench):
    soon = time.time() + 60
    for headers, low, high in (({"Retry-After": "3"}, 3, 3), ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0), ({"X-RateLimit-Reset": f"{soon:.0f}"}, 58, 61)):
        bench.server.fail("GET", lambda handler, headers=headers: handler.reply(429, {"code": 42910000, "message": "slow down"}, headers))
        with pytest.raises(BrokerUnreachable) as busy: bench.broker.account()
        assert low <= busy.value.retry_after <= high
    assert retry_after({"retry-after": "-1"}) is None


# --- keys ------------------------------------------------------------------------------------------------------------

def test_keys_that_are_not_accepted_are_named(bench: Bench, root: Path):
    (root/"config"/"secrets.env").write_text("\n".join(f"{name}=another-value-{name}" for name in NAMES))
    bench.server.echo = "You sent another-value-ALPACA_PAPER_KEY and another-value-BINANCE_PAPER_SECRET"
    broker, name = bench.connect(), bench.kind.upper()
    for question in (broker.account, lambda: broker.find("s-1"), lambda: broker.place(bench.request())):
        said = str(refusal(question))
        assert f"{name}_PAPER_KEY" in said and f"{name}_PAPER_SECRET" in said and "another-value" not in said


def test_a_403_without_a_code_is_about_the_keys(alpaca: Bench):
    alpaca.server.fail("GET", says(403, {"message": "forbidden."}))
    assert "ALPACA_PAPER_KEY and ALPACA_PAPER_SECRET" in str(refusal(alpaca.broker.account))


def test_a_key_that_is_missing_is_named(bench: Bench, root: Path):
    (root/"config"/"secrets.env").unlink()
    with pytest.raises(UnknownName, match=f"{bench.kind.upper()}_PAPER_KEY"): bench.connect()
    with pytest.raises(UnknownName, match="MY_OWN_KEY"): bench.connect(key="MY_OWN_KEY")


SHOWN = ("id", "client_order_id", "symbol", "side", "type", "qty", "filled_qty", "filled_avg_price", "status", "orderId", "clientOrderId", "origQty", "executedQty", "price",
         "cummulativeQuoteQty", "time", "fills")


def test_secrets_are_shown_nowhere(bench: Bench, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    bench.server.echo = f"your key {KEY} and secret {SECRET}"
    bench.broker.place(bench.request())
    said = [repr(bench.broker), str(bench.broker), repr(vars(bench.broker)), repr(bench.config())]
    leak = {"code": 40310000, "message": f"no: {KEY} {SECRET}", "msg": f"no: {KEY} {SECRET}"}
    troubles = [says(status, content) for status in (400, 401, 403, 404, 418, 422, 429, 500) for content in (leak, f"<html>{KEY} {SECRET}")]
    for trouble in [*troubles, reset, cut, says(200, {**leak, "status": KEY, "client_order_id": "s-1", "id": SECRET, "symbol": "AAPL", "side": KEY}), says(307, "", Location="/elsewhere")]:
        bench.server.faults.clear()
        bench.server.fail("(GET|POST|DELETE)", trouble, times=9)
        for question in (bench.broker.account, lambda: bench.broker.place(bench.request()), lambda: bench.broker.find("s-1"), bench.broker.open_orders):
            try: question()
            except BrokerError as error: said += [str(error), repr(error), "".join(traceback.format_exception(error))]
    for field, value in ((field, value) for field in SHOWN for value in (KEY, SECRET)):
        bench.server.orders["s-1"].extra = {field: value}
        bench.server.faults.clear()
        bench.server.fail("POST", lambda handler: handler.reply(200, handler.shown(bench.server.orders["s-1"])))
        for question in (lambda: bench.broker.find("s-1"), lambda: bench.broker.place(bench.request())):
            try: question()
            except BrokerError as error: said += [str(error), "".join(traceback.format_exception(error))]
    bench.server.status, bench.server.orders["s-1"].extra = f"status {KEY}", {}
    bench.server.faults.clear()
    with pytest.raises(BrokerError) as inactive: account_check(bench.settings(), base_url=bench.server.address)
    bench.broker.place(bench.request())
    said += [str(inactive.value)] + [record.getMessage() + repr(record.args) for record in caplog.records] + [caplog.text]
    assert len(said) > 100
    for text in said: assert KEY not in text and SECRET not in text and SECRET.replace("/", "%2F") not in text


def test_no_redirect_is_followed(bench: Bench, root: Path):
    with running(AlpacaServer if bench.kind == "alpaca" else BinanceServer) as elsewhere:
        for code in (301, 302, 303, 307, 308):
            bench.server.fail("(GET|POST)", lambda handler, code=code: handler.reply(code, "", {"Location": f"{elsewhere.address}{handler.path}"}))
            with pytest.raises(BrokerError): bench.broker.account()
            bench.server.fail(f"POST {bench.order_path}", lambda handler, code=code: handler.reply(code, "", {"Location": f"{elsewhere.address}{handler.path}"}))
            with pytest.raises(BrokerError): bench.broker.place(bench.request())
        assert elsewhere.asked == [] and bench.server.orders == {}


# --- configs ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [{"base_url": "http://api.alpaca.markets"}, {"base_url": "https://api.alpaca.markets"}, {"base_url": "https://127.0.0.1.example.org"},
                                     {"base_url": "http://u:p@127.0.0.1"}, {"timeout_seconds": 0}, {"timeout_seconds": float("nan")}, {"mode": "real"}, {"key": KEY},
                                     {"key": "PKABCDEFGHIJKLMNOP"}, {"secret": "lower_case"}, {"retries": 3}])
def test_configs_are_checked_when_built(changes: dict):
    for build in (AlpacaConfig, lambda **given: CcxtConfig(exchange="binance", **given)):
        with pytest.raises(ValidationError) as refused: build(**changes)
        assert KEY not in str(refused.value) and "PKABC" not in str(refused.value) and "u:p" not in str(refused.value)


def test_configs_are_frozen():
    with pytest.raises(ValidationError): AlpacaConfig().mode = "live"


def test_an_exchange_without_a_sandbox_or_without_our_ids(root: Path):
    (root/"config"/"secrets.env").write_text("\n".join(f"{name}_PAPER_{kind}=some-value" for name in ("BITGET", "KRAKEN") for kind in ("KEY", "SECRET", "PASSWORD")))
    with pytest.raises(BrokerError, match="bitget has no sandbox"): CcxtBroker(CcxtConfig(exchange="bitget"), root)
    with pytest.raises(UnknownName, match="by our own id 'kraken'"): CcxtBroker(CcxtConfig(exchange="kraken"), root)


def test_stop_orders_that_would_not_be_found_again_are_refused(binance: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(binance.broker._exchange, "feature_value", lambda *_: True)  # as okx and kucoin answer
    assert "not found again by our id" in str(refusal(lambda: binance.broker.place(binance.request("s-1", 0.5, "stop", 99.0, side="sell"))))
    assert binance.server.posts() == 0


@pytest.mark.parametrize("exchange", ["okx", "kucoin"])
def test_which_exchanges_keep_stop_orders_apart(exchange: str):
    import ccxt
    assert getattr(ccxt, exchange)().feature_value_by_type("spot", None, "fetchOrder", "trigger") is True


def test_a_missing_package_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(MissingExtra, match=r"sagelab\[ccxt\]"): CcxtBroker(CcxtConfig(exchange="binance"), root)


# --- the stop latch --------------------------------------------------------------------------------------------------

def test_nothing_is_placed_while_the_lab_is_stopped_and_orders_can_be_cancelled(bench: Bench, root: Path):
    bench.broker.place(bench.resting())
    Latch(root).set("a test")
    with pytest.raises(Stopped): bench.broker.place(bench.request("s-2"))
    assert bench.server.posts() == 1 and bench.broker.cancel("s-1").status == "cancelled" and bench.broker.open_orders() == []


# --- the gate --------------------------------------------------------------------------------------------------------

def confirmed(root: Path, broker: str, *more: str) -> Settings:
    "Settings that switch a broker on, and a person who confirmed them."
    (root/"settings.ini").write_text("\n".join(["[lab]", "[live]", "enabled = yes", f"broker = {broker}", *more]))
    settings = load_settings(root)
    confirm_limits(settings, "a test", ScriptedTerminal(*_answers(settings)))
    return settings


def _answers(settings: Settings) -> list[str]:
    changed = [limit_text(state.written) for state in limit_states(settings) if state.written != state.confirmed]
    return [f"confirm {len(changed)} limits", *changed]


def approve(root: Path, strategy: str = "rsi", number: str = "e-1", actor: str | None = None, kind: str = "approved") -> None:
    open_ledger(root).append(f"experiment.{kind}", {"experiment_id": number, "strategy": strategy}, actor)


def last(root: Path): return open_ledger(root).tail(1)[0]


def live(bench: Bench, settings: Settings, *answers: str, **changes) -> Broker:
    more = {"base_url": bench.server.address, **({} if bench.kind == "alpaca" else {"symbols": SYMBOLS}), **changes}
    return connect_broker(settings, "rsi", "live", terminal=ScriptedTerminal(*(answers or [PHRASE.format(bench.kind)])), **more)


def test_real_money_takes_all_of_it(bench: Bench, root: Path):
    settings = confirmed(root, bench.kind)
    approve(root)
    broker = live(bench, settings)
    assert isinstance(broker, Broker) and broker.config.mode == "live" and broker.place(bench.request()).status == "filled"
    entry = last(root)
    assert entry.kind == "live.allowed" and entry.data == {"strategy": "rsi", "broker": bench.kind}


def test_every_reason_is_told_at_once_and_recorded(bench: Bench, root: Path, monkeypatch: pytest.MonkeyPatch):
    (root/"settings.ini").write_text(f"[lab]\n[live]\nbroker = {bench.kind}\n[policy]\nowners = somebody else\napprovers = 2")
    Latch(root).set("a test")
    bench.server.status = "ONBOARDING"
    monkeypatch.setenv("SAGELAB_ACTOR", "a program")
    with pytest.raises(PolicyError) as refused: live(bench, load_settings(root))
    reasons = last(root).data["reasons"]
    for part in (f"live.broker = {bench.kind} does not hold", "live.enabled is no", "rsi has 0 of 2 approvals", "a program is a program", "everything is stopped", "not ACTIVE"):
        assert part in str(refused.value) and sum(part in reason for reason in reasons) == 1, part
    assert last(root).kind == "live.refused" and len(reasons) == 6 and bench.server.posts() == 0


def refused_live(bench: Bench, settings: Settings, *answers: str) -> list[str]:
    "The reasons that the gate has, as the ledger has them."
    with pytest.raises(PolicyError) as refused: live(bench, settings, *answers)
    assert last(bench.root).kind == "live.refused"
    reasons = last(bench.root).data["reasons"]
    for reason in reasons: assert reason.rstrip(".") in str(refused.value)
    return reasons


def test_without_enabled(alpaca: Bench, root: Path):
    confirmed(root, "alpaca")
    approve(root)
    (root/"settings.ini").write_text("[lab]\n[live]\nbroker = alpaca\n")
    assert refused_live(alpaca, load_settings(root)) == ["live.enabled is no in settings.ini"]


def test_switched_on_without_a_person(alpaca: Bench, root: Path):
    (root/"settings.ini").write_text("[lab]\n[live]\nenabled = yes\nbroker = alpaca\n")
    approve(root)
    reasons = refused_live(alpaca, load_settings(root))
    assert len(reasons) == 2 and all("does not hold before an owner confirms it" in reason for reason in reasons)


def test_no_variable_and_no_argument_switches_real_money_on(alpaca: Bench, root: Path, monkeypatch: pytest.MonkeyPatch):
    confirmed(root, "alpaca")
    approve(root)
    (root/"settings.ini").write_text("[lab]\n[live]\nbroker = alpaca\n")
    assert refused_live(alpaca, load_settings(root, live_enabled=True)) == ["live.enabled is no in settings.ini"]
    monkeypatch.setenv("SAGELAB_LIVE_ENABLED", "yes")
    assert refused_live(alpaca, load_settings(root)) == ["live.enabled is no in settings.ini"]


def test_for_another_broker(alpaca: Bench, root: Path):
    settings = confirmed(root, "binance")
    approve(root)
    with pytest.raises(PolicyError, match="live.broker is binance in settings.ini, not alpaca"): live_gate(settings, "rsi", alpaca.broker, ScriptedTerminal(PHRASE.format("alpaca")))
    with pytest.raises(UsageError): live(alpaca, settings, exchange="okx", base_url="http://elsewhere.example")


@pytest.mark.parametrize("later", ["rejected", "revoked"])
def test_an_approval_that_was_taken_back(alpaca: Bench, root: Path, later: str):
    settings = confirmed(root, "alpaca")
    approve(root)
    approve(root, kind=later)
    assert "rsi has 0 of 1 approvals" in refused_live(alpaca, settings)[0]
    approve(root)
    assert live(alpaca, settings).name == "alpaca"
    open_ledger(root).append(f"experiment.{later}", {"experiment_id": "e-1"})
    assert "rsi has 0 of 1 approvals" in refused_live(alpaca, settings)[0]


def test_an_approval_of_another_strategy_or_by_nobody_who_may(alpaca: Bench, root: Path):
    settings = confirmed(root, "alpaca")
    approve(root, "sma")
    approve(root, actor="a program")
    approve(root, actor="a viewer")
    assert refused_live(alpaca, settings) == ["rsi has 0 of 1 approvals that stand. Try: sagelab experiment approve"]


def test_two_owners_are_two_persons(alpaca: Bench, root: Path):
    me = open_ledger(root).append("test.who", {}).actor
    settings = confirmed(root, "alpaca", "[policy]", f"owners = {me}, ada", "approvers = 2")
    approve(root)
    approve(root, number="e-2")
    assert "rsi has 1 of 2 approvals" in refused_live(alpaca, settings)[0]
    approve(root, actor="ada")
    assert live(alpaca, settings).name == "alpaca"


def test_fewer_approvers_by_argument_count_for_nothing(alpaca: Bench, root: Path):
    me = open_ledger(root).append("test.who", {}).actor
    confirmed(root, "alpaca", "[policy]", f"owners = {me}", "approvers = 2")
    approve(root)
    assert "rsi has 1 of 2 approvals" in refused_live(alpaca, load_settings(root, policy_approvers=1))[0]


def test_an_account_that_is_not_active_or_does_not_answer(alpaca: Bench, root: Path):
    settings = confirmed(root, "alpaca")
    approve(root)
    alpaca.server.status = "SUBMISSION_FAILED"
    assert refused_live(alpaca, settings) == ["the account is not ACTIVE: SUBMISSION_FAILED"]
    alpaca.server.fail("GET", says(500), times=2)
    assert "status 500" in refused_live(alpaca, settings)[0]


def test_while_stopped(alpaca: Bench, root: Path):
    settings = confirmed(root, "alpaca")
    approve(root)
    Latch(root).set("a test")
    assert refused_live(alpaca, settings) == ["everything is stopped. Try: sagelab resume"]


def test_by_a_program(alpaca: Bench, root: Path, monkeypatch: pytest.MonkeyPatch):
    settings = confirmed(root, "alpaca")
    approve(root)
    monkeypatch.setenv("SAGELAB_ACTOR", "some-program")
    assert refused_live(alpaca, settings) == ["a person has to ask, and some-program is a program (SAGELAB_ACTOR is set)"]


def test_by_somebody_who_is_no_owner(alpaca: Bench, root: Path):
    settings = confirmed(root, "alpaca")
    approve(root)
    (root/"settings.ini").write_text("[lab]\n[live]\nenabled = yes\nbroker = alpaca\n[policy]\nowners = ada\n")
    assert any("an owner has to ask" in reason for reason in refused_live(alpaca, load_settings(root))) and settings.policy.owners == ()


def test_the_phrase_is_typed_and_at_a_terminal(alpaca: Bench, root: Path):
    settings = confirmed(root, "alpaca")
    approve(root)
    assert "is not 'trade rsi at alpaca with real money'" in refused_live(alpaca, settings, "yes")[0]
    with pytest.raises(PolicyError, match="takes a person at a terminal"): connect_broker(settings, "rsi", "live", base_url=alpaca.server.address)
    assert last(root).kind == "live.refused"


def test_a_ledger_that_was_altered(alpaca: Bench, root: Path):
    settings = confirmed(root, "alpaca")
    approve(root)
    path = root/".sagelab"/"ledger.jsonl"
    path.write_text(path.read_text().replace('"strategy":"rsi"', '"strategy":"rsj"'))
    with pytest.raises(PolicyError, match="the ledger cannot be trusted.*this refusal is not recorded"): live(alpaca, settings)


# --- no way round ----------------------------------------------------------------------------------------------------

def test_no_broker_of_real_money_without_a_permission(bench: Bench, root: Path):
    kind = AlpacaBroker if bench.kind == "alpaca" else CcxtBroker
    for permission in (None, "yes", True, object()):
        with pytest.raises(PolicyError, match="without a permission"): kind(bench.config(mode="live"), root, permission)
    assert bench.server.asked == []


def test_a_permission_that_was_made_up(bench: Bench, root: Path, tmp_path_factory: pytest.TempPathFactory):
    kind, settings = (AlpacaBroker if bench.kind == "alpaca" else CcxtBroker), confirmed(root, bench.kind)
    approve(root)
    refusal_entry = open_ledger(root).append("live.refused", {"strategy": "rsi", "broker": bench.kind})
    other_entry = open_ledger(root).append("live.allowed", {"strategy": "sma", "broker": bench.kind})
    for entry in ("0" * 64, refusal_entry.hash, other_entry.hash, ""):
        with pytest.raises(PolicyError, match="knows of no such permission"): kind(bench.config(mode="live"), root, LivePermission(settings, "rsi", bench.kind, entry))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    confirmed(elsewhere, bench.kind)
    approve(elsewhere)
    entry = open_ledger(elsewhere).append("live.allowed", {"strategy": "rsi", "broker": bench.kind})
    for given in (settings, load_settings(elsewhere)):
        with pytest.raises(PolicyError, match="knows of no such permission"): kind(bench.config(mode="live"), root, LivePermission(given, "rsi", bench.kind, entry.hash))
    own = open_ledger(root).append("live.allowed", {"strategy": "rsi", "broker": bench.kind})
    assert kind(bench.config(mode="live"), root, LivePermission(settings, "rsi", bench.kind, own.hash)).name == bench.kind
    approve(root, kind="revoked")  # the reasons of another lab do not stand in for those of this one
    with pytest.raises(PolicyError, match="knows of no such permission"):
        kind(bench.config(mode="live"), root, LivePermission(load_settings(elsewhere), "rsi", bench.kind, own.hash))


def test_a_permission_does_not_outlive_its_reasons(alpaca: Bench, root: Path, monkeypatch: pytest.MonkeyPatch):
    settings = confirmed(root, "alpaca")
    approve(root)
    account = AlpacaAccount(alpaca.config(mode="live"), root)
    permission = live_gate(settings, "rsi", account, ScriptedTerminal(PHRASE.format("alpaca")))
    assert AlpacaBroker(alpaca.config(mode="live"), root, permission).place(alpaca.request()).status == "filled"
    Latch(root).set("a test")
    with pytest.raises(PolicyError, match="everything is stopped"): AlpacaBroker(alpaca.config(mode="live"), root, permission)
    (root/".sagelab"/"stop.json").unlink()
    with pytest.raises(PolicyError, match="not binance"): CcxtBroker(CcxtConfig(exchange="binance", mode="live"), root, permission)
    monkeypatch.setenv("SAGELAB_ACTOR", "some-program")
    with pytest.raises(PolicyError, match="is a program"): AlpacaBroker(alpaca.config(mode="live"), root, permission)
    monkeypatch.delenv("SAGELAB_ACTOR")
    approve(root, kind="revoked")
    with pytest.raises(PolicyError, match="0 of 1 approvals"): AlpacaBroker(alpaca.config(mode="live"), root, permission)


def test_what_looks_cannot_trade(root: Path):
    for kind in (AlpacaAccount, CcxtAccount): assert not hasattr(kind, "place") and not hasattr(kind, "cancel")


def test_paper_is_the_brokers_own_paper(root: Path):
    assert AlpacaBroker(AlpacaConfig(), root).config.address == "https://paper-api.alpaca.markets"
    urls = CcxtBroker(CcxtConfig(exchange="binance"), root)._exchange.urls["api"]
    assert urls["private"] == "https://testnet.binance.vision/api/v3" and not any("api.binance.com" in url for url in urls.values())


# --- from the settings -----------------------------------------------------------------------------------------------

def test_paper_from_the_settings(bench: Bench, root: Path):
    (root/"settings.ini").write_text(f"[lab]\n[live]\nbroker = {bench.kind}\n")
    more = {"base_url": bench.server.address, **({} if bench.kind == "alpaca" else {"symbols": SYMBOLS})}
    broker = connect_broker(load_settings(root), "rsi", **more)
    assert broker.place(bench.request()).status == "filled" and broker.config.mode == "paper" and not (root/".sagelab"/"ledger.jsonl").exists()


def test_no_broker_is_named(root: Path):
    settings = load_settings(root)
    with pytest.raises(PolicyError, match="live.broker is empty|broker is empty"): connect_broker(settings, "rsi")
    assert account_check(settings) == "no broker is connected"


def test_a_broker_nobody_knows_and_a_setting_nobody_knows(root: Path):
    (root/"settings.ini").write_text("[lab]\n[live]\nbroker = binanc\n")
    with pytest.raises(UnknownName, match="Did you mean 'binance'"): connect_broker(load_settings(root), "rsi")
    with pytest.raises(UsageError, match="no setting 'basee_url'"): connect_broker(load_settings(root), "rsi", basee_url="http://127.0.0.1")


def test_the_check_looks_and_says(bench: Bench, root: Path):
    (root/"settings.ini").write_text(f"[lab]\n[live]\nbroker = {bench.kind}\n")
    said = account_check(load_settings(root), base_url=bench.server.address)
    assert said == f"the paper account at {bench.kind} is ACTIVE: equity 100000.00 {'USD' if bench.kind == 'alpaca' else 'USDT'}, positions: 0"
    (root/"settings.ini").write_text(f"[lab]\n[live]\nenabled = yes\nbroker = {bench.kind}\n")
    assert account_check(load_settings(root), base_url=bench.server.address).startswith(f"the live account at {bench.kind} is ACTIVE")
    bench.server.status = "ONBOARDING"
    with pytest.raises(BrokerError, match="is not ACTIVE: (ONBOARDING|TRADING BARRED)"): account_check(load_settings(root), base_url=bench.server.address)
    assert bench.server.posts() == 0


def test_keys_with_odd_letters_are_refused_without_showing_them(root: Path):
    (root/"config"/"secrets.env").write_text("ALPACA_PAPER_KEY=schlüsselwort\nALPACA_PAPER_SECRET=something\n")
    with pytest.raises(SettingsError, match="ALPACA_PAPER_KEY holds a letter") as refused: AlpacaBroker(AlpacaConfig(), root)
    assert "schl" not in str(refused.value)


def test_the_lab_around_the_current_folder_is_used(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    assert AlpacaBroker(AlpacaConfig()).root == root and CcxtBroker(CcxtConfig(exchange="binance")).root == root
