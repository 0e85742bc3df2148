"Luck against skill: the papers' printed figures, an implementation word for word, a thousand searches through noise, and edges planted on purpose."
import time
import tracemalloc
from itertools import combinations
from math import exp, log, sqrt
from statistics import NormalDist
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from sagelab.core.errors import DataError, MissingExtra, UsageError
from sagelab.core.settings import PromotionSettings
from sagelab.lab.promote import recommend
from sagelab.trading.metrics import equity_metrics
from sagelab.trading.significance import (deflated_sharpe, deflated_sharpe_of, effective_trials, expected_maximum_sharpe, minimum_track_record_length,
                                          moments, per_bar, probabilistic_sharpe, probabilistic_sharpe_of, probability_of_overfitting,
                                          purged_paths, trial_sharpes, walk_forward)

POLICY, YEAR, CASH = PromotionSettings(), 252, 100_000.0
FUND = {"skewness": -2.448, "kurtosis": 10.164}


# ---- printed figures

def test_probabilistic_sharpe_of_the_papers_hedge_fund():
    monthly = per_bar(1.585, 12)
    assert f"{probabilistic_sharpe(monthly, 0, 24, **FUND):.3f}" == "0.913"
    assert f"{probabilistic_sharpe(monthly, 0, 24):.3f}" == "0.982"


@pytest.mark.parametrize("trials, skewness, kurtosis, printed", [(100, -3, 10, "0.9004"), (46, -3, 10, "0.9505"), (88, 0, 3, "0.9505")])
def test_deflated_sharpe_of_the_papers_example(trials, skewness, kurtosis, printed):
    assert f"{deflated_sharpe(per_bar(2.5, 250), 1250, trials, 0.5 / 250, skewness, kurtosis):.4f}" == printed


def test_expected_maximum_of_the_papers_example(): assert f"{expected_maximum_sharpe(100, 0.5 / 250):.4f}" == "0.1132"


@pytest.mark.parametrize("periods, skewness, kurtosis, printed", [(252, 0, 3, "2.73"), (52, 0, 3, "2.83"), (12, 0, 3, "3.24"), (12, -0.72, 5.78, "4.99")])
def test_minimum_track_record_of_the_paper(periods, skewness, kurtosis, printed):
    assert f"{minimum_track_record_length(per_bar(2, periods), per_bar(1, periods), skewness, kurtosis, periods=periods).years:.2f}" == printed


def r_normals(
    seed: int,
    count: int,
) -> np.ndarray:
    "What `set.seed(seed); rnorm(count)` gives in R: its scrambled seed, the Mersenne twister, two draws for each inversion."
    def scramble(value: int) -> int: return (69069 * value + 1) & 0xFFFFFFFF
    for _ in range(50): seed = scramble(seed)
    state = []
    for _ in range(625): state.append(seed := scramble(seed))
    twister = np.random.RandomState()
    twister.set_state(("MT19937", np.array(state[1:], dtype=np.uint32), 624))
    uniform = twister.randint(0, 2**32, size=2 * count, dtype=np.uint32) * 2.3283064365386963e-10
    return np.array([*map(NormalDist().inv_cdf, ((np.floor(uniform[0::2] * 2**27) + uniform[1::2]) / 2**27).tolist())])


@pytest.mark.parametrize("blocks, printed_intercept, printed_r2", [(8, "-0.003046", "0.97"), (4, "-0.005909", "0.88")])
def test_overfitting_of_the_r_package_vignette(blocks, printed_intercept, printed_r2):
    "CRAN package pbo 1.3.5, vignette: seed 765, 100 trials, 2,400 bars; it regresses in-sample on out-of-sample and prints the intercept."
    trials = r_normals(765, 240_000).reshape(100, 2400).T
    trials = trials / trials.std(axis=0, ddof=1) / sqrt(252)
    found = probability_of_overfitting(trials - trials.mean(axis=0) - 0.03 / 252, blocks)
    assert found.pbo == 1 and found.probability_of_loss == 1
    _, intercept = np.polyfit(found.out_of_sample, found.in_sample, 1)
    count, r2 = found.combinations, np.corrcoef(found.in_sample, found.out_of_sample)[0, 1] ** 2
    assert (f"{intercept:.6f}", f"{1 - (1 - r2) * (count - 1) / (count - 2):.2g}") == (printed_intercept, printed_r2)


def test_overfitting_of_the_r_packages_own_test():
    "CRAN package pbo, its unit test: seed 852, 40 trials filled by row, 200 bars, 4 blocks."
    assert np.allclose(r_normals(42, 3), [1.37095845, -0.56469817, 0.36312841])
    found = probability_of_overfitting(r_normals(852, 8000).reshape(200, 40) - 0.03 / 252, 4)
    _, intercept = np.polyfit(found.out_of_sample, found.in_sample, 1)
    assert found.pbo == 0.5 and found.probability_of_loss == 0.5 and found.combinations == 6 and 0.19 < intercept < 0.20


# ---- word for word

def slow_overfitting(returns: np.ndarray, blocks: int) -> list[tuple[float, float, float]]:
    "Logit, in-sample and out-of-sample Sharpe ratio of the pick, with the bars of every combination put together."
    parts, found = np.array_split(returns, blocks), []
    for chosen in combinations(range(blocks), blocks // 2):
        inside, outside = (np.concatenate([part for number, part in enumerate(parts) if (number in chosen) == wanted]) for wanted in (True, False))
        one, other = (half.mean(axis=0) / half.std(axis=0, ddof=1) for half in (inside, outside))
        relative = ((other < other[one.argmax()]).sum() + 1) / (returns.shape[1] + 1)
        found.append((log(relative / (1 - relative)), one.max(), other[one.argmax()]))
    return sorted(found)


@pytest.mark.parametrize("bars, variants, blocks", [(97, 2, 4), (300, 7, 6), (161, 30, 8), (40, 5, 2), (64, 3, 10)])
def test_overfitting_equals_the_slow_one(bars, variants, blocks):
    returns = np.random.default_rng([bars, variants]).normal(0.0002, 0.01, (bars, variants))
    found, expected = probability_of_overfitting(returns, blocks), np.array(slow_overfitting(returns, blocks))
    mine = np.array(sorted(zip(found.logits, found.in_sample, found.out_of_sample)))
    assert np.allclose(mine, expected, rtol=1e-9, atol=1e-12) and found.pbo == (expected[:, 0] <= 0).mean()
    assert found.probability_of_loss == (expected[:, 2] < 0).mean() and np.allclose((found.slope, found.intercept), np.polyfit(found.in_sample, found.out_of_sample, 1))


def test_moments_equal_scipys():
    stats = pytest.importorskip("scipy.stats")
    returns = np.random.default_rng(3).standard_t(5, 999) / 100
    known = moments(returns)
    assert known.sharpe == pytest.approx(returns.mean() / returns.std(ddof=1)) and known.observations == 999
    assert known.skewness == pytest.approx(stats.skew(returns)) and known.kurtosis == pytest.approx(stats.kurtosis(returns, fisher=False))


def test_expected_maximum_is_that_of_many_draws():
    drawn = np.random.default_rng(4).standard_normal((4000, 200)).max(axis=1).mean()
    assert expected_maximum_sharpe(200, 1) == pytest.approx(drawn, rel=0.02)  # the formula is an approximation, 1 % above


def test_splits_leave_the_tested_bars_out():
    "A variant that is right only where it is tested is never picked for it."
    rng = np.random.default_rng(5)
    returns = rng.normal(0, 0.01, (1000, 3))
    returns[:, 2] += 0.001
    for bars in (slice(0, 500), slice(500, 1000)):
        planted = returns.copy()
        planted[bars, 0] += 0.05
        forward = walk_forward(planted, train=500, test=500)
        assert forward.picks == ((0,) if bars.start == 0 else (2,)) and forward.first == 500
    found = purged_paths(returns, folds=6, test_folds=2, purged=3, embargo=2)
    assert len(found.sharpes) == 5 and found.splits == 15 and found.sharpes == tuple(sorted(found.sharpes))


def test_overfitting_is_fast_and_small():
    returns = np.random.default_rng(6).normal(0, 0.01, (5000, 200))
    probability_of_overfitting(returns[:100])
    begun = time.perf_counter()
    probability_of_overfitting(returns)
    seconds = time.perf_counter() - begun
    tracemalloc.start()
    probability_of_overfitting(returns)
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"\n5,000 bars x 200 variants x 12,870 combinations: {seconds:.2f} s, {megabytes:.0f} MB besides the returns")
    assert seconds < 3 and megabytes < 60


# ---- whatever comes

sharpes = st.floats(-1, 1)
tables = st.builds(lambda seed, bars, variants, scale: np.random.default_rng(seed).standard_t(4, (bars, variants)) * scale,
                   st.integers(0, 10**6), st.integers(24, 90), st.integers(2, 12), st.sampled_from([1e-4, 0.01, 1.0]))


@given(sharpes, st.integers(2, 10**5), st.floats(1, 10**6), st.floats(1.01, 100), st.floats(1e-8, 1), st.floats(-3, 3), st.floats(0, 20))
@settings(max_examples=300, deadline=None)
def test_more_trials_never_help(sharpe, observations, trials, more, variance, skewness, extra):
    kurtosis = 1 + skewness**2 + extra
    few, many = (deflated_sharpe(sharpe, observations, count, variance, skewness, kurtosis) for count in (trials, trials * more))
    assert 0 <= many <= few <= 1
    assert deflated_sharpe(sharpe, observations, 1, variance, skewness, kurtosis) == probabilistic_sharpe(sharpe, 0, observations, skewness, kurtosis)


@given(sharpes, sharpes, st.integers(2, 10**5), st.floats(-3, 3), st.floats(0, 20), st.floats(0.51, 0.999))
@settings(max_examples=300, deadline=None)
def test_probabilistic_sharpe_and_track_record_agree(sharpe, benchmark, observations, skewness, extra, confidence):
    kurtosis = 1 + skewness**2 + extra
    chance = probabilistic_sharpe(sharpe, benchmark, observations, skewness, kurtosis)
    assert 0 <= chance <= 1 and (chance >= 0.5 if sharpe >= benchmark else chance <= 0.5)
    assert chance >= probabilistic_sharpe(sharpe, benchmark + 0.1, observations, skewness, kurtosis)
    needed = minimum_track_record_length(sharpe, benchmark, skewness, kurtosis, confidence)
    assert needed is None if sharpe <= benchmark else needed is not None or sharpe - benchmark < 1e-100
    if needed is None or needed.observations > 10**12: return
    assert probabilistic_sharpe(sharpe, benchmark, needed.observations, skewness, kurtosis) >= confidence - 1e-9
    assert needed.observations == 2 or probabilistic_sharpe(sharpe, benchmark, needed.observations - 1, skewness, kurtosis) <= confidence + 1e-9


@given(tables, st.sampled_from([2, 4, 6, 8]), st.integers(0, 10**6), st.integers(-8, 8))
@settings(max_examples=100, deadline=None)
def test_order_and_scale_of_variants_do_not_matter(returns, blocks, seed, power):
    found = probability_of_overfitting(returns, blocks)
    assert 0 <= found.pbo <= 1 and 0 <= found.probability_of_loss <= 1 and np.isfinite(found.logits).all()
    order = np.random.default_rng(seed).permutation(returns.shape[1])
    for other in (returns[:, order], returns * 2.0**power):
        again = probability_of_overfitting(other, blocks)
        assert again == found and (again.logits == found.logits).all() and (again.in_sample == found.in_sample).all()
    scaled = probability_of_overfitting(returns * 0.37, blocks)
    assert (scaled.pbo, scaled.probability_of_loss) == (found.pbo, found.probability_of_loss) and scaled.slope == pytest.approx(found.slope)
    chosen = trial_sharpes(returns)
    best = returns[:, chosen.argmax()]
    assert deflated_sharpe_of(best * 0.37, trial_sharpes(returns * 0.37)) == pytest.approx(deflated_sharpe_of(best, chosen))
    assert deflated_sharpe_of(best, chosen[order]) == pytest.approx(deflated_sharpe_of(best, chosen))
    assert 1 <= effective_trials(returns) <= returns.shape[1] and 0 <= probabilistic_sharpe_of(best) <= 1


@given(tables, st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_idle_stretches_and_twins_stay_finite(returns, seed):
    rng = np.random.default_rng(seed)
    returns = np.where(rng.random(returns.shape) < 0.97, 0.0, returns)
    returns = np.c_[returns, returns[:, 0], np.zeros(len(returns))]
    found = probability_of_overfitting(returns, 6)
    assume(found.pbo is not None)
    order = rng.permutation(returns.shape[1])
    assert 0 <= found.pbo <= 1 and found.left_out >= 1 and np.isfinite(found.out_of_sample).all()
    assert probability_of_overfitting(returns[:, order], 6) == found


# ---- bad input

@pytest.mark.parametrize("call, error, told", [
    (lambda: probability_of_overfitting(np.ones((50, 2)), 5), UsageError, "cannot be halved"),
    (lambda: probability_of_overfitting(np.ones((50, 2)), 0), UsageError, "cannot be halved"),
    (lambda: probability_of_overfitting(np.ones(50)), UsageError, "shape"),
    (lambda: probability_of_overfitting([["a", "b"]]), UsageError, "no table of numbers"),
    (lambda: probability_of_overfitting(np.where(np.eye(40) > 0, np.nan, 0.1)), DataError, "nan at bar 0 of variant 0"),
    (lambda: deflated_sharpe_of([0.1, float("inf")], [0.1]), DataError, "inf at bar 1"),
    (lambda: probabilistic_sharpe(float("nan"), 0, 10), UsageError, "must be numbers"),
    (lambda: probabilistic_sharpe(0.1, 0, 1), UsageError, "2 at least"),
    (lambda: probabilistic_sharpe(0.1, 0, 10, -3, 4), UsageError, "not the excess"),
    (lambda: expected_maximum_sharpe(0, 1), UsageError, "at least one"),
    (lambda: expected_maximum_sharpe(5, -1), UsageError, "zero or more"),
    (lambda: expected_maximum_sharpe(5, float("nan")), UsageError, "zero or more"),
    (lambda: minimum_track_record_length(0.1, confidence=1), UsageError, "0.95"),
    (lambda: walk_forward(np.ones((50, 2)), train=50), UsageError, "cannot be split"),
    (lambda: purged_paths(np.ones((50, 2)), folds=10, purged=9), UsageError, "cannot be split"),
])
def test_nonsense_is_refused(call, error, told):
    with pytest.raises(error, match=told): call()


def test_two_point_returns_have_no_doubt():
    "Skewness and kurtosis at their limit: the formula's variance is zero for one Sharpe ratio."
    assert [probabilistic_sharpe(1.0, benchmark, 10, 2.0, 5.0) for benchmark in (0.5, 1.0, 1.5)] == [1.0, 0.5, 0.0]


def test_what_cannot_be_told_says_why():
    for returns, told in ((np.ones((100, 1)), "no choice"), (np.ones((100, 5)), "no choice"), (np.random.default_rng(1).random((31, 3)), "31 bars are too few")):
        found = probability_of_overfitting(returns)
        assert found.pbo is None and told in found.reason and told in found.sentence and found.to_dict()["pbo"] is None
    assert probability_of_overfitting(np.random.default_rng(1).random((32, 3))).pbo is not None


def test_without_skfolio_only_its_two_are_missing(monkeypatch):
    import sys
    for name in [name for name in sys.modules if name.split(".")[0] == "skfolio"]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skfolio", None)
    for call in (walk_forward, purged_paths):
        with pytest.raises(MissingExtra, match=r"sagelab\[guards\]"): call(np.random.default_rng(1).random((900, 3)))


# ---- the policy against luck, and for skill

DAYS = pd.date_range("2010-01-01", periods=2520, freq="B", tz="UTC")


def metrics(returns: np.ndarray) -> dict:
    return equity_metrics(CASH * np.cumprod(1 + returns), DAYS[:len(returns)], CASH, YEAR)


def decide(
    returns: np.ndarray,  # (bars, variants) of one search
    baseline: int,  # the variant in use
) -> tuple[bool, bool]:  # promoted; promoted without deflation and PBO
    "What the policy says to the best of a search; PBO, the costly one, is computed where all else is met, which decides the same."
    found = trial_sharpes(returns)
    best = int(found.argmax())
    chosen, before = metrics(returns[:, best]), metrics(returns[:, baseline])
    selection = {"trials": len(found), "deflated_sharpe": deflated_sharpe_of(returns[:, best], found), "pbo": 0.0}
    verdicts = {"causality": {"verdict": "clean"}, "cutoff": {"verdict": "clean"}, "robustness": {"verdict": "clean"}, "selection": selection}
    promising = recommend(before, chosen, verdicts, POLICY)
    lucky = {r.name for r in promising.requirements if not r.passed} <= {"deflated_sharpe"} and probabilistic_sharpe_of(returns[:, best]) >= 0.95
    if not promising.recommended: return False, lucky
    selection["pbo"] = probability_of_overfitting(returns).pbo
    return recommend(before, chosen, verdicts, POLICY).recommended, lucky


def promoted(
    searches: int,
    draw,  # generator -> (bars, variants)
    baselines,  # each (generator, returns) -> the variant in use
    seed: int,
) -> np.ndarray:  # for each baseline: share promoted; share that an undeflated Sharpe ratio without PBO would have promoted
    decided = []
    for number in range(searches):
        rng = np.random.default_rng([seed, number])
        returns = draw(rng)
        decided.append([decide(returns, baseline(rng, returns)) for baseline in baselines])
    return np.array(decided).mean(axis=0)


def noise(bars: int, common: float = 0.0, tails: int = 0):
    "Searches through 200 strategies that earn nothing: correlated by `common`, with Student's tails if asked for."
    def draw(rng):
        returns = rng.standard_t(tails, (bars, 200)) / sqrt(tails / (tails - 2)) if tails else rng.standard_normal((bars, 200))
        if common: returns = sqrt(1 - common) * returns + sqrt(common) * rng.standard_normal((bars, 1))
        return 0.01 * returns
    return draw


def planted(bars: int, annual: float, alike: int):
    "Noise in which the first `alike` strategies, correlated by 0.9 with each other, have a true annual Sharpe ratio."
    def draw(rng):
        returns = rng.standard_normal((bars, 200))
        if alike > 1: returns[:, :alike] = sqrt(0.1) * returns[:, :alike] + sqrt(0.9) * rng.standard_normal((bars, 1))
        returns[:, :alike] += per_bar(annual, YEAR)
        return 0.01 * returns
    return draw


def any_of(rng, returns): return int(rng.integers(returns.shape[1]))
def worst_of(rng, returns): return int(trial_sharpes(returns).argmin())


@pytest.mark.parametrize("what, searches, draw", [
    ("five years of days", 1000, noise(1250)),
    ("five years, variants correlated by 0.5", 300, noise(1250, common=0.5)),
    ("five years, Student's tails with 4 degrees", 200, noise(1250, tails=4)),
    ("a single year", 200, noise(252))])
def test_pure_luck_is_not_promoted(what, searches, draw):
    for baseline, (share, undeflated) in zip(("any other", "the worst"), promoted(searches, draw, (any_of, worst_of), seed=1)):
        print(f"\nnoise, {what}: {share:.1%} of {searches:,} searches through 200 strategies promoted over {baseline} (without deflation and PBO {undeflated:.1%})")
        assert share <= 0.05 and undeflated > 0.2


@pytest.mark.parametrize("what, draw", [
    ("1 of 200, annual Sharpe 2.5, 1,250 bars", planted(1250, 2.5, 1)),
    ("1 of 200, annual Sharpe 2.0, 2,520 bars", planted(2520, 2.0, 1)),
    ("5 alike of 200, annual Sharpe 2.5, 1,250 bars", planted(1250, 2.5, 5))])
def test_a_planted_edge_is_mostly_promoted(what, draw):
    share = promoted(100, draw, [lambda rng, returns: int(rng.integers(5, 200))], seed=2)[0, 0]
    print(f"\nedge, {what}: {share:.0%} of 100 promoted")
    assert share > 0.5


def test_waiting_with_the_costly_figure_decides_the_same():
    for number in range(20):
        returns = (planted(1250, 2.5, 1) if number % 2 else noise(1250))(np.random.default_rng([3, number]))
        found = trial_sharpes(returns)
        selection = {"trials": 200, "deflated_sharpe": deflated_sharpe_of(returns[:, found.argmax()], found), "pbo": probability_of_overfitting(returns).pbo}
        verdicts = {"causality": {"verdict": "clean"}, "cutoff": {"verdict": "clean"}, "selection": selection}
        whole = recommend(metrics(returns[:, 9]), metrics(returns[:, found.argmax()]), verdicts, POLICY)
        assert whole.recommended == decide(returns, 9)[0]


@given(st.fixed_dictionaries({}, optional={name: st.one_of(st.none(), st.floats(), st.text(max_size=2), st.booleans()) for name in ("sharpe", "return", "max_drawdown")}),
       st.fixed_dictionaries({}, optional={name: st.one_of(st.none(), st.floats(), st.integers(-1, 9), st.text(max_size=2)) for name in ("trials", "distinct", "deflated_sharpe", "pbo")}),
       st.sampled_from(["clean", "leak", "warning", None, 1, ""]), st.sampled_from(["clean", "warning", None, True]))
@settings(max_examples=300, deadline=None)
def test_whatever_the_files_hold_only_figures_pass(figures, selection, causality, cutoff):
    import json
    better = {"sharpe": 2.0, "return": 1.0, "max_drawdown": -0.1}
    verdicts = {"causality": {"verdict": causality}, "cutoff": {"verdict": cutoff}, "selection": selection}
    for baseline, candidate in ((figures, better), (better, figures), (figures, figures)):
        found = recommend(baseline, candidate, verdicts, POLICY)
        json.dumps(found.to_dict(), allow_nan=False)
        assert all(r.sentence for r in found.requirements) and found.recommended == all(r.passed for r in found.requirements)
        if found.recommended:
            assert causality == cutoff == "clean" and 0.95 <= selection["deflated_sharpe"] <= 1
            assert selection.get("pbo") is None and 1 in (selection.get("trials"), selection.get("distinct")) or 0 <= selection["pbo"] <= 0.2
            assert all(-exp(700) < value < exp(700) for both in (baseline, candidate) for value in both.values())
