"A small model in this process and one behind an address, routed by margin, schema and budget; and one that shadows another."
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from sagelab.core.errors import AnswerError, UnknownName
from sagelab.core.settings import load_settings
from sagelab.inference.base import About, Model, ScriptedModel
from sagelab.inference.catalogue import Catalogue
from sagelab.inference.choice import Calibration, Question, fit_calibration
from sagelab.inference.endpoint import EndpointConfig, EndpointModel
from sagelab.inference.llamacpp import LlamaCppConfig, LlamaCppModel
from sagelab.inference.router import Route, Router, RouterConfig, get_router, read_decisions
from sagelab.inference.shadow import Shadow

QUESTION = Question("Is this headline good or bad news for the company? Answer with one word: good or bad.\n\n{item}", ("good", "bad"))
NEWS = [("Profit doubles after record sales", "good"), ("Company files for bankruptcy", "bad"), ("Shares soar on strong outlook", "good"), ("Regulator fines the bank for fraud", "bad"),
        ("Dividend raised for the tenth year", "good"), ("Factory fire halts production", "bad")]
Direction = Literal["up", "down"]


@pytest.fixture(scope="module")
def small(weights: Path) -> Iterator[LlamaCppModel]:
    with LlamaCppModel(LlamaCppConfig(path=weights, name="smollm2", context=1024, threads=1)) as model: yield model


@pytest.fixture(scope="module")
def address(weights: Path) -> Iterator[str]:
    "Of llama.cpp's own server."
    xllamacpp = pytest.importorskip("xllamacpp")
    p = xllamacpp.CommonParams()
    p.model.path, p.model_alias, p.n_ctx, p.verbosity = str(weights), {"far"}, 1024, -1
    p.cpuparams.n_threads = 1
    server = xllamacpp.Server(p)
    yield server.listening_address + "/v1"
    del server


@pytest.fixture(scope="module")
def far(address: str) -> Iterator[EndpointModel]:
    with EndpointModel(EndpointConfig(url=address, model="far", context=1024)) as model: yield model


def test_a_close_choice_goes_on_and_a_clear_one_stays(small: LlamaCppModel, far: EndpointModel):
    near = fit_calibration(small, QUESTION, NEWS)
    wide = Calibration(far.about.id, QUESTION.sha256, QUESTION.options, 1.0, (0.0, 0.0))
    routes = [Route("small", small, calibrations=(near,)), Route("far", far, 1.0, 1.0, calibrations=(wide,))]
    chances = small.choose(QUESTION.of(NEWS[0][0]), QUESTION.options, near)
    margin = abs(chances["good"] - chances["bad"])
    stays, goes = Router(routes, RouterConfig(margin=max(0.0, margin - 0.01), money=1)), Router(routes, RouterConfig(margin=min(1.0, margin + 0.01), money=1))
    assert stays.choose(QUESTION.of(NEWS[0][0]), QUESTION.options) == pytest.approx(chances) and stays.decisions[-1].route == "small"
    assert sum(goes.choose(QUESTION.of(NEWS[0][0]), QUESTION.options).values()) == pytest.approx(1) and goes.decisions[-1].route == "far"
    assert isinstance(goes, Model) and 0 < goes.purse.spent < 0.01 and [s.asked for s in goes.statistics()] == [1, 1]
    with_nothing = Router(routes, RouterConfig(margin=1.0))
    assert with_nothing.choose(QUESTION.of(NEWS[0][0]), QUESTION.options) == pytest.approx(chances) and str(with_nothing.decisions[-1]) == "small (close) > far (too dear)"


def test_a_schema_that_never_fits_goes_on(far: EndpointModel):
    broken = ScriptedModel(["not JSON"], about=About("broken", "scripted"))
    reply = Router([Route("small", broken), Route("far", far)]).complete("Up or down? Answer as JSON.", Direction, {"max_tokens": 24})
    assert reply.parsed in ("up", "down") and reply.route == ("small: invalid", "far: answered") and len(broken.requests) == 3
    with pytest.raises(AnswerError, match=r"Not asked: far \(offline\)"): Router([Route("small", broken), Route("far", far)], RouterConfig(offline=True)).complete("?", Direction)


def test_a_prompt_that_is_too_long_goes_where_there_is_room(small: LlamaCppModel):
    roomy = ScriptedModel(["read"], about=About("roomy", "scripted", 100_000))
    reply = Router([Route("small", small), Route("roomy", roomy)]).complete("word " * 3000)
    assert reply.text == "read" and reply.route == ("small: too long", "roomy: answered")


def test_a_router_streams_and_is_cancelled(small: LlamaCppModel):
    for _ in (stream := Router([Route("small", small)]).stream("Write a very long story.", sampling={"max_tokens": 900})): break
    assert stream.reply.finish_reason == "cancelled" and stream.reply.route == ("small: answered",)
    assert not [thread for thread in threading.enumerate() if thread.name == "sagelab stream"]


def sagelab(lab: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sagelab.cli.main", *words], cwd=lab, capture_output=True, text=True, timeout=120)


def test_a_lab_names_its_routes(lab: Path, weights: Path, address: str):
    catalogue = Catalogue(load_settings(lab))
    catalogue.add("smollm2", str(weights))
    catalogue.add("far", f"{address}#far")
    none = sagelab(lab, "ask", "Hello", "-m", "router")
    assert none.returncode == 2 and "[router] routes" in none.stderr
    settings = (lab/"settings.ini").read_text()
    (lab/"settings.ini").write_text(settings.replace("\nroutes =\n", "\nroutes = smollm2, far 0.5 1.5\n"))
    said = json.loads(sagelab(lab, "ask", "Say hello.", "-m", "router", "--max-tokens", "6", "--json").stdout)
    assert said["text"] and said["route"] == ["smollm2: answered"]
    rows = json.loads(sagelab(lab, "model", "routes", "--json").stdout)
    assert [(row["route"], row["asked"], row["hits"], row["money"]) for row in rows] == [("smollm2", 1, 1, 0.0)]
    assert "smollm2" in sagelab(lab, "model", "routes").stdout and len(read_decisions(lab/".sagelab"/"routes.jsonl")) == 1
    with get_router(lab, offline=True) as router: assert [route.name for route in router.routes] == ["smollm2"]


def test_a_router_that_names_a_model_nobody_knows(lab: Path, weights: Path):
    Catalogue(load_settings(lab)).add("smollm2", str(weights))
    settings = (lab/"settings.ini").read_text()
    (lab/"settings.ini").write_text(settings.replace("\nroutes =\n", "\nroutes = smollm2, nobody\n"))
    with pytest.raises(UnknownName, match="nobody"): get_router(lab)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sagelab")]


def test_a_shadow_is_compared_and_never_seen(small: LlamaCppModel, far: EndpointModel):
    shadow = Shadow(far, small)
    share = Annotated[int, Field(ge=0, le=100)]
    reply = shadow.complete("What share of days rise? A number.", share, {"max_tokens": 16})
    chances = shadow.choose(QUESTION.of(NEWS[1][0]), QUESTION.options)
    assert 0 <= reply.parsed <= 100 and reply.model == far.about.id and chances == pytest.approx(far.choose(QUESTION.of(NEWS[1][0]), QUESTION.options))
    assert shadow.complete("Say hello.", sampling={"max_tokens": 8}).text
    report = shadow.report(timeout=60)
    assert [row["kind"] for row in report.rows()] == ["choice", "typed", "answer"] and report.errors == 0 and report.second == "smollm2"
    # The same weights: what they find likely is the same, but for the server's rounding of what is not among its first.
    assert report.rows()[0]["agreement"] == 1.0


ROUTED = """
from sagelab.inference.router import get_router
from sagelab.lab.run import record
with get_router() as router: reply = router.complete("Say a word.", sampling={"max_tokens": 6})
record([], {"answer": {"length": len(reply.text)}}, list(reply.route))
"""


def test_a_run_with_a_router_is_replayed_without_its_models(lab: Path, weights: Path):
    import nbformat
    from sagelab.lab.run import replay, run_notebook
    (lab/"settings.ini").write_text((lab/"settings.ini").read_text().replace("\nroutes =\n", "\nroutes = smollm2\n"))
    settings = load_settings(lab)
    Catalogue(settings).add("smollm2", str(weights))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ROUTED)], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    nbformat.write(book, lab/"nbs"/"experiments"/"route.ipynb")
    run = run_notebook(lab/"nbs"/"experiments"/"route.ipynb", {}, settings=settings)
    assert run.manifest["notes"] == ["smollm2: answered"] and [model["id"] for model in run.manifest["models"]] == ["router(smollm2)"] and len(run.manifest["models"][0]["routes"]["smollm2"]["sha256"]) == 64
    Catalogue(settings).remove("smollm2")
    assert replay(run.run_id, settings=settings).identical
