"The causality guard against a suite of leaks and of honest strategies: every leak found, no false alarm, nothing left behind."
import builtins
import contextlib
import gc
import hashlib
import importlib.util
import io
import json
import mmap
import os
import shutil
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sagelab.core.errors import Stopped, StrategyError, UnknownName, UsageError
from sagelab.core.stop import open_latch
from sagelab.data.store import load_bars
from sagelab.lab.causality import check_causality
from sagelab.lab.pipeline import Causality, causality_figure, check_pipeline
from sagelab.strategy.base import Decision, Strategy
from sagelab.strategy.registry import get_strategy
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest

SUITE = sorted(Path(__file__).parent.joinpath("leaks").glob("*.py"))
LEAKS, CLEAN = ([path.stem for path in SUITE if path.stem.startswith(kind)] for kind in ("leak_", "clean_"))
BUILT_IN = ("buy_and_hold", "mean_reversion_scalper", "momentum_scalper", "sma_cross")


@pytest.fixture(autouse=True)
def in_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def bars_of(symbol: str) -> pd.DataFrame:
    "The bars that the suite runs on."
    return load_bars(symbol).iloc[:1000]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    "A folder with the suite and, beside it, every kind of file that it reads."
    folder = tmp_path_factory.mktemp("desk")
    with contextlib.chdir(repository): daily, hourly = bars_of("SP500"), bars_of("EURUSD")
    for path in SUITE: shutil.copy(path, folder)
    table = daily.rename_axis("date").reset_index()
    table["date"] = table.date.dt.strftime("%Y-%m-%d")
    daily.rename_axis("date").to_csv(folder/"prices.csv")
    table.to_parquet(folder/"prices.parquet")
    table.to_json(folder/"prices.json", orient="records")
    daily[[]].assign(momentum=daily.close.pct_change(5), target=daily.close.shift(-1) / daily.close - 1).rename_axis("date").to_csv(folder/"features.csv")
    np.save(folder/"close.npy", daily.close.to_numpy())
    daily.close.to_numpy().tofile(folder/"close.bin")
    daily[[]].assign(up=daily.close.shift(-1) > daily.close).rename_axis("date").to_csv(folder/"labels.csv")
    months = pd.date_range("1998-12-15", "2004", freq="MS") + pd.Timedelta(13, "D")
    pd.DataFrame({"published": months, "figure": np.random.default_rng(0).normal(100, 1, len(months)).round(2)}).to_csv(folder/"figures.csv", index=False)
    with contextlib.closing(sqlite3.connect(folder/"prices.db")) as base: table.to_sql("bars", base, index=False)
    (folder/"config.json").write_text(json.dumps({"window": 15, "start": "2000-01-01"}))
    (folder/"levels.csv").write_text("regime,level\ncalm,0.01\nwild,0.03\n")
    days = [day for year in range(1999, 2012) for day in (f"{year}-01-18", f"{year}-07-05", f"{year}-11-25", f"{year}-12-24")]
    (folder/"holidays.csv").write_text("date,name\n" + "".join(f"{day},holiday\n" for day in days))
    local = hourly.close.pct_change().rolling(6).mean().rename("score")
    local.index = local.index.tz_convert("America/New_York").tz_localize(None)
    local.rename_axis("time").to_csv(folder/"hours.csv")
    return folder


def module_of(path: Path) -> ModuleType:
    "A file of the suite as a module."
    spec = importlib.util.spec_from_file_location(f"suite_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdict_of(path: Path) -> tuple[Causality, pd.DataFrame, ModuleType]:
    "What the guard says of a member of the suite."
    module = module_of(path)
    bars = bars_of(getattr(module, "SYMBOL", "SP500"))
    if hasattr(module, "pipeline"): return check_pipeline(module.pipeline, bars), bars, module
    return check_causality(path, bars, signals=getattr(module, "signals", None), costs=Costs(fee=0.001)), bars, module


def contents(folder: Path) -> dict[str, str]:
    "Every file below a folder, hashed."
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts}


def test_the_suite_is_large_enough() -> None:
    assert len(LEAKS) >= 15 and len(CLEAN) >= 15


@pytest.mark.parametrize("name", LEAKS)
def test_every_leak_is_found(name: str, desk: Path) -> None:
    before = contents(desk)
    found, bars, module = verdict_of(desk/f"{name}.py")
    assert found.verdict == "leak", found
    assert found.first_bar == bars.index[found.bar_number].strftime("%Y-%m-%dT%H:%M:%SZ") and found.through and found.sentence.startswith("Look-ahead")
    if hasattr(module, "first"): assert abs(found.bar_number - module.first(bars)) <= 3, found
    assert contents(desk) == before
    assert json.dumps(found.to_dict()) and len(causality_figure(found).data) == 3


@pytest.mark.parametrize("name", CLEAN)
def test_no_false_alarm(name: str, desk: Path) -> None:
    before = contents(desk)
    found, _, _ = verdict_of(desk/f"{name}.py")
    assert found.verdict == "clean" and found.repeats and found.first_bar is None, found
    assert contents(desk) == before
    assert json.dumps(found.to_dict()) and len(causality_figure(found).data) == 1


@pytest.mark.parametrize("symbol", ["SP500", "NASDAQ", "EURUSD"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_strategies_are_clean(name: str, symbol: str) -> None:
    found = check_causality(name, symbol, costs=Costs(fee=0.001))
    assert found.verdict == "clean" and found.repeats and found.notes == () and 0 <= found.warmup < 400, found


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_guard_plays_the_bars_of_a_few_backtests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Forked trials count in the same memory; milliseconds are the benchmark's business.
    ticks = mmap.mmap(-1, 8)

    def count(): ticks[:8] = (int.from_bytes(ticks[:8], "little") + 1).to_bytes(8, "little")
    monkeypatch.setattr(sys, "count_tick", count, raising=False)

    class Counting(get_strategy(name)):
        def on_tick(self, market):
            sys.count_tick()
            return super().on_tick(market)
    bars = load_bars("EURUSD")
    backtest(Counting, bars, trial=False)
    once = int.from_bytes(ticks[:8], "little")
    check_causality(Counting, bars)
    assert once == len(bars) and 2 * once < int.from_bytes(ticks[:8], "little") - once < 5 * once


def test_the_same_twice_and_no_door_left_open() -> None:
    doors = builtins.open, io.open, os.open, os.stat, sqlite3.connect, gc.get_objects, np.random.default_rng, sys.stdout
    again = [check_causality(SUITE[0].with_name(f"{name}.py"), bars_of("SP500"), seed=3).to_dict() for name in ("leak_shift", "clean_preloaded") for _ in range(2)]
    for record in again: del record["seconds"], record["ratio"]
    assert again[0] == again[1] and again[2] == again[3]
    assert doors == (builtins.open, io.open, os.open, os.stat, sqlite3.connect, gc.get_objects, np.random.default_rng, sys.stdout)


# ---- as a person meets it

def written(folder: Path, name: str, body: str, head: str = "") -> Path:
    "A strategy file that is in no lab."
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    path = folder/f"{name}.py"
    path.write_text(f"from pathlib import Path\nfrom sagelab.strategy.base import Decision, Strategy\n{head}\n\nclass It(Strategy):\n{lines}\n")
    return path


AHEAD = """
def initialize(self, config):
    self.table = pd.read_csv(DATA)
    self.number = -1

def on_tick(self, market):
    self.number += 1
    later = self.table.close.iloc[self.number + 1:self.number + 2]
    if len(later) and later.iloc[0] > STEP * market.close: return Decision("long", 50)
    if market.position: return Decision("flat")
"""


@pytest.mark.parametrize("spelling", ["iso", "backwards", "epoch", "local", "newest first"])
def test_a_strategy_that_reads_ahead_in_the_file_that_it_is_given(tmp_path: Path, spelling: str) -> None:
    hourly = spelling in ("local", "epoch")
    bars, table = bars_of("EURUSD" if hourly else "SP500"), bars_of("EURUSD" if hourly else "SP500").rename_axis("time").reset_index()
    if spelling == "backwards": table["time"] = table.time.dt.strftime("%d.%m.%Y")
    if spelling == "epoch": table["time"] = table.time.astype("int64") // 10**9
    if spelling == "local": table["time"] = table.time.dt.tz_convert("Asia/Tokyo").dt.strftime("%Y-%m-%d %H:%M")
    if spelling == "newest first": table = table[::-1]
    data = tmp_path/"bars.csv"
    table.to_csv(data, index=False)
    body = AHEAD.replace("STEP", "1.0003" if hourly else "1.005").replace("self.number + 1:self.number + 2", "len(self.table) - 2 - self.number:len(self.table) - 1 - self.number"
                                                                          if spelling == "newest first" else "self.number + 1:self.number + 2")
    found = check_causality(written(tmp_path, "it", body, f"import pandas as pd\nDATA = {str(data)!r}"), bars, data_file=data)
    rises = bars.close.shift(-1) > (1.0003 if hourly else 1.005) * bars.close
    assert found.verdict == "leak" and abs(found.bar_number - int(rises.to_numpy().argmax())) <= 2 and str(data) in found.through, found


def test_a_file_that_an_earlier_run_left_is_known_for_what_it_is(tmp_path: Path, desk: Path) -> None:
    path = Path(shutil.copy(desk/"leak_state_file.py", tmp_path))
    backtest(get_strategy(str(path)), bars_of("SP500"), trial=False)
    left = (tmp_path/"state.json").read_text()
    found = check_causality(path, bars_of("SP500"))
    assert found.verdict == "leak" and not found.repeats and "state.json" in found.through and "earlier run" in found.notes[0]
    assert (tmp_path/"state.json").read_text() == left


DICE = """
def on_tick(self, market):
    if random.random() < 0.1: return Decision("long", 10)
    if market.position: return Decision("flat")
"""
SHAKY = """
def initialize(self, config): self.close = load_bars("SP500").close.to_numpy()

def on_tick(self, market):
    later = self.close[market.bar_number + 1:market.bar_number + 2]
    if LEAK and len(later) and later[0] > 1.01 * market.close: return Decision("long", 10 + 80 * (time.perf_counter_ns() % 1000) / 1000)
    if market.bar_number % 10 == 0: return Decision("flat" if market.position else "short", 10 + 80 * (time.perf_counter_ns() % 1000) / 1000)
"""
SHAKY_HEAD = "import time\nfrom sagelab.data.store import load_bars\nLEAK = "


def test_dice_are_told_and_no_leak(tmp_path: Path) -> None:
    found = check_causality(written(tmp_path, "it", DICE, "import random"), bars_of("SP500"))
    assert found.verdict == "clean" and not found.repeats and "dice" in found.notes[0]


@pytest.mark.parametrize("leak", [True, False])
def test_what_the_clock_changes_hides_nothing(tmp_path: Path, leak: bool) -> None:
    found = check_causality(written(tmp_path, "it", SHAKY, f"{SHAKY_HEAD}{leak}"), bars_of("SP500"))
    assert found.verdict == ("leak" if leak else "clean") and not found.repeats and "size_pct" in found.notes[0], found


COUNTING = """
runs = 0

def initialize(self, config): It.runs += 1

def on_tick(self, market):
    if market.bar_number % (10 + It.runs) == 0: return Decision("long", 10)
"""
OPENS = """
def initialize(self, config): self.content = open(Path(__file__).with_name("bars.any"), "rb").read()

def on_tick(self, market):
    if market.bar_number % 10 == 0: return Decision("long", 10)
"""
NEEDS = """
def initialize(self, config):
    self.bars = load_bars("SP500")
    if self.bars.index[-1].year < 2018: raise ValueError("the data are not complete")

def on_tick(self, market):
    if market.bar_number == 0 and market.time.year > 1999: raise ValueError("history begins in 1999")
    if market.bar_number % 10 == 0: return Decision("long", 10)
"""
SEALED = """
def initialize(self, config):
    assert hashlib.sha256(Path(__file__).with_name("prices.csv").read_bytes()).hexdigest() == SUM

def on_tick(self, market):
    if market.bar_number % 10 == 0: return Decision("long", 10)
"""


def test_a_count_of_runs_is_no_leak(tmp_path: Path) -> None:
    found = check_causality(written(tmp_path, "it", COUNTING), bars_of("SP500"))
    assert found.verdict == "clean" and not found.repeats and "leaves behind" in found.notes[0], found


def test_a_data_file_that_cannot_be_changed_leaves_the_question_open(tmp_path: Path) -> None:
    (tmp_path/"bars.any").write_bytes(b"\x00\xff" * 1000)
    found = check_causality(written(tmp_path, "it", OPENS), bars_of("SP500"), data_file=tmp_path/"bars.any")
    assert found.verdict == "unknown" and "bars.any" in found.sentence


def test_what_does_not_start_is_told(tmp_path: Path) -> None:
    found = check_causality(written(tmp_path, "it", NEEDS, "from sagelab.data.store import load_bars"), bars_of("SP500"))
    assert found.verdict == "clean" and found.warmup is None, found
    assert "did not start" in " ".join(found.notes) and "breaks when history begins" in " ".join(found.notes)


def test_what_starts_in_no_other_world_cannot_be_called_clean(tmp_path: Path, desk: Path) -> None:
    shutil.copy(desk/"prices.csv", tmp_path)
    digest = hashlib.sha256((tmp_path/"prices.csv").read_bytes()).hexdigest()
    found = check_causality(written(tmp_path, "it", SEALED, f"import hashlib\nSUM = {digest!r}"), bars_of("SP500"))
    assert found.verdict == "leak" and found.through.startswith("breaks without the future"), found


def test_signals_in_a_list_are_taken_as_they_are(desk: Path) -> None:
    module = module_of(desk/"leak_triple_barrier.py")
    found = check_causality(desk/"leak_triple_barrier.py", bars_of("SP500"), signals=module.signals(bars_of("SP500")))
    assert found.verdict == "clean" and "how they were made" in found.notes[-1]


def test_a_dependence_on_the_start_is_told() -> None:
    class EveryFifty(Strategy):
        def on_tick(self, market):
            if market.bar_number % 50 == 0: return Decision("long", 10)
            if market.bar_number % 50 == 25: return Decision("flat")
    found = check_causality(EveryFifty, bars_of("SP500"))
    assert found.verdict == "clean" and found.warmup is None and "where history begins" in found.notes[0]


SHAPES = {
    "table": lambda bars: bars[["close"]],
    "column": lambda bars: bars.close,
    "array": lambda bars: bars.close.to_numpy(),
    "two columns": lambda bars: np.column_stack([bars.index.asi8 / 1e9, bars.close]),
    "named rows": lambda bars: bars.reset_index()[["time", "close"]].assign(time=bars.index.tz_localize(None)).to_records(index=False),
    "list": lambda bars: bars.close.tolist(),
    "by date": lambda bars: dict(zip(bars.index, bars.close)),
    "records": lambda bars: [{"time": str(time), "close": close} for time, close in zip(bars.index, bars.close)],
    "rows": lambda bars: [*zip(map(str, bars.index), bars.close)],
    "columns": lambda bars: {"time": [*map(str, bars.index)], "close": bars.close.tolist(), "both": bars[["open", "close"]].to_numpy()},
    "split": lambda bars: bars[["close"]].set_axis([*map(str, bars.index)]).to_dict("split"),
}


def closes_of(shape: str, data: object) -> list[float]:
    "The closes in any of the shapes."
    if shape in ("table", "column"): return getattr(data, "close", data).tolist()
    if shape == "two columns": return data[:, 1].tolist()
    if shape in ("named rows", "columns"): return [float(close) for close in data["close"]]
    if shape == "by date": return [*data.values()]
    if shape in ("records", "rows"): return [row["close"] if shape == "records" else row[1] for row in data]
    return [row[0] for row in data["data"]] if shape == "split" else [*data]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ahead", [0, 1])
def test_data_in_memory_of_any_shape(shape: str, ahead: int) -> None:
    bars = bars_of("SP500").iloc[:300]
    data = SHAPES[shape](bars)

    class FromMemory(Strategy):
        def initialize(self, config): self.close = closes_of(shape, data)

        def on_tick(self, market):
            if market.bar_number + ahead >= len(self.close): return None
            if self.close[market.bar_number + ahead] > 1.005 * market.history("close", 2)[-1 if ahead else 0]: return Decision("long", 10)
            if market.position: return Decision("flat")

    found = check_causality(FromMemory, bars)
    assert found.verdict == ("leak" if ahead else "clean"), found
    assert closes_of(shape, data) == bars.close.tolist()


# ---- what a guard must not do

def test_nothing_is_written_into_the_ledger(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGELAB_LAB", str(lab))
    monkeypatch.chdir(lab)
    before, told = contents(lab), []
    found = check_causality("sma_cross", "SP500", {"fast": "5"}, lab=lab, progress=lambda done, planned: told.append((done, planned)))
    assert found.verdict == "clean" and contents(lab) == before
    assert told == sorted(told) and all(done <= planned for done, planned in told) and len(told) > 4


def test_a_stopped_lab_checks_nothing(lab: Path) -> None:
    open_latch(lab).set("for a test", "tester")
    with pytest.raises(Stopped): check_causality("sma_cross", bars_of("SP500"), lab=lab)


def test_other_threads_go_on_as_ever(tmp_path: Path, desk: Path) -> None:
    ends, written_rows = threading.Event(), []
    def writer() -> None:
        while not ends.wait(0.01):
            with open(tmp_path/"mine.txt", "a") as file: file.write("x")
            written_rows.append(len((desk/"prices.csv").read_text().splitlines()))
    thread = threading.Thread(target=writer)
    thread.start()
    try: check_causality(desk/"leak_csv.py", bars_of("SP500"))
    finally:
        ends.set()
        thread.join()
    assert len((tmp_path/"mine.txt").read_text()) == len(written_rows) > 0 and set(written_rows) == {1001}


def test_refusals(tmp_path: Path) -> None:
    bars = bars_of("SP500")
    with pytest.raises(UsageError, match="too few"): check_causality("sma_cross", bars.iloc[:12])
    with pytest.raises(UsageError, match="too few"): check_pipeline(lambda b: b.close, bars.iloc[:12])
    with pytest.raises(UnknownName, match="sma_cross"): check_causality("sma_cros", bars)
    with pytest.raises(UnknownName, match="fast"): check_causality("sma_cross", bars, {"fasst": 3})
    with pytest.raises(UnknownName, match="strategy file"): check_causality(tmp_path/"none.py", bars)
    with pytest.raises(UsageError, match="its class"): check_causality(get_strategy("sma_cross")(), bars)
    with pytest.raises(StrategyError, match="broken"): check_causality(written(tmp_path, "torn", "pass", "import nowhere_at_all"), bars)
    with pytest.raises(StrategyError, match="KeyError"): check_causality(written(tmp_path, "it", "def on_tick(self, market): raise KeyError('x')"), bars)
    with pytest.raises(StrategyError, match="ZeroDivisionError"): check_pipeline(lambda b: 1 / 0, bars)
    with pytest.raises(UsageError, match="rows without times"): check_pipeline(lambda b: b.close.to_numpy()[:5], bars)


def test_pipelines_that_do_not_repeat() -> None:
    bars = bars_of("SP500")
    seeded = check_pipeline(lambda b: b.close + np.random.default_rng().normal(size=len(b)), bars)
    assert seeded.verdict in ("clean", "leak") and not seeded.repeats
    shaky = check_pipeline(lambda b: b.close + time.perf_counter_ns(), bars)
    assert shaky.verdict == "unknown" and not shaky.repeats
    breaks = check_pipeline(lambda b: b.close * b.close.iloc[999], bars)
    assert breaks.verdict == "leak" and "breaks without the future" in breaks.through
    read = check_pipeline(lambda b: load_bars("SP500").close.shift(-1).reindex(b.index), bars)
    assert read.verdict == "leak" and read.bar_number == 0 and "SP500 1d" in read.through
