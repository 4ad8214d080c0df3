"""Captioning with the base size: `generate` for one image after the other, in batches, and ours.

Same weights, photographs, beams and number of tokens; random weights never end a caption early. Loading the model is
not counted.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from florence2ner.config.options import Decoding
from florence2ner.data.batch import Window
from florence2ner.data.formats import discover_images
from florence2ner.data.layouts.pairs import read_captions
from florence2ner.data.loader import SequentialLoader
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.engine.loop import run_loop
from florence2ner.model.build import build_captioner
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.model.generation import generate
from florence2ner.model.inputs import Pixels
from tests.benchmarks.machine import Machine, medians, take_turns
from tests.benchmarks.training import PROMPT, make_dataset

BEAMS, TOKENS = 3, 48


def measure(machine: Machine, folder: Path, batch_size: int, *, compiled: bool) -> dict[str, Any]:
    """Seconds per image and ratios; `compiled` has ours use torch.compile."""
    photos = make_dataset(folder, batch_size)
    paths = discover_images([photos])
    plain, processor = build_model("base", read_captions(photos), seed=0)
    plain.to(machine.device).eval()
    model, _ = build_model("base", read_captions(photos), seed=0)
    dtype = machine.dtype if machine.precision != "no" else None
    captioner = build_captioner(model, processor, device=machine.device, dtype=dtype, compiled=compiled)
    decoding = Decoding(num_beams=BEAMS, max_new_tokens=TOKENS)
    written: dict[str, list[int]] = {}

    def generate_plainly(name: str, paths: list[Path]) -> None:
        images = [Image.open(path).convert("RGB") for path in paths]
        inputs = processor(images=images, text=[PROMPT] * len(paths), return_tensors="pt").to(machine.device)
        with torch.no_grad(), machine.autocast():
            ids = plain.generate(**inputs, num_beams=BEAMS, max_new_tokens=TOKENS)
        processor.batch_decode(ids, skip_special_tokens=True)
        written[name] = [len(row) - 1 for row in ids.tolist()]

    def one_by_one() -> None:
        for path in paths:
            generate_plainly("generate, one image at a time", [path])

    def ours() -> None:
        batches = [range(len(paths))]
        samples = [Sample(ImageRef.at(path), PROMPT) for path in paths]
        loader = SequentialLoader(samples, processor, batches, text=False)
        run_loop(loader, step, lambda *_: False)

    def step(window: Window) -> None:
        pixels = window.batches[0].to(machine.device).images
        assert isinstance(pixels, Pixels)
        with torch.no_grad(), machine.autocast():
            embedded = captioner.vision.embed(pixels)
            ids = expand_prompt(processor, PROMPT).to(machine.device).expand(len(embedded.values), -1)
            answers = generate(captioner, embedded, ids, None, decoding)
        written["ours"] = [answer.tokens for answer in answers]

    turns: dict[str, Callable[[], None]] = {
        "generate, one image at a time": one_by_one,
        "generate, batched": lambda: generate_plainly("generate, batched", paths),
        "ours": ours,
    }
    turns["generate, batched"]()  # the first of each is slower: memory and kernels are being set up
    ours()
    taken = take_turns(machine, turns, seconds=60, rounds=(2, 5))
    assert {tokens for counts in written.values() for tokens in counts} == {TOKENS}, written
    seconds = {name: value / len(paths) for name, value in medians(taken).items()}
    return {
        "caption_ratio": seconds["generate, batched"] / seconds["ours"],
        "caption_vs_one_by_one_ratio": seconds["generate, one image at a time"] / seconds["ours"],
        "caption_tokens_per_second": {name: TOKENS / value for name, value in seconds.items()},
        "caption_seconds_per_image": seconds,
        "caption_seconds": taken,
    }
