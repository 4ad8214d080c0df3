"""The settings of the review."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from florence2ner.config.commands import ReviewConfig


def test_the_page_is_for_this_machine_unless_told_otherwise(tmp_path: Path) -> None:
    config = ReviewConfig(directory=tmp_path)
    assert (config.host, config.port, config.open, config.allow_outside) == ("127.0.0.1", None, False, False)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("port", 0), ("port", 70_000), ("host", ""), ("findings", "nowhere"), ("directory", "nowhere")],
)
def test_what_cannot_be_is_refused(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ReviewConfig.model_validate({"directory": tmp_path, setting: value})
