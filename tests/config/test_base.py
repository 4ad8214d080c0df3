"""Settings from YAML and flags: which beats which, and one line for every mistake."""

import os
from pathlib import Path

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import CaptionConfig, TrainConfig
from florence2ner.errors import UserError


def test_flags_beat_yaml_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"dataset_path: {tmp_path}\nepochs: 5\nlearning_rate: 1e-4\nmax_steps: null\n")
    config = load_config(TrainConfig, {"epochs": 7}, file)
    file.write_text(f"dataset_path: {tmp_path}\nepochs: 5\nlearning_rate: 1e-4\nmax_steps: none\nmixed_precision: no\n")
    assert load_config(TrainConfig, {"epochs": 7}, file) == config.model_copy(update={"mixed_precision": "no"})
    assert (config.epochs, config.learning_rate, config.max_steps, config.seed) == (7, 1e-4, None, 42)


def test_saved_settings_read_back_equal(tmp_path: Path) -> None:
    config = TrainConfig(
        dataset_path=tmp_path, clip_grad_norm=None, log_with=("wandb", "tensorboard"), task_prompt="<OD>"
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(TrainConfig, {}, file) == config


def test_settings_come_through_a_pipe_too(tmp_path: Path) -> None:
    """As from `--config <(...)` and `--config /dev/stdin`."""
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write(f"dataset_path: {tmp_path}\nepochs: 5\n")
    try:
        assert load_config(TrainConfig, {}, Path(f"/dev/fd/{reader}")).epochs == 5
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("learning_rat: 1", r"unknown key 'learning_rat'\. Did you mean learning_rate\?"),
        ("epochs: many", "epochs: should be a valid integer.*not 'many'"),
        ("epochs: 0", "epochs: should be greater than or equal to 1, not 0"),
        ("eval_split_ratio: 1.5", "eval_split_ratio: should be less than 1"),
        ("mixed_precision: fp8", "mixed_precision: should be 'auto', 'no', 'bf16' or 'fp16', not 'fp8'"),
        ("log_with: [none, wandb]", "log_with: none can't be combined"),
        ("run_name: a/b", "run_name: must be the name of one folder"),
        ("freeze_language: true\nfreeze_other: true", "leave nothing to train"),
        ("feature_cache: disk\nfreeze_vision: false", "feature_cache: disk keeps .*set freeze_vision: true, or leave"),
        ("dataset_path: /nowhere", "dataset_path: /nowhere does not exist"),
        ("- a\n- b", "must hold `key: value` lines, not a list"),
        ("a: [", "is not valid YAML"),
        ("epochs: 1\nseed: 2\n'epochs': 5", r"run\.yaml .* epochs is given twice, in lines 1 and 3: keep one of them"),
        ("log_with:\n- {a: 1, b: 2, a: 1}", "a is given twice, in lines 2 and 2"),
        ("epochs: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_mistakes_get_one_line_that_names_the_key(tmp_path: Path, yaml: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    flags = {} if "dataset_path" in yaml else {"dataset_path": tmp_path}
    with pytest.raises(UserError, match=message) as error:
        load_config(TrainConfig, flags, file)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(TrainConfig, {"dataset_path": [str(tmp_path / "nowhere")]})
    where = f"{tmp_path}/nowhere does not exist; name the folder that holds the images and captions"
    assert str(error.value) == f"dataset_path: {where}"
    with pytest.raises(UserError, match="dataset_path: Tuple should have at least 1 item"):
        load_config(TrainConfig, {"dataset_path": []})


def test_missing_values_say_how_to_give_them() -> None:
    with pytest.raises(UserError, match=r"dataset_path is missing: give --dataset-path"):
        load_config(TrainConfig, {})
    with pytest.raises(UserError, match=r"paths is missing: give PATHS"):
        load_config(CaptionConfig, {})
    with pytest.raises(UserError, match=r"can't read the config file nowhere\.yaml"):
        load_config(TrainConfig, {}, Path("nowhere.yaml"))
