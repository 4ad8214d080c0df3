"""What tests of the model share: what Microsoft's code computed, and inputs of the tiny model."""

import pytest
import torch
from torch import Tensor
from transformers import Florence2Processor

from tests.conftest import ROOT

ORACLE = ROOT.parent / "shared" / "oracles" / "florence2-original"
TINY = ORACLE / "original-tiny"
needs_oracle = pytest.mark.skipif(
    not TINY.is_dir(), reason=f"what Microsoft's code computed is not here: {TINY} is absent"
)
IMAGES, LIMIT = 6, 40  # of `writing_model`: how many at once, and the longest caption in tokens
RATE = 0.3  # of dropout


def model_inputs(processor: Florence2Processor) -> dict[str, Tensor]:
    """One random picture with a prompt and a caption."""
    torch.manual_seed(0)
    labels = processor.tokenizer("a small red star", return_tensors="pt").input_ids
    ids = torch.full((1, 17), processor.image_token_id)
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 64, 64), "labels": labels}


def prompts(processor: Florence2Processor, *, padded: bool) -> tuple[Tensor, Tensor]:
    """A prompt for each of IMAGES, all different, and their mask."""
    ids = torch.full((IMAGES, 21), processor.image_token_id)
    ids[:, 17:] = torch.tensor([5, 6, 7, 2])
    ids[:, 18] += torch.arange(IMAGES)
    mask = torch.ones_like(ids)
    if padded:
        ids[::2, 19:], mask[::2, 20:] = torch.tensor([2, 1]), 0
    return ids, mask
