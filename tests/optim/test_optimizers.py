"""The optimizer: who is trained, at which rate, and with which weight decay."""

import pytest
import torch
from torch import nn

from florence2ner.optim.optimizers import build_optimizer


@pytest.fixture
def model() -> nn.ModuleDict:
    """Convolution, norm, table and head; the table is frozen."""
    parts = {"conv": nn.Conv2d(3, 4, 2), "norm": nn.LayerNorm(4), "table": nn.Embedding(5, 4), "head": nn.Linear(4, 2)}
    model = nn.ModuleDict(parts)
    model["table"].requires_grad_(False)
    return model


def test_biases_and_norms_have_no_weight_decay_and_what_is_frozen_is_absent(model: nn.ModuleDict) -> None:
    optimizer = build_optimizer(model, learning_rate=3e-4, weight_decay=0.05)
    decay = {
        name: group["weight_decay"]
        for name, parameter in model.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    assert decay == {
        **dict.fromkeys(("conv.weight", "head.weight"), 0.05),
        **dict.fromkeys(("conv.bias", "norm.weight", "norm.bias", "head.bias"), 0.0),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay), "each of them once"
    assert {group["lr"] for group in optimizer.param_groups} == {3e-4}


def test_an_update_is_the_formula_of_adamw(model: nn.ModuleDict) -> None:
    """Decay apart from the gradient; the first step of Adam is lr * sign(gradient), but for epsilon."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert torch.equal(parameter, before[name])
            continue
        kept = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1
        step = 0.1 * parameter.grad / (parameter.grad.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), before[name] * kept - step)
