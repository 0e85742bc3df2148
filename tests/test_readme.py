"""What the README shows is run as it stands there."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

BIN = Path(sys.executable).parent
# These two go on until somebody ends them; test_jupyterlab and test_dashboard do that.
SERVERS = ("lab", "dashboard")


def blocks(repository: Path, language: str) -> list[list[str]]:
    text = (repository/"README.md").read_text(encoding="utf-8")
    return [found.strip().splitlines() for found in re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)]


def commands(repository: Path) -> list[list[str]]:
    "Words of each command, without its comment."
    return [words for block in blocks(repository, "sh") for line in block if (words := shlex.split(line, comments=True)) and words[0] in ("sagelab", "papermill")]


@pytest.fixture
def environment(tmp_path: Path) -> dict:
    "What Jupyter keeps is kept apart from the person's who runs the tests."
    own = {f"JUPYTER_{name}_DIR": str(tmp_path/name.lower()) for name in ("CONFIG", "DATA")} | {"IPYTHONDIR": str(tmp_path/"ipython"), "GIT_AUTHOR_NAME": "P", "GIT_AUTHOR_EMAIL": "p@example.com",
           "GIT_COMMITTER_NAME": "P", "GIT_COMMITTER_EMAIL": "p@example.com", "COLUMNS": "200"}
    return os.environ | own


@pytest.fixture
def place(lab: Path, weights: Path, tmp_path: Path) -> Path:
    "A lab under git, with a file of one's own, and a model that need not be fetched."
    from sagelab.core.settings import load_settings
    from sagelab.inference.catalogue import Catalogue
    Catalogue(load_settings(lab)).add("smollm2", str(weights))
    closes = [100 + n % 7 for n in range(400)]
    (lab/"my.csv").write_text("time,open,high,low,close,volume\n" + "".join(f"2024-01-{2 + n // 24:02}T{n % 24:02}:00:00,{c},{c + 1},{c - 1},{c},10\n" for n, c in enumerate(closes[:600])))
    for words in (("init", "-q", "-b", "work"), ("add", "-A"), ("commit", "-qm", "begin")):
        subprocess.run(["git", "-c", "user.name=P", "-c", "user.email=p@example.com", "-C", str(lab), *words], check=True, capture_output=True)
    return lab


def test_commands(place: Path, repository: Path, environment: dict) -> None:
    found = commands(repository)
    assert {words[1] for words in found if words[0] == "sagelab"} >= {"backtest", "sweep", "run", "guard", "paper", "experiment", "kernels", "dashboard", "stop"}
    # Nothing goes on after a stop, so it comes last.
    for words in sorted(found, key=lambda words: words[1] == "stop"):
        words = [str(place.parent/"mylab") if word == "~/mylab" else word for word in words]
        if words[1] in SERVERS:
            answer = subprocess.run([BIN/words[0], words[1], "--help"], cwd=place, env=environment, capture_output=True, text=True)
            assert answer.returncode == 0 and all(word in answer.stdout for word in words[2:])
            continue
        if "--speed" in words: words[words.index("--speed") + 1] = "max"
        answer = subprocess.run([BIN/words[0], *words[1:]], cwd=place, env=environment, capture_output=True, text=True, timeout=300)
        told = answer.stdout + answer.stderr
        assert answer.returncode in ((0, 1) if words[1] in ("guard", "check") else (0,)) and "Traceback" not in told, (words, told[-2000:])


def test_a_notebook(place: Path, repository: Path, environment: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    block, = [lines for lines in blocks(repository, "python") if lines[0] == "%load_ext sagelab"]
    for name, value in environment.items(): monkeypatch.setenv(name, value)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(block))])
    NotebookClient(book, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    told = json.dumps([output.get("data", {}) for output in book.cells[0].outputs])
    assert not [output for output in book.cells[0].outputs if output.output_type == "error"] and "Sharpe" in told and "widget-view" in told
