"""Batches larger than the address space that is left: the allocator itself refuses.

`python -m tests.programs.short_of_memory`
"""

import resource
from pathlib import Path

import pytest
import torch

from florence2ner import UserError
from florence2ner.engine.memory import AdaptiveBatch

MEGABYTE = 2**20


def main() -> None:
    torch.zeros(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * MEGABYTE, -1))
    said: list[str] = []

    def work(part: slice) -> list[int]:
        rows = list(range(64)[part])
        torch.ones(len(rows), 10 * MEGABYTE // 4)  # 10 MB a row
        return rows

    parts = AdaptiveBatch(64, said.append)
    assert parts.run(work, 64) == list(range(64))
    assert parts.size == 16
    assert said == [f"out of memory with {n} images at once: going on with {n // 2}" for n in (64, 32)]
    assert parts.run(work, 20) == list(range(20))
    assert len(said) == 2, "the next batch starts with what has worked"
    with pytest.raises(UserError, match="memory runs out with a single image"):
        parts.run(lambda part: [torch.ones(1024, MEGABYTE)], 3)
    with pytest.raises(ZeroDivisionError):
        parts.run(lambda part: [1 / 0], 3)


if __name__ == "__main__":
    main()
