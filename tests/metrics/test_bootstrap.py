"""The intervals: against scipy's, and whether they cover the truth as often as they say."""

import numpy as np
import pytest
import scipy
from scipy.stats import bootstrap

from florence2ner.metrics.bootstrap import _tail, intervals
from florence2ner.metrics.metric import Summed, shares
from florence2ner.metrics.table import METRICS, parts_of
from tests.metrics.pairs import made_pairs
from tests.metrics.support import observed

MEAN = METRICS["eval/exact_match"]
assert isinstance(MEAN, Summed)


def test_it_is_scipys_percentile_interval() -> None:
    rng = np.random.default_rng(1)
    before = rng.gamma(2.0, size=80)
    after = before + rng.normal(0.3, 0.5, size=80)
    each, difference = intervals(MEAN, shares(before), shares(after))
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(2)}
    for found, values in ((each[0], before), (each[1], after), (difference, after - before)):
        theirs = bootstrap((values,), np.mean, **options).confidence_interval
        assert found == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert difference[1] - difference[0] < 0.5 * (each[1][1] - each[1][0]), "pairs differ by less than images do"


@pytest.mark.parametrize(("kind", "images"), [("mean", 120), ("ratio", 120), ("ratio", 8)])
def test_the_interval_of_a_difference_covers_the_truth_in_95_of_100_cases(kind: str, images: int) -> None:
    rng = np.random.default_rng(3)
    covered, cases = 0, 400
    for _ in range(cases):
        weights = rng.integers(5, 30, size=images) if kind == "ratio" else np.ones(images)
        hard = rng.normal(size=images)
        before = weights * (2.0 + 0.5 * hard + rng.normal(0, 0.3, size=images))
        after = weights * (1.6 + 0.4 * hard + rng.normal(0, 0.3, size=images))
        parts = [np.column_stack([values, weights]) for values in (before, after)]
        _, interval = intervals(MEAN, *parts)
        assert interval is not None
        covered += interval[0] <= -0.4 <= interval[1]
    assert 0.92 <= covered / cases <= 0.975, covered / cases  # 2.5 standard errors, and a little for the percentiles


def test_every_metric_of_captions_has_an_interval_that_holds_its_value() -> None:
    seen = observed(*made_pairs())
    for name, metric in METRICS.items():
        if isinstance(metric, Summed) and name not in ("eval/meteor", "eval/cer"):
            parts = parts_of(metric, seen)
            (found,), _ = intervals(metric, parts)
            assert found is not None
            assert found[0] <= metric.value(parts.sum(axis=0)) <= found[1], name
            assert intervals(metric, parts) == ([found], None), "the same each time"


def test_two_models_that_say_the_same_do_not_differ() -> None:
    parts = shares(np.random.default_rng(0).random(50))
    assert intervals(MEAN, parts, parts)[1] == (0.0, 0.0)


@pytest.mark.parametrize("images", [5, 6, 9, 30, 1000])
def test_the_widening_is_that_of_students_t(images: int) -> None:
    """Of many resampled means, which are about normal, the interval ends where that of a t-test does."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=images)
    values = (values - values.mean()) / values.std(ddof=1) * np.sqrt(images)  # the standard error of the mean is 1
    normal = scipy.stats.norm(scale=np.sqrt((images - 1) / images))  # how means of resamples differ
    half = scipy.stats.t.ppf(0.975, images - 1)
    assert _tail(images) == pytest.approx(normal.sf(half), rel=0.01)
    if images >= 30:
        ((low, high),) = intervals(MEAN, shares(values))[0]
        assert (low, high) == pytest.approx((-half, half), abs=0.15)


def test_what_counts_for_few_images_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    five = shares(rng.random(5))
    assert intervals(MEAN, np.zeros((5, 2)))[0] == [None]
    assert intervals(MEAN, five[:4], five[:4] + 1) == ([None, None], None)
    found = intervals(MEAN, five)
    assert found[0][0] is not None
    assert intervals(MEAN, np.concatenate([five, np.zeros((95, 2))])) == found, "images that don't count change nothing"
