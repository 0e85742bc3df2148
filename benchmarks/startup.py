"""What it costs to begin: CPU seconds of `import sagelab` and `sagelab --help`, over an empty Python."""
import statistics, sys
from measure import in_fresh_process, publish

ROUNDS = 7


def cpu(code: str) -> list[float]: return sorted(in_fresh_process(code)["cpu_seconds"] for _ in range(ROUNDS))


empty, package = cpu("pass"), cpu("import sagelab")
door = cpu("from sagelab.cli.main import main; main(['--help'])")


def text(values): return f"{statistics.median(values):.3f} s ({values[0]:.3f} .. {values[-1]:.3f}; an empty Python {statistics.median(empty):.3f})"


sys.exit(publish("startup", [
    {"what": "import sagelab", "figure": text(package), "wanted": "<= 0.15 s", "met": statistics.median(package) <= 0.15},
    {"what": "sagelab --help", "figure": text(door), "wanted": "<= 0.4 s", "met": statistics.median(door) <= 0.4},
]))
