"""Rows as metrics see them, and as files keep them."""

import json

from florence2ner.evaluation.rows import Row, rows_as_json, rows_from_json
from florence2ner.metrics.observed import Box


def row(**changes: object) -> Row:
    values = {"image": "a.png", "task_prompt": "<CAPTION>", "references": ("a", "b"), "nats": 2.0, "tokens": 3}
    return Row(**values | changes)


def test_they_come_back_from_a_file_as_they_were() -> None:
    rows = [
        row(prediction="é <b>", flags=("loop",), scores={"eval/loss": 0.5}),
        row(image="b.png"),
        row(task_prompt="<OD>", prediction=""),
    ]
    back = rows_from_json(json.loads(json.dumps(rows_as_json(rows))))
    assert back == (rows[0], rows[2], row(image="b.png", references=("",)))


def test_the_task_says_what_is_compared() -> None:
    kinds = {"<CAPTION>": "caption", "<OCR>": "ocr", "<OD>": "boxes", "<OCR_WITH_REGION>": "other", "my own": "caption"}
    for task, kind in kinds.items():
        assert row(task_prompt=task, references=("a<loc_1><loc_2><loc_3><loc_4>",)).observed().kind == kind


def test_boxes_are_read_from_both_answers() -> None:
    seen = row(
        task_prompt="<OD>",
        references=("star<loc_0><loc_99><loc_199><loc_299>",),
        prediction="star<loc_0><loc_99><loc_199><loc_299><loc_1><loc_1><loc_2><loc_2>",
    ).observed()
    assert seen.true_boxes == (Box("star", 0.5, 99.5, 199.5, 299.5),)
    assert len(seen.predicted_boxes) == 2


def test_flags_are_what_rates_count() -> None:
    seen = row(prediction="a", flags=("loop", "cut_off")).observed()
    assert (seen.is_loop, seen.is_cut_off) == (True, True)
