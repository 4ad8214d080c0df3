"""The options of LoRA: what does nothing, and what can't be together, is refused in one line."""

from pathlib import Path

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import TrainConfig
from florence2ner.errors import UserError


def load(folder: Path, **flags: object) -> TrainConfig:
    return load_config(TrainConfig, {"dataset_path": [folder], **flags})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora_alpha": 8}, "lora_alpha does nothing alone: set lora_rank, too"),
        ({"lora_dropout": 0.1}, "lora_dropout does nothing alone"),
        ({"lora_targets": "all"}, "lora_targets does nothing alone"),
        ({"use_dora": True}, "use_dora does nothing alone"),
        ({"use_rslora": True}, "use_rslora does nothing alone"),
        ({"lora_rank": 0}, "lora_rank: .* greater than or equal to 1"),
        ({"lora_rank": 4, "lora_targets": "(q_proj"}, "lora_targets: is not a regular expression"),
        ({"lora_rank": 4, "freeze_vision": False}, "freeze_vision does nothing with LoRA, which freezes the whole"),
        ({"lora_rank": 4, "freeze_language": True}, "freeze_language does nothing with LoRA"),
        ({"lora_rank": 4, "freeze_other": True}, "freeze_other does nothing with LoRA"),
        ({"lora_rank": 4, "lora_targets": "all", "feature_cache": "disk"}, "leave the tower out of lora_targets"),
    ],
)
def test_what_does_nothing_or_contradicts_is_refused(tmp_path: Path, flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, **flags)


def test_the_cache_goes_with_adapters_outside_the_tower(tmp_path: Path) -> None:
    config = load(tmp_path, lora_rank=4, feature_cache="memory")
    assert (config.lora_targets, config.lora_alpha) == ("language", None)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert load_config(TrainConfig, {}, file) == config
