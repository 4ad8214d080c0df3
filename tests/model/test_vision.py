"""The vision tower with our kernels against torch's own."""

import copy
from typing import Any

import pytest
import torch

from florence2ner.model.build import EVERYTHING, NOTHING, Frozen, build_captioner
from florence2ner.model.inputs import Pixels


def test_the_towers_attention_gives_what_torch_gives(built_model: tuple[Any, Any]) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.model.vision_tower(captioner.vision.normalise(pixels)).last_hidden_state
        torch.testing.assert_close(captioner.vision.features(Pixels(pixels)).values, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("device", "frozen", "side", "sizes"),
    [
        ("cpu", EVERYTHING, 64, [40]),
        ("meta", EVERYTHING, 768, [16, 16, 8]),  # stands for a GPU
        ("meta", NOTHING, 768, [40]),
    ],
)
def test_how_many_images_the_tower_takes_at_once(
    built_model: tuple[Any, Any], device: str, frozen: Frozen, side: int, sizes: list[int]
) -> None:
    model, processor = copy.deepcopy(built_model)
    vision = build_captioner(model, processor, device=torch.device(device), frozen=frozen).vision
    seen: list[int] = []
    vision.tower.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pixels = torch.zeros(40, 3, side, side, dtype=torch.uint8, device=device)
    assert len(vision.features(Pixels(pixels)).values) == 40
    assert seen == sizes
