"""Batches larger than the address space that is left: the allocator itself refuses.

`python -m tests.programs.short_of_memory`
"""

import resource
from pathlib import Path

import pytest
import torch

from florence2ner import UserError
from florence2ner.engine.memory import Pieces

MEGABYTE = 2**20


def main() -> None:
    torch.zeros(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * MEGABYTE, -1))
    said: list[str] = []

    def work(piece: slice) -> list[int]:
        rows = list(range(64)[piece])
        torch.ones(len(rows), 10 * MEGABYTE // 4)  # 10 MB a row
        return rows

    pieces = Pieces(64, said.append)
    assert pieces.run(work, 64) == list(range(64))
    assert pieces.size == 16
    assert said == [f"out of memory with {n} images at once: going on with {n // 2}" for n in (64, 32)]
    assert pieces.run(work, 20) == list(range(20))
    assert len(said) == 2, "the next batch starts with what has worked"
    with pytest.raises(UserError, match="memory runs out with a single image"):
        pieces.run(lambda piece: [torch.ones(1024, MEGABYTE)], 3)
    with pytest.raises(ZeroDivisionError):
        pieces.run(lambda piece: [1 / 0], 3)


if __name__ == "__main__":
    main()
