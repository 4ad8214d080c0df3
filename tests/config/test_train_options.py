"""The options of `train`: what is refused, in which words, and what is taken."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import TrainConfig
from florence2ner.errors import UserError


def load(folder: Path, **flags: Any) -> TrainConfig:
    return load_config(TrainConfig, {"dataset_path": folder} | flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"freeze_vision": True, "freeze_language": True, "freeze_other": True},
            "freeze_vision, freeze_language and freeze_other leave nothing to train; unset one of them",
        ),
        ({"eval_split_ratio": 0}, "eval_split_ratio: should be greater than 0, not 0"),
        ({"eval_split_ratio": 1}, "eval_split_ratio: should be less than 1, not 1"),
        ({"max_steps": 0}, "max_steps: should be greater than or equal to 1, not 0"),
        ({"learning_rate": 0}, "learning_rate: should be greater than 0, not 0"),
        ({"clip_grad_norm": 0}, "clip_grad_norm: should be greater than 0, not 0"),
        ({"weight_decay": -1}, "weight_decay: should be greater than or equal to 0, not -1"),
        ({"warmup_steps": -1}, "warmup_steps: should be greater than or equal to 0, not -1"),
        ({"restarts": 0}, "restarts: should be greater than or equal to 1, not 0"),
        ({"restarts": 2, "lr_schedule": "rex"}, "restarts is for lr_schedule cosine, or leave it out"),
        ({"restart_decay": 0.5}, "restart_decay is for several cycles: set restarts, or leave it out"),
        ({"decay_ratio": 0.5}, "decay_ratio is for lr_schedule wsd, or leave it out"),
        (
            {"lr_schedule": "constant", "min_learning_rate": 1e-6},
            "min_learning_rate is for a learning rate that goes down, or leave it out",
        ),
        ({"min_learning_rate": 1e-4}, "min_learning_rate 0.0001 is above learning_rate 1e-05"),
        ({"warmup_ratio": 1}, "warmup_ratio: should be less than 1, not 1"),
        (
            {"warmup_ratio": 0.1, "warmup_steps": 50},
            "warmup_steps and warmup_ratio both say how long the warmup is: leave out one of them",
        ),
        ({"seed": 2**32}, "seed: should be less than 4294967296, not 4294967296"),
        (
            {"metric_for_best": "los"},
            "metric_for_best: should be 'eval/loss', 'eval/perplexity', 'eval/exact_match',",
        ),
        (
            {"early_stopping_patience": 3, "eval_steps": None},
            "early_stopping_patience needs evaluations: set eval_steps",
        ),
        ({"lora_rank": 4, "weights_dtype": "bf16", "optimizer": "optimi_adamw"}, "saves next to nothing with LoRA"),
        (
            {"ema_decay": 0.9, "optimizer": "schedulefree_adamw", "lr_schedule": "constant"},
            "schedulefree_adamw averages the weights already: leave out ema_decay",
        ),
        ({"run_name": ""}, "run_name: must be the name of one folder, without slashes"),
        ({"run_name": ".."}, "run_name: must be the name of one folder, without slashes, not '..'"),
        ({"run_name": "runs/"}, "run_name: must be the name of one folder, without slashes, not 'runs/'"),
        ({"log_with": ("none", "jsonl")}, "log_with: none can't be combined with other trackers"),
        (
            {"feature_cache": "memory", "freeze_vision": False},
            "feature_cache: memory keeps what a frozen vision tower makes; set freeze_vision: true",
        ),
        ({"feature_cache_max_gb": -1}, "feature_cache_max_gb: should be greater than or equal to 0, not -1"),
        ({"process_timeout": 0}, "process_timeout: should be greater than or equal to 1, not 0"),
        ({"top_k": 3}, "top_p and top_k choose among sampled tokens: set temperature, such as 0.7"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_any_two_parts_may_be_frozen(tmp_path: Path) -> None:
    for trained in ("vision", "language", "other"):
        frozen = {f"freeze_{part}": part != trained for part in ("vision", "language", "other")}
        assert load(tmp_path, **frozen).model_dump().items() >= frozen.items()


def test_a_tracker_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    assert load(tmp_path, log_with=("wandb", "jsonl", "wandb")).log_with == ("wandb", "jsonl")
    assert load(tmp_path, log_with="none").log_with == ("none",)


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_a_trained_tower_needs_no_word_about_the_cache(tmp_path: Path, cache: str) -> None:
    assert load(tmp_path, freeze_vision=False, feature_cache=cache).feature_cache == cache


def test_a_run_is_called_as_its_dataset_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(Path(), output_dir="runs").run_dir == Path("runs") / tmp_path.name
    assert load(Path(), run_name="first").run_dir == Path("checkpoints/first")
