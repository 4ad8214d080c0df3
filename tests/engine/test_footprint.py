"""Imaginary tensors: their bytes are counted as those of real ones would be, and nothing is allocated."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from florence2ner.engine.footprint import Footprint, _Malloc

CPU = torch.device("cpu")
MIB = 2**20


def layers(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width, bias=False), nn.Tanh()) for _ in range(count)))


def test_a_step_counts_weights_gradients_and_state_and_allocates_nothing() -> None:
    width = 2**19  # a terabyte for each weight
    size = 4 * width**2
    with Footprint(CPU) as footprint:
        model = layers(width, 3)
        assert footprint.live == 3 * size
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        loss = model(torch.empty(1, width)).sum()
        loss.backward()
        assert 6 * size < footprint.live < 6.01 * size
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert 12 * size < footprint.live < 12.01 * size
        optimizer.zero_grad()
        assert 9 * size < footprint.live < 9.01 * size
        del model, loss, optimizer
        assert footprint.live < size
    assert footprint.peak > 12 * size
    assert type(torch.empty(1)) is torch.Tensor


def activations(forward: Callable[[nn.Sequential, torch.Tensor], torch.Tensor]) -> int:
    """The peak of a forward and backward pass beyond weights and gradients."""
    with Footprint(CPU) as footprint:
        model = layers(1024, 16)
        forward(model, torch.empty(MIB, 1024, requires_grad=True)).sum().backward()
        return footprint.peak - 2 * 16 * 4 * MIB


def test_checkpointed_layers_keep_no_activations() -> None:
    layer = 4 * 1024 * MIB  # bytes of the output of one
    plain = activations(lambda model, x: model(x))
    kept = activations(lambda model, x: checkpoint_sequential(model, 4, x, use_reentrant=False))
    assert 16 * layer < plain < 20 * layer
    assert 7 * layer < kept < 12 * layer, "what goes into each quarter, and one quarter"


@pytest.mark.skipif(not _Malloc.is_known(), reason="needs glibc")
def test_what_malloc_keeps_is_held_but_not_live() -> None:
    """In a process of its own: other tests leave free memory in this one, which malloc needn't ask the system for."""
    done = subprocess.run([sys.executable, "-m", "tests.programs.fragments"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    large, given_back, live, held = map(int, done.stdout.split())
    assert 400 * MIB <= large < 402 * MIB
    assert given_back < 2 * MIB, "a large block goes back at once"
    assert live == 200 * MIB
    assert held > 1.5 * live, "what lies between those that are kept is not given back"


def test_only_the_device_counts() -> None:
    with Footprint(torch.device("cuda")) as footprint:
        there = torch.empty(MIB, device="cuda")
        here = torch.empty(MIB)
        assert footprint.live == footprint.held == 4 * MIB
        moved = here.to("cuda")
        assert footprint.live == 8 * MIB
        del moved, there
        assert footprint.live == footprint.held == 0
    assert footprint.peak == 8 * MIB


def test_a_view_takes_nothing_and_a_real_tensor_counts_from_its_first_use() -> None:
    real = torch.ones(MIB)
    with Footprint(CPU) as footprint:
        assert footprint.live == 0
        doubled = real * 2
        assert footprint.live == 8 * MIB
        assert doubled[10:].view(2, -1).t().shape == ((MIB - 10) // 2, 2)
        assert footprint.live == 8 * MIB
    del doubled
    assert real.sum() == MIB, "as it was"


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 1.0), (torch.int64, 1), (torch.bool, True)])
def test_values_are_made_up(dtype: torch.dtype, value: float) -> None:
    with Footprint(CPU):
        assert torch.empty(3, dtype=dtype).sum(dtype=dtype).item() == value
        assert torch.empty(2, dtype=dtype).tolist() == [value] * 2


def test_an_imaginary_gradient_never_overflows() -> None:
    """Or a step of fp16 would be skipped, and the optimizer would have no state."""
    with Footprint(CPU):
        weight = nn.Parameter(torch.empty(MIB))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.state[weight]["exp_avg"].shape == weight.shape
