"""Which metrics are computed: names in full or short, each once known."""

from pathlib import Path

import pytest

from florence2ner import EvalConfig, TrainConfig
from florence2ner.config.metric_options import MetricOptions


def test_short_names_are_completed_everywhere(tmp_path: Path) -> None:
    assert MetricOptions(eval_metrics=("cider", "eval/bleu4")).eval_metrics == ("eval/cider", "eval/bleu4")
    assert TrainConfig(dataset_path=tmp_path, metric_for_best="rouge_l").metric_for_best == "eval/rouge_l"
    config = EvalConfig(dataset_path=tmp_path, against="b", fail_if_worse=("loss",), eval_metrics=("cider",))
    assert config.fail_if_worse == ("eval/loss",)


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    for setting in ({"eval_metrics": ("cidre",)}, {"metric_for_best": "eval/los"}):
        with pytest.raises(ValueError, match="eval/"):
            TrainConfig(dataset_path=tmp_path, **setting)
