"""The loop: what it calls with what, in which order, and that it takes nothing it does not need."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from florence2ner.engine.loop import run_loop

CPU, DEVICE = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True)
class Numbered:
    """An item that says where it is."""

    number: int
    device: torch.device = CPU

    def to(self, device: torch.device) -> "Numbered":
        return Numbered(self.number, device)


def follow(numbers: int, *, stop_at: int | None = None) -> list[tuple[object, ...]]:
    """What happens in a loop over so many items: what was taken, and what each function was given."""
    events: list[tuple[object, ...]] = []

    def items() -> Iterator[Numbered]:
        for number in range(numbers):
            events.append(("take", number))
            yield Numbered(number)

    def step(item: Numbered) -> str:
        events.append(("step", item.number, item.device))
        return f"result {item.number}"

    def after_step(item: Numbered, result: str) -> bool:
        events.append(("after", item.number, item.device, result))
        return item.number == stop_at

    run_loop(items(), step, after_step, device=DEVICE)
    return events


def _round(number: int) -> list[tuple[object, ...]]:
    return [("take", number), ("step", number, DEVICE), ("after", number, DEVICE, f"result {number}")]


def test_each_item_is_moved_stepped_and_followed_up_before_the_next_is_taken() -> None:
    assert follow(3) == [*_round(0), *_round(1), *_round(2)]


def test_it_stops_where_told_and_takes_no_further_item() -> None:
    assert follow(100, stop_at=1) == [*_round(0), *_round(1)]


def test_no_items_are_no_steps() -> None:
    assert follow(0) == []
