"""The options of the optimizer: what is refused, in which words, and what is taken."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import TrainConfig
from florence2ner.errors import UserError

BF16 = {"weights_dtype": "bf16", "optimizer": "optimi_lion"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"vision_lr": 1e-6}, "vision_lr is for a part that is trained: set freeze_vision: false, or leave it out"),
        ({"layer_decay": 0.9}, "layer_decay is for a part that is trained: set freeze_vision: false, or leave it out"),
        (
            {"other_lr": 1e-6, "freeze_other": True},
            "other_lr is for a part that is trained: set freeze_other: false, or leave it out",
        ),
        (
            {"other_lr": 1e-6, "freeze_language": True},
            "nothing is left for learning_rate: set that instead of other_lr",
        ),
        (
            {"vision_lr": 1e-6, "freeze_vision": False, "freeze_language": True, "freeze_other": True},
            "nothing is left for learning_rate: set that instead of vision_lr",
        ),
        ({"vision_lr": 0, "freeze_vision": False}, "vision_lr: should be greater than 0, not 0"),
        ({"layer_decay": 1, "freeze_vision": False}, "layer_decay: should be less than 1, not 1"),
        ({"optimizer_args": ("beta=1",)}, "optimizer_args: 'beta=1' is no key=value of betas, eps, momentum"),
        (
            {"optimizer": "schedulefree_adamw"},
            "schedulefree_adamw makes up for a schedule: set lr_schedule: constant (a warmup is right), not cosine",
        ),
        (
            {"weights_dtype": "bf16"},
            "weights_dtype: bf16 loses small updates with adamw, which has no Kahan summation: set optimizer: "
            "optimi_adamw, or another of optimi_adam, optimi_adamw, optimi_lion",
        ),
        (BF16 | {"optimizer": "optimi_adan"}, "weights_dtype: bf16 loses small updates with optimi_adan"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(TrainConfig, {"dataset_path": tmp_path} | flags)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"vision_lr": 1e-6, "freeze_vision": False, "freeze_language": True},  # the projector has learning_rate
        {"layer_decay": 0.5, "freeze_vision": False, "freeze_language": True, "freeze_other": True},
        {"optimizer": "schedulefree_sgd", "lr_schedule": "constant", "warmup_steps": 9},
        BF16,
    ],
)
def test_what_can_work_is_taken_and_kept(tmp_path: Path, flags: dict[str, Any]) -> None:
    config = load_config(TrainConfig, {"dataset_path": tmp_path} | flags)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(TrainConfig, {}, tmp_path / "config.yaml") == config
