"""Every option says what it means, and stands in a panel of the help."""

import pytest

from florence2ner.config.commands import CaptionConfig, EvalConfig, TrainConfig


@pytest.mark.parametrize("config", [TrainConfig, EvalConfig, CaptionConfig])
def test_every_field_has_a_help_text_and_a_panel(config: type[TrainConfig]) -> None:
    for name, field in config.model_fields.items():
        assert field.description, name
        assert config.panel_of(name), name
