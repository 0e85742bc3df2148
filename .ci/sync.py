"Carry edits between the notebooks and their text pairs, and give every notebook the python3 kernelspec."
import json
import subprocess
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent.parent/"nbs"
KERNELSPEC = {"display_name": "python3", "language": "python", "name": "python3"}


def pairs() -> list[Path]:
    "One file of every pair; a new notebook may exist as text only, or as a notebook only."
    found = {}
    for path in sorted([*BOOK.rglob("*.ipynb"), *BOOK.rglob("*.py")]):
        if ".ipynb_checkpoints" not in path.parts: found.setdefault(path.with_suffix(""), path)
    return list(found.values())


def sync() -> None:
    "Let the newer file of each pair win."
    subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--sync", *map(str, pairs())], check=True)


def set_metadata(path: Path) -> bool:  # whether the notebook changed
    "Keep a notebook's own metadata to the kernelspec, without which papermill cannot start it; pairing stands in jupytext.toml."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    before = dict(notebook["metadata"])
    notebook["metadata"]["kernelspec"] = KERNELSPEC
    notebook["metadata"].pop("jupytext", None)
    if notebook["metadata"] == before: return False
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return True


def main() -> None:
    sync()
    changed = [path for path in pairs() if set_metadata(path.with_suffix(".ipynb"))]
    # The text must learn of the new metadata, or its next sync would take it away again.
    if changed:
        sync()
        # A sync notes its own settings in the notebooks; the last word is theirs.
        for path in pairs(): set_metadata(path.with_suffix(".ipynb"))
    print(f"{len(pairs())} notebooks in step with their text")


if __name__ == "__main__": main()
