"""Papermill with the engine `sagelab` against papermill's own engine: the same notebooks, in turn, in one process each.

`--quick` leaves out most of the 500 runs. The last part looks for what is left behind: processes and open sockets.
"""
import multiprocessing, os, shutil, statistics, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from measure import publish, ratio_text, side_by_side

QUICK = "--quick" in sys.argv
# Workers import this file too and share the folder. The fork server is our own, and gone soon after the benchmark.
FOLDER = Path(os.environ.setdefault("BENCHMARK_FOLDER", "") or tempfile.mkdtemp(prefix="sagelab-benchmark-"))
os.environ |= {"BENCHMARK_FOLDER": str(FOLDER), "XDG_RUNTIME_DIR": str(FOLDER), "SAGELAB_KERNELS_IDLE_SECONDS": "60"}


def notebook(name: str, *cells: str) -> Path:
    "Write a notebook whose first cell holds the parameters."
    import nbformat
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": {"name": "sagelab", "display_name": "SageLab", "language": "python"},
                                                                                                       "language_info": {"name": "python"}})
    new.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(new, FOLDER / f"{name}.ipynb")
    return FOLDER / f"{name}.ipynb"


def execute(path: Path, engine: str | None, **parameters):
    "One run; papermill's own engine uses the plain kernel."
    import papermill
    kernel = "sagelab" if engine else "python3"
    return papermill.execute_notebook(str(path), str(FOLDER / f"out-{os.getpid()}-{engine}.ipynb"), parameters=parameters, engine_name=engine, kernel_name=kernel, progress_bar=False, cwd=str(FOLDER))


def wait_for_imports(seconds: float = 120) -> None:
    "Wait until the fork server, which serves from its first import on, has all of them."
    from sagelab.kernels.forkserver import server_names, server_status
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(s["importing"] or s["still_to_import"] for name in server_names() if (s := server_status(name))): time.sleep(0.2)


def in_a_row(path: Path, engine: str | None, times: int) -> None:
    for n in range(times): execute(path, engine, x=n)


def cells_seconds(nb) -> float:
    "What the cells of an executed notebook took by themselves, in the kernel."
    from datetime import datetime
    def moment(text): return datetime.fromisoformat(text.replace("Z", "+00:00"))
    marks = [cell.metadata.execution for cell in nb.cells if "execution" in cell.metadata]
    return sum((moment(mark["shell.execute_reply"]) - moment(mark["iopub.execute_input"])).total_seconds() for mark in marks)


def overhead(path: Path, engine: str | None, rounds: int) -> list[float]:
    "Seconds of a run that its cells did not take."
    found = []
    for n in range(rounds):
        begun = time.perf_counter()
        nb = execute(path, engine, x=n)
        found.append(time.perf_counter() - begun - cells_seconds(nb))
    return sorted(found)


def spread(seconds: list[float]) -> str: return f"{1000 * statistics.median(seconds):.0f} ms ({1000 * seconds[0]:.0f} .. {1000 * seconds[-1]:.0f})"


def one_of_many(job: tuple[str, str, int]) -> tuple[int, bool]:
    "A run of the five hundred; every tenth fails on purpose."
    import papermill
    path, engine, n = job
    output = FOLDER / "many" / f"{engine}-{n}.ipynb"
    try: papermill.execute_notebook(path, str(output), parameters={"x": n}, engine_name=engine or None, kernel_name="sagelab" if engine else "python3", progress_bar=False)
    except papermill.PapermillExecutionError: return n, False
    return n, True


def many(path: Path, engine: str, runs: int) -> tuple[float, int]:
    "Seconds of many runs on two workers, and how many of them are not what they should be."
    import nbformat
    (FOLDER / "many").mkdir(exist_ok=True)
    begun = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool: results = dict(pool.map(one_of_many, [(str(path), engine, n) for n in range(runs)]))
    seconds = time.perf_counter() - begun
    def said(n): return [o.get("text", o.get("ename")) for cell in nbformat.read(FOLDER / "many" / f"{engine}-{n}.ipynb", 4).cells if cell.cell_type == "code" for o in cell.outputs]
    return seconds, sum(results.get(n) != (n % 10 != 7) or said(n) != ([f"{n * n}\n"] if n % 10 != 7 else ["ZeroDivisionError"]) for n in range(runs))


def left_behind() -> list[str]:
    "Kernels and folders of sockets that are still there when the fork servers were sent away."
    import psutil
    from sagelab.kernels.client import runtime_folder
    servers = {process.pid for process in psutil.process_iter() if _says(process, str(FOLDER))}
    kernels = [str(process) for process in psutil.process_iter() if process.ppid() in servers or process.pid not in servers and _says(process, "ipykernel") and process.ppid() == os.getpid()]
    folders = [str(folder) for folder in runtime_folder().iterdir() if not Path(f"/proc/{folder.name.split('-')[0]}").exists()]
    return kernels + folders


def _says(process, word: str) -> bool:
    import psutil
    try: return word in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error: return False


def main() -> int:
    trivial = notebook("trivial", "x = 1", "print(x * x)")
    libraries = notebook("libraries", "x = 1", "import vectorbt, pandas, sagelab", "print(pandas.Series([x]).sum())")
    unwarmed = notebook("unwarmed", "x = 1", "import sqlite3, xml.dom.minidom, time\ntime.sleep(0.2)", "sum(n * x for n in range(10**6))", "import http.server, mailbox")
    failing = notebook("failing", "x = 1", "if x % 10 == 7: 1 / 0\nprint(x * x)")
    row, rounds = (5, 2) if QUICK else (20, 3)
    execute(libraries, "sagelab", x=0)
    wait_for_imports()
    fast = side_by_side(lambda: in_a_row(trivial, "sagelab", row), lambda: in_a_row(trivial, None, row), rounds)
    heavy = side_by_side(lambda: execute(libraries, "sagelab", x=1), lambda: execute(libraries, None, x=1), 2 if QUICK else 3)
    ours, theirs = (overhead(unwarmed, engine, 10 if QUICK else 30) if engine else overhead(unwarmed, engine, 3) for engine in ("sagelab", None))
    single = sorted(_seconds(lambda: execute(trivial, "sagelab", x=n)) for n in range(20))
    runs = 40 if QUICK else 500
    many_seconds, lost = many(failing, "sagelab", runs)
    peer_runs = 20 if QUICK else 100
    peer_seconds, peer_lost = many(failing, "", peer_runs)
    from sagelab.kernels.forkserver import retire_server, server_names
    for name in server_names(): retire_server(name)
    time.sleep(1)
    left = left_behind()
    return publish("notebooks", [
        {"what": f"trivial notebook, {row} in a row, against papermill's own engine", "figure": ratio_text(fast), "wanted": ">= 12x", "met": fast["ratio"] >= 12},
        {"what": "the same, one run", "figure": spread(single), "wanted": "near 30 ms", "met": statistics.median(single) <= 0.12},
        {"what": "notebook that imports vectorbt, pandas and sagelab", "figure": ratio_text(heavy), "wanted": ">= 40x", "met": heavy["ratio"] >= 40},
        {"what": "a run's time over its cells' time, cells not warmed", "figure": f"{spread(ours)}; papermill {spread(theirs)}", "wanted": "<= 120 ms", "met": statistics.median(ours) <= 0.12},
        {"what": f"{runs} runs on 2 workers, every tenth fails on purpose: lost", "figure": f"{lost} lost in {many_seconds:.1f} s; papermill in a pool: {peer_lost} of {peer_runs} lost, "
                 f"{peer_seconds / peer_runs * runs / many_seconds:.1f}x the time", "wanted": "0", "met": lost == 0},
        {"what": "left behind after them: processes, sockets", "figure": f"{len(left)}{' ' if left else ''}{', '.join(left[:3])}", "wanted": "0", "met": not left},
    ], quick=QUICK)


def _seconds(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    try: sys.exit(main())
    finally: shutil.rmtree(FOLDER, ignore_errors=True)
