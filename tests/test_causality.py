"The causality guard against a suite of leaks and of honest strategies: every leak found, no false alarm, nothing left behind."
import contextlib
import hashlib
import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sagelab.data.store import load_bars
from sagelab.lab.causality import Causality, causality_figure, check_causality, check_pipeline
from sagelab.trading.costs import Costs

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
