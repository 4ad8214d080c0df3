"""The learning rate over a run: as published, as others compute it, and as a run has it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from florence2ner import train
from florence2ner.optim.schedules import Schedule, Shape
from tests.conftest import MakeConfig
from tests.support import figures

SHAPES: tuple[Shape, ...] = ("constant", "linear", "cosine", "rex", "wsd")
TOTAL, WARMUP = 120, 20


def shares(**settings: Any) -> list[float]:
    schedule = Schedule(total_steps=TOTAL, warmup_steps=WARMUP, **settings)
    return [schedule(step) for step in range(TOTAL + 1)]


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"shape": "constant"}, transformers.get_constant_schedule_with_warmup),
        ({"shape": "linear"}, partial(transformers.get_linear_schedule_with_warmup, num_training_steps=TOTAL)),
        ({"shape": "cosine"}, partial(transformers.get_cosine_schedule_with_warmup, num_training_steps=TOTAL)),
        (
            {"shape": "cosine", "restarts": 4},
            partial(
                transformers.get_cosine_with_hard_restarts_schedule_with_warmup, num_training_steps=TOTAL, num_cycles=4
            ),
        ),
        (
            {"shape": "wsd", "decay_ratio": 0.25},
            partial(
                transformers.get_wsd_schedule,
                num_decay_steps=TOTAL // 4,
                num_stable_steps=TOTAL - TOTAL // 4 - WARMUP,
                decay_type="1-sqrt",
            ),
        ),
    ],
    ids=["constant", "linear", "cosine", "restarts", "wsd"],
)
def test_shares_are_those_of_transformers(settings: dict[str, Any], theirs: Callable[..., LambdaLR]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = theirs(optimizer, num_warmup_steps=WARMUP)
    expected = []
    for _ in range(TOTAL):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert shares(**settings)[:TOTAL] == pytest.approx(expected, abs=1e-12)


def test_rex_is_the_formula_of_its_paper() -> None:
    budget = TOTAL - WARMUP
    for step, share in enumerate(shares(shape="rex")[WARMUP:]):
        left = 1 - step / budget
        assert share == pytest.approx(left / (0.5 + 0.5 * left))


def test_each_cycle_begins_at_its_own_peak() -> None:
    found = shares(shape="cosine", restarts=4, restart_decay=0.5, floor=0.2)
    quarter = (TOTAL - WARMUP) // 4
    peaks = [found[WARMUP + cycle * quarter] for cycle in range(4)]
    assert peaks == pytest.approx([0.2 + 0.8 * 0.5**cycle for cycle in range(4)])
    assert found[WARMUP + quarter - 1] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * (quarter - 1) / quarter)))


@given(
    st.sampled_from(SHAPES),
    st.integers(1, 300),
    st.integers(0, 400),
    st.integers(1, 7),
    st.floats(0.1, 1),
    st.floats(0, 1),
)
def test_every_share_is_between_the_floor_and_the_peak(
    shape: Shape, total: int, warmup: int, restarts: int, ratio: float, floor: float
) -> None:
    settings: dict[str, Any] = {"restarts": restarts, "restart_decay": ratio, "decay_ratio": ratio, "floor": floor}
    schedule = Schedule(shape=shape, total_steps=total, warmup_steps=warmup, **settings)
    found = [schedule(step) for step in range(total + 1)]
    assert found[:warmup] == [step / warmup for step in range(min(warmup, total + 1))]
    assert all(floor - 1e-12 <= share <= 1 for share in found[warmup:])
    if warmup < total:
        assert found[warmup] == 1 or restarts >= total - warmup or (shape == "wsd" and ratio == 1)
        assert found[total] == pytest.approx(1 if shape == "constant" else floor)


def test_a_run_warms_up_and_restarts(make_config: MakeConfig) -> None:
    config = make_config(epochs=4, warmup_steps=4, restarts=2, eval_steps=None, save_steps=None, learning_rate=1e-3)
    train(config)
    total, warmup = 12, 4
    expected = {}
    for update in range(total):
        progress = max(0, (update - warmup) / (total - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * (2 * progress % 1)))
        expected[update + 1] = 1e-3 * (update / warmup if update < warmup else cosine)
    assert figures(config.run_dir, "train/learning_rate") == pytest.approx(expected)
