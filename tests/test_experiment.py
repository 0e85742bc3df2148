"""Experiments on real repositories: nothing of the person's is touched, whatever breaks is told, and only a person approves."""
import json, os, pty, re, select, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from sagelab.cli.main import main
from sagelab.core.ledger import open_ledger
from sagelab.core.policy import ScriptedTerminal
from sagelab.core.settings import load_settings
from sagelab.core.errors import ExperimentError, PolicyError
from sagelab.core.stop import Latch
from sagelab.lab.decision import approve, reject, waits_for
from sagelab.lab.experiment import work
from sagelab.lab.record import find_experiment, folder_of, list_experiments, read_report, tree_of
from sagelab.lab.run import run_notebook
from sagelab.lab.template import init_lab

WORDS = ["--name", "Faster", "--hypothesis", "A faster average turns sooner.", "--strategy", "sma_cross", "-c", "fast=5", "--baseline", "last"]
STATED = {"experiment_id", "branch", "hypothesis", "baseline_metrics", "experiment_metrics", "backtest_range", "paper_simulation", "artifacts", "approved",
          "trials", "deflated_sharpe", "pbo", "causality", "cutoff", "robustness", "recommendation", "tests", "parameters", "strategy", "baseline_run",
          "data_sha256", "trades_sha256", "code"}


def git(folder, *words, code=0):
    "Git as the person uses it, by their own name and without their hooks."
    own = [p for s in ("user.name=P", "user.email=p@example.com", "commit.gpgSign=false", "core.hooksPath=/dev/null") for p in ("-c", s)]
    done = subprocess.run(["git", "-C", str(folder), *own, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


def seen(lab):
    "What an experiment must not touch: files, index, head, branch, stash, configuration."
    place = Path(git(lab, "rev-parse", "--absolute-git-dir").strip())
    return {"status": git(lab, "status", "--porcelain"), "stash": git(lab, "stash", "list"),
            **{name: (place / name).read_bytes() for name in ("index", "HEAD", "config")}}


def kinds(lab): return [entry.kind for entry in open_ledger(lab).entries() if entry.kind.startswith("experiment.")]


@pytest.fixture(scope="module")
def quiet_git():
    "No identity, no settings of the machine."
    patch = pytest.MonkeyPatch()
    patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [n for n in os.environ if n.startswith(("SAGELAB_", "GIT_AUTHOR", "GIT_COMMITTER"))]: patch.delenv(name)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def began(tmp_path_factory, quiet_git):
    "A lab under git with a finished run."
    root = init_lab(tmp_path_factory.mktemp("began") / "lab")
    git(root, "init", "-q", "-b", "work")
    (root / "strategies" / "sma_cross.py").write_text((root / "strategies" / "sma_cross.py").read_text())
    git(root, "add", "-A"), git(root, "commit", "-qm", "begin")
    run_notebook(root / "nbs/experiments/backtest.ipynb", {"strategies": "sma_cross", "start": "2014-01-01", "guards": False}, settings=load_settings(root))
    return root


@pytest.fixture
def here(began, tmp_path, monkeypatch):
    "A copy of that lab, to work in."
    root = tmp_path / "lab"
    shutil.copytree(began, root, symlinks=True)
    git(root, "status")  # the index takes note of the copied files
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def kept(began, tmp_path_factory, quiet_git):
    "A lab with an evaluated experiment, and a copy to put in its place again."
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(began, folder / "lab", symlinks=True)
    before = os.getcwd()
    os.chdir(folder / "lab")
    try: assert main(["experiment", "create", *WORDS, "--json"]) == 0
    finally: os.chdir(before)
    shutil.copytree(folder / "lab", folder / "copy", symlinks=True)
    return folder


@pytest.fixture
def evaluated(kept, monkeypatch):
    "A lab with an evaluated experiment, fresh for each test; a working tree of git knows its own path."
    shutil.rmtree(kept / "lab")
    shutil.copytree(kept / "copy", kept / "lab", symlinks=True)
    monkeypatch.chdir(kept / "lab")
    return kept / "lab"


@pytest.fixture
def told(capsys):
    "Run a command: exit code, answer, and what was said beside it."
    def run(*words):
        code = main(list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, json.loads(out) if "--json" in words else out, err
    return run


def start(lab, *words, **more):
    return subprocess.Popen([sys.executable, "-m", "sagelab.cli.main", *words], cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def commit(lab, text, experiment="last", strategy="sma_cross"):
    "Commit a strategy to an experiment's branch."
    settings = load_settings(lab)
    tree = tree_of(find_experiment(experiment, settings).experiment_id, settings)
    (tree / "strategies" / f"{strategy}.py").write_text(text)
    git(tree, "commit", "-qam", "change")


def strategy(body, above=""):
    return (f"from pydantic import Field\nfrom sagelab.strategy.base import Decision, Strategy, StrategyConfig\n{above}\nclass SmaCross(Strategy):\n    name = 'sma_cross'\n"
            f"    class Config(StrategyConfig):\n        fast: int = Field(10, description='bars')\n        slow: int = 30\n    def on_tick(self, market):\n        {body}\n")


def instead(option, value): return [value if before == option else word for before, word in zip(["", *WORDS], WORDS)]


# ---- making and running ----------------------------------------------------------------------------------------------

def test_from_hypothesis_to_report_and_the_persons_tree_is_as_it_was(here, told):
    for name in ("pre-commit", "commit-msg", "post-checkout", "post-commit", "prepare-commit-msg"):
        hook = here / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {here}/hook-ran\nexit 1\n"), hook.chmod(0o755)
    for setting in (("commit.gpgSign", "true"), ("gpg.program", "/bin/false"), ("user.useConfigOnly", "true")): git(here, "config", *setting)
    (here / "settings.ini").write_text((here / "settings.ini").read_text() + "; later\n")
    git(here, "stash", "-q")
    (here / "notes.txt").write_text("unknown to git")
    (here / "config" / "secrets.env").write_text("TOKEN=hunter2-very-secret\n"), (here / "config" / "secrets.env").chmod(0o600)
    before = seen(here)
    code, found, _ = told("experiment", "create", *instead("--hypothesis", "A faster average turns sooner. It knows hunter2-very-secret."), "--json")
    assert code == 0 and seen(here) == before and not (here / "hook-ran").exists()
    assert re.fullmatch(r"exp-\d{8}-001", found["experiment_id"]) and found["branch"] == f"ai-experiment/{found['experiment_id']}"
    report = found["report"]
    assert found["state"] == "evaluated" and STATED <= set(report) and report["approved"] is False and report["parameters"] == {"fast": 5, "slow": 30}
    assert report["backtest_range"] == "2014-01-02..2018-12-31" and report["paper_simulation"]["allocated_capital_pct"] == 1 and report["causality"]["verdict"] == "clean"
    assert {"sharpe", "return", "drawdown"} <= set(report["baseline_metrics"]) and report["trials"] >= 2 and report["warnings"] == []
    assert report["paper_simulation"]["divergence"] == "" and report["paper_simulation"]["duration_hours"] > 1000
    folder = f"experiments/{found['experiment_id']}"
    assert set(git(here, "diff", "--name-only", "HEAD", found["branch"]).split()) == {f"{folder}/{n}" for n in ("experiment_report.json", "trades.log", "pull_request.md")}
    assert json.loads(git(here, "show", f"{found['branch']}:{folder}/experiment_report.json")) == report
    assert git(here, "log", "-1", "--format=%an <%ae>", found["branch"]).strip() == "SageLab <sagelab@localhost>" and not git(here, "remote")
    page = (Path(found["folder"]) / "report.html").read_text()
    assert "What the guards say" in page and "Saw the future?" in page and "Paper canary" in page and report["recommendation"]["sentence"][:40] in page
    request = (Path(found["folder"]) / "pull_request.md").read_text()
    for part in ("ai-proposed", "| fast | 10 | 5 |", "72 hours", "Rollback", "Required approver", "A faster average turns sooner.", "look-ahead: clean", "built-in check"): assert part in request
    assert kinds(here) == ["experiment.created", "experiment.evaluated"] and open_ledger(here).verify().ok and "session.finished" in [e.kind for e in open_ledger(here).entries()]
    assert (tree_of(found["experiment_id"], load_settings(here)) / ".sagelab").resolve() == here / ".sagelab", "one ledger"
    texts = [p.read_bytes() for p in (here / ".sagelab").rglob("*") if p.is_file() and p.name != "index"]
    assert "***TOKEN***" in request and not any(b"hunter2" in text for text in texts) and "hunter2" not in git(here, "log", "-p", found["branch"]) + json.dumps(found)


def dirty(lab): (lab / "settings.ini").write_text((lab / "settings.ini").read_text() + "; mine\n")
def staged(lab): dirty(lab), git(lab, "add", "-A")
def detached(lab): git(lab, "checkout", "-q", "--detach")
def no_git(lab): shutil.rmtree(lab / ".git")
def unborn(lab): no_git(lab), git(lab, "init", "-q")
def altered(lab): next((lab / "reports").glob("*/trades.log")).write_text("")
def rewritten(lab): (path := next((lab / "reports").glob("*/run.json"))).write_text(path.read_text().replace('"win_rate": 0.', '"win_rate": 0.9', 1))
def stopped(lab): Latch(lab).set("a test")
def unknown_file(lab): (lab / "strategies" / "mine.py").write_text(strategy("pass").replace("sma_cross", "mine"))
def other_data(lab):
    from sagelab.data.store import open_store
    store = open_store(load_settings(lab))
    store.write("SP500", "1d", store.read("SP500").assign(volume=1.0), replace=True)


REFUSED = [
    (no_git, WORDS, "git init"), (dirty, WORDS, "settings.ini"), (staged, WORDS, "settings.ini"), (unborn, WORDS, "no commit yet"), (detached, WORDS, "detached"),
    (altered, WORDS, "altered"), (rewritten, WORDS, "altered"), (stopped, WORDS, "sagelab resume"), (unknown_file, instead("--strategy", "mine"), "git add"),
    (None, instead("--strategy", "sma_cros"), "Did you mean 'sma_cross'"), (None, instead("-c", "fats=5"), "Did you mean 'fast'"), (None, instead("-c", "fast=x"), "fast = 'x'"),
    (None, instead("--baseline", "nothing"), "There is no run"), (None, instead("--baseline", "last:buy_and_hold"), "There is no result"),
    (None, instead("--name", "../up"), "cannot be the name"), (None, instead("--name", " "), "cannot be the name"), (None, instead("--hypothesis", " "), "hypothesis"),
    (other_data, WORDS, "changed since the baseline"),
]


@pytest.mark.parametrize("change, words, message", REFUSED, ids=lambda v: getattr(v, "__name__", None) if callable(v) else v if isinstance(v, str) else None)
def test_what_cannot_be_made_is_refused_recorded_and_leaves_nothing(here, told, change, words, message):
    if change: change(here)
    before = seen(here) if change not in (no_git, unborn) else None
    code, answer, _ = told("experiment", "create", *words, "--json")
    assert code == 1 and message in answer["error"]
    assert kinds(here) == ["experiment.refused"] and list_experiments(load_settings(here)) == [] and not list((here / ".sagelab").glob("experiments/exp-*"))
    if before: assert seen(here) == before and not git(here, "branch", "--list", "ai-experiment/*") and git(here, "worktree", "list").count("\n") == 1


def test_without_git_installed(here, told, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, answer, _ = told("experiment", "create", *WORDS, "--json")
    assert code == 1 and "git is not installed" in answer["error"]


def test_two_at_once_get_two_ids_and_a_killed_one_leaves_nothing(here):
    abandoned = here / ".sagelab" / "experiments" / "exp-20200101-001"
    abandoned.mkdir(parents=True)
    git(here, "branch", "ai-experiment/exp-20200101-001")
    made = [start(here, "experiment", "create", *WORDS, "--no-run", "--json") for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in made]
    assert sorted(a["experiment_id"][-3:] for a in answers) == ["001", "002"] and {a["state"] for a in answers} == {"created"}
    assert not abandoned.exists() and "exp-20200101-001" not in git(here, "branch", "--list", "ai-experiment/*") and git(here, "worktree", "list").count("\n") == 3


def test_a_lab_inside_of_a_larger_repository(began, tmp_path, monkeypatch, told):
    root = tmp_path / "house" / "rooms" / "lab"
    shutil.copytree(began, root, ignore=shutil.ignore_patterns(".git"))
    git(tmp_path / "house", "init", "-q", "-b", "work")
    git(tmp_path / "house", "add", "-A"), git(tmp_path / "house", "commit", "-qm", "begin")
    monkeypatch.chdir(root)
    code, found, _ = told("experiment", "create", *WORDS, "--json")
    assert code == 0 and found["state"] == "evaluated" and f"rooms/lab/experiments/{found['experiment_id']}/trades.log" in git(root, "ls-tree", "-r", "--name-only", "--full-tree", found["branch"])
    assert git(tmp_path / "house", "status", "--porcelain") == ""


HOSTILE = [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "", "signal 9"), ("import os; os._exit(0)", "", "left no answer"),
    ("print('x' * 1_000_000); 1 / 0", "", "ZeroDivisionError"),
    *([("x = [bytearray(10**9) for _ in range(64)]", "", "MemoryError")] if sys.platform == "linux" else []), ("pass", "def", "SyntaxError"),
    ("\n        import signal\n        signal.signal(signal.SIGALRM, signal.SIG_IGN)\n        while True: pass", "", "took longer than it may"),
]


def test_a_strategy_that_breaks_breaks_nothing_else(here, told, monkeypatch):
    assert told("experiment", "create", *WORDS, "--no-run", "--json")[0] == 0
    before = seen(here)
    for body, above, message in HOSTILE:
        monkeypatch.setenv("SAGELAB_TRADING_TICK_TIMEOUT_SECONDS", "20" if message == "MemoryError" else "0.5")
        if "longer than it may" in message: monkeypatch.setenv("SAGELAB_LAB_KERNEL_TIMEOUT_SECONDS", "3")
        commit(here, strategy(body, above))
        code, answer, _ = told("experiment", "run", "last", "--json")
        assert code == 1 and message in answer["error"] and len(answer["error"]) < 1500, (body, answer)
        assert told("experiment", "show", "last", "--json")[1]["state"] == "failed" and seen(here) == before
    assert kinds(here).count("experiment.failed") == len(HOSTILE) and open_ledger(here).verify().ok


SLOW = strategy("\n        import os, time\n        open('{0}/began', 'w').close()\n        while os.path.exists('{0}/wait'): time.sleep(0.01)")


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def children(pid): return [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def test_killed_half_way_it_is_still_created_and_runs_again(here, told, tmp_path):
    assert told("experiment", "create", *WORDS, "--no-run", "--json")[0] == 0
    (tmp_path / "wait").touch()
    commit(here, SLOW.format(tmp_path))
    process = start(here, "experiment", "run", "last")
    wait_for(tmp_path / "began", process)
    busy = told("experiment", "run", "last", "--json")
    assert busy[0] == 1 and "Another process" in busy[1]["error"]
    below = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in below): assert time.monotonic() < deadline; time.sleep(0.05)
    assert told("experiment", "show", "last", "--json")[1]["state"] == "created" and open_ledger(here).verify().ok
    (tmp_path / "wait").unlink()
    again = told("experiment", "run", "last", "--json")[1]
    assert again.get("state") == "evaluated", again
    assert not list((here / ".sagelab" / "experiments").glob("*/.desk"))


def test_the_stop_latch_ends_a_run(here, told, tmp_path):
    assert told("experiment", "create", *WORDS, "--no-run", "--json")[0] == 0
    (tmp_path / "wait").touch()
    commit(here, SLOW.format(tmp_path))
    process = start(here, "experiment", "run", "last", "--json")
    wait_for(tmp_path / "began", process)
    begun = time.monotonic()
    Latch(here).set("enough")
    answer = json.loads(process.communicate(timeout=30)[0])
    assert process.returncode == 1 and answer["type"] == "Stopped" and time.monotonic() - begun < 5
    assert find_experiment("last", load_settings(here)).state == "created"


def test_the_strategys_own_tests_come_first_and_no_test_is_a_trial(here, told):
    assert told("experiment", "create", *WORDS, "--no-run", "--json")[0] == 0
    tree = tree_of(find_experiment("last", load_settings(here)).experiment_id, load_settings(here))
    test = tree / "tests" / "strategies" / "test_sma_cross.py"
    test.parent.mkdir(parents=True)
    body = "from sagelab.trading.engine import backtest\ndef test_trades(): assert len(backtest('sma_cross', 'SP500').trades) {}\n"
    test.write_text(body.format("== 3"))
    assert "tests/strategies/test_sma_cross.py" in told("experiment", "run", "last", "--json")[1]["error"], "git does not know it yet"
    git(tree, "add", "-A", "tests"), git(tree, "commit", "-qm", "test")
    code, answer, _ = told("experiment", "run", "last", "--json")
    assert code == 1 and "did not pass" in answer["error"] and "1 failed" in answer["error"]
    trials = sum(e.kind == "backtest.finished" for e in open_ledger(here).entries())
    test.write_text(body.format("> 3"))
    (tree / "strategies" / "sma_cross.py").write_text((tree / "strategies" / "sma_cross.py").read_text() + "# better\n")
    assert "not committed" in told("experiment", "run", "last", "--json")[1]["error"]
    git(tree, "commit", "-qam", "mend")
    found = told("experiment", "run", "last", "--json")[1]
    assert found["report"]["tests"]["with"] == "pytest" and "1 passed" in found["report"]["tests"]["summary"]
    assert sum(e.kind == "backtest.finished" for e in open_ledger(here).entries()) == trials + 2, "candidate and baseline"
    request = (Path(found["folder"]) / "pull_request.md").read_text()
    assert "strategies/sma_cross.py" in request and "Look closely" not in request


def test_the_work_of_the_child_in_this_process(evaluated, tmp_path):
    settings = load_settings(evaluated)
    experiment = find_experiment("last", settings)
    place, report = tree_of(experiment.experiment_id, settings), read_report(experiment, settings)
    order = {"task": "evaluate", "settings": settings.model_dump(mode="json"), "file": str(place / "strategies" / "sma_cross.py"), "desk": str(tmp_path), "commit": "c" * 40,
             "baseline_file": str(place / "strategies" / "sma_cross.py"), "contract": True,
             **{k: getattr(experiment, k) for k in ("experiment_id", "name", "hypothesis", "strategy", "parameters", "baseline")}}
    def answer(**changes):
        (tmp_path / "order.json").write_text(json.dumps(order | changes))
        stages = []
        work(str(tmp_path / "order.json"), stages.append)
        return json.loads((tmp_path / "answer.json").read_text()), stages
    found, stages = answer()
    assert stages == ["contract", "backtest", "baseline", "causality", "selection", "robustness", "canary"] and found["result"]["trades_sha256"] == report["trades_sha256"]
    assert (tmp_path / "trades.log").read_bytes() == (folder_of(experiment.experiment_id, settings) / "trades.log").read_bytes() and "sma_cross (baseline)" in (tmp_path / "report.html").read_text()
    assert "trades differently" in answer(contract=False, baseline=experiment.baseline | {"trades_sha256": "0" * 64})[0]["baseline_note"]
    assert "changed since the baseline run" in answer(baseline=experiment.baseline | {"data_sha256": "0" * 64})[0]["error"]


def test_a_leak_is_found_and_never_approved(here, told):
    assert told("experiment", "create", *WORDS, "--no-run", "--json")[0] == 0
    commit(here, strategy("\n        n = market.bar_number\n        if n + 1 < len(self.ahead): return Decision('long') if self.ahead[n + 1] > market.close and not market.position "
                          "else Decision('flat') if market.position and self.ahead[n + 1] < market.close else None\n"
                          "    def initialize(self, config):\n        from sagelab.data.store import load_bars\n        self.ahead = load_bars('SP500', start='2014-01-01').close.tolist()"))
    found = told("experiment", "run", "last", "--json")[1]
    assert found["report"]["causality"]["verdict"] == "leak" and not found["report"]["recommendation"]["recommended"] and "mends the look-ahead" in found["waits_for"]
    with pytest.raises(ExperimentError, match="never be approved"): approve("last", "why", settings=load_settings(here), terminal=ScriptedTerminal(found["experiment_id"]))
    assert "leak" in told("experiment", "show", "last")[1]


# ---- deciding --------------------------------------------------------------------------------------------------------

def at_terminal(lab, typed, *words, environment={}):
    "Run a command at a terminal and type: exit code and what the screen shows."
    pid, handle = pty.fork()
    if not pid:
        os.chdir(lab)
        os.execve(sys.executable, [sys.executable, "-m", "sagelab.cli.main", *words], {**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment})
    screen, deadline, sent = b"", time.monotonic() + 60, False
    while time.monotonic() < deadline:
        ready, _, _ = select.select([handle], [], [], 0.2)
        if not ready: continue
        try: data = os.read(handle, 65536)
        except OSError: break
        if not data: break
        screen += data
        if not sent and b"type:" in screen and screen.rstrip().endswith(b">"): sent = bool(os.write(handle, typed.encode() + b"\n"))
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen.decode()


def test_a_person_approves_at_a_terminal(evaluated, told):
    before, settings = seen(evaluated), load_settings(evaluated)
    name = find_experiment("last", settings).experiment_id
    code, screen = at_terminal(evaluated, "yes", "experiment", "approve", "last", "--reason", "looks good")
    assert code == 1 and "is not" in screen and find_experiment("last", settings).state == "evaluated"
    code, screen = at_terminal(evaluated, name, "experiment", "approve", "last", "--reason", "looks good")
    assert code == 0 and "look-ahead: clean" in screen and "NOT recommended" in screen and "is approved by" in screen
    found = told("experiment", "show", "last", "--json")[1]
    assert found["state"] == "approved" and found["report"]["approved"] is True and found["approvals"][0]["reason"] == "looks good" and found["waits_for"].startswith("a person who merges")
    assert json.loads(git(evaluated, "show", f"{found['branch']}:experiments/{name}/experiment_report.json"))["approved"] is True
    assert seen(evaluated) == before and "NOT AS EVALUATED" not in told("experiment", "show", "last")[1]
    entry = [e for e in open_ledger(evaluated).entries("experiment.approved")][-1]
    assert entry.data["strategy"] == "sma_cross" and entry.data["recommended"] is False and entry.data["complete"] and entry.actor == found["approvals"][0]["by"]
    assert kinds(evaluated) == ["experiment.created", "experiment.evaluated", "experiment.refused", "experiment.approved"]
    with pytest.raises(ExperimentError, match="approved already"): approve("last", "again", settings=settings, terminal=ScriptedTerminal(name))
    assert "is approved, and that stands" in told("experiment", "run", "last", "--json")[1]["error"]


def test_who_may_not_approve(evaluated, told, monkeypatch):
    code, answer, _ = told("experiment", "approve", "last", "--reason", "r", "--json")
    assert code == 1 and answer["type"] == "PolicyError" and "terminal" in answer["error"]
    name = find_experiment("last", load_settings(evaluated)).experiment_id
    code, screen = at_terminal(evaluated, name, "experiment", "approve", "last", "--reason", "r", environment={"SAGELAB_ACTOR": "a-model"})
    assert code == 1 and "a-model is a program" in screen
    with pytest.raises(ExperimentError, match="reason"): approve("last", " ", settings=load_settings(evaluated), terminal=ScriptedTerminal(name))
    monkeypatch.setenv("SAGELAB_ACTOR", "a-model")
    with pytest.raises(PolicyError, match="program"): reject("last", "r", settings=load_settings(evaluated))
    monkeypatch.delenv("SAGELAB_ACTOR")
    monkeypatch.setenv("SAGELAB_POLICY_OWNERS", "somebody-else")
    monkeypatch.setenv("SAGELAB_POLICY_VIEWERS", "everybody-else")
    for decide in (lambda s: approve("last", "r", settings=s, terminal=ScriptedTerminal(name)), lambda s: reject("last", "r", settings=s)):
        with pytest.raises(PolicyError, match="role"): decide(load_settings(evaluated))
    assert kinds(evaluated)[2:] == ["experiment.refused"] * 6 and find_experiment("last", load_settings(evaluated)).state == "evaluated"


def alter_report(lab, folder, tree): (folder / "experiment_report.json").write_text((folder / "experiment_report.json").read_text().replace('"approved": false', '"approved": false, "x": 1'))
def alter_page(lab, folder, tree): (folder / "report.html").write_text("better")
def alter_record(lab, folder, tree): (folder / "experiment.json").write_text((folder / "experiment.json").read_text().replace("A faster", "A slower"))
def lose_log(lab, folder, tree): (folder / "trades.log").unlink()
def break_report(lab, folder, tree): (folder / "experiment_report.json").write_text("{")
def move_branch(lab, folder, tree): (tree / "strategies" / "sma_cross.py").open("a").write("# more\n"), git(tree, "commit", "-qam", "more")
def leave_open(lab, folder, tree): (tree / "strategies" / "sma_cross.py").open("a").write("# more\n")
def lose_tree(lab, folder, tree): git(lab, "worktree", "remove", "--force", str(tree))
def lose_branch(lab, folder, tree): lose_tree(lab, folder, tree), git(lab, "branch", "-D", f"ai-experiment/{folder.name}")
def switch_branch(lab, folder, tree): git(tree, "switch", "-qc", "another")


@pytest.mark.parametrize("change, message", [(alter_report, "altered"), (alter_page, "altered"), (alter_record, "altered"), (lose_log, "cannot be read"), (break_report, "cannot be read"),
                                             (move_branch, "moved on"), (leave_open, "not committed"), (lose_tree, "gone"), (lose_branch, "gone"), (switch_branch, "checked out")])
def test_what_is_not_as_it_was_evaluated_is_not_approved(evaluated, change, message):
    settings = load_settings(evaluated)
    name = find_experiment("last", settings).experiment_id
    change(evaluated, folder_of(name, settings), tree_of(name, settings))
    terminal = ScriptedTerminal(name)
    with pytest.raises(ExperimentError, match=message): approve("last", "why", settings=settings, terminal=terminal)
    assert terminal.answers == [name] and kinds(evaluated)[-1] == "experiment.refused" and find_experiment("last", settings).state == "evaluated"


def test_an_edited_record_approves_nothing_and_an_altered_hypothesis_runs_no_more(evaluated, told):
    settings = load_settings(evaluated)
    path = folder_of(find_experiment("last", settings).experiment_id, settings) / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "approved", "hypothesis": "What came out."}))
    assert find_experiment("last", settings).state == "evaluated"
    code, answer, _ = told("experiment", "run", "last", "--json")
    assert code == 1 and "altered after the experiment was made" in answer["error"]
    ledger = evaluated / ".sagelab" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"recommended":false', '"recommended":true'))
    assert told("experiment", "show", "last", "--json")[1]["type"] == "LedgerError"


def test_two_approvers_are_two_persons_and_running_again_takes_it_back(evaluated, monkeypatch, told):
    monkeypatch.setenv("SAGELAB_POLICY_APPROVERS", "2")
    settings = load_settings(evaluated)
    name = find_experiment("last", settings).experiment_id
    def say(reason): return approve("last", reason, settings=settings, terminal=ScriptedTerminal(name))
    assert say("one").state == "evaluated" and read_report(find_experiment("last", settings), settings)["approved"] is False
    with pytest.raises(ExperimentError, match="2 different persons"): say("me again")
    monkeypatch.setenv("JUPYTERHUB_USER", "grace")
    assert waits_for(find_experiment("last", settings), settings).startswith("1 approval by")
    done = say("two")
    assert done.state == "approved" and [a["by"] for a in done.approvals][1] == "grace" and read_report(done, settings)["approvals"][1]["reason"] == "two"
    taken = reject("last", "it lost money", settings=settings)
    assert taken.state == "rejected" and read_report(taken, settings)["approved"] is False and git(evaluated, "branch", "--list", taken.branch)


def test_a_new_evaluation_needs_new_approvals(evaluated, monkeypatch, told):
    monkeypatch.setenv("SAGELAB_POLICY_APPROVERS", "2")
    settings = load_settings(evaluated)
    approve("last", "one", settings=settings, terminal=ScriptedTerminal(find_experiment("last", settings).experiment_id))
    first = find_experiment("last", settings).evaluation
    monkeypatch.setenv("SAGELAB_PROMOTION_MAX_PBO", "1")
    found = told("experiment", "run", "last", "--json")[1]
    assert "promotion.max_pbo = 1 does not hold" in found["report"]["warnings"][0], "a limit that was loosened by nobody"
    assert found["approvals"] == [] and kinds(evaluated)[-2:] == ["experiment.revoked", "experiment.evaluated"]
    assert found["evaluation"]["trades_sha256"] == first["trades_sha256"] and found["report"]["trials"] == first["trials"], "the same variant is no further trial"


def test_rejected_stays_rejected_and_keeps_its_branch(evaluated, told):
    settings = load_settings(evaluated)
    with pytest.raises(ExperimentError, match="reason"): reject("last", "", settings=settings)
    code, found, _ = told("experiment", "reject", "last", "--reason", "too few trades", "--json")
    assert code == 0 and found["state"] == "rejected" and found["reason"] == "too few trades" and git(evaluated, "branch", "--list", found["branch"])
    for decide in (lambda: approve("last", "r", settings=settings, terminal=ScriptedTerminal(found["experiment_id"])), lambda: reject("last", "r", settings=settings)):
        with pytest.raises(ExperimentError, match="rejected"): decide()
    assert told("experiment", "run", "last", "--json")[0] == 1 and "too few trades" in told("experiment", "show", "last")[1]


# ---- looking ---------------------------------------------------------------------------------------------------------

def test_no_figure_without_its_verdict(evaluated, told, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    shown = told("experiment", "show", "last")[1]
    for line in shown.splitlines():
        if line.startswith(("Sharpe ratio", "Return", "Deepest drawdown", "Volatility", "Trades", "Win rate")): assert "look-ahead: clean" in line
    assert "deflated" in shown and "Not recommended" in shown and "approval by an owner" in shown
    listed = told("experiment", "list")[1]
    assert "evaluated" in listed and "clean" in listed
    assert told("experiment", "create", *WORDS[:-1], "last", "--no-run")[1].count("Sharpe") == 0, "nothing was measured yet"
    code, answer, _ = told("experiment", "compare", "001", "002", "--json")
    assert code == 1 and "no report yet" in answer["error"]
    both = told("experiment", "compare", "001", "001")[1]
    assert "look-ahead: clean" in both and "recommended:" in both
    found = told("experiment", "compare", "001", "001", "--json")[1]
    assert found["comparable"] and found["parameters"]["fast"] == [5, 5] and len(found["figures"][0]["verdicts"]) == 2


def test_names_that_nobody_knows(evaluated, told):
    name = find_experiment("last", load_settings(evaluated)).experiment_id
    for words in (["show", "exp-2"], ["run", "exp-2"], ["compare", "last", "exp-2"], ["reject", "exp-2", "--reason", "r"]):
        code, answer, _ = told("experiment", *words, "--json")
        assert code in (1, 2) and name in answer["error"]
    assert [e["experiment_id"] for e in told("experiment", "list", "--json")[1]] == [name]
