"""Trackers that can't harm a run: what they fail at is told once, and what they take long for is not waited for."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Full, Queue
from typing import Any

from accelerate.tracking import GeneralTracker, WandBTracker
from PIL import Image

from florence2ner.display import Display

START_LIMIT = 60.0  # seconds that a run waits for a tracker to start; one that needs longer still gets everything
SILENCE_LIMIT = 60.0  # seconds that one call may take before the user is told
FINISH_LIMIT = 60.0  # seconds that a run waits at its end for a tracker to send what it has
QUEUE_LENGTH = 10_000  # calls that wait for a tracker; what comes while so many do is left out

TABLE_COLUMNS = ("truth", "prediction", "image")
Rows = Sequence[tuple[str, str, Image.Image]]


class Guarded(GeneralTracker):  # type: ignore[misc]
    """A tracker whose failures are told once and end nothing: an update that was computed is worth more than its log.

    It is tried again the next time: a disk may have room then, and what can't take tables may take numbers.
    """

    requires_logging_directory = False
    main_process_only = False  # it is made in the main process alone

    def __init__(self, name: str, make: Callable[[], GeneralTracker], display: Display) -> None:
        """`make` makes the tracker when this is started, so that its failures are caught, too."""
        self.name = name
        super().__init__()
        self._make = make
        self._inner: GeneralTracker | None = None
        self._display = display
        self._told = threading.Lock()  # held from the first failure on

    @property
    def tracker(self) -> Any:
        """What the tracker works with, such as the run of Weights & Biases; None where it could not start."""
        return getattr(self._inner, "tracker", None)

    @property
    def has_tables(self) -> bool:
        """Whether it shows tables. Only Weights & Biases does."""
        return self.name == "wandb"

    def start(self) -> None:
        """Make the tracker and start it."""
        self._try(self._start)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log the settings of the run."""
        self._call("store_init_configuration", values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Log metrics."""
        self._call("log", values, step=step, **options)

    def log_captions(self, rows: Rows, step: int) -> None:
        """Log rows of truth, prediction and image as a table, where the tracker can show tables."""
        if isinstance(self._inner, WandBTracker):
            self._try(_log_wandb_table, self._inner, rows, step)

    def finish(self) -> None:
        """End the tracker."""
        self._call("finish")

    def fail(self, reason: str) -> None:
        """Tell the user, unless something was told before."""
        if self._told.acquire(blocking=False):
            self._display.warn(f"{self.name} failed, training goes on without what it missed: {reason}")

    def _start(self) -> None:
        self._inner = self._make()
        self._inner.start()

    def _call(self, method: str, *values: object, **options: object) -> None:
        if self._inner is not None:  # else it could not even be made, which was told
            self._try(getattr(self._inner, method), *values, **options)

    def _try(self, action: Callable[..., object], *values: object, **options: object) -> None:
        try:
            action(*values, **options)
        except (Exception, SystemExit) as error:  # of somebody else's code and service: it can be anything
            self.fail(" ".join(str(error).split()) or type(error).__name__)


class Background(Guarded):
    """A guarded tracker that works in a thread of its own, in the order of the calls: its server may hang.

    Nothing is waited for but its start and its end, and these not for long. When all is well, everything has been sent
    when `finish` returns. The thread doesn't keep the process from ending.
    """

    def __init__(self, name: str, make: Callable[[], GeneralTracker], display: Display) -> None:
        super().__init__(name, make, display)
        self._calls: Queue[Callable[[], None] | None] = Queue(QUEUE_LENGTH)  # None: nothing comes any more
        self._busy_since: float | None = None  # time.monotonic() at which the call in progress began
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        """Start the thread and the tracker."""
        started = threading.Event()
        self._calls.put(super().start)
        self._calls.put(started.set)
        self._thread.start()
        if not started.wait(START_LIMIT):
            self.fail(f"it has not started within {START_LIMIT:g} seconds")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log the settings of the run."""
        self._enqueue(partial(super().store_init_configuration, values))

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Log metrics."""
        self._enqueue(partial(super().log, values, step=step, **options))

    def log_captions(self, rows: Rows, step: int) -> None:
        """Log a table as `Guarded.log_captions` does."""
        self._enqueue(partial(super().log_captions, rows, step))

    def finish(self) -> None:
        """End the tracker, after everything that was logged."""
        end = time.monotonic() + FINISH_LIMIT
        with suppress(Full):
            for call in (super().finish, None):
                self._calls.put(call, timeout=FINISH_LIMIT)
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self.fail(f"it has not sent everything within {FINISH_LIMIT:g} seconds after the end")

    def _enqueue(self, call: Callable[[], None]) -> None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > SILENCE_LIMIT:
            self.fail(f"it has not answered for {SILENCE_LIMIT:g} seconds")
        try:
            self._calls.put_nowait(call)
        except Full:
            self.fail(f"{QUEUE_LENGTH} lines wait for it, and it takes none")

    def _work(self) -> None:
        while call := self._calls.get():
            self._busy_since = time.monotonic()
            call()
            self._busy_since = None


def _log_wandb_table(tracker: WandBTracker, rows: Rows, step: int) -> None:
    import wandb

    data = [[truth, prediction, wandb.Image(image)] for truth, prediction, image in rows]
    tracker.log_table("eval/captions", columns=list(TABLE_COLUMNS), data=data, step=step)
