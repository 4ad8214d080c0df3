"""Captions in folders named by their task: one image, several tasks, encoded once; what can't be used is named."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from florence2ner import UserError, train
from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.choice import choose_layout
from florence2ner.data.layouts.tasks import discover, matches
from florence2ner.data.loader import SequentialLoader
from florence2ner.data.split import SplitRule, discover_split
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.inputs import IGNORE_INDEX
from tests.conftest import MakeConfig
from tests.data.support import put, root_of

BOX = "cat<loc_1><loc_2><loc_300><loc_400>"


def write(root: Path, *images: str, **captions: str) -> Path:
    """Images by their path, and captions by theirs."""
    for name in images:
        put(root / name)
    for name, text in captions.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def read(root: Path, *, folder: Path | None = None, **settings: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    options = ReadingOptions(**settings)
    assert matches(root, options)
    return [(s.image.key, s.task_prompt, s.captions) for s in discover(root, options, folder=folder).samples]


def test_an_image_has_a_sample_for_each_task(tmp_path: Path) -> None:
    captions = {"<CAPTION>/a.txt": " a cat\n", "<CAPTION>/b.txt": "a dog", "<OD>/a.txt": BOX, "<OD>/b.txt": BOX}
    write(tmp_path, "a.png", "b.jpg", **captions)
    assert read(tmp_path) == [
        ("a.png", "<CAPTION>", ("a cat",)),
        ("a.png", "<OD>", (BOX,)),
        ("b.jpg", "<CAPTION>", ("a dog",)),
        ("b.jpg", "<OD>", (BOX,)),
    ]
    assert not discover(tmp_path, ReadingOptions()).report()


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("sub/a.png", "<OD>/sub/a.txt"),
        ("sub/a.png", "sub/<OD>/a.txt"),
        ("sub/a.png", "OD/sub/a.txt"),
        ("a.b.PNG", "<OD>/a.b.TXT"),
        ("scans/OCR/a.png", "<OD>/scans/OCR/a.txt"),
    ],
)
def test_without_the_task_folder_paths_of_image_and_caption_are_the_same(
    tmp_path: Path, image: str, caption: str
) -> None:
    write(tmp_path, image, **{caption: BOX})
    assert read(tmp_path) == [(image, "<OD>", (BOX,))]
    assert not discover(tmp_path, ReadingOptions()).report()


@pytest.mark.parametrize("place", ["{side}/<OD>/{name}.txt", "<OD>/{side}/{name}.txt"])
def test_both_sides_of_a_split_may_have_task_folders(tmp_path: Path, place: str) -> None:
    for side, name in (("train", "a"), ("eval", "b")):
        write(tmp_path, f"{side}/{name}.png", **{place.format(side=side, name=name): BOX})
    assert choose_layout(tmp_path, ReadingOptions()) == "tasks"
    assert [key for key, _, _ in read(tmp_path)] == ["eval/b.png", "train/a.png"]
    split, found = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    assert [sample.image.key for sample in split.train] == ["train/a.png"]
    assert [sample.image.key for sample in split.eval] == ["eval/b.png"]
    assert found.report() == ["the dataset is read as captions in folders named by their task"]


def test_all_tasks_of_an_image_are_on_one_side(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path, f"{number}.png", **{f"<OD>/{number}.txt": BOX, f"<CAPTION>/{number}.txt": "a cat"})
    split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.3))
    sides = [{sample.image.key for sample in side} for side in (split.train, split.eval)]
    assert not sides[0] & sides[1]
    assert (len(split.train), len(split.eval)) == (2 * len(sides[0]), 2 * len(sides[1]))


def test_extensions_and_lines_are_those_of_the_settings(tmp_path: Path) -> None:
    captions = {"<CAPTION>/a.txt": "one\ntwo", "<CAPTION>/a.caption": "three", "<OD>/a.txt": f"{BOX}\nblack {BOX}"}
    write(tmp_path, "a.png", **captions)
    both = (".txt", ".caption")

    def of_caption(**settings: Any) -> list[tuple[str, ...]]:
        return [texts for _, prompt, texts in read(tmp_path, **settings) if prompt == "<CAPTION>"]

    assert of_caption() == [("one\ntwo",)]
    assert of_caption(caption_extension=(".caption",)) == [("three",)]
    assert of_caption(caption_lines="first") == [("one",)]
    assert of_caption(caption_lines="each", caption_extension=both) == [("one",), ("two",), ("three",)]
    assert of_caption(caption_lines="random", caption_extension=both) == [("one", "two", "three")]
    assert read(tmp_path, caption_lines="random")[1] == ("a.png", "<OD>", (BOX, f"black {BOX}"))


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    captions = {
        "<CAPTION>/a.txt": "a cat",
        "<OD>/a.txt": f"{BOX}cut<loc_1><loc_2>",
        "<CAPTION>/b.txt": "b",
        "<CAPTION>/orphan.txt": "x",
        "<CAPTION>/e.txt": " ",
        "note.txt": "about this",
    }
    write(tmp_path, "a.png", "b.png", "c.png", "e.png", "<CAPTION>/d.png", **captions)
    os.mkfifo(tmp_path / "<OD>" / "pipe.txt")
    found = discover(tmp_path, ReadingOptions())
    assert [(sample.image.key, sample.caption) for sample in found.samples] == [("a.png", "a cat"), ("b.png", "b")]
    assert found.report() == [
        f"2 images have no caption and are left out: {tmp_path}/c.png, {tmp_path}/e.png",
        f"1 captions have no image and are left out: {tmp_path}/<CAPTION>/orphan.txt",
        f"1 pipes, sockets or devices have the name of a file and are left out: {tmp_path}/<OD>/pipe.txt",
        f"1 captions are in no task folder and are left out: {tmp_path}/note.txt",
        f"1 answers to <OD> have a fault and are left out: {tmp_path}/<OD>/a.txt (has 2 locations after 'cut', not 4 "
        "for each box)",
        f"1 images have captions, but none for <OD>: {tmp_path}/b.png",
        "1 images lie in task folders and are left out (move them to where these folders are): "
        f"{tmp_path}/<CAPTION>/d.png",
    ]


def test_captions_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png", **{"<CAPTION>/a.txt": ""})
    (tmp_path / "<CAPTION>" / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"1 captions are not UTF-8 text, .*<CAPTION>/a\.txt"):
        discover_split([root_of(tmp_path)], rule=None)


def test_a_prompt_of_ones_own_is_noted_with_the_nearest_task(tmp_path: Path) -> None:
    write(tmp_path, "a.png", **{"<CAPTON>/a.txt": "a cat", "<MOOD>/a.txt": "calm"})
    assert [prompt for _, prompt, _ in read(tmp_path)] == ["<CAPTON>", "<MOOD>"]
    lines = discover(tmp_path, ReadingOptions()).report()
    assert lines[0].startswith("the task prompt <CAPTON> is not one of Florence-2's own tasks. Did you mean <CAPTION>?")
    assert lines[1].startswith("the task prompt <MOOD> is not one of Florence-2's own tasks.")


def test_a_folder_that_can_name_no_task_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png", **{"<pad>/a.txt": "a cat"})
    with pytest.raises(UserError, match=r"the folder <pad> can't name a task \(.*\): rename it") as error:
        discover(tmp_path, ReadingOptions())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["caption", "Captions", "<CAPTION", "CAPTION>", "GENERATE_TAGS", ".CAPTION"])
def test_other_folders_are_no_task_folders(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.png", **{f"{name}/a.txt": "a cat"})
    assert not matches(tmp_path, ReadingOptions())


def test_images_with_captions_beside_them_are_kept_as_usual_whatever_their_folder_is_called(tmp_path: Path) -> None:
    put(tmp_path / "OCR" / "a.png", "a scan")
    put(tmp_path / "b.png", "a cat")
    (tmp_path / "OD").mkdir()
    assert choose_layout(tmp_path, ReadingOptions()) == "files"
    assert not matches(tmp_path / "missing", ReadingOptions())


def test_captions_beside_the_images_as_well_are_another_reading(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a cat")
    write(tmp_path, **{"<OD>/a.txt": BOX})
    with pytest.raises(UserError, match=r"task \(--layout tasks\) and as .* \(--layout files\): choose one"):
        choose_layout(tmp_path, ReadingOptions())


# --- one image, several tasks -----------------------------------------------------------------------------------------


@pytest.fixture
def two_tasks(tmp_path: Path, shapes: Path) -> Path:
    """Eight drawings with two tasks each."""
    root = tmp_path / "tasks"
    for number in range(8):
        name = f"{number:04d}"
        write(root, **{f"<CAPTION>/{name}.txt": (shapes / f"{name}.txt").read_text(), f"<OD>/{name}.txt": BOX})
        shutil.copy(shapes / f"{name}.png", root)
    return root


def test_batches_have_the_prompt_and_the_caption_of_each_task(two_tasks: Path, tiny_model: Path) -> None:
    _, processor = load_model(tiny_model)
    samples = discover(two_tasks, ReadingOptions()).samples
    assert len(samples) == 16
    loader = SequentialLoader(samples, processor, [range(start, start + 4) for start in range(0, 16, 4)])
    batches = [batch for window in loader for batch in window.batches]
    assert [index for batch in batches for index in batch.indices] == list(range(16))
    for batch in batches:
        assert batch.text
        for row, index in enumerate(batch.indices):
            sample = samples[index]
            prompt = expand_prompt(processor, sample.task_prompt)
            assert batch.text.input_ids[row, : len(prompt)].equal(prompt)
            labels = batch.text.labels[row]
            written = processor.tokenizer.decode(labels[labels != IGNORE_INDEX])
            assert written == f"<s>{sample.caption}</s>"
    assert batches[0].images.values[0].equal(batches[0].images.values[1]), "the same picture"


def test_an_image_with_two_tasks_is_in_the_cache_once(two_tasks: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(dataset_path=two_tasks, eval_steps=None))
    files = [path for path in (tmp_path / "features").rglob("*") if path.is_file() and not path.suffix]
    assert len(files) == 8
