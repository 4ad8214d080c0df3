"""Figures about captions: each against its formula, and which of two values is the better one."""

import math
from typing import get_args

import pytest

from florence2ner.metrics import METRICS, MetricName, Observed, exact_match, is_better, measure


def test_the_table_has_every_name_that_a_setting_may_give() -> None:
    assert tuple(METRICS) == get_args(MetricName)


def test_with_captions_every_figure_is_measured() -> None:
    figures = measure(Observed(0.7, ["a cat", "a dog", "a cow"], ["a cat", "a cow", "a cow"]))
    assert figures == pytest.approx({"eval/loss": 0.7, "eval/perplexity": math.exp(0.7), "eval/exact_match": 2 / 3})


def test_without_captions_there_is_no_figure_about_them() -> None:
    assert measure(Observed(2.0)) == pytest.approx({"eval/loss": 2.0, "eval/perplexity": math.e**2})


def test_a_huge_loss_has_a_perplexity_that_a_float_holds() -> None:
    assert measure(Observed(1e6))["eval/perplexity"] == math.exp(700)


def test_white_space_around_a_caption_does_not_count_and_inside_does() -> None:
    assert exact_match([" a cat\n", "a  dog"], ["a cat", "a dog"]) == 0.5


def test_nothing_to_compare_is_an_error_and_so_are_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="no captions to compare"):
        exact_match([], [])
    with pytest.raises(ValueError, match="longer than"):
        exact_match(["a cat"], ["a cat", "a dog"])


@pytest.mark.parametrize(
    ("name", "value", "best", "expected"),
    [
        ("eval/loss", 1.0, 2.0, True),
        ("eval/loss", 2.0, 1.0, False),
        ("eval/perplexity", 3.0, 4.0, True),
        ("eval/exact_match", 0.6, 0.5, True),
        ("eval/exact_match", 0.4, 0.5, False),
    ],
)
def test_better_is_lower_but_for_exact_match(name: MetricName, value: float, best: float, expected: bool) -> None:
    assert is_better(name, value, best) is expected


@pytest.mark.parametrize("name", get_args(MetricName))
def test_the_first_value_is_better_than_none_an_equal_one_is_not_and_nan_never_is(name: MetricName) -> None:
    assert is_better(name, 0.5, None)
    assert not is_better(name, 0.5, 0.5)
    assert not is_better(name, math.nan, None)
    assert not is_better(name, math.nan, 0.5)
