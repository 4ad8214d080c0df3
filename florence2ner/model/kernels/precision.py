"""Frozen weights, kept in the precision that they are used in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FrozenWeights:
    """The frozen weights that autocast would cast in every step, cast once instead: results are the same to the bit."""

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Parameter, Tensor]] = []  # on the CPU

    def cast(self, module: nn.Module, dtype: torch.dtype, *, for_good: bool = False) -> None:
        """Cast those of `module` that autocast casts to `dtype`. `for_good` forgets the originals.

        Tables of tied embeddings stay: looking up is not cast.
        """
        tables = {part.weight for part in module.modules() if isinstance(part, nn.Embedding)}
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                for parameter in part.parameters(recurse=False):
                    if not parameter.requires_grad and parameter not in tables:
                        if not for_good:
                            self._originals.append((parameter, parameter.data.cpu()))
                        parameter.data = parameter.data.to(dtype)

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """A `with` in which they have their own precision."""
        cast = [parameter.data for parameter, _ in self._originals]
        for parameter, original in self._originals:
            parameter.data = original.to(parameter.device)
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._originals, cast, strict=True):
                parameter.data = data
