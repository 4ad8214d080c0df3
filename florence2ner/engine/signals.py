"""Ctrl-C and a scheduler's pre-emption as a request to stop at a good place, agreed on by all processes."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator

# At Ctrl-C in a terminal, the shell signals every process and the launcher then signals its processes once more:
# what comes this soon after the first (in seconds) is the same wish to stop.
_SAME_WISH = 1.0
_GLANCE = 0.2  # seconds between two looks while waiting


class StopSignals:
    """Catches SIGINT and SIGTERM inside a `with`. The first is kept for the loop to find; a second stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
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
        """Sleep, but no longer than until a signal comes. Returns whether one has."""
        end = time.monotonic() + seconds
        while self.received is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _GLANCE))
        return self.received is not None

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any process has received by now, the same in all of them. Every process must call this."""
        here = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(here).max()) or None
