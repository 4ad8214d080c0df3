"""Datasets of the library `datasets`: saved to disk and as parquet, read as the library itself reads them."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from florence2ner.config.options import ReadingOptions
from florence2ner.data.features import FeatureCache
from florence2ner.data.layouts.choice import choose_layout
from florence2ner.data.layouts.huggingface import RowRef, discover, matches, side
from florence2ner.data.loader import TrainLoader, Workers
from florence2ner.data.order import ShuffledOrder
from florence2ner.data.pictures import load_image
from florence2ner.data.samples import Discovery
from florence2ner.data.split import SplitRule, discover_split
from florence2ner.errors import UserError
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.vision import VisionEncoder
from tests.conftest import ROOT
from tests.data.support import put, root_of
from tests.support import files_in

RULE = SplitRule(seed=0, ratio=0.3)
CAPTIONS = [f"caption {number}" for number in range(4)]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test writes a dataset; the library's cache is beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    return tmp_path / "data [1]"  # to a pattern, no name of a folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Four drawings of different sizes and colours, in files with names of their own."""
    paths = [tmp_path / "pictures" / f"p{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8 + number, 6), (60 * number, 30, 40)).save(path)
    return paths


def rows(pictures: list[Path], *, names: bool = True, **columns: list[Any]) -> datasets.Dataset:
    """A dataset with the pictures as bytes, and captions unless other columns are given."""
    images = [{"bytes": path.read_bytes(), "path": path.name if names else None} for path in pictures]
    columns = columns or {"text": CAPTIONS[: len(pictures)]}
    made = datasets.Dataset.from_dict({"image": images, **columns})
    return made.cast_column("image", datasets.Image(decode=False)).cast_column("image", datasets.Image())


def save(root: Path, splits: dict[str, datasets.Dataset], form: str) -> None:
    if form == "disk":
        datasets.DatasetDict(splits).save_to_disk(root)
        return
    (root / "data").mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")


def told(found: Discovery) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(sample.image.key, sample.task_prompt, sample.captions) for sample in found.samples]


def seen(found: Discovery) -> list[np.ndarray]:
    return [np.asarray(load_image(sample.image)) for sample in found.samples]


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_images_and_captions_are_those_that_were_saved(root: Path, pictures: list[Path], form: str) -> None:
    save(root, {"train": rows(pictures), "validation": rows(pictures[:2], names=False)}, form)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert choose_layout(root, ReadingOptions()) == "huggingface"
    found = discover(root, ReadingOptions())
    assert told(found) == [
        *((f"train/p{number}.png", "<CAPTION>", (CAPTIONS[number],)) for number in range(4)),
        *((f"validation/{number:06d}", "<CAPTION>", (CAPTIONS[number],)) for number in range(2)),
    ]
    for picture, path in zip(seen(found), [*pictures, *pictures[:2]], strict=True):
        assert np.array_equal(picture, np.asarray(Image.open(path)))
    assert [sample.image.size() for sample in found.samples[:4]] == [path.stat().st_size for path in pictures]
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}, "nothing is written into it"


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_an_image_is_picklable_and_known_until_the_dataset_changes(
    root: Path, pictures: list[Path], form: str, tmp_path: Path
) -> None:
    save(root, {"train": rows(pictures)}, form)
    images = [sample.image for sample in discover(root, ReadingOptions()).samples]
    packed = pickle.dumps(images)
    assert len(packed) < sum(path.stat().st_size for path in pictures) + 20_000, "not the bytes of the images"
    for image, copy, path in zip(images, pickle.loads(packed), pictures, strict=True):
        assert isinstance(image, RowRef)
        assert copy == image
        assert copy.open().read() == image.open().read() == path.read_bytes()
        assert copy.stamp() == image.stamp()
    assert len({image.stamp() for image in images}) == 4
    again = [sample.image for sample in discover(root, ReadingOptions()).samples]
    assert [image.stamp() for image in again] == [image.stamp() for image in images]

    cache = FeatureCache(tmp_path / "features", "f")
    digests = cache.identify(images)
    assert cache.identify(again) == digests
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Image.new("RGB", (9, 9), "blue").save(pictures[0])
    save(root, {"train": rows(pictures)}, form)
    now = [sample.image for sample in discover(root, ReadingOptions()).samples]
    assert not {image.stamp() for image in now} & {image.stamp() for image in images}
    changed = cache.identify(now)
    assert [key for key in digests if changed[key] != digests[key]] == ["train/p0.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_pictures(root: Path, pictures: list[Path], tiny_model: Path, workers: int) -> None:
    save(root, {"train": rows(pictures)}, "disk")
    model, processor = load_model(tiny_model)
    samples = discover(root, ReadingOptions()).samples
    plan = ShuffledOrder(samples, batch_size=2, accumulation=1, processes=1, seed=0)
    loader = TrainLoader(samples, processor, plan, process=0, first=0, end=2, workers=Workers(workers))
    batches = [batch for window in loader for batch in window.batches]
    assert sorted(i for batch in batches for i in batch.indices) == [0, 1, 2, 3]
    vision = VisionEncoder(model, processor.image_processor)
    for batch in batches:
        opened = [Image.open(pictures[i]) for i in batch.indices]
        texts = [CAPTIONS[i] for i in batch.indices]
        expected = processor(images=opened, text=["<CAPTION>"] * 2, return_tensors="pt", padding=True)
        assert torch.equal(vision.normalise(batch.images.values), expected.pixel_values)
        labels = [[token for token in row.tolist() if token >= 0] for row in batch.text.labels]
        assert processor.tokenizer.batch_decode(labels, skip_special_tokens=True) == texts


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        (("train", "validation", "test"), "train", "validation"),
        (("train", "test"), "train", "test"),
        (("train", "eval"), "train", "eval"),
        (("en", "de"), "", None),
    ],
)
def test_splits_are_the_sides(
    root: Path, pictures: list[Path], names: tuple[str, ...], train: str, held_out: str | None
) -> None:
    parts = [rows(pictures[number : number + 1]) for number in range(len(names))]
    save(root, dict(zip(names, parts, strict=True)), "disk")
    assert side(root, "train") == root / train
    assert side(root, "eval") == (held_out and root / held_out)
    split, _ = discover_split([root_of(root)], rule=RULE)
    if held_out:
        assert [sample.image.key for sample in split.train] == ["train/p0.png"]
        assert [sample.image.key for sample in split.eval] == [f"{held_out}/p1.png"]
    else:
        assert {sample.image.key for sample in split.samples} == {f"{name}/p{n}.png" for n, name in enumerate(names)}


def test_what_is_for_evaluation_is_not_trained_on(root: Path, pictures: list[Path]) -> None:
    save(root, {"validation": rows(pictures), "test": rows(pictures)}, "disk")
    assert side(root, "eval") == root / "validation"
    with pytest.raises(UserError, match="has the splits validation, test, none to train on: it must be called train"):
        discover_split([root_of(root)], rule=RULE)


def test_parquet_files_tell_their_split_by_their_names(root: Path, pictures: list[Path]) -> None:
    for name in ("a/train", "a/train-2", "eval/part", "b/mine"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        rows(pictures[:1]).to_parquet(root / f"{name}.parquet")
    keys = [key for key, _, _ in told(discover(root, ReadingOptions()))]
    assert keys == ["eval/p0.png", "train/000000", "train/000001", "train/000002"]


def test_paths_are_read_in_the_dataset_only(root: Path, pictures: list[Path]) -> None:
    files = {"image": ["a.png", "sub/b.png", "gone.png", None], "text": CAPTIONS}
    datasets.Dataset.from_dict(files).save_to_disk(root)
    images = [put(root / "a.png"), put(root / "sub" / "b.png")]
    found = discover(root, ReadingOptions())
    assert [(sample.image.key, sample.image.path) for sample in found.samples] == [
        ("a.png", images[0]),
        ("sub/b.png", images[1]),
    ]
    where = f"of the split train of {root}"
    assert found.report() == [f"2 rows have no image and are left out: row 2 {where}, row 3 {where}"]
    for outside in (str(pictures[0]), "../pictures/p0.png"):
        kept = datasets.Dataset.from_dict({"image": [outside], "text": ["one"]})
        kept.save_to_disk(root)
        with pytest.raises(UserError, match=r"row 0 of the split train names .*p0.png, which is outside of"):
            discover(root, ReadingOptions())
        (sample,) = discover(root, ReadingOptions(allow_outside=True)).samples
        assert sample.image.path == pictures[0]


def test_a_single_split_is_divided_by_the_rule(root: Path, pictures: list[Path]) -> None:
    save(root, {"test": rows(pictures)}, "disk")
    assert (side(root, "train"), side(root, "eval")) == (root, None)
    split, _ = discover_split([root_of(root)], rule=RULE)
    assert split.train
    assert split.eval
    assert len(split.samples) == 4


def test_a_picture_in_both_splits_is_not_trained_on(root: Path, pictures: list[Path]) -> None:
    save(root, {"train": rows(pictures), "validation": rows(pictures[:1], names=False)}, "disk")
    split, found = discover_split([root_of(root)], rule=RULE)
    assert [sample.image.key for sample in split.train] == [f"train/p{number}.png" for number in (1, 2, 3)]
    assert [sample.image.key for sample in split.eval] == ["validation/000000"]
    where = root / "train" / "p0.png"
    assert found.report()[-1] == f"1 images are copies of some that are evaluated on, and are not trained on: {where}"


def test_a_file_in_both_splits_is_not_trained_on(root: Path) -> None:
    train = datasets.Dataset.from_dict({"image": ["a.png", "b.png"], "text": ["one", "two"]})
    save(root, {"train": train, "validation": train.select([1])}, "disk")
    for name in ("a", "b"):
        put(root / f"{name}.png")
    split, _ = discover_split([root_of(root, ReadingOptions(layout="huggingface"))], rule=RULE)
    assert [s.image.key for s in split.train] == ["a.png"]
    assert [s.image.key for s in split.eval] == ["b.png"]


def test_bytes_without_the_librarys_types_are_images_too(root: Path, pictures: list[Path]) -> None:
    root.mkdir()
    bytes_ = [path.read_bytes() for path in pictures]
    structs = [{"bytes": content, "path": None} for content in bytes_]
    table = pa.table({"image": bytes_, "wide": structs, "text": CAPTIONS})
    pyarrow.parquet.write_table(table, root / "mine.parquet")
    for options in (ReadingOptions(), ReadingOptions(image_column="wide")):
        found = discover(root, options)
        assert [sample.image.open().read() for sample in found.samples] == bytes_


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("whole", [("one",), ("two\nthree",), ("four",)]),
        ("first", [("one",), ("four",)]),
        ("random", [("one", "two", "three"), ("four",)]),
    ],
)
def test_a_cell_may_hold_several_captions(
    root: Path, pictures: list[Path], lines: str, expected: list[tuple[str, ...]]
) -> None:
    cells = [["one", "two\nthree"], ["four", ""], []]
    save(root, {"train": rows(pictures[:3], captions=cells)}, "disk")
    found = discover(root, ReadingOptions(caption_lines=lines))
    assert [captions for _, _, captions in told(found)] == expected
    assert found.report() == [f"1 images have no caption and are left out: {root / 'train' / 'p2.png'}"]


def test_columns_can_be_named_and_a_prompt_makes_another_task(root: Path, pictures: list[Path]) -> None:
    made = rows(pictures[:2], text=["no", "no"], mine=["one", "two"], kind=["<OCR>", None], task=[7, 8])
    save(root, {"train": made.rename_column("image", "photo")}, "disk")
    names = {"image_column": "photo", "caption_column": "mine", "prompt_column": "kind"}
    assert told(discover(root, ReadingOptions(**names))) == [
        ("train/p0.png", "<OCR>", ("one",)),
        ("train/p1.png", "<CAPTION>", ("two",)),
    ]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"text": CAPTIONS},
            {"caption_column": "texts"},
            r"has no column texts \(caption_column\)\. Did you mean text\?",
        ),
        ({"label": CAPTIONS}, {}, r"has no column of captions: name it with --caption-column\. It has image, label"),
        (
            {"text": [1, 2, 3, 4]},
            {},
            r"the column text of .* holds int64, no captions: name another with",
        ),
        ({"text": CAPTIONS}, {"image_column": "text"}, None),
        ({"text": CAPTIONS, "n": [1, 2, 3, 4]}, {"image_column": "n"}, r"the column n of .* holds int64, not images"),
        (
            {"text": CAPTIONS, "n": [1, 2, 3, 4]},
            {"prompt_column": "n"},
            r"n of .* holds int64, no prompts: name",
        ),
    ],
)
def test_a_column_that_is_none_is_one_line(
    root: Path, pictures: list[Path], columns: dict[str, list[Any]], settings: dict[str, str], message: str | None
) -> None:
    save(root, {"train": rows(pictures, **columns)}, "disk")
    if message is None:  # paths, of which none is there
        assert not discover(root, ReadingOptions(**settings)).samples
        return
    with pytest.raises(UserError, match=message):
        discover(root, ReadingOptions(**settings))


def test_images_must_be_there_once(root: Path, pictures: list[Path]) -> None:
    made = rows(pictures)
    save(
        root,
        {
            "train": datasets.concatenate_datasets(
                [made, rows(pictures).select_columns("image").rename_column("image", "mask")], axis=1
            )
        },
        "disk",
    )
    with pytest.raises(UserError, match=r"has the images image, mask: choose one with --image-column"):
        discover(root, ReadingOptions())
    assert len(discover(root, ReadingOptions(image_column="mask")).samples) == 4
    datasets.Dataset.from_dict({"photo": [1], "text": ["one"]}).save_to_disk(root / "other")
    with pytest.raises(UserError, match=r"has no column of images: name it with --image-column\. It has photo, text"):
        discover(root / "other", ReadingOptions())


def test_a_broken_file_is_one_line(root: Path, pictures: list[Path]) -> None:
    save(root, {"train": rows(pictures)}, "parquet")
    (file,) = root.rglob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(100) + whole[104:])
    with pytest.raises(UserError, match=r"data \[1\] can't be read as a dataset \(.*\): download or write it again"):
        discover(root, ReadingOptions())
    file.write_bytes(whole[:200])
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet can't be read as a dataset \(.*\): download or"):
        discover(root, ReadingOptions())


def test_a_torn_dataset_is_one_line(root: Path, pictures: list[Path]) -> None:
    save(root, {"train": rows(pictures)}, "disk")
    (file,) = root.rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=r"data .* can't be read as a dataset \(.*\): download or write it again"):
        discover(root, ReadingOptions())
    file.unlink()
    with pytest.raises(UserError, match=r"can't be read as a dataset \(.*data-00000-of-00001.arrow"):
        discover(root, ReadingOptions())


def test_only_what_the_library_writes_is_such_a_dataset(root: Path, pictures: list[Path]) -> None:
    put(root / "a.png", "one")
    (root / "state.json").write_text("{}")
    assert not matches(root)
    (root / "00000.tar").touch()
    rows(pictures).to_parquet(root / "00000.parquet")
    assert not matches(root), "it is about the archive"
    (root / "state.json").unlink()
    with pytest.raises(UserError, match=r"has no parquet file, nor what save_to_disk writes"):
        discover(root, ReadingOptions())


def test_it_says_nothing_and_leaves_the_library_as_it_was(root: Path, pictures: list[Path], tmp_path: Path) -> None:
    save(root, {"train": rows(pictures)}, "parquet")
    code = f"""
import pathlib, warnings
warnings.simplefilter("error")
from tests.data.support import root_of
from florence2ner.data.layouts.choice import discover
import datasets
assert len(discover(root_of(pathlib.Path({str(root)!r}))).samples) == 4
assert not datasets.are_progress_bars_disabled() and datasets.logging.get_verbosity() == datasets.logging.WARNING
"""
    env = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files_in(tmp_path / "cache"), "as users of the library know it"


def test_without_the_library_it_is_named(root: Path, pictures: list[Path]) -> None:
    save(root, {"train": rows(pictures)}, "disk")
    code = f"""
import pathlib, sys
sys.modules["datasets"] = None  # as Python marks what can't be imported
from tests.data.support import root_of
from florence2ner.data.layouts.choice import discover
discover(root_of(pathlib.Path({str(root)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("florence2ner.errors.UserError")
    assert done.stderr.endswith(": pip install datasets\n")


def test_a_dataset_of_the_hub_is_read_by_its_id(
    root: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the library's cache, as there is no network: where it keeps what it has downloaded."""
    monkeypatch.chdir(tmp_path)
    save(root, {"train": rows(pictures)}, "parquet")
    discover(root, ReadingOptions())
    (kept,) = (tmp_path / "library" / "parquet").iterdir()
    shutil.copytree(kept, tmp_path / "library" / "somebody___drawings" / "default")
    for file in (tmp_path / "library" / "somebody___drawings").rglob("parquet-train.arrow"):
        file.rename(file.with_name("drawings-train.arrow"))
    found = discover(Path("somebody/drawings"), ReadingOptions(layout="huggingface"))
    assert told(found) == [(f"train/p{number}.png", "<CAPTION>", (CAPTIONS[number],)) for number in range(4)]
    with pytest.raises(UserError, match=r"the dataset nobody/nothing of the Hugging Face hub can't be read .* network"):
        discover(Path("nobody/nothing"), ReadingOptions(layout="huggingface"))
