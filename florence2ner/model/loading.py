"""A name or a path -> model and processor, and back to disk."""

from pathlib import Path

import torch
from transformers import AutoProcessor, Florence2ForConditionalGeneration, Florence2Processor
from transformers.utils import logging

from florence2ner.errors import UserError

# A bar per file read or written would tear the run's own, and its hints are about code, not about a user's run.
logging.disable_progress_bar()
logging.set_verbosity_error()


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load a Florence-2 and its processor, in evaluation mode, as float32 unless `dtype` says otherwise.

    `name_or_path` is a local directory or a hub id. Raises UserError when there is no such model.
    """
    name = str(name_or_path)
    try:
        model = Florence2ForConditionalGeneration.from_pretrained(
            name, dtype=dtype or torch.float32, attn_implementation=attn_implementation
        )
        processor = AutoProcessor.from_pretrained(name, backend="pil")
    except OSError as error:
        raise UserError(
            f"can't find the model {name}: give a local directory, or a hub id such as microsoft/Florence-2-base "
            f"with a network ({str(error).splitlines()[0]})"
        ) from error
    return model.to(device or "cpu").eval(), processor


def save_model(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    directory: Path,
    *,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and processor to `directory`, so that plain `from_pretrained` loads them.

    `weights` replaces the model's own, where they are spread over processes.
    """
    model.save_pretrained(directory, state_dict=weights)
    processor.save_pretrained(directory)
