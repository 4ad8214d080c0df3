"""Batches that are cut smaller when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from florence2ner.errors import UserError

Result = TypeVar("Result")


class AdaptiveBatch:
    """Runs a function over the rows of a batch; where memory runs out, it gets half as many at once from then on."""

    def __init__(self, size: int, notify: Callable[[str], None]) -> None:
        self.size = size
        self._notify = notify

    def run(self, function: Callable[[slice], list[Result]], rows: int) -> list[Result]:
        """The results of `function(rows a..b)` over all rows. Raises UserError when one row alone is too much."""
        results: list[Result] = []
        while len(results) < rows:
            part = slice(len(results), min(len(results) + self.size, rows))
            if (done := self._try(function, part)) is not None:
                results += done
                continue
            # Out of the `except`, which would keep the tensors of the failed try alive.
            clear_device_cache(garbage_collection=True)
            tried = part.stop - part.start
            if tried == 1:
                raise UserError(
                    "memory runs out with a single image: lower num_beams or max_new_tokens, or set mixed_precision"
                )
            self.size = -(-tried // 2)
            self._notify(f"out of memory with {tried} images at once: going on with {self.size}")
        return results

    @staticmethod
    def _try(function: Callable[[slice], list[Result]], part: slice) -> list[Result] | None:
        try:
            return function(part)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or should_reduce_batch_size(error):
                return None
            raise
