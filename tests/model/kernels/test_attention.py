"""Our attention against the formula written out."""

import pytest
import torch
from torch import Tensor

from florence2ner.model.kernels.attention import attend_with_dropout
from florence2ner.model.kernels.dropout import draw_kept, share_kept
from tests.model.support import RATE


def _kept(heads: int, length: int, keys: int, dtype: torch.dtype, seed: int, rows: int) -> Tensor:
    like = torch.empty(heads, length, keys, dtype=dtype)
    return torch.stack([draw_kept(like, RATE, seed, row) for row in range(rows)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", ["nothing", "padding", "future"])
def test_attention_with_dropout_is_the_formula(dtype: torch.dtype, tolerance: float, masked: str) -> None:
    rows, heads, length, width = 2, 3, 9, 16
    drawn = [torch.randn(rows, length, heads, width, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    allowed = torch.ones(rows, 1, length, length, dtype=torch.bool)
    if masked == "padding":
        allowed[1, ..., 6:] = False
    if masked == "future":
        allowed = allowed.tril()
    torch.manual_seed(5)
    seed = int(torch.randint(1 << 62, ()))
    torch.manual_seed(5)
    mask = allowed if masked == "padding" else None
    attended = attend_with_dropout(*drawn, mask, RATE, causal=masked == "future")
    gradient = torch.randn_like(attended)
    gradients = torch.autograd.grad(attended, drawn, gradient)

    query, key, value = exact = [tensor.detach().double().requires_grad_() for tensor in drawn]
    scores = (query @ key.transpose(2, 3) * width**-0.5).masked_fill(~allowed, -torch.inf)
    kept = _kept(heads, length, length, dtype, seed, rows)
    expected = scores.softmax(-1) * kept / share_kept(RATE) @ value
    torch.testing.assert_close(attended.double(), expected, atol=tolerance, rtol=tolerance)
    for ours, formula in zip(gradients, torch.autograd.grad(expected, exact, gradient.double()), strict=True):
        torch.testing.assert_close(ours.double(), formula, atol=3 * tolerance, rtol=3 * tolerance)
