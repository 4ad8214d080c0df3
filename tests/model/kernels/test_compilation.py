"""The compiled model against the plain one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner.model.adapt import freeze
from florence2ner.model.captioner import Captioner, Decoding
from tests.model.support import IMAGES, LIMIT, prompts


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False], ids=["captioning", "training"])
def test_compiled_parts_give_the_same(writing_model: tuple[Any, Any], pictures: Tensor, fixed: bool) -> None:
    model, processor = writing_model
    ids, _ = prompts(processor, padded=False)
    labels = torch.tensor([[0, 7, 8, 9, 2]]).expand(IMAGES, -1)
    texts, losses, gradients = [], [], []
    for compiled in (False, True):
        copied = copy.deepcopy(model)
        freeze(copied, vision=True, language=False, other=False)
        captioner = Captioner(copied, processor)
        if fixed:
            captioner.fix_weights(None)
        if compiled:
            captioner.compile_model()
        features = captioner.encode(pictures)
        loss = captioner.token_losses(features, ids, None, labels, torch.arange(labels.numel())).sum()
        losses.append(loss.item())
        if fixed:
            with torch.no_grad():
                texts.append(captioner.generate(captioner.embed_images(features), ids, None, Decoding(3, LIMIT)))
        else:
            loss.backward()
            gradients.append({name: p.grad for name, p in copied.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    if fixed:
        assert texts[0] == texts[1]
    else:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
