"The desk at a connected broker: limits, capital, latch and ledger hold for orders that go to a server."
from pathlib import Path

import pytest
from broker_servers import KEY, SECRET, AlpacaServer
from local_server import running
from sagelab.core.errors import OrderError, PolicyError, Stopped
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.core.stop import Latch
from sagelab.trading.live import live_desk
from sagelab.trading.routing import RetryPolicy

RETRY = RetryPolicy(attempts=3, delay=0.01)


@pytest.fixture
def server():
    with running(AlpacaServer) as server: yield server


@pytest.fixture
def settings(tmp_path: Path):
    (tmp_path/"config").mkdir()
    secrets = tmp_path/"config"/"secrets.env"
    secrets.write_text(f"ALPACA_PAPER_KEY={KEY}\nALPACA_PAPER_SECRET={SECRET}\nALPACA_LIVE_KEY={KEY}\nALPACA_LIVE_SECRET={SECRET}\n")
    secrets.chmod(0o600)
    (tmp_path/"settings.ini").write_text("[lab]\n[live]\nbroker = alpaca\n")
    from sagelab.core.policy import ScriptedTerminal, confirm_limits
    confirm(load_settings(tmp_path, {}), ScriptedTerminal, confirm_limits)
    return load_settings(tmp_path, {})


def confirm(settings, terminal, confirm_limits) -> None:
    "An owner confirms the broker."
    confirm_limits(settings, "for the tests", terminal("confirm 1 limit", "alpaca"))


def desk_at(server, settings):
    return live_desk(settings, "sma_cross", retry=RETRY, base_url=server.address, timeout_seconds=2.0)


def test_an_order_goes_out_once_and_its_life_is_in_the_ledger(server, settings) -> None:
    desk = desk_at(server, settings)
    state = desk.create_order("AAPL", "buy", 1, params={"price_hint": 100.0})
    assert state.broker_order_id and len(server.orders) == 1
    kinds = [entry.kind for entry in open_ledger(settings.root).entries() if entry.kind.startswith("order.")]
    assert kinds[0] == "order.created" and len(kinds) >= 2


def test_more_than_the_capital_that_is_allowed_never_leaves(server, settings) -> None:
    desk = desk_at(server, settings)
    equity = desk.broker.account().equity
    with pytest.raises(OrderError, match="max_capital_pct allows 1 %"): desk.create_order("AAPL", "buy", round(0.02 * equity / 100.0, 6), params={"price_hint": 100.0})
    with pytest.raises(OrderError, match="price_hint"): desk.create_order("AAPL", "buy", 1)
    assert not server.orders and [entry.kind for entry in open_ledger(settings.root).entries()].count("order.refused") == 2


def test_the_latch_keeps_everything_in(server, settings) -> None:
    desk = desk_at(server, settings)
    Latch(settings.root).set("enough")
    with pytest.raises(Stopped): desk.create_order("AAPL", "buy", 1, params={"price_hint": 100.0})
    with pytest.raises(Stopped): desk_at(server, settings)
    assert not server.orders


def test_real_money_is_refused_with_every_reason(server, settings) -> None:
    with pytest.raises(PolicyError) as refused: live_desk(settings, "sma_cross", "live", base_url=server.address)
    assert "enabled" in str(refused.value) and "appro" in str(refused.value) and not server.orders


def test_a_desk_knows_its_orders_after_a_crash(server, settings) -> None:
    first = desk_at(server, settings)
    sent = first.create_order("AAPL", "buy", 1, "limit", {"price": 1.0})
    again = desk_at(server, settings)
    assert again.orders[sent.client_order_id][0].quantity == 1 and {s.client_order_id for s in again.reconcile()} == {sent.client_order_id}
