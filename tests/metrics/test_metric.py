"""What is better, and parts that are summed."""

import math

import numpy as np

from florence2ner.metrics.metric import ratio, shares
from florence2ner.metrics.table import METRICS


def test_the_nearer_to_one_the_better_is_a_length() -> None:
    length = METRICS["eval/length_ratio"]
    assert length.is_better(0.9, 1.2)
    assert not length.is_better(1.2, 0.9)
    assert METRICS["eval/cider"].is_better(1.0, 0.5)
    assert METRICS["eval/loss"].is_better(0.5, 1.0)
    for metric in METRICS.values():
        assert not metric.is_better(math.nan, 1.0)


def test_a_ratio_of_nothing_is_no_number() -> None:
    assert ratio(np.array([3.0, 4.0])) == 0.75
    assert math.isnan(ratio(np.zeros(2)))
    assert ratio(shares([0.0, 1.0, 1.0]).sum(axis=0)) == 2 / 3


def test_a_package_that_is_missing_is_noticed() -> None:
    missing = vars(METRICS["eval/map"]) | {"module": "no_such_module"}
    assert not type(METRICS["eval/map"])(**missing).is_there()
