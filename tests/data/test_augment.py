"""Images that are varied: by seed, visit and image alone, never in evaluation, and never against their captions."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Florence2Processor

from florence2ner.config.options import ReadingOptions
from florence2ner.data.augment import Augmentation, may_move, names_side
from florence2ner.data.images import load_pixels
from florence2ner.data.lanes import Position, StreamOrder
from florence2ner.data.loader import NO_WORKERS, SequentialLoader, TrainLoader, Workers, load_example
from florence2ner.data.order import Draw, ShuffledOrder
from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.data.stream import Shard, Stream, StreamLoader
from florence2ner.data.tags import CaptionRule
from florence2ner.model.checkpoints.loading import load_model
from tests.data.support import captioned, put, write_shard

VISITS = 24
SIZE = (64, 64)


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Florence2Processor:
    return load_model(tiny_model)[1]


def flag(path: Path, caption: str, prompt: str = "<CAPTION>") -> Sample:
    """A picture of 90x60 pixels, its left half red and its right half blue; its key doesn't depend on the folder."""
    image = Image.new("RGB", (90, 60), (200, 20, 20))
    image.paste((20, 20, 200), (45, 0, 90, 60))
    image.save(path)
    return Sample(ImageRef(path.name, path), prompt, (caption,))


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("a dog on the left", True),
        ("Right of the tree, a cat", True),
        ("1girl, looking_left, solo", True),
        ("a star in the top-right corner", True),
        ("a star at topleft", True),
        ("the leftmost of three", True),
        ("a bright light, a cleft, upright", False),
        ("", False),
    ],
)
def test_left_and_right_are_found_as_words(caption: str, names: bool) -> None:
    assert names_side(Sample(ImageRef.at(Path("a.png")), "<CAPTION>", ("a dog", caption))) == names


@pytest.mark.parametrize(
    ("prompt", "caption", "moves"),
    [
        ("<CAPTION>", "a dog", True),
        ("<GENERATE_TAGS>", "dog, red", True),
        ("<OD>", "dog<loc_1><loc_2><loc_3><loc_4>", False),
        ("<CAPTION_TO_PHRASE_GROUNDING>", "", False),
        ("<WHERE_IS_IT>", "here<loc_1><loc_2><loc_3><loc_4>", False),
        ("<OCR>", "STOP", False),
        ("<OCR_WITH_REGION>", "", False),
    ],
)
def test_what_has_places_or_is_text_keeps_its_shape(prompt: str, caption: str, moves: bool) -> None:
    assert may_move(Sample(ImageRef.at(Path("a.png")), prompt, (caption,))) == moves


@pytest.mark.parametrize("size", [(64, 64), (96, 50), (33, 500), (700, 40), (31, 31), (1, 1), (1, 300)])
def test_nothing_from_outside_of_a_picture_comes_into_it(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "flat.png"
    Image.new("RGB", size, (190, 190, 190)).save(path)
    sample = Sample(ImageRef.at(path), "<CAPTION>", ("grey",))
    for visit in range(VISITS):
        picture = Augmentation(5).load(sample, visit, SIZE)
        assert picture.size == size
        assert picture.pixels.shape == (3, *SIZE)
        assert picture.pixels.unique().numel() == 1, "of one colour, another one each time"


def test_a_turn_is_slight_and_a_crop_leaves_most(tmp_path: Path) -> None:
    """On a picture of 300x200 pixels with one vertical line in the middle: where it enters and leaves."""
    image = Image.new("RGB", (300, 200), (60, 60, 60))
    image.paste((160, 160, 160), (147, 0, 153, 200))
    image.save(tmp_path / "line.png")
    sample = Sample(ImageRef.at(tmp_path / "line.png"), "<CAPTION>", ("a line",))
    ends = []
    for visit in range(VISITS):
        grey = Augmentation(1).load(sample, visit, SIZE).pixels[0]
        ends.append((int(grey[0].argmax()), int(grey[-1].argmax())))
    tilts = [bottom - top for top, bottom in ends]
    assert min(tilts) < -1
    assert max(tilts) > 1
    assert max(map(abs, tilts)) <= 5, "5 degrees are 17 of the 200 rows"
    middles = {(bottom + top) / 2 for top, bottom in ends}
    assert len(middles) > 4
    assert all(abs(middle - 31.5) < 64 * 0.06 for middle in middles)


def test_an_image_that_cannot_be_read_is_named_as_ever(tmp_path: Path) -> None:
    path = put(tmp_path / "torn.png")
    path.write_bytes(b"\x89PNG")
    sample = Sample(ImageRef.at(path), "<CAPTION>", ("a",))
    with pytest.raises(ImageError):
        Augmentation(0).load(sample, 0, SIZE)
    example = load_example(Draw(0, visit=0), sample, SIZE, Augmentation(0))
    assert (example.draw.valid, example.failure) == (False, "not an image that can be read")


def batches_of(
    samples: Sequence[Sample],
    processor: Florence2Processor,
    *,
    processes: int = 1,
    workers: Workers = NO_WORKERS,
    first: int = 0,
    seed: int = 3,
) -> dict[tuple[int, int], torch.Tensor]:
    """The pixels of each sample in each epoch, as the batches of a run of six epochs have them."""
    order = ShuffledOrder(samples, 2 // processes, 1, processes=processes, seed=3)
    augmentation = Augmentation(seed, frozenset({"sided"}))
    seen = {}
    for process in range(processes):
        loader = TrainLoader(
            samples, processor, order, process=process, first=first, end=12, workers=workers, augmentation=augmentation
        )
        for update, window in enumerate(loader, first):
            for batch in window.batches:
                seen |= {(update // 2, i): p for i, p in zip(batch.indices, batch.images.values, strict=True)}
    return seen


def is_mirrored(pixels: torch.Tensor) -> bool:
    """Whether a flag has its red half on the right."""
    return bool(pixels[0, :, -8:].float().mean() > pixels[0, :, :8].float().mean())


def test_batches_of_a_run_are_varied_by_seed_epoch_and_image_alone(
    processor: Florence2Processor, tmp_path: Path
) -> None:
    samples = [
        flag(tmp_path / "free.png", "a flag"),
        flag(tmp_path / "named.png", "red on the left"),
        flag(tmp_path / "boxes.png", "red<loc_0><loc_0><loc_499><loc_999>", "<OD>"),
        replace(flag(tmp_path / "sided.png", "a flag"), image=ImageRef("sided", tmp_path / "sided.png")),
    ]
    seen = batches_of(samples, processor)
    assert len(seen) == 24
    plain = {i: load_pixels(sample.image, SIZE).pixels for i, sample in enumerate(samples)}
    for i in range(4):
        mine = [seen[epoch, i] for epoch in range(6)]
        assert all(not torch.equal(one, other) for one, other in itertools.pairwise(mine))
        mirrored = [is_mirrored(pixels) for pixels in mine]
        assert any(mirrored) == (i == 0)
        assert not all(mirrored)
    for epoch in range(6):  # the box is where it was: red stops in the same column, to the pixel
        red = seen[epoch, 2][0] > seen[epoch, 2][2]
        assert torch.equal(red, plain[2][0] > plain[2][2])

    def same(others: dict[tuple[int, int], torch.Tensor]) -> bool:
        return all(torch.equal(seen[at], pixels) for at, pixels in others.items())

    assert same(batches_of(samples, processor, processes=2))
    assert same(batches_of(samples, processor, workers=Workers(2)))
    resumed = batches_of(samples, processor, first=7)
    assert len(resumed) == 10
    assert same(resumed)
    assert not same(batches_of(samples, processor, seed=4))
    for window in SequentialLoader(samples, processor, [range(4)]):
        (batch,) = window.batches
        assert all(torch.equal(plain[i], pixels) for i, pixels in zip(batch.indices, batch.images.values, strict=True))


def test_images_of_shards_are_varied_likewise(processor: Florence2Processor, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", captioned("a", "b", "c"))
    stream = Stream(shards=(Shard(str(shard), ReadingOptions()),), longest=100)

    def pixels(augmentation: Augmentation | None, workers: Workers = NO_WORKERS) -> list[torch.Tensor]:
        loader = StreamLoader(
            stream,
            processor,
            StreamOrder(batch_size=1, accumulation=1, processes=1, seed=3, lanes=2),
            process=0,
            first=0,
            end=12,
            positions=[Position()] * 2,
            rule=CaptionRule(),
            augmentation=augmentation,
            workers=workers,
        )
        return [window.batches[0].images.values for window in loader]

    varied, plain = pixels(Augmentation(1)), pixels(None)
    assert len({tuple(values.flatten().tolist()) for values in plain}) == 3
    assert len({tuple(values.flatten().tolist()) for values in varied}) == 12, "others in each epoch"
    for one, other in zip(varied, pixels(Augmentation(1), Workers(2)), strict=True):
        assert torch.equal(one, other)
