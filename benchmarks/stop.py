"""How long after a stop the last of four order loops still runs: from `Latch.set`, from the moment at which `sagelab stop` takes effect, and from the
start of its process (which is mostly the start of Python, and competes with the loops for the cores)."""
import json, statistics, subprocess, sys, tempfile, time
from datetime import datetime
from pathlib import Path
from measure import in_fresh_process, publish
from sagelab.core.stop import Latch

LOOPS, ROUNDS = 4, 40
SAGELAB = [sys.executable, "-c", "import sys; from sagelab.cli.main import main; sys.exit(main())"]  # what the script `sagelab` does

# What a session does: look, work on an order, wait for the next bar. "max" has no bars to wait for.
LOOP = """
import hashlib, sys, time
from sagelab.core.errors import Stopped
from sagelab.core.stop import Latch
latch, pause, orders = Latch(sys.argv[1]), float(sys.argv[2]), 0
print("ready", flush=True)
while True:
    try:
        latch.check()
        hashlib.sha256(b"order" * 20_000).hexdigest()
        orders += 1
        latch.wait(pause) if pause else None
    except Stopped:
        print(time.time(), orders, flush=True)
        if not sys.stdin.readline(): break
"""


def make_lab() -> Path:
    root = Path(tempfile.mkdtemp())
    (root / "settings.ini").write_text("[lab]\nname = benchmark\n")
    return root


def by_call(root: Path) -> list[float]:
    begun = time.time()
    Latch(root).set("benchmark")
    return [begun]


def by_command(root: Path) -> list[float]:
    begun = time.time()
    answer = subprocess.run([*SAGELAB, "stop", "--reason", "benchmark", "--json"], cwd=root, check=True, capture_output=True, text=True)
    return [datetime.fromisoformat(json.loads(answer.stdout)["time"]).timestamp(), begun]


def halts(stop, pause: float) -> list[list[float]]:
    "Milliseconds from each moment that a stop tells of to the last loop's end, one for each round; the loops go on after each."
    root = make_lab()
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, root, str(pause)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(LOOPS)]
    for loop in loops: assert loop.stdout.readline() == "ready\n"
    taken = []
    for number in range(ROUNDS):
        time.sleep(0.05 + 0.007 * (number % 7))  # at another moment of their rhythm each time
        moments = stop(root)
        ends = [loop.stdout.readline().split() for loop in loops]
        assert all(int(orders) > number for _, orders in ends), "a loop stood still"
        taken.append([1000 * (max(float(end) for end, _ in ends) - moment) for moment in moments])
        Latch(root).clear("next round")
        for loop in loops: print("go on", file=loop.stdin, flush=True)
    for loop in loops: loop.kill(), loop.wait()
    return [sorted(values) for values in zip(*taken)]


def row(what: str, taken: list[float], wanted: float) -> dict:
    p50, p95 = statistics.median(taken), taken[int(0.95 * len(taken))]
    return {"what": what, "figure": f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, longest {taken[-1]:.1f} ms", "wanted": f"p95 <= {wanted:g} ms", "met": p95 <= wanted}


WAIT = """
import json, sys, time
from sagelab.core.stop import Latch
latch, used = Latch(sys.argv[1]), time.process_time()
latch.wait(5)
print(json.dumps({"share": (time.process_time() - used) / 5}))
"""
LOOK = """
import json, sys, timeit
from sagelab.core.stop import Latch
print(json.dumps({"seconds": min(timeit.repeat(Latch(sys.argv[1]).is_set, number=100_000, repeat=5)) / 100_000}))
"""
share = in_fresh_process(WAIT, make_lab())["share"]
look = in_fresh_process(LOOK, make_lab())["seconds"]
calls = {}
for name, pause in (("waiting", 0.05), ("at full speed", 0)):
    calls[f"Latch.set to the last of 4 loops {name}"], = halts(by_call, pause)
    calls[f"`sagelab stop` taking effect to the last of 4 loops {name}"], calls[f"start of `sagelab stop` to the last of 4 loops {name}"] = halts(by_command, pause)
wanted = {name: (500 if "full speed" in name else 150) if name.startswith("start") else 50 for name in calls}
sys.exit(publish("stop", [row(name, taken, wanted[name]) for name, taken in calls.items()] + [
    {"what": "CPU of a process in Latch.wait", "figure": f"{100 * share:.2f} % of a core", "wanted": "<= 2 %", "met": share <= 0.02},
    {"what": "one look, Latch.is_set", "figure": f"{1e6 * look:.2f} microseconds", "wanted": "<= 10", "met": look <= 1e-5},
], milliseconds={name: [round(value, 2) for value in values] for name, values in calls.items()}, rounds=ROUNDS, loops=LOOPS))
