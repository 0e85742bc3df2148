"""Make the bundled series from the packages that publish them, with their manifest and licences.

Run by hand from anywhere: `python data/samples/make_samples.py`. Needs `pip install arch==8.0.0 gym-anytrading==2.0.0`,
which the lab itself does not. Running it again gives the same bytes with the same packages and the same pyarrow.
"""
import importlib.metadata
import json
import sys
from pathlib import Path

import pandas as pd

from sagelab.core.errors import DataError, MissingExtra, SageLabError
from sagelab.core.files import atomic_write, sha256
from sagelab.data.bars import check_interval, open_bars, parse_interval, save_bars, validate_bars

HERE = Path(__file__).resolve().parent
PINS = {"arch": "8.0.0", "gym-anytrading": "2.0.0"}

SERIES = [
    dict(symbol="SP500", interval="1d", package="arch", inside="arch/data/sp500/sp500.csv.gz",
         description="S&P 500 index, daily, 1999-2018. Raw prices: Close, not Adj Close (the two are equal here).",
         times="The file has dates without a zone; they are trading days in New York, read as UTC dates."),
    dict(symbol="NASDAQ", interval="1d", package="arch", inside="arch/data/nasdaq/nasdaq.csv.gz",
         description="NASDAQ Composite index, daily, 1999-2018. Raw prices: Close, not Adj Close (the two are equal here).",
         times="The file has dates without a zone; they are trading days in New York, read as UTC dates."),
    dict(symbol="EURUSD", interval="1h", package="gym-anytrading", inside="gym_anytrading/datasets/data/FOREX_EURUSD_1H_ASK.csv",
         description="Euro in US dollars, ask side, hourly, 2017.",
         times="The file labels bars by their open and names no zone. Its weeks open at 17:00 New York time and move with US "
               "daylight saving (22:00 in winter, 21:00 from 12 March to 4 November) only if its times are UTC. Here bars carry their close: one hour is added."),
]


def distribution(package: str) -> importlib.metadata.Distribution:
    "The installed package, or an error that names the command to install it."
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra(f"{package}=={PINS[package]}") from None


def licence(package: str) -> dict:
    "Copy a package's licence beside the data, as both licences ask, and say where it is."
    name = {"arch": "NCSA", "gym-anytrading": "MIT"}[package]
    inside = [f for f in distribution(package).files or () if f.name.upper().startswith("LICENSE") and ".dist-info" in str(f)]
    if not inside:
        raise DataError(f"{package} came without its licence text, so its data is not copied.")
    target = atomic_write(HERE / "licences" / f"{package}.txt", inside[0].locate().read_bytes())
    return {"name": name, "file": target.relative_to(HERE).as_posix()}


def raw_bars(series: dict) -> pd.DataFrame:
    "Read one source file as it is and put it into the shape of bars."
    path = Path(distribution(series["package"]).locate_file(series["inside"]))
    if not path.exists():
        raise DataError(f"{path} is not there; this {series['package']} is not {PINS[series['package']]}.")
    frame = pd.read_csv(path).rename(columns=str.lower)
    if series["interval"] == "1d":
        index = pd.DatetimeIndex(pd.to_datetime(frame["date"], format="%m/%d/%Y"))
    else:
        index = pd.DatetimeIndex(pd.to_datetime(frame["time"], format="%d.%m.%Y %H:%M:%S.%f")) + parse_interval(series["interval"])
    return frame.set_index(index.tz_localize("UTC"))[["open", "high", "low", "close", "volume"]]


def oddities(bars: pd.DataFrame) -> list[str]:
    "What is allowed but worth knowing: zero volumes, bars that did not move."
    found = []
    zero = bars.index[bars["volume"] == 0]
    if len(zero):
        found.append(f"{len(zero)} bars have volume 0: {', '.join(t.date().isoformat() for t in zero[:10])}")
    flat = bars.index[bars["high"] == bars["low"]]
    if len(flat):
        found.append(f"{len(flat)} bars did not move: {', '.join(map(str, flat[:10]))}")
    return found


def make(series: dict) -> dict:
    "Write one series and give its entry of the manifest; a glitch in the source is refused with its row."
    symbol, interval, package = series["symbol"], series["interval"], series["package"]
    bars = validate_bars(raw_bars(series), series["inside"])
    check_interval(bars, interval, series["inside"])
    name = f"{symbol}.parquet" if interval == "1d" else f"{symbol}-{interval}.parquet"
    version = distribution(package).version
    path = save_bars(HERE / name, bars, symbol, interval, f"{package} {version}, {series['inside']}")
    again, about = open_bars(path)
    assert again.equals(bars)
    return {"symbol": symbol, "interval": interval, "file": name, "description": series["description"], "times": series["times"],
            "source": {"package": package, "version": version, "file": series["inside"]},
            "licence": licence(package), "bars": about["bars"], "from": about["from"], "to": about["to"],
            "file_sha256": sha256(path), "content_sha256": about["sha256"], "notes": oddities(bars)}


def main() -> int:
    for package in PINS:
        distribution(package)  # before anything is written
    entries = [make(series) for series in SERIES]
    atomic_write(HERE / "manifest.json", json.dumps({"format": 1, "series": entries}, indent=2) + "\n")
    for entry in entries:
        print(f"{entry['symbol']} {entry['interval']}: {entry['bars']} bars, {entry['from'][:16]} to {entry['to'][:16]}, {entry['content_sha256'][:12]}")
        for note in entry["notes"]:
            print(f"  note: {note}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SageLabError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
