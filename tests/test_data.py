"""From files to batches: discovery, split, decoding, and an order that does not depend on how the batch is cut."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from florence2ner.data.batch import IGNORE_INDEX
from florence2ner.data.formats import discover_images
from florence2ner.data.images import ImageError, load_image, to_pixels
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import SequentialLoader, TrainLoader, Workers
from florence2ner.data.order import TrainPlan, deal
from florence2ner.data.split import discover_split, split_to_json
from florence2ner.errors import UserError
from florence2ner.files import write_text
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model


def put(path: Path, caption: str | None = None) -> Path:
    """Write a small picture, with a caption beside it unless that is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def test_discovery_pairs_recursively_and_reports_what_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "b.png", "  two words\n")
    put(tmp_path / "sub" / "dir" / "A.b.JPG", "\ufeffwith a BOM")
    put(tmp_path / "alone.webp")
    put(tmp_path / "empty.png", "")
    (tmp_path / "orphan.txt").write_text("no image")
    put(tmp_path / ".hidden.png", "hidden")
    found = discover_samples(tmp_path, "<CAPTION>")
    assert [(s.image.name, s.caption) for s in found.samples] == [("b.png", "two words"), ("A.b.JPG", "with a BOM")]
    assert [path.name for path in found.images_without_caption] == ["alone.webp", "empty.png"]
    assert [path.name for path in found.captions_without_image] == ["orphan.txt"]
    assert found.report() == [
        f"2 images have no caption and are left out: {tmp_path}/alone.webp, {tmp_path}/empty.png",
        f"1 captions have no image and are left out: {tmp_path}/orphan.txt",
    ]


def test_a_seeded_split_is_disjoint_whole_and_repeatable(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / f"{i}.png", f"caption {i}")
    first, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.25, seed=1)
    again, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.25, seed=1)
    other, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.25, seed=2)
    assert first == again != other
    assert (len(first.train), len(first.eval)) == (15, 5)
    assert {*first.train, *first.eval} == set(discover_samples(tmp_path, "<CAPTION>").samples)
    written = json.loads(split_to_json(first, tmp_path))
    assert written["eval"] == [sample.image.name for sample in first.eval]


def test_train_and_eval_folders_are_the_split(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    split, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
    assert [s.caption for s in split.train] == ["a"]
    assert [s.caption for s in split.eval] == ["b"]


def test_an_eval_folder_is_never_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    for ratio in (0.5, None):
        split, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=ratio, seed=0)
        assert [s.caption for s in split.train] == ["a"]


@pytest.mark.parametrize("train", ["", "train"])
def test_what_eval_links_to_is_never_trained_on(tmp_path: Path, train: str) -> None:
    for name in "abc":
        put(tmp_path / train / "all" / f"{name}.png", name)
    put(tmp_path / train / "chosen" / "d.png", "d")
    (tmp_path / "eval").symlink_to(tmp_path / train / "chosen")
    for name in ("a.png", "a.txt"):
        (tmp_path / train / "chosen" / name).symlink_to(f"../all/{name}")
    for ratio in (0.1, None):
        split, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=ratio, seed=0)
        assert [s.caption for s in split.train] == ["b", "c"]
        assert [s.caption for s in split.eval] == (["a", "d"] if ratio else [])


def test_splits_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image with a caption"):
        discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
    put(tmp_path / "a.png", "a")
    with pytest.raises(UserError, match=r"leaves nothing to train on"):
        discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
    (tmp_path / "eval").mkdir()
    with pytest.raises(UserError, match=r"no image with a caption in .*eval"):
        discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)


def test_orientation_and_transparency_are_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright, the first row becomes the last column
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png")
    assert upright.size == (2, 3)
    assert upright.getpixel((1, 0)) == (255, 0, 0)
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_bad_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    whole = put(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-40])
    for name, reason in [
        ("empty.png", "empty file"),
        ("text.jpg", "not an image"),
        ("cut.jpg", "[Tt]runcated"),
        ("none.png", "No such file"),
    ]:
        with pytest.raises(ImageError, match=reason):
            load_image(tmp_path / name)


@pytest.mark.parametrize("samples", [1, 5, 16, 23])
def test_every_epoch_takes_every_sample_once_however_it_is_cut(samples: int) -> None:
    cuts = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)]  # batch size, accumulation, processes: 8 samples an update
    plans = [TrainPlan(samples, batch, accumulation, processes, seed=3) for batch, accumulation, processes in cuts]
    for update in range(2 * plans[0].updates_per_epoch):
        drawn = []
        for plan in plans:
            windows = [plan.window(update, process) for process in range(plan.processes)]
            assert len({len(window) for window in windows}) == 1, "processes must do the same number of micro-batches"
            draws = [draw for window in windows for batch in window for draw in batch]
            assert max(len(batch) for window in windows for batch in window) <= plan.batch_size
            drawn.append(sorted(draw.index for draw in draws if draw.counted))
        assert all(indices == drawn[0] for indices in drawn)
        if update < plans[0].updates_per_epoch:
            start = update * 8
            assert drawn[0] == sorted(plans[0].order(0)[start : start + 8])
    assert not np.array_equal(TrainPlan(50, 1, 1, 1, 3).order(0), TrainPlan(50, 1, 1, 1, 3).order(1))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_what_the_processor_makes(shapes: Path, tiny_model: Path, workers: int) -> None:
    model, processor = load_model(tiny_model)
    samples = discover_samples(shapes, "<CAPTION>").samples[:5]
    plan = TrainPlan(samples=5, batch_size=2, accumulation=2, processes=1, seed=0)
    loader = TrainLoader(samples, processor, plan, process=0, first=0, end=2, workers=Workers(workers))
    windows = list(loader)
    assert [[len(batch.indices) for batch in window.batches] for window in windows] == [[2, 2], [1]]
    assert [i for window in windows for batch in window.batches for i in batch.indices] == plan.order(0).tolist()
    captioner = Captioner(model, processor)
    for batch in (batch for window in windows for batch in window.batches):
        chosen = [samples[i] for i in batch.indices]
        pictures = [Image.open(sample.image).convert("RGB") for sample in chosen]
        expected = processor(images=pictures, text=["<CAPTION>"] * len(chosen), return_tensors="pt", padding=True)
        assert torch.equal(captioner.normalise(batch.pixel_values), expected.pixel_values)
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert batch.attention_mask is None  # nothing is padded
        assert expected.attention_mask.all()
        for row, sample in zip(batch.labels, chosen, strict=True):
            ids = row[row != IGNORE_INDEX]
            assert (ids[0], ids[-1]) == (0, 2)
            assert processor.tokenizer.decode(ids[1:-1]) == sample.caption


def test_resize_of_a_photograph_is_the_processors(tiny_model: Path, tmp_path: Path) -> None:
    from skimage import data

    _, processor = load_model(tiny_model)
    photo = Image.fromarray(data.astronaut())
    expected = processor(images=photo, text="<CAPTION>", return_tensors="pt").pixel_values
    model, _ = load_model(tiny_model)
    pixels = to_pixels(photo, (64, 64))[None]
    assert torch.equal(Captioner(model, processor).normalise(pixels), expected)


def test_an_unreadable_image_counts_for_nothing_and_is_named(tiny_model: Path, tmp_path: Path) -> None:
    put(tmp_path / "good.png", "good")
    put(tmp_path / "torn.png", "torn").write_bytes(b"\x89PNG")
    _, processor = load_model(tiny_model)
    samples = discover_samples(tmp_path, "<CAPTION>").samples
    loader = SequentialLoader(samples, processor, deal(len(samples), 2, process=0, processes=1))
    ((batch,),) = [window.batches for window in loader]
    assert batch.counted == (True, False)
    assert (batch.labels[1] == IGNORE_INDEX).all()
    assert [index for index, _ in batch.failures] == [1]


def test_sequential_shares_cover_all_samples_once(shapes: Path, tiny_model: Path) -> None:
    _, processor = load_model(tiny_model)
    samples = discover_samples(shapes, "<CAPTION>").samples
    seen = []
    for process in range(3):
        loader = SequentialLoader(samples, processor, deal(len(samples), 5, process=process, processes=3))
        seen += [i for window in loader for i in window.batches[0].indices]
    assert sorted(seen) == list(range(len(samples)))


def test_discover_images_takes_files_and_folders_once(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.png"), put(tmp_path / "sub" / "b.png")
    assert discover_images([second, tmp_path]) == [second, first]


def test_a_file_named_twice_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "other.png").symlink_to("a.png")  # a link to a file is a file of its own
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "./a.png", "link/a.png", str(tmp_path / "a.png"), ".", "other.png"]
    assert discover_images(map(Path, names)) == [Path("a.png"), Path("other.png")]


def test_write_text_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\udc80")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"
