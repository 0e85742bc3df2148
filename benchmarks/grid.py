"""Grids: two workers against one, what a grid adds to a run, and 500 runs of which some fail, without loss or leak."""
import contextlib
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from measure import publish
from sagelab.core.settings import load_settings
from sagelab.lab import run as lab_run
from sagelab.lab.grid import run_grid
from sagelab.lab.run import list_runs, surroundings
from sagelab.lab.workers import Task, perform

RUNS = int(os.environ.get("GRID_RUNS", 500))  # fewer for a quick look
ROUNDS = int(os.environ.get("GRID_ROUNDS", 3))


def make_lab(folder: Path, *cells: str) -> tuple:
    "A small lab with one notebook."
    folder.mkdir()
    (folder / "settings.ini").write_text("[lab]\nname = benchmark\n")
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    made.cells = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(made, folder / "work.ipynb")
    return load_settings(folder, environment={}), folder / "work.ipynb"


def left_over(folder: Path, before: set[int]) -> dict:
    "Processes, sockets and folders that work has left behind."
    time.sleep(2)  # a plain kernel looks for its parent once a second
    own = {child.pid for child in psutil.Process().children(recursive=True)} - before
    places = [process.pid for process in psutil.process_iter() if in_folder(process, folder)]
    sockets = [connection for connection in psutil.Process().net_connections("all") if connection.type == socket.SOCK_STREAM and connection.status == "LISTEN"]
    return {"processes": len(own | set(places)), "sockets": len(sockets) + len([*Path(tempfile.gettempdir()).glob("sagelab-worker-*")]), "hidden folders": len([*(folder / "reports").glob(".*")])}


def in_folder(process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error): return process.pid != os.getpid() and process.cwd().startswith(str(folder))
    return False


def two_against_one(root: Path) -> dict:
    "The same grid by one worker and by two, in turn."
    settings, notebook = make_lab(root / "speed", "total = 0\nfor n in range(25_000_000): total += n * a")
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        took = [run_grid(notebook, {"a": [*range(16)]}, settings=settings, workers=workers).seconds for workers in (1, 2)]
        ratios.append(took[0] / took[1])
        seconds.append(took)
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "seconds": seconds}


def overhead(root: Path) -> float:
    "Seconds that everything but the execution takes of a run: folder, manifest, hashes, ledger."
    settings, notebook = make_lab(root / "overhead", "a")
    about, plain, took = surroundings(settings.root), lab_run._execute, []
    lab_run._execute = lambda path, folder, *rest, **more: shutil.copy(path, folder / "notebook.ipynb")
    try:
        for number in range(100):
            begun = time.perf_counter()
            assert perform(Task(number, f"run-{number}", str(notebook), {"a": number}, {}), settings, about).state == "finished"
            took.append(time.perf_counter() - begun)
    finally: lab_run._execute = plain
    return statistics.median(took)


def many(root: Path) -> dict:
    "Many runs on two workers; every tenth fails, every fiftieth kills its kernel."
    settings, notebook = make_lab(root / "many", "import os\nif a % 50 == 7: os.kill(os.getpid(), 9)\nif a % 10 == 3: raise ValueError(a)")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    result = run_grid(notebook, {"a": [*range(RUNS)]}, settings=settings, workers=2)
    wanted = sum(a % 50 != 7 and a % 10 != 3 for a in range(RUNS))
    lost = abs(wanted - len(list_runs(settings))) + abs(RUNS - wanted - len(result.failures))
    return {"lost": lost, "seconds": result.seconds, "a run": result.seconds / RUNS, **left_over(settings.root, before)}


def by_papermill(words: tuple) -> bool:
    "What one writes without SageLab: papermill in a process pool."
    import papermill
    notebook, out, a = words
    try: papermill.execute_notebook(notebook, out, {"a": a}, kernel_name="python3", progress_bar=False, cwd=str(Path(out).parent))
    except Exception: return False
    return True


def many_by_papermill(root: Path) -> dict:
    "The same by the peer; fewer of them, because it takes as long."
    _, notebook = make_lab(root / "peer", "import os\nif a % 50 == 7: os.kill(os.getpid(), 9)\nif a % 10 == 3: raise ValueError(a)")
    count, begun = min(RUNS, 60), time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool: done = sum(pool.map(by_papermill, [(str(notebook), str(root / "peer" / f"{a}.ipynb"), a) for a in range(count)]))
    seconds = time.perf_counter() - begun
    return {"runs": count, "finished": done, "seconds": seconds, "a run": seconds / count}


def main() -> int:
    root = Path(tempfile.mkdtemp(prefix="grid-benchmark-"))
    try: speed, own, ours, peer = two_against_one(root), overhead(root), many(root), many_by_papermill(root)
    finally: shutil.rmtree(root, ignore_errors=True)
    leaked = ours["processes"] + ours["sockets"] + ours["hidden folders"]
    rows = [{"what": "two workers against one", "figure": f"{speed['ratio']:.2f}x ({speed['low']:.2f} .. {speed['high']:.2f})", "wanted": ">= 1.7x", "met": speed["ratio"] >= 1.7},
            {"what": "what a grid adds to a run", "figure": f"{1000 * own:.1f} ms", "wanted": "<= 20 ms", "met": own <= 0.020},
            {"what": f"{RUNS} runs on 2 workers, some failing: lost", "figure": f"{ours['lost']}", "wanted": "0", "met": not ours["lost"]},
            {"what": "leaked processes, sockets, hidden folders", "figure": f"{leaked}", "wanted": "0", "met": not leaked},
            {"what": "seconds a run, against papermill in a process pool", "figure": f"{ours['a run']:.2f} s against {peer['a run']:.2f} s", "wanted": "not slower", "met": ours["a run"] <= 1.05 * peer["a run"]}]
    return publish("grid", rows, speed=speed, ours=ours, peer=peer)


if __name__ == "__main__": sys.exit(main())
