"settings.ini documents itself: what it says are the defaults, and every key is explained."
import configparser
from pathlib import Path

import pytest
from sagelab.core.settings import load_settings, sections


@pytest.fixture
def text(repository: Path) -> str: return (repository/"settings.ini").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", list(sections()))
def test_committed_values_are_the_defaults(section: str, repository: Path) -> None:
    assert getattr(load_settings(repository, environment={}), section) == sections()[section]()


def test_every_setting_is_written_down(text: str) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    written = {name: set(parser[name]) for name in parser.sections()}
    assert written == {name: set(model.model_fields) for name, model in sections().items()}


def test_every_key_is_explained_above_it(text: str) -> None:
    lines = text.splitlines()
    # A comment may explain a few keys that belong together, so look up to the nearest line that is no key.
    for number, line in enumerate(lines):
        if "=" not in line or line.startswith(";"): continue
        above = number
        while "=" in lines[above] and not lines[above].startswith(";"): above -= 1
        assert lines[above].startswith(";"), f"settings.ini line {number + 1} has no comment above it: {line}"
