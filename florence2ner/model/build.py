"""The one builder of a model that is ready for use: train, eval, caption, benchmarks and tests all call it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.model.adapt import checkpoint_gradients, freeze
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.kernels.attention import use_fast_attention
from florence2ner.model.kernels.compilation import compile_parts
from florence2ner.model.kernels.dropout import use_fast_dropout


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Which parts of a model are not trained."""

    vision: bool
    language: bool
    other: bool  # the projector and its position tables

    @property
    def everything(self) -> bool:
        """Whether nothing is left to train."""
        return self.vision and self.language and self.other


EVERYTHING = Frozen(vision=True, language=True, other=True)
NOTHING = Frozen(vision=False, language=False, other=False)


def load_captioner(
    name_or_path: str | Path,
    *,
    attn_implementation: str = "sdpa",
    device: torch.device,
    frozen: Frozen = EVERYTHING,
    dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
) -> Captioner:
    """Load a model and build a captioner of it. Raises what `load_model` raises; see there and `build_captioner`."""
    model, processor = load_model(name_or_path, attn_implementation=attn_implementation)
    return build_captioner(
        model,
        processor,
        device=device,
        frozen=frozen,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
    )


def build_captioner(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    *,
    device: torch.device,
    frozen: Frozen = EVERYTHING,
    dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
) -> Captioner:
    """A captioner on `device`, in evaluation mode. `model` becomes a part of it.

    `dtype` is what autocast casts to; None where it is off, or where weights have to stay of one type (sharding).

    The order is the only one that is right:
    1. Adapt: what is trained decides about all that follows. Adapters wrap layers before anything hooks into these.
    2. Kernels, on the layers as they now are.
    3. Device, before copies of weights in another precision are made there.
    4. Precision: only what is frozen is cast, so that has to be settled.
    5. Compile, last: the compiler sees every hook, and takes frozen weights, as they now are, for constants.
    """
    freeze(model, vision=frozen.vision, language=frozen.language, other=frozen.other)
    if gradient_checkpointing:
        checkpoint_gradients(model)

    use_fast_attention(model)
    if device.type == "cpu" and not frozen.language and not compiled:  # the compiler has a fast dropout of its own
        use_fast_dropout(model.model.language_model)
    # Convolutions of the tower are about a third faster with the channels last, and the rest of it is as fast.
    model.model.vision_tower.to(memory_format=torch.channels_last)

    captioner = Captioner(model, processor).to(device)
    if dtype:
        captioner.frozen_weights.cast(captioner, dtype, for_good=frozen.everything)
    if compiled:
        compile_parts(model, device)
    return captioner.eval()
