"The ledger under many processes, under kill -9, on a full disk and in the hands of somebody who alters it."
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sagelab.core import ledger as module
from sagelab.core.errors import Finding, LedgerError
from sagelab.core.ledger import Ledger, open_ledger

APPEND_IN_A_LOOP = """
import sys
from sagelab.core.ledger import Ledger
ledger, name, count = Ledger(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for n in range(count): ledger.append("work", {"name": name, "n": n, "text": "x" * (n % 300)})
"""


@pytest.fixture
def path(tmp_path: Path) -> Path: return tmp_path/".sagelab"/"ledger.jsonl"


@pytest.fixture
def five(path: Path) -> Ledger:
    "A ledger of five entries, with the kinds of values whose spelling could change unseen."
    ledger = Ledger(path)
    for value in (1e300, -0.0, "schön \u2028 \\ \"", [None, True], {"b": 1, "a": {}}): ledger.append("note", {"value": value}, actor="test")
    return ledger


def start(path: Path, name: str, count: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", APPEND_IN_A_LOOP, str(path), name, str(count)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_many_processes_append_at_once(path: Path) -> None:
    processes = [start(path, str(name), 200) for name in range(4)]
    assert [process.communicate() and process.returncode for process in processes] == [0] * 4
    found = Ledger(path).verify()
    assert found.ok and found.entries == 800 and not found.note
    written = [(entry.data["name"], entry.data["n"]) for entry in Ledger(path).entries()]
    assert len(set(written)) == 800
    for name in "0123": assert [n for who, n in written if who == name] == list(range(200))


def test_killed_at_random_moments(path: Path) -> None:
    pauses, recovered = random.Random(7), 0
    for number in range(20):
        with start(path, str(number), 10**9) as process:
            time.sleep(pauses.uniform(0, 0.06))
            process.kill()
        seen = Ledger(path).verify()
        assert seen.ok, (number, seen)
        last = Ledger(path).append("survived", {"number": number})
        found = Ledger(path).verify()
        assert found.ok and not found.note and found.entries == last.seq + 1 >= seen.entries + 1
        recovered = found.recovered
    assert [entry.data["number"] for entry in Ledger(path).entries("survived")] == list(range(20))
    assert recovered == len(list((path.parent).glob("ledger.torn/*")))
    assert not list(path.parent.glob(".*.tmp"))


def killed_after(path: Path, steps: int) -> bool:
    "Append in a forked process that kills itself after so many executed lines; say whether it got that far."
    child = os.fork()
    if child: return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = steps

    def trace(frame, event, argument):
        nonlocal left
        if event == "line" and frame.f_code.co_filename.endswith(("ledger.py", "files.py")):
            left -= 1
            if left < 0: os.kill(os.getpid(), signal.SIGKILL)
        return trace
    try:
        sys.settrace(trace)
        Ledger(path).append("work", {"steps": steps})
    finally: os._exit(0)


def kill_at_every_line(path: Path, torn: bytes, stride: int) -> None:
    "Kill an append after 0, 1, 2, ... lines; each time the ledger stands."
    ledger, steps = Ledger(path), 0
    ledger.append("begin", {})
    while True:
        with open(path, "ab") as file: file.write(torn)
        if not killed_after(path, steps): break
        assert ledger.verify().ok, steps
        ledger.append("survived", {"steps": steps})
        found = ledger.verify()
        assert found.ok and not found.note, (steps, found)
        steps += stride
    assert steps > 50
    assert [entry.data["steps"] for entry in ledger.entries("survived")] == list(range(0, steps, stride))
    if torn: assert ledger.verify().recovered >= steps//stride


@pytest.mark.parametrize(("torn", "stride"), [(b"", 1), (b'{"actor":"half a line' * 200, 3)], ids=["whole", "torn"])
def test_killed_at_every_line_of_code(path: Path, torn: bytes, stride: int) -> None:
    # In a process of its own: forking one that has run a thousand tests takes more than a second each time.
    code = f"import test_ledger, pathlib; test_ledger.kill_at_every_line(pathlib.Path({str(path)!r}), {torn!r}, {stride})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Ledger(path).verify().entries > 20


def test_write_cut_off_at_every_byte_is_recovered(five: Ledger) -> None:
    whole, head = five.path.read_bytes(), five.path.with_suffix(".head").read_bytes()
    line = five.append("note", {"value": "the one that was torn" * 60}) and five.path.read_bytes()[len(whole):]
    for length in [*range(1, len(line), 61), len(line) - 1]:
        five.path.write_bytes(whole + line[:length])
        five.path.with_suffix(".head").write_bytes(head)
        seen = five.verify()
        assert seen.ok and seen.entries == 5 and f"{length} bytes of an unfinished line" in seen.note
        assert five.tail(1)[0].seq == 4 == list(five.entries())[-1].seq
        five.append("note", {})
        told = five.tail(2)[0]
        assert told.kind == "ledger.recovered" and told.data["bytes"] == length
        assert (five.path.parent/told.data["file"]).read_bytes() == line[:length]
        assert five.verify().ok and five.verify().recovered == 1


def test_every_altered_byte_is_found(five: Ledger) -> None:
    whole = five.path.read_bytes()
    replacement = random.Random(3)
    for position in range(len(whole)):
        altered = bytearray(whole)
        # Another case and another digit are the likeliest to pass as the same value.
        for byte in {whole[position] ^ 32, whole[position] ^ 1, replacement.choice([*b"\n 0}", replacement.randrange(256)])} - {whole[position]}:
            altered[position] = byte
            five.path.write_bytes(altered)
            found = five.verify()
            assert not found.ok and found.problem, (position, bytes([byte]))
            assert found.line in (None, 1 + whole[:position].count(b"\n")), (position, bytes([byte]), found)


def test_every_altered_byte_of_the_head_is_found(five: Ledger) -> None:
    head = five.path.with_suffix(".head")
    whole = head.read_bytes()
    for position in range(len(whole)):
        for change in (1, 32):
            head.write_bytes(whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1:])
            assert not five.verify().ok, (position, change)
            with pytest.raises(LedgerError, match="tampered"): five.append("note", {})
    head.unlink()
    assert "put back or removed" in five.verify().problem


def test_any_removed_line_is_found(five: Ledger) -> None:
    lines = five.path.read_bytes().splitlines(keepends=True)
    for removed in range(5):
        five.path.write_bytes(b"".join(lines[:removed] + lines[removed + 1:]))
        found = five.verify()
        assert not found.ok
        if removed == 4: assert found.line is None and "tail removed" in found.problem
        else: assert found.line == removed + 1 and "missing" in found.problem
    five.path.unlink()
    assert "tail removed" in five.verify().problem


def test_any_two_swapped_lines_are_found(five: Ledger) -> None:
    lines = five.path.read_bytes().splitlines(keepends=True)
    for first in range(5):
        for second in range(first + 1, 5):
            swapped = list(lines)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            five.path.write_bytes(b"".join(swapped))
            found = five.verify()
            assert not found.ok and found.line == first + 1 and "reordered" in found.problem


def test_evidence_is_not_buried(five: Ledger) -> None:
    lines = five.path.read_bytes().splitlines(keepends=True)
    for kept in (lines[:4], lines[:4] + [lines[4].replace(b"note", b"nope")], []):
        five.path.write_bytes(b"".join(kept))
        with pytest.raises(LedgerError, match="nothing was recorded"): five.append("note", {})
        assert five.path.read_bytes() == b"".join(kept)


FILL_THE_DISK = """
import resource, sys
from sagelab.core.errors import LedgerError
from sagelab.core.ledger import Ledger
ledger, room, refused = Ledger(sys.argv[1]), int(sys.argv[2]), 0
resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + room, resource.RLIM_INFINITY))
for n in range(3):
    size = ledger.path.stat().st_size
    try: ledger.append("work", {"n": n})
    except LedgerError as error:
        refused += 1
        assert "too large" in str(error) and "as long as it was before" in str(error), error
        assert ledger.path.stat().st_size == size and ledger.verify().ok, ledger.verify()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ledger.append("work", {"room": "again"})
print(refused)
"""


@pytest.mark.parametrize(("room", "refused"), [(0, 3), (1, 3), (150, 3), (400, 2)])
def test_full_disk_leaves_the_ledger_as_it_was(five: Ledger, room: int, refused: int) -> None:
    answer = subprocess.run([sys.executable, "-c", FILL_THE_DISK, str(five.path), str(room)], capture_output=True, text=True)
    assert answer.stderr == "" and answer.stdout == f"{refused}\n"
    found = five.verify()
    assert found.ok and found.entries == 5 + 3 - refused + 1 and not found.note and not found.recovered


def test_entry_is_taken_back_when_the_head_cannot_be_written(five: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: str) -> None: raise Finding("No space left on device")
    before = five.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_write", full)  # no limit of the system hits the small head and spares the long ledger
        with pytest.raises(LedgerError, match="No space left"): five.append("note", {})
    assert five.path.read_bytes() == before
    assert five.append("note", {}).seq == 5 and five.verify().ok


def test_entry_stands_when_only_the_last_sync_of_the_head_failed(five: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module.atomic_write

    def complain(path: Path, content: str) -> None:
        write(path, content)
        raise Finding("Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_write", complain)
        assert five.append("note", {}).seq == 5
    assert five.verify().ok and five.verify().entries == 6


def test_appending_and_tail_read_only_the_end(path: Path) -> None:
    "Three orders of magnitude more lines, and hardly a byte more is read."
    ledger, usage = Ledger(path), Path("/proc/self/io")
    if not usage.exists(): pytest.skip("no /proc/self/io: only Linux counts the bytes that a process reads")

    def bytes_read(action) -> int:
        before = int(usage.read_text().split()[1])
        action()
        return int(usage.read_text().split()[1]) - before
    ledger.append("note", {})
    last, lines = None, []
    for _ in range(20_000):
        last = module._entry(last, "note", {"text": "x" * 300}, "test")
        lines.append(module._line(last))
    path.write_bytes(b"".join(lines))
    path.with_suffix(".head").write_text(module._head_text(last.seq, last.hash))
    assert path.stat().st_size > 10_000_000
    assert bytes_read(lambda: ledger.tail(20)) < 300_000
    assert bytes_read(lambda: ledger.append("note", {})) < 300_000
    assert [entry.seq for entry in ledger.tail(3)] == [19_998, 19_999, 20_000]


def test_reading_while_others_append(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append("begin", {})
    with start(path, "writer", 400) as process:
        while process.poll() is None:
            found = ledger.verify()
            assert found.ok and not found.note, found
            read = [entry.seq for entry in ledger.entries()]
            assert read == list(range(len(read))) and len(read) >= found.entries
    assert ledger.verify().entries == 401


def test_verify_waits_for_an_append_in_progress(five: Ledger) -> None:
    "Between line and head the two files may not be compared; the lock is held here as an append holds it."
    head, answers = five.path.with_suffix(".head"), []
    true = head.read_bytes()
    with open(five.path.with_suffix(".lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        head.write_text(module._head_text(5, "0" * 64))
        reader = threading.Thread(target=lambda: answers.append(five.verify()))
        reader.start()
        reader.join(timeout=0.2)
        assert reader.is_alive() and not answers
        head.write_bytes(true)
    reader.join(timeout=10)
    assert answers[0].ok


def test_appending_while_reading_does_not_wait_for_itself(five: Ledger) -> None:
    for entry in five.entries(): five.append("echo", {"of": entry.seq})
    assert [entry.data["of"] for entry in five.entries("echo")] == [0, 1, 2, 3, 4]


def test_actor_comes_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGELAB_ACTOR", "coder")
    assert Ledger(path).append("note", {}).actor == "coder"
    assert Ledger(path).append("note", {}, actor="person").actor == "person"


def test_folder_that_may_not_be_written() -> None:
    "Root may write everywhere, so root becomes nobody for a moment; pytest's own folders are closed to nobody."
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder)/"state"/"ledger.jsonl")
        ledger.append("note", {})
        for path, mode in ((ledger.path, 0o444), (ledger.path.parent, 0o555), (Path(folder), 0o755)): path.chmod(mode)
        user = os.geteuid()
        if user == 0: os.seteuid(65534)
        try:
            assert ledger.verify().ok and len(ledger.tail(3)) == len(list(ledger.entries())) == 1
            with pytest.raises(LedgerError, match="cannot be written: .*Permission denied"): ledger.append("note", {})
        finally:
            os.seteuid(user)
            ledger.path.parent.chmod(0o755)


def test_place_that_cannot_hold_a_ledger(tmp_path: Path) -> None:
    (tmp_path/".sagelab").write_text("a file, not a folder")
    with pytest.raises(LedgerError, match="cannot be written"): open_ledger(tmp_path).append("note", {})


def test_secrets_of_the_lab_stay_out(tmp_path: Path) -> None:
    (tmp_path/"config").mkdir()
    (tmp_path/"config"/"secrets.env").write_text("TOKEN=correct-horse\n")
    entry = open_ledger(tmp_path).append("call", {"headers": [{"correct-horse": "Bearer correct-horse"}]})
    assert entry.data == {"headers": [{"***TOKEN***": "Bearer ***TOKEN***"}]}
    assert b"correct-horse" not in (tmp_path/".sagelab"/"ledger.jsonl").read_bytes()


def test_line_is_what_an_outsider_can_check(five: Ledger) -> None:
    "Anybody can check the chain with a JSON reader and SHA-256."
    previous = "0" * 64
    for number, line in enumerate(five.path.read_text(encoding="utf-8").split("\n")[:-1]):
        entry = json.loads(line)
        assert set(entry) == {"seq", "time", "kind", "actor", "data", "prev", "hash"}
        assert entry["seq"] == number and entry["prev"] == previous and entry["time"].endswith("+00:00") and len(entry["time"]) == 32
        previous = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == previous
