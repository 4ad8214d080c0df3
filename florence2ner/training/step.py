"""The optimizer update: how one window of micro-batches becomes one step."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from florence2ner.data.batch import Batch, Window


@dataclass(frozen=True)
class Update:
    """What one optimizer update was. The tensors stay on the device until somebody asks for their values."""

    loss_sum: torch.Tensor  # () nats, over the label tokens of all processes
    tokens: int  # label tokens of all processes
    samples: int  # samples of all processes
    gradient_norm: torch.Tensor  # () before clipping
    learning_rate: float
    suspects: tuple[int, ...] = ()  # samples behind a loss or gradient that is not finite; the update was then skipped


class UpdateStep:
    """One optimizer update per window: count, forward and backward, clip, step, schedule, zero.

    `token_losses(model, batch)` gives the cross-entropy of every label token, 0 where it does not count. The gradient
    is that of their sum over the window and over all processes, divided by the number of tokens that count: how the
    global batch is cut into processes and micro-batches makes no difference.

    An update whose loss or gradient is not finite leaves weights and optimizer as they were.
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
        sample_losses = []
        for batch in window.batches:
            with accelerator.accumulate(self.model):
                losses = self.token_losses(self.model, batch).sum(dim=1)  # (B,)
                accelerator.backward(losses.sum() * scale)
                sample_losses.append(losses.detach())
                del losses  # and its graph, whose memory the next forward then finds free
        loss_sum = accelerator.reduce(torch.cat(sample_losses).sum())
        gradient_norm = torch.as_tensor(
            accelerator.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm or torch.inf)
        )
        learning_rate = float(self.schedule.get_last_lr()[0])
        finite = bool(loss_sum.isfinite() & gradient_norm.isfinite())
        if finite or accelerator.scaler is not None:  # the scaler of fp16 skips by itself, and must see it to adapt
            self.optimizer.step()
        with warnings.catch_warnings():  # of torch, where the very first update is skipped
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            self.schedule.step()
        self.optimizer.zero_grad()
        suspects = () if finite else self._suspects(window, sample_losses)
        return Update(loss_sum, tokens, samples, gradient_norm, learning_rate, suspects)

    def _suspects(self, window: Window, sample_losses: list[torch.Tensor]) -> tuple[int, ...]:
        """The samples, of all processes, with a loss that is not finite; where there is none, the whole window."""
        indices = [index for batch in window.batches for index in batch.indices]
        bad = (~torch.cat(sample_losses).isfinite()).tolist()
        everywhere = gather_object(list(zip(indices, bad, strict=True)))
        return tuple(index for index, is_bad in everywhere if is_bad) or tuple(index for index, _ in everywhere)

    def _count(self, window: Window) -> tuple[int, int]:
        """Label tokens and samples of the window, over all processes."""
        here = [
            sum(batch.label_tokens for batch in window.batches),
            sum(sum(batch.valid) for batch in window.batches),
        ]
        tokens, samples = self.accelerator.reduce(torch.tensor(here, device=self.accelerator.device)).tolist()
        return tokens, samples


def token_losses(captioner: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each label token of a batch, (B, L), through whatever Accelerate wrapped the captioner in."""
    assert batch.text is not None
    losses: torch.Tensor = captioner(batch.images, batch.text)
    return losses
