"""The optimizer update: forward, backward and step for one window of micro-batches."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from florence2ner.data.batch import Batch, Window
from florence2ner.engine.loop import one_ahead
from florence2ner.engine.memory import Generators, unless_out_of_memory
from florence2ner.engine.sharding import name_of_sharding, whole
from florence2ner.errors import UserError
from florence2ner.optim.average import WeightAverage
from florence2ner.optim.schedule_free import averaged_weights, averages

LESS_MEMORY = (
    "set gradient_checkpointing, activation_offload, lora_rank, or weights_dtype: bf16 with optimizer: optimi_adamw, "
    "or take a smaller model"
)
_NO_LIMIT = 2**24  # images; the largest that float32 holds


@dataclass(frozen=True, kw_only=True)
class Update:
    """The result of one optimizer update, over all processes."""

    loss_sum: float  # over all label tokens, in nats
    tokens: int  # label tokens of all processes
    samples: int  # samples of all processes
    gradient_norm: float  # before clipping
    learning_rate: float
    part_rates: dict[str, float] = field(default_factory=dict)  # of parts of the model with one of their own
    signal: int | None = None  # that any process has received; the highest number of several
    skipped: bool = False  # weights and optimizer are as they were
    suspects: tuple[str, ...] = ()  # images that may have caused this; () where fp16's loss scale was merely too large

    @property
    def loss(self) -> float:
        """The mean over the label tokens, in nats; NaN where there are none."""
        return self.loss_sum / self.tokens if self.tokens else math.nan


class UpdateStep:
    """Does one optimizer update per window: forward and backward of each micro-batch, clip, step, schedule, zero.

    `token_losses(model, batch)` returns the cross-entropy of each label token (B, L), 0 where there is no label. The
    gradient is that of their sum over the window and all processes, divided by the number of label tokens there: how
    the global batch is divided into processes and micro-batches makes no difference.

    Where memory runs out, the window is begun anew with half as many images at once, with the same random numbers: the
    gradient stays the same, and so do the weights, but for the rounding of sums and the masks of dropout. From then on
    all processes take as many at once as the one that has the least memory (`images_at_once`). Where other processes
    wait for this one's part of the sum, it can't begin anew, and UserError is raised.

    An update whose loss or gradient is not finite leaves weights, optimizer and `average` as they were. Every process
    must call the step, each with its own window of the same update; `signal()` is the signal that this process has
    received. `saving()` is a context manager for each forward pass: it decides where activations are saved.
    `holding()` is one for all passes of an update, in which no weight changes.

    The host waits for the device once per update, when all numbers that it needs are read together (GradScaler, for
    fp16, has it wait once more).
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
        average: WeightAverage | None = None,
        images_at_once: int | None = None,
        signal: Callable[[], int | None] = lambda: None,
        warn: Callable[[str], None] = lambda _: None,
        saving: Callable[[], AbstractContextManager[None]] = nullcontext,
        holding: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`images_at_once`: the most images in a forward pass, where micro-batches are larger. `warn` hears of less."""
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.token_losses = token_losses
        self.clip_grad_norm = clip_grad_norm
        self.average = average
        self.images_at_once = self._told = images_at_once or _NO_LIMIT
        self.signal = signal
        self.warn = warn
        self._is_sharded = name_of_sharding(accelerator) is not None
        self._waited_for = False  # whether other processes can't go on without the part that is being computed
        self.saving = saving
        self.holding = holding

    def __call__(self, window: Window) -> Update:
        accelerator = self.accelerator
        counts = self._count(window)
        with self.holding():
            sample_losses = self._accumulate(window, tokens=counts[0])
        gradient_norm = whole(accelerator.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm or torch.inf))
        loss_sum, norm, tokens, samples, signal = self._read(sample_losses.sum(), gradient_norm, counts)
        rates = self._rates()
        suspects: tuple[str, ...] = ()
        if finite := math.isfinite(loss_sum) and math.isfinite(norm):
            self.optimizer.step()
            if self.average:
                self.average.update()
        elif not self._scale_was_too_large(loss_sum):
            suspects = self._suspects(window, sample_losses)
        with warnings.catch_warnings():  # torch warns if the very first update is skipped
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            self.schedule.step()
        self.optimizer.zero_grad()
        return Update(
            loss_sum=loss_sum,
            tokens=int(tokens),
            samples=int(samples),
            gradient_norm=norm,
            learning_rate=rates.pop("", 0.0),
            part_rates=rates,
            signal=int(signal) or None,
            skipped=not finite,
            suspects=suspects,
        )

    def _accumulate(self, window: Window, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the gradient of a window, which all processes together have `tokens` label tokens of.

        Returns the loss of each sample, in nats: (S,).
        """
        generators = Generators(self.accelerator.device)
        while True:
            parts = [part for batch in window.batches for part in batch.cut(self.images_at_once)]
            sample_losses = unless_out_of_memory(partial(self._try, parts, tokens))
            if sample_losses is not None:
                return sample_losses
            self._take_fewer(parts)
            self.model.zero_grad()  # the optimizer's, as Accelerate wraps it, does nothing between two updates
            generators.restore()

    def _try(self, parts: Sequence[Batch], tokens: torch.Tensor) -> torch.Tensor:
        accelerator = self.accelerator
        # Accelerate is to synchronise gradients at the window's last part; an epoch's last window may have fewer.
        accelerator.gradient_accumulation_steps, accelerator.step = len(parts), 0
        # Accelerate divides the loss by the number of parts, DDP averages over processes. Undo both, and divide by the
        # number of label tokens instead.
        scale = len(parts) * accelerator.num_processes / tokens.clamp_min(1)
        sample_losses, self._waited_for = [], False
        for number, batch in enumerate(one_ahead(parts, accelerator.device), start=1):
            self._waited_for = accelerator.num_processes > 1 and (self._is_sharded or number == len(parts))
            with accelerator.accumulate(self.model):
                # Accelerate wraps the forward of a DDP model in autocast, but not of FSDP's.
                with accelerator.autocast(), self.saving():
                    losses = self.token_losses(self.model, batch).sum(dim=1)  # (B,)
                accelerator.backward(losses.sum() * scale)
                sample_losses.append(losses.detach())
                del losses  # and with it the graph: its memory is free for the next forward
        return torch.cat(sample_losses)

    def _take_fewer(self, parts: Sequence[Batch]) -> None:
        """Halve `images_at_once`. Raises UserError where it can't be, or where others wait for a sum of this window."""
        tried = max(len(part.valid) for part in parts)
        if tried == 1:
            raise UserError(f"memory runs out with a single image: {LESS_MEMORY}")
        if self._waited_for:
            raise UserError(
                f"memory runs out with {tried} images at once, while the other processes wait for them: start again "
                "with half the train_batch_size and twice the gradient_accumulation_steps, which trains the same"
            )
        self.images_at_once = -(-tried // 2)

    def _rates(self) -> dict[str, float]:
        """The learning rate of each part that has its own, and of the others under ""; the highest of its layers."""
        rates: dict[str, float] = {}
        for group, rate in zip(self.schedule.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            part = group.get("part", "")
            rates[part] = max(float(rate), rates.get(part, 0.0))
        return rates

    def is_averaged(self, *, ema: bool = True) -> bool:
        """Whether `averaged` makes a difference."""
        return averages(self.optimizer) or (ema and self.average is not None)

    def averaged(self, *, ema: bool = True) -> AbstractContextManager[None]:
        """A context manager in which the model has the weights that count: an average, where there is one.

        That is the one that a schedule-free optimizer makes, or with `ema` the moving average beside any other.
        Afterwards the model has the trained weights again, to the bit.
        """
        if ema and self.average:
            return self.average.in_place()
        return averaged_weights(self.optimizer)

    def _suspects(self, window: Window, sample_losses: torch.Tensor) -> tuple[str, ...]:
        """Names of the images, in all processes, whose loss is not finite; where there is none, of all images."""
        names = [name for batch in window.batches for _, name in batch.refs]
        bad = (~sample_losses.isfinite()).tolist()
        everywhere = gather_object(list(zip(names, bad, strict=True)))
        return tuple(name for name, is_bad in everywhere if is_bad) or tuple(name for name, _ in everywhere)

    def _count(self, window: Window) -> torch.Tensor:
        """The numbers of label tokens and of valid samples in the windows of all processes: (2,) on the device."""
        here = [
            sum(batch.label_tokens for batch in window.batches),
            sum(sum(batch.valid) for batch in window.batches),
        ]
        everywhere: torch.Tensor = self.accelerator.reduce(self._on_device(here))
        return everywhere

    def _read(self, loss_sum: torch.Tensor, gradient_norm: torch.Tensor, counts: torch.Tensor) -> list[float]:
        """Read the loss (summed over processes), the norm, the two counts and the signal (the highest; 0: none).

        All processes take as many images at once from now on as the one that takes the fewest. In float32, which is
        exact up to 16 million label tokens.
        """
        numbers = self._on_device([self.signal() or 0, -self.images_at_once])
        here = torch.cat([loss_sum[None], numbers.float()])
        everywhere = self.accelerator.gather(here[None])  # (processes, 3)
        total, highest = everywhere[:, :1].sum(dim=0), everywhere[:, 1:].amax(dim=0)
        read: list[float] = torch.cat([total, gradient_norm[None].float(), counts.float(), highest]).tolist()
        fewest = -int(read.pop())
        if self.accelerator.num_processes > 1:
            self.images_at_once = fewest
        self._tell_of_fewer()
        return read

    def _tell_of_fewer(self) -> None:
        """Say how many images are taken at once, where memory has run out in a process."""
        if self.images_at_once < self._told:
            self.warn(f"memory ran out: taking {self.images_at_once} images at once from now on, which trains the same")
            self._told = self.images_at_once

    def _on_device(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers).to(self.accelerator.device, non_blocking=True)

    def _scale_was_too_large(self, loss_sum: float) -> bool:
        """Have GradScaler lower its scale after gradients that are not finite. Returns whether that explains them.

        It starts too high on purpose, and finds the right scale by overflowing: nothing is wrong with the images then.
        """
        scaler = self.accelerator.scaler
        if scaler is None:
            return False
        scale = scaler.get_scale()
        scaler.update()
        return math.isfinite(loss_sum) and scale > 1


def token_losses(captioner: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each label token of a batch, (B, L); `captioner` may be wrapped by Accelerate."""
    assert batch.text is not None
    losses: torch.Tensor = captioner(batch.images, batch.text)
    return losses
