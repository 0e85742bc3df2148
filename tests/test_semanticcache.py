"The semantic cache: what is never taken for the same question, what is, and a store that survives time, other processes, kills and damage."
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagelab.core.errors import ModelError
from sagelab.inference.base import Backend, ScriptedModel
from sagelab.inference.cassette import Cassette
from sagelab.inference.embedding import EmbeddingConfig, EmbeddingModel
from sagelab.inference.facts import difference, facts
from sagelab.inference.semanticcache import CacheConfig, SemanticCache

QUESTION, AGAIN = "What was Apple's revenue in 2023?", "How much revenue did Apple report for 2023?"
NAMES = st.sampled_from("Apple Microsoft Siemens AAPL MSFT BRK.A BRK.B Shell Nestle NVDA US IT ALL".split())
WORDS = st.sampled_from(["What was {n}'s revenue in {y}?", "Did {n} beat estimates by {v}% in {y}?", "Why did {n} fall {v}% on {d}?", "Should I buy {n} at ${v} before {d}?", "Tell me {n}'s debt at the end of {y}, please."])
DAYS = st.dates(date(1990, 1, 1), date(2030, 12, 31))


def same(one: str, other: str) -> bool: return not difference(facts(one, date(2024, 1, 5)), facts(other, date(2024, 1, 5)))


@given(WORDS, NAMES, NAMES, st.integers(1, 10**6), st.integers(1, 10**6), DAYS, DAYS)
@settings(deadline=None, max_examples=300)
def test_another_number_day_or_name_is_another_question(words: str, name: str, other: str, value: int, more: int, day: date, later: date):
    def say(n=name, v=value, d=day): return words.format(n=n, v=v, d=d.isoformat(), y=d.year)
    assert same(say(), say())
    if name != other: assert not same(say(), say(n=other))
    if value != more and "{v}" in words: assert not same(say(), say(v=more))
    if day.year != later.year or (day != later and "{d}" in words): assert not same(say(), say(d=later))


@given(st.decimals(0, 10**6, places=2), DAYS)
@settings(deadline=None, max_examples=200)
def test_a_number_or_a_day_may_be_written_otherwise(value, day: date):
    assert same(f"Is {value} % on {day} much?", f"Is {value:,}% on {day:%B} {day.day}, {day.year} much?")
    assert same(f"Is ${value}bn on {day} much?", f"Is {value} billion dollars on {day.day} {day:%b} {day.year} much?")


@given(st.sampled_from([("Did {} beat estimates?", "Did {} not beat estimates?"), ("Which banks in {} do pay dividends?", "Which banks in {} don't pay dividends?"), ("Has {} recovered since 2008?", "Has {} never recovered since 2008?"),
                        ("Should I buy {}?", "Should I not buy {}?"), ("Is {} a member of the EU?", "Isn't {} a member of the EU?"), ("Did {} deliver on its plan?", "Did {} fail to deliver on its plan?"), ("Can {} grow with debt?", "Can {} grow without debt?")]), NAMES)
@settings(deadline=None)
def test_a_negation_is_another_question(words: tuple[str, str], name: str):
    plain, negated = (wording.format(name) for wording in words)
    assert same(plain, plain) and same(negated, negated) and not same(plain, negated)


def test_questions_that_are_near_are_told_apart():
    pairs = [line.split("|") for line in (Path(__file__).parent/"near_questions.txt").read_text(encoding="utf-8").splitlines() if "|" in line]
    assert len(pairs) > 100 and not [pair for pair in pairs if same(*pair)] and not [one for one, _ in pairs if not same(one, one)]


def test_who_does_what_to_whom():
    assert same("Did Salesforce acquire Slack?", "Was Slack acquired by Salesforce?")
    for one, other in (("Did Salesforce acquire Slack?", "Did Slack acquire Salesforce?"), ("Did Salesforce acquire Slack?", "Was Salesforce acquired by Slack?"), ("Who bought Slack?", "Who did Slack buy?"),
                       ("How do oil prices affect airline margins?", "How do airline margins affect oil prices?"), ("Did revenue rise and profit fall?", "Did revenue fall and profit rise?"),
                       ("Is gold riskier than silver?", "Is silver riskier than gold?"), ("Who is the CEO of Intel?", "Who was the CEO of Intel?"), ("What moved us?", "What moved US?")): assert not same(one, other), (one, other)
    assert difference(facts("What moved today?", date(2024, 1, 5)), facts("What moved today?", date(2024, 1, 6))).startswith("today")


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[EmbeddingModel]:
    pytest.importorskip("chromadb", reason="no chromadb found: pip install 'sagelab[prompts]'") if os.environ.get("CI") != "true" else None
    with EmbeddingModel(EmbeddingConfig(path=minilm, name="minilm")) as model: yield model


@pytest.fixture
def cache(tmp_path: Path, embedder: EmbeddingModel) -> Iterator[SemanticCache]:
    with SemanticCache(tmp_path/"cache", embedder, CacheConfig(ttl_seconds=100.0), now=lambda: clock[0]) as cache:
        clock = cache.clock = [1_700_000_000.0]
        yield cache


def model(*answers: str, schema=None) -> ScriptedModel: return ScriptedModel(answers or ["383"])


def test_the_same_in_other_words_and_nothing_else(cache: SemanticCache):
    asked = cache.wrap(inner := model("383", "391", "a", "b", "c", "d"))
    first = asked.complete(QUESTION)
    again = asked.complete(AGAIN)
    assert (first.text, first.source, again.text, again.usage.completion) == ("383", "", "383", 0) and again.source.startswith("semantic cache ")
    with asked.stream(AGAIN) as stream: assert list(stream) == ["383"] and stream.reply.source
    assert asked.complete(QUESTION.replace("2023", "2024")).text == "391"
    for more in ({"sampling": {"seed": 1}}, {"sampling": {"temperature": 0.5}}): assert not asked.complete(QUESTION, **more).source
    assert not asked.complete([{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]).source
    assert len(inner.requests) == 5 and cache.counts == {"hits": 2, "misses": 5}
    assert not cache.wrap(other := ScriptedModel(["x"], about=type(inner.about)("other", "scripted"))).complete(QUESTION).source and other.requests
    log = [json.loads(line) for line in (cache.folder/"log.jsonl").read_text().splitlines()]
    assert [line["hit"] for line in log].count(True) == 2 and "Apple" not in (cache.folder/"log.jsonl").read_text() and log[3]["why"] == "days"
    assert (cache.folder.stat().st_mode & 0o077) == 0


def test_a_schema_is_part_of_the_question_and_what_does_not_fit_is_not_kept(cache: SemanticCache):
    asked = cache.wrap(inner := model("many", "383"))
    assert (asked.complete(QUESTION, schema=int).parsed, len(cache.entries())) == (383, 1)
    inner._answers = ["384"]
    assert asked.complete(QUESTION, schema=int).parsed == 384, "the first attempt did not fit, so it was not kept"
    known = asked.complete(AGAIN, schema=int)
    assert known.parsed == 384 and known.source and not asked.complete(AGAIN).source


def test_time_and_forgetting(cache: SemanticCache):
    asked = cache.wrap(model("1", "2", "3", "4"))
    asked.complete(QUESTION)
    cache.clock[0] += 99
    assert asked.complete(AGAIN).source
    cache.clock[0] += 2
    assert not asked.complete(AGAIN).source, "it is too old"
    assert cache.forget(older_than=50) == 1 and cache.forget(model="nobody") == 0 and cache.forget(where=lambda entry: "report" in entry.question) == 1 and cache.entries() == []
    asked.complete("What moved the market today?")
    assert asked.complete("What moved the market today?").source
    cache.config = CacheConfig(ttl_seconds=0)
    cache.clock[0] += 86_400
    assert not asked.complete("What moved the market today?").source, "another day"
    cache.config = CacheConfig(limit=10)
    for year in range(2000, 2025): asked.complete(QUESTION.replace("2023", str(year)))
    assert len(cache.entries()) <= 10 and cache.forget() > 0 and cache.entries() == []


def test_a_run_is_left_alone_unless_asked(cache: SemanticCache, tmp_path: Path):
    tape = Cassette(model("one", "two"), tmp_path/"cassette.jsonl")
    assert cache.wrap(tape) is tape
    asked = cache.wrap(tape, in_runs=True)
    assert asked.complete(QUESTION).text == "one" == asked.complete(AGAIN).text
    replay = Cassette(None, tmp_path/"cassette.jsonl", tape.about)
    assert cache.wrap(replay, in_runs=True) is replay and [replay.complete(QUESTION).text, replay.complete(AGAIN).text] == ["one", "one"]


WRITER = """
import sys
from pathlib import Path
from sagelab.inference.base import ScriptedModel
from sagelab.inference.embedding import EmbeddingConfig, EmbeddingModel
from sagelab.inference.semanticcache import CacheConfig, SemanticCache
cache = SemanticCache(sys.argv[1], EmbeddingModel(EmbeddingConfig(path=Path(sys.argv[2]), name="minilm")), CacheConfig(), now=lambda: 1_700_000_000.0)
asked = cache.wrap(ScriptedModel(["theirs"]))
for year in range(1900, 2100):
    asked.complete(f"What was Tesla's revenue in {year}?")
    print(year, flush=True)
"""


def test_two_processes_and_a_kill(cache: SemanticCache, minilm: Path):
    asked = cache.wrap(model("ours"))
    asked.complete(QUESTION)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(cache.folder), str(minilm)], stdout=subprocess.PIPE, text=True)
    try:
        for year in range(1900, 1905):
            assert writer.stdout.readline() == f"{year}\n"
            assert asked.complete(f"What was Tesla's revenue in {year}?").text == "theirs" and asked.complete(AGAIN).text == "ours"
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    assert asked.complete("How much revenue did Tesla report for 1903?").text == "theirs"
    assert not asked.complete("What was Tesla's revenue in 2099?").source and len(cache.entries()) >= 7


def test_a_damaged_store_says_so_and_can_be_thrown_away(cache: SemanticCache, embedder: Backend):
    cache.wrap(model()).complete(QUESTION)
    cache.close()
    next(cache.folder.glob("store-*/chroma.sqlite3")).write_bytes(b"not a database" * 100)
    with pytest.raises(ModelError, match="is damaged.*SemanticCache.delete"): cache.wrap(model()).complete(QUESTION)
    SemanticCache.delete(cache.folder)
    with SemanticCache(cache.folder, embedder) as anew: assert not anew.wrap(model()).complete(QUESTION).source and len(anew.entries()) == 1


def test_nothing_leaves_the_machine(tmp_path: Path, minilm: Path):
    "Not even to this machine: no socket is connected but by llama.cpp, which is none of Python's."
    code = ("import sys; seen = []; sys.addaudithook(lambda event, given: seen.append((event, given)) if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto') else None)\n"
            + WRITER.replace("2100", "1903") + "\nasked.complete('How much revenue did Tesla report for 1901?')\ncache.close()\nprint('seen', seen)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"cache"), str(minilm)], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("seen []\n"), done.stdout + done.stderr
