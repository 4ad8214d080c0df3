"""The loop: what it calls with what, in which order, and that it takes and moves nothing before its time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from florence2ner.engine.loop import one_ahead, run_loop

DEVICE = torch.device("meta")


def follow(numbers: int, *, stop_at: int | None = None) -> list[tuple[object, ...]]:
    """What happens in a loop over so many items: what was taken, and what each function was given."""
    events: list[tuple[object, ...]] = []

    def items() -> Iterator[int]:
        for number in range(numbers):
            events.append(("take", number))
            yield number

    def step(item: int) -> str:
        events.append(("step", item))
        return f"result {item}"

    def after_step(item: int, result: str) -> bool:
        events.append(("after", item, result))
        return item == stop_at

    run_loop(items(), step, after_step)
    return events


def _round(number: int) -> list[tuple[object, ...]]:
    return [("take", number), ("step", number), ("after", number, f"result {number}")]


def test_each_item_is_stepped_and_followed_up_before_the_next_is_taken() -> None:
    assert follow(3) == [*_round(0), *_round(1), *_round(2)]


def test_it_stops_where_told_and_takes_no_further_item() -> None:
    assert follow(100, stop_at=1) == [*_round(0), *_round(1)]


def test_no_items_are_no_steps() -> None:
    assert follow(0) == []


def test_each_batch_is_moved_while_the_one_before_is_in_use() -> None:
    events: list[tuple[str, int]] = []

    @dataclass(frozen=True)
    class Batch:
        number: int
        device: torch.device | None = None

        def to(self, device: torch.device) -> "Batch":
            events.append(("move", self.number))
            return Batch(self.number, device)

    for batch in one_ahead([Batch(0), Batch(1), Batch(2)], DEVICE):
        assert batch.device == DEVICE
        events.append(("use", batch.number))
    assert events == [("move", 0), ("move", 1), ("use", 0), ("move", 2), ("use", 1), ("use", 2)]
    assert list(one_ahead([Batch(0)], DEVICE)) == [Batch(0, DEVICE)]
    assert not list(one_ahead([], DEVICE))
