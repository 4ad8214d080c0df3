"""LoRA: small adapters beside linear layers, of a model whose own weights stay as they are. peft makes them."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Florence2ForConditionalGeneration

from florence2ner.display import hide_lines_of_libraries
from florence2ner.errors import UserError

_NAME = "default"  # of the one adapter, as peft names it
_LANGUAGE = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
_VISION = r"model\.vision_tower\..*\.(qkv|proj|fc1|fc2)"
_PRESETS = {"language": _LANGUAGE, "vision": _VISION, "all": f"{_LANGUAGE}|{_VISION}"}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What adapters are like (Hu et al. 2022): W x becomes W x + alpha / rank * B A x, with W as it was."""

    rank: int
    alpha: float
    dropout: float  # of x, before A
    targets: str  # language, vision, all, or a regular expression for the whole names of linear layers
    dora: bool
    rslora: bool


def import_peft() -> Any:
    """The library peft. Raises UserError where it is not installed."""
    hide_lines_of_libraries()
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"LoRA needs the library peft, which can't be imported ({error}): pip install 'florence2ner[lora]'"
        ) from error
    return peft


def add_lora(model: Florence2ForConditionalGeneration, lora: Lora, *, base: str, seed: int) -> None:
    """Put new adapters beside layers of `model`, which compute nothing yet. Their weights depend on `seed` alone.

    `base` is what will be written down as the model that they belong to. Raises UserError where `lora.targets` matches
    no layer, or one that can't have an adapter.
    """
    pattern = _PRESETS.get(lora.targets, lora.targets)
    _check_targets(model, pattern)
    config = import_peft().LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=pattern,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(model, config)


def inject(model: Florence2ForConditionalGeneration, config: Any) -> None:
    """Put adapters beside layers of `model`, in place, as a `peft.LoraConfig` says. Raises what peft raises."""
    import_peft().inject_adapter_in_model(config, model, adapter_name=_NAME)


def config_of(model: Florence2ForConditionalGeneration) -> Any:
    """The `peft.LoraConfig` of the adapters of `model`; None where it has none."""
    return getattr(model, "peft_config", {}).get(_NAME)


def is_adapted(model: Florence2ForConditionalGeneration) -> bool:
    """Whether the model has adapters."""
    return config_of(model) is not None


def adapted_layers(model: Florence2ForConditionalGeneration) -> list[str]:
    """The names of the layers that have an adapter."""
    return [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]


def train_adapters_only(model: Florence2ForConditionalGeneration) -> None:
    """Freeze all weights but those of adapters. This sets `requires_grad` only."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def difference(model: Florence2ForConditionalGeneration, lora: Lora) -> str | None:
    """Where the adapters of `model` are not like `lora`, as "their rank is 4, not 8"; None where they are."""
    config = config_of(model)
    for what, has, wanted in (
        ("rank is", config.r, lora.rank),
        ("alpha is", config.lora_alpha, lora.alpha),
        ("dropout is", config.lora_dropout, lora.dropout),
        ("use of DoRA is", config.use_dora, lora.dora),
        ("use of rsLoRA is", config.use_rslora, lora.rslora),
    ):
        if not math.isclose(has, wanted):
            return f"their {what} {has}, not {wanted}"
    pattern = _PRESETS.get(lora.targets, lora.targets)
    if set(adapted_layers(model)) != {name for name in linear_layers(model) if re.fullmatch(pattern, name)}:
        return f"their layers are others than those of {lora.targets}"
    return None


def linear_layers(model: Florence2ForConditionalGeneration) -> list[str]:
    """The names of the linear layers, those of adapters left out."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".lora_" not in name)
    return [name.removesuffix(".base_layer") for name in linear]


def merge_lora(model: Florence2ForConditionalGeneration) -> None:
    """Add what the adapters compute to the weights beside them, and remove the adapters."""
    for name in adapted_layers(model):
        layer: Any = model.get_submodule(name)
        layer.merge(adapter_names=[_NAME])
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)


def _check_targets(model: Florence2ForConditionalGeneration, pattern: str) -> None:
    matching = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    if not matching:
        raise UserError(
            f"lora_targets {pattern} is the whole name of no layer of the model: names are such as {_example(model)}"
        )
    linear = set(linear_layers(model))
    for name in matching:
        if name == "lm_head":
            raise UserError(f"lora_targets {pattern} matches lm_head, which shares its weight with the embeddings")
        if name not in linear:
            raise UserError(f"lora_targets {pattern} matches {name}, not only linear layers as {_example(model)}")


def _example(model: Florence2ForConditionalGeneration) -> str:
    return linear_layers(model)[-2]  # the last but lm_head
