"""What the data room promises beyond its notebooks: any bars, any kill, any name."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sagelab.core.errors import DataError, SageLabError, UsageError
from sagelab.data.bars import COLUMNS, INTERVALS, as_of, bars_sha256, known_at, open_bars, parse_interval, save_bars, validate_bars
from sagelab.data.files import read_bars_file
from sagelab.data.store import Store

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
EPOCH = pd.Timestamp("2000-01-03", tz="UTC")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

prices = st.floats(min_value=1e-6, max_value=1e9, allow_nan=False)


@st.composite
def any_bars(draw, interval: str | None = None, size: int = 25, gap: int = 40) -> pd.DataFrame:
    "Valid bars of one interval, with gaps, any prices and any volumes."
    interval = interval or draw(st.sampled_from(sorted(INTERVALS)))
    steps = draw(st.lists(st.integers(1, gap), min_size=1, max_size=size))
    length = parse_interval(interval)
    times = pd.DatetimeIndex([EPOCH + length * int(n) for n in np.cumsum(steps)]).as_unit("ns")
    rows = []
    for _ in steps:
        low, first, second, high = sorted(draw(st.tuples(prices, prices, prices, prices)))
        opened, closed = draw(st.permutations([first, second]))
        rows.append([opened, high, low, closed, draw(st.floats(0, 1e15))])
    bars = validate_bars(pd.DataFrame(rows, index=times, columns=list(COLUMNS)))
    bars.attrs = {"symbol": "ANY", "interval": interval}
    return bars


@quick
@given(any_bars())
def test_validate_keeps_valid_bars_and_is_idempotent(bars):
    assert validate_bars(bars).equals(bars) and validate_bars(bars).attrs == bars.attrs


@quick
@given(any_bars(), st.data())
def test_hash_changes_with_any_value_and_any_time(bars, data):
    row, column = data.draw(st.integers(0, len(bars) - 1)), data.draw(st.integers(0, 4))
    other = bars.copy()
    other.iloc[row, column] = np.nextafter(other.iloc[row, column], np.inf)
    later = bars.set_axis(bars.index.where(np.arange(len(bars)) != row, bars.index + pd.Timedelta(1, "ns")))
    assert len({bars_sha256(b) for b in (bars, other, later, bars.iloc[:-1], bars.iloc[1:])}) == (5 if len(bars) > 1 else 4)


@quick
@given(any_bars())
def test_hash_does_not_depend_on_attributes_units_or_column_order(bars):
    same = bars[["volume", "close", "low", "high", "open"]].copy()
    same.attrs = {}
    assert bars_sha256(same) == bars_sha256(bars)


@quick
@given(bars=any_bars())
def test_write_then_read_is_identity(tmp_path_factory, bars):
    store, interval = Store(tmp_path_factory.mktemp("lab") / "market"), bars.attrs["interval"]
    try:
        report = store.write("ANY", interval, bars)
    except DataError as error:  # five bars, each at least 20 hours apart, do not pass for intraday
        assert "a day or more apart" in str(error) and np.diff(bars.index.asi8).min() >= 20 * 3600e9
        return
    again = store.read("ANY")
    assert report.added == len(bars) and again.equals(bars) and again.attrs == bars.attrs and bars_sha256(again) == bars_sha256(bars)
    assert store.verify() == [] and store.write("ANY", interval, bars).files == 0


@quick
@given(bars=any_bars("1h", size=60, gap=10), cut=st.integers(0, 60), overlap=st.integers(0, 10))
def test_two_overlapping_writes_equal_one(tmp_path_factory, bars, cut, overlap):
    store = Store(tmp_path_factory.mktemp("lab") / "market")
    for part in (bars.iloc[cut:], bars.iloc[:cut + overlap]):
        if len(part):
            store.write("ANY", "1h", part)
    assert store.read("ANY").equals(bars)


@quick
@given(any_bars(), st.integers(-100, 2000), st.booleans())
def test_as_of_never_gives_a_later_bar(bars, steps, whole_day):
    interval = bars.attrs["interval"]
    moment = EPOCH + parse_interval(interval) * steps / 2
    asked = moment.date() if whole_day else moment
    limit = pd.Timestamp(moment.date(), tz="UTC") + pd.Timedelta(days=1) if whole_day else moment
    known = as_of(bars, asked, interval)
    assert (known_at(known, interval) <= limit).all() and (known_at(bars.iloc[len(known):], interval) > limit).all()
    if not INTERVALS[interval] < INTERVALS["1d"]:
        assert (known.index + INTERVALS[interval] <= limit).all()


@quick
@given(steps=st.integers(0, 300), whole_day=st.booleans())
def test_a_view_never_gives_a_later_bar(hourly_store, steps, whole_day):
    moment = pd.Timestamp("2017-01-01 20:00Z") + pd.Timedelta(minutes=31) * steps
    asked = moment.date() if whole_day else moment
    limit = pd.Timestamp(moment.date(), tz="UTC") + pd.Timedelta(days=1) if whole_day else moment
    view = hourly_store.as_of(asked)
    try:
        bars = view.read("EURUSD", "1h")
    except DataError as error:
        assert "was known" in str(error) and limit < pd.Timestamp("2017-01-01 23:00Z")
        return
    assert bars.index[-1] <= limit and {s.symbol: s.end for s in view.series()}["EURUSD"] == bars.index[-1]
    assert limit < bars.index[-1] + pd.Timedelta(days=3)


@pytest.fixture(scope="module")
def hourly_store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("lab") / "market")
    store.write("EURUSD", "1h", Store("nowhere", SAMPLES).read("EURUSD").iloc[:200])
    return store


# --- files of others -------------------------------------------------------------------------------------------------

HOUR_FORMS = {
    "iso": ("%Y-%m-%d %H:%M:%S", {"tz": "UTC"}), "iso-t-z": ("%Y-%m-%dT%H:%M:%SZ", {}), "offset": ("%Y-%m-%d %H:%M:%S+00:00", {}), "german": ("%d.%m.%Y %H:%M", {"tz": "UTC"}),
    "american": ("%m/%d/%Y %H:%M", {"tz": "UTC"}), "british": ("%d/%m/%Y %H:%M:%S", {"tz": "UTC"}), "compact": ("%Y%m%d %H%M%S", {"tz": "UTC"}),
    "metatrader": ("%Y.%m.%d %H:%M", {"tz": "UTC"}), "named": ("%d %b %Y %H:%M", {"tz": "UTC", "date_format": "%d %b %Y %H:%M"}),
}


@pytest.mark.parametrize("form", HOUR_FORMS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_round_trip_of_every_date_form(tmp_path, form, separator):
    pattern, arguments = HOUR_FORMS[form]
    bars = Store("nowhere", SAMPLES).read("EURUSD", start="2017-01-09", end="2017-01-27")
    frame = bars.reset_index(names="Date").rename(columns=str.capitalize).assign(Date=bars.index.strftime(pattern))
    frame.to_csv(tmp_path / "bars.csv.gz", sep=separator, index=False)
    again, notes = read_bars_file(tmp_path / "bars.csv.gz", label="close", **arguments)
    assert again.equals(bars) and again.attrs == {"interval": "1h"} and notes == []


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_csv_round_trip_of_epochs(tmp_path, unit):
    bars = Store("nowhere", SAMPLES).read("EURUSD").iloc[:100]
    bars.set_axis(bars.index.as_unit(unit).asi8, axis=0).to_csv(tmp_path / "bars.csv", index_label="timestamp")
    assert read_bars_file(tmp_path / "bars.csv", label="close")[0].equals(bars)


@quick
@given(bars=any_bars())
def test_csv_and_parquet_of_pandas_come_back_exactly(tmp_path_factory, bars):
    folder, interval = tmp_path_factory.mktemp("files"), bars.attrs["interval"]
    bars.to_csv(folder / "bars.csv")
    bars.to_parquet(folder / "bars.parquet")
    try:
        read = [read_bars_file(folder / name, interval=interval, label="close")[0] for name in ("bars.csv", "bars.parquet")]
    except DataError as error:
        assert "a day or more apart" in str(error)
        return
    assert all(again.equals(bars) for again in read)


@pytest.mark.parametrize("column", ["Open", "High", "Low", "Close", "Volume"])
@pytest.mark.parametrize("cell", ["n/a", "", "null", "1,234.5", "--", "inf", "nan"])
def test_a_cell_that_is_no_number_is_named(tmp_path, column, cell):
    frame = pd.DataFrame({"Date": ["2017-01-02", "2017-01-03", "2017-01-04"], "Open": "1", "High": "1", "Low": "1", "Close": "1", "Volume": "1"}, dtype=object)
    frame.loc[1, column] = cell
    frame.to_csv(tmp_path / "prices.csv", index=False)
    with pytest.raises(DataError, match=rf"prices\.csv: line 3: column '{column}'"):
        read_bars_file(tmp_path / "prices.csv")


def test_line_numbers_are_those_of_an_editor(tmp_path):
    (tmp_path / "a.csv").write_text("\n\nDate,Open,High,Low,Close\n\n2017-01-02,1,1,1,1\n\n2017-01-03,1,1,1,x\n\n")
    with pytest.raises(DataError, match="line 7: column 'Close' 'x'"):
        read_bars_file(tmp_path / "a.csv")


@pytest.mark.parametrize("text, words", [
    ("Date,Open,High,Low,Close\n03/04/2017,1,1,1,1\n03/05/2017,1,1,1,1\n", "--date-format %d/%m/%Y"),
    ("Date,Open,High,Low,Close\n2017-01-02 10:00,1,1,1,1\n2017-01-02 11:00,1,1,1,1\n", "--tz UTC or --tz America/New_York"),
    ("Date,Open,High,Low,Adj Close\n2017-01-02,1,1,1,1\n2017-01-03,1,1,1,1\n", "An adjusted close does not fit"),
    ("Date,Open,High,Low,Close\n2017-01-02,1,1,1,1\n2017-01-03,1,0.5,1,1\n", "high 0.5 is below low 1.0"),
    ("Date,Open,High,Low,Close\n2017-01-03,1,1,1,1\n2017-01-02,1,1,1,1\n2017-01-01,1,1,1,1\n", "newest first"),
    ("Date,Open,High,Low,Close\n2017-01-03,1,1,1,1\n2017-01-03,1,1,1,1\n2017-01-04,1,1,1,1\n", "the same time as row 1"),
    ("Date,Open,High,Low,Close\n2017-01-02,-1,1,-1,1\n2017-01-03,1,1,1,1\n", "open is -1; a price is above zero"),
    ("just some text\nand more of it\n", "has no column for time"),
    ("\x00\x01\x02binary", "neither Parquet nor text"),
])
def test_bad_files_are_refused_in_words(tmp_path, text, words):
    (tmp_path / "prices.csv").write_text(text)
    with pytest.raises(SageLabError) as refused:
        read_bars_file(tmp_path / "prices.csv")
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text, day", [
    ("Date,Open,High,Low,Close\n13/04/2017,1,1,1,1\n14/04/2017,1,1,1,1\n", "2017-04-13"), ("Date,Open,High,Low,Close\n04/05/2017,1,1,1,1\n04/13/2017,1,1,1,1\n", "2017-04-05"),
    ("Date,Open,High,Low,Close\n2017-04-13 00:00:00-04:00,1,1,1,1\n2017-04-14 00:00:00-04:00,1,1,1,1\n", "2017-04-13"),
    ("Date,Open,High,Low,Close\n2017-04-13T16:00:00+09:00,1,1,1,1\n2017-04-14T16:00:00+09:00,1,1,1,1\n", "2017-04-13"),
])
def test_daily_bars_keep_their_local_date(tmp_path, text, day):
    (tmp_path / "prices.csv").write_text(text)
    bars, notes = read_bars_file(tmp_path / "prices.csv", interval="1d")
    assert bars.index[0] == pd.Timestamp(day, tz="UTC") and bars.attrs == {"interval": "1d"}


def test_a_doubled_hour_is_refused_and_its_neighbours_are_not(tmp_path):
    for hours, bad in ((("2017-11-05 00:00", "2017-11-05 01:00"), "line 3: 2017-11-05 01:00:00 exists twice"), (("2017-03-12 01:00", "2017-03-12 02:00"), "line 3: 2017-03-12 02:00:00 does not exist"),
                       (("2017-11-05 03:00", "2017-11-05 04:00"), None)):
        (tmp_path / "a.csv").write_text("time,open,high,low,close\n" + "".join(f"{h},1,1,1,1\n" for h in hours))
        if bad is None:
            assert read_bars_file(tmp_path / "a.csv", tz="America/New_York")[0].index[0] == pd.Timestamp("2017-11-05 08:00Z")
            continue
        with pytest.raises(DataError, match=bad):
            read_bars_file(tmp_path / "a.csv", tz="America/New_York")


@pytest.mark.parametrize("kept", [0, 3, 4, 50, 0.5, -1, -9])
def test_truncated_parquet_is_refused_by_name(tmp_path, kept):
    bars = Store("nowhere", SAMPLES).read("SP500").iloc[:50]
    for write in (lambda path: save_bars(path, bars, "SP500", "1d"), lambda path: bars.to_parquet(path)):
        whole = tmp_path / "whole.parquet"
        write(whole)
        content = whole.read_bytes()
        cut = tmp_path / "cut.parquet"
        cut.write_bytes(content[:int(len(content) * kept) if isinstance(kept, float) else kept])
        with pytest.raises(DataError, match="cut.parquet"):
            read_bars_file(cut)
        with pytest.raises(DataError, match="cut.parquet"):
            open_bars(cut)


def test_no_flipped_bit_in_a_bars_file_changes_a_number(tmp_path):
    bars = Store("nowhere", SAMPLES).read("SP500").iloc[:40]
    content = save_bars(tmp_path / "a.parquet", bars, "SP500", "1d").read_bytes()
    random = np.random.default_rng(7)
    refused = 0
    for position in random.integers(0, len(content), 300):
        broken = bytearray(content)
        broken[position] ^= 1 << int(random.integers(8))
        (tmp_path / "a.parquet").write_bytes(broken)
        try:
            assert bars_sha256(open_bars(tmp_path / "a.parquet")[0]) == bars_sha256(bars)
        except DataError as error:
            assert "a.parquet" in str(error)
            refused += 1
    assert refused > 50


# --- the store -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("symbol", ["../x", "..", ".", "a/b", "a\\b", "/etc/passwd", "", " ", "x" * 33, "a\0b", "a\n", "Ä", "~", "-x", "X-1h", "con:1", None])
def test_names_that_lead_out_of_the_store_are_refused(tmp_path, symbol):
    bars = Store("nowhere", SAMPLES).read("SP500").iloc[:5]
    store = Store(tmp_path / "lab" / "market")
    for call in (lambda: store.write(symbol, "1d", bars), lambda: store.read(symbol, "1d")):
        with pytest.raises(UsageError, match="cannot be a symbol"):
            call()
    assert list(tmp_path.rglob("*")) == []


def test_links_that_lead_out_of_the_store_are_refused(tmp_path):
    euro = Store("nowhere", SAMPLES).read("EURUSD").iloc[:10]
    market, outside = tmp_path / "market", tmp_path / "outside"
    outside.mkdir()
    market.mkdir()
    for day in ("2017-01-01", "2017-01-02"):
        (market / day).symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the store"):
        Store(market).write("EURUSD", "1h", euro)
    save_bars(outside / "EURUSD-1h.parquet", euro.iloc[1:], "EURUSD", "1h")
    with pytest.raises(DataError, match="leads out of the store"):
        Store(market).read("EURUSD", "1h")
    assert [path.name for path in outside.iterdir()] == ["EURUSD-1h.parquet"]


def test_nothing_is_written_when_one_bar_disagrees(tmp_path):
    euro = Store("nowhere", SAMPLES).read("EURUSD").iloc[:100]
    store = Store(tmp_path / "market")
    store.write("EURUSD", "1h", euro.iloc[60:70])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    wrong = euro.copy()
    wrong.iloc[65, 4] += 1
    with pytest.raises(DataError, match="1 bars differ"):
        store.write("EURUSD", "1h", wrong)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    assert store.write("EURUSD", "1h", wrong, replace=True).replaced == 1 and store.read("EURUSD").equals(wrong)


def test_market_wins_over_sample(tmp_path):
    store = Store(tmp_path / "market", SAMPLES)
    few = store.read("SP500").iloc[:5]
    store.write("SP500", "1d", few)
    assert store.read("SP500").equals(few) and {s.symbol: s.origin for s in store.series()} == {"SP500": "market", "NASDAQ": "sample", "EURUSD": "sample"}


WRITER = """
import sys, pandas as pd, numpy as np
from sagelab.data.bars import validate_bars
from sagelab.data.store import Store
times = pd.date_range("2000-01-01", periods=24 * 600, freq="h", tz="UTC")
price = 100 + np.sin(np.arange(len(times)))
bars = validate_bars(pd.DataFrame({"open": price, "high": price + 1, "low": price - 1, "close": price, "volume": 1.0}, index=times))
print("ready", flush=True)
Store(sys.argv[1]).write("BIG", "1h", bars)
"""


def test_kill_in_the_middle_of_a_write_leaves_whole_files_only(tmp_path):
    market = tmp_path / "market"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(market)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    until = time.monotonic() + 60
    while len(list(market.glob("*/*.parquet"))) < 20 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = sorted(market.glob("*/*.parquet"))
    assert 20 <= len(written) < 600
    for path in written:
        assert len(open_bars(path)[0]) == 24
    assert all("left by a writer" in problem for problem in Store(market).verify())
    subprocess.run([sys.executable, "-c", WRITER, str(market)], check=True, stdout=subprocess.DEVNULL)
    bars = Store(market).read("BIG")
    assert len(bars) == 14_400 and Store(market).verify() == [] and list(market.rglob("*.tmp")) == []


def test_two_writers_at_once_lose_nothing(tmp_path):
    code = WRITER.replace('periods=24 * 600', 'periods=24 * 20').replace(
        'Store(sys.argv[1]).write("BIG", "1h", bars)', '[Store(sys.argv[1]).write("BIG", "1h", bars.iloc[i::12]) for i in range(int(sys.argv[2]), 12, 3)]')
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(k)], stdout=subprocess.DEVNULL) for k in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(Store(tmp_path).read("BIG")) == 24 * 20 and Store(tmp_path).verify() == []


def test_reading_a_year_of_day_files_takes_under_a_second(tmp_path):
    store = Store(tmp_path / "market", SAMPLES)
    euro = store.read("EURUSD")
    store.write("EURUSD", "1h", euro)
    used = min(_cpu(lambda: store.read("EURUSD")) for _ in range(3))
    assert used < 1.0


def _cpu(call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


# --- the samples -----------------------------------------------------------------------------------------------------

def test_samples_are_what_their_manifest_says():
    store = Store("nowhere", SAMPLES)
    assert store.verify() == [] and {(s.symbol, s.interval, s.bars, s.licence) for s in store.series()} == {
        ("SP500", "1d", 5031, "NCSA"), ("NASDAQ", "1d", 5031, "NCSA"), ("EURUSD", "1h", 6225, "MIT")}


def test_sample_licences_are_shipped_beside_them():
    import json
    for entry in json.loads((SAMPLES / "manifest.json").read_text())["series"]:
        assert "Permission is hereby granted" in (SAMPLES / entry["licence"]["file"]).read_text()


def test_the_euro_week_follows_new_york():
    "The source names no zone; read as UTC its weeks begin at 17:00 in New York all year, summer and winter."
    euro = Store("nowhere", SAMPLES).read("EURUSD")
    opens = (euro.index - pd.Timedelta(hours=1))[np.diff(euro.index.asi8, prepend=0) > 40 * 3600 * 10**9].tz_convert("America/New_York")
    assert sum(opens.hour == 17) >= 51 and set(opens.strftime("%a")) == {"Sun"}


def test_samples_can_be_made_again(tmp_path):
    pytest.importorskip("arch")
    pytest.importorskip("gym_anytrading")
    import json
    import shutil
    shutil.copy(SAMPLES / "make_samples.py", tmp_path)
    for _ in range(2):
        subprocess.run([sys.executable, str(tmp_path / "make_samples.py")], check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
        made, kept = (json.loads((folder / "manifest.json").read_text())["series"] for folder in (tmp_path, SAMPLES))
        assert [entry["content_sha256"] for entry in made] == [entry["content_sha256"] for entry in kept]


def test_making_samples_without_the_packages_says_what_to_install(tmp_path):
    import shutil
    shutil.copy(SAMPLES / "make_samples.py", tmp_path)
    hide = "import importlib.metadata as m, runpy, sys\ndef gone(name): raise m.PackageNotFoundError(name)\nm.distribution = gone\nrunpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hide, str(tmp_path / "make_samples.py")], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'arch==8.0.0'" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["make_samples.py"]
