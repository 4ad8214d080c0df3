"""What tests of an update share: captions of different lengths, a step that is ready to take, a lack of memory."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from florence2ner.data.batch import Batch, Window
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import TrainLoader
from florence2ner.data.order import ShuffledOrder
from florence2ner.data.samples import Sample
from florence2ner.engine.runtime import make_accelerator
from florence2ner.model.build import NOTHING, build_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.training.step import UpdateStep, token_losses

TokenLosses = Callable[[nn.Module, Batch], Tensor]
Prepared = tuple[Captioner, UpdateStep, Window]
FORWARD, BACKWARD = "forward", "backward"


class Short:
    """The losses of a model on a device with memory for `rows` images: more fail in `place`, after `spared` batches."""

    def __init__(self, rows: int, place: str, *, spared: int = 0) -> None:
        self.rows, self.place, self.spared = rows, place, spared
        self.failures = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = token_losses(model, batch)
        self.spared -= 1
        if len(batch.valid) > self.rows and self.spared < 0:
            if self.place == FORWARD:
                self.fail()
            # By the time that the backward pass comes here, most gradients are there.
            captioner = getattr(model, "module", model)  # below DDP
            first = captioner.model.model.language_model.encoder.layers[0].fc1.weight
            hook = first.register_hook(lambda _: (hook.remove(), self.fail()))
        return losses

    def fail(self) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def samples_of_different_lengths(shapes: Path) -> list[Sample]:
    found = discover_samples(shapes, "<CAPTION>").samples[:11]
    captions = ["red", *(" and ".join([sample.caption] * (1 + i % 4)) for i, sample in enumerate(found[1:]))]
    return [Sample(sample.image, sample.task_prompt, (text,)) for sample, text in zip(found, captions, strict=True)]


def prepare(
    samples: list[Sample],
    model_dir: Path,
    batch_size: int,
    accumulation: int,
    *,
    number: int = 0,
    rate: float = 0.0,
    losses: TokenLosses = token_losses,
    change: Callable[[Accelerator], None] = lambda _: None,
    images_at_once: int | None = None,
) -> Prepared:
    """Fresh weights, the step that trains them with SGD, and the window of update `number` of the plan."""
    accelerator = make_accelerator("no", seed=0)
    change(accelerator)
    model, processor = load_model(model_dir)
    captioner = build_captioner(model, processor, device=accelerator.device, frozen=NOTHING)
    optimizer = torch.optim.SGD(captioner.parameters(), lr=rate)
    plan = ShuffledOrder(samples, batch_size, accumulation, processes=1, seed=0)
    loader = TrainLoader(samples, processor, plan, process=0, first=number, end=number + 1)
    prepared, prepared_optimizer = accelerator.prepare(captioner, optimizer)
    schedule = LambdaLR(optimizer, lambda _: 1.0)
    (window,) = loader
    parts = accelerator, prepared, prepared_optimizer, schedule, losses
    step = UpdateStep(*parts, clip_grad_norm=None, images_at_once=images_at_once)
    return captioner, step, window
