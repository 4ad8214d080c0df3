"""Smaller batches when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from florence2ner.errors import UserError

Result = TypeVar("Result")


class AdaptiveBatch:
    """Calls a function on at most `size` rows of a batch at once; `size` is halved for good when memory runs out."""

    def __init__(self, size: int, notify: Callable[[str], None]) -> None:
        self.size = size
        self._notify = notify

    def run(self, function: Callable[[slice], list[Result]], rows: int) -> list[Result]:
        """The results for rows 0 to `rows` - 1; `function` returns one for each row of the slice that it is given.

        Raises UserError when memory doesn't suffice for a single row.
        """
        results: list[Result] = []
        while len(results) < rows:
            part = slice(len(results), min(len(results) + self.size, rows))
            if (done := self._try(function, part)) is not None:
                results += done
                continue
            # Not inside the `except` block of `_try`, where the traceback keeps the tensors of the failed call alive.
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
