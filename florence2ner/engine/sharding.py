"""FSDP2: what is sharded and how, whole weights for an evaluation, whole state dicts for a checkpoint."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from florence2ner.engine.deepspeed import uses_deepspeed
from florence2ner.errors import UserError

_ENTER = "_enter"  # name of a forward method that computes nothing


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether FSDP shards the trained weights, so that no process holds the whole model."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def name_of_sharding(accelerator: Accelerator) -> str | None:
    """What shares out weights or optimizer among the processes, as it is called in messages; None: nothing does."""
    if uses_deepspeed(accelerator):
        return "DeepSpeed"
    return "FSDP" if is_sharded(accelerator) else None


def check_fsdp_version() -> None:
    """Raise UserError where the launcher asks for version 1 of FSDP, which has other classes for all that is below."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP works in version 2 only: set fsdp_version: 2, as accelerate_configs/fsdp.yaml does")


def leave_whole(accelerator: Accelerator, module: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Have `accelerator.prepare(module)` shard all weights but those of its parts `frozen`. Nothing without FSDP.

    Frozen weights have neither gradient nor optimizer state: they are a small part of what training holds, and they
    can be cast in advance and offloaded where each process has them whole. And a process may then run the vision
    tower, for an image that the feature cache lacks, while another one doesn't: there is nothing to gather in step.
    """
    if is_sharded(accelerator):
        plugin = accelerator.state.fsdp_plugin
        plugin.ignored_modules = list(frozen)
        # Accelerate refuses names of layers that it doesn't find, as in a tower that is frozen and offloaded.
        trained = {type(part).__name__ for part in module.modules() if any(p.requires_grad for p in part.parameters())}
        plugin.transformer_cls_names_to_wrap = [n for n in plugin.transformer_cls_names_to_wrap or () if n in trained]
        # Autocast does the casting, as in DDP. FSDP's own policy would also round the losses to bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()


@contextmanager
def gathered(accelerator: Accelerator, module: nn.Module) -> Iterator[None]:
    """A context manager in which each process holds the whole weights of `module`, as `prepare` returned it.

    Inside, any part may be called, in one process or in all and any number of times: nothing is communicated. Every
    process must enter and leave it. Does nothing where nothing is sharded.
    """
    shards = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not shards:
        yield
        return
    # FSDP finds out which module is the root, and sets up all others, in the first forward. Have one that does nothing.
    if not hasattr(module, _ENTER):
        setattr(module, _ENTER, lambda: None)
        register_fsdp_forward_method(module, _ENTER)
    getattr(module, _ENTER)()
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            # The root stays whole from its forward to its backward, as FSDP itself decides by default.
            reshards = accelerator.state.fsdp_plugin.reshard_after_forward and shard is not module
            shard.set_reshard_after_forward(reshards, recurse=False)
            shard.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as a plain one in each process; others as they are. Every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state_dict(accelerator: Accelerator, module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded module in the main process, on the CPU; {} in the others.

    A tied weight has all its names, each with a copy. Every process must call this.
    """
    state_dict: dict[str, Tensor] = accelerator.get_state_dict(module)
    return state_dict
