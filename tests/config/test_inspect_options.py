"""The settings of inspect: their limits, and the one flag that is not named as its field."""

from pathlib import Path

import pytest

from florence2ner import InspectConfig, TrainConfig
from florence2ner.config.base import load_config
from florence2ner.errors import UserError


def test_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.html"):
        InspectConfig(dataset_path=tmp_path, report=tmp_path / "page.pdf")
    with pytest.raises(ValueError, match="is a folder; name a file"):
        InspectConfig(dataset_path=tmp_path, json_file=tmp_path)
    with pytest.raises(ValueError, match="both write to standard output"):
        InspectConfig(dataset_path=tmp_path, json_file=Path("-"), fix=True)
    assert InspectConfig(dataset_path=tmp_path, json_file=Path("-")).json_file == Path("-")


def test_the_flag_of_a_field_may_have_another_name(tmp_path: Path) -> None:
    assert InspectConfig.flag_of("json_file") == "--json"
    assert InspectConfig.flag_of("max_pixels") == "--max-pixels"
    assert TrainConfig.flag_of("epochs") == "--epochs"
    with pytest.raises(UserError, match="dataset_path is missing: give DATASET_PATH"):
        load_config(InspectConfig, {})
