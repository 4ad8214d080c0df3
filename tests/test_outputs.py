"""Where captions go, without a model: what a plan refuses, and what an output takes for done."""

import json
from pathlib import Path
from typing import Any

import pytest

from florence2ner import CaptionConfig, UserError
from florence2ner.captioning.plan import Plan, make_plan
from florence2ner.data.formats import discover_images
from florence2ner.outputs.answers import Answer, Question, Record
from florence2ner.outputs.records import RecordFile


def plan(*paths: Path, **settings: Any) -> Plan:
    config = CaptionConfig.model_validate({"paths": paths} | settings)
    return make_plan(config, discover_images(config.paths))


def test_full_names_that_collide_too_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.jpg\.png would share the caption file .*a\.jpg\.txt: rename"):
        plan(tmp_path, on_collision="full-name")
    (tmp_path / "a.jpg.png").unlink()
    made = plan(tmp_path, on_collision="full-name")
    places = [Path(made.output.place_of(image)).name for image, _ in made.todo]
    assert places == ["a.jpg.txt", "a.png.txt"]


def test_no_image_is_replaced_by_a_caption(tmp_path: Path) -> None:
    image = tmp_path / "a.txt"  # what is named is taken for an image
    image.write_text("pixels")
    with pytest.raises(UserError, match=r"the caption of .*a\.txt would replace the image .*a\.txt"):
        plan(image, existing="overwrite")
    (tmp_path / "a.png").touch()
    for extension in (".JPG", ".caption.heic"):
        with pytest.raises(UserError, match=f"--caption-extension {extension} is for images: choose another"):
            plan(tmp_path / "a.png", caption_extension=extension)


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_boxes_do_not_replace_what_is_to_be_extended(tmp_path: Path, existing: str) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=f"--existing {existing} extends text, but the answers to <OD> are JSON"):
        plan(tmp_path, existing=existing, task_prompt=("<CAPTION>", "<OD>"))
    assert plan(tmp_path, existing=existing, task_prompt=("<CAPTION>", "<OCR>")).todo


def test_an_answer_that_is_missing_is_asked_for_again(tmp_path: Path) -> None:
    caption_task, boxes = Question("<CAPTION>", "caption", is_text=True), Question("<OD>", "od", is_text=False)
    whole, half = tmp_path / "whole.png", tmp_path / "half.png"
    answers = (Answer(caption_task, "a dog"), Answer(boxes, {"bboxes": [], "labels": []}))
    records = [Record(whole, (8, 8), 0.1, answers), Record(half, (8, 8), 0.1, answers[:1])]
    left = {"metadata.jsonl": (caption_task, boxes), "a.jsonl": (boxes,), "a.csv": (boxes,), "a.json": (boxes,)}
    for name, expected in left.items():
        for finish in (True, False):  # a run ends; the next goes on
            output = RecordFile(tmp_path / name, (caption_task, boxes), "model", {})
            output.look([whole, half])
            output.open()
            if finish:
                output.write(records)
                output.finish()
        assert output.missing(whole) == (), name
        assert output.missing(half) == expected, name
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": "whole.png", "caption": "a dog", "od": {"bboxes": [], "labels": []}}]
    with pytest.raises(UserError, match=r"has lines without file_name, text: .*--existing overwrite"):
        RecordFile(tmp_path / "metadata.jsonl", (caption_task,), "model", {}).look([whole])


def test_a_file_that_is_not_ours_is_not_added_to(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.touch()
    for name, text in {"a.jsonl": '{"x": 1}\n', "b.csv": "x,y\n1,2\n", "c.json": "{}", "d.jsonl": "hello\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            plan(image, output=tmp_path / name)
        assert (tmp_path / name).read_text() == text
