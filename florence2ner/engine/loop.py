"""The one loop under train, eval and caption, and the optimizer update that makes it train.

It knows step functions and windows of micro-batches, and nothing of Florence-2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from florence2ner.data.loader import Batch, Window

Result = TypeVar("Result")


def run_loop(
    windows: Iterable[Window],
    step: Callable[[Window], Result],
    after_step: Callable[[Window, Result], bool],
    *,
    device: torch.device,
) -> None:
    """Take each window to the device, do one step with it, then what is due; until the windows end.

    `after_step` logs, evaluates, saves and writes; it returns True to stop early.
    """
    for window in windows:
        window = Window(tuple(batch.to(device) for batch in window.batches), window.epoch)
        result = step(window)
        if after_step(window, result):
            break


@dataclass
class TrainState:
    """Where a training run stands. `step` is the number of optimizer updates done."""

    step: int = 0
    samples_seen: int = 0

    def state_dict(self) -> dict[str, Any]:
        """For `Accelerator.save_state`."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `Accelerator.load_state`."""
        vars(self).update(state)


@dataclass(frozen=True)
class Update:
    """What one optimizer update was. The tensors stay on the device until somebody asks for their values."""

    loss_sum: torch.Tensor  # () nats, over the label tokens of all processes
    tokens: int  # label tokens of all processes
    samples: int  # samples of all processes
    gradient_norm: torch.Tensor  # () before clipping
    learning_rate: float


class UpdateStep:
    """One optimizer update per window: count, forward and backward, clip, step, schedule, zero.

    `token_losses(model, batch)` gives the cross-entropy of every label token, 0 where it does not count. The gradient
    is that of their sum over the window and over all processes, divided by the number of tokens that count: how the
    global batch is cut into processes and micro-batches makes no difference.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        schedule: LRScheduler,
        token_losses: Callable[[nn.Module, Batch], torch.Tensor],
        *,
        clip_grad_norm: float | None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.token_losses = token_losses
        self.clip_grad_norm = clip_grad_norm

    def __call__(self, window: Window) -> Update:
        accelerator, micro_batches = self.accelerator, len(window.batches)
        tokens, samples = self._count(window)
        # A short last window syncs and steps at its own end.
        accelerator.gradient_accumulation_steps, accelerator.step = micro_batches, 0
        # Accelerate divides by the micro-batches, DDP averages over the processes: undo both, divide by the tokens.
        scale = micro_batches * accelerator.num_processes / max(tokens, 1)
        loss_sum = torch.zeros((), device=accelerator.device)
        for batch in window.batches:
            with accelerator.accumulate(self.model):
                loss = self.token_losses(self.model, batch).sum()
                accelerator.backward(loss * scale)
                loss_sum += loss.detach()
        gradient_norm = accelerator.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm or torch.inf)
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return Update(accelerator.reduce(loss_sum), tokens, samples, torch.as_tensor(gradient_norm), learning_rate)

    def _count(self, window: Window) -> tuple[int, int]:
        """Label tokens and samples of the window, over all processes."""
        here = [
            sum(batch.label_tokens for batch in window.batches),
            sum(sum(batch.counted) for batch in window.batches),
        ]
        tokens, samples = self.accelerator.reduce(torch.tensor(here, device=self.accelerator.device)).tolist()
        return tokens, samples
