"""Samples of one image: asked once, compared with all of their captions."""

import json
from pathlib import Path

import pytest
from rapidfuzz.distance import Levenshtein

from florence2ner import EvalConfig, evaluate
from florence2ner.demo import draw_dataset


@pytest.mark.parametrize("batch_size", [1, 5])
def test_an_image_with_several_captions_is_asked_once_and_compared_with_all(
    trained_model: Path, tmp_path: Path, batch_size: int
) -> None:
    data = tmp_path / "data"
    draw_dataset(data, 3, seed=1)
    settings = {"model_name": str(trained_model), "num_beams": 1, "max_new_tokens": 16, "show": 0}
    alone = evaluate(EvalConfig(dataset_path=data, batch_size=5, **settings))
    written = {row.image: row.prediction for row in alone.rows}
    rows = [
        {"file_name": name, "text": text}
        for name, prediction in written.items()
        for text in ("something else", prediction, "a third")
    ]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in data.glob("*.txt"):
        path.unlink()
    result = evaluate(EvalConfig(dataset_path=data, batch_size=batch_size, output=tmp_path / "r.json", **settings))
    assert {row.image: row.prediction for row in result.captions} == written
    assert all(row.references == ("something else", written[row.image], "a third") for row in result.rows)
    assert result.exact_match == 1.0
    assert result.samples in (3, 9)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert len(stored["captions"]) == 3
    assert stored["figures"] == result.figures


def test_boxes_and_texts_in_pictures_have_their_own_figures(trained_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    truths = {"<OD>": "star<loc_1><loc_2><loc_300><loc_400>", "<OCR>": "STOP", "<CAPTION>": "a red star"}
    draw_dataset(data, 2, seed=1)
    for path in list(data.glob("*.txt")):
        path.unlink()
        for task, text in truths.items():
            (data / task).mkdir(exist_ok=True)
            (data / task / path.name).write_text(text)
    settings = {"model_name": str(trained_model), "num_beams": 1, "max_new_tokens": 16, "show": 0}
    result = evaluate(EvalConfig(dataset_path=data, **settings))
    by_task = {task: [row for row in result.rows if row.task_prompt == task] for task in truths}
    assert [len(rows) for rows in by_task.values()] == [2, 2, 2]
    assert all("eval/cer" in row.scores for row in by_task["<OCR>"])
    assert all("eval/cider" in row.scores for row in by_task["<CAPTION>"])
    assert not any({"eval/cer", "eval/cider"} & {*row.scores} for row in by_task["<OD>"])
    edits = sum(Levenshtein.distance(row.prediction, "STOP") for row in by_task["<OCR>"])
    assert result.figures["eval/cer"] == edits / 8
    assert result.figures["eval/map"] == 0.0, "it has learnt no boxes"
    assert {"eval/loss", "eval/exact_match", "eval/bleu4"} <= {*result.figures}
