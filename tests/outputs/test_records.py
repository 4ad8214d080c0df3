"""One file for all captions: what it takes for done, how it goes on after a kill, and standard output."""

import csv
import json
from pathlib import Path

import pytest

from florence2ner import UserError
from florence2ner.outputs.answers import Answer, Question, Record
from florence2ner.outputs.records import RecordFile
from tests.conftest import Caption, Start
from tests.support import files_in, plan


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


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.json", "metadata.jsonl"])
def test_one_file_for_all_captions_goes_on_where_it_was(run: Caption, images: Path, name: str) -> None:
    output = images / name
    run(output=output, paths=(images / "0.png", images / "1.png"))
    if not name.endswith(".json"):
        with output.open("ab") as file:
            file.write(output.read_bytes().splitlines()[-1][:30])  # the torn line of a killed run
    summary = run(output=output)
    assert (summary.done, summary.kept) == (3, 2)
    assert run(output=output).done == 0
    assert not list(images.rglob("*.txt"))
    text = output.read_text()
    rows = {
        "captions.jsonl": lambda: [json.loads(line) for line in text.splitlines()],
        "metadata.jsonl": lambda: [json.loads(line) for line in text.splitlines()],
        "captions.csv": lambda: list(csv.DictReader(text.splitlines())),
        "captions.json": lambda: json.loads(text),
    }[name]()
    key = "file_name" if name == "metadata.jsonl" else "path"
    assert sorted(row[key] for row in rows) == ["0.png", "1.png", "2.png", "sub/3.png", "sub/4.png"]
    assert files_in(images) == {"0.png", "1.png", "2.png", "sub/3.png", "sub/4.png", name}, "nothing else is left"
    if name == "metadata.jsonl":
        assert all(row.keys() == {"file_name", "text"} for row in rows)
    else:
        assert {(int(row["width"]), int(row["height"])) for row in rows} == {(64, 64)}
        assert {row["task"] for row in rows} == {"<CAPTION>"}
        settings = rows[0]["settings"]
        assert (json.loads(settings) if isinstance(settings, str) else settings)["max_new_tokens"] == 16
    run(output=output, existing="overwrite", backup=True)
    assert (images / f"{name}.bak").read_text() == text


def test_standard_output_is_json_lines(run: Caption, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(output="-", trigger_word="sks")
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {row["path"] for row in rows} == {str(path) for path in images.rglob("*.png")}
    assert all(row["caption"].startswith("sks, ") for row in rows)


def test_two_processes_print_in_turn(start: Start, images: Path, trained_model: Path, tmp_path: Path) -> None:
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    result = start("florence2ner", "caption", images, *flags, "--output", "-", processes=2, HOME=str(tmp_path)).wait()
    assert {json.loads(line)["path"] for line in result.stdout.splitlines()} == {str(p) for p in images.rglob("*.png")}
    assert not list((tmp_path / ".cache" / "florence2ner").iterdir()), "no lock is left"


@pytest.mark.parametrize("moment", ["before the array", "after the array"])
def test_a_json_array_survives_a_kill_at_its_end(run: Caption, images: Path, tmp_path: Path, moment: str) -> None:
    output = tmp_path / "captions.json"
    run(output=output)
    rows = json.loads(output.read_text())
    (tmp_path / "captions.unfinished.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if moment == "before the array":
        output.unlink()
    assert run(output=output).kept == len(rows) == 5
    assert json.loads(output.read_text()) == rows
    assert not (tmp_path / "captions.unfinished.jsonl").exists()
