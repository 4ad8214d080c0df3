"""The result of a run: its checkpoints, the last figures, and all lines that were logged."""

import dataclasses
import json

import pytest

from florence2ner import TrainResult, train
from tests.conftest import MakeConfig
from tests.support import figures


def test_a_result_has_checkpoints_figures_and_the_history_of_the_whole_run(make_config: MakeConfig) -> None:
    config = make_config(epochs=2, eval_steps=2, save_steps=2, learning_rate=0.3, save_total_limit=1)
    first = train(config.model_copy(update={"epochs": 1}))
    assert [line["step"] for line in first.history] == [1, 2, 2, 3, 3]
    result = train(config.model_copy(update={"resume": "latest"}))
    assert result.run_dir == config.run_dir
    assert result.checkpoint == config.run_dir / "step-6"
    losses = figures(config.run_dir, "eval/loss")
    best = min(losses, key=lambda step: losses[step])
    assert result.best == config.run_dir / f"step-{best}"
    assert result.best.is_dir()
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert list(result.history) == lines
    assert [line["step"] for line in result.history] == [1, 2, 2, 3, 3, 4, 4, 5, 6, 6]
    assert result.figures["eval/loss"] == losses[6]
    assert result.figures["train/loss"] == figures(config.run_dir, "train/loss")[6]
    assert result.figures.keys() == {name for line in lines for name in line} - {"step", "time"}
    again = train(config.model_copy(update={"resume": "latest"}))
    assert again == dataclasses.replace(result, checkpoint=again.checkpoint, run_dir=again.run_dir, best=again.best), (
        "a run that has all its updates"
    )
    assert again.checkpoint == result.checkpoint.resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.best = None  # type: ignore[misc]


def test_without_logs_and_evaluations_there_are_no_figures_and_no_best(make_config: MakeConfig) -> None:
    config = make_config(max_steps=1, eval_steps=None, log_with=("none",))
    assert train(config) == TrainResult(config.run_dir / "step-1", None, config.run_dir, {}, ())
