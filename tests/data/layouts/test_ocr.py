"""ICDAR's label files become answers that read back as the same texts and corners; what can't be used is named."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.choice import choose_layout
from florence2ner.data.layouts.ocr import discover, matches
from florence2ner.model.answers import parse_answer, text_fault
from florence2ner.model.tasks import TASKS
from tests.data.support import put

SIZE = (200, 100)
EXIT = "10,20,50,20,50,40,10,40,EXIT"


def write(root: Path, name: str, text: str, *, label: str = "", turn: int = 1) -> Path:
    """An image, and its label file beside it or where `label` says; the latter's path is returned."""
    image = root / name
    image.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", SIZE)
    exif = picture.getexif()
    exif[0x0112] = turn
    picture.save(image, exif=exif)
    file = root / (label or f"{name.rpartition('.')[0]}.txt")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def answers(root: Path, *, folder: Path | None = None) -> dict[str, list[tuple[str, list[float]]]]:
    """Of each sample, by its key: texts and corners in pixels, as a user would read them."""
    found = {}
    for sample in discover(root, folder=folder).samples:
        assert sample.task_prompt == "<OCR_WITH_REGION>"
        answer = parse_answer(TASKS["<OCR_WITH_REGION>"], sample.caption, SIZE)
        assert isinstance(answer, dict)
        found[sample.image.key] = [*zip(answer["labels"], answer["quad_boxes"], strict=True)]
    return found


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("img_1.png", "gt_img_1.txt"),
        ("img_1.png", "img_1.TXT"),
        ("images/img_1.png", "labels/gt_img_1.txt"),
        ("train/images/img_1.png", "train/labels/img_1.txt"),
        ("images/train/img_1.png", "labels/train/gt_img_1.txt"),
    ],
)
def test_texts_have_their_corners_wherever_the_label_file_is(tmp_path: Path, image: str, label: str) -> None:
    text = f"\ufeff{EXIT}\r\n100.5,10,150,20,145,60,95,50, Café, 3rd floor \n\n"
    write(tmp_path, image, text, label=label)
    assert matches(tmp_path)
    assert choose_layout(tmp_path, ReadingOptions()) == "ocr"
    ((key, (one, other)),) = answers(tmp_path).items()
    assert (key, one[0], other[0]) == (image, "EXIT", "Café, 3rd floor")
    assert one[1] == pytest.approx([10, 20, 50, 20, 50, 40, 10, 40], abs=0.2)
    assert other[1] == pytest.approx([100.5, 10, 150, 20, 145, 60, 95, 50], abs=0.2)
    assert not discover(tmp_path).report()


def test_a_folder_of_the_dataset_is_searched_alone(tmp_path: Path) -> None:
    for name in ("train/a.png", "eval/b.png"):
        write(tmp_path, name, EXIT)
    assert answers(tmp_path, folder=tmp_path / "train").keys() == {"train/a.png"}
    assert discover(tmp_path, folder=tmp_path / "train").captions_without_image == ()


coordinates = st.tuples(*[st.integers(0, side) for _ in range(4) for side in SIZE]).filter(
    lambda corners: len({*corners[::2]}) > 1 and len({*corners[1::2]}) > 1
)
texts = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1).filter(
    lambda text: text_fault(text) is None and text.strip() != "###"
)


@given(st.lists(st.tuples(texts, coordinates), min_size=1, max_size=8))
def test_texts_and_corners_are_read_back_within_half_a_bin(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, tuple[int, ...]]]
) -> None:
    root = tmp_path_factory.mktemp("ocr")
    write(root, "a.png", "".join(f"{','.join(map(str, corners))},{text}\n" for text, corners in rows))
    assert matches(root)
    (read,) = answers(root).values()
    assert [text for text, _ in read] == [text.strip() for text, _ in rows]
    for (_, there), (_, here) in zip(read, rows, strict=True):
        for i, (one, other) in enumerate(zip(there, here, strict=True)):
            assert abs(one - other) <= SIZE[i % 2] / 1000 * 0.5001


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    text = "\n".join(
        [
            EXIT,
            "1,1,9,1,9,9,1,9,###",
            "1,1,9,1,9,9,1,9,",
            "1,1,9,1,9,9,1,9,</s>",
            "5,5,5,5,5,5,5,5,dot",
            "-50,1,-9,1,-9,9,-50,9,beside",
            "190,1,250,1,250,9,190,9,over",
        ]
    )
    label = write(tmp_path, "a.png", text)
    write(tmp_path, "none.png", "1,1,9,1,9,9,1,9,###")
    put(tmp_path / "alone.png")
    write(tmp_path, "turned.jpg", EXIT, turn=3)
    write(tmp_path, "broken.png", EXIT)
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "orphan.txt").write_text(EXIT)
    os.mkfifo(tmp_path / "pipe.txt")
    found = discover(tmp_path)
    ((key, read),) = answers(tmp_path).items()
    assert (key, [text for text, _ in read]) == ("a.png", ["EXIT", "over"])
    assert found.report() == [
        f"2 images have no caption and are left out: {tmp_path}/alone.png, {tmp_path}/none.png",
        f"1 captions have no image and are left out: {tmp_path}/orphan.txt",
        f"1 pipes, sockets or devices have the name of a file and are left out: {tmp_path}/pipe.txt",
        f"2 texts are marked as illegible (###) and are left out: {label} line 2, {tmp_path}/none.txt line 1",
        f"2 texts are empty or hold a token of Florence-2 and are left out: {label} line 3, {label} line 4",
        f"1 boxes are empty and are left out: {label} line 5",
        f"1 boxes lie outside of their pictures and are left out: {label} line 6",
        f"1 boxes reach over the edges of their pictures and are cut there: {label} line 7",
        f"1 images can't be read and are left out: {tmp_path}/broken.png (not an image that can be read)",
        "1 images are turned by EXIF, maybe unlike their texts, and are left out (save them upright): "
        f"{tmp_path}/turned.jpg",
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1,1,9,1,9,9,1,EXIT", "line 2 is '1,1,9,1,9,9,1,EXIT', not x1,y1,x2,y2,x3,y3,x4,y4,text"),
        ("1,1,9,1,9,9,1,nan,EXIT", "line 2 is '1,1,9,1,9,9,1,nan,EXIT', not x1,y1,x2,y2,x3,y3,x4,y4,text"),
        ("an exit", "line 2 is 'an exit', not x1,y1,x2,y2,x3,y3,x4,y4,text"),
        ("1,1,9,1,9,9,1,9,Caf\xe9", "not UTF-8 text"),
    ],
)
def test_an_image_with_a_broken_line_is_left_out_and_the_line_named(tmp_path: Path, line: str, why: str) -> None:
    write(tmp_path, "a.png", EXIT)
    file = write(tmp_path, "b.png", "")
    file.write_bytes(f"{EXIT}\n{line}".encode("latin-1"))
    found = discover(tmp_path)
    assert [sample.image.key for sample in found.samples] == ["a.png"]
    assert found.report() == [f"1 label files can't be read, and their images are left out: {file}: {why}"]


@pytest.mark.parametrize("text", ["", "a red car", "0 0.5 0.5 0.2 0.2", "1,1,9,1,9,9,1,9", "1, 2, 3, go"])
def test_other_text_files_are_not_icdars(tmp_path: Path, text: str) -> None:
    put(tmp_path / "a.png", text)
    os.mkfifo(tmp_path / "pipe.txt")  # opening it would wait for somebody who writes
    (tmp_path / ".hidden.txt").write_text(EXIT)
    assert not matches(tmp_path)
    assert not matches(tmp_path / "missing")
