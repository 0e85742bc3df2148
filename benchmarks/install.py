"""From nothing to a first answer: a new environment, `sagelab[models]`, a new lab, `sagelab ask`; packages are in the installer's cache."""
import os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from measure import publish

SOURCE, COMPILERS = Path(__file__).parent.parent, ("gcc", "cc", "g++", "c++", "clang", "cmake", "make")
steps: dict[str, float] = {}


def step(name: str, *words: str, cwd: Path, environment: dict) -> str:
    begun = time.perf_counter()
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{name} failed: {done.stderr[-2000:]}")
    steps[name] = steps.get(name, 0.0) + time.perf_counter() - begun
    return done.stdout


def without_compilers(folder: Path) -> str:
    "A PATH on which every compiler is a program that fails."
    for name in COMPILERS:
        (folder/name).write_text("#!/bin/sh\necho no compiler here >&2\nexit 1\n")
        (folder/name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def measured(folder: Path) -> float:
    (folder/"path").mkdir()
    environment = os.environ | {"PATH": without_compilers(folder/"path"), "CC": "cc", "CXX": "c++"}
    uv, python = shutil.which("uv"), str(folder/"env"/"bin"/"python")
    create = [uv, "venv", "--quiet", "--python", sys.executable, "env"] if uv else [sys.executable, "-m", "venv", "env"]
    install = [uv, "pip", "install", "--quiet", "--python", python] if uv else [python, "-m", "pip", "install", "--quiet"]
    begun = time.perf_counter()
    step("environment", *create, cwd=folder, environment=environment)
    step("install", *install, f"{SOURCE}[models]", cwd=folder, environment=environment)
    sagelab = str(folder/"env"/"bin"/"sagelab")
    step("lab", sagelab, "init", "lab", cwd=folder, environment=environment)
    answer = step("ask", sagelab, "ask", "What is a share? One sentence.", "--max-tokens", "40", cwd=folder/"lab", environment=environment)
    if not answer.strip(): sys.exit("There was no answer.")
    return time.perf_counter() - begun


with tempfile.TemporaryDirectory() as folder: cold = measured(Path(folder))
steps.clear()
with tempfile.TemporaryDirectory() as folder: warm = measured(Path(folder))
sys.exit(publish("install", [
    {"what": "from nothing to a first answer, no compiler, packages in the cache", "figure": f"{warm:.0f} s ({', '.join(f'{name} {seconds:.0f}' for name, seconds in steps.items())})", "wanted": "<= 90 s", "met": warm <= 90},
], first_time_seconds=cold, steps=steps, installer="uv" if shutil.which("uv") else "pip"))
