"""What is due when: a pure function of the number of updates done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timetable:
    """The updates of a run, and after which of them it logs, evaluates and saves; None: only after the last."""

    total_steps: int
    log_every: int
    eval_steps: int | None
    save_steps: int | None

    def is_last(self, step: int) -> bool:
        """Whether the run ends with update `step`, unless it ends sooner."""
        return step == self.total_steps

    def is_log_due(self, step: int) -> bool:
        """Whether update `step` is logged."""
        return self.is_last(step) or step % self.log_every == 0

    def is_evaluation_due(self, step: int) -> bool:
        """Whether an evaluation follows update `step`."""
        return self.is_last(step) or (self.eval_steps is not None and step % self.eval_steps == 0)

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint follows update `step`, unless the run ends there."""
        return self.is_last(step) or (self.save_steps is not None and step % self.save_steps == 0)
