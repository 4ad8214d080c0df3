"""What was accepted in a review is what training reads with --only-accepted, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from florence2ner import TrainConfig, inspect_dataset, train
from florence2ner.config.commands import EvalConfig, InspectConfig
from florence2ner.config.roots import Root
from florence2ner.data.accepted import JOURNAL, accepted_in, digest_of, text_of
from florence2ner.data.layouts.choice import discover
from florence2ner.errors import UserError
from florence2ner.evaluation.evaluate import evaluate
from tests.conftest import MakeConfig
from tests.review.support import Opened


def accept(folder: Path, count: int) -> None:
    opened = Opened(folder)
    opened.changes.accept(range(count), accepted=True)


@pytest.fixture
def data(tmp_path: Path, shapes: Path) -> Path:
    return shutil.copytree(shapes, tmp_path / "shapes")


def samples_of(*roots: Path, **settings: object) -> list[str]:
    config = TrainConfig.model_validate({"dataset_path": roots, "only_accepted": True, **settings})
    return [sample.image.key for root in config.roots for sample in discover(root).samples]


def test_only_what_is_as_it_was_accepted_is_read(data: Path) -> None:
    accept(data, 5)
    text = (data / "0000.txt").read_text()
    (data / "0000.txt").write_text(f"\ufeff {text.strip()}\r\n\n")  # the same caption in another form
    (data / "0001.txt").write_text("changed since")
    (data / "0002.txt").write_bytes(b"\xff")
    (data / "0003.txt").unlink()
    assert samples_of(data) == ["0000.png", "0004.png"]
    found = discover(Root(data, TrainConfig(dataset_path=data, only_accepted=True)))
    assert any(line.startswith("21 captions were not accepted and are left out: ") for line in found.report())
    assert found.images_without_caption == (data / "0003.png",)


def test_a_journal_counts_for_its_folder_wherever_the_dataset_begins(data: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(data, whole / "one")
    shutil.copytree(data, whole / "two")
    accept(whole, 2)
    accept(whole / "two", 1)
    assert samples_of(whole) == ["one/0000.png", "one/0001.png", "two/0000.png"]
    accept(data, 1)
    moved = shutil.move(data, tmp_path / "moved")
    assert samples_of(Path(moved), whole / "two") == ["moved/0000.png", "two/0000.png"]


def test_without_anything_accepted_there_is_one_line(data: Path) -> None:
    with pytest.raises(
        UserError, match=r"no caption in \S+ was accepted: accept some in `florence2ner review \S+`, or"
    ):
        samples_of(data)
    (data / JOURNAL).write_text("{torn")
    with pytest.raises(UserError, match="was accepted"):
        samples_of(data)
    (data / JOURNAL).write_text("{torn\n")
    with pytest.raises(UserError, match="is damaged in line 1"):
        samples_of(data)


def test_a_table_has_nothing_to_accept(tmp_path: Path, shapes: Path) -> None:
    shutil.copy(shapes / "0000.png", tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0000.png", "text": "a"}) + "\n")
    with pytest.raises(UserError, match="is read as a table of images and captions, but --only-accepted is about"):
        samples_of(tmp_path)
    with pytest.raises(ValueError, match="leave out only_accepted"):
        TrainConfig(dataset_path="a.tar", only_accepted=True)


def test_several_captions_count_each_for_itself(data: Path) -> None:
    for path in data.glob("*.txt"):
        path.with_suffix(".tags").write_text("a, b\n")
    opened = Opened(data, caption_extension=(".txt", ".tags"))
    opened.changes.accept([1, 2, 3], accepted=True)
    config = TrainConfig(dataset_path=data, only_accepted=True, caption_extension=(".txt", ".tags"))
    found = discover(config.roots[0]).samples
    assert [(sample.image.key, sample.caption == "a, b") for sample in found] == [
        ("0000.png", True),
        ("0001.png", False),
        ("0001.png", True),
    ]


def test_the_last_word_of_a_journal_counts(data: Path) -> None:
    opened = Opened(data)
    opened.changes.accept([0, 1], accepted=True)
    opened.changes.accept([0], accepted=False)
    assert accepted_in(data / JOURNAL) == {"0001.txt": digest_of((data / "0001.txt").read_text())}
    opened.changes.undo()
    assert len(accepted_in(data / JOURNAL)) == 2


def test_the_text_is_that_of_training() -> None:
    assert text_of("\ufeff a\r\nb\r") == "a\nb"
    assert digest_of("a\r\nb ") == digest_of("\ufeffa\nb")


@pytest.mark.slow
def test_a_run_trains_on_what_was_accepted_and_goes_on_with_it(data: Path, make_config: MakeConfig) -> None:
    accept(data, 12)
    settings = {"dataset_path": data, "only_accepted": True, "max_steps": 2, "save_steps": 1}
    first = train(make_config(**settings))
    accept(data, 20)  # more were accepted meanwhile: a run that goes on keeps to its own
    again = train(make_config(**settings | {"max_steps": 3}, resume="latest"))
    assert again.history
    split = json.loads((first.checkpoint.parent / "split.json").read_text())
    assert len(split["train"]) + len(split["eval"]) == 12
    assert {*split["train"], *split["eval"]} == {f"{number:04d}.png" for number in range(12)}


@pytest.mark.slow
def test_eval_and_inspect_read_the_same(data: Path, tiny_model: Path) -> None:
    accept(data, 4)
    settings = {"dataset_path": data, "only_accepted": True}
    model = {"model_name": str(tiny_model), "max_new_tokens": 2, "num_beams": 1}
    assert evaluate(EvalConfig.model_validate(settings | model)).samples == 4
    found = inspect_dataset(InspectConfig.model_validate(settings))
    (finding,) = (finding for finding in found.findings if finding.kind == "not-accepted")
    assert (finding.severity, finding.count) == ("note", 20)
