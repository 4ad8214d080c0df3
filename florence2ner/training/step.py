"""The optimizer update: forward, backward and step for one window of micro-batches."""

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
from florence2ner.engine.sharding import whole


@dataclass(frozen=True)
class Update:
    """The result of one optimizer update, over all processes. Its tensors stay on the device."""

    loss_sum: torch.Tensor  # () sum over all label tokens, in nats
    tokens: int  # label tokens of all processes
    samples: int  # samples of all processes
    gradient_norm: torch.Tensor  # () before clipping
    learning_rate: float
    suspects: tuple[int, ...] = ()  # if the update was skipped: samples that may have caused it


class UpdateStep:
    """Does one optimizer update per window: forward and backward of each micro-batch, clip, step, schedule, zero.

    `token_losses(model, batch)` returns the cross-entropy of each label token (B, L), 0 where there is no label. The
    gradient is that of their sum over the window and all processes, divided by the number of label tokens there: how
    the global batch is divided into processes and micro-batches makes no difference.

    An update whose loss or gradient is not finite leaves weights and optimizer as they were. Every process must call
    the step, each with its own window of the same update.
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
        # Accelerate is to synchronise gradients at the window's last micro-batch; an epoch's last window may have
        # fewer.
        accelerator.gradient_accumulation_steps, accelerator.step = micro_batches, 0
        # Accelerate divides the loss by the number of micro-batches, DDP averages over processes. Undo both, and divide
        # by the number of label tokens instead.
        scale = micro_batches * accelerator.num_processes / max(tokens, 1)
        sample_losses = []
        for batch in window.batches:
            with accelerator.accumulate(self.model):
                with accelerator.autocast():  # Accelerate wraps the forward of a DDP model in it, but not of FSDP's
                    losses = self.token_losses(self.model, batch).sum(dim=1)  # (B,)
                accelerator.backward(losses.sum() * scale)
                sample_losses.append(losses.detach())
                del losses  # and with it the graph: its memory is free for the next forward
        loss_sum = accelerator.reduce(torch.cat(sample_losses).sum())
        gradient_norm = whole(accelerator.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm or torch.inf))
        learning_rate = float(self.schedule.get_last_lr()[0])
        finite = bool(loss_sum.isfinite() & gradient_norm.isfinite())
        if finite or accelerator.scaler is not None:  # fp16's GradScaler skips the update itself, and lowers its scale
            self.optimizer.step()
        with warnings.catch_warnings():  # torch warns if the very first update is skipped
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            self.schedule.step()
        self.optimizer.zero_grad()
        suspects = () if finite else self._suspects(window, sample_losses)
        return Update(loss_sum, tokens, samples, gradient_norm, learning_rate, suspects)

    def _suspects(self, window: Window, sample_losses: list[torch.Tensor]) -> tuple[int, ...]:
        """Indices of the samples, in all processes, whose loss is not finite; where there is none, of all samples."""
        indices = [index for batch in window.batches for index in batch.indices]
        bad = (~torch.cat(sample_losses).isfinite()).tolist()
        everywhere = gather_object(list(zip(indices, bad, strict=True)))
        return tuple(index for index, is_bad in everywhere if is_bad) or tuple(index for index, _ in everywhere)

    def _count(self, window: Window) -> tuple[int, int]:
        """The numbers of label tokens and of valid samples in the windows of all processes."""
        here = [
            sum(batch.label_tokens for batch in window.batches),
            sum(sum(batch.valid) for batch in window.batches),
        ]
        tokens, samples = self.accelerator.reduce(torch.tensor(here, device=self.accelerator.device)).tolist()
        return tokens, samples


def token_losses(captioner: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each label token of a batch, (B, L); `captioner` may be wrapped by Accelerate."""
    assert batch.text is not None
    losses: torch.Tensor = captioner(batch.images, batch.text)
    return losses
