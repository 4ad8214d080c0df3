"""What is blurred or varied in training: limits, and what does nothing together."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import TrainConfig
from florence2ner.errors import UserError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"label_smoothing": 1}, "label_smoothing: should be less than 1, not 1"),
        ({"label_smoothing": -0.1}, "label_smoothing: should be greater than or equal to 0, not -0.1"),
        (
            {"augment": True, "feature_cache": "disk"},
            "feature_cache: disk keeps images that come again, and with augment none does; leave feature_cache at auto",
        ),
        ({"ema_decay": 1}, "ema_decay: should be less than 1, not 1"),
        ({"export_ema": False}, "export_ema does nothing alone: set ema_decay, such as 0.999"),
    ],
)
def test_what_is_refused(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(TrainConfig, {"dataset_path": tmp_path} | flags)
    assert str(error.value) == message
