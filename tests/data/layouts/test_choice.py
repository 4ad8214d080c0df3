"""The layout is chosen by content, and where two fit the user chooses; every layout trains, evaluates and captions."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from florence2ner import CaptionConfig, EvalConfig, caption, evaluate, train
from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.choice import choose_layout, discover
from florence2ner.data.loader import SequentialLoader
from florence2ner.errors import UserError
from florence2ner.model.answers import parse_answer
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.inputs import IGNORE_INDEX
from florence2ner.model.tasks import find_task
from tests.conftest import MakeConfig
from tests.data.support import put, root_of
from tests.training.test_run_folder import assert_same_bits

LAYOUTS = ("files", "tasks", "table", "coco", "yolo", "ocr", "huggingface")


@pytest.fixture
def dataset(tmp_path: Path, shapes: Path, request: pytest.FixtureRequest) -> Path:
    """Twelve drawings in the layout that the test asks for; those with boxes have a square in the middle of each."""
    layout: str = request.param
    root = tmp_path / layout
    root.mkdir()
    names = [f"{number:04d}" for number in range(12)]
    if layout == "huggingface":
        rows = {
            "image": [str(shapes / f"{name}.png") for name in names],
            "text": [(shapes / f"{name}.txt").read_text() for name in names],
        }
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(root)
        return root
    for name in names:
        shutil.copy(shapes / f"{name}.png", root)
        if layout == "files":
            shutil.copy(shapes / f"{name}.txt", root)
        if layout == "tasks":
            (root / "<OD>").mkdir(exist_ok=True)
            (root / "<OD>" / f"{name}.txt").write_text("square<loc_250><loc_250><loc_750><loc_750>\n")
        if layout == "ocr":
            (root / f"gt_{name}.txt").write_text("16,16,48,16,48,48,16,48,square\n")
        if layout == "yolo":
            (root / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    if layout == "table":
        rows = [{"image": f"{name}.png", "text": (shapes / f"{name}.txt").read_text()} for name in names]
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if layout == "coco":
        coco = {
            "images": [
                {"id": n, "file_name": f"{name}.png", "width": 64, "height": 64} for n, name in enumerate(names)
            ],
            "annotations": [{"id": n, "image_id": n, "category_id": 3, "bbox": [16, 16, 32, 32]} for n in range(12)],
            "categories": [{"id": 3, "name": "square"}],
        }
        (root / "boxes.json").write_text(json.dumps(coco))
    if layout == "yolo":
        (root / "classes.txt").write_text("square\n")
    return root


@pytest.mark.parametrize("dataset", LAYOUTS, indirect=True)
def test_every_layout_is_found_by_content(dataset: Path) -> None:
    assert choose_layout(dataset, ReadingOptions()) == dataset.name
    found = discover(root_of(dataset))
    folder = "train/" if dataset.name == "huggingface" else ""
    assert [sample.image.key for sample in found.samples] == [f"{folder}{number:04d}.png" for number in range(12)]
    assert any("the dataset is read as" in line for line in found.report())
    if dataset.name in ("tasks", "coco", "yolo"):
        assert {sample.task_prompt for sample in found.samples} == {"<OD>"}
        for sample in found.samples:
            answer = parse_answer(find_task("<OD>"), sample.caption, (64, 64))
            assert answer["labels"] == ["square"]
            assert answer["bboxes"][0] == pytest.approx([16, 16, 48, 48], abs=0.1)
    if dataset.name == "ocr":
        assert {sample.task_prompt for sample in found.samples} == {"<OCR_WITH_REGION>"}


@pytest.mark.parametrize("dataset", LAYOUTS[1:], indirect=True)
def test_every_layout_trains_resumes_evaluates_and_captions(
    dataset: Path, make_config: MakeConfig, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"dataset_path": dataset, "epochs": 3, "save_steps": 2, "save_total_limit": None, "keep_states": True}
    whole = train(make_config(run_name="whole", **settings)).checkpoint
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-2"), **settings)).checkpoint
    assert_same_bits(whole, fork)
    result = evaluate(EvalConfig(dataset_path=dataset, model_name=str(whole), num_beams=1, max_new_tokens=8))
    assert result.samples == 12
    assert "the dataset is read as" in capsys.readouterr().err
    prompts = tuple({sample.task_prompt: None for sample in discover(root_of(dataset)).samples})
    answers = dataset.parent / "answers.jsonl"
    asked = {"task_prompt": prompts, "num_beams": 1, "max_new_tokens": 8, "retry": False}
    files = [shapes / f"{number:04d}.png" for number in range(12)] if dataset.name == "huggingface" else [dataset]
    assert caption(CaptionConfig(paths=tuple(files), model_name=str(whole), output=answers, **asked)).done == 12
    assert len(answers.read_text(encoding="utf-8").splitlines()) == 12


@pytest.mark.parametrize("dataset", LAYOUTS, indirect=True)
def test_batches_have_what_every_layout_says(dataset: Path, tiny_model: Path, shapes: Path) -> None:
    _, processor = load_model(tiny_model)
    samples = discover(root_of(dataset)).samples
    (batch,) = next(iter(SequentialLoader(samples, processor, [range(12)]))).batches
    assert batch.text
    box = "square<loc_250><loc_250><loc_750><loc_750>"
    corners = "square" + "".join(f"<loc_{bin_}>" for bin_ in (250, 250, 750, 250, 750, 750, 250, 750))
    boxes = dict.fromkeys(("tasks", "coco", "yolo"), ("<OD>", box))
    for row in range(12):
        words = (shapes / f"{row:04d}.txt").read_text().strip()
        others = {"ocr": ("<OCR_WITH_REGION>", corners)}
        prompt, answer = (boxes | others).get(dataset.name, ("<CAPTION>", words))
        assert batch.text.input_ids[row].equal(expand_prompt(processor, prompt))
        labels = batch.text.labels[row]
        written = processor.tokenizer.decode(labels[labels != IGNORE_INDEX])
        # On the border of two bins, rounding to float32 decides.
        assert written.replace("_249", "_250").replace("_749", "_750") == f"<s>{answer}</s>"
        with Image.open(shapes / f"{row:04d}.png") as drawn:
            corner = torch.tensor(drawn.getpixel((0, 0)), dtype=torch.uint8)
        assert batch.images.values[row, :, 0, 0].equal(corner), "the grey of its own picture"


@pytest.mark.parametrize("dataset", ["table"], indirect=True)
def test_where_two_layouts_fit_the_user_chooses(dataset: Path) -> None:
    put(dataset / "0000.png", "another caption")
    with pytest.raises(
        UserError,
        match=r"reads as a table of images and captions \(--layout table\) and as images with caption files beside "
        r"them \(--layout files\): choose one",
    ):
        choose_layout(dataset, ReadingOptions())
    assert [s.caption for s in discover(root_of(dataset, ReadingOptions(layout="files"))).samples] == [
        "another caption"
    ]
    assert len(discover(root_of(dataset, ReadingOptions(layout="table"))).samples) == 12
