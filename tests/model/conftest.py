"""Fixtures: two tiny models, pictures for them, and what Microsoft's code computed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.model.build import build_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.model.inputs import Embeddings, Pixels
from tests.model.support import IMAGES, ORACLE


@pytest.fixture(scope="module")
def writing_model() -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """A model whose captions end at different lengths. Read only."""
    # With this seed and these factors, captions look at the image, and some end early, some late and some at the limit.
    model, processor = build_model("tiny", ["a small red star in the top left corner", "two blue squares"], seed=2)
    with torch.no_grad():
        model.lm_head.weight[model.generation_config.eos_token_id] *= 1.6
        for layer in model.model.language_model.decoder.layers:
            layer.encoder_attn.v_proj.weight *= 4
            layer.encoder_attn.out_proj.weight *= 2
    return model.eval(), processor


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """IMAGES pictures of flat squares: uint8 (IMAGES, 3, 64, 64)."""
    torch.manual_seed(3)
    shades = torch.randint(0, 256, (IMAGES, 3, 4, 4), dtype=torch.uint8)
    return shades.repeat_interleave(16, 2).repeat_interleave(16, 3)


@pytest.fixture(scope="module")
def built_model() -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """A model with random weights. Read only."""
    model, processor = build_model("tiny", ["a small red star in the top left corner", "two blue squares"], seed=0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Any:
    """As transformers loads it from `tiny_model`."""
    return AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What Microsoft's code computed, but for the arrays."""
    return json.loads((ORACLE / "original-tiny-expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def captioner(writing_model: tuple[Any, Any]) -> Captioner:
    """A captioner of `writing_model`. Read only."""
    model, processor = writing_model
    return build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def embedded(captioner: Captioner, pictures: Tensor) -> Embeddings:
    """What it reads of `pictures`."""
    with torch.no_grad():
        return captioner.vision.embed(Pixels(pictures))
