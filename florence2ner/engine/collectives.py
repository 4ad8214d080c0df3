"""Collective operations: acting together or not at all, and checking that all processes agree."""

import hashlib
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.distributed import DistError

from florence2ner.engine import launcher
from florence2ner.errors import UserError
from florence2ner.files import UNFINISHED, nearest_folder

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a weight


def all_or_none(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Call `action` in this process and wait for the others to do so. Every process must call this.

    Where it fails, its exception is raised; where it fails only in another process, a RuntimeError, so that no process
    goes on and waits for one that has failed.
    """
    failure: Exception | None = None
    try:
        action()
    except Exception as error:
        failure = error
    failures = gather_object([failure and f"{type(failure).__name__}: {failure}"])
    if failure:
        raise failure
    if first := next(filter(None, failures), None):
        raise RuntimeError(f"another process failed: {first}")


def destroy_process_group() -> None:
    """Destroy the process group, at the end of a command that went well."""
    PartialState().destroy_process_group()


def check_same_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Assert that all processes hold the same trained weights, bit for bit. Every process must call this.

    Frozen weights are left out: one process may hold a vision tower that the others have put away.
    """
    trained = (parameter.detach() for parameter in model.parameters() if parameter.requires_grad)
    # As integers, so that the sums are exact: neither rounding nor the order of adding hides or feigns a difference.
    sums = torch.stack([weight.view(_INTEGERS[weight.itemsize]).sum(dtype=torch.int64) for weight in trained])[None]
    everywhere = accelerator.gather(sums)
    assert (everywhere == everywhere[0]).all(), "the processes hold different weights; please report this as a bug"


def check_shared(accelerator: Accelerator, folder: Path, fix: str) -> None:
    """Raise UserError, with `fix`, in every process where one can't see the `folder` of the main process.

    Looks at what exists of its path. Every process must call this.
    """
    if accelerator.num_processes == 1:
        return
    parents = (folder.absolute(), *folder.absolute().parents)
    # A name that was never looked up: NFS clients remember for a while which files did not exist.
    place = [(parents.index(nearest_folder(folder.absolute())), f".{secrets.token_hex(8)}{UNFINISHED}")]
    broadcast_object_list(place)
    ((level, name),) = place
    token = parents[level] / name

    def leave_token() -> None:
        if accelerator.is_main_process:
            token.touch()

    all_or_none(accelerator, leave_token)
    everywhere = gather_object([(token.exists(), socket.gethostname())])
    if accelerator.is_main_process:
        token.unlink()
    if blind := [rank for rank, (sees, _) in enumerate(everywhere) if not sees]:
        host = everywhere[blind[0]][1]
        raise UserError(f"process {blind[0]} (on {host}) can't see the folder {folder} of process 0: {fix}")


def check_equal(accelerator: Accelerator, facts: Mapping[str, object]) -> None:
    """Raise UserError, in every process, where the `repr` of a fact differs from that of the main process.

    The message names the facts and the processes that differ. Every process must call this.
    """
    hashes = [{name: hashlib.sha256(repr(fact).encode()).hexdigest() for name, fact in facts.items()}]
    everywhere = gather_object(hashes) if accelerator.num_processes > 1 else hashes
    differing = {
        name: ranks
        for name in facts
        if (ranks := [str(rank) for rank, other in enumerate(everywhere) if other[name] != everywhere[0][name]])
    }
    if differing:
        what = "; ".join(f"the {name} of process {', '.join(ranks)}" for name, ranks in differing.items())
        raise UserError(
            f"not the same as in process 0: {what}; start the same command with the same files on every machine"
        )


@contextmanager
def lost_process_in_one_line(go_on: Callable[[], str], *, timeout: float | None = None) -> Iterator[None]:
    """A context manager, or decorator, that turns the loss of another process, or a worker, into a UserError.

    `go_on` is called then, and says what the user should do; `timeout` is how long, in seconds, a process was waited
    for. To be put around all that a command does from the moment that the processes meet.
    """
    try:
        yield
    except Exception as error:
        if _is_lost_worker(error):
            raise UserError(
                "a process that decodes images was killed, as when memory runs out or /dev/shm is too small "
                f"(docker run --shm-size 16g): free some, or set a lower dataloader_workers; {go_on()}"
            ) from error
        if launcher.processes() == 1 or not is_lost_process(error):
            raise
        silent = "fell silent" if timeout is None else f"fell silent for {timeout:g} s"
        raise UserError(
            f"lost contact with another process, which was killed, failed or {silent}; {go_on()}"
        ) from error


def _is_lost_worker(error: Exception) -> bool:
    """Whether an error means that a worker of a DataLoader died. torch raises it wherever the main process is then."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def is_lost_process(error: Exception) -> bool:
    """Whether an error means that another process died or timed out: by its type, or by words in its message.

    torch raises a RuntimeError for most of them. Others may use the same words: a hub whose connection was reset by its
    peer, or a UserError about a folder named gloo.
    """
    signs = ("gloo", "NCCL", "process group", "by peer")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )
