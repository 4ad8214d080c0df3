"""The optimizer: who is trained, at which rate and with which weight decay; each of them resumes to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from florence2ner.engine.checkpoint import Retention, load_accelerator_state, save_checkpoint
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.runtime import make_accelerator
from florence2ner.errors import UserError
from florence2ner.optim.catalog import KAHAN, catalog
from florence2ner.optim.optimizers import Rate, build_optimizer
from florence2ner.optim.schedule_free import averages

SHARES = (1.0, 0.5, 0.0, 0.75, 0.25, 1.0)  # of the learning rate, for each update


def make_model(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    """Convolution, norm, table with the head that is tied to it, and a layer between them; always the same weights."""
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 8, 2), "norm": nn.LayerNorm(8), "table": nn.Embedding(600, 8)}
    model = nn.ModuleDict(parts | {"layer": nn.Linear(8, 16), "head": nn.Linear(8, 600, bias=False)})
    model["head"].weight = model["table"].weight
    return model.to(dtype)


@pytest.fixture
def model() -> nn.ModuleDict:
    """Convolution, norm, table and head; the table is frozen."""
    parts = {"conv": nn.Conv2d(3, 4, 2), "norm": nn.LayerNorm(4), "table": nn.Embedding(5, 4), "head": nn.Linear(4, 2)}
    model = nn.ModuleDict(parts)
    model["table"].requires_grad_(False)
    return model


class Run:
    """A model and its optimizer, prepared as a run prepares them, with a schedule."""

    def __init__(
        self,
        name: str,
        checkpoint: Path | None = None,
        dtype: torch.dtype = torch.float32,
        shares: tuple[float, ...] = SHARES,
    ) -> None:
        self.accelerator = make_accelerator("no", seed=0)
        self.model = make_model(dtype)
        self.optimizer = build_optimizer(self.model, learning_rate=1e-2, weight_decay=0.1, name=name)
        prepared, prepared_optimizer = self.accelerator.prepare(self.model, self.optimizer)
        assert prepared is self.model
        if checkpoint:
            assert load_accelerator_state(self.accelerator, checkpoint)
            for group in self.optimizer.param_groups:
                group["initial_lr"] = 1e-2
        if averages(self.optimizer):
            prepared_optimizer.train()
        first = 3 if checkpoint else 0
        self.schedule = LambdaLR(self.optimizer, lambda step: shares[step % 6], last_epoch=first - 1)

    def update(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


def resumes_exactly(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a run that goes on from a checkpoint after the third update ends as one that was never stopped."""
    run = Run(name, dtype=dtype)
    for number in range(3):
        run.update(number)
    checkpoint = save_checkpoint(
        run.accelerator, folder, TrainState(step=3), lambda _: None, retention=Retention(None), with_weights=True
    )
    other = Run(name, checkpoint, dtype)
    for number in range(3, 6):
        run.update(number)
        other.update(number)
    return all(torch.equal(weight, run.weights()[key]) for key, weight in other.weights().items())


@pytest.mark.parametrize("name", catalog())
def test_every_optimizer_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    assert resumes_exactly(name, tmp_path)


@pytest.mark.parametrize("name", catalog())
def test_every_optimizer_has_its_rate_from_the_schedule_alone(name: str) -> None:
    for shares, expected in ((SHARES, True), ((0.0,) * 6, False)):
        run = Run(name, shares=shares)
        before = run.weights()
        for number in range(7):  # the first five of schedulefree_radam are silent
            run.update(number)
        moved = {key: not torch.equal(weight, before[key]) for key, weight in run.weights().items()}
        assert set(moved.values()) == {expected}, moved


@pytest.mark.parametrize("name", catalog())
def test_no_optimizer_has_weights_of_one_dimension_decay(name: str) -> None:
    model = make_model()
    optimizer = build_optimizer(model, learning_rate=1e-2, weight_decay=0.1, name=name)
    groups = [(parameter, group["weight_decay"]) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(groups) == len({parameter for parameter, _ in groups}) == len(list(model.parameters()))
    assert {parameter.ndim > 1: decay for parameter, decay in groups} == {True: 0.1, False: 0.0}


@pytest.mark.parametrize("name", sorted(KAHAN))
def test_weights_in_bf16_resume_to_the_bit_and_lose_no_small_update(name: str, tmp_path: Path) -> None:
    assert resumes_exactly(name, tmp_path, torch.bfloat16)
    sums = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = nn.Parameter(torch.ones(8, dtype=dtype))
        optimizer = build_optimizer(nn.ParameterList([weight]), learning_rate=1e-4, weight_decay=0.0, name=name)
        for _ in range(300):
            weight.grad = torch.ones_like(weight)  # each update is far below the step of bf16 from 1, which is 2^-8
            optimizer.step()
        sums[dtype] = 1 - weight.detach().float().mean().item()
    assert sums[torch.float32] > 6e-3, "or there is nothing to lose"
    assert sums[torch.bfloat16] == pytest.approx(sums[torch.float32], abs=2.0**-8)


@pytest.mark.parametrize("name", ["muon", "nmuon", "adamuon", "nadamuon"])
def test_muon_leaves_tables_and_heads_to_adamw(name: str) -> None:
    model = make_model()
    optimizer = build_optimizer(model, learning_rate=1e-2, weight_decay=0.0, name=name)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    orthogonal = {key: optimizer.state[parameter]["use_muon"] for key, parameter in model.named_parameters()}
    assert {key for key, is_so in orthogonal.items() if is_so} == {"conv.weight", "layer.weight"}


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


def test_parameters_with_a_rate_of_their_own_are_groups_of_their_own(model: nn.ModuleDict) -> None:
    rates = {parameter: Rate(value=1e-3, part="head") for parameter in model["head"].parameters()}
    rates |= {parameter: Rate(value=1e-4, depth=1) for parameter in model["conv"].parameters()}
    optimizer = build_optimizer(model, learning_rate=3e-4, weight_decay=0.05, rates=rates)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"], group.get("part"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "conv.weight": (1e-4, 0.05, None),
        "conv.bias": (1e-4, 0.0, None),
        "norm.weight": (3e-4, 0.0, None),
        "norm.bias": (3e-4, 0.0, None),
        "head.weight": (1e-3, 0.05, "head"),
        "head.bias": (1e-3, 0.0, "head"),
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adamw", {"betas": (0.5, 0.6), "eps": 1e-3}),
        ("lion", {"betas": (0.5, 0.6)}),
        ("muon", {"momentum": 0.5}),
        ("optimi_adamw", {"decouple_lr": True}),
        ("came", {"betas": (0.5, 0.6, 0.7)}),
        ("bnb_lion8bit", {"betas": (0.5, 0.6)}),
        ("schedulefree_sgd", {"momentum": 0.5}),
    ],
)
def test_settings_reach_the_optimizer(model: nn.ModuleDict, name: str, settings: dict[str, Any]) -> None:
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.0, name=name, settings=settings)
    assert all(group[key] == value for key, value in settings.items() for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adamw", {"momentum": 0.5}, "optimizer adamw has no momentum: it has betas, eps"),
        ("lion", {"eps": 0.5}, "optimizer lion has no eps: it has betas"),
        ("adamw", {"decouple_lr": True}, "optimizer adamw has no decouple_lr: it has betas, eps"),
    ],
)
def test_a_setting_that_an_optimizer_has_not_is_refused(
    model: nn.ModuleDict, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(model, learning_rate=0.1, weight_decay=0.0, name=name, settings=settings)
