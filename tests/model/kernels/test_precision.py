"""Weights in lower precision: results stay to the bit, originals come back, a trained one is cast once an update."""

import copy
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


class Casts(TorchDispatchMode):
    """Counts how often each of these tensors is cast, by name."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.seen[self.names[args[0].data_ptr()]] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("vision", [True, False], ids=["tower frozen", "tower trained"])
def test_a_trained_weight_is_cast_once_an_update_and_nothing_else_changes(
    built_model: tuple[Any, Any], vision: bool
) -> None:
    model, processor = copy.deepcopy(built_model[0]), built_model[1]
    captioner = build_captioner(
        model,
        processor,
        device=torch.device("cpu"),
        frozen=Frozen(vision=vision, language=False, other=False),
        dtype=torch.bfloat16,
        gradient_checkpointing=True,
    ).train()
    inputs = model_inputs(processor)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    text = Text.of(inputs["input_ids"], None, inputs["labels"])
    trained = {name: weight for name, weight in captioner.named_parameters() if weight.requires_grad}
    linear = {name for name in trained if name.endswith((".fc1.weight", "proj.weight", "lm_head.weight"))}

    def update(*, held: bool) -> tuple[dict[str, Tensor], Counter[str]]:
        torch.manual_seed(0)  # of dropout
        captioner.zero_grad()
        with Casts(trained) as casts, captioner.trained_weights.held() if held else nullcontext():
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16):
                    losses = captioner(Pixels(pixels), text)
                losses.sum().backward()
        return {name: weight.grad.clone() for name, weight in trained.items() if weight.grad is not None}, casts.seen

    (gradients, once), (plain, often) = update(held=True), update(held=False)
    assert gradients.keys() == plain.keys()
    assert all(gradient.any() and torch.equal(gradient, plain[name]) for name, gradient in gradients.items())
    assert linear
    assert {once[name] for name in linear} == {1}
    twice = {name for name in linear if name.endswith((".layers.0.fc1.weight", ".layers.0.self_attn.q_proj.weight"))}
    assert {often[name] for name in twice} == {4}  # of two passes, each computed again by gradient checkpointing
    with torch.no_grad():
        for weight in trained.values():
            weight.mul_(0.5)
    (after, _), (plain, _) = update(held=True), update(held=False)
    assert all(torch.equal(gradient, plain[name]) for name, gradient in after.items())
    assert not all(torch.equal(gradient, gradients[name]) for name, gradient in after.items())


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
