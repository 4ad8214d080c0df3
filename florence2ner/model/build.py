"""Builds a model that is ready for use, in the one order that works; train, eval and caption all call it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.model.adapt import cast_trained, freeze
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.mapping import release_mapped_files
from florence2ner.model.kernels.attention import use_fast_attention
from florence2ner.model.kernels.checkpointing import checkpoint_gradients
from florence2ner.model.kernels.compilation import compile_parts
from florence2ner.model.kernels.dropout import use_fast_dropout
from florence2ner.model.lora import adapted_layers, is_adapted, train_adapters_only

Place = Callable[[Captioner, torch.device], Captioner]  # moves a captioner to a device and returns it


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Which parts of a model are not trained."""

    vision: bool
    language: bool
    other: bool  # the projector and its position tables

    @property
    def everything(self) -> bool:
        """Whether all parts are frozen."""
        return self.vision and self.language and self.other


EVERYTHING = Frozen(vision=True, language=True, other=True)
NOTHING = Frozen(vision=False, language=False, other=False)


def frozen_beside_adapters(model: Florence2ForConditionalGeneration) -> Frozen:
    """The parts in which no layer has an adapter."""
    layers = adapted_layers(model)
    vision, language, other = (
        not any(name.startswith(f"model.{part}.") for name in layers)
        for part in ("vision_tower", "language_model", "multi_modal_projector")
    )
    return Frozen(vision=vision, language=language, other=other)


def load_captioner(
    name_or_path: str | Path,
    *,
    attn_implementation: str = "sdpa",
    device: torch.device,
    frozen: Frozen = EVERYTHING,
    dtype: torch.dtype | None = None,
    trained_dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    channels_last: bool = True,
) -> Captioner:
    """`load_model`, then `build_captioner`: see there for the arguments. Raises UserError as `load_model` does."""
    model, processor = load_model(name_or_path, attn_implementation=attn_implementation)
    return build_captioner(
        model,
        processor,
        device=device,
        frozen=frozen,
        dtype=dtype,
        trained_dtype=trained_dtype,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
        channels_last=channels_last,
    )


def build_captioner(
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    *,
    device: torch.device,
    frozen: Frozen = EVERYTHING,
    dtype: torch.dtype | None = None,
    trained_dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    channels_last: bool = True,
    place: Place = Captioner.to,
) -> Captioner:
    """A captioner on `device`, in evaluation mode. `model` is changed in place and becomes a part of it.

    Of a model with adapters only these are trained, in the parts that are not `frozen`. `dtype` is the dtype that
    autocast casts to; None where it is off, or where all weights must have one dtype (sharding). `trained_dtype` is
    that of the trained weights; None leaves them as they are. `place` is what moves the captioner to the device.

    The order of the steps matters:
    1. Freeze, and enable gradient checkpointing: the later steps look at `requires_grad`.
    2. Replace kernels, in the layers that step 1 has left.
    3. Move to the device, so that step 4 makes its copies there.
    4. Cast the frozen weights, and with `trained_dtype` the trained ones.
    5. Compile last: the compiler must see every hook, and on a CPU it compiles frozen weights in as constants. The
       file that the weights came from has been read by then.
    """
    freeze(model, vision=frozen.vision, language=frozen.language, other=frozen.other)
    if is_adapted(model):
        train_adapters_only(model)
    if gradient_checkpointing:
        checkpoint_gradients(model)

    use_fast_attention(model)
    # A frozen language model drops nothing, and torch.compile generates a fast dropout by itself.
    if device.type == "cpu" and not frozen.language and not compiled:
        use_fast_dropout(model.model.language_model)
    if channels_last:  # makes the tower's convolutions about a third faster, and slows down nothing else
        model.model.vision_tower.to(memory_format=torch.channels_last)

    captioner = place(Captioner(model, processor), device)
    if trained_dtype:
        cast_trained(captioner, trained_dtype)
    if dtype:
        captioner.frozen_weights.cast(captioner, dtype, for_good=frozen.everything)
        # A GPU casts weights in no time, but has no memory to spare for them; compiled code fuses it with what follows.
        if device.type == "cpu" and not compiled:
            captioner.trained_weights.adopt(captioner, dtype)
    if compiled:
        compile_parts(model, device)
    release_mapped_files()
    return captioner.eval()
