"""The learning rate over a run: a linear warmup, then one of the published shapes."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine", "rex", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a share of its peak, after a number of updates: a pure function, which has no state to save.

    The shapes, with t from 0 at the end of the warmup to 1 at the end of the run:

    - constant: 1;
    - linear: 1 - t;
    - cosine: `restarts` cycles, each from a peak down to 0 (SGDR, Loshchilov & Hutter 2017); each peak is that of the
      cycle before times `restart_decay`;
    - rex: (1 - t) / (1 - t / 2) (Chen et al. 2021);
    - wsd: 1, then in the last `decay_ratio` of the run 1 - sqrt(u), with u from 0 to 1 (Hägele et al. 2024).

    What they fall to at their lowest is `floor` instead of 0.
    """

    shape: Shape
    total_steps: int  # updates of the run
    warmup_steps: int = 0
    restarts: int = 1
    restart_decay: float = 1.0
    decay_ratio: float = 0.2
    floor: float = 0.0  # share of the peak

    def __call__(self, step: int) -> float:
        """The share for the update after `step` others: from 0 to 1."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        length = max(1, self.total_steps - self.warmup_steps)
        return self.floor + (1 - self.floor) * self._share(min(step - self.warmup_steps, length), length)

    def _share(self, done: int, length: int) -> float:
        """The share above the floor, after `done` of `length` updates that follow the warmup."""
        progress = done / length
        if self.shape == "constant":
            return 1.0
        if self.shape == "linear":
            return 1 - progress
        if self.shape == "rex":
            return (1 - progress) / (1 - progress / 2)
        if self.shape == "wsd":
            decay = min(1.0, self.decay_ratio * self.total_steps / length)
            return 1 - math.sqrt(max(0.0, 1 - (1 - progress) / decay))
        if done == length:
            return 0.0
        cycle, within = divmod(self.restarts * done, length)  # in whole numbers: a cycle begins at its peak
        return float(self.restart_decay**cycle) * 0.5 * (1 + math.cos(math.pi * within / length))
