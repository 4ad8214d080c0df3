"""The collective operations of a forward and backward pass: `python -m tests.programs.forward MODEL DATASET`.

Prints the kinds of them in the third pass: the first two are those in which DDP arranges itself.
"""

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import SequentialLoader
from florence2ner.engine.collectives import destroy_process_group
from florence2ner.engine.runtime import make_accelerator
from florence2ner.model.build import NOTHING, build_captioner
from florence2ner.model.checkpoints.loading import load_model


def main(model_dir: Path, dataset: Path) -> None:
    accelerator = make_accelerator("no", seed=0)
    model, processor = load_model(model_dir)
    captioner = build_captioner(model, processor, device=accelerator.device, frozen=NOTHING)
    before = {name: buffer.clone() for name, buffer in captioner.named_buffers()}
    assert before, "nothing to look at"
    prepared = accelerator.prepare(captioner).train()
    samples = discover_samples(dataset, "<CAPTION>").samples
    (batch,) = next(iter(SequentialLoader(samples, processor, [[0, 1]]))).batches
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            prepared(batch.images, batch.text).sum().backward()
    print(*sorted({event.key for event in seen.key_averages() if event.key.startswith("gloo:")}))
    after = dict(captioner.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items()), "a buffer is not constant"
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
