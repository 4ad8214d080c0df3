"""Fast dropout for CPUs, where drawing torch's random numbers takes a third of a training step.

An entry is kept or dropped by comparing 16 random bits with the rate, so that one 64-bit number of a fast generator
(SFC64) serves four entries. The backward pass draws the same bits again from the seed instead of storing a mask.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.hooks import RemovableHandle

_LEVELS = 1 << 16  # values of 16 random bits
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size in bytes


def use_fast_dropout(language_model: Any) -> None:
    """Replace all dropout in a BartModel by `dropout`, except that inside attention, which `kernels/attention.py` does.

    The model's own rates are set to 0, and hooks drop the outputs of the same modules instead. For training on a CPU.
    """
    for side in (language_model.encoder, language_model.decoder):
        for layer in side.layers:
            linear = [
                "self_attn.out_proj",
                "fc2",
                *(["encoder_attn.out_proj"] if hasattr(layer, "encoder_attn") else []),
            ]
            rates = dict.fromkeys(linear, layer.dropout) | {"activation_fn": layer.activation_dropout}
            layer.register_forward_pre_hook(_OutputDropout(rates))
            layer.dropout = layer.activation_dropout = 0.0
        side.register_forward_pre_hook(_OutputDropout({"layernorm_embedding": side.dropout}))
        side.dropout = 0.0


def dropout(values: Tensor, rate: float) -> Tensor:
    """Zero a share `rate` of the values, rounded to 1/65536, and divide the others by the share that is kept."""
    dropped: Tensor = _Dropout.apply(values, rate, draw_seed())
    return dropped


def draw_seed() -> int:
    """A seed from torch's generator. Gradient checkpointing and resuming restore that, and so drop the same entries."""
    return int(torch.randint(1 << 62, ()))


def share_kept(rate: float) -> float:
    """The expected share of entries that `draw_kept` keeps; it rounds the rate to 1/65536."""
    return 1 - round(rate * _LEVELS) / _LEVELS


def draw_kept(like: Tensor, rate: float, *seed: int) -> Tensor:
    """A random mask of integers, 1 for entries that are kept and else 0, of the shape and element size of `like`."""
    drawn = np.random.SFC64(seed).random_raw(-(-like.numel() // 4)).view(np.int16)
    levels = torch.from_numpy(drawn)[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=_INTEGERS[like.element_size()])
    return torch.ge(levels, round(rate * _LEVELS) - _LEVELS // 2, out=kept)


def drop_(values: Tensor, kept: Tensor) -> Tensor:
    """Zero in place where `kept` is 0. An integer product on the bits, several times as fast as a boolean mask."""
    values.view(kept.dtype).mul_(kept)
    return values


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float, seed: int) -> Tensor:
        ctx.rate, ctx.seed = rate, seed
        return _scaled(values, rate, seed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _scaled(gradient, ctx.rate, ctx.seed), None, None


def _scaled(values: Tensor, rate: float, seed: int) -> Tensor:
    scaled = torch.div(values, share_kept(rate)).contiguous()
    return drop_(scaled, draw_kept(scaled, rate, seed))


class _OutputDropout:
    """A forward pre-hook of a layer that applies `dropout` to the outputs of submodules: their paths, and their rates.

    The submodules are looked up at each call, since they may be replaced after this was registered (by a wrapper such
    as a LoRA adapter).
    """

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = {path: rate for path, rate in rates.items() if rate}
        self.hooked: dict[str, tuple[nn.Module, RemovableHandle]] = {}

    def __call__(self, layer: nn.Module, _: object) -> None:
        for path, rate in self.rates.items():
            module = layer.get_submodule(path)
            if path in self.hooked:
                before, handle = self.hooked[path]
                if before is module:
                    continue
                handle.remove()
            self.hooked[path] = module, module.register_forward_hook(partial(_drop_output, rate))


def _drop_output(rate: float, module: nn.Module, _: object, output: Tensor) -> Tensor:
    return dropout(output, rate) if module.training else output
