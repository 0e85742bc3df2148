"What several tests need: a fresh lab, a browser, services that may be missing, and no way out of this machine."
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import network_guard
import pytest

if TYPE_CHECKING: from playwright.sync_api import Browser

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
QUIET_BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                 "--disable-component-update", "--disable-sync",
                 "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1"]


def pytest_configure(config: pytest.Config) -> None:
    network_guard.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()): item.add_marker(pytest.mark.browser)


def require(
    service: object,  # what was found: a path, a client, True; anything false means missing
    reason: str,  # what is missing and how to get it
) -> object:  # the service
    "Skip without a service on a developer's machine; on CI a missing service fails, so nothing is skipped unseen."
    if service: return service
    if os.environ.get("CI") == "true": pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def outside() -> Iterator[list[str]]:
    "Attempts of this test to leave the machine; a test passes only when none are left at its end."
    network_guard.refused.clear()
    yield network_guard.refused
    assert not network_guard.refused, f"this test tried to leave the machine: {network_guard.refused}"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    "Settings that the person who runs the tests has in the environment stay out of them."
    for name in [name for name in os.environ if name.startswith("SAGELAB_")]: monkeypatch.delenv(name)
    # Dask leaves its own seed behind in the process that starts a cluster.
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    "The root of this checkout."
    return REPOSITORY


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    "The root of a fresh lab, as `sagelab init` makes it."
    from sagelab.lab.template import init_lab
    root = tmp_path/"lab"
    init_lab(root)
    return root


@pytest.fixture(scope="session")
def weights() -> Path:
    "The weights of a small instruct model, as `make test` fetches them."
    found = REPOSITORY/".sagelab"/"models"/"smollm2.gguf"
    return require(found if found.exists() else None, "no model found: sagelab model add smollm2")


@pytest.fixture(scope="session")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The same weights as a folder of safetensors, which is loaded at once; a GGUF file takes PyTorch many seconds."
    from sagelab.inference.transformers import TransformersConfig, TransformersModel
    missing = [name for name in ("torch", "transformers", "accelerate", "gguf", "llguidance") if not find_spec(name)]
    require(not missing, f"not installed: {', '.join(missing)}. Try: pip install 'sagelab[transformers]'")
    with TransformersModel(TransformersConfig(path=weights, context=512, threads=1, device="cpu", dtype="float32")) as packed:
        folder = packed.save(tmp_path_factory.mktemp("unpacked")/"smollm2")
        (folder.parent/"said").write_text(packed.complete("Say hello.", sampling={"max_tokens": 8}).text)
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    "The weights of a small embedding model, as `make test` fetches them."
    found = REPOSITORY/".sagelab"/"models"/"minilm.gguf"
    return require(found if found.exists() else None, "no embedding model found: sagelab model add minilm")


@pytest.fixture
def browser() -> Iterator["Browser"]:
    "A headless Chromium. One per test: Playwright's loop would stand in the way of every later `asyncio.run`."
    from playwright.sync_api import sync_playwright
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    executable = require(found, "no Chromium found: apt-get install chromium, or set CHROMIUM to the executable")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=QUIET_BROWSER)
        yield chromium
        chromium.close()
