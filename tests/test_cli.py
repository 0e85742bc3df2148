"""The command line as scripts rely on it: JSON, exit codes, one clear sentence for whatever goes wrong."""
import json, subprocess, sys
import numpy as np
import pandas as pd
import pytest
from sagelab.cli.main import main
from sagelab.data.store import load_bars

VERBS = [[], ["demo"], ["init"], ["backtest"], ["sweep"], ["run"], ["replay"], ["runs"], ["check"], ["lab"], ["serve"], ["data"], ["data", "list"], ["data", "show"],
         ["data", "import"], ["data", "verify"], ["strategy"], ["strategy", "list"], ["strategy", "show"], ["ledger"], ["ledger", "verify"], ["ledger", "tail"]]


@pytest.fixture
def here(lab, monkeypatch):
    monkeypatch.chdir(lab)
    return lab


@pytest.fixture
def ask(here, capsys):
    "Run a command with --json: exit code and document."
    def answer(*words):
        code = main([*words, "--json"])
        return code, json.loads(capsys.readouterr().out)
    return answer


@pytest.fixture
def fails(here, capsys):
    "Run a command that must fail: exit code and the one sentence."
    def answer(*words):
        code = main(list(words))
        told = capsys.readouterr()
        assert code in (1, 2) and "Traceback" not in told.err + told.out
        return code, told.err
    return answer


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(verb, capsys):
    assert main([*verb, "--help"]) == 0
    assert "Usage: sagelab" in capsys.readouterr().out


def test_help_shows_what_stands_in_brackets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["ask", "--help"]) == 0
    assert "[default: settings.ini, [models] default]" in capsys.readouterr().out


def test_backtest_json(ask):
    code, told = ask("backtest", "sma_cross", "--symbol", "SP500", "-c", "fast=10", "-c", "slow=30", "--fee", "0.001", "--fill", "close")
    assert code == 0 and {"strategy", "symbol", "bars", "metrics", "data_sha256", "trades_sha256"} <= set(told)
    assert {"return", "sharpe", "max_drawdown", "trades", "win_rate"} <= set(told["metrics"]) and round(100 * told["metrics"]["return"], 4) == 31.1241
    assert ask("backtest", "sma_cross", "--symbol", "SP500", "-c", "fast=10", "-c", "slow=30", "--fee", "0.001", "--fill", "close")[1] == told


def test_sweep_json(ask, here):
    code, told = ask("sweep", "sma_cross", "--symbol", "SP500", "--grid", "fast=5:55:1", "--grid", "slow=20:220:2", "--top", "3", "--sort", "return")
    assert code == 0 and told["cells"] == 5000 and [set(t) for t in told["top"]] == [{"params", "return", "sharpe", "max_drawdown", "trades"}] * 3
    table = pd.read_parquet(told["table"])
    assert len(table) == 5000 and table["return"].max() == told["top"][0]["return"]


def test_range_of_dates(ask):
    told = ask("backtest", "buy_and_hold", "--symbol", "SP500", "--from", "2008-01-01", "--to", "2008-12-31")[1]
    assert told["bars"] == 253 and told["from"].startswith("2008-01-02") and told["to"].startswith("2008-12-31")


def test_import_show_backtest_own_file(ask, here, capsys):
    bars = load_bars("EURUSD").iloc[:500]
    frame = bars.reset_index().rename(columns={"time": "Datetime"})
    frame["Datetime"] = frame.Datetime.dt.strftime("%Y-%m-%d %H:%M:%S")
    frame.to_csv(here / "mine.csv", index=False)
    assert main(["data", "import", "mine.csv", "--symbol", "MINE", "--interval", "1h"]) in (1, 2)
    assert "--tz" in capsys.readouterr().err
    assert ask("data", "import", "mine.csv", "--symbol", "MINE", "--interval", "1h", "--tz", "UTC")[0] == 0
    assert ask("data", "show", "MINE")[1]["bars"] == 500 and "MINE" in [s["symbol"] for s in ask("data", "list")[1]]
    stored = ask("backtest", "sma_cross", "--symbol", "MINE")[1]
    direct = ask("backtest", "sma_cross", "--data", "mine.csv", "--interval", "1h", "--tz", "UTC")[1]
    assert stored["data_sha256"] == direct["data_sha256"] and stored["metrics"] == direct["metrics"]


def test_run_replay_runs(ask, here):
    code, run = ask("run", "nbs/experiments/backtest.ipynb", "-p", "strategies", "buy_and_hold", "-p", "symbol", "EURUSD")
    assert code == 0 and run["parameters"]["symbol"] == "EURUSD"
    assert ask("replay", run["run_id"]) == (0, {"run_id": run["run_id"], "identical": True, "difference": ""})
    assert [r["run_id"] for r in ask("runs")[1]] == [run["run_id"]]
    assert ask("ledger", "verify")[1]["ok"] and ask("ledger", "tail")[1][-1]["kind"] == "run.replayed" and ask("check")[0] == 0


# What a person may type or bring, the words that the answer must have, and the exit code.
WRONG = [
    (["backtest", "sma_cros", "--symbol", "SP500"], "Did you mean 'sma_cross'", 2),
    (["backtest", "sma_cross", "--symbol", "SP50"], "Did you mean 'SP500'", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "-c", "fats=3"], "Did you mean 'fast'", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "-c", "fast=three"], "fast = 'three'", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "-c", "fast"], "Try: name=value", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "--fee", "7"], "fee", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "--fill", "clos"], "next_open", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "--cash", "-5"], "cash", 2),
    (["backtest", "sma_cross", "--symbol", "SP500", "--from", "2030-01-01"], "2018-12-31", 1),
    (["backtest", "sma_cross"], "--symbol S or --data FILE", 2),
    (["backtest", "sma_cross", "--data", "none.csv"], "none.csv", None),
    (["sweep", "sma_cross", "--symbol", "SP500"], "grid is empty", 2),
    (["sweep", "sma_cross", "--symbol", "SP500", "--grid", "fast=5:5:1"], "'fast' has no values", 2),
    (["sweep", "sma_cross", "--symbol", "SP500", "--grid", "fast=1:100000:1", "--grid", "slow=1:100000:1"], "9,999,800,001 cells", 2),
    (["sweep", "sma_cross", "--symbol", "SP500", "--grid", "fst=5:9:1"], "Did you mean 'fast'", 2),
    (["sweep", "sma_cross", "--symbol", "SP500", "--grid", "fast=5:9:1", "--sort", "sharp"], "Did you mean 'sharpe'", 2),
    (["run", "none.ipynb"], "There is no notebook", 2),
    (["replay", "nothing"], "There is no run", 2),
    (["strategy", "show", "nothing"], "There is no strategy", 2),
    (["data", "show", "SP5000"], "Did you mean 'SP500'", 2),
    (["init", "."], "not empty", 2),
]


@pytest.mark.parametrize("words, message, code", WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_wrong_words(fails, words, message, code):
    given, told = fails(*words)
    assert message in told and told.startswith("error: ") and (code is None or given == code)


def rows(change=lambda frame: frame, count=60):
    frame = load_bars("SP500").iloc[:count].reset_index().rename(columns={"time": "Date"})
    frame["Date"] = frame.Date.dt.strftime("%Y-%m-%d")
    return change(frame).to_csv(index=False)


def put(row, column, value):
    def change(frame):
        frame = frame.astype({column: object})
        frame.loc[row, column] = value
        return frame
    return change


BAD_FILES = {
    "unsorted": rows(lambda f: f.iloc[::-1]), "duplicated": rows(lambda f: pd.concat([f.iloc[:5], f.iloc[4:]])), "nan": rows(put(7, "close", np.nan)),
    "negative volume": rows(put(7, "volume", -1)), "negative price": rows(put(7, "low", -1)), "low above high": rows(put(7, "low", 9e9)),
    "text cell": rows(put(7, "close", "abc")), "no rows": rows(count=0), "empty": "", "no columns": "a,b\n1,2\n", "infinite": rows(put(7, "high", np.inf)),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_name_and_nothing_is_stored(fails, here, name):
    (here / "bad.csv").write_text(BAD_FILES[name])
    for words in (["backtest", "buy_and_hold", "--data", "bad.csv"], ["data", "import", "bad.csv", "--symbol", "BAD", "--interval", "1d"]):
        assert "bad.csv" in fails(*words)[1]
    assert not list((here / "data" / "market").rglob("*.parquet"))


def test_truncated_parquet(fails, here):
    whole = (here / "data" / "samples" / "SP500.parquet").read_bytes()
    (here / "torn.parquet").write_bytes(whole[:len(whole) // 2])
    assert "torn.parquet" in fails("backtest", "buy_and_hold", "--data", "torn.parquet")[1]
    (here / "data" / "samples" / "SP500.parquet").write_bytes(whole[:len(whole) // 2])
    assert "SP500" in fails("backtest", "buy_and_hold", "--symbol", "SP500")[1] and main(["data", "verify"]) == 1 and main(["check"]) == 1


STRATEGY = "from sagelab.strategy.base import Decision, Strategy\nclass Wrong(Strategy):\n    def on_tick(self, market):\n        "


@pytest.mark.parametrize("body, message", [("1 / 0", "ZeroDivisionError"), ("return 'buy'", "answered 'buy'"), ("return Decision('up')", "one of long, short, flat"),
                                           ("while True: pass", "took longer than"), ("import sys; sys.exit()", "SystemExit"), ("def", "SyntaxError")])
def test_strategies_that_go_wrong(fails, here, monkeypatch, body, message):
    monkeypatch.setenv("SAGELAB_TRADING_TICK_TIMEOUT_SECONDS", "0.3")
    (here / "strategies" / "wrong.py").write_text(STRATEGY + body + "\n")
    code, told = fails("backtest", "wrong", "--symbol", "SP500")
    assert code == 1 and message in told and "wrong" in told
    assert main(["backtest", "sma_cross", "--symbol", "SP500", "--json"]) == 0, "one broken plug-in does not take the others down"


def test_a_broken_plugin_is_named_in_the_list(here, capsys):
    (here / "strategies" / "wrong.py").write_text("def")
    assert main(["strategy", "list", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert list(told["broken"]) == ["wrong"] and len(told["strategies"]) == 4


def test_outside_of_a_lab(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2 and "sagelab init" in capsys.readouterr().err


def test_errors_as_json_and_debug(here, capsys):
    assert main(["backtest", "nothing", "--symbol", "SP500", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["type"] == "UnknownName"
    answer = subprocess.run([sys.executable, "-m", "sagelab.cli.main", "--debug", "backtest", "nothing", "--symbol", "SP500"], cwd=here, capture_output=True, text=True)
    assert answer.returncode != 0 and "Traceback" in answer.stderr


def test_a_misspelt_setting_stops_everything(here, capsys):
    (here / "settings.ini").write_text("[lab]\nsede = 3\n")
    assert main(["backtest", "sma_cross", "--symbol", "SP500"]) == 2 and "Did you mean 'seed'" in capsys.readouterr().err


def test_secrets_do_not_reach_errors_logs_or_tracebacks(here):
    (here / "config").mkdir(exist_ok=True)
    (here / "config" / "secrets.env").write_text("TOKEN=hunter2-very-secret\n")
    (here / "strategies" / "leak.py").write_text(STRATEGY + "import logging; logging.error('hunter2-very-secret'); raise ValueError('hunter2-very-secret')\n")
    for words in (["backtest", "leak", "--symbol", "SP500"], ["--debug", "backtest", "leak", "--symbol", "SP500"]):
        answer = subprocess.run([sys.executable, "-m", "sagelab.cli.main", *words], cwd=here, capture_output=True, text=True)
        assert answer.returncode == 1 and "hunter2" not in answer.stdout + answer.stderr and "***TOKEN***" in answer.stderr


def test_what_a_strategy_prints_is_not_the_answer(ask, here):
    (here / "strategies" / "noisy.py").write_text(STRATEGY + "print('tick')\n")
    assert ask("backtest", "noisy", "--symbol", "SP500")[1]["bars"] == 5031


def test_an_import_does_not_stand_in_for_a_sample_unseen(fails, ask, here):
    load_bars("SP500").iloc[:300].to_parquet(here / "short.parquet")
    assert "bundled sample" in fails("data", "import", "short.parquet", "--symbol", "SP500", "--interval", "1d")[1]
    assert ask("data", "import", "short.parquet", "--symbol", "SP500", "--interval", "1d", "--replace")[0] == 0
    assert ask("data", "show", "SP500")[1]["bars"] == 300


def test_ctrl_c_is_one_sentence_and_leaves_nothing(here):
    import os, signal, time
    import nbformat
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time; open('started', 'w').close(); time.sleep(60)")],
                                        metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    nbformat.write(notebook, here / "slow.ipynb")
    process = subprocess.Popen([sys.executable, "-m", "sagelab.cli.main", "run", "slow.ipynb"], cwd=here, start_new_session=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list((here / "reports").glob(".partial-*/started")): assert time.monotonic() < deadline; time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped by Ctrl-C" in told[1] and "Traceback" not in told[0] + told[1]
    assert not list((here / "reports").iterdir())
