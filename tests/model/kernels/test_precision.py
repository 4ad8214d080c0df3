"""Frozen weights in lower precision: the results stay to the bit, and the originals come back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner.model.build import Frozen, build_captioner
from florence2ner.model.inputs import Pixels, Text
from florence2ner.model.kernels.precision import computing_in_float32
from tests.model.support import model_inputs


@pytest.mark.parametrize("frozen", ["vision", "language"])
def test_lowered_weights_change_nothing_and_come_back(built_model: tuple[Any, Any], frozen: str) -> None:
    model, processor = built_model
    model = copy.deepcopy(model)
    parts = Frozen(vision=frozen == "vision", language=frozen == "language", other=False)
    captioner = build_captioner(model, processor, device=torch.device("cpu"), frozen=parts)
    inputs = model_inputs(processor)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    ids, labels = inputs["input_ids"], inputs["labels"]

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return captioner(Pixels(pixels), Text(ids, None, labels, torch.arange(labels.numel())))

    before, weights = losses(), {name: weight.clone() for name, weight in captioner.state_dict().items()}
    captioner.frozen_weights.cast(captioner, torch.bfloat16)
    lowered = [name for name, weight in captioner.named_parameters() if weight.dtype == torch.bfloat16]
    assert lowered
    assert all({"vision": "vision_tower", "language": "language_model"}[frozen] in name for name in lowered)
    assert torch.equal(losses(), before)
    with captioner.as_loaded():
        torch.testing.assert_close(captioner.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(losses(), before)


def test_a_model_of_any_dtypes_computes_in_float32_and_stays_as_it_is(built_model: tuple[Any, Any]) -> None:
    model = copy.deepcopy(built_model[0]).eval()
    for number, parameter in enumerate(model.parameters()):
        if number % 2:
            parameter.data = parameter.data.to(torch.bfloat16)
    wide, before = copy.deepcopy(model).float(), copy.deepcopy(model.state_dict())
    inputs = model_inputs(built_model[1])
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16().float()
    with torch.no_grad(), computing_in_float32(model):
        assert torch.equal(model(**inputs).logits, wide(**inputs).logits)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32, torch.bfloat16}
