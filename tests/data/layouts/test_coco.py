"""COCO's boxes become answers that read back as the same boxes; what can't be used is named by file and entry."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from florence2ner import CaptionConfig, TrainConfig, UserError, caption, train
from florence2ner.data.layouts.coco import discover, matches
from florence2ner.data.pictures import load_image
from florence2ner.data.samples import Sample
from florence2ner.demo import SIDE, draw_shape
from florence2ner.model.answers import parse_answer
from florence2ner.model.checkpoints.scratch import init_model
from florence2ner.model.tasks import TASKS
from tests.data.support import overlap
from tests.support import box_of_shape

CATEGORIES = [{"id": 3, "name": "car", "supercategory": "vehicle"}, {"id": 7, "name": "traffic light"}]
SIZE = {"width": 200, "height": 100}


def entry(number: int, name: str, **changes: object) -> dict[str, object]:
    return {"id": number, "file_name": name, **SIZE, **changes}


def box(image: int, *bbox: float, category: int = 3, **changes: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **changes}


def write(file: Path, images: list[Any], annotations: list[Any], categories: list[Any] = CATEGORIES) -> Path:
    """A COCO file, whose path is returned; the annotations are numbered from 1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)]
    content = {"info": {}, "images": images, "annotations": numbered, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def picture(path: Path, size: tuple[int, int] = (200, 100), turn: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(path, exif=exif)
    return path


def objects(sample: Sample, size: tuple[int, int] = (200, 100)) -> list[tuple[str, list[int]]]:
    """Labels and boxes of an answer in whole pixels, as a user would read them."""
    assert sample.task_prompt == "<OD>"
    answer = parse_answer(TASKS["<OD>"], sample.caption, size)
    assert isinstance(answer, dict)
    return [*zip(answer["labels"], (list(map(int, box)) for box in answer["bboxes"]), strict=True)]


@pytest.mark.parametrize(
    ("file", "image", "name"),
    [
        ("boxes.json", "a.png", "a.png"),
        ("boxes.json", "sub/a.png", "sub\\a.png"),
        ("annotations/instances_train2017.json", "train2017/a.png", "a.png"),
        ("annotations/instances_default.json", "images/default/a.png", "a.png"),
        ("annotations/instances_default.json", "images/a.png", "images/a.png"),
        ("annotations/all.json", "images/a.png", "../images/a.png"),
        ("train/_annotations.coco.json", "train/a.png", "a.png"),
    ],
)
def test_each_image_gets_its_boxes_wherever_it_is(tmp_path: Path, file: str, image: str, name: str) -> None:
    picture(tmp_path / image)
    annotations = [box(1, 10, 20, 30, 40), box(1, 0, 0, 200, 100, category=7), box(1, 100, 50, 20, 10)]
    write(tmp_path / file, [entry(1, name)], annotations)
    assert matches(tmp_path)
    found = discover(tmp_path)
    (sample,) = found.samples
    assert (sample.image.key, sample.image.path) == (image, tmp_path / image)
    assert objects(sample) == [
        ("car", [10, 20, 40, 60]),
        ("car", [100, 50, 120, 60]),
        ("traffic light", [0, 0, 199, 99]),  # the middle of the last location
    ]
    assert not found.report()


def test_the_root_may_be_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "images" / "a.png")
    write(tmp_path / "in" / "boxes.json", [entry(1, "a.png")], [box(1, 0, 0, 10, 10)])
    monkeypatch.chdir(tmp_path / "in")
    assert [sample.image.key for sample in discover(Path()).samples] == ["images/a.png"]
    write(tmp_path / "in" / "boxes.json", [entry(1, "../a.png")], [])
    with pytest.raises(UserError, match="is not in"):
        discover(Path())


def test_a_folder_has_its_own_file_or_its_part_of_the_datasets(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "eval/c.png"):
        picture(tmp_path / name)
    images = [entry(1, "train/a.png"), entry(2, "train/b.png"), entry(3, "eval/c.png")]
    write(tmp_path / "boxes.json", images, [box(number, 1, 1, 9, 9) for number in (1, 2, 3)])
    assert [sample.image.key for sample in discover(tmp_path).samples] == ["eval/c.png", "train/a.png", "train/b.png"]
    train = discover(tmp_path, folder=tmp_path / "train")
    assert [sample.image.key for sample in train.samples] == ["train/a.png", "train/b.png"]
    assert not train.report()
    write(tmp_path / "train" / "_annotations.coco.json", [entry(1, "a.png")], [box(1, 1, 1, 9, 9)])
    assert [s.image.key for s in discover(tmp_path, folder=tmp_path / "train").samples] == ["train/a.png"]


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a", "crowd", "none", "other"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_text("no picture")
    names = ["a", "crowd", "none", "other", "broken", "gone"]
    images = [entry(number, f"{name}.png") for number, name in enumerate(names)]
    images[3]["height"] = 150
    annotations = [
        box(0, 10, 10, 50, 50, iscrowd=0),
        box(0, -10, 10, 50, 50),
        box(0, 10, 10, 0, 50),
        box(0, 300, 10, 50, 50),
        box(1, 10, 10, 50, 50, iscrowd=1),
        *(box(number, 10, 10, 50, 50) for number in (3, 4, 5)),
    ]
    file = write(tmp_path / "boxes.json", images, annotations)
    found = discover(tmp_path)
    (sample,) = found.samples
    assert objects(sample) == [("car", [10, 10, 60, 60]), ("car", [0, 10, 40, 60])]
    assert found.images_without_caption == (tmp_path / "crowd.png", tmp_path / "none.png")
    image = tmp_path / "a.png"
    assert found.report()[1:] == [
        f"1 annotations are of crowds and are left out: annotation 5 of {file}",
        f"1 boxes reach over the edges of their pictures and are cut there: annotation 2 of {image}",
        f"1 boxes are empty and are left out: annotation 3 of {image}",
        f"1 boxes lie outside of their pictures and are left out: annotation 4 of {image}",
        f"1 images have another shape than their annotations say and are left out: {tmp_path}/other.png",
        f"1 images can't be read and are left out: {tmp_path}/broken.png (not an image that can be read)",
        f"1 images are missing and are left out: gone.png of {file}",
    ]


# --- pictures that EXIF turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_boxes_are_those_of_the_upright_picture(tmp_path: Path, turn: int, suffix: str) -> None:
    """A white box is drawn into the stored picture: it is where the answer says in the picture that the model sees."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:30, 40:120] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    write(tmp_path / "boxes.json", [entry(1, f"a.{suffix}")], [box(1, 40, 20, 80, 10)])
    found = discover(tmp_path)
    if turn in (2, 3, 4):  # mirrored or upside down: the sizes of both are equal
        assert not found.samples
        assert found.report() == [
            "1 images are turned by EXIF, maybe unlike their boxes, and are left out (save them upright): "
            f"{tmp_path}/a.{suffix}"
        ]
        return
    (sample,) = found.samples
    upright = load_image(sample.image)
    ((_, read),) = objects(sample, upright.size)
    drawn = upright.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    assert drawn is not None
    assert read == list(drawn)


def test_boxes_of_the_picture_as_it_is_shown_stay_as_they_are(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", turn=6)
    write(tmp_path / "boxes.json", [entry(1, "a.jpg", width=100, height=200)], [box(1, 10, 120, 20, 40)])
    (sample,) = discover(tmp_path).samples
    assert objects(sample, (100, 200)) == [("car", [10, 120, 30, 160])]


@pytest.mark.parametrize(("turn", "kept"), [(1, 1), (6, 0)])
def test_without_a_size_the_images_own_is_taken_unless_exif_turns_it(tmp_path: Path, turn: int, kept: int) -> None:
    picture(tmp_path / "a.jpg", turn=turn)
    write(tmp_path / "boxes.json", [{"id": 1, "file_name": "a.jpg"}], [box(1, 10, 20, 30, 40)])
    samples = discover(tmp_path).samples
    assert [objects(sample) for sample in samples] == [[("car", [10, 20, 40, 60])]] * kept


def test_an_image_that_was_made_smaller_keeps_its_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (67, 33))
    write(tmp_path / "boxes.json", [entry(1, "a.png")], [box(1, 100, 50, 100, 50)])
    (sample,) = discover(tmp_path).samples
    assert objects(sample) == [("car", [100, 50, 199, 99])]


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = [entry(1, "a.png")]


@pytest.mark.parametrize(
    ("images", "annotations", "categories", "why"),
    [
        (GOOD, [box(1, 1, 1, 9, 9, category=5)], CATEGORIES, ": annotation 1 has the category 5, which is not among"),
        (GOOD, [box(2, 1, 1, 9, 9)], CATEGORIES, ": annotation 1 is of the image 2, which is not among the images"),
        (GOOD, [box(1, 1, 1, 9)], CATEGORIES, " is not as COCO wants it: annotations[0].bbox[3]: Field required; mend"),
        (GOOD, [box(1, 1, 1, 9, float("nan"))], CATEGORIES, " is not as COCO wants it: annotations[0].bbox[3]: "),
        (GOOD, [{"image_id": 1}], CATEGORIES, " is not as COCO wants it: annotations[0].category_id: Field required"),
        (GOOD, [], [*CATEGORIES, {"id": 3, "name": "dog"}], ": two categories have the same id: give each its own"),
        ([*GOOD, entry(1, "b.png")], [], CATEGORIES, ": two images have the id 1, so their boxes can't be told apart"),
        (GOOD, [box(1, 1, 1, 9, 9)], [{"id": 3, "name": "Café"}], ": the category 3, 'Café', holds letters that are"),
        (GOOD, [box(1, 1, 1, 9, 9)], [{"id": 3, "name": " "}], ": the category 3, ' ', is empty: rename it"),
        ([entry(1, "../a.png")], [], CATEGORIES, ": the image '../a.png' is not in {root}: move it there"),
        ([entry(1, "/etc/passwd")], [], CATEGORIES, ": the image '/etc/passwd' is not in {root}: move it there"),
        ([entry(1, "x/../../a.png")], [], CATEGORIES, ": the image 'x/../../a.png' is not in {root}: move it there"),
        ([entry(1, "a.png", width=0)], [], CATEGORIES, " is not as COCO wants it: images[0].width: "),
    ],
)
def test_what_can_not_be_right_is_refused_with_its_entry(
    tmp_path: Path, images: list[Any], annotations: list[Any], categories: list[Any], why: str
) -> None:
    root = tmp_path / "data"
    picture(root / "a.png")
    picture(tmp_path / "a.png")
    file = write(root / "boxes.json", images, annotations, categories)
    assert matches(root)
    with pytest.raises(UserError) as error:
        discover(root)
    assert str(error.value).startswith(f"{file}{why.format(root=root)}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../pool/b.png", "{top}/pool/b.png", "x/../../pool/b.png"])
def test_images_outside_are_let_in_only_where_that_is_asked_for(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    picture(root / "a.png")
    outside = picture(tmp_path / "pool" / "b.png")
    images = [entry(1, "a.png"), entry(2, name.format(top=tmp_path))]
    write(root / "boxes.json", images, [box(1, 10, 20, 30, 40), box(2, 10, 20, 30, 40)])
    with pytest.raises(UserError, match="and name its path from there, or let it in with --allow-outside"):
        discover(root)
    samples = discover(root, allow_outside=True).samples
    assert [(s.image.key, s.image.path) for s in samples] == [("../pool/b.png", outside), ("a.png", root / "a.png")]
    assert discover(root, folder=root / "train", allow_outside=True).samples == ()
    on_a_side = write(root / "train" / "boxes.json", [entry(2, f"{outside}")], [box(2, 10, 20, 30, 40)])
    assert len(discover(root, folder=on_a_side.parent, allow_outside=True).samples) == 1


def test_names_of_files_that_no_disk_has_are_missing(tmp_path: Path) -> None:
    names = ["", "a\0.png", "x" * 3000, "C:/a.png", "."]
    write(tmp_path / "boxes.json", [entry(number, name) for number, name in enumerate(names)], [box(0, 1, 1, 9, 9)])
    found = discover(tmp_path)
    assert not found.samples
    assert found.report()[0].startswith("5 images are missing and are left out: ")


def test_an_image_in_two_files_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png")
    first = write(tmp_path / "annotations" / "instances_train.json", GOOD, [])
    second = write(tmp_path / "annotations" / "keypoints_train.json", GOOD, [])
    with pytest.raises(UserError) as error:
        discover(tmp_path)
    assert (
        str(error.value)
        == f"the image {tmp_path}/train/a.png is in {first} and again in {second}: keep it in one of them"
    )


def test_a_file_that_is_cut_off_is_still_cocos_and_named(tmp_path: Path) -> None:
    file = write(tmp_path / "boxes.json", GOOD, [])
    whole = file.read_text()
    file.write_text(whole[:-1])
    assert matches(tmp_path)
    with pytest.raises(UserError) as error:
        discover(tmp_path)
    assert str(error.value).startswith(f"{file} is not as COCO wants it: Invalid JSON: EOF while parsing")
    file.write_text("\ufeff" + whole, encoding="utf-8")
    picture(tmp_path / "a.png")
    assert len(discover(tmp_path).images_without_caption) == 1, "a byte order mark does no harm"


@pytest.mark.parametrize("text", ["", "[]", '{"images": [], "annotations": []}', "no JSON"])
def test_other_files_are_not_cocos(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for somebody who writes
    assert not matches(tmp_path)
    assert not matches(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no COCO file in .*: it is a \.json with images, annotations and categories"):
        discover(tmp_path)


# --- a detector is trained --------------------------------------------------------------------------------------------


def draw_detection(folder: Path, count: int, *, seed: int) -> list[str]:
    """Drawn shapes with a caption each beside them and a COCO file with their boxes; the captions."""
    rng = random.Random(seed)
    images, annotations, captions, numbers = [], [], [], dict[str, int]()
    folder.mkdir(parents=True)
    for number in range(count):
        shape, caption = draw_shape(rng)
        shape.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
        _, _, colour, form, *_ = caption.split()
        category = numbers.setdefault(f"{colour} {form}", len(numbers))
        x1, y1, x2, y2 = box_of_shape(shape)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        annotations.append(box(number, x1, y1, x2 - x1, y2 - y1, category=category))
        captions.append(caption)
    write(folder / "boxes.json", images, annotations, [{"id": n, "name": name} for name, n in numbers.items()])
    return captions


@pytest.mark.slow
def test_captions_and_boxes_that_are_trained_together_are_two_answers_for_an_unseen_picture(tmp_path: Path) -> None:
    """Place and size are learnt in this time, form and colour are not yet."""
    captions = draw_detection(tmp_path / "train", 256, seed=1)
    answers = [sample.caption for sample in discover(tmp_path / "train").samples]
    truth = draw_detection(tmp_path / "truth", 64, seed=2)
    (tmp_path / "unseen").mkdir()
    for drawn in (tmp_path / "truth").glob("*.png"):
        shutil.copy(drawn, tmp_path / "unseen")
    init_model(tmp_path / "tiny", preset="tiny", captions=[*captions, *answers], seed=42)
    checkpoint = train(
        TrainConfig(
            model_name=str(tmp_path / "tiny"),
            dataset_path=[{"path": tmp_path / "train", "layout": layout} for layout in ("files", "coco")],
            output_dir=tmp_path / "checkpoints",
            epochs=4,
            learning_rate=2e-3,
            train_batch_size=8,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            freeze_vision=False,
            warmup_steps=10,
            eval_steps=None,
            save_steps=None,
            log_with=("none",),
            feature_cache="off",
        )
    ).checkpoint
    asked = {"task_prompt": ("<CAPTION>", "<OD>"), "max_new_tokens": 24, "num_beams": 1, "batch_size": 64}
    caption(CaptionConfig(paths=(tmp_path / "unseen",), model_name=str(checkpoint), **asked))
    right, found, boxes = [], [], []
    for number, expected in enumerate(truth):
        picture = tmp_path / "unseen" / f"{number}.png"
        written = picture.with_suffix(".caption.txt").read_text(encoding="utf-8").strip()
        assert "<loc_" not in written
        _, size, _, _, place = expected.split(maxsplit=4)
        right.append(written.endswith(place) and size in written.split())
        answer = json.loads(picture.with_suffix(".od.json").read_text(encoding="utf-8"))
        found.append((answer["bboxes"] or [(0, 0, 0, 0)])[0])
        boxes.append(box_of_shape(Image.open(picture)))
    of_its_own = np.mean([overlap(*pair) for pair in zip(found, boxes, strict=True)])
    of_another = np.mean([overlap(*pair) for pair in zip(found, boxes[1:] + boxes[:1], strict=True)])
    assert of_its_own > 0.5
    assert of_another < 0.3, "it looks at the picture, and doesn't guess where shapes are"
    assert np.mean(right) > 0.7, "place and size"
