"""The compiled model against the plain one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner.config.options import Decoding
from florence2ner.model.build import EVERYTHING, Frozen, build_captioner
from florence2ner.model.generation import generate
from florence2ner.model.inputs import Pixels, Text
from tests.model.support import IMAGES, LIMIT, prompts


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False], ids=["captioning", "training"])
def test_compiled_parts_give_the_same(writing_model: tuple[Any, Any], pictures: Tensor, fixed: bool) -> None:
    model, processor = writing_model
    ids, _ = prompts(processor, padded=False)
    labels = torch.tensor([[0, 7, 8, 9, 2]]).expand(IMAGES, -1)
    texts, losses, gradients = [], [], []
    tower = Frozen(vision=True, language=False, other=False)
    decoding = Decoding(num_beams=3, max_new_tokens=LIMIT)
    for compiled in (False, True):
        copied = copy.deepcopy(model)
        captioner = build_captioner(
            copied, processor, device=torch.device("cpu"), frozen=EVERYTHING if fixed else tower, compiled=compiled
        )
        # One image at a time, as real sizes have it: torch then finds in its cache what other tests have compiled.
        encoded = [captioner.vision.encode(Pixels(picture)).values for picture in torch.split(pictures, 1)]
        features = captioner.vision.encoded_type(torch.cat(encoded))
        loss = captioner(features, Text(ids, None, labels, torch.arange(labels.numel()))).sum()
        losses.append(loss.item())
        if fixed:
            with torch.no_grad():
                texts.append(generate(captioner, captioner.vision.embed(features), ids, None, decoding))
        else:
            loss.backward()
            gradients.append({name: p.grad for name, p in copied.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    if fixed:
        assert texts[0] == texts[1]
    else:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
