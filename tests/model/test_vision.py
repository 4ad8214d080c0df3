"""The vision tower with our kernels against torch's own."""

import copy
from typing import Any

import torch

from florence2ner.model.build import build_captioner
from florence2ner.model.inputs import Pixels


def test_the_towers_attention_gives_what_torch_gives(built_model: tuple[Any, Any]) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.model.vision_tower(captioner.vision.normalise(pixels)).last_hidden_state
        torch.testing.assert_close(captioner.vision.features(Pixels(pixels)).values, expected, atol=1e-4, rtol=1e-4)
