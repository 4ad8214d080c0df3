"""The options of `caption`: what is refused, in which words, and what is taken."""

import os
from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import CaptionConfig
from florence2ner.errors import UserError


def load(folder: Path, **flags: Any) -> CaptionConfig:
    return load_config(CaptionConfig, {"paths": (folder,)} | flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"paths": ()}, "paths is missing: give PATHS, images or folders with images"),
        ({"paths": ("/nowhere/at-all",)}, "paths: there is no file or folder /nowhere/at-all"),
        ({"task_prompt": ()}, "task_prompt: "),
        ({"text": ""}, "text: "),
        ({"max_pixels": 0}, "max_pixels: should be greater than or equal to 1, not 0"),
        ({"batch_size": 0}, "batch_size: should be greater than or equal to 1, not 0"),
        ({"dry_run": True, "watch": True}, "dry_run and watch exclude each other"),
        ({"existing": "destroy"}, "existing: should be 'skip', 'overwrite', 'append' or 'prepend', not 'destroy'"),
        ({"on_collision": "guess"}, "on_collision: should be 'refuse' or 'full-name', not 'guess'"),
        ({"caption_extension": "txt"}, "caption_extension: "),
        ({"caption_extension": "./txt"}, "caption_extension: "),
        ({"caption_extension": "."}, "caption_extension: "),
        ({"output": "captions.txt"}, "output: must end in .jsonl, .csv or .json, or be - for standard output"),
        (
            {"output": "a.jsonl", "existing": "append"},
            "existing: append extends caption files; with output choose skip or overwrite",
        ),
        (
            {"output": "-", "existing": "prepend"},
            "existing: prepend extends caption files; with output choose skip or overwrite",
        ),
        (
            {"output": "a.csv", "output_dir": "captions"},
            "output is one file, output_dir a folder of caption files: choose one of them",
        ),
        ({"bad_words": ("photo", "")}, "bad_words: a word is blank, which would forbid every word or none"),
        ({"bad_words": (" ",)}, "bad_words: a word is blank"),
        ({"csv_safe": True}, "csv_safe is about the cells of a .csv: leave it out, or set output to one"),
        ({"csv_safe": True, "output": "a.jsonl"}, "csv_safe is about the cells of a .csv"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").mkdir()
    with pytest.raises(UserError, match=r"output: .*all\.jsonl is a folder; name a file, such as captions\.jsonl"):
        load(tmp_path, output=tmp_path / "all.jsonl")


def test_an_output_that_is_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    """It would be replaced by a file."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "null.jsonl").symlink_to("/dev/null")
    for path in (tmp_path / "pipe.jsonl", tmp_path / "null.jsonl"):
        with pytest.raises(UserError, match=f"output: {path} is a pipe, socket or device; name a file, such as "):
            load(tmp_path, output=path)


def test_every_missing_path_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no file or folder {tmp_path}/gone"):
        load(tmp_path, paths=(tmp_path, tmp_path / "gone"))


@pytest.mark.parametrize("output", ["a.jsonl", "b.csv", "c.json", "metadata.jsonl", "-"])
@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_outputs_of_a_known_form_are_taken(tmp_path: Path, output: str, existing: str) -> None:
    config = load(tmp_path, output=output, existing=existing)
    assert (str(config.output), config.existing) == (output, existing)


def test_the_home_folder_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load(tmp_path, paths=("~",), output_dir="~/captions", failures="~/failures.jsonl")
    assert config.paths == (tmp_path,)
    assert (config.output_dir, config.failures) == (tmp_path / "captions", tmp_path / "failures.jsonl")


def test_one_word_is_a_list_of_one(tmp_path: Path) -> None:
    config = load(tmp_path, paths=str(tmp_path), task_prompt="<OD>", bad_words="photo")
    assert (config.paths, config.task_prompt, config.bad_words) == ((tmp_path,), ("<OD>",), ("photo",))
