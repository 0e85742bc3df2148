"Roles, gates and limits, with real processes at real terminals: what a person confirmed holds, and nobody else decides."
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sagelab.core import ledger as ledger_module
from sagelab.core import policy
from sagelab.core.errors import LedgerError, PolicyError, SettingsError, UnknownName, UsageError
from sagelab.core.ledger import open_ledger
from sagelab.core.policy import LIMITS, ScriptedTerminal, change_limit, confirm_limits, current_person, effective_settings, limit_states, require
from sagelab.core.settings import RiskSettings, load_settings, sections

SAGELAB = [sys.executable, "-m", "sagelab.cli.main"]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_USER", raising=False)


@pytest.fixture
def root(tmp_path: Path, repository: Path) -> Path:
    "A lab that is no more than the settings everybody starts with."
    shutil.copy(repository/"settings.ini", tmp_path/"settings.ini")
    return tmp_path


def edit(root: Path, key: str, value: str) -> None:
    "Change a setting as an editor of text would."
    section, name = key.split(".")
    lines = (root/"settings.ini").read_text().splitlines()
    start = lines.index(f"[{section}]")
    at = next(n for n in range(start, len(lines)) if lines[n].startswith(f"{name} ="))
    lines[at] = f"{name} = {value}"
    (root/"settings.ini").write_text("\n".join(lines) + "\n")


def sagelab(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    "Run a command with pipes around it."
    return subprocess.run([*SAGELAB, *words], cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | environment)


def at_terminal(root: Path, words: list[str], answers: list[str], **environment: str) -> tuple[int, str]:
    "Run a command at a terminal of its own and type each answer when it asks: exit code, and what the screen shows."
    master, slave = pty.openpty()
    process = subprocess.Popen([*SAGELAB, *words], cwd=root, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | environment)
    os.close(slave)
    screen = b""
    for answer in answers:
        screen += _until(master, b"> ")
        os.write(master, f"{answer}\n".encode())
    screen += _until(master, None)
    os.close(master)
    return process.wait(60), screen.decode().replace("\r\n", "\n")


def _until(master: int, end: bytes | None) -> bytes:
    "Read a screen up to a prompt, or up to the end of the process."
    shown = b""
    while end is None or not shown.endswith(end):
        try: more = os.read(master, 4096)
        except OSError: break  # how Linux says that nobody writes any more
        if not more: break
        shown += more
    return shown


def kinds(root: Path) -> list[str]: return [entry.kind for entry in open_ledger(root).entries()]


def owned_by_ada(root: Path) -> None:
    "Let the person who runs the tests confirm that somebody else is the owner."
    edit(root, "policy.owners", "ada")
    confirm_limits(load_settings(root), "handed over", ScriptedTerminal("confirm 1 limit", "ada"))


# ---- the table -----------------------------------------------------------------------------------------------------

def test_every_limit_has_a_direction() -> None:
    keys = {f"{name}.{key}" for name in ("policy", "risk", "live", "experiment", "promotion") for key in sections()[name].model_fields}
    assert set(LIMITS) == keys and all(direction.words for direction in LIMITS.values())


TRIALS = {  # key: what is confirmed, what is tighter, what is not
    "policy.owners": ("", None, "ada"), "policy.editors": ("", None, "ada"), "policy.viewers": ("", None, "ada"), "policy.approvers": ("2", "3", "1"),
    "risk.paper": ("watch", "enforce", "off"), "risk.max_open_trades": ("10", "9", "11"), "risk.max_exposure": ("1", "0.5", "1.1"),
    "risk.max_intraday_loss": ("0.02", "0.01", "0.03"), "risk.max_daily_loss": ("0.03", "0.02", "0.04"), "risk.max_trade_risk_pct": ("1", "0.9", "2"),
    "risk.symbol_exposure": ("EURUSD:0.5", "EURUSD:0.4, SP500:1", "SP500:0.5"), "risk.max_slippage": ("0.01", "0.001", "0.02"),
    "risk.max_order_seconds": ("60", "30", "0"), "risk.auto_close_seconds": ("60", "59", "61"),
    "live.enabled": ("yes", "no", None), "live.broker": ("alpaca", "", "kraken"), "live.max_capital_pct": ("2", "1", "3"),
    "live.symbols": ("BTCUSDT:BTC/USDT", "", "ETHUSDT:ETH/USDT"), "live.base_url": ("https://a.example", "", "https://b.example"),
    "experiment.canary_capital_pct": ("1", "0.5", "2"), "experiment.canary_hours": ("72", "96", "71"),
    "promotion.min_sharpe_gain": ("0.2", "0.3", "0.1"), "promotion.min_return_gain": ("0.05", "0.06", "-0.05"),
    "promotion.drawdown_tolerance": ("0.02", "0", "0.03"), "promotion.min_deflated_sharpe": ("0.95", "0.99", "0.9"), "promotion.max_pbo": ("0.2", "0.1", "0.3"),
}


def test_every_limit_is_tried() -> None: assert set(TRIALS) == set(LIMITS)


@pytest.mark.parametrize("key", TRIALS)
def test_hand_edit_tightens_at_once_and_loosens_never(root: Path, key: str) -> None:
    confirmed, tighter, looser = TRIALS[key]
    section, name = key.split(".")
    shown = "empty" if confirmed == "" else "EURUSD:0.5" if key == "risk.symbol_exposure" else confirmed
    change_limit(load_settings(root), key, confirmed, "a start", ScriptedTerminal(f"change {key}", shown))
    sure = getattr(getattr(load_settings(root), section), name)
    for written, holds in ((tighter, True), (looser, False)):
        if written is None: continue
        edit(root, key, written)
        settings = load_settings(root)
        held, notes = effective_settings(settings)
        assert getattr(getattr(held, section), name) == (getattr(getattr(settings, section), name) if holds else sure)
        assert [note.split(" = ")[0] for note in notes] == ([] if holds else [key])
    edit(root, key, confirmed)
    assert effective_settings(load_settings(root))[1] == []


def test_environment_and_arguments_loosen_nothing_either(root: Path) -> None:
    for settings in (load_settings(root, {"SAGELAB_RISK_MAX_EXPOSURE": "5"}), load_settings(root, {}, risk_max_exposure=5)):
        held, notes = effective_settings(settings)
        assert held.risk.max_exposure == 1 and "sagelab policy confirm" in notes[0] and "risk.max_exposure = 5" in notes[0]
    assert effective_settings(load_settings(root, {"SAGELAB_RISK_MAX_EXPOSURE": "0.5"}))[0].risk.max_exposure == 0.5


@given(written=st.floats(0.001, 10), confirmed=st.floats(0.001, 10))
def test_what_holds_is_never_looser_than_what_was_confirmed(written: float, confirmed: float) -> None:
    for key in (key for key, direction in LIMITS.items() if isinstance(getattr(sections()[key.split(".")[0]](), key.split(".")[1]), float)):
        state = policy.LimitState(key, written, confirmed, 1.0)
        assert state.value in (written, confirmed) and (state.value == confirmed or state.direction.tighter(state.value, confirmed))


def test_nan_is_tighter_than_nothing() -> None:
    numbers = [key for key in LIMITS if isinstance(getattr(sections()[key.split(".")[0]](), key.split(".")[1]), float)]
    assert len(numbers) > 10 and not any(policy.LimitState(key, float("nan"), 1.0, 1.0).holds for key in numbers)


# ---- who -----------------------------------------------------------------------------------------------------------

def test_person_is_the_account_and_not_what_the_environment_says(root: Path) -> None:
    you = json.loads(sagelab(root, "policy", "--json", USER="ada", LOGNAME="ada").stdout)["you"]
    assert you == {"name": policy._system_name(os.getuid()), "role": "owner", "kind": "system"}
    assert json.loads(sagelab(root, "policy", "--json", JUPYTERHUB_USER="ada").stdout)["you"] == {"name": "ada", "role": "owner", "kind": "jupyter"}
    assert json.loads(sagelab(root, "policy", "--json", SAGELAB_ACTOR="gpt").stdout)["you"] == {"name": "gpt", "role": "editor", "kind": "program"}


def test_jupyter_name_counts_only_where_the_account_owns_the_folder(root: Path) -> None:
    foreign = root if os.getuid() == 0 else Path("/")
    if foreign == root: os.chown(root, 12345, -1)
    assert policy._user(foreign, {"JUPYTERHUB_USER": "ada"}) == (policy._system_name(os.getuid()), "system")
    assert policy._user(foreign, {"JUPYTERHUB_USER": policy._system_name(os.getuid())})[1] == "jupyter"
    if foreign == root: assert current_person(load_settings(root)).role == "viewer" and policy.folder_owner(root) == "uid 12345"


def test_unconfirmed_lists_take_roles_away_and_give_none(root: Path) -> None:
    owned_by_ada(root)
    me = policy._system_name(os.getuid())
    edit(root, "policy.owners", f"ada, {me}")
    assert current_person(load_settings(root)).role == "viewer"
    assert current_person(effective_settings(load_settings(root))[0]).role == "viewer"
    edit(root, "policy.owners", "bob")
    assert current_person(load_settings(root), {"JUPYTERHUB_USER": "ada"}).role == "viewer"
    edit(root, "policy.viewers", "bob")
    assert current_person(load_settings(root)).role == ""
    with pytest.raises(PolicyError, match="has no role here"): require(load_settings(root), "viewer", "look")
    with pytest.raises(PolicyError, match=r"ask an owner \(ada\)"): require(load_settings(root), "owner", "approve an experiment")
    assert kinds(root) == ["policy.limit", "policy.refused", "policy.refused"]
    refusal = open_ledger(root).tail(1)[0]
    assert refusal.actor == me and {"what": "approve an experiment", "person": me, "role": "", "needed": "owner"}.items() <= refusal.data.items()


def test_refusal_stands_where_the_ledger_takes_no_entry(root: Path) -> None:
    (root/".sagelab").mkdir()
    (root/".sagelab"/"ledger.jsonl").write_text("altered\n")
    with pytest.raises(PolicyError, match="is a program.*could not be recorded"): require(load_settings(root), "owner", "resume", {"SAGELAB_ACTOR": "gpt"})


# ---- gates ---------------------------------------------------------------------------------------------------------

def test_gates_say_who_and_what() -> None:
    assert {gate.role for gate in policy.GATES} <= set(policy.ROLES) and policy.find_gate("stop").role == ""
    assert all(gate.terminal for gate in policy.GATES if gate.role == "owner") and not any(gate.terminal for gate in policy.GATES if gate.role != "owner")
    with pytest.raises(UnknownName, match="Did you mean 'decide'"): policy.find_gate("decode")


def test_vote_needs_a_ledger_whose_chain_holds(root: Path) -> None:
    for number in range(3): open_ledger(root).append("run.finished", {"number": number})
    path = open_ledger(root).path
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(keepends=True) if b'"number":1' not in line))
    assert policy.pass_gate(load_settings(root), "experiment", "").role == "owner"
    with pytest.raises(LedgerError, match="nothing is decided on it"): policy.pass_gate(load_settings(root), "decide", "approve 7", ScriptedTerminal("approve 7"))


# ---- the ledger's limits -------------------------------------------------------------------------------------------

def test_altered_limit_is_no_limit(root: Path) -> None:
    change_limit(load_settings(root), "risk.max_exposure", "2", "r", ScriptedTerminal("change risk.max_exposure", "2"))
    path = open_ledger(root).path
    good = path.read_bytes()
    for bad in (good.replace(b'"new":2', b'"new":9'), good.replace(b'{"actor"', b'["actor"'), b'{"kind":"policy.limit"}\n', b'[{"kind":"policy.limit"}]\n'):
        path.write_bytes(bad)
        with pytest.raises(LedgerError, match="which limits hold"): effective_settings(load_settings(root))
    answer = sagelab(root, "policy", "--json")
    assert answer.returncode == 1 and json.loads(answer.stdout)["type"] == "LedgerError"
    path.write_bytes(good)
    assert effective_settings(load_settings(root))[1] == []


def test_only_entries_of_that_kind_count(root: Path) -> None:
    open_ledger(root).append("run.finished", {"kind": "policy.limit", "key": "risk.max_exposure", "new": 9})
    assert policy.confirmations(root) == {}
    open_ledger(root).append("policy.limit", {"odd": 1})
    with pytest.raises(LedgerError): policy.confirmations(root)


def test_confirmed_value_that_fits_no_more_is_told(root: Path) -> None:
    open_ledger(root).append("policy.limit", {"key": "risk.max_open_trades", "old": 10, "new": 0, "reason": "r"})
    with pytest.raises(SettingsError, match="risk.max_open_trades = 0 confirmed, which does not fit"): effective_settings(load_settings(root))


def test_limits_are_found_at_once_in_a_long_ledger(root: Path) -> None:
    path, last = open_ledger(root).path, None
    path.parent.mkdir()
    with open(path, "wb") as file:
        for number in range(30_000):
            limit = {"key": "risk.max_exposure", "old": 1, "new": number / 1000, "reason": "r"}
            kind, data = ("policy.limit", limit) if number in (700, 2_000) else ("order.filled", {"number": number, "note": "x" * 80})
            last = ledger_module._entry(last, kind, data, "ada")
            file.write(ledger_module._line(last))
    begun = time.process_time()
    confirmed = policy.confirmations(root)
    assert time.process_time() - begun < 0.25
    assert confirmed["risk.max_exposure"].data["new"] == 2 and confirmed["risk.max_exposure"].seq == 2_000


# ---- changing limits -----------------------------------------------------------------------------------------------

def test_owner_changes_a_limit_at_a_terminal(root: Path) -> None:
    before = (root/"settings.ini").read_text()
    code, screen = at_terminal(root, ["policy", "set", "risk.max_exposure", "2", "--reason", "a wider book"], ["change risk.max_exposure", "2"])
    assert code == 0 and "risk.max_exposure: 1 -> 2  (LOOSER" in screen and "risk.max_exposure = 2, which was 1." in screen
    assert (root/"settings.ini").read_text() == before.replace("max_exposure = 1\n", "max_exposure = 2\n")
    entry = open_ledger(root).tail(1)[0]
    assert entry.kind == "policy.limit" and entry.data["terminal"].startswith("/dev/") and entry.data["reason"] == "a wider book"
    shown = json.loads(sagelab(root, "policy", "--json").stdout)
    limit = next(limit for limit in shown["limits"] if limit["key"] == "risk.max_exposure")
    assert (limit["value"], limit["written"], limit["default"], limit["confirmed_by"]) == (2, 2, 1, entry.actor) and shown["notes"] == []


@pytest.mark.parametrize("answers", [["yes"], ["change risk.max_exposure", "3"], ["change risk.max_exposure", ""], ["\x04"]], ids=["phrase", "value", "empty", "end"])
def test_what_is_typed_wrong_changes_nothing(root: Path, answers: list[str]) -> None:
    before = (root/"settings.ini").read_bytes()
    code, screen = at_terminal(root, ["policy", "set", "risk.max_exposure", "2", "--reason", "r"], answers)
    assert code == 1 and "nothing was done" in screen and (root/"settings.ini").read_bytes() == before and kinds(root) == ["policy.refused"]


REFUSED = {
    "no terminal": (["risk.max_exposure", "2"], {}, 1, "terminal", True), "a program": (["risk.max_exposure", "2"], {"SAGELAB_ACTOR": "gpt"}, 1, "is a program", True),
    "unknown": (["risk.exposure", "2"], {}, 2, "risk.max_exposure", False), "out of range": (["risk.max_exposure", "0"], {}, 2, "greater than 0", False),
    "no number": (["promotion.min_sharpe_gain", "inf"], {}, 2, "finite", False), "not a limit": (["trading.fee", "0"], {}, 2, "no limit 'trading.fee'", False),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_recorded(root: Path, case: str) -> None:
    words, environment, code, said, recorded = REFUSED[case]
    answer = sagelab(root, "policy", "set", *words, "--reason", "r", **environment)
    assert answer.returncode == code and said in answer.stderr and answer.stderr.count("\n") == 1
    assert kinds(root) == ["policy.refused"] * recorded


def test_wrong_role_at_a_terminal(root: Path) -> None:
    owned_by_ada(root)
    for words in (["set", "risk.max_exposure", "0.5"], ["confirm"]):
        code, screen = at_terminal(root, ["policy", *words, "--reason", "r"], [])
        assert code == 1 and "takes the role owner" in screen
    assert kinds(root) == ["policy.limit", "policy.refused", "policy.refused"]


def test_altered_ledger_takes_no_change(root: Path) -> None:
    for number in range(2): open_ledger(root).append("run.finished", {"number": number})
    path = open_ledger(root).path
    path.write_bytes(path.read_bytes().replace(b'"number":0', b'"number":5'))
    before = (root/"settings.ini").read_bytes()
    code, screen = at_terminal(root, ["policy", "set", "risk.max_exposure", "0.5", "--reason", "r"], [])
    assert code == 1 and "line 1 was altered" in screen and (root/"settings.ini").read_bytes() == before


def test_hand_edit_is_confirmed_at_a_terminal(root: Path) -> None:
    edit(root, "risk.max_exposure", "3")
    edit(root, "live.broker", "alpaca")
    told = sagelab(root, "policy")
    assert told.returncode == 0 and told.stderr.count("does not hold before an owner confirms it") == 2
    assert effective_settings(load_settings(root))[0].risk.max_exposure == 1
    assert at_terminal(root, ["policy", "confirm", "--reason", "r"], ["confirm 2 limits", "3", "binance"])[0] == 1
    assert effective_settings(load_settings(root))[0].risk.max_exposure == 1
    code, screen = at_terminal(root, ["policy", "confirm", "--reason", "r"], ["confirm 2 limits", "3", "alpaca"])
    assert code == 0 and "live.broker = alpaca, which was none." in screen and effective_settings(load_settings(root))[1] == []
    assert kinds(root) == ["policy.refused", "policy.limit", "policy.limit"]
    code, screen = at_terminal(root, ["policy", "confirm", "--reason", "r", "--json"], [])
    assert code == 0 and json.loads(screen) == []


def test_value_may_start_with_a_minus_and_list_be_emptied(root: Path) -> None:
    assert at_terminal(root, ["policy", "set", "promotion.min_return_gain", "-0.01", "--reason", "r"], ["change promotion.min_return_gain", "-0.01"])[0] == 0
    assert load_settings(root).promotion.min_return_gain == -0.01
    words = ["policy", "set", "live.broker"]
    assert at_terminal(root, [*words, "alpaca", "--reason", "r"], ["change live.broker", "alpaca"])[0] == 0
    assert at_terminal(root, [*words, "", "--reason", "r"], ["change live.broker", ""])[0] == 1
    code, screen = at_terminal(root, [*words, "", "--reason", "r", "--json"], ["change live.broker", "empty"])
    assert code == 0 and '"new": ""' in screen and load_settings(root).live.broker == ""


def test_no_reason_and_no_number_is_no_confirmation(root: Path) -> None:
    with pytest.raises(UsageError, match="reason"): confirm_limits(load_settings(root), "  ", ScriptedTerminal())
    edit(root, "promotion.min_sharpe_gain", "inf")
    with pytest.raises(SettingsError, match="finite"): confirm_limits(load_settings(root), "r", ScriptedTerminal())


def test_full_disk_leaves_file_and_ledger_as_they_were(tmp_path: Path) -> None:
    (tmp_path/"settings.ini").write_text("[lab]\nname = x\n")
    for number in range(20): open_ledger(tmp_path).append("run.finished", {"number": number, "note": "x" * 200})
    code = ("from sagelab.core.policy import *; from sagelab.core.settings import load_settings; import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
            "change_limit(load_settings(), 'risk.max_exposure', '2', 'r', ScriptedTerminal('change risk.max_exposure', '2'))")
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "LedgerError" in answer.stderr and "could not take entry" in answer.stderr
    assert (tmp_path/"settings.ini").read_text() == "[lab]\nname = x\n" and open_ledger(tmp_path).verify().ok and "policy.limit" not in kinds(tmp_path)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4000


FILES = {
    "another section": "[lab]\nname = x\n",
    "another key": "[lab]\n[risk]\n; all of them\nmax_open_trades = 3\n[live]\nenabled = no\n",
    "windows": "[lab]\r\nname = x\r\n[risk]\r\nmax_exposure = 1\r\n; end\r\n",
    "colon": "[lab]\n[risk]\nMax_Exposure : 1\n",
    "two lines": "[lab]\n[risk]\nmax_exposure =\n   1\n; a comment\nmax_open_trades = 3\n",
    "commented out": "[lab]\n[risk]\n; max_exposure = 1\n# max_exposure = 1\n",
    "no end of line": "[lab]\n[risk]\nmax_exposure = 1",
}


@pytest.mark.parametrize("case", FILES)
def test_file_is_edited_in_place(tmp_path: Path, case: str) -> None:
    path = tmp_path/"settings.ini"
    path.write_bytes(FILES[case].encode())
    before = load_settings(tmp_path)
    change_limit(before, "risk.max_exposure", "0.25", "r", ScriptedTerminal("change risk.max_exposure", "0.25"))
    after = load_settings(tmp_path)
    assert after.risk == RiskSettings(**(before.risk.model_dump() | {"max_exposure": 0.25})) and after.live == before.live
    comments = [line for line in FILES[case].split("\n") if line[:1] in (";", "#")]
    assert all(line in path.read_bytes().decode() for line in comments) and ("\r\n" in FILES[case]) == (b"\r\n" in path.read_bytes())


def test_file_with_no_safe_place_is_left_alone(tmp_path: Path) -> None:
    text = "[lab]\n  [risk]\n  max_exposure = 1\n"
    (tmp_path/"settings.ini").write_text(text)
    with pytest.raises(SettingsError, match="no safe place"):
        change_limit(load_settings(tmp_path), "risk.max_exposure", "2", "r", ScriptedTerminal("change risk.max_exposure", "2"))
    assert (tmp_path/"settings.ini").read_text() == text and kinds(tmp_path) == []


def test_linked_settings_stay_a_link(tmp_path: Path) -> None:
    (tmp_path/"real.ini").write_text("[lab]\n")
    (tmp_path/"lab").mkdir()
    (tmp_path/"lab"/"settings.ini").symlink_to(tmp_path/"real.ini")
    change_limit(load_settings(tmp_path/"lab"), "risk.max_exposure", "2", "r", ScriptedTerminal("change risk.max_exposure", "2"))
    assert (tmp_path/"lab"/"settings.ini").is_symlink() and "max_exposure = 2" in (tmp_path/"real.ini").read_text()


# ---- the page ------------------------------------------------------------------------------------------------------

def test_policy_shows_everything(root: Path) -> None:
    edit(root, "promotion.min_sharpe_gain", "inf")
    shown = json.loads(sagelab(root, "policy", "--json").stdout)
    assert [limit["key"] for limit in shown["limits"]] == list(LIMITS) and {gate["name"] for gate in shown["gates"]} == {gate.name for gate in policy.GATES}
    assert shown["stop"] is None and set(shown["roles"]) == {"owner", "editor", "viewer"}
    assert next(limit["value"] for limit in shown["limits"] if limit["key"] == "promotion.min_sharpe_gain") == "inf"
    page = sagelab(root, "policy", COLUMNS="160").stdout
    assert all(key in page for key in LIMITS) and all(gate.does in page for gate in policy.GATES)
    assert all(state.holds for state in limit_states(load_settings(root)))


def test_policy_has_help_for_each_verb() -> None:
    for words in (["policy"], ["policy", "set"], ["policy", "confirm"], ["stop"], ["resume"]):
        assert "Usage: sagelab " + " ".join(words) in sagelab(Path.cwd(), *words, "--help", COLUMNS="120").stdout
