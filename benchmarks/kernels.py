"""Warm kernels against plain ipykernel, side by side through jupyter_client: start to first reply, and private memory.

    python benchmarks/kernels.py [--rounds 20]
"""
import argparse, os, statistics, sys, tempfile, time
from pathlib import Path
from measure import publish

IMPORTS = "import numpy, pandas, pyarrow.parquet, numba, talib, plotly.graph_objects, ipywidgets, vectorbt, sagelab.trading.sweep, sagelab.lab.guards, sagelab.lab.run"


def started(name: str):
    "A kernel and its client, and the seconds from the request to the first reply."
    from jupyter_client.manager import KernelManager
    begun = time.perf_counter()
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    client = manager.client()
    client.start_channels(hb=False)
    client.kernel_info(reply=True, timeout=120)
    seconds = time.perf_counter() - begun
    if name == "sagelab" and manager.provisioner.cold_reason: sys.exit(f"not warm: {manager.provisioner.cold_reason}")
    return manager, client, seconds


def ended(manager, client) -> None:
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def seconds_to_reply(name: str) -> float:
    manager, client, seconds = started(name)
    ended(manager, client)
    return seconds


def private_mib(pid: int) -> float:
    "Memory that is this process's alone."
    return sum(int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Private_")) / 1024


def private_after_imports(name: str) -> float:
    manager, client, _ = started(name)
    try:
        reply = client.execute_interactive(IMPORTS, timeout=600)
        assert reply["content"]["status"] == "ok", reply["content"]
        return private_mib(manager.provisioner.pid)
    finally: ended(manager, client)


def wait_until_imported() -> dict:
    from sagelab.kernels.forkserver import server_names, server_status
    while True:
        server = next(filter(None, map(server_status, server_names())))
        if not server["importing"]: return server
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        cold = seconds_to_reply("sagelab")
        wait_until_imported()
        # Each reply in turn, so that a busy moment hits both.
        pairs = [(seconds_to_reply("sagelab"), seconds_to_reply("python3")) for _ in range(rounds)]
        kept = started("sagelab")
        warm, plain = statistics.median(private_after_imports("sagelab") for _ in range(3)), private_after_imports("python3")
        server = wait_until_imported()
        ended(*kept[:2])
        from sagelab.kernels.forkserver import retire_server
        retire_server(server["name"])
    ours, peer = sorted(mine for mine, _ in pairs), [theirs for _, theirs in pairs]
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    ratio, p95 = statistics.median(ratios), ours[min(len(ours) - 1, int(0.95 * len(ours)))]
    rows = [{"what": "start to first reply against plain ipykernel", "figure": f"{ratio:.1f}x ({ratios[0]:.1f} .. {ratios[-1]:.1f}; {1e3 * statistics.median(ours):.0f} ms against {1e3 * statistics.median(peer):.0f} ms)",
             "wanted": ">= 10x", "met": ratio >= 10},
            {"what": "start to first reply, 95th percentile", "figure": f"{1e3 * p95:.0f} ms", "wanted": "<= 120 ms", "met": p95 <= 0.12},
            {"what": "private memory of a further kernel", "figure": f"{warm:.0f} MiB", "wanted": "<= 60 MiB", "met": warm <= 60},
            {"what": "the same against a plain kernel with the same imports", "figure": f"1/{plain / warm:.1f} of {plain:.0f} MiB", "wanted": "<= 1/4", "met": warm * 4 <= plain}]
    return publish("kernels", rows, first_start_ms=cold * 1e3, replies_ms=[1e3 * mine for mine in ours], imports=server["imports"])


if __name__ == "__main__": sys.exit(main())
