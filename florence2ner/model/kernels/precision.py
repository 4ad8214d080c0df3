"""Precision of weights: frozen ones cast in advance, trained ones once an update, and any computed with in float32."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class FrozenWeights:
    """Frozen weights that were cast to autocast's dtype in advance. Results are the same to the bit."""

    def __init__(self) -> None:
        self._originals: list[tuple[nn.Parameter, Tensor]] = []  # each with its values before the cast, on the CPU

    def cast(self, module: nn.Module, dtype: torch.dtype, *, for_good: bool = False) -> None:
        """Cast the frozen weights of linear layers and convolutions in `module` to `dtype`, as autocast does.

        `for_good` forgets the original values, which saves their memory; `in_full` then can't restore them. A weight
        that is also an embedding table stays as it is, as autocast doesn't cast lookups; so does one beside an adapter
        of DoRA, which computes the norm of the weight itself.
        """
        needed = {part.weight for part in module.modules() if isinstance(part, nn.Embedding)}
        parts: Iterable[Any] = module.modules()
        needed |= {part.base_layer.weight for part in parts if getattr(part, "lora_magnitude_vector", None)}
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                for parameter in part.parameters(recurse=False):
                    if not parameter.requires_grad and parameter not in needed:
                        if not for_good:
                            self._originals.append((parameter, parameter.data.cpu()))
                        parameter.data = parameter.data.to(dtype)

    def forget(self) -> int:
        """Forget the original values; `in_full` then can't restore them. Returns how many bytes they have."""
        size = sum(original.nbytes for _, original in self._originals)
        self._originals.clear()
        return size

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """A context manager in which the weights have their original values, unless they were cast `for_good`."""
        cast = [parameter.data for parameter, _ in self._originals]
        for parameter, original in self._originals:
            parameter.data = original.to(parameter.device)
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._originals, cast, strict=True):
                parameter.data = data


class TrainedWeights:
    """Trained weights of linear layers that are cast to autocast's dtype once for all passes of an update.

    Autocast casts them in the forward pass of each micro-batch, and again where that is recomputed, though they change
    only when the optimizer steps. Results are the same to the bit.
    """

    def __init__(self) -> None:
        self._dtype: torch.dtype | None = None
        self._cast: dict[Tensor, Tensor] | None = None  # those cast so far; None outside of `held`

    def adopt(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Have the linear layers in `module` of which the weights are trained look here for these in `dtype`."""
        self._dtype = dtype
        layers = [part for part in module.modules() if type(part) is nn.Linear and part.weight.requires_grad]
        layer: Any
        for layer in layers:
            layer.__class__ = _Linear
            layer.trained_weights = self

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context manager in which the weights stay as they are, so that each is cast at its first use only."""
        self._cast = {}
        try:
            yield
        finally:
            self._cast = None

    def get(self, parameter: Tensor) -> Tensor:
        """The parameter, within `held` in the other dtype."""
        if self._cast is None or self._dtype is None:
            return parameter
        if parameter not in self._cast:
            self._cast[parameter] = parameter.detach().to(self._dtype)
        cast: Tensor = _Cast.apply(parameter, self._cast[parameter])
        return cast


class _Linear(nn.Linear):
    trained_weights: TrainedWeights

    def forward(self, values: Tensor) -> Tensor:
        bias = None if self.bias is None else self.trained_weights.get(self.bias)
        return nn.functional.linear(values, self.trained_weights.get(self.weight), bias)


class _Cast(Function):
    """The second tensor, with the gradient of the first, of which it was cast."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return cast.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient.to(ctx.dtype), None


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """A context manager in which the layers of `model` compute in float32, whatever dtypes their weights have.

    Only the weights of the layer that runs are in float32: there is no second copy of the model. What the model itself
    casts to the dtype of a weight is rounded, as the pixels are.
    """
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(layer: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
        for parameter in layer.parameters(recurse=False):
            if parameter.dtype != torch.float32:
                narrow[parameter] = parameter.data
                parameter.data = parameter.data.float()
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    def restore(layer: nn.Module, *_: object) -> None:
        for parameter in layer.parameters(recurse=False):
            if parameter in narrow:
                parameter.data = narrow.pop(parameter)

    hooks = []
    for layer in model.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            hooks += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(restore, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
