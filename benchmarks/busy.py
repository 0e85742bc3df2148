"""Writing while three other processes work: the number of threads that the probe picks, against one thread."""
import subprocess, sys, time
from pathlib import Path
from measure import publish, ratio_text, side_by_side
from sagelab.inference.catalogue import get_model

LAB, BUSY = Path(__file__).parent.parent, 3
WORK = "while True: sum(i * i for i in range(100_000))"
PROMPT, LENGTH = "Tell a story about a market maker.", 48

others = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(BUSY)]
try:
    time.sleep(2)
    with get_model(lab=LAB, context=512) as chosen, get_model(lab=LAB, context=512, threads=1) as single:
        write = lambda model: model.complete(PROMPT, sampling={"max_tokens": LENGTH})
        measured = side_by_side(lambda: write(chosen), lambda: write(single), rounds=9)
        notes = chosen.about.notes
finally:
    for other in others: other.kill()
    for other in others: other.wait()
sys.exit(publish("busy", [
    {"what": f"writing beside {BUSY} busy processes, threads as probed against one", "figure": ratio_text(measured), "wanted": ">= 0.80x", "met": measured["ratio"] >= 0.8},
], measured=measured, notes=notes))
