"""The loop that train, eval, caption and the filling of the feature cache share."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """Anything that can be moved to a device."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""


Item = TypeVar("Item")
Result = TypeVar("Result")
Moved = TypeVar("Moved", bound=Movable)


def run_loop(items: Iterable[Item], step: Callable[[Item], Result], after_step: Callable[[Item, Result], bool]) -> None:
    """Call `step` on each item, then `after_step` on the item and the result.

    `after_step` does whatever is due, such as logging, evaluating and saving. It returns True to end the loop early.
    """
    for item in items:
        if after_step(item, step(item)):
            break


def one_ahead(batches: Iterable[Moved], device: torch.device) -> Iterator[Moved]:
    """Yield batches on `device`, where at any time only the one that was yielded last and the next one are.

    The copies are asynchronous from page-locked memory: the next batch arrives while the last one is computed.
    """
    waiting: Moved | None = None
    for batch in batches:
        moved = batch.to(device)
        if waiting is not None:
            yield waiting
        waiting = moved
    if waiting is not None:
        yield waiting
