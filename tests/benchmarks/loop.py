"""What the loop costs on top of the bare calls: `make bench` (a minute on two cores).

The same batches, the same tiny model: A is forward, backward, clip and step written out; B is `UpdateStep` in
`run_loop`. They take turns, A B A B ..., and the ratio of their medians counts, since machines drift. Small steps make
this the worst case: on a real model the same microseconds stand against seconds.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from florence2ner.data.loader import TrainLoader, TrainPlan
from florence2ner.data.samples import discover_samples, read_captions
from florence2ner.demo import draw_dataset
from florence2ner.engine.loop import UpdateStep, run_loop
from florence2ner.engine.runtime import make_accelerator
from florence2ner.model.captioner import Captioner
from florence2ner.model.scratch import build_model
from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedules import build_schedule
from florence2ner.train import _token_losses

ROUNDS, UPDATES, BATCH, ACCUMULATION = 7, 4, 16, 2
OUTPUT = Path("benchmarks") / "benchmarks.json"


def main() -> None:
    with TemporaryDirectory() as folder:
        data = Path(folder, "data")
        draw_dataset(data, UPDATES * BATCH * ACCUMULATION, seed=0)
        model, processor = build_model("tiny", read_captions(data), seed=0)
        samples = discover_samples(data, "<CAPTION>").samples
        plan = TrainPlan(len(samples), BATCH, ACCUMULATION, processes=1, seed=0)
        loader = TrainLoader(samples, processor, plan, process=0, first=0, end=UPDATES, workers=0, pin_memory=False)
        windows = list(loader)
    accelerator = make_accelerator("no", seed=0)
    captioner = Captioner(model, processor).train()
    optimizer = build_optimizer(captioner, learning_rate=1e-4, weight_decay=0.01)
    prepared, prepared_optimizer = accelerator.prepare(captioner, optimizer)
    schedule = build_schedule(optimizer, warmup_steps=0, total_steps=10**6, restarts=1)
    step = UpdateStep(accelerator, prepared, prepared_optimizer, schedule, _token_losses, clip_grad_norm=1.0)

    def bare() -> None:
        for window in windows:
            tokens = sum(batch.label_tokens for batch in window.batches)
            for batch in window.batches:
                (_token_losses(captioner, batch).sum() / tokens).backward()
            torch.nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def ours() -> None:
        run_loop(windows, step, lambda window, update: False, device=accelerator.device)

    seconds = {"bare": [], "loop": []}
    for _ in range(ROUNDS + 1):
        for name, work in (("bare", bare), ("loop", ours)):
            seconds[name].append(_time(work))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first round warms up
    overhead = medians["loop"] / medians["bare"] - 1
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps({"loop_overhead": overhead, "seconds": seconds}, indent=1) + "\n")
    images = UPDATES * BATCH * ACCUMULATION
    print(f"bare calls {medians['bare'] / images * 1e3:.2f} ms an image, loop {medians['loop'] / images * 1e3:.2f} ms")
    print(f"overhead of the loop: {overhead:.1%}; written to {OUTPUT}")


def _time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
