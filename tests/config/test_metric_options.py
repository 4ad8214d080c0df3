"""Which metrics are computed: names in full or short, each once known."""

from pathlib import Path

import pytest

from florence2ner import EvalConfig, TrainConfig, UserError
from florence2ner.config.base import load_config
from florence2ner.config.metric_options import MetricOptions
from tests.conftest import Start


def test_short_names_are_completed_everywhere(tmp_path: Path) -> None:
    assert MetricOptions(eval_metrics=("cider", "eval/bleu4")).eval_metrics == ("eval/cider", "eval/bleu4")
    assert TrainConfig(dataset_path=tmp_path, metric_for_best="rouge_l").metric_for_best == "eval/rouge_l"
    config = EvalConfig(dataset_path=tmp_path, against="b", fail_if_worse=("loss",), eval_metrics=("cider",))
    assert config.fail_if_worse == ("eval/loss",)


def test_a_name_that_is_none_is_refused_with_the_one_that_is_meant(tmp_path: Path) -> None:
    for flags, near in (({"eval_metrics": ("cidre",)}, "eval/cider"), ({"metric_for_best": "eval/los"}, "eval/loss")):
        with pytest.raises(UserError, match=rf"should be 'eval/loss', .*, not '.*'\. Did you mean {near}\?"):
            load_config(TrainConfig, {"dataset_path": tmp_path, **flags})


def test_the_command_line_takes_short_names(command: Start, shapes: Path, tmp_path: Path) -> None:
    done = command("train", "--dataset-path", shapes, "--metric-for-best", "cer", "--model-name", "nowhere")
    assert "metric_for_best eval/cer (character error rate) applies to none" in done.stderr
