"""Tone of sentences that people scored: the bundled 135M model with two calibrated questions against VADER and Loughran-McDonald.

The sentences come with the source package of vaderSentiment 0.5 (MIT): films, the New York Times, Amazon; each was scored by twenty people. Only
those that people felt something about (|score| >= 0.5) are used, and only whether it was good or bad is asked.

No item that is reported on was seen before. The first 300 of each set, by the hash of their text, are the development pool: the questions were chosen on
it by cross-validation, and the calibration that SageLab ships was fitted on 200 of each (`--fit` does it again). Everything else is drawn from the rest:
for each seed its own items to fit on, of all three sets together, and its own to report on. A lexicon gets the better of two thresholds: its own (0),
and one fitted on the same items, for each set by itself. Differences are paired item by item; the interval is a bootstrap over items, which are all different.

    python benchmarks/sentiment.py PATH_TO/vaderSentiment-0.5.zip        (pip download vaderSentiment==0.5 --no-binary :all: --no-deps)
"""
import io
import json
import os
import sys
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import publish
from sagelab.core.files import atomic_write, sha256
from sagelab.inference.catalogue import KNOWN
from sagelab.inference.choice import fit_calibration, scored
from sagelab.inference.llamacpp import LlamaCppConfig, LlamaCppModel
from sagelab.signals.lexicon import get_lexicon
from sagelab.signals.nlp import CALIBRATIONS, IMPACT, SENTIMENT, shipped_calibration
from sagelab.signals.text import clean

SETS = {"movie": "movieReviewSnippets", "NYT": "nytEditorialSnippets", "Amazon": "amazonReviewSnippets"}
ARCHIVE = os.environ.get("VADER_SDIST", "vaderSentiment-0.5.zip")
DEVELOPMENT, SHIPPED = 300, 200  # items of each set: put aside; of them, fitted on for what is shipped
FIT = int(os.environ.get("SENTIMENT_FIT", 100))  # of each set and seed
REPORT = int(os.environ.get("SENTIMENT_REPORT", 250))
SEEDS = 3
WANTED = 0.07  # points above every lexicon
WEIGHTS = Path(os.environ.get("SENTIMENT_WEIGHTS", Path(__file__).parent.parent / ".sagelab/models/smollm2.gguf"))


def sentences(archive: str) -> dict[str, list[tuple[str, str]]]:
    "The scored sentences of each set with their polarity, in the order of their hashes, each once."
    with zipfile.ZipFile(archive) as package:
        inner = next(name for name in package.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(package.read(inner))) as files:
            texts = {name: files.extractfile(next(m for m in files if m.name.endswith(f"{file}_GroundTruth.txt") and "/._" not in m.name)).read().decode("utf-8", "replace") for name, file in SETS.items()}
    found = {}
    for name, text in texts.items():
        rows = (line.split("\t", 2) for line in text.splitlines())
        items = {clean(said): "positive" if float(score) > 0 else "negative" for _, score, said in rows if abs(float(score)) >= 0.5 and clean(said)}
        found[name] = sorted(items.items(), key=lambda item: sha256(item[0]))
    return found


def threshold(tones: np.ndarray, positive: np.ndarray) -> float:
    "The threshold that is right most often; 0 where it is among them."
    tried = sorted({0.0, *tones.tolist()}, key=abs)
    return max(tried, key=lambda t: ((tones >= t) == positive).mean())


def interval(differences: np.ndarray, rounds: int = 10_000) -> tuple[float, float]:
    "The 95 % bootstrap interval of a mean difference."
    draws = np.random.default_rng(0).integers(0, len(differences), (rounds, len(differences)))
    return tuple(float(x) for x in np.quantile(differences[draws].mean(axis=1), (0.025, 0.975)))


def split(items: dict, seed: int) -> tuple[dict, dict]:
    "A seed's own items of each set, to fit on and to report on; no two seeds share one."
    fit, report = {}, {}
    for name in SETS:
        rest = items[name][DEVELOPMENT:]
        chosen = [rest[i] for i in np.random.default_rng([7, list(SETS).index(name)]).permutation(len(rest))[seed * (FIT + REPORT):(seed + 1) * (FIT + REPORT)]]
        fit[name], report[name] = chosen[:FIT], chosen[FIT:]
    return fit, report


def fit_shipped(model: LlamaCppModel, items: dict) -> int:
    "Fit what SageLab brings for these weights: tone on the development pool, impact on the first half of headlines.jsonl, labelled by hand."
    headlines = [row for line in (Path(__file__).parent / "headlines.jsonl").read_text().splitlines() if (row := json.loads(line))["split"] == "fit"]
    known = json.loads(CALIBRATIONS.read_text())
    for question, told in ((SENTIMENT, [item for name in SETS for item in items[name][:SHIPPED]]),
                           (IMPACT, [(row["text"], {"minor": "small", "major": "huge"}[row["impact"]]) for row in headlines if row["impact"] != "moderate"])):
        known[f"{sha256(WEIGHTS)}/{question.sha256}"] = asdict(fit_calibration(model, question, told))
    atomic_write(CALIBRATIONS, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return 0


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    archive = words[0] if words else ARCHIVE
    if not Path(archive).is_file(): sys.exit(f"{archive} is not here. Try: pip download vaderSentiment==0.5 --no-binary :all: --no-deps, and give its path")
    items = sentences(archive)
    model = LlamaCppModel(LlamaCppConfig(path=WEIGHTS, name="smollm2", threads=1, context=2048))
    if "--fit" in sys.argv: return fit_shipped(model, items)
    shipped = shipped_calibration(SENTIMENT, sha256(WEIGHTS), "smollm2")
    assert sha256(WEIGHTS) == KNOWN["smollm2"].sha256 and shipped is not None
    lexicons = {"VADER": get_lexicon("vader"), "Loughran-McDonald": get_lexicon("loughran-mcdonald")}
    right = {name: {} for name in SETS}  # set -> who -> one array a seed
    for seed in range(SEEDS):
        fit, report = split(items, seed)
        calibration = fit_calibration(model, SENTIMENT, [item for name in SETS for item in fit[name]])
        for name in SETS:
            positive = np.array([label == "positive" for _, label in report[name]])
            assert not {sha256(text) for text, _ in report[name]} & ({*calibration.items} | {*shipped.items})
            scores = scored(model, SENTIMENT, [text for text, _ in report[name]])
            for who, cal in (("model", calibration), ("model, as shipped", shipped)):
                right[name].setdefault(who, []).append((cal.applied(scores)[:, 0] > 0.5) == positive)
            for who, lexicon in lexicons.items():
                at = threshold(np.array([lexicon.tone(text) for text, _ in fit[name]]), np.array([label == "positive" for _, label in fit[name]]))
                tones = np.array([lexicon.tone(text) for text, _ in report[name]])
                right[name].setdefault(who, []).append((tones >= 0) == positive)
                right[name].setdefault(f"{who}, fitted", []).append((tones >= at) == positive)
        print(f"seed {seed}: " + ", ".join(f"{name} " + " / ".join(f"{who} {found[seed].mean():.3f}" for who, found in right[name].items()) for name in SETS), flush=True)
    rows, accuracy = [], {}
    for name in SETS:
        pooled = {who: np.concatenate(found) for who, found in right[name].items()}
        accuracy[name] = {who: float(found.mean()) for who, found in pooled.items()}
        for who in lexicons:
            peer = max((pooled[who], pooled[f"{who}, fitted"]), key=np.mean)
            for ours in ("model", "model, as shipped"):
                difference = pooled[ours].astype(float) - peer
                low, high = interval(difference)
                rows.append({"what": f"{name}: {ours} above {who}", "figure": f"{pooled[ours].mean():.1%} against {peer.mean():.1%}, {difference.mean() * 100:+.1f} points ({low * 100:+.1f} .. {high * 100:+.1f})",
                             "wanted": f">= {WANTED * 100:.0f} points, interval above 0", "met": bool(difference.mean() >= WANTED and low > 0)})
    model.close()
    return publish("sentiment", rows, accuracy=accuracy, fitted_on=FIT * len(SETS), reported_on=REPORT * SEEDS, seeds=SEEDS)


if __name__ == "__main__": sys.exit(main())
