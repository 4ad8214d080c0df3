"""What the loop costs on top of the bare calls.

The same batches, the same tiny model: A is forward, backward, clip and step written out; B is `UpdateStep` in
`run_loop`. Small steps make this the worst case: on a real model the same microseconds stand against seconds.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.optim.lr_scheduler import LambdaLR

from florence2ner.data.layouts.pairs import discover_samples, read_captions
from florence2ner.data.loader import TrainLoader
from florence2ner.data.order import ShuffledOrder
from florence2ner.demo import draw_dataset
from florence2ner.engine.loop import run_loop
from florence2ner.engine.runtime import make_accelerator
from florence2ner.model.build import NOTHING, build_captioner
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedules import Schedule
from florence2ner.training.step import UpdateStep, token_losses
from tests.benchmarks.machine import Machine, medians, take_turns

UPDATES, BATCH, ACCUMULATION = 4, 16, 2


def measure() -> dict[str, float]:
    """The overhead of the loop as a share of the bare calls."""
    with TemporaryDirectory() as folder:
        data = Path(folder, "data")
        draw_dataset(data, UPDATES * BATCH * ACCUMULATION, seed=0)
        model, processor = build_model("tiny", read_captions(data), seed=0)
        samples = discover_samples(data, "<CAPTION>").samples
        plan = ShuffledOrder(samples, BATCH, ACCUMULATION, processes=1, seed=0)
        loader = TrainLoader(samples, processor, plan, process=0, first=0, end=UPDATES)
        windows = list(loader)
    accelerator = make_accelerator("no", seed=0)
    captioner = build_captioner(model, processor, device=accelerator.device, frozen=NOTHING).train()
    optimizer = build_optimizer(captioner, learning_rate=1e-4, weight_decay=0.01)
    prepared, prepared_optimizer = accelerator.prepare(captioner, optimizer)
    schedule = LambdaLR(optimizer, Schedule(shape="cosine", total_steps=10**6))
    step = UpdateStep(accelerator, prepared, prepared_optimizer, schedule, token_losses, clip_grad_norm=1.0)

    def bare() -> None:
        for window in windows:
            tokens = sum(batch.label_tokens for batch in window.batches)
            for batch in window.batches:
                (token_losses(captioner, batch.to(accelerator.device)).sum() / tokens).backward()
            torch.nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def ours() -> None:
        run_loop(windows, step, lambda window, update: False)

    bare(), ours()  # warm up
    taken = take_turns(Machine(accelerator.device, "no"), {"bare": bare, "loop": ours}, seconds=40, rounds=(5, 25))
    seconds = medians(taken)
    return {"loop_overhead": seconds["loop"] / seconds["bare"] - 1}
