"""What is frozen stays, and recomputed activations change nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import train
from tests.conftest import MakeConfig


@pytest.mark.parametrize("part", ["vision", "language", "other"])
def test_a_frozen_part_stays_and_the_rest_learns(make_config: MakeConfig, tiny_model: Path, part: str) -> None:
    frozen = {"freeze_vision": False} | {f"freeze_{part}": True}
    last = train(make_config(max_steps=2, eval_steps=None, save_steps=None, **frozen)).checkpoint
    before, after = load_file(tiny_model / "model.safetensors"), load_file(last / "model.safetensors")
    owner = {
        "vision": "model.vision_tower.",
        "language": "model.language_model.",
        "other": "model.multi_modal_projector.",
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(owner[part]) for name in changed)
    for other in owner.keys() - {part}:
        assert any(name.startswith(owner[other]) for name in changed), other


def test_gradient_checkpointing_changes_nothing_but_memory(make_config: MakeConfig) -> None:
    settings = {"max_steps": 2, "eval_steps": None, "save_steps": None, "freeze_vision": False}
    with_ = train(make_config(run_name="with", gradient_checkpointing=True, **settings)).checkpoint
    without = train(make_config(run_name="without", gradient_checkpointing=False, **settings)).checkpoint
    first, second = load_file(with_ / "model.safetensors"), load_file(without / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
