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


def test_a_run_s_own_file_of_settings_is_read(tmp_path: Path) -> None:
    run = TrainConfig(dataset_path=tmp_path, epochs=7, lora_rank=4, eval_split_count=3, max_steps=9)
    file = tmp_path / "config.yaml"
    file.write_text(run.to_yaml())
    config = load_config(InspectConfig, {}, file)
    shared = TrainConfig.model_fields.keys() & InspectConfig.model_fields.keys()
    assert {name: getattr(config, name) for name in shared} == {name: getattr(run, name) for name in shared}
    assert (config.epochs, config.eval_split_count) == (7, 3)
    file.write_text("dataset_path: .\nepohcs: 3\n")
    with pytest.raises(UserError, match="unknown key 'epohcs'"):
        load_config(InspectConfig, {}, file)
