"""Each layout: nothing is found in a clean dataset, and a fault is found, counted and named as `train` does it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from florence2ner.data.split import SplitRule, discover_split
from tests.data.support import root_of
from tests.inspection.support import CAPTIONS, findings, inspected, picture, put

NUMBERS = range(len(CAPTIONS))
OD = "square<loc_250><loc_250><loc_750><loc_750>"


@pytest.fixture(autouse=True)
def _library_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")


def write(root: Path, layout: str, *, texts: dict[int, Any] | None = None) -> Path:
    """A dataset without a fault; `texts` are to be written for some images instead."""
    root.mkdir()
    given = texts or {}
    if layout == "huggingface":
        rows = {
            "image": [given.get(number, {"bytes": _bytes(root, number), "path": None}) for number in NUMBERS],
            "text": list(CAPTIONS),
        }
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(root)
        return root
    for number in NUMBERS:
        put(root / f"{number}.png", None, seed=number)
    if layout == "tasks":
        for task in ("<OD>", "<CAPTION>"):
            (root / task).mkdir()
            for number in NUMBERS:
                text = given.get(number, OD) if task == "<OD>" else CAPTIONS[number]
                (root / task / f"{number}.txt").write_text(text)
    elif layout == "table":
        lines = [json.dumps({"image": f"{number}.png", "text": CAPTIONS[number]}) for number in NUMBERS]
        (root / "rows.jsonl").write_text("".join(f"{given.get(n, line)}\n" for n, line in enumerate(lines)))
    elif layout == "coco":
        boxes = [{"id": n, "image_id": n, "category_id": 3, "bbox": given.get(n, [16, 16, 32, 32])} for n in NUMBERS]
        images = [{"id": n, "file_name": f"{n}.png", "width": 96, "height": 80} for n in NUMBERS]
        categories = [{"id": 3, "name": "square"}]
        (root / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    else:
        usual = {"yolo": "0 0.5 0.5 0.5 0.5\n", "ocr": "16,16,48,16,48,48,16,48,square\n"}[layout]
        for number in NUMBERS:
            (root / f"{number}.txt").write_text(given.get(number, usual))
        if layout == "yolo":
            (root / "data.yaml").write_text("train: .\nnames: [square]\n")
    return root


def _bytes(root: Path, number: int) -> bytes:
    path = root.parent / "picture.png"
    picture(number).save(path)
    return path.read_bytes()


LAYOUTS: dict[str, tuple[dict[int, Any], str, str]] = {
    "tasks": ({3: "square<loc_250><loc_250>"}, "faulty-answer", "<OD>/3.txt (has 2 locations after 'square'"),
    "table": ({3: '{"image": "gone.png", "text": "a"}'}, "missing-image", "gone.png (line 4 of rows.jsonl)"),
    "coco": ({3: [200, 16, 32, 32]}, "box-outside", "annotation 3 of 3.png"),
    "yolo": ({3: "0 0.5 0.5 0.5 0.5\n0 much too much\n"}, "unreadable-labels", "3.txt: line 2 holds '0 much too much'"),
    "ocr": ({3: "16,16,48,16,48,48,16,48,square\n1,2,3,4,5,6,7,8,<loc_1>\n"}, "unusable-text", "3.txt line 2"),
    "huggingface": ({3: None}, "row-without-image", "row 3 of the split train of"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_found_in_a_clean_dataset(tmp_path: Path, layout: str) -> None:
    found = inspected(write(tmp_path / "data", layout))
    assert found.findings == ()
    assert len(found.notes) == 1
    assert "is read as" in found.notes[0]
    figures = {name: number for figure in found.figures for name, number in figure.numbers.items()}
    assert (figures["images"], figures["captioned_images"]) == (12, 12)
    assert figures["train_images"] + figures["eval_images"] == 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fault_is_found_and_no_other(tmp_path: Path, layout: str) -> None:
    texts, kind, name = LAYOUTS[layout]
    root = write(tmp_path / "data", layout, texts=texts)
    found = findings(root)
    # With its only box, the image of COCO has lost its answer.
    assert {*found} - {"image-without-caption"} == {kind}
    assert ("image-without-caption" in found) == (layout == "coco")
    fault = found[kind]
    assert (fault.severity, fault.count) == ("hurts", 1)
    assert fault.examples[0].name.startswith(name)
    log = discover_split([root_of(root)], rule=SplitRule(seed=42, ratio=0.1))[1].report()
    assert any(line.startswith(f"1 {fault.headline}: ") for line in log), "in the words of train"


def test_a_fault_of_an_image_has_its_picture(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "coco", texts={3: [80, 16, 32, 32], 4: [16, 16, 0, 0]})
    found = findings(root)
    assert [image.key for image in found["box-cut"].examples[0].images] == ["3.png"]
    assert found["box-cut"].severity == "note"
    assert [image.path for image in found["empty-box"].examples[0].images] == [root / "4.png"]


FLAWS: dict[str, Callable[[Path], object]] = {
    "an image that can't be read": lambda root: (root / "2.png").write_bytes(b"no picture"),
    "a copy with other captions": lambda root: (root / "2.png").write_bytes((root / "4.png").read_bytes()),
}


@pytest.mark.parametrize("layout", ["tasks", "table", "yolo"])
def test_what_is_wrong_with_images_is_found_in_every_layout_but_no_file_is_set_aside(
    tmp_path: Path, layout: str
) -> None:
    """A table would miss an image that is gone."""
    root = write(tmp_path / "data", layout)
    FLAWS["an image that can't be read"](root)
    found = findings(root)
    assert {kind: (finding.count, finding.fixes) for kind, finding in found.items()} == {"unreadable-image": (1, ())}
    FLAWS["a copy with other captions"](root)
    assert [*findings(root)] == ["copy" if layout == "yolo" else "copies-differ"]
