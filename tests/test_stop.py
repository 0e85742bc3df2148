"The stop latch: it is set before anything else happens, by anybody and on any disk; only a person at a terminal lifts it."
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sagelab.core.errors import Finding, LedgerError, PolicyError, Stopped, UsageError
from sagelab.core.ledger import open_ledger
from sagelab.core.policy import ScriptedTerminal
from sagelab.core.settings import load_settings
from sagelab.core.stop import Latch, lab_latch, open_latch, quick_stop, resume
from test_policy import at_terminal, kinds, owned_by_ada, sagelab


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_USER", raising=False)


@pytest.fixture
def root(tmp_path: Path, repository: Path) -> Path:
    shutil.copy(repository/"settings.ini", tmp_path/"settings.ini")
    return tmp_path


@pytest.fixture
def latch(root: Path) -> Latch: return open_latch(root)


@contextmanager
def ledger_in_use(root: Path) -> Iterator[None]:
    "Hold the ledger as an append does, so that every other one waits."
    (root/".sagelab").mkdir(exist_ok=True)
    with open(root/".sagelab"/"ledger.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def soon(true: Callable[[], bool]) -> bool:
    "Wait until something is true, for ten seconds at most."
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end: time.sleep(0.002)
    return true()


def python(root: Path, code: str, **keys) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keys)


# ---- setting it ----------------------------------------------------------------------------------------------------

def test_stop_says_who_when_and_why(root: Path, latch: Latch) -> None:
    answer = sagelab(root, "stop", "--reason", "the feed is stale", "--json", SAGELAB_ACTOR="circuit breaker")
    told = json.loads(answer.stdout)
    assert answer.returncode == 0 and told["stopped"] and (told["actor"], told["reason"], told["note"]) == ("circuit breaker", "the feed is stale", "")
    state = latch.state()
    assert (state.time, state.actor, state.reason) == (told["time"], told["actor"], told["reason"])
    entry, = open_ledger(root).entries()
    assert (entry.kind, entry.actor, entry.data) == ("stop.set", "circuit breaker", {"first": True, "reason": "the feed is stale"})
    with pytest.raises(Stopped, match=f"stopped by circuit breaker at {state.time[:19]} UTC: the feed is stale.*sagelab resume"): latch.check()
    assert "STOPPED by circuit breaker" in sagelab(root, "policy").stdout


@pytest.mark.parametrize("words", [[], ["--reason"], ["--reason", " "], ["--reason="], ["--reason", "a", "--reasons", "b"]], ids=" ".join)
def test_stop_without_a_reason_stops_nothing(root: Path, latch: Latch, words: list[str]) -> None:
    answer = sagelab(root, "stop", *words)
    assert answer.returncode == 2 and "reason" in answer.stderr and not latch.is_set() and not (root/".sagelab").exists()


def test_stop_outside_of_a_lab(tmp_path: Path) -> None:
    answer = sagelab(tmp_path, "stop", "--reason", "r")
    assert answer.returncode == 2 and "No lab found" in answer.stderr
    assert lab_latch(tmp_path) is None


def test_stop_reaches_the_lab_from_below_and_from_afar(root: Path, latch: Latch, tmp_path_factory: pytest.TempPathFactory) -> None:
    (root/"nbs"/"deep").mkdir(parents=True)
    assert sagelab(root/"nbs"/"deep", "stop", "--reason=r").returncode == 0 and latch.is_set()
    latch.path.unlink()
    assert sagelab(tmp_path_factory.mktemp("afar"), "stop", "--reason", "r", SAGELAB_LAB=str(root)).returncode == 0 and latch.is_set()
    assert lab_latch(root/"nbs"/"deep").path == latch.path


def test_odd_words_are_one_line(root: Path, latch: Latch) -> None:
    process = subprocess.run([sys.executable, "-m", "sagelab.cli.main", "stop", "--reason", b"two\nlines \xff \xe2\x82\xac"], cwd=root, capture_output=True)
    assert process.returncode == 0 and latch.state().reason == "two lines ? €" and latch.state().note == ""
    assert open_ledger(root).tail(1)[0].data["reason"] == "two lines ? €"


def test_file_comes_before_the_ledger(root: Path, latch: Latch) -> None:
    with ledger_in_use(root):
        process = python(root, "from sagelab.core.stop import quick_stop; quick_stop(['--reason', 'r'])")
        assert soon(latch.is_set) and latch.state().reason == "r"
        time.sleep(0.1)
        assert process.poll() is None and not (root/".sagelab"/"ledger.jsonl").exists()
    assert process.wait(10) == 0 and kinds(root) == ["stop.set"]


def test_nothing_heavy_is_loaded_before_the_file_is_there(root: Path) -> None:
    code = ("import os, sys; before = set(sys.modules); from sagelab.core import stop\n"
            "heavy = {'pydantic', 'typer', 'rich', 'logging', 'hashlib', 'sagelab.core.settings', 'sagelab.core.ledger'}\n"
            "stop._sync = lambda path: print(os.path.exists(path), sorted(heavy & (set(sys.modules) - before)))\n"  # called right behind the file
            "stop.quick_stop(['--reason', 'r'])\nprint('pydantic' in sys.modules, 'typer' in sys.modules)")
    assert python(root, code).communicate()[0] == "True []\nFalse False\n"


def test_altered_ledger_keeps_nobody_from_stopping(root: Path, latch: Latch) -> None:
    (root/".sagelab").mkdir()
    (root/".sagelab"/"ledger.jsonl").write_text("altered\n")
    answer = sagelab(root, "stop", "--reason", "r")
    assert answer.returncode == 0 and latch.is_set() and "The lab is stopped, but the ledger could not take it" in answer.stderr


def test_secrets_keep_nobody_from_stopping(root: Path, latch: Latch) -> None:
    (root/"config").mkdir()
    (root/"config"/"secrets.env").write_text("not a secret\n")
    assert "could not take it" in latch.set("r").note and latch.is_set()


def test_secret_in_a_reason_is_taken_out(root: Path, latch: Latch) -> None:
    (root/"config").mkdir()
    (root/"config"/"secrets.env").write_text("BROKER_KEY=s3cret-value\n")
    latch.set("s3cret-value leaked", "ada")
    assert latch.state().reason == "***BROKER_KEY*** leaked" and "s3cret" not in "".join(path.read_text() for path in (root/".sagelab").iterdir())


# ---- disks ---------------------------------------------------------------------------------------------------------

def test_disk_without_room_for_words(root: Path, latch: Latch) -> None:
    words = [sys.executable, "-m", "sagelab.cli.main", "stop", "--reason", "r"]
    answer = subprocess.run(words, cwd=root, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert answer.returncode == 0 and latch.is_set() and latch.path.read_bytes() == b"" and "could not take it" in answer.stderr
    assert os.listdir(root/".sagelab") and not list((root/".sagelab").glob("*.tmp"))
    with pytest.raises(Stopped, match="stopped by somebody"): latch.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    "A lab on a disk of its own."
    if os.getuid(): pytest.skip("only root mounts a disk; the test above does the same by a limit")
    (tmp_path/"disk").mkdir()
    def mount(*words: str | Path) -> Path:
        if subprocess.run(["mount", *words, tmp_path/"disk"], capture_output=True).returncode: pytest.skip("this container mounts nothing")
        (tmp_path/"disk"/"settings.ini").write_text("[lab]\nname = small\n")
        return tmp_path/"disk"
    yield mount
    if os.path.ismount(tmp_path/"disk"): subprocess.run(["umount", tmp_path/"disk"], check=True)


@pytest.mark.parametrize("before", [True, False], ids=["lab in use", "new lab"])
def test_full_disk(small_disk: Callable[..., Path], before: bool) -> None:
    disk = small_disk("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    if before: open_ledger(disk).append("run.finished", {})
    with pytest.raises(OSError), open(disk/"filler", "wb", buffering=0) as file:
        while True: file.write(b"x" * 512)
    state = open_latch(disk).set("r", "ada")
    assert open_latch(disk).is_set() and "could not take it" in state.note and "counts as stopped" in state.note
    with pytest.raises(LedgerError): open_latch(disk).clear("r", "ada")
    (disk/"filler").unlink()
    assert open_latch(disk).clear("there is room again", "ada").actor == "somebody" and not open_latch(disk).is_set()
    assert open_ledger(disk).verify().ok


def test_disk_without_room_for_any_file(small_disk: Callable[..., Path], tmp_path: Path) -> None:
    if not shutil.which("mkfs.ext4"): pytest.skip("no mkfs.ext4 to make such a disk")
    (tmp_path/"image").write_bytes(bytes(512 << 10))
    subprocess.run(["mkfs.ext4", "-q", "-N", "24", tmp_path/"image"], check=True, capture_output=True)
    disk = small_disk("-o", "loop", tmp_path/"image")
    open_ledger(disk).append("run.finished", {})
    with pytest.raises(OSError):
        for number in range(100): (disk/str(number)).write_text("")
    latch = open_latch(disk)
    assert "could not take it" in latch.set("r", "ada").note and latch.is_set() and os.path.samefile(latch.path, disk/"settings.ini")
    (disk/"0").unlink(), (disk/"1").unlink()
    latch.clear("there is room again", "ada")
    assert not latch.is_set() and (disk/"settings.ini").read_text() == "[lab]\nname = small\n"


def test_latch_that_cannot_be_set_is_told(root: Path, latch: Latch) -> None:
    (root/".sagelab").write_text("a file where the folder belongs")
    answer = sagelab(root, "stop", "--reason", "r")
    assert answer.returncode == 1 and "could not be set" in answer.stderr and "DO NOT RELY ON IT" in answer.stderr
    assert latch.is_set()  # nobody can tell, so whoever looks stops


# ---- looking -------------------------------------------------------------------------------------------------------

def test_survives_restart(root: Path, latch: Latch) -> None:
    assert sagelab(root, "stop", "--reason", "r").returncode == 0
    process = python(root, "from sagelab.core.stop import lab_latch; lab_latch().check()")
    assert "Stopped: The lab was stopped by" in process.communicate()[1] and process.returncode == 1


def odd_folder(path: Path) -> None: path.mkdir()
def odd_link(path: Path) -> None: path.symlink_to("nowhere")


ODD = {"empty": b"", "half": b'{"time": "2026', "bytes": b"\xff\xfe", "list": b"[]", "number": b"1", "other": b'{"time": 1, "actor": 2, "reason": 3}', "deep": b"[" * 100_000,
       "folder": odd_folder, "link": odd_link}


@pytest.mark.parametrize("case", ODD)
def test_unreadable_latch_is_set(root: Path, latch: Latch, case: str) -> None:
    latch.path.parent.mkdir()
    ODD[case](latch.path) if callable(ODD[case]) else latch.path.write_bytes(ODD[case])
    assert latch.is_set() and "counts as stopped" in latch.state().note
    with pytest.raises(Stopped): latch.check()
    with pytest.raises(Stopped): latch.wait(0)
    assert "counts as stopped" in sagelab(root, "policy").stderr
    if case != "folder": assert resume(load_settings(root), "mended", ScriptedTerminal("resume my lab")).actor == "somebody" and not latch.is_set()
    else:
        with pytest.raises(Finding, match="stays stopped"): resume(load_settings(root), "mended", ScriptedTerminal("resume my lab"))


def test_waiting_ends_at_once_in_four_processes(root: Path, latch: Latch) -> None:
    code = ("import time; from sagelab.core.errors import Stopped; from sagelab.core.stop import lab_latch; latch = lab_latch(); print('waits', flush=True)\n"
            "try: latch.wait(60)\nexcept Stopped as stopped: print(time.monotonic(), stopped)")
    waiting = [python(root, code) for _ in range(4)]
    assert [process.stdout.readline() for process in waiting] == ["waits\n"] * 4
    begun = time.monotonic()
    latch.set("halt", "ada")
    ends = [process.communicate(timeout=20)[0] for process in waiting]
    assert all("stopped by ada" in end for end in ends) and max(float(end.split()[0]) for end in ends) - begun < 10  # benchmarks/stop.py measures it


def test_waiting_costs_little_and_takes_its_time(latch: Latch) -> None:
    begun, used = time.monotonic(), time.process_time()
    latch.wait(0.5)
    assert 0.5 <= time.monotonic() - begun < 3 and time.process_time() - used < 0.1


# ---- again ---------------------------------------------------------------------------------------------------------

def test_first_of_many_stands_and_all_are_recorded(root: Path, latch: Latch) -> None:
    code = "import sys; from sagelab.core.stop import lab_latch; sys.stdin.readline(); print(lab_latch().set(f'reason {sys.argv[1]}', f'actor {sys.argv[1]}').actor)"
    many = [subprocess.Popen([sys.executable, "-c", code, str(number)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for number in range(6)]
    for process in many: process.stdin.write("now\n"), process.stdin.flush()
    told = {process.communicate(timeout=30)[0] for process in many}
    entries = list(open_ledger(root).entries("stop.set"))
    assert {entry.data["reason"] for entry in entries} == {f"reason {number}" for number in range(6)} and open_ledger(root).verify().ok
    first, = [entry for entry in entries if entry.data["first"]]
    assert latch.state().actor == first.actor and told == {f"{first.actor}\n"}


def test_stop_while_another_is_lifted_is_not_lost(root: Path, latch: Latch) -> None:
    latch.set("one", "ada")
    with ledger_in_use(root):
        lifting = threading.Thread(target=latch.clear, args=["mended", "ada"])
        lifting.start()
        time.sleep(0.1)
        stopping = threading.Thread(target=Latch(root).set, args=["two", "bob"])
        stopping.start()
        time.sleep(0.1)
        assert latch.is_set()
    lifting.join(10), stopping.join(10)
    assert latch.is_set() and latch.state().reason == "two"
    assert [(entry.kind, entry.actor) for entry in open_ledger(root).entries()] == [("stop.set", "ada"), ("stop.lifted", "ada"), ("stop.set", "bob")]


def test_stop_while_a_person_decides_is_not_lifted(root: Path, latch: Latch) -> None:
    latch.set("one", "ada")

    class Slow(ScriptedTerminal):
        def ask(self, prompt: str) -> str:
            if "Why" in prompt: latch.set("two", "bob")
            return super().ask(prompt)

    with pytest.raises(Stopped, match="stopped again"): resume(load_settings(root), "", Slow("resume my lab", "mended"))
    assert latch.is_set() and kinds(root) == ["stop.set", "stop.set"]
    again = ScriptedTerminal("resume my lab", "mended")
    assert resume(load_settings(root), "", again).reason == "one"


# ---- lifting it ----------------------------------------------------------------------------------------------------

def test_person_resumes_at_a_terminal(root: Path, latch: Latch) -> None:
    latch.set("the feed is stale", "ada")
    code, screen = at_terminal(root, ["resume"], ["resume my lab", "it is back"])
    assert code == 0 and "Stopped by ada at" in screen and "The lab may go on" in screen and not latch.is_set()
    entry = open_ledger(root).tail(1)[0]
    assert entry.kind == "stop.lifted" and entry.data["reason"] == "it is back" and entry.data["stopped"]["reason"] == "the feed is stale"
    assert at_terminal(root, ["resume", "--json"], []) == (0, '{\n "resumed": false,\n "stopped": null\n}\n')
    assert "nothing to lift" in at_terminal(root, ["resume"], [])[1]


@pytest.mark.parametrize("answers", [["yes"], ["resume"], ["resume  My Lab"], [""], ["\x04"], ["resume my lab", " "]], ids=repr)
def test_wrong_words_lift_nothing(root: Path, latch: Latch, answers: list[str]) -> None:
    latch.set("r", "ada")
    code, screen = at_terminal(root, ["resume"], answers)
    assert code == 1 and "error: " in screen and latch.is_set() and kinds(root) == ["stop.set", "policy.refused"]


def test_no_terminal_no_resume(root: Path, latch: Latch) -> None:
    latch.set("r", "ada")
    command = f"{sys.executable} -m sagelab.cli.main resume --reason r"
    answers = [sagelab(root, "resume", "--reason", "r"), sagelab(root, "resume", "--json")]
    assert all(answer.returncode == 1 and "terminal" in answer.stderr for answer in answers) and json.loads(answers[1].stdout)["type"] == "PolicyError"
    for shell in (f"echo resume my lab | {command}", f"{command} | cat"):  # a terminal at the other end of both
        master, slave = os.openpty()
        process = subprocess.run(["sh", "-c", shell], cwd=root, stdin=slave, stdout=slave, stderr=subprocess.PIPE, text=True, timeout=60)
        assert "terminal" in process.stderr
        os.close(master), os.close(slave)
    assert latch.is_set() and kinds(root) == ["stop.set"] + ["policy.refused"] * 4


def test_program_does_not_resume(root: Path, latch: Latch) -> None:
    latch.set("r", "ada")
    code, screen = at_terminal(root, ["resume"], [], SAGELAB_ACTOR="gpt")
    assert code == 1 and "gpt is a program" in screen and latch.is_set()
    assert open_ledger(root).tail(1)[0].data["kind"] == "program"


def test_wrong_role_does_not_resume_and_may_stop(root: Path, latch: Latch) -> None:
    owned_by_ada(root)
    assert sagelab(root, "stop", "--reason", "r").returncode == 0 and latch.is_set()
    code, screen = at_terminal(root, ["resume"], [])
    assert code == 1 and "takes the role owner" in screen and "ask an owner (ada)" in screen and latch.is_set()
    assert kinds(root) == ["policy.limit", "stop.set", "policy.refused"]


def test_altered_ledger_does_not_resume(root: Path, latch: Latch) -> None:
    for number in range(2): open_ledger(root).append("run.finished", {"number": number})
    latch.set("r", "ada")
    path = open_ledger(root).path
    path.write_bytes(path.read_bytes().replace(b'"number":0', b'"number":5'))
    code, screen = at_terminal(root, ["resume"], [])
    assert code == 1 and "nothing is decided on it" in screen and latch.is_set()


def test_clear_without_a_stop(latch: Latch) -> None:
    with pytest.raises(UsageError, match="nothing to lift"): latch.clear("r", "ada")


def test_resume_without_a_reason_is_recorded(root: Path, latch: Latch) -> None:
    latch.set("r", "ada")
    with pytest.raises(PolicyError, match="No reason"): resume(load_settings(root), " ", ScriptedTerminal("resume my lab", " "))
    assert latch.is_set() and kinds(root) == ["stop.set", "policy.refused"]


def test_quick_stop_leaves_odd_words_to_the_command_line(root: Path, latch: Latch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for words in (["--help"], ["--reason", "a", "b"], ["--reason", "a", "--reason", "b"]): assert quick_stop(words) is None
    assert not latch.is_set() and quick_stop(["--debug", "--reason", "a"]).reason == "a" and latch.is_set()
