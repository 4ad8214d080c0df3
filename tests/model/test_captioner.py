"""The loss of given captions: what is padded changes nothing."""

import copy
from typing import Any

import torch

from florence2ner.model.build import build_captioner
from florence2ner.model.inputs import Pixels, Text


def test_padding_of_a_prompt_changes_no_loss(built_model: tuple[Any, Any]) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    images = captioner.vision.embed(Pixels(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)))
    ids = torch.tensor([[processor.image_token_id] * 17 + [5, 6, 2]])
    labels = torch.tensor([[0, 7, 8, 9, 2]])
    positions = torch.arange(5)
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    mask = (torch.arange(23) < 20).long()[None]
    with torch.no_grad():
        alone = captioner(images, Text(ids, None, labels, positions))
        beside = captioner(images, Text(padded, mask, labels, positions))
        blind = captioner(images, Text(padded, None, labels, positions))
    torch.testing.assert_close(alone, beside)
    assert not torch.allclose(alone, blind)
