"""The decoder that writes token by token against transformers' own, which reads the whole text each time."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from florence2ner.model.decoder import ROOM, Decoder
from florence2ner.model.lora import Lora, add_lora
from tests.model.support import IMAGES

LENGTH, PROMPT = ROOM + 4, 21  # tokens written, so that the room grows; and tokens of image and prompt


@pytest.mark.parametrize("kind", ["plain", "adapted", "bf16"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_logits_are_those_of_transformers(writing_model: tuple[Any, Any], beams: int, padded: bool, kind: str) -> None:
    """While beams change places and images leave."""
    model = copy.deepcopy(writing_model[0])
    if kind == "adapted":
        lora = Lora(rank=4, alpha=8, dropout=0.0, targets="language", dora=True, rslora=False)
        add_lora(model, lora, base="", seed=0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        model.eval()
    torch.manual_seed(1)
    encoded = torch.randn(IMAGES, PROMPT, model.config.text_config.d_model)
    mask = None
    if padded:
        mask = torch.ones(IMAGES, PROMPT, dtype=torch.long)
        mask[::2, -3:] = 0
    tokens = torch.full((IMAGES * beams, 1), model.config.text_config.decoder_start_token_id)
    images = torch.arange(IMAGES)
    tolerances = {"rtol": 0.05, "atol": 0.15} if kind == "bf16" else {"rtol": 1e-4, "atol": 1e-4}
    narrow = torch.autocast("cpu", torch.bfloat16) if kind == "bf16" else nullcontext()
    with torch.no_grad(), narrow:
        decoder = Decoder(model, encoded, mask, beams)
        for length in range(1, LENGTH + 1):
            logits = decoder.next_logits(tokens[:, -1])
            expected = _expected(model, tokens, encoded[images], None if mask is None else mask[images], beams)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected, **tolerances)
            chosen = torch.randint(beams, (len(images), beams)) + beams * torch.arange(len(images))[:, None]
            tokens = torch.cat([tokens[chosen.flatten()], torch.randint(4, 1000, (len(tokens), 1))], dim=1)
            decoder.take(chosen.flatten())
            if length % 10 == 0:
                left = torch.arange(len(images)) != length // 10
                decoder.keep(left.nonzero()[:, 0])
                images, tokens = images[left], tokens[left.repeat_interleave(beams)]
    assert len(images) < IMAGES


def _expected(model: Any, tokens: Tensor, encoded: Tensor, mask: Tensor | None, beams: int) -> Tensor:
    known = BaseModelOutput(last_hidden_state=encoded.repeat_interleave(beams, 0))
    mask = None if mask is None else mask.repeat_interleave(beams, 0)
    logits: Tensor = model(encoder_outputs=known, attention_mask=mask, decoder_input_ids=tokens).logits[:, -1]
    return logits.float()
