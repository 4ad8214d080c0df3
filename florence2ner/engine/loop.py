"""The one loop under train, eval and caption, and the optimizer update that makes it train.

It knows step functions and windows of micro-batches, and nothing of Florence-2.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from florence2ner.data.batch import Window

Result = TypeVar("Result")


def run_loop(
    windows: Iterable[Window],
    step: Callable[[Window], Result],
    after_step: Callable[[Window, Result], bool],
    *,
    device: torch.device,
) -> None:
    """Take each window to the device, do one step with it, then what is due; until the windows end.

    `after_step` logs, evaluates, saves and writes; it returns True to stop early.
    """
    for window in windows:
        window = Window(tuple(batch.to(device) for batch in window.batches), window.epoch)
        result = step(window)
        if after_step(window, result):
            break
