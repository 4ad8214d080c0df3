"""The order of a stream: every sample once in each epoch, whoever reads it and wherever it is resumed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from florence2ner.data.lanes import BLOCK, Lane, Position, StreamOrder, Taken, check_lanes, lanes_for
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.errors import UserError

Sizes = Sequence[int]  # of shards, in samples


def lane_of(sizes: Sizes, number: int, lanes: int, seed: int = 3, weights: Sequence[float] = ()) -> Lane:
    def read(shard: int, first: bool) -> Iterable[Sample]:
        return (Sample(ImageRef.at(Path(f"{shard}/{n}")), "", ("",)) for n in range(sizes[shard]))

    return Lane(weights or [1.0] * len(sizes), number, lanes, seed, read)


def keys(taken: Iterable[Taken]) -> list[str]:
    return [one.sample.image.key for one in taken]


def all_keys(sizes: Sizes) -> list[str]:
    return sorted(f"{shard}/{n}" for shard, size in enumerate(sizes) for n in range(size))


some_shards = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)


@given(some_shards, st.integers(1, 12), st.integers(0, 3))
def test_the_lanes_have_every_sample_once_in_each_epoch(sizes: Sizes, lanes: int, epoch: int) -> None:
    seen = []
    for number in range(lanes):
        lane = lane_of(sizes, number, lanes)
        for shard, part, parts, _ in lane.units(epoch):
            seen += [sample.image.key for sample in islice(lane.read(shard, False), part, None, parts)]
    assert sorted(seen) == all_keys(sizes)


@given(st.lists(st.sampled_from([0.3, 0.5, 1.0, 2.0, 2.5]), min_size=1, max_size=9), st.integers(1, 6))
def test_shards_are_visited_as_often_as_their_weights_say(weights: Sequence[float], lanes: int) -> None:
    visits: dict[tuple[int, int], list[int]] = {}
    of_weight = []  # how many units of each weight an epoch has
    for epoch in range(20):
        units = [unit for number in range(lanes) for unit in lane_of(weights, number, lanes, 3, weights).units(epoch)]
        for unit in sorted(units, key=lambda unit: unit.visit):
            visits.setdefault((unit.shard, unit.part), []).append(unit.visit)
        of_weight.append(Counter(weights[unit.shard] for unit in units))
    parts = -(-lanes // len(weights))
    for (shard, _), numbers in visits.items():
        assert numbers == [*range(len(numbers))]  # each is told how often it was read before
        assert abs(len(numbers) - 20 * weights[shard]) < 1
    for weight, number in Counter(weights).items():
        assert all(abs(epoch[weight] - weight * number * parts) < 1 for epoch in of_weight)


@settings(max_examples=30)  # a second each
@given(some_shards, st.integers(1, 6), st.data())
def test_a_lane_goes_on_from_any_position(sizes: Sizes, lanes: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, lanes - 1))
    weights = data.draw(st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=len(sizes), max_size=len(sizes)))
    lane = lane_of(sizes, number, lanes, 3, weights)
    whole = list(islice(lane.take(Position()), 3 * BLOCK + 5))
    first = data.draw(st.integers(0, len(whole) - 1))
    position = Position(*whole[first].position.numbers())
    rest = list(islice(lane.take(position), len(whole) - first - 1))
    assert rest == whole[first + 1 :]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 6))
def test_a_lane_gives_what_it_reads_in_its_epochs(sizes: Sizes, lanes: int) -> None:
    """Shuffled within blocks: the first blocks hold just the first samples."""
    for number in range(lanes):
        lane = lane_of(sizes, number, lanes)
        in_order, epoch = list[tuple[str, int]](), 0
        while len(in_order) < 2 * BLOCK:
            for shard, part, parts, _ in lane.units(epoch):
                in_order += [(s.image.key, epoch) for s in islice(lane.read(shard, False), part, None, parts)]
            epoch += 1
            assume(in_order or epoch < 50)
        taken = [(one.sample.image.key, one.visit) for one in islice(lane.take(Position()), 2 * BLOCK)]
        for block in range(2):
            here = slice(block * BLOCK, (block + 1) * BLOCK)
            assert sorted(taken[here]) == sorted(in_order[here])
        assert taken != in_order[: len(taken)] or sizes == [1]


def order_of(lanes: int, processes: int, accumulation: int = 1) -> StreamOrder:
    return StreamOrder(batch_size=3, accumulation=accumulation, processes=processes, seed=0, lanes=lanes)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30))
def test_a_lane_belongs_to_one_worker_of_one_process(processes: int, workers: int, times: int, first: int) -> None:
    """A DataLoader asks its workers in turn, beginning with the first, wherever a run is resumed."""
    order = order_of(processes * workers * times, processes)
    owners: dict[int, set[tuple[int, int]]] = {}
    for process in range(processes):
        for batch in range(first, first + 60):
            owners.setdefault(order.lane(batch, process), set()).add((process, (batch - first) % workers))
    assert all(len(owner) == 1 for owner in owners.values())


@given(st.integers(1, 3), st.integers(1, 4))
def test_the_lanes_of_a_run_do_not_depend_on_its_processes(processes: int, accumulation: int) -> None:
    lanes = 12
    one = order_of(lanes, 1, accumulation * processes)
    several = order_of(lanes, processes, accumulation)
    assert one.global_batch == several.global_batch
    for update in range(5):
        alone = [one.lane(update * one.accumulation + n, 0) for n in range(one.accumulation)]
        batches = range(update * accumulation, (update + 1) * accumulation)
        shared = [several.lane(batch, process) for batch in batches for process in range(processes)]
        assert alone == shared


def test_epochs_differ_and_seeds_too() -> None:
    lane = lane_of([5] * 20, 0, 2)
    assert lane.units(0) != lane.units(1)
    assert lane.units(0) != lane_of([5] * 20, 0, 2, seed=4).units(0)
    assert lane.units(0) == lane_of([5] * 20, 0, 2).units(0)


def test_shards_without_any_sample_end_the_run() -> None:
    with pytest.raises(UserError, match="no image with a caption that can be used in 3 shards"):
        next(lane_of([0, 0, 0], 1, 4).take(Position()))
    assert len(keys(islice(lane_of([0, 2, 0], 1, 4).take(Position()), 5))) == 5


def test_the_number_of_lanes_fits_processes_and_workers() -> None:
    assert (lanes_for(2, [0, 0]), lanes_for(2, [3, 3]), lanes_for(2, [4, 6])) == (4, 12, 24)
    assert lanes_for(1, [0]) == lanes_for(4, [1] * 4) == lanes_for(2, [2] * 2)
    check_lanes(6, 2, 3)
    check_lanes(6, 2, 0)
    with pytest.raises(UserError, match=r"6 lanes, which 4 processes .*numbers of processes: 1, 2, 3, 6$"):
        check_lanes(6, 4, 1)
    with pytest.raises(UserError, match=r"6 lanes, 3 in each process, which 2 workers .*dataloader_workers: 0, 1, 3$"):
        check_lanes(6, 2, 2)
