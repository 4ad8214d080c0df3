"""Turns SIGINT and SIGTERM into a request to stop at the next good point, on which all processes agree."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator

# On Ctrl-C the terminal signals every process, and the launcher then signals its processes once more: a second signal
# within this many seconds of the first counts as the same one.
_SAME_WISH = 1.0
_GLANCE = 0.2  # seconds between two checks while waiting


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

    def wait(self, seconds: float) -> bool:
        """Sleep for some seconds, or until a signal comes. Returns whether one has come by then."""
        end = time.monotonic() + seconds
        while self.received is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _GLANCE))
        return self.received is not None

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any of the processes has received (the highest number of several), or None.

        The result is the same in all processes. Every process must call this.
        """
        here = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(here).max()) or None
