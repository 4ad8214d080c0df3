"""The order of the samples: each once an epoch, however the batch is cut, and by length where that is wanted."""

import time
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florence2ner.data.order import ShuffledOrder


@pytest.mark.parametrize("samples", [1, 5, 16, 23])
def test_every_epoch_takes_every_sample_once_however_it_is_cut(samples: int) -> None:
    cuts = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)]  # batch size, accumulation, processes: 8 samples an update
    plans = [
        ShuffledOrder(range(samples), batch, accumulation, processes, seed=3) for batch, accumulation, processes in cuts
    ]
    for update in range(2 * plans[0].updates_per_epoch):
        drawn = []
        for plan in plans:
            windows = [plan.window(update, process) for process in range(plan.processes)]
            assert len({len(window) for window in windows}) == 1, "processes must do the same number of micro-batches"
            draws = [draw for window in windows for batch in window for draw in batch]
            assert max(len(batch) for window in windows for batch in window) <= plan.batch_size
            drawn.append(sorted(draw.index for draw in draws if draw.valid))
        assert all(indices == drawn[0] for indices in drawn)
        if update < plans[0].updates_per_epoch:
            start = update * 8
            assert drawn[0] == sorted(plans[0].order(0)[start : start + 8])
    assert not np.array_equal(
        ShuffledOrder(range(50), 1, 1, 1, 3).order(0), ShuffledOrder(range(50), 1, 1, 1, 3).order(1)
    )


def test_grouping_by_length_keeps_every_sample_and_is_a_function_of_seed_and_epoch() -> None:
    lengths = tuple(torch.randint(3, 60, (1003,), generator=torch.Generator().manual_seed(0)).tolist())

    def plan(processes: int = 1, batch: int = 8, lengths: tuple[int, ...] | None = lengths) -> ShuffledOrder:
        return ShuffledOrder(range(1003), batch, 32 // batch // processes, processes, seed=3, lengths=lengths)

    def windows(plan: ShuffledOrder) -> list[list[int]]:
        shares = [
            [chain(*plan.window(update, process)) for process in range(plan.processes)]
            for update in range(2 * plan.updates_per_epoch)
        ]
        return [[draw.index for draw in chain(*share) if draw.valid] for share in shares]

    one = windows(plan())
    assert [sorted(w) for w in one] == [sorted(w) for w in windows(plan(2, 4))], "on any number of processes"
    epoch = plan().updates_per_epoch
    for windows_of_epoch in (one[:epoch], one[epoch:]):
        assert sorted(chain(*windows_of_epoch)) == list(range(1003))
    assert one[:epoch] != one[epoch:]

    def padding(plan: ShuffledOrder) -> float:
        batches = [[lengths[draw.index] for draw in batch] for u in range(epoch) for batch in plan.window(u, 0)]
        return sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches)) - 1

    assert padding(plan()) < 0.1 < 0.5 < padding(plan(lengths=None))


@given(
    weights=st.lists(st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0, 2.0, 2.5, 10.0]), min_size=1, max_size=40),
    cut=st.sampled_from([(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]),
    seed=st.integers(0, 2**32 - 1),
    grouped=st.booleans(),
)
def test_a_weight_is_how_often_an_epoch_takes_a_sample(
    weights: list[float], cut: tuple[int, int, int], seed: int, grouped: bool
) -> None:
    lengths = [7 * index % 11 for index in range(len(weights))] if grouped else None
    order = ShuffledOrder(range(len(weights)), *cut, seed, lengths, weights)
    epochs = 6
    visits: dict[int, list[list[int]]] = {index: [] for index in range(len(weights))}
    for epoch in range(epochs):
        for of_sample in visits.values():
            of_sample.append([])
        for update in range(epoch * order.updates_per_epoch, (epoch + 1) * order.updates_per_epoch):
            for draw in chain(*(chain(*order.window(update, process)) for process in range(order.processes))):
                if draw.valid:
                    visits[draw.index][epoch].append(draw.visit)
    for weight in set(weights):
        members = [visits[index] for index, other in enumerate(weights) if other == weight]
        number = max(1, round(len(members) * weight))
        for epoch in range(epochs):
            taken = [len(of_sample[epoch]) for of_sample in members]
            assert sum(taken) == number
            assert max(taken) - min(taken) <= 1, "none is taken twice more than another"
        for of_sample in members:
            assert sorted(chain(*of_sample)) == list(range(sum(map(len, of_sample)))), (
                "each visit has a number of its own"
            )
    steps = order.updates_per_epoch * 2 + 1
    used = [
        draw.index
        for update in range(steps)
        for p in range(order.processes)
        for draw in chain(*order.window(update, p))
    ]
    assert set(order.used(steps)) == set(used)
    assert len(set(order.used(steps))) == len(order.used(steps))


@given(
    samples=st.integers(1, 60),
    one=st.sampled_from([(12, 1, 1), (3, 4, 1), (2, 2, 3), (1, 12, 1)]),
    other=st.sampled_from([(1, 1, 12), (4, 3, 1), (6, 1, 2), (3, 2, 2)]),
    weighted=st.booleans(),
    stop=st.integers(0, 20),
)
def test_a_run_that_goes_on_with_other_processes_takes_each_sample_once(
    samples: int, one: tuple[int, int, int], other: tuple[int, int, int], weighted: bool, stop: int
) -> None:
    weights = [1.0 if index % 3 else 2.5 for index in range(samples)] if weighted else None

    def taken(cut: tuple[int, int, int], updates: range) -> list[list[tuple[int, int | None]]]:
        order = ShuffledOrder(range(samples), *cut, seed=5, weights=weights)
        windows = [[chain(*order.window(update, p)) for p in range(order.processes)] for update in updates]
        return [sorted((draw.index, draw.visit) for draw in chain(*window) if draw.valid) for window in windows]

    assert taken(one, range(stop)) + taken(other, range(stop, 24)) == taken(one, range(24))
    if not weighted:
        epoch = ShuffledOrder(range(samples), *one, seed=5).updates_per_epoch
        first = taken(one, range(epoch))
        assert sorted(index for window in first for index, _ in window) == list(range(samples))


@pytest.mark.slow
def test_an_epoch_of_ten_million_samples_is_ordered_in_a_second() -> None:
    order = ShuffledOrder(range(10_000_000), 16, 16, 8, seed=1)
    times = []
    for epoch in range(3):
        start = time.process_time()
        order.order(epoch)
        times.append(time.process_time() - start)
    assert min(times) < 1
