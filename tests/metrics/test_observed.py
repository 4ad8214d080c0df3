"""An image as metrics see it."""

from florence2ner.metrics.observed import Observed
from florence2ner.metrics.table import measure


def test_what_was_not_asked_counts_for_the_loss_alone() -> None:
    seen = [
        Observed(nats=6.0, tokens=3, references=("a star",)),
        Observed(nats=2.0, tokens=1, references=("a star",), prediction="a star", is_loop=True),
    ]
    names = ["eval/loss", "eval/exact_match", "eval/repetition_rate", "eval/truncation_rate"]
    assert measure(seen, names) == {
        "eval/loss": 2.0,
        "eval/exact_match": 1.0,
        "eval/repetition_rate": 1.0,
        "eval/truncation_rate": 0.0,
    }
