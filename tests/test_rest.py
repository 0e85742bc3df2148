"""`rest` against a real HTTP server on this machine that pages, throttles, stalls, lies and dies."""
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest

import local_server
from local_server import LocalServer, cut, drip, gone, running, says
from sagelab.core.errors import DataError, SourceError, UnknownName, UsageError
from sagelab.core.secrets import install_redaction, load_secrets
from sagelab.data.bars import parse_time, validate_bars
from sagelab.data.rest import RestConfig, RestSource
from sagelab.data.sources import get_source
from sagelab.data.store import Store

EURO = Store("nowhere", Path(__file__).parents[1] / "data" / "samples").read("EURUSD").iloc[:100]
START, END = EURO.index[0], EURO.index[-1]
HOUR = 3_600_000
TOKEN = "s3cret/key+value==42"
ROWS = [[int(t.value) // 10**6 - HOUR, *map(float, row)] for t, *row in EURO.itertuples()]  # labelled by the open, as services do


class Handler(local_server.Handler):
    def do_GET(self):
        query = {key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()}
        self.server.asked.append(query)
        self.server.times.append(time.monotonic())
        self.server.headers.append(dict(self.headers))
        trouble = self.server.script.get(len(self.server.asked), self.server.script.get("always"))
        if trouble is not None:
            return trouble(self)
        self.reply(200, self.server.answer(query))


class Service(LocalServer):
    "Hands out ROWS by any of the three page styles; `script` says what goes wrong, by number of request."
    handler = Handler

    def __init__(self):
        super().__init__()
        self.asked, self.times, self.headers, self.script, self.rows, self.size = [], [], [], {}, ROWS, 20

    def answer(self, query: dict) -> dict | list:
        if "page" in query:
            first = self.size * (int(query["page"]) - 1)
            return {"data": self.rows[first:first + self.size]}
        if "cursor" in query or query.get("style") == "cursor":
            first = int(query.get("cursor", "c0")[1:])
            return {"data": self.rows[first:first + self.size], "meta": {"next": f"c{first + self.size}" if first + self.size < len(self.rows) else None}}
        found = [row for row in self.rows if int(query.get("start", 0)) <= row[0] <= int(query.get("end", 2**62))]
        return {"data": found[:self.size]}


def hang(handler):
    time.sleep(3)


@pytest.fixture
def service():
    with running(Service) as server: yield server


@pytest.fixture
def make(service, tmp_path):
    def make(secrets=None, **changes):
        config = dict(url=f"{service.address}/v1/candles", pages="page", limit=20, rows="data", next_cursor="meta.next", requests_per_second=2000, retries=3, timeout_seconds=1,
                      backoff_seconds=0.001, state=tmp_path / "fetch")
        return RestSource(RestConfig(**{**config, **changes}), secrets)
    return make


def fetch(source, start=START, end=END):
    return source.fetch("EURUSD", "1h", start, end)


def waiting(tmp_path) -> list[str]:
    return [path.name for path in (tmp_path / "fetch").iterdir()] if (tmp_path / "fetch").exists() else []


# --- pages -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("style", ["page", "cursor", "time"])
@pytest.mark.parametrize("size", [7, 20, 50, 100, 1000])
def test_every_page_style_gives_every_bar_once(service, make, tmp_path, style, size):
    service.size = size
    bars = fetch(make(pages=style, limit=size, fixed={"style": style}))
    assert bars.equals(EURO) and bars.attrs == {"symbol": "EURUSD", "interval": "1h"} and waiting(tmp_path) == []


@pytest.mark.parametrize("style", ["page", "time"])
def test_without_a_limit_an_empty_page_is_the_last(service, make, style):
    assert fetch(make(pages=style, limit=None), end=None).equals(EURO)
    assert service.answer(service.asked[-1]) == {"data": []}


def test_a_range_is_cut_to_what_was_asked(service, make):
    day = fetch(make(pages="time"), "2017-01-03", "2017-01-03")
    assert len(day) == 24 and day.index[0] == parse_time("2017-01-03") and day.equals(EURO["2017-01-03":"2017-01-03"])
    assert len(service.asked) == 2 and int(service.asked[0]["start"]) == parse_time("2017-01-03").value // 10**6 - HOUR


def test_rows_may_be_objects_of_text_labelled_by_the_close(service, make):
    names = dict(zip(("time", "open", "high", "low", "close"), ("when", "o", "h", "l", "c")))
    service.rows = [dict(zip(names.values(), [t.isoformat(), *map(str, row[:4])])) for t, *row in EURO.itertuples()]
    bars = fetch(make(fields=names, time_unit="iso", label="close"))
    assert bars[["open", "high", "low", "close"]].equals(EURO[["open", "high", "low", "close"]]) and (bars["volume"] == 0).all()


def test_symbol_and_interval_may_stand_in_the_address_and_cannot_break_out_of_it(service, make):
    source = make(url=f"{service.address}/v1/{{symbol}}/{{interval}}", intervals={"1h": "60m"})
    assert source.fetch("../admin?x=1#/EUR USD", "1h").equals(EURO) and "symbol" not in service.asked[0] and "x" not in service.asked[0]
    with pytest.raises(UsageError):
        source.fetch("..", "1h")


def test_unsorted_and_overlapping_pages_are_put_in_order(service, make):
    service.rows = [*ROWS[50:], *ROWS[40:60], *ROWS[:50]]
    assert fetch(make()).equals(EURO)


def test_a_bar_that_changes_between_pages_is_refused(service, make):
    service.rows = [*ROWS[:40], [*ROWS[10][:5], 1.0], *ROWS[40:]]
    with pytest.raises(SourceError, match="page 3 has another bar for 2017-01-0"):
        fetch(make())


@pytest.mark.parametrize("label, interval, kept", [("open", "1h", 9), ("close", "1h", 10), ("open", "1d", 9), ("close", "1d", 9)])
def test_a_bar_that_is_not_over_is_left_out(service, make, label, interval, kept):
    now = pd.Timestamp.now("UTC").floor({"1h": "h", "1d": "D"}[interval])
    length = {"1h": 3600, "1d": 86400}[interval]
    service.rows = [[int(now.timestamp() - length * n) * 1000, 1.0, 1.0, 1.0, 1.0, 1.0] for n in range(9, -1, -1)]
    assert len(make(label=label).fetch("X", interval)) == kept


# --- hiccups ---------------------------------------------------------------------------------------------------------

HICCUPS = {"500": says(500, "oops"), "503": says(503), "408": says(408), "gone": gone, "cut": cut, "half": says(200, '{"data": [[14833'), "html": says(200, "<html>busy"),
           "429": says(429, Retry_After="0"), "latin": lambda handler: (handler.send_response(200), handler.send_header("Content-Length", "2"), handler.end_headers(), handler.wfile.write(b"\xff\xfe"))}


@pytest.mark.parametrize("style", ["page", "cursor", "time"])
@pytest.mark.parametrize("name", HICCUPS)
def test_hiccups_pass(service, make, tmp_path, style, name):
    service.script = {n: HICCUPS[name] for n in (1, 2, 5, 7, 8, 9)}
    assert fetch(make(pages=style, fixed={"style": style})).equals(EURO) and waiting(tmp_path) == []


@pytest.mark.parametrize("trouble", [hang, drip])
def test_a_service_that_stalls_is_given_up_on_in_time(service, make, trouble):
    service.script = {2: trouble}
    started = time.monotonic()
    assert fetch(make(timeout_seconds=0.3)).equals(EURO) and time.monotonic() - started < 2.5


@pytest.mark.parametrize("name", HICCUPS)
def test_hiccups_that_do_not_pass_end_the_fetch_in_words(service, make, tmp_path, name):
    service.script = {n: HICCUPS[name] for n in range(3, 100)}
    with pytest.raises(SourceError) as refused:
        fetch(make())
    message = str(refused.value)
    assert f"{service.address}/v1/candles, page 3: " in message and "after 4 tries" in message and "pages that came are kept" in message and len(service.asked) == 6
    service.script = {}
    assert fetch(make()).equals(EURO) and service.asked[6]["page"] == "3" and waiting(tmp_path) == []


def test_retry_after_is_honoured(service, make):
    service.script = {2: says(429, Retry_After="1")}
    assert fetch(make(backoff_seconds=0)).equals(EURO)
    assert 1.0 <= service.times[2] - service.times[1] < 2.0


def test_a_pause_that_is_too_long_ends_the_fetch_at_once(service, make):
    service.script = {2: says(429, Retry_After="4000")}
    with pytest.raises(SourceError, match="page 2: status 429, after 1 try; it asks to wait 4000 s"):
        fetch(make())


def test_pauses_grow_and_jitter_is_seeded(service, make):
    waits = []
    for seed in (1, 1, 2):
        service.asked.clear(), service.times.clear()
        service.script = {n: says(500) for n in (1, 2, 3)}
        fetch(make(seed=seed, backoff_seconds=0.1))
        waits.append(np.diff(service.times[:4]))
    assert all(0.05 <= wait[0] <= 0.2 and 0.1 <= wait[1] <= 0.3 and 0.2 <= wait[2] <= 0.5 for wait in waits)
    assert np.abs(waits[0] - waits[1]).max() < 0.05 < np.abs(waits[0] - waits[2]).max() + 0.045


def test_the_pace_is_kept_between_all_requests(service, make):
    service.script = {2: says(500), 4: gone}
    source = make(requests_per_second=20)
    fetch(source)
    fetch(source)
    assert len(service.times) == 14 and np.diff(service.times).min() > 0.02 and 0.6 < service.times[-1] - service.times[0] < 10


# --- services that lie -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("trouble, words", [
    (says(401, "no"), "status 401"), (says(404), "status 404. Try: check the address and the symbol"), (says(400), "status 400"), (says(204), "status 204"),
    (says(200, "[]"), "there is no 'data' in the answer (a list of 0)"), (says(200, '{"error": "limit"}'), "(an object with error)"),
    (says(200, '{"data": {}}'), "not a list of rows"), (says(200, '{"data": [[1]]}'), "row 1: there is no 1 for open"), (says(200, '{"data": [[1, NaN, 1, 1, 1, 1]]}'), "not finite"),
    (says(200, '{"data": [[1e400, 1, 1, 1, 1, 1]]}'), "the time 'inf' is not in ms"), (says(200, '{"data": [["x", 1, 1, 1, 1, 1]]}'), "the time 'x' is not in ms"),
    (says(200, '{"data": [true]}'), "row 1"), (says(200, "[" * 100_000), "page 1: "), (says(200, '{"data": [[1, 1' + "0" * 5000 + ', 1, 1, 1, 1]]}'), "page 1: "),
    (says(302, Location="http://127.0.0.2/steal"), "redirects to another host, 127.0.0.2"), (says(302, Location="https://example.com/"), "redirects to another host, example.com"),
    (says(302, Location="/v1/candles?page=1"), "redirects in a circle"), (says(302, Location="http://["), "page 1: "),
])
def test_nonsense_is_refused_in_words(service, make, trouble, words):
    service.script = {"always": trouble}
    with pytest.raises(SourceError) as refused:
        fetch(make(retries=0))
    assert words in str(refused.value) and service.address in str(refused.value) and "page 1" in str(refused.value)


def test_a_redirect_on_the_same_host_is_followed(service, make):
    service.script = {1: says(307, Location="/v2/candles?page=1")}
    assert fetch(make()).equals(EURO)


@pytest.mark.parametrize("style, answer", [("page", lambda query: {"data": ROWS[:20]}), ("time", lambda query: {"data": ROWS[:20]}),
                                           ("cursor", lambda query: {"data": ROWS[:20], "meta": {"next": "c7"}}), ("cursor", lambda query: {"data": [], "meta": {"next": "c7"}})])
def test_a_page_that_repeats_for_ever_is_noticed(service, make, style, answer):
    service.answer = answer
    with pytest.raises(SourceError, match="repeats itself"):
        fetch(make(pages=style))
    assert len(service.asked) <= 3


def test_endless_pages_stop_at_max_pages_and_are_kept(service, make):
    with pytest.raises(SourceError, match="more than 3 pages. Try: a shorter range, or a larger max_pages"):
        fetch(make(max_pages=3))
    assert fetch(make(max_pages=6)).equals(EURO) and [query["page"] for query in service.asked] == list("123456")


def test_an_answer_that_never_ends_is_cut_off(service, make):
    service.script = {"always": says(200, " " * 2_000_000)}
    with pytest.raises(SourceError, match="larger than 1 MB"):
        fetch(make(max_page_mb=1))


def test_no_bars_and_impossible_bars_are_refused_and_not_remembered(service, make, tmp_path):
    service.rows = []
    with pytest.raises(SourceError, match="EURUSD: no 1h bars came"):
        fetch(make())
    service.rows = [[*ROWS[0][:2], 0.5, *ROWS[0][3:]]]
    with pytest.raises(DataError, match="high 0.5 is below"):
        fetch(make())
    assert waiting(tmp_path) == []
    service.rows = ROWS
    assert fetch(make()).equals(EURO)


def test_a_service_that_is_not_there(make):
    with pytest.raises(SourceError, match=r"page 1: no connection \(ConnectError\), after 2 tries"):
        fetch(make(url="http://127.0.0.1:9/x", retries=1))


# --- secrets ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def secrets(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "secrets.env").write_text(f'DATA_KEY="{TOKEN}"\n')
    return load_secrets(tmp_path)


@pytest.mark.parametrize("trouble", [None, says(401, TOKEN), says(500, TOKEN), says(200, json.dumps({TOKEN: 1})), gone])
def test_the_secret_is_in_the_header_and_nowhere_else(service, make, secrets, tmp_path, caplog, trouble):
    caplog.set_level(logging.DEBUG)
    service.script = {3: trouble, 4: trouble} if trouble else {}
    source, said = make(secrets, token="DATA_KEY", retries=1), ""
    try:
        fetch(source)
    except SourceError as error:
        said = str(error) + "".join(traceback.format_exception(error))
    assert bool(said) == (trouble is not None)
    assert {headers["Authorization"] for headers in service.headers} == {f"Bearer {TOKEN}"}
    journals = "".join(path.read_text() for path in (tmp_path / "fetch").iterdir())
    for text in (said, caplog.text, journals, repr(source.config), repr(source), str(service.asked)):
        assert TOKEN not in text and "s3cret" not in text


def test_a_service_that_sends_the_secret_back_in_a_header_puts_it_into_no_log(service, make, secrets, caplog):
    caplog.set_level(logging.DEBUG)
    service.script = {1: says(302, Location=f"https://example.com/?k={TOKEN}")}
    undo = install_redaction(secrets)
    try:
        with pytest.raises(SourceError, match="redirects to another host, example.com"):
            fetch(make(secrets, token="DATA_KEY"))
    finally:
        undo()
    assert "example.com" in caplog.text and TOKEN not in caplog.text


def test_a_token_is_not_carried_to_another_host(make, secrets, service):
    other = Service()
    threading.Thread(target=other.serve_forever, daemon=True).start()
    service.script = {1: says(302, Location=f"{other.address}/v1/candles")}
    with pytest.raises(SourceError, match="redirects to another host"):
        fetch(make(secrets, token="DATA_KEY"))
    assert other.asked == []
    other.shutdown()


def test_query_values_are_in_no_error(make, service):
    service.script = {"always": says(404)}
    with pytest.raises(SourceError) as refused:
        fetch(make(url=f"{service.address}/v1?apikey=hidden1", fixed={"apikey2": "hidden2"}))
    assert "hidden" not in str(refused.value) and service.asked[0]["apikey"] == "hidden1"


def test_a_missing_secret_is_named_before_anything_is_sent(make, secrets, service):
    with pytest.raises(UnknownName, match="Did you mean 'DATA_KEY'"):
        fetch(make(secrets, token="DATA_KYE"))
    assert service.asked == []


@pytest.mark.parametrize("url", ["http://example.com/x", "http://10.0.0.1/x", "http://localhost.example.com/x", "http://127.0.0.1@example.com/x", "http://user:pass@localhost/x", "file:///etc/passwd", "https:///x", "x"])
def test_addresses_that_are_not_safe_are_refused(url):
    with pytest.raises(UsageError, match="source 'rest'"):
        get_source("rest", url=url)


@pytest.mark.parametrize("url, more", [("http://127.0.0.1/x", {}), ("http://[::1]:80/x", {}), ("http://localhost/x", {}), ("https://example.com/x", {}), ("http://10.0.0.1/x", {"allow_insecure": True})])
def test_addresses_that_are_safe_are_taken(url, more):
    assert RestConfig(url=url, **more).url == url


# --- resume ----------------------------------------------------------------------------------------------------------

FETCHER = """
import json, sys
from pathlib import Path
from sagelab.data.rest import RestConfig, RestSource
print("ready", flush=True)
RestSource(RestConfig(**json.loads(sys.argv[1]))).fetch("EURUSD", "1h", sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("style", ["page", "cursor", "time"])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_fetch_goes_on_where_it_was(service, make, tmp_path, style, torn):
    service.size = 5
    source = make(pages=style, limit=5, fixed={"style": style}, requests_per_second=40)
    process = subprocess.Popen([sys.executable, "-c", FETCHER, source.config.model_dump_json(), START.isoformat(), END.isoformat()], stdout=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(service.asked) < 8 and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    journal, = (tmp_path / "fetch").iterdir()
    whole = journal.read_bytes().count(b"\n")
    assert 6 <= whole < 20
    if torn:
        journal.write_bytes(journal.read_bytes() + b'{"fetched":17,"next":')
    before = len(service.asked)
    bars = fetch(source)
    assert bars.equals(EURO) and len(service.asked) - before == (20 if style == "cursor" else 21) - whole and waiting(tmp_path) == []


def test_another_request_does_not_take_the_pages_of_this_one(service, make, tmp_path):
    service.script = {3: says(404)}
    with pytest.raises(SourceError):
        fetch(make())
    assert len(waiting(tmp_path)) == 1
    service.script = {}
    for other in (make(fixed={"side": "bid"}), make(url=f"{service.address}/v2")):
        service.asked.clear()
        assert fetch(other).equals(EURO) and service.asked[0]["page"] == "1"
    service.asked.clear()
    assert fetch(make(retries=0, requests_per_second=500, seed=9)).equals(EURO) and service.asked[0]["page"] == "3" and waiting(tmp_path) == []


def test_an_altered_journal_is_refused_by_name(service, make, tmp_path):
    service.script = {4: says(404)}
    with pytest.raises(SourceError):
        fetch(make())
    journal, = (tmp_path / "fetch").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"nonsense\n" + lines[2])
    with pytest.raises(SourceError, match=f"{journal.name} line 2 was altered. Try: delete the file"):
        fetch(make())


def test_the_same_fetch_twice_at_once_is_refused(service, make):
    service.script = {1: hang}
    first = threading.Thread(target=lambda: fetch(make(timeout_seconds=5, retries=3)), daemon=True)
    first.start()
    while not service.asked:
        time.sleep(0.005)
    with pytest.raises(SourceError, match="fetched by another process"):
        fetch(make())
    first.join(10)


def test_a_full_disk_keeps_the_pages_before(service, make, tmp_path, monkeypatch):
    source, calls = make(), []
    def full(handle):
        calls.append(handle)
        if len(calls) == 3: raise OSError(28, "No space left on device")
    monkeypatch.setattr("sagelab.data.rest.os.fsync", full)
    with pytest.raises(Exception, match="No space left on device. The pages before are kept"):
        fetch(source)
    assert fetch(source).equals(EURO)


# --- from the lab ----------------------------------------------------------------------------------------------------

def test_pace_patience_and_secrets_come_from_the_lab(service, secrets, tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[lab]\n[data]\nrequests_per_second = 1000\nretries = 0\n")
    monkeypatch.chdir(tmp_path)
    source = get_source("rest", url=f"{service.address}/v1", pages="page", limit=20, rows="data", token="DATA_KEY")
    assert fetch(source).equals(EURO) and service.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    service.script = {"always": says(500)}
    with pytest.raises(SourceError, match="after 1 try"):
        fetch(source)
    assert len(list((tmp_path / ".sagelab" / "fetch").iterdir())) == 1


def test_what_was_fetched_goes_into_the_store_as_it_is(make, tmp_path):
    bars = fetch(make())
    store = Store(tmp_path / "market")
    store.write("EURUSD", "1h", bars, "rest")
    assert store.read("EURUSD").equals(validate_bars(bars))
