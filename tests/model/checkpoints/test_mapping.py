"""A model file that was read doesn't stay in memory, and its weights are what they were."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner.model.build import Frozen, build_captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.mapping import mapped_files, release_mapped_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")


def resident(model: Path) -> int:
    """Bytes of a model's file that are in the memory of this process."""
    kilobytes, is_meant = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_meant = line.endswith(str(model / "model.safetensors"))
        elif is_meant and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024


def test_a_file_that_was_read_leaves_the_memory_and_what_was_changed_stays(tiny_model: Path) -> None:
    file = tiny_model / "model.safetensors"
    weights = load_file(file)
    before = {name: weight.clone() for name, weight in weights.items()}  # which reads all of it
    changed = max(weights, key=lambda name: weights[name].numel())
    weights[changed].add_(1)
    assert any(end - start >= file.stat().st_size for start, end in mapped_files())
    assert resident(tiny_model) >= file.stat().st_size
    release_mapped_files()
    kept = weights[changed].nbytes  # copied when it was written to
    assert resident(tiny_model) < kept + 64 * 4096
    for name, weight in weights.items():
        assert torch.equal(weight, before[name] + (name == changed))


def test_a_captioner_keeps_no_pages_of_weights_that_it_only_saves(tiny_model: Path) -> None:
    model, processor = load_model(tiny_model)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    frozen = Frozen(vision=True, language=True, other=False)
    captioner = build_captioner(model, processor, device=torch.device("cpu"), frozen=frozen, dtype=torch.bfloat16)
    assert resident(tiny_model) < 0.1 * (tiny_model / "model.safetensors").stat().st_size
    with captioner.frozen_weights.in_full():
        assert all(torch.equal(weight, expected[name]) for name, weight in captioner.model.state_dict().items())
