"""Reads and writes adapters of LoRA as peft does, for models in either layout. Weights of the model are not there."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.errors import UserError
from florence2ner.model.checkpoints.files import one_line, read_json, read_tensors
from florence2ner.model.checkpoints.native import save_native_processor
from florence2ner.model.checkpoints.original import original_name, save_original_processor
from florence2ner.model.lora import adapted_layers, config_of, import_peft, inject, linear_layers

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of all names in the file, as peft wraps a model twice
_MATRIX = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_magnitude_vector)")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, not a whole model."""
    return (directory / _CONFIG).is_file()


@dataclass(frozen=True)
class Adapter:
    """An adapter as its files have it, in either layout."""

    directory: Path
    base: str  # name or path of the model that it belongs to
    config: Any  # a peft.LoraConfig
    tensors: dict[str, Tensor]  # by their names in the file


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter. Raises UserError where it is damaged, or of another kind than LoRA, or peft isn't there."""
    path = directory / _CONFIG
    base = base_of(directory)
    kind = read_json(path).get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path} is of the kind {kind}: only LORA can be read")
    peft = import_peft()
    try:
        config = peft.LoraConfig.from_pretrained(str(directory))
    except Exception as error:  # what the file holds can raise anything
        raise UserError(f"{path} can't be read ({one_line(error)}): copy it from the adapter's source") from error
    return Adapter(directory, base, config, read_tensors(directory / _WEIGHTS))


def base_of(directory: Path) -> str:
    """The name or path of the model that an adapter belongs to. Raises UserError where the adapter doesn't say it."""
    base = read_json(directory / _CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{directory / _CONFIG} doesn't say base_model_name_or_path: write the model's path or hub id")
    return base


def attach_adapter(model: Florence2ForConditionalGeneration, adapter: Adapter) -> None:
    """Put an adapter beside the layers of `model`, its base. Raises UserError for one that was made for another."""
    directory, config = adapter.directory, copy.copy(adapter.config)
    natives = {_original_layer(name): name for name in linear_layers(model)}
    named: dict[str, Tensor] = {}
    original = set()  # layers that are named as in Microsoft's code
    for name, tensor in adapter.tensors.items():
        match = _MATRIX.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            raise UserError(f"{directory} holds {name}, which is no adapter of a linear layer: it can't be read here")
        layer, matrix = match.groups()
        if layer in natives:
            original.add(natives[layer])
        named[f"{natives.get(layer, layer)}.{matrix}"] = tensor
    if original:
        if config.rank_pattern or config.alpha_pattern:
            raise UserError(f"{directory} has ranks or alphas of its own for some layers: that can't be read here")
        config.target_modules = sorted(original)
    peft = import_peft()
    try:
        inject(model, config)
    except Exception as error:  # peft raises anything for layers that are not there, or for kinds that it can't inject
        raise UserError(f"the adapter {directory} does not fit {adapter.base}: {one_line(error)}") from error
    if problem := _misfit(named, peft.get_peft_model_state_dict(model, save_embedding_layers=False)):
        raise UserError(
            f"the adapter {directory} does not fit {adapter.base}: {problem}; it was made for another model, or is "
            "damaged"
        )
    peft.set_peft_model_state_dict(model, named)


def save_adapter(
    model: Florence2ForConditionalGeneration, processor: Florence2Processor, directory: Path, *, layout: str
) -> None:
    """Write the adapter of `model` for plain peft, on the native class or, in the original layout, Microsoft's code.

        directory/
          adapter_config.json          with the name or path of its base
          adapter_model.safetensors
          the processor's files, in the layout

    Raises UserError, before anything is written, for an adapter that Microsoft's code can't have.
    """
    rename: Callable[[str], str] = _to_original if layout == "original" else str
    layers = {name: rename(name) for name in adapted_layers(model)}
    tensors = {}
    for name, tensor in import_peft().get_peft_model_state_dict(model, save_embedding_layers=False).items():
        layer, matrix = _MATRIX.fullmatch(name).groups()  # type: ignore[union-attr]
        tensors[f"{_PREFIX}{layers[layer]}.{matrix}"] = tensor.detach().cpu().contiguous()
    config = copy.copy(config_of(model))
    config.inference_mode = True
    mapping = None
    if layout == "native":
        mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    if layout != "native" or not isinstance(config.target_modules, str):
        config.target_modules = sorted(layers.values())
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory, auto_mapping_dict=mapping)
    save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})
    if layout == "original":
        save_original_processor(model, processor, directory)
    else:
        save_native_processor(processor, directory)


def check_original_adapter(model: Florence2ForConditionalGeneration) -> None:
    """Raise UserError for an adapter that Microsoft's code can't have."""
    for name in adapted_layers(model):
        _to_original(name)


def _to_original(layer: str) -> str:
    """The name of a linear layer in Microsoft's code. Raises UserError where that has no such layer."""
    renamed = _original_layer(layer)
    if renamed is None:
        raise UserError(
            f"{layer} is no layer in Microsoft's code, so that no adapter can be there: leave it out of "
            "lora_targets, or choose export_layout native"
        )
    return renamed


def _original_layer(layer: str) -> str | None:
    renamed = original_name(f"{layer}.weight")
    return renamed.removesuffix(".weight") if renamed.endswith(".weight") else None


def _misfit(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """How the matrices of an adapter differ from those that its base takes; None where they fit."""
    for name, tensor in expected.items():
        if name not in given:
            return f"it lacks {name}"
        if given[name].shape != tensor.shape:
            return f"its {name} is {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
    return next((f"it has {name}" for name in given if name not in expected), None)
