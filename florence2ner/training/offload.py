"""Activation offloading in a training run: where it can't be used, and where activations are kept."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

from florence2ner.engine.offload import HostMemory, Offload, UnnamedFile, is_in_memory
from florence2ner.engine.sharding import name_of_sharding
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner
from florence2ner.training.context import Context

_FIX = "free some space, set TMPDIR to a folder with more, or leave out activation_offload; then add --resume latest"


def check_offload(context: Context) -> None:
    """Raise UserError where activations can't be offloaded as the settings say."""
    accelerator, where = context.accelerator, context.config.activation_offload
    if where == "none":
        return
    if where == "cpu" and accelerator.device.type == "cpu":
        raise UserError("activation_offload cpu does nothing on a CPU, whose memory it fills: choose disk")
    if how := name_of_sharding(accelerator):
        raise UserError(
            f"activation_offload can't be used under {how}: leave it out, or start with "
            "accelerate_configs/multi_gpu.yaml"
        )


def start_offload(
    context: Context, captioner: Captioner, stack: ExitStack
) -> Callable[[], AbstractContextManager[None]]:
    """The context manager for each forward pass in training. `stack` gives back the disk space at the end.

    Raises UserError where no temporary file can be made.
    """
    where = context.config.activation_offload
    if where == "none":
        return nullcontext
    if where == "cpu":
        return partial(Offload(HostMemory()).saving, captioner)
    file = UnnamedFile(_FIX)
    stack.callback(file.close)
    folder = Path(tempfile.gettempdir())
    context.display.say(f"activations wait for the backward pass in an unnamed file in {folder}")
    if is_in_memory(folder):
        context.display.warn_once(f"{folder} is itself in memory: set TMPDIR to a folder on a disk")
    return partial(Offload(file).saving, captioner)
