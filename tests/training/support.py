"""What tests of an update share: captions of different lengths, and a step that is ready to take."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
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

TokenLosses = Callable[[nn.Module, Batch], torch.Tensor]
Prepared = tuple[Captioner, UpdateStep, Window]


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
    step = UpdateStep(accelerator, prepared, prepared_optimizer, schedule, losses, clip_grad_norm=None)
    return captioner, step, window
