"""Reads and writes models in the layout of transformers' own Florence-2 classes, for every release that has them."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoProcessor, Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.errors import UserError
from florence2ner.model.checkpoints.files import one_line, read_json
from florence2ner.model.checkpoints.processing import IMAGE_TOKEN


def load_native(
    directory: Path, *, dtype: torch.dtype | None = None, attn_implementation: str = "sdpa"
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load a directory in the native layout: the model on the CPU, with float32 weights by default, and its processor.

    Raises UserError when a weight is missing, unexpected, of another shape or unreadable, or the processor another's.
    """
    try:
        model, report = Florence2ForConditionalGeneration.from_pretrained(
            directory, dtype=dtype or torch.float32, attn_implementation=attn_implementation, output_loading_info=True
        )
    except Exception as error:  # damaged files can raise anything
        raise UserError(f"{directory} is not a whole Florence-2: {one_line(error)}") from error
    processor = load_native_processor(directory)
    problems = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):  # transformers initialises missing weights at random and only warns
        text = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys[:4])}" for kind, keys in problems.items() if keys)
        raise UserError(f"the weights in {directory} do not fit its config.json: {text}")
    return model, processor


def load_native_processor(directory: Path) -> Florence2Processor:
    """Load the processor of a directory in the native layout. Raises UserError for none, and for another's."""
    try:
        processor = AutoProcessor.from_pretrained(directory, backend="pil")
    except Exception as error:  # damaged files can raise anything
        raise UserError(f"{directory} is not a whole Florence-2: {one_line(error)}") from error
    if not isinstance(processor, Florence2Processor):
        raise UserError(f"{directory} holds the processor of another model: copy it from the model's source")
    return processor


def save_native(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    directory: Path,
    *,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model and processor for plain `from_pretrained`, tied weights once.

    `weights` replaces the model's own state dict where the model is sharded.
    """
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    only = weights and {name: weight for name, weight in weights.items() if name in once}
    model.save_pretrained(directory, state_dict=only)
    save_native_processor(processor, directory)


def save_native_processor(processor: Florence2Processor, directory: Path) -> None:
    """Write a processor for plain `from_pretrained`."""
    processor.save_pretrained(directory)
    _suit_older_releases(directory)


def _suit_older_releases(directory: Path) -> None:
    """Have transformers 4.56 and 4.57 read the processor that transformers 5 has written, and 5 read it as before.

    They know neither the class TokenizersBackend nor a list of special tokens, and look for the image processor in a
    file of its own.
    """
    path = directory / "tokenizer_config.json"
    tokenizer = read_json(path)
    for name in ("backend", "is_local", "local_files_only"):  # of the file that it was loaded from
        tokenizer.pop(name, None)
    tokenizer |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
    }
    image_processor = read_json(directory / "processor_config.json")["image_processor"]
    image_processor["processor_class"] = "Florence2Processor"
    _write_json(path, tokenizer)
    _write_json(directory / "preprocessor_config.json", image_processor)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
