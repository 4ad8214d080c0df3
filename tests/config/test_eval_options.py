"""The options of `eval`: what is refused; and that it generates captions as `caption` and `train` do."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.base import Config, load_config
from florence2ner.config.commands import CaptionConfig, EvalConfig, TrainConfig
from florence2ner.config.options import Decoding, GenerationOptions
from florence2ner.errors import UserError


def load(folder: Path, **flags: Any) -> EvalConfig:
    return load_config(EvalConfig, {"dataset_path": folder} | flags)


def generation_fields(config: type[Config]) -> dict[str, str]:
    """The fields in the panel of generation: type, default, limits and help text, as they are written."""
    return {name: repr(field) for name, field in config.model_fields.items() if config.panel_of(name) == Decoding.panel}


@pytest.mark.parametrize("config", [EvalConfig, TrainConfig])
def test_captions_are_evaluated_as_they_are_made(config: type[Config]) -> None:
    expected = generation_fields(CaptionConfig)
    if config is TrainConfig:
        del expected["seed"]  # it has one seed for everything
    assert expected.keys() >= {*GenerationOptions.model_fields} >= {"num_beams", "bad_words", "retry"}
    assert generation_fields(config) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_path": "/nowhere"}, "dataset_path: /nowhere does not exist; name the folder that holds the images"),
        ({"show": -1}, "show: should be greater than or equal to 0, not -1"),
        ({"batch_size": 0}, "batch_size: should be greater than or equal to 1, not 0"),
        ({"num_beams": 0}, "num_beams: should be greater than or equal to 1, not 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: should be greater than or equal to 1, not 0"),
        ({"temperature": 0}, "temperature: should be greater than 0, not 0"),
        ({"temperature": 0.7, "top_p": 1.1}, "top_p: should be less than or equal to 1, not 1.1"),
        ({"top_p": 0.9}, "top_p and top_k choose among sampled tokens: set temperature, such as 0.7"),
        ({"top_k": 5}, "top_p and top_k choose among sampled tokens: set temperature, such as 0.7"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: should be greater than or equal to 0, not -1"),
        ({"repetition_penalty": 0}, "repetition_penalty: should be greater than 0, not 0"),
        ({"watch": True}, "watch"),  # of another command
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dataset_that_is_a_file_and_an_output_that_is_a_folder_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"dataset_path: {file} is a file, not a folder; name the folder that holds"):
        load(file)
    with pytest.raises(UserError, match=f"output: {tmp_path} is a folder; name a file, such as results.json"):
        load(tmp_path, output=tmp_path)
    with pytest.raises(UserError, match="output: /dev/null is a pipe, socket or device; name a file, such as results"):
        load(tmp_path, output="/dev/null")
    assert load(tmp_path, output=tmp_path / "results.json").output == tmp_path / "results.json"


def test_what_is_given_is_all_but_what_is_left_to_the_checkpoint(tmp_path: Path) -> None:
    assert load(tmp_path).given() == {"max_new_tokens": 512, "num_beams": 3}
    config = load(tmp_path, temperature=0.7, top_k=5, no_repeat_ngram_size=0, length_penalty=0.0, bad_words=["photo"])
    assert config.given() == {
        "max_new_tokens": 512,
        "num_beams": 3,
        "temperature": 0.7,
        "top_k": 5,
        "no_repeat_ngram_size": 0,
        "length_penalty": 0.0,
        "bad_words": ("photo",),
    }
