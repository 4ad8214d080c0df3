"""Loading: images that can't be read count for nothing, and shares cover all samples."""

import gc
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from florence2ner.data import loader
from florence2ner.data.batch import Batch
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import SequentialLoader, TrainLoader, Workers
from florence2ner.data.order import ShuffledOrder, deal
from florence2ner.data.samples import Sample
from florence2ner.data.tags import CaptionRule
from florence2ner.model.checkpoints.loading import load_model, load_processor
from florence2ner.model.inputs import IGNORE_INDEX
from tests.conftest import ColdStart
from tests.data.support import put


def test_an_unreadable_image_counts_for_nothing_and_is_named(tiny_model: Path, tmp_path: Path) -> None:
    put(tmp_path / "good.png", "good")
    put(tmp_path / "torn.png", "torn").write_bytes(b"\x89PNG")
    _, processor = load_model(tiny_model)
    samples = discover_samples(tmp_path, "<CAPTION>").samples
    loader = SequentialLoader(samples, processor, deal(len(samples), 2, process=0, processes=1))
    ((batch,),) = [window.batches for window in loader]
    assert batch.valid == (True, False)
    assert (batch.text.labels[1] == IGNORE_INDEX).all()
    assert [index for index, _ in batch.failures] == [1]


def test_sequential_shares_cover_all_samples_once(shapes: Path, tiny_model: Path) -> None:
    _, processor = load_model(tiny_model)
    samples = discover_samples(shapes, "<CAPTION>").samples
    seen = []
    for process in range(3):
        loader = SequentialLoader(samples, processor, deal(len(samples), 5, process=process, processes=3))
        seen += [i for window in loader for i in window.batches[0].indices]
    assert sorted(seen) == list(range(len(samples)))


def test_each_epoch_trains_on_another_of_several_captions(tiny_model: Path, tmp_path: Path) -> None:
    for name in "abcde":
        put(tmp_path / f"{name}.png", "red\nblue\na star")
    _, processor = load_model(tiny_model)
    samples = discover_samples(tmp_path, "<CAPTION>", lines="random").samples
    order = ShuffledOrder(samples, 2, 1, processes=1, seed=3)
    loader = TrainLoader(samples, processor, order, process=0, first=0, end=4 * 3, rule=CaptionRule(3))
    for update, window in enumerate(loader):
        for batch in window.batches:
            assert batch.text
            for index, labels in zip(batch.indices, batch.text.labels, strict=True):
                text = processor.tokenizer.decode(labels[labels != IGNORE_INDEX], skip_special_tokens=True)
                assert text == samples[index].caption_at(update // 3, 3)
    evaluation = SequentialLoader(samples, processor, [range(5)])
    (((batch,),),) = [[window.batches] for window in evaluation]
    assert len({tuple(labels.tolist()) for labels in batch.text.labels}) == 1, "the first one"


@pytest.fixture
def one_core() -> Iterator[None]:
    """This process may use only one of the machine's cores, as Slurm would have it."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_workers_are_as_many_as_the_cores_that_the_process_may_use(one_core: None) -> None:
    how = {"processes": None, "prefetch": None, "pin_memory": None}
    assert Workers.for_device(torch.device("cuda"), **how).processes == 1
    assert Workers.for_device(torch.device("cpu"), **how).processes == 0


@pytest.mark.parametrize(("share", "workers", "ahead"), [(1, 1, 1), (2, 2, 2), (7, 2, 2), (8, 2, 4)])
def test_a_process_takes_at_most_its_share_of_a_queue_ahead(
    shapes: Path, tiny_model: Path, share: int, workers: int, ahead: int
) -> None:
    _, processor = load_model(tiny_model)
    samples = discover_samples(shapes, "<CAPTION>").samples
    taken = []

    def batches() -> Iterator[list[int]]:
        for index in range(20):
            taken.append(index)
            yield [index % len(samples)]

    two = Workers(processes=2).for_share(share)
    assert two.processes == workers
    windows = iter(SequentialLoader(samples, processor, batches(), text=False, workers=two))
    next(windows)
    assert len(taken) == ahead + 1  # and one in the place of that which was handed over
    assert len(list(windows)) == 19


def test_workers_are_as_told_where_a_share_is_large_and_none_stay_none() -> None:
    told = Workers(processes=8, prefetch=5, pin_memory=True)
    assert told.for_share(80) == told
    assert Workers().for_share(1) == Workers()


def test_images_that_are_decoded_at_once_are_as_those_decoded_one_by_one(tiny_model: Path, tmp_path: Path) -> None:
    for number in range(12):
        name = f"{number:02d}.png"
        put(tmp_path / name, str(number))
        Image.new("RGB", (700 - 60 * number, 500), (20 * number, 0, 0)).save(tmp_path / name)
    (tmp_path / "05.png").write_bytes(b"\x89PNG")
    _, processor = load_model(tiny_model)
    samples = discover_samples(tmp_path, "<CAPTION>").samples
    threads = set()

    class Watched(Sequence[Sample]):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: Any) -> Any:
            threads.add(threading.get_ident())
            return samples[index]

    def load() -> Batch:
        (window,) = SequentialLoader(Watched(), processor, [list(range(len(samples)))])
        return window.batches[0]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = load()
        assert threads == {threading.get_ident()}
        torch.set_num_threads(4)
        together = load()
    finally:
        torch.set_num_threads(before)
    assert len(threads) > 2
    assert torch.equal(together.images.values, alone.images.values)
    assert together.valid == alone.valid == (*[True] * 5, False, *[True] * 6)
    assert together.sizes == alone.sizes
    assert together.failures == alone.failures


def test_workers_end_with_their_process_though_an_error_holds_on_to_them(
    cold_start: ColdStart, tiny_model: Path
) -> None:
    code = f"""
from florence2ner.data.loader import SequentialLoader, Workers
from florence2ner.model.checkpoints.loading import load_processor
from tests.data.support import Broken

samples = Broken()
processor, _ = load_processor({str(tiny_model)!r})
batches = ([index] for index in range(len(samples)))
for _ in SequentialLoader(samples, processor, batches, workers=Workers(processes=2)):
    pass
"""
    run = cold_start("-c", code)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert errors.count("Traceback") == 2, errors  # the worker's, within ours
    assert errors.rstrip().endswith("RuntimeError: a bug")


@pytest.mark.parametrize("processes", [0, 2])
def test_a_loop_that_ends_early_leaves_nothing_for_the_end_of_the_process(
    shapes: Path, tiny_model: Path, processes: int
) -> None:
    samples = discover_samples(shapes, "<CAPTION>").samples
    processor, _ = load_processor(tiny_model)
    assert not waiting_for_the_end()
    batches = [[index] for index in range(len(samples))]
    windows = iter(SequentialLoader(samples, processor, batches, workers=Workers(processes)))
    next(windows)
    assert len(waiting_for_the_end()) == 1
    del windows
    assert not waiting_for_the_end()


def waiting_for_the_end() -> list[Any]:
    """What atexit holds for loops that have not ended: it can't be asked itself."""
    return [thing for thing in gc.get_objects() if type(thing) is partial and thing.func is loader._end]
