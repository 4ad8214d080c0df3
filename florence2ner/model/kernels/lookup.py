"""Looks words up in a table whose gradient is made by another use of it, without a second table full of zeros."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def look_up(ids: Tensor, table: Tensor, padding: int | None) -> Tensor:
    """The rows of `table` (V, D) for `ids` (B, N): (B, N, D). The row number `padding` gets no gradient from them.

    torch's own lookup fills a table of zeros for its gradient, 150 MB in float32 for Florence-2, and a sparse one is
    added to the other in a third table. Here it is added in place to the gradient of an output head that is tied to the
    table; without a gradient from there it would be lost.
    """
    if not (table.requires_grad and torch.is_grad_enabled()):
        return table[ids]
    found: list[tuple[Tensor, Tensor]] = []  # ids (N,) and the gradients of what was looked up, (N, D)
    graph = _Graph()
    rows: Tensor = _LookUp.apply(table, ids, -1 if padding is None else padding, found, graph)

    def add(gradient: Tensor) -> None:  # called when all uses of the table have given theirs
        while found:
            these, of_rows = found.pop()
            gradient.index_add_(0, these, of_rows.to(gradient.dtype))

    handle = table.register_hook(add)  # type: ignore[no-untyped-call]
    weakref.finalize(graph, handle.remove)
    return rows


class _Graph:
    """Is there for as long as autograd's graph."""


class _LookUp(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int, found: list[Any], graph: _Graph) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.found, ctx.graph = padding, found, graph
        return table[ids]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        rows = gradient * (ids != ctx.padding).unsqueeze(-1)
        ctx.found.append((ids.flatten(), rows.flatten(0, -2)))
        return (None,) * 5
