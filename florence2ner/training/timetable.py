"""The timetable of a run: after which updates it logs, evaluates and saves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timetable:
    """After which updates a run logs, evaluates and saves; all three follow the last one. Updates count from 1."""

    total_steps: int
    log_every: int
    eval_steps: int | None  # None: only after the last update
    save_steps: int | None  # None: only after the last update

    def is_last(self, step: int) -> bool:
        """Whether `step` is the last update of the run, if it isn't stopped before."""
        return step == self.total_steps

    def is_log_due(self, step: int) -> bool:
        """Whether update `step` is logged."""
        return self.is_last(step) or step % self.log_every == 0

    def is_evaluation_due(self, step: int) -> bool:
        """Whether an evaluation follows update `step`."""
        return self.is_last(step) or (self.eval_steps is not None and step % self.eval_steps == 0)

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint follows update `step`."""
        return self.is_last(step) or (self.save_steps is not None and step % self.save_steps == 0)
