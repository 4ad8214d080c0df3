"""Callbacks of a training run: what a program that calls `train` is told while it works, and how it ends the run."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from florence2ner.evaluation.result import Evaluation
from florence2ner.training.step import Update


class Callback:
    """Told what has happened in a run. Derive from it and override what you need; by default nothing is done.

    Every process calls its own callbacks, at the same points: one that writes a file or prints has to see to it that
    only one process does. `step` counts optimizer updates from 1; it goes on where a resumed run does. An exception
    ends the run, as a bug would, with the checkpoints as they are.
    """

    def on_update(self, step: int, update: Update) -> bool | None:
        """An update was made (or skipped: see `update.skipped`), counted and logged.

        Return True, in one process or in several, to end the run: what is due after this update is still done, a
        checkpoint is saved, and `train` returns. The run can be resumed from there.
        """
        return None

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """The held-out samples were evaluated and the figures logged; `step` is 0 before the first update."""

    def on_save(self, step: int, checkpoint: Path) -> None:
        """A checkpoint was written. It is complete, on the disk, and older ones that go are gone."""


class Callbacks:
    """Calls the callbacks of a run, in the order in which they were given. The run calls each method in one place."""

    def __init__(self, accelerator: Accelerator, callbacks: Sequence[Callback]) -> None:
        self._accelerator = accelerator
        self._callbacks = tuple(callbacks)

    def updated(self, step: int, update: Update) -> bool:
        """Tell of an update. Returns whether a callback of any process ends the run. Every process must call this."""
        if not self._callbacks:
            return False
        asked = [bool(callback.on_update(step, update)) for callback in self._callbacks]
        return any(gather_object([any(asked)]))

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Tell of an evaluation."""
        for callback in self._callbacks:
            callback.on_evaluation(step, evaluation)

    def saved(self, step: int, checkpoint: Path) -> None:
        """Tell of a checkpoint."""
        for callback in self._callbacks:
            callback.on_save(step, checkpoint)
