"""The places for captions do what `Output` says that a place does, in the same way."""

import inspect
from pathlib import Path

import pytest

from florence2ner.outputs.answers import Answer, Output, Question, Record
from florence2ner.outputs.records import RecordFile, StandardOutput
from florence2ner.outputs.sidecars import Sidecars

CAPTION = Question("<CAPTION>", "caption", is_text=True)
BOXES = Question("<OD>", "od", is_text=False)
QUESTIONS = (CAPTION, BOXES)


def places(folder: Path) -> dict[str, Output]:
    return {
        "sidecars": Sidecars(QUESTIONS, ".txt"),
        "jsonl": RecordFile(folder / "all.jsonl", QUESTIONS, "a model", {}),
        "csv": RecordFile(folder / "all.csv", QUESTIONS, "a model", {}),
        "json": RecordFile(folder / "all.json", QUESTIONS, "a model", {}),
        "metadata": RecordFile(folder / "metadata.jsonl", QUESTIONS, "a model", {}),
        "standard output": StandardOutput(QUESTIONS, "a model", {}),
    }


@pytest.mark.parametrize("place", [Sidecars, RecordFile, StandardOutput])
def test_every_place_has_the_methods_of_an_output_with_the_same_parameters(place: type[Output]) -> None:
    wanted = {name: member for name, member in vars(Output).items() if not name.startswith("_")}
    assert wanted.keys() == {"hold", "files", "look", "open", "missing", "place_of", "write", "finish"}
    for name, method in wanted.items():
        assert inspect.signature(getattr(place, name)).parameters == inspect.signature(method).parameters, name


@pytest.mark.parametrize("name", ["sidecars", "jsonl", "csv", "json", "metadata", "standard output"])
def test_what_was_written_is_not_missing_when_it_is_looked_at_again(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    answers = (Answer(CAPTION, "a red star"), Answer(BOXES, {"bboxes": [[1.0, 2.0, 3.0, 4.0]], "labels": ["star"]}))
    output = places(tmp_path)[name]
    output.look(images)
    assert not list(tmp_path.iterdir()), "looking changes nothing"
    assert [output.missing(image) for image in images] == [QUESTIONS, QUESTIONS]
    output.open()
    output.write([Record(images[0], (8, 6), 0.1, answers)])
    output.finish()

    again = places(tmp_path)[name]
    again.look(images)
    if name == "standard output":  # which keeps nothing
        assert again.missing(images[0]) == QUESTIONS
        assert "a red star" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())
        return
    assert [again.missing(image) for image in images] == [(), QUESTIONS]
    for place in output.place_of(images[0]).split(", "):
        assert Path(place).is_file(), "where it says that the answers go"
    assert not list(tmp_path.glob(".*")), "nothing is left behind"
