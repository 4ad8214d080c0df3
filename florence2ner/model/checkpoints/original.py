"""Converts models in Microsoft's original layout to transformers' native classes and back, without its code.

The layout is what configuration_florence2.py, modeling_florence2.py and processing_florence2.py of
microsoft/Florence-2-large read. Never give such a directory to transformers itself: it accepts the config, ignores the
keys that it doesn't know and leaves most of the weights random, without an error.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as RustTokenizer
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.errors import UserError
from florence2ner.model.checkpoints import processing
from florence2ner.model.checkpoints.files import one_line, read_json, read_state_dict, section
from florence2ner.model.checkpoints.original_config import (
    CODE,
    GENERATION_FIELDS,
    native_to_original_config,
    original_to_native_config,
)
from florence2ner.model.checkpoints.processing import IMAGE_TOKEN
from florence2ner.model.tasks import TASK_TOKENS

_MASK_TOKEN = "<mask>"
_IMAGE_PROJECTION = "image_projection"
_FINAL_LOGITS_BIAS = "language_model.final_logits_bias"
_LM_HEAD = "language_model.lm_head.weight"
_SHARED = "language_model.model.shared.weight"
# The same table as `shared`. A file may hold it under any of these names, or under several.
_COPIES = ("language_model.model.encoder.embed_tokens.weight", "language_model.model.decoder.embed_tokens.weight")

# Of the files that `_describe` describes.
_FILES_OF_MODEL = ("config.json", "generation_config.json")

# Substitutions that turn a native name into the original's. All are applied, in this order.
_RENAMES = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.multi_modal_projector\.image_projection\.weight$", _IMAGE_PROJECTION),
    (r"^model\.multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
    (r"^model\.multi_modal_projector\.", ""),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^(vision_tower\.convs\.\d+)\.conv\.", r"\1.proj."),
    (r"^(vision_tower\.blocks\..+\.conv[12])\.", r"\1.fn.dw."),
    (r"^(vision_tower\.blocks\..+_block)\.ffn\.", r"\1.ffn.fn.net."),
    (r"^(vision_tower\.blocks\..+\.(?:window|channel)_attn)\.", r"\1.fn."),
    (r"^(vision_tower\.blocks\..+\.spatial_block)\.norm1\.", r"\1.window_attn.norm."),
    (r"^(vision_tower\.blocks\..+\.channel_block)\.norm1\.", r"\1.channel_attn.norm."),
    (r"^(vision_tower\.blocks\..+_block)\.norm2\.", r"\1.ffn.norm."),
)


def original_name(native_name: str) -> str:
    """The original's state dict key for a key of the native `Florence2ForConditionalGeneration`; one to one."""
    for pattern, replacement in _RENAMES:
        native_name = re.sub(pattern, replacement, native_name)
    return native_name


def is_original(directory: Path) -> bool:
    """Whether `directory` holds a model in Microsoft's layout, by its config.json or, in doubt, its weights' names.

    The directory's name and vision_config.model_type are ignored, as fine-tunes have anything there. Raises UserError
    when config.json is missing or broken, or when the weights are needed and can't be read.
    """
    vision = section(read_json(directory / "config.json"), "vision_config")
    original = "dim_embed" in vision or "image_pos_embed" in vision
    if original != ("embed_dim" in vision):
        return original
    return _IMAGE_PROJECTION in read_state_dict(directory)


def load_original(
    directory: Path, *, dtype: torch.dtype | None = None, attn_implementation: str = "sdpa"
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Convert a directory in the original layout in memory: a native model on the CPU in eval mode, and its processor.

    `dtype` None means float32, whatever the files hold. The vocabulary is the original's; `<image>` takes the id of
    `<mask>` (see `processing.build_tokenizer`) and is never generated. The output head is tied to the embedding exactly
    when the two are equal in the files. Raises UserError when a file is missing or damaged, when the config asks for
    what the native classes can't do, and when a weight is missing, unexpected or of another shape.
    """
    settings = read_json(directory / "config.json")
    config = original_to_native_config(settings, directory)
    processor = load_original_processor(directory, config)
    state = read_state_dict(directory)
    config.image_token_id = processor.image_token_id
    config.tie_word_embeddings = _unify_embeddings(state, directory)
    config.dtype = dtype or torch.float32
    try:
        with torch.device("meta"):  # nothing is allocated or initialised, as every tensor comes from the files
            model = Florence2ForConditionalGeneration(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{directory / 'config.json'} does not describe a Florence-2: {one_line(error)}") from error
    model.load_state_dict(_native_weights(state, model, directory), strict=False, assign=True)
    model.tie_weights()
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    model.set_attn_implementation(attn_implementation)
    text = section(settings, "text_config")
    own_values = {name: text[name] for name in GENERATION_FIELDS if name in text}
    model.generation_config = processing.build_generation_config(config.image_token_id, **own_values)
    model.train(False)
    return model, processor


def save_original(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    directory: Path,
    *,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write `model` and `processor` as Microsoft's remote code, and the tools built around it, read them.

        directory/
          config.json              auto_map names the code of microsoft/Florence-2-large; no Python file is written
          generation_config.json   as on the hub
          model.safetensors        all keys, the copies of the embedding included
          preprocessor_config.json
          tokenizer.json, vocab.json, merges.txt, tokenizer_config.json

    `<image>` becomes `<mask>` again; where it has a row of its own (florence-community/Florence-2-base), that row and
    the padding after it are cut. `weights` replaces the model's own state dict where the model is sharded. The files
    are written one by one: for an atomic result, give a temporary directory and rename it.
    Raises UserError, before anything is written, for what the original's code can't express.
    """
    vocab_size, files = _describe(model, processor)
    tensors = {original_name(name): tensor.detach() for name, tensor in (weights or model.state_dict()).items()}
    # Under all names: the original's from_pretrained leaves the head random when a safetensors file has only `shared`,
    # and other loaders look for one or another of them. Cloned, since safetensors refuses tensors that share memory.
    tensors |= {name: tensors[name][:vocab_size].clone() for name in (_SHARED, *_COPIES, _LM_HEAD)}
    tensors[_IMAGE_PROJECTION] = tensors[_IMAGE_PROJECTION].t()  # (in, out) in the original
    tensors[_FINAL_LOGITS_BIAS] = torch.zeros(1, vocab_size, dtype=model.dtype)

    directory.mkdir(parents=True, exist_ok=True)
    _write_files(files, directory)
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, directory / "model.safetensors", metadata={"format": "pt"})


def save_original_processor(
    model: Florence2ForConditionalGeneration, processor: Florence2Processor, directory: Path
) -> None:
    """Write what `save_original` writes of the processor alone, with the same errors. The directory must be there."""
    _, files = _describe(model, processor)
    _write_files({name: content for name, content in files.items() if name not in _FILES_OF_MODEL}, directory)


def _write_files(files: dict[str, dict[str, Any]], directory: Path) -> None:
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    merges = files["tokenizer.json"]["model"]["merges"]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def check_original(model: Florence2ForConditionalGeneration, processor: Florence2Processor) -> None:
    """Raise UserError where `save_original` would, for what the original's code can't express."""
    _describe(model, processor)


def _describe(
    model: Florence2ForConditionalGeneration, processor: Florence2Processor
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The number of tokens, and the content of the JSON files by name. Raises UserError for what can't be expressed."""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    vocab_size = _restore_mask_token(tokenizer, rows=model.get_input_embeddings().weight.shape[0])
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    # Merges as strings: tokenizers before 0.20, which users of the original have, can't read pairs.
    tokenizer["model"]["merges"] = merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    files = {
        "config.json": native_to_original_config(model, vocab_size=vocab_size),
        "generation_config.json": {"num_beams": 3, "early_stopping": False},
        "preprocessor_config.json": _preprocessor_config(processor),
        "tokenizer.json": tokenizer,
        "vocab.json": vocab,
        "tokenizer_config.json": {
            "model_max_length": processor.tokenizer.model_max_length,
            "tokenizer_class": "BartTokenizer",
        },
    }
    return vocab_size, files


def _preprocessor_config(processor: Florence2Processor) -> dict[str, Any]:
    image_processor = processor.image_processor
    size = {side: image_processor.size[side] for side in ("height", "width")}
    return {
        "auto_map": {"AutoProcessor": f"{CODE}processing_florence2.Florence2Processor"},
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "Florence2Processor",
        "image_seq_length": processor.num_image_tokens,
        **{f"do_{step}": True for step in ("convert_rgb", "resize", "rescale", "normalize")},
        "do_center_crop": False,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "resample": int(image_processor.resample),
        "size": size,
        "crop_size": size,
    }


def load_original_processor(directory: Path, config: Florence2Config) -> Florence2Processor:
    vision: Any = config.vision_config
    text: Any = config.text_config
    path = directory / "preprocessor_config.json"
    settings = read_json(path)
    side = section(settings, "size").get("height")
    if not isinstance(side, int) or settings["size"] != {"height": side, "width": side}:
        raise UserError(f'{path}: size is {settings.get("size")}; Florence-2 needs {{"height": N, "width": N}}.')
    wanted = {"image_mean": list(processing.IMAGE_MEAN), "image_std": list(processing.IMAGE_STD), "resample": 3}
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise UserError(f"{path}: {name} is {settings[name]}; only {value} can be converted.")
    map_side = side
    for kernel, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        map_side = (map_side + 2 * padding - kernel) // stride + 1

    path = directory / "tokenizer_config.json"
    limit = read_json(path).get("model_max_length") if path.is_file() else None
    path = directory / "tokenizer.json"
    try:
        backend = RustTokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises nothing narrower
        raise UserError(
            f"{path} is missing or not a tokenizer ({one_line(error)}): copy it from the model's source."
        ) from error
    if backend.token_to_id(_MASK_TOKEN) is None or backend.token_to_id(IMAGE_TOKEN) is not None:
        raise UserError(f"{path} is not the original's, which has {_MASK_TOKEN} and no {IMAGE_TOKEN}.")
    tokenizer = processing.build_tokenizer(backend, model_max_length=limit or text.max_position_embeddings)
    vocab = tokenizer.get_vocab()
    ids = [vocab[token] for token in TASK_TOKENS]
    if ids != list(range(ids[0], ids[0] + len(ids))) or len(tokenizer) > text.vocab_size:
        raise UserError(
            f"{path}: {len(tokenizer)} tokens, <od> {ids[0]}, <and> {ids[-1]} do not fit vocab_size {text.vocab_size}."
        )
    return processing.build_processor(tokenizer, image_size=side, image_seq_length=1 + map_side**2)


def _unify_embeddings(state: dict[str, Tensor], directory: Path) -> bool:
    """Reduce the copies of the embedding in `state` to `shared` and the head; return whether these two are equal.

    The original ties the encoder's and the decoder's table to `shared`, but not the head: fine-tuning makes it differ.
    Raises UserError when a copy differs that is tied there.
    """
    tables = [name for name in (_SHARED, *_COPIES, _LM_HEAD) if name in state]
    if not tables:
        return True  # `_native_weights` reports it with the other missing weights
    shared = state.setdefault(_SHARED, state[tables[0]])
    for name in _COPIES:
        if not _equal(state.pop(name, shared), shared):
            raise UserError(f"The weights in {directory} are inconsistent: {name} differs from {tables[0]}.")
    return _equal(state.setdefault(_LM_HEAD, shared), shared)


def _native_weights(
    state: dict[str, Tensor], model: Florence2ForConditionalGeneration, directory: Path
) -> dict[str, Tensor]:
    """The tensors of `state` renamed, transposed and cast to fit `model`. Empties `state`, to save memory.

    Raises UserError when a weight is missing, unexpected or of another shape.
    """
    bias = state.pop(_FINAL_LOGITS_BIAS, None)
    if bias is not None and bias.count_nonzero():
        raise UserError(f"{directory}: {_FINAL_LOGITS_BIAS} is not zero; the native class has no such bias.")
    if _IMAGE_PROJECTION in state:
        state[_IMAGE_PROJECTION] = state[_IMAGE_PROJECTION].mT
    native = {original_name(name): name for name in model.state_dict()}
    shapes = {original_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    problems = {
        "missing": [name for name in native if name not in state and name not in (*_COPIES, _LM_HEAD)],
        "unexpected": [name for name in state if name not in native],
        "of another shape": [
            f"{name} {tuple(tensor.shape)} instead of {tuple(shapes[name])}"
            for name, tensor in state.items()
            if name in native and tensor.shape != shapes[name]
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems.items() if names)
        raise UserError(f"The weights in {directory} do not fit its config.json: {text}.")
    if model.config.tie_word_embeddings:
        del state[_LM_HEAD]
    # Copied even where the dtype stays the same, as the memory-mapped file may be replaced while the model is in use.
    return {
        native[name]: state.pop(name).to(model.config.dtype, copy=True, memory_format=torch.contiguous_format)
        for name in list(state)
    }


def _restore_mask_token(tokenizer: dict[str, Any], *, rows: int) -> int:
    """Undo `processing.build_tokenizer` in the JSON state of a Rust tokenizer; return the number of tokens left.

    `rows` is the number of rows of the embedding: a token without one, such as the second `<mask>` that transformers
    4.57 appends when it saves, is left out. Raises UserError when there are others after `<image>`, whose ids would
    change.
    """
    vocab = tokenizer["model"]["vocab"]
    added = [token for token in tokenizer["added_tokens"] if token["id"] < rows]
    if _MASK_TOKEN not in {*vocab, *(token["content"] for token in added)}:
        # <mask> was renamed. Give it an entry in the vocabulary in any case, since vocab.json alone must have its id.
        vocab[_MASK_TOKEN] = next(token["id"] for token in added if token["content"] == IMAGE_TOKEN)
        vocab.pop(IMAGE_TOKEN, None)
        added += [
            token | {"content": _MASK_TOKEN, "lstrip": True} for token in added if token["content"] == IMAGE_TOKEN
        ]
    tokenizer["model"]["vocab"] = vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    kept = (token for token in added if token["content"] != IMAGE_TOKEN)
    tokenizer["added_tokens"] = sorted(kept, key=lambda token: token["id"])
    ids = {*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    if ids != set(range(len(ids))):
        raise UserError(f"The tokenizer has tokens behind {IMAGE_TOKEN}; without it their ids would change.")
    return len(ids)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
