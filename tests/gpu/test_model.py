"""The model on a GPU: the same captions as on a CPU, the tower's memory format and speed, peak memory by setting."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from florence2ner.config.options import Decoding
from florence2ner.data.formats import discover_images
from florence2ner.data.images import load_pixels
from florence2ner.data.samples import ImageRef
from florence2ner.model.build import Frozen, build_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.checkpoints.scratch import Preset, build_model
from florence2ner.model.generation import generate
from florence2ner.model.inputs import Pixels, Text
from tests.benchmarks.machine import Machine, medians, take_turns

CAPTIONS = ["a small red star in the top left corner", "two blue squares"]


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_the_cpu(gpu: torch.device, trained_model: Path, shapes: Path, beams: int) -> None:
    texts = []
    for device in (torch.device("cpu"), gpu):
        captioner = build_captioner(*load_model(trained_model), device=device)
        size = captioner.processor.image_processor.size
        sides = size["height"], size["width"]
        images = [load_pixels(ImageRef.at(path), sides).pixels for path in discover_images([shapes])]
        pixels = Pixels(torch.stack(images)).to(device)
        ids = expand_prompt(captioner.processor, "<CAPTION>").to(device).expand(len(images), -1)
        with torch.no_grad():
            embedded = captioner.vision.embed(pixels)
        written = generate(captioner, embedded, ids, None, Decoding(num_beams=beams, max_new_tokens=24))
        texts.append([answer.text for answer in written])
    assert texts[0] == texts[1]


def test_the_towers_memory_format_changes_speed_only(gpu: torch.device, figures: dict[str, Any]) -> None:
    model, processor = build_model("base", CAPTIONS, seed=0)
    pixels = Pixels(torch.randint(0, 256, (16, 3, 768, 768), dtype=torch.uint8, device=gpu))
    machine = Machine(gpu, "bf16")
    captioners = {
        name: build_captioner(
            copy.deepcopy(model), processor, device=gpu, dtype=torch.bfloat16, channels_last=name == "channels_last"
        )
        for name in ("channels_last", "contiguous")
    }

    def encode(captioner: Captioner) -> torch.Tensor:
        with torch.no_grad(), machine.autocast():
            return captioner.vision.encode(pixels).values

    one, other = (encode(captioner).float() for captioner in captioners.values())
    assert ((one - other).norm() / one.norm()).item() < 2e-2
    turns = {name: lambda captioner=captioner: encode(captioner) for name, captioner in captioners.items()}
    seconds = medians(take_turns(machine, turns, seconds=20, rounds=(5, 40)))
    figures["encode, images/s (base, bf16)"] = {name: 16 / taken for name, taken in seconds.items()}
    assert seconds["channels_last"] < 1.1 * seconds["contiguous"], "build_captioner says that it is the faster one"


SETTINGS = {
    "tower frozen": {"vision": True, "checkpointing": True},
    "all trained, checkpointing": {"vision": False, "checkpointing": True},
    "all trained": {"vision": False, "checkpointing": False},
}


@pytest.mark.parametrize("preset", ["base", "large"])
def test_peak_memory_is_less_with_checkpointing_and_least_with_a_frozen_tower(
    gpu: torch.device, figures: dict[str, Any], preset: Preset
) -> None:
    peaks = {name: _peak_memory(gpu, preset, **how) for name, how in SETTINGS.items()}
    figures[f"peak memory of an update in GB ({preset}, batch 4, bf16)"] = {n: peak / 1e9 for n, peak in peaks.items()}
    assert peaks["tower frozen"] < peaks["all trained, checkpointing"] < peaks["all trained"]


def _peak_memory(device: torch.device, preset: Preset, *, vision: bool, checkpointing: bool) -> int:
    """Bytes that two updates of four images hold at most, AdamW's state included."""
    model, processor = build_model(preset, CAPTIONS, seed=0)
    frozen = Frozen(vision=vision, language=False, other=False)
    how = {"dtype": torch.bfloat16, "gradient_checkpointing": checkpointing}
    captioner = build_captioner(model, processor, device=device, frozen=frozen, **how).train()
    optimizer = torch.optim.AdamW(p for p in captioner.parameters() if p.requires_grad)
    pixels = Pixels(torch.randint(0, 256, (4, 3, 768, 768), dtype=torch.uint8, device=device))
    ids = expand_prompt(processor, "<CAPTION>").to(device).expand(4, -1)
    labels = torch.randint(5, 100, (4, 64), device=device)
    text = Text(ids, None, labels, torch.arange(labels.numel(), device=device))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            loss = captioner(pixels, text).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()
