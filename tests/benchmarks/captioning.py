"""Captioning with the base size: `generate` for one image after the other, in batches, and ours.

Same weights, photographs, beams and number of tokens; random weights never end a caption early. Where the precision is
bf16, `generate` is tried under autocast and with weights in bf16; the ratio is to the faster one. Loading the model is
not counted.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
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
ONE_BY_ONE = "generate, one image at a time"


def measure(machine: Machine, folder: Path, batch_size: int, *, compiled: bool) -> dict[str, Any]:
    """Seconds per image and ratios; `compiled` has ours use torch.compile."""
    photos = make_dataset(folder, batch_size)
    paths = discover_images([photos])
    plain, processor = build_model("base", read_captions(photos), seed=0)
    plain.to(machine.device).eval()
    narrow = copy.deepcopy(plain).to(torch.bfloat16) if machine.precision == "bf16" else None
    model, _ = build_model("base", read_captions(photos), seed=0)
    dtype = machine.dtype if machine.precision != "no" else None
    captioner = build_captioner(model, processor, device=machine.device, dtype=dtype, compiled=compiled)
    decoding = Decoding(num_beams=BEAMS, max_new_tokens=TOKENS)
    written: dict[str, list[int]] = {}

    def generate_plainly(name: str, paths: list[Path], model: Any = plain) -> None:
        images = [Image.open(path).convert("RGB") for path in paths]
        inputs = processor(images=images, text=[PROMPT] * len(paths), return_tensors="pt").to(
            machine.device, model.dtype
        )
        with torch.no_grad(), machine.autocast() if model is plain else nullcontext():
            ids = model.generate(**inputs, num_beams=BEAMS, max_new_tokens=TOKENS)
        processor.batch_decode(ids, skip_special_tokens=True)
        written[name] = [len(row) - 1 for row in ids.tolist()]

    def one_by_one() -> None:
        for path in paths:
            generate_plainly(ONE_BY_ONE, [path])

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
        ONE_BY_ONE: one_by_one,
        "generate, batched": lambda: generate_plainly("generate, batched", paths),
    }
    if narrow:
        name = "generate, batched, weights in bf16"
        turns[name] = lambda: generate_plainly(name, paths, narrow)
    turns["ours"] = ours
    for name, work in turns.items():
        if name != ONE_BY_ONE:
            work()  # the first of each is slower: memory and kernels are being set up
    taken = take_turns(machine, turns, seconds=60, rounds=(2, 5))
    assert {tokens for counts in written.values() for tokens in counts} == {TOKENS}, written
    seconds = {name: value / len(paths) for name, value in medians(taken).items()}
    fastest = min(value for name, value in seconds.items() if name != "ours")
    return {
        "caption_ratio": fastest / seconds["ours"],
        "caption_vs_one_by_one_ratio": seconds[ONE_BY_ONE] / seconds["ours"],
        "caption_tokens_per_second": {name: TOKENS / value for name, value in seconds.items()},
        "caption_seconds_per_image": seconds,
        "caption_seconds": taken,
    }
