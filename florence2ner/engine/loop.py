"""The loop that train, eval, caption and the filling of the feature cache share."""

from collections.abc import Callable, Iterable
from typing import Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """The items of a loop: anything that can be moved to a device."""

    def to(self, device: torch.device) -> Self:
        """The same item on `device`."""


Item = TypeVar("Item", bound=Movable)
Result = TypeVar("Result")


def run_loop(
    items: Iterable[Item],
    step: Callable[[Item], Result],
    after_step: Callable[[Item, Result], bool],
    *,
    device: torch.device,
) -> None:
    """Move each item to `device`, call `step` on it, then `after_step` on the item and the result.

    `after_step` does whatever is due, such as logging, evaluating and saving. It returns True to end the loop early.
    """
    for item in items:
        moved = item.to(device)
        result = step(moved)
        if after_step(moved, result):
            break
