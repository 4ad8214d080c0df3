"""Turns SIGINT and SIGTERM into a request to stop at the next good point, on which all processes agree."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator

from florence2ner.engine.queue import WorkQueue

# On Ctrl-C the terminal signals every process, and the launcher then signals its processes once more: a second signal
# within this many seconds of the first counts as the same one.
_SAME_WISH = 1.0


class StopSignals:
    """A context manager that catches SIGINT and SIGTERM.

    The first is only kept in `received`, for the loop to stop when it is ready; a second ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere, Python allows no signal handlers
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at > _SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any of the processes has received (the highest number of several), or None.

        The result is the same in all processes. Every process must call this.
        """
        here = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(here).max()) or None

    def tell(self, queue: WorkQueue) -> int | None:
        """Tell the other processes, by counters of a queue, of the signal that this one has received, if any.

        Returns the signal that was told first. Unlike with `agreed`, nobody is waited for: of the same signal, one
        process may learn later than another. See `told`.
        """
        if self.received and queue.add("signals") == 1:
            queue.add("signal", self.received)
        told = self.told(queue)
        if told:
            queue.hurry()
        return told

    @staticmethod
    def told(queue: WorkQueue) -> int | None:
        """The signal that any process has told by `tell`. The same in all, when all have called that for the last time.

        That is what `WorkQueue.wait_for_all` ensures.
        """
        return queue.get("signal") or None
