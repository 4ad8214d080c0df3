"""The one loop under train, eval, caption and the filling of the feature cache."""

from collections.abc import Callable, Iterable
from typing import Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """What a step works on: anything that can be moved to a device."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""


Item = TypeVar("Item", bound=Movable)
Result = TypeVar("Result")


def run_loop(
    items: Iterable[Item],
    step: Callable[[Item], Result],
    after_step: Callable[[Item, Result], bool],
    *,
    device: torch.device,
) -> None:
    """Take each item to the device, do one step with it, then what is due; until the items end.

    `after_step` logs, evaluates, saves and writes; it returns True to stop early.
    """
    for item in items:
        moved = item.to(device)
        result = step(moved)
        if after_step(moved, result):
            break
