"""Memory of a model over 3,000 calls of all kinds. Its cache of beginnings fills over the first 500 and breathes by a few megabytes after that, so
medians are compared: that of the next 500 calls with that of the last 1,000."""
import gc, itertools, statistics, sys, threading, time
from pathlib import Path
import psutil
from measure import publish
from sagelab.inference.catalogue import get_model

CALLS, FULL, EVERY = 3000, 500, 25
process = psutil.Process()


def resident() -> int:
    gc.collect()
    return process.memory_info().rss


before = resident()
begun, seen = time.perf_counter(), []
with get_model(lab=Path(__file__).parent.parent, context=1024, threads=1) as model:
    loaded = resident()
    for number in range(CALLS):
        text = f"Shares of company {number} rose {number % 17} % after its report. " * (1 + number % 2)
        if number % 3 == 0: model.choose(f"Good or bad?\n{text}", ["good", "bad"])
        elif number % 3 == 1: model.complete(f"Repeat: {text}", sampling={"max_tokens": 3})
        elif number % 30 == 2: model.complete(f"How many per cent? {text}", {"type": "integer", "minimum": 0, "maximum": 99}, {"max_tokens": 8})
        else:
            with model.stream(f"Go on: {text}", sampling={"max_tokens": 4}) as stream: list(itertools.islice(stream, 2))
        if number == FULL: threads, files = threading.active_count(), process.num_fds()
        if number >= FULL and number % EVERY == 0: seen.append(resident())
        if number % 500 == 499: print(f"{number + 1} of {CALLS}, {time.perf_counter() - begun:.0f} s, {resident() / 2**20:.0f} MB", file=sys.stderr)
    left = (threading.active_count() - threads, process.num_fds() - files)
closed = resident()
settled, end = statistics.median(seen[:FULL // EVERY]), statistics.median(seen[-1000 // EVERY:])
growth = end / settled - 1
sys.exit(publish("modelmemory", [
    {"what": f"resident memory of the last 1,000 of {CALLS:,} calls, against calls {FULL} to {2 * FULL}", "figure": f"{growth:+.2%} ({settled / 2**20:.0f} MB; {loaded / 2**20:.0f} when loaded, {max(seen) / 2**20:.0f} at most)", "wanted": "within 2 %", "met": abs(growth) <= 0.02},
    {"what": "threads and open files that were left behind", "figure": f"{left[0]} and {left[1]}", "wanted": "none", "met": max(left) <= 0},
    {"what": "memory above an empty process once the model is closed", "figure": f"{(closed - before) / 2**20:.0f} MB", "wanted": "reported", "met": True},
], calls_a_second=CALLS / (time.perf_counter() - begun), resident_mb=[round(value / 2**20, 1) for value in seen]))
