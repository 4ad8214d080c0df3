"""Builds an optimizer by its name, over the trainable parameters, in groups with their learning rates and decay."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from florence2ner.errors import UserError
from florence2ner.optim.catalog import SETTINGS, Entry, find_optimizer

# They make the update of a matrix orthogonal, and have AdamW for what is none.
_ORTHOGONAL = ("muon", "nmuon", "adamuon", "nadamuon")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate of a parameter that has one of its own.

    Parameters of one `part` and `depth` are a group: a resumed run has the same groups whatever the rates are.
    """

    value: float
    part: str | None = None  # the name to log it under; None: it follows the learning rate of the run
    depth: int = 0  # layers between its own and the output of its part


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    name: str = "adamw",
    settings: Mapping[str, Any] | None = None,
    rates: Mapping[nn.Parameter, Rate] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over the trainable parameters; those with one dimension (biases, norms) get no weight decay.

    `settings` are arguments of its class, such as betas. Parameters in `rates` have these instead of `learning_rate`.
    Raises UserError for a name that can't be used, and for a setting that the optimizer hasn't.
    """
    entry, settings = find_optimizer(name), dict(settings or {})
    _check_settings(entry, settings)
    groups = _groups(model, weight_decay, rates or {}, fallback=_tables(model) if name in _ORTHOGONAL else ())
    if entry.module is None:
        from timm.optim import create_optimizer_v2  # a slow import, as it brings in all of timm's models

        if name == "adamw":
            settings |= {"fused": True}
        optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=name, lr=learning_rate, **settings)
        return optimizer
    if entry.module == "optimi" and not any(parameter.is_cuda for parameter in model.parameters()):
        settings |= {"triton": False}
    built: torch.optim.Optimizer = _class_of(entry)(groups, lr=learning_rate, weight_decay=0.0, **settings)
    return built


def _groups(
    model: nn.Module, weight_decay: float, rates: Mapping[nn.Parameter, Rate], *, fallback: Collection[str]
) -> list[dict[str, Any]]:
    """timm's groups by weight decay, each divided by the rates of its parameters."""
    from timm.optim import param_groups_weight_decay

    whole: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, fallback_list=fallback)
    if not rates:
        return whole
    groups = []
    for group in whole:
        parts: dict[tuple[str | None, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            rate = rates.get(parameter)
            parts.setdefault((rate.part, rate.depth) if rate else (None, 0), []).append(parameter)
        for (part, _), parameters in parts.items():
            divided = group | {"params": parameters}
            if part:
                divided["part"] = part
            if rate := rates.get(parameters[0]):
                divided["lr"] = rate.value
            groups.append(divided)
    return groups


def _tables(model: nn.Module) -> set[str]:
    """Names of the weights of embeddings, and of heads that are tied to them: a row of theirs stands for itself."""
    tables = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
    return {name for name, parameter in model.named_parameters() if parameter in tables}


def _class_of(entry: Entry) -> Callable[..., torch.optim.Optimizer]:
    if entry.module is None:
        from timm.optim import get_optimizer_class

        timms: Callable[..., torch.optim.Optimizer] = get_optimizer_class(entry.name, bind_defaults=False)
        return timms
    assert entry.class_name is not None
    found: Callable[..., torch.optim.Optimizer] = getattr(import_module(entry.module), entry.class_name)
    return found


def _check_settings(entry: Entry, settings: Mapping[str, Any]) -> None:
    if not settings:
        return
    known = [name for name in SETTINGS if name in inspect.signature(_class_of(entry)).parameters]
    for name in settings:
        if name not in known:
            raise UserError(f"optimizer {entry.name} has no {name}: it has {', '.join(known) or 'nothing to set'}")
