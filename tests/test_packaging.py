"The wheel holds the whole package and the lab that `sagelab init` copies, and nothing private."
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY/"pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = [*PROJECT["dependencies"], *(entry for extra in PROJECT["optional-dependencies"].values() for entry in extra)]
LICENCES = ("AGPL", "LGPL", "GPL", "MPL", "MIT", "BSD", "Apache", "ISC", "PSF")


def name_of(requirement: str) -> str: return re.match(r"[\w.-]+", requirement)[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The wheel, built from this checkout without a package index."
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)],
                           capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive: return set(archive.namelist())


def test_wheel_holds_every_module(names: set[str]) -> None:
    expected = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY/"sagelab").rglob("*.py")}
    assert len(expected) > 3 and expected <= names


def template_files() -> set[str]:
    "The files of this checkout that a new lab starts with."
    found = {REPOSITORY/"settings.ini", REPOSITORY/"AI_POLICY.md", REPOSITORY/"config"/"secrets.env.example"}
    for folder, pattern in (("strategies", "*.py"), ("data/samples", "**/*"), ("nbs/experiments", "*.ipynb")):
        there = {path for path in (REPOSITORY/folder).glob(pattern) if path.is_file() and "__pycache__" not in path.parts}
        assert there, f"{folder} holds nothing that a lab could start with"
        found |= there
    return {path.relative_to(REPOSITORY).as_posix() for path in found}


def test_wheel_holds_the_lab_template(wheel: Path, names: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in template_files():
            assert f"sagelab/_lab/{name}" in names
            assert archive.read(f"sagelab/_lab/{name}") == (REPOSITORY/name).read_bytes()


def test_wheel_holds_nothing_private(names: set[str]) -> None:
    private = [name for name in names
               if name.endswith(("secrets.env", ".pyc")) or {"__pycache__", ".sagelab", "tests", ".ipynb_checkpoints"} & set(name.split("/"))]
    assert not private
    version = importlib.metadata.version("sagelab")
    assert {name.split("/")[0] for name in names} == {"sagelab", f"sagelab-{version}.dist-info", f"sagelab-{version}.data"}
    assert all(name.startswith(f"sagelab-{version}.data/data/share/jupyter/") for name in names if ".data/" in name)


def test_wheel_carries_the_entry_points(wheel: Path, names: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    for group, entries in {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}.items():
        assert f"[{group}]" in text
        for name, target in entries.items(): assert f"{name} = {target}" in text


@pytest.mark.parametrize("entry", [entry for group in ("console_scripts", *PROJECT["entry-points"])
                                   for entry in importlib.metadata.entry_points(group=group)
                                   if entry.value.startswith("sagelab.")], ids=lambda entry: entry.name)
def test_entry_point_leads_somewhere(entry: importlib.metadata.EntryPoint) -> None:
    assert callable(entry.load())


def test_new_lab_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive: archive.extractall(tmp_path/"installed")
    code = ("import sys, sagelab; from sagelab.lab.template import init_lab; init_lab(sys.argv[1]); print(sagelab.__file__)")
    made = subprocess.run([sys.executable, "-c", code, str(tmp_path/"lab")], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path/"installed")})
    assert made.returncode == 0, made.stderr
    assert Path(made.stdout.strip()).is_relative_to(tmp_path)
    for name in template_files(): assert (tmp_path/"lab"/name).read_bytes() == (REPOSITORY/name).read_bytes()


@pytest.mark.parametrize("requirement", [*DEPENDENCIES, *tomllib.loads((REPOSITORY/"pyproject.toml").read_text())["build-system"]["requires"]])
def test_dependency_has_a_floor(requirement: str) -> None:
    assert re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?>=[\d.]+(;.*)?", requirement.replace(" ", "")), "without a floor resolvers pick ancient releases"


def declared(name: str) -> str:
    "What the installed distribution says of its licence; several say nothing that a program can read."
    metadata = importlib.metadata.metadata(name)
    classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    return " ".join([metadata.get("License-Expression") or "", (metadata.get("License") or "")[:200], *classifiers])


@pytest.mark.parametrize("name", sorted(set(map(name_of, DEPENDENCIES))))
def test_readme_names_the_licence_of(name: str) -> None:
    lines = [line for line in (REPOSITORY/"README.md").read_text(encoding="utf-8").splitlines()
             if line.startswith("|") and re.search(rf"(?i)(?<![\w-]){re.escape(name)}(?![\w-])", line)]
    assert lines, f"README.md has no table row for {name}"
    said = {licence for licence in LICENCES for line in lines if re.search(rf"\b{licence}", line)}
    assert said, f"README.md names no licence for {name}"
    known = {licence for licence in LICENCES if re.search(rf"\b{licence}", declared(name))}
    assert not known or said & known, f"README.md says {said} of {name}, its package says {known}"


def test_readme_names_the_commons_clause() -> None:
    assert any("vectorbt" in line and "Commons Clause" in line for line in (REPOSITORY/"README.md").read_text(encoding="utf-8").splitlines())
