"""An evaluation's figures with their intervals, and as JSON."""

import json

import pytest

from florence2ner.evaluation.result import as_json, summarise
from florence2ner.evaluation.rows import rows_from_json
from tests.evaluation.test_compare import rows_of
from tests.metrics.pairs import made_pairs


def test_figures_intervals_and_scores_of_each_go_together() -> None:
    rows = rows_of(*made_pairs())
    found = summarise(rows, ["eval/exact_match", "eval/distinct1"], samples=210, unreadable=["x.png"])
    assert set(found.figures) == {"eval/loss", "eval/perplexity", "eval/exact_match", "eval/distinct1"}
    assert found.loss == pytest.approx(sum(row.nats for row in rows) / 2000)
    assert found.exact_match == pytest.approx(sum(row.scores["eval/exact_match"] for row in found.rows) / 200)
    limits = found.intervals()
    assert set(limits) == set(found.figures) - {"eval/distinct1"}
    for name, (low, high) in limits.items():
        assert low < found.figures[name] < high
    stored = json.loads(json.dumps(as_json(found, with_intervals=True)))
    assert stored["figures"] == found.figures
    assert stored["intervals"]["eval/loss"] == list(limits["eval/loss"])
    assert (stored["samples"], stored["tokens"], stored["unreadable"]) == (210, 2000, ["x.png"])
    assert rows_from_json(stored) == found.rows
