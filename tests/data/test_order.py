"""The order of the samples: each once an epoch, however the batch is cut, and by length where that is wanted."""

from itertools import chain

import numpy as np
import pytest
import torch

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
