"""Streams of shards: the batches that processes and workers make of them, and where they go on."""

import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import Florence2Processor

from florence2ner.config.options import ReadingOptions
from florence2ner.data.batch import Batch
from florence2ner.data.lanes import BLOCK, Position, StreamOrder
from florence2ner.data.loader import Workers
from florence2ner.data.shards import Faults
from florence2ner.data.stream import Shard, Stream, StreamLoader
from florence2ner.data.tags import CaptionRule
from florence2ner.model.checkpoints.loading import load_model
from tests.data.support import captioned, write_shard


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Florence2Processor:
    return load_model(tiny_model)[1]


def stream_of(*paths: Path, held_out: frozenset[bytes] = frozenset()) -> Stream:
    shards = tuple(Shard(str(path), ReadingOptions()) for path in paths)
    return Stream(shards=shards, longest=100, held_out=held_out)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = tmp_path_factory.mktemp("shards")
    paths = [write_shard(folder / f"{n}.tar", captioned(*(f"{n}-{k}" for k in range(n + 3)))) for n in range(5)]
    return stream_of(*paths)


def stream(
    shards: Stream,
    processor: Florence2Processor,
    positions: list[Position],
    *,
    processes: int = 1,
    workers: int = 0,
    first: int = 0,
    end: int = 6,
) -> list[Batch]:
    """The global micro-batches of some updates of 12 images, in their order."""
    order = StreamOrder(batch_size=3, accumulation=4 // processes, processes=processes, seed=7, lanes=len(positions))
    loaders = [
        StreamLoader(
            shards,
            processor,
            order,
            process=process,
            first=first,
            end=end,
            positions=positions,
            rule=CaptionRule(7),
            workers=Workers(workers),
        )
        for process in range(processes)
    ]
    windows = zip(*loaders, strict=True)
    return [batch for update in windows for row in zip(*(w.batches for w in update), strict=True) for batch in row]


def keys(batches: list[Batch]) -> list[list[str]]:
    return [[key for key, _ in batch.refs] for batch in batches]


def test_batches_do_not_depend_on_who_makes_them(shards: Stream, processor: Florence2Processor) -> None:
    start = [Position()] * 4
    alone = stream(shards, processor, start)
    for processes, workers in ((1, 2), (2, 0), (2, 2)):
        other = stream(shards, processor, start, processes=processes, workers=workers)
        assert keys(other) == keys(alone)
        for one, two in zip(alone, other, strict=True):
            assert torch.equal(one.images.values, two.images.values)
            assert torch.equal(one.text.labels, two.text.labels)
            assert one.origin == two.origin
    assert [batch.origin.lane for batch in alone] == [n % 4 for n in range(24)]


def test_a_stream_goes_on_where_its_batches_were_used(shards: Stream, processor: Florence2Processor) -> None:
    whole = stream(shards, processor, [Position()] * 4)
    positions = [Position()] * 4
    for batch in whole[:12]:  # of three updates
        positions[batch.origin.lane] = Position(*batch.origin.position)
    rest = stream(shards, processor, positions, first=3, processes=2, workers=2)
    assert keys(rest) == keys(whole[12:])
    assert all(torch.equal(a.images.values, b.images.values) for a, b in zip(rest, whole[12:], strict=True))


def test_each_sample_is_taken_once_an_epoch(processor: Florence2Processor, tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{n}.tar", captioned(*map(str, range(16)))) for n in range(BLOCK // 16)]
    shards = stream_of(*paths)
    batches = stream(shards, processor, [Position()], end=-(-BLOCK // 12))
    seen = Counter([key for batch in keys(batches) for key in batch][:BLOCK])
    assert {*seen} == {f"{n}.tar/{k}.jpg" for n in range(BLOCK // 16) for k in range(16)}
    assert {*seen.values()} == {1}
    caption = processor.tokenizer.decode(batches[0].text.labels[0], skip_special_tokens=True)
    assert caption.startswith("a caption of ")


def test_what_is_left_out_is_told_with_the_next_batch(processor: Florence2Processor, tmp_path: Path) -> None:
    members = captioned("a", "b") | {"long.jpg": captioned("c")["c.jpg"], "long.txt": b"red " * 300}
    members |= {"alone.jpg": members["a.jpg"], "bad.jpg": b"no picture", "bad.txt": b"of what?"}
    path = write_shard(tmp_path / "0.tar", members | captioned("torn"))
    with tarfile.open(path) as archive:
        torn = archive.getmember("torn.txt").offset
    path.write_bytes(path.read_bytes()[:torn])
    shards = stream_of(path)
    batches = stream(shards, processor, [Position()], end=2)
    faults = Faults()
    for batch in batches:
        faults.merge(batch.origin.faults.counts, batch.origin.faults.names)
    told = faults.report()
    assert any("captions are longer than 100 tokens and are left out: " in line for line in told)
    assert any("images have no caption and are left out: " in line for line in told)
    assert any("shards can't be read to their end: " in line for line in told)
    failures = {(batch.refs[row][0], reason) for batch in batches for row, reason in batch.failures}
    assert failures == {("0.tar/bad.jpg", "not an image that can be read")}
    assert {key for batch in keys(batches) for key in batch} == {f"0.tar/{key}.jpg" for key in ("a", "b", "bad")}


def test_memory_does_not_grow_with_the_number_of_shards(processor: Florence2Processor, tmp_path: Path) -> None:
    peaks = []
    for number in (10, 1000):
        paths = [write_shard(tmp_path / f"{number}/{n}.tar", captioned("a")) for n in range(number)]
        shards = stream_of(*paths)
        stream(shards, processor, [Position()], end=1)  # what is loaded once for all
        tracemalloc.start()
        stream(shards, processor, [Position()], end=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1000 * 1000, "more than a shard's name and number is kept"
