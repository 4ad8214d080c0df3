"""Loads a model and its processor by name or path, in either layout, and saves them, checking what was written."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import reduce
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
from transformers.utils import logging

from florence2ner.errors import UserError
from florence2ner.files import new_folder
from florence2ner.model.checkpoints.adapters import (
    attach_adapter,
    base_of,
    is_adapter,
    read_adapter,
    save_adapter,
)
from florence2ner.model.checkpoints.files import one_line, read_json, read_state_dict, section, weight_files
from florence2ner.model.checkpoints.native import load_native, load_native_processor, save_native
from florence2ner.model.checkpoints.original import is_original, load_original, load_original_processor, save_original
from florence2ner.model.checkpoints.original_config import original_to_native_config
from florence2ner.model.kernels.precision import computing_in_float32
from florence2ner.model.lora import is_adapted, merge_lora

Layout = Literal["native", "original"]
Precision = Literal["keep", "fp32", "fp16", "bf16"]

# What is downloaded from a hub repository: no Python files, and pickled weights only where there are no safetensors.
_HUB_SMALL_FILES = ("*.json", "merges.txt")
_HUB_FILES = (*_HUB_SMALL_FILES, "model*.safetensors", "adapter_model.safetensors")
_HUB_PICKLES = ("pytorch_model*.bin",)
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOLERANCE = 1e-4  # of a saved copy's logits, relative to the model's largest logit


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A context manager or decorator that silences transformers' progress bars, and all of its messages but errors.

    Its bars, one for each file read or written, would break our own. The caller's settings are restored at the end.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str = "sdpa",
    merge: bool = True,
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load a Florence-2 and its processor, in evaluation mode, with float32 weights unless `dtype` says otherwise.

    `name_or_path` is a local directory or a hub id; the layout, native or Microsoft's original, is recognised by
    content. `device` None is the CPU. No remote code is run, and pickles may hold tensors only. For an adapter of LoRA
    its base is loaded, and the adapter merged into it, unless `merge` is False: then it stays apart, to be trained.
    Raises UserError when there is no such model, and when a weight is missing, unexpected, of another shape or
    unreadable.
    """
    directory = _locate(str(name_or_path))
    adapter = read_adapter(directory) if is_adapter(directory) else None
    if adapter:
        directory = _base_directory(directory)
    load = load_original if is_original(directory) else load_native
    model, processor = load(directory, dtype=None if adapter else dtype, attn_implementation=attn_implementation)
    if adapter:
        attach_adapter(model, adapter)
        if merge:
            merge_lora(model)
        if dtype:
            model.to(dtype)
    return model.to(device or "cpu").eval(), processor


@quiet_transformers()
def load_processor(name_or_path: str | Path) -> tuple[Florence2Processor, Florence2Config]:
    """Load what reads text and images, and the architecture, of a model in either layout: no weights are read.

    `name_or_path` is as in `load_model`; of a hub id only the small files are downloaded. Raises UserError likewise.
    """
    directory = _locate(str(name_or_path), weights=False)
    if is_adapter(directory):
        directory = _base_directory(directory, weights=False)
    if is_original(directory):
        config = original_to_native_config(read_json(directory / "config.json"), directory)
        return load_original_processor(directory, config), config
    try:
        config = Florence2Config.from_pretrained(directory)
    except Exception as error:  # damaged files can raise anything
        raise UserError(f"{directory} is not a whole Florence-2: {one_line(error)}") from error
    return load_native_processor(directory), config


def width_of(name_or_path: str | Path) -> int | None:
    """The width of a model's language model, its d_model; None where that can't be told. No weights are read."""
    try:
        directory = _locate(str(name_or_path), weights=False)
        if is_adapter(directory):
            directory = _base_directory(directory, weights=False)
        width = section(read_json(directory / "config.json"), "text_config").get("d_model")
    except UserError:  # loading the model says what is wrong with it
        return None
    return width if isinstance(width, int) else None


@quiet_transformers()
def load_empty(name_or_path: str | Path) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """A model without weights, all of whose tensors are on torch's meta device, and its processor.

    `name_or_path` is as in `load_model`; of a hub id only the small files are downloaded, and an adapter. That stays
    apart, as with `merge` False there. Raises UserError likewise.
    """
    processor, config = load_processor(name_or_path)
    directory = _locate(str(name_or_path), weights=False)
    adapter = read_adapter(_locate(str(name_or_path))) if is_adapter(directory) else None
    model = build_empty(config)
    if adapter:
        with warnings.catch_warnings():  # torch says that copying to a tensor without data does nothing
            warnings.filterwarnings("ignore", message=".*no-op")
            attach_adapter(model, adapter)
    return model, processor


def build_empty(config: Florence2Config) -> Florence2ForConditionalGeneration:
    """A model of this architecture without weights: all of its tensors are on torch's meta device."""
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    return model.eval()


def save_model(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    directory: Path,
    *,
    layout: Layout = "native",
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model and processor to `directory`, then read them back and compare the logits of one image.

    The layout "native" is for plain `from_pretrained`, "original" for tools that use Microsoft's remote code. Of a
    model with adapters only these are written, for plain peft. `weights` replaces the model's own state dict where the
    model is sharded; there is then no whole model to compare with, and nothing is read back. On any error `directory`
    is removed. Raises UserError when the layout can't express the model or the logits differ. Only one process may call
    this.
    """
    try:
        if is_adapted(model):
            save_adapter(model, processor, directory, layout=layout)
        else:
            save = save_original if layout == "original" else save_native
            save(model, processor, directory, weights=weights)
        for path in directory.glob("*.safetensors"):
            shutil.copymode(directory / "tokenizer.json", path)  # safetensors lets nobody but the owner read it
        if weights is None:
            _check(model, directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@quiet_transformers()
def convert(source: str, destination: Path, *, layout: Layout, dtype: Precision = "keep") -> None:
    """Write the model `source` (a directory or a hub id, in either layout) to a new directory, in the layout given.

    An adapter of LoRA is merged into its base. The weights are cast to `dtype`; "keep" is the widest of those that the
    source has. Raises UserError as `new_folder`, `load_model` and `save_model` do.
    """
    with new_folder(destination) as unfinished:
        directory = _locate(source)
        model, processor = load_model(directory, dtype=_DTYPES.get(dtype) or _stored_dtype(directory))
        save_model(model, processor, unfinished, layout=layout)


def _locate(name: str, *, weights: bool = True) -> Path:
    """The local directory of a model: `name` itself, or the downloaded snapshot of the hub repository of that name.

    Without `weights`, a snapshot need not have any.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        directory = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES if weights else _HUB_SMALL_FILES)))
        if weights and not (weight_files(directory) or is_adapter(directory)):
            snapshot_download(name, allow_patterns=list(_HUB_PICKLES))
    except (OSError, HFValidationError) as error:  # no such repository, no network, not a valid id
        raise UserError(
            f"can't find the model {name}: give a local directory, or a hub id such as microsoft/Florence-2-base "
            f"with a network ({one_line(error)})"
        ) from error
    return directory


def _base_directory(adapter: Path, *, weights: bool = True) -> Path:
    """The local directory of the model that an adapter belongs to. Raises UserError where that is not a whole one."""
    base = base_of(adapter)
    try:
        directory = _locate(base, weights=weights)
    except UserError as error:
        raise UserError(
            f"{adapter} is an adapter for {base}, which can't be found: put that model there, or correct "
            "base_model_name_or_path in its adapter_config.json"
        ) from error
    if is_adapter(directory):
        raise UserError(f"{adapter} is an adapter for {base}, which is an adapter too: merge that with convert")
    return directory


def _stored_dtype(directory: Path) -> torch.dtype:
    """The narrowest dtype that holds all floating-point weights of a model's files exactly, an adapter's included."""
    whole = _base_directory(directory) if is_adapter(directory) else directory
    adapter = read_adapter(directory).tensors if whole != directory else {}
    tensors = (*read_state_dict(whole).values(), *adapter.values())
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return reduce(torch.promote_types, kinds) if kinds else torch.float32


@torch.no_grad()
def _check(model: Florence2ForConditionalGeneration, directory: Path) -> None:
    """Reload `directory` and compare its logits with those of the model. Raises UserError when they differ.

    The copy stays on the CPU, since a device may hardly hold one model in training. Compiled parts of the model run
    uncompiled, as they would be compiled again for this image's size.
    """
    # A model in several dtypes (bf16 where it is trained) is compared in float32, in which devices differ little.
    tensors = (*model.parameters(), *model.buffers())
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    reloaded, processor = load_model(directory, dtype=dtype)
    # In the memory format of the model, which affects rounding, and in half precision by far more than the tolerance.
    if next(model.model.vision_tower.parameters()).is_contiguous(memory_format=torch.channels_last):
        reloaded.model.vision_tower.to(memory_format=torch.channels_last)
    kernels = {part: getattr(model.config, part)._attn_implementation for part in ("vision_config", "text_config")}
    modes = {module: module.training for module in model.modules()}
    try:
        model.set_attn_implementation(dict.fromkeys(kernels, "sdpa"))  # flash attention can't do float32
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.compiler.set_stance("force_eager"),
            computing_in_float32(model) if dtypes else nullcontext(),
        ):
            expected = _probe(model.eval(), model.config.image_token_id, dtype).cpu()
        written = _probe(reloaded, processor.image_token_id, dtype)
    finally:
        model.set_attn_implementation(kernels)
        for module, training in modes.items():  # frozen parts stay in evaluation mode while the rest trains
            module.training = training
    expected = expected[..., : written.shape[-1]]  # `save_original` cuts rows beyond the original's vocabulary
    difference = (written - expected).abs().max().item()
    if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
        raise UserError(f"what was written to {directory} differs from the model by {difference:.2g} in the logits")


def _probe(model: Florence2ForConditionalGeneration, image_token_id: int, dtype: torch.dtype) -> Tensor:
    """float32 logits (1, 8, vocabulary) for a small image, a prompt and a caption, all random but always the same."""
    stride = 1
    for factor in model.config.vision_config.patch_stride:
        stride *= factor
    side = 4  # of the vision tower's feature map, in positions
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, side * stride, side * stride, generator=generator)
    pixels = pixels.bfloat16().to(model.device, dtype)  # a tower in bf16 would round them
    ids = torch.randint(4, 200, (1, 8), generator=generator)
    image = torch.full((1, 1 + side**2), image_token_id)
    logits: Tensor = model(
        pixel_values=pixels,
        input_ids=torch.cat([image, ids], dim=1).to(model.device),
        decoder_input_ids=ids.to(model.device),
        use_cache=False,
    ).logits
    return logits.float()
