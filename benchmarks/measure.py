"""What every benchmark shares: side-by-side rounds, ratios with their spread, a table and a file of results."""
import json, os, platform, statistics, subprocess, sys, time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def side_by_side(
    ours: Callable[[], object],  # measured first in each round
    peer: Callable[[], object],
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,  # or time.process_time
) -> dict:
    "Run both in turn, so that a busy moment hits both; ratio is peer over ours, from each round."
    ours(), peer()  # warm against warm
    pairs = []
    for _ in range(rounds):
        pairs.append((_timed(ours, clock), _timed(peer, clock)))
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    return {"ours_seconds": statistics.median(mine for mine, _ in pairs), "peer_seconds": statistics.median(theirs for _, theirs in pairs),
            "ratio": statistics.median(ratios), "ratio_low": ratios[0], "ratio_high": ratios[-1], "rounds": rounds}


def _timed(work: Callable[[], object], clock) -> float:
    begun = clock()
    work()
    return clock() - begun


def in_fresh_process(code: str, *words: str) -> dict:
    "Run code in a new Python; it prints one JSON line last. Adds CPU seconds and peak memory of that process."
    import resource
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = answer.stdout.strip().splitlines()
    return {"cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime} | (json.loads(lines[-1]) if lines and lines[-1][:1] == "{" else {})


def machine() -> dict:
    "What a figure was measured on; absolute times mean nothing without it."
    return {"cores": os.cpu_count(), "python": platform.python_version(), "load": round(os.getloadavg()[0], 2), "machine": platform.machine()}


def publish(
    name: str,  # of the benchmark
    rows: list[dict],  # what, figure, wanted, met
    **details,
) -> int:  # exit code: 1 when a figure misses what is wanted
    "Print a table and keep it in results/."
    width = max(len(row["what"]) for row in rows)
    print(f"\n{name}  ({', '.join(f'{k} {v}' for k, v in machine().items())})")
    for row in rows: print(f"  {'ok  ' if row['met'] else 'MISS'} {row['what']:<{width}}  {row['figure']}   wanted {row['wanted']}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), "rows": rows} | details, indent=1, default=str) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


def ratio_text(measured: dict) -> str:
    return f"{measured['ratio']:.1f}x ({measured['ratio_low']:.1f} .. {measured['ratio_high']:.1f}; {measured['ours_seconds']:.3f} s against {measured['peer_seconds']:.3f} s)"
