"""The learning rate over a run."""

import math

import pytest

from florence2ner import train
from tests.conftest import MakeConfig
from tests.support import figures


def test_the_learning_rate_warms_up_and_restarts(make_config: MakeConfig) -> None:
    config = make_config(epochs=4, warmup_steps=4, restarts=2, eval_steps=None, save_steps=None, learning_rate=1e-3)
    train(config)
    total, warmup = 12, 4
    expected = {}
    for update in range(total):
        progress = max(0, (update - warmup) / (total - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * (2 * progress % 1)))
        expected[update + 1] = 1e-3 * (update / warmup if update < warmup else cosine)
    assert figures(config.run_dir, "train/learning_rate") == pytest.approx(expected)
