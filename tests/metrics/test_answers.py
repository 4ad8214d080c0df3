"""Boxes against pycocotools alone, and the error rate against torchmetrics'."""

import contextlib
import io
import random

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.functional.text import char_error_rate

from florence2ner.metrics.names import ALWAYS
from florence2ner.metrics.observed import Box, Observed
from florence2ner.metrics.table import measure, names_for
from tests.metrics.pairs import made_pairs

LABELS = ("star", "circle")


def boxes_of(rng: random.Random) -> tuple[Box, ...]:
    boxes = []
    for _ in range(rng.randint(1, 4)):
        x, y = rng.uniform(0, 700), rng.uniform(0, 700)
        boxes.append(Box(rng.choice(LABELS), x, y, x + rng.uniform(40, 300), y + rng.uniform(40, 300)))
    return tuple(boxes)


def moved(box: Box, rng: random.Random) -> Box:
    return Box(box.label, *(value + rng.uniform(-12, 12) for value in box[1:]))


def seen_boxes() -> list[Observed]:
    rng = random.Random(4)
    seen = []
    for _ in range(60):
        truth = boxes_of(rng)
        found = tuple(moved(box, rng) for box in truth if rng.random() < 0.8)
        seen.append(
            Observed(
                nats=1, tokens=1, references=("",), prediction="", kind="boxes", true_boxes=truth, predicted_boxes=found
            )
        )
    return seen


def by_pycocotools(seen: list[Observed]) -> float:
    def entry(number: int, image: int, box: Box) -> dict[str, object]:
        width, height = box.x2 - box.x1, box.y2 - box.y1
        rectangle = {"bbox": [box.x1, box.y1, width, height], "area": width * height, "iscrowd": 0}
        return {"id": number, "image_id": image, "category_id": 1 + LABELS.index(box.label), **rectangle}

    truths = [(image, box) for image, one in enumerate(seen) for box in one.true_boxes]
    found = [(image, box) for image, one in enumerate(seen) for box in one.predicted_boxes]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(len(seen))],
        "categories": [{"id": 1 + number, "name": label} for number, label in enumerate(LABELS)],
        "annotations": [entry(1 + number, *pair) for number, pair in enumerate(truths)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        results = coco.loadRes([entry(1 + number, *pair) | {"score": 1.0} for number, pair in enumerate(found)])
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_map_is_pycocotools(capfd: pytest.CaptureFixture[str]) -> None:
    seen = seen_boxes()
    rates = {"eval/exact_match", "eval/repetition_rate", "eval/truncation_rate"}
    assert {*names_for(seen)} == {*ALWAYS, *rates, "eval/map"}
    found = measure(seen, ["eval/map"])["eval/map"]
    assert capfd.readouterr() == ("", "")
    assert found == pytest.approx(by_pycocotools(seen), abs=1e-6)
    assert 0.2 < found < 0.9


def test_right_boxes_get_one_and_none_get_nothing() -> None:
    box = Box("star", 1, 2, 300, 400)
    right, none = (
        Observed(nats=1, tokens=1, references=("",), prediction="", kind="boxes", true_boxes=(box,), predicted_boxes=b)
        for b in ((box,), ())
    )
    assert measure([right], ["eval/map"])["eval/map"] == pytest.approx(1.0)
    assert measure([none], ["eval/map"])["eval/map"] == 0.0
    assert measure([Observed(nats=1, tokens=1, references=("",), prediction="", kind="boxes")], ["eval/map"]) == {}


def test_the_error_rate_is_torchmetrics() -> None:
    predictions, references = made_pairs()
    firsts = [texts[0] for texts in references]
    seen = [
        Observed(nats=1, tokens=1, references=(truth,), prediction=text, kind="ocr")
        for text, truth in zip(predictions, firsts, strict=True)
    ]
    assert "eval/cer" in names_for(seen)
    assert "eval/cider" not in names_for(seen)
    plain = float(char_error_rate(predictions, firsts))
    assert measure(seen, ["eval/cer"])["eval/cer"] == pytest.approx(plain, rel=1e-6)


def test_the_error_rate_takes_the_closest_reference() -> None:
    seen = [Observed(nats=1, tokens=1, references=("abcd", "abxx"), prediction="abxy", kind="ocr")]
    assert measure(seen, ["eval/cer"])["eval/cer"] == 0.25
