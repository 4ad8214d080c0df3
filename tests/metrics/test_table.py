"""The table: loss, exact match, which metrics are computed, and which value is better."""

import math

import pytest

from florence2ner.metrics.names import MetricName
from florence2ner.metrics.observed import Observed
from florence2ner.metrics.table import METRICS, format_figure, is_better, measure, names_for, scores_of_each
from tests.metrics.pairs import made_pairs
from tests.metrics.support import observed


def test_loss_and_perplexity_are_over_all_tokens() -> None:
    seen = [Observed(nats=7.0, tokens=10, references=("a",)), Observed(nats=1.0, tokens=30, references=("a",))]
    found = measure(seen, ["eval/loss", "eval/perplexity"])
    assert found == pytest.approx({"eval/loss": 0.2, "eval/perplexity": math.exp(0.2)})
    huge = [Observed(nats=1e9, tokens=1, references=("a",))]
    assert measure(huge, ["eval/perplexity"])["eval/perplexity"] == math.exp(700)


def test_exact_match_ignores_white_space_and_takes_any_reference() -> None:
    predictions, references = made_pairs()
    pairs = zip(predictions, references, strict=True)
    plain = sum(text.strip() in [truth.strip() for truth in texts] for text, texts in pairs) / 200
    assert measure(observed(predictions, references), ["eval/exact_match"]) == {"eval/exact_match": plain}
    seen = observed([" a star\n", "A star", "b"], [["a star"], ["a star"], ["a", "b"]])
    assert measure(seen, ["eval/exact_match"])["eval/exact_match"] == 2 / 3


def test_all_that_apply_are_computed_or_those_asked_for() -> None:
    seen = observed(["a star"], [["a star"]])
    unasked = names_for(seen)
    assert {"eval/loss", "eval/cider", "eval/bleu4", "eval/rouge_l", "eval/chrf"} < {*unasked}
    assert not {"eval/map", "eval/cer", "eval/tag_f1"} & {*unasked}
    assert names_for(seen, ["eval/chrf"]) == ("eval/loss", "eval/perplexity", "eval/chrf")
    assert names_for(observed([None], [["a star"]])) == ("eval/loss", "eval/perplexity")


def test_scores_of_each_are_those_of_a_corpus_of_one_but_for_what_is_rare() -> None:
    seen = observed(*made_pairs())
    names: list[MetricName] = [
        "eval/loss",
        "eval/exact_match",
        "eval/chrf",
        "eval/rouge1",
        "eval/length_ratio",
        "eval/distinct1",
    ]
    each = scores_of_each(seen, names)
    for one, scores in zip(seen, each, strict=True):
        alone = measure([one], [name for name in names if name != "eval/distinct1"])
        assert scores == pytest.approx(alone)


@pytest.mark.parametrize(
    ("name", "value", "best", "better"),
    [
        ("eval/loss", 1.0, None, True),
        ("eval/loss", 0.9, 1.0, True),
        ("eval/loss", 1.1, 1.0, False),
        ("eval/loss", math.nan, None, False),
        ("eval/loss", math.nan, 1.0, False),
        ("eval/exact_match", 0.6, 0.5, True),
        ("eval/cider", 0.4, 0.5, False),
        ("eval/length_ratio", 1.1, 0.8, True),
    ],
)
def test_better_is_in_the_direction_of_the_metric(
    name: MetricName, value: float, best: float | None, better: bool
) -> None:
    assert is_better(name, value, best) is better


def test_figures_are_written_as_people_read_them() -> None:
    assert format_figure("eval/exact_match", 0.4375) == "43.8%"
    assert format_figure("eval/cider", 0.41271) == "0.4127"
    assert all(metric.label and metric.meaning for metric in METRICS.values())
