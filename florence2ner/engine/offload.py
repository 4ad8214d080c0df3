"""Keeps what autograd saves for the backward pass elsewhere until then: in the host's memory or in an unnamed file."""

import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from florence2ner.errors import UserError

SMALLEST = 2**16  # bytes; what takes less stays where it is
_BLOCK = 4096  # bytes that parts of the file are rounded up to, as the disk does


class Parked(Protocol):
    """Bytes in a place. It is free for others once nobody refers to them any more."""

    def get(self) -> Tensor:
        """The bytes, (N,) uint8 on the CPU."""


class Place(Protocol):
    """Where activations are kept."""

    def put(self, content: Tensor) -> Parked:
        """Keep the bytes `content`, (N,) uint8 on any device. Raises UserError where there is no room."""


class Offload:
    """Moves what a forward pass saves for its backward pass to `place`, and back when the backward pass needs it.

    Each storage is moved once, whole, however many saved tensors are views of it. So a saved tensor comes back with its
    values, dtype and strides, and takes as much as it would have. What stays: weights and buffers, what autocast made
    of weights, and whatever is small. Checkpointed layers save their inputs in the same way (torch >= 2.14), so these
    are moved too.

    A backward pass frees what it has used; a graph that is dropped, as after an exception, frees all that it saved.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._moved: WeakKeyDictionary[UntypedStorage, tuple[int, ref[_Storage]]] = WeakKeyDictionary()

    @contextmanager
    def saving(self, model: nn.Module) -> Iterator[None]:
        """A context manager for a forward pass of `model`; the backward pass may be outside of it."""
        # Anew each time: weights get other storages when they are cast, averaged, or moved between devices.
        weights = {tensor.untyped_storage().data_ptr() for tensor in chain(model.parameters(), model.buffers())}

        def pack(tensor: Tensor) -> _Left | _Moved:
            if not _is_activation(tensor, weights):
                return _Left(tensor.detach(), tensor._version)  # detached, or an output would keep itself alive
            offset = int(tensor.storage_offset())
            return _Moved(self._move(tensor), tensor.dtype, offset, tensor.size(), tensor.stride())

        with saved_tensors_hooks(pack, lambda packed: packed.restore()):
            yield

    def _move(self, tensor: Tensor) -> "_Storage":
        storage, version = tensor.untyped_storage(), tensor._version
        at, weak = self._moved.get(storage, (None, None))
        moved = weak() if weak and at == version else None  # it may have been written to since
        if moved is None:
            content = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            moved = _Storage(self._place.put(content), tensor.device)
            self._moved[storage] = version, ref(moved)
        return moved


def _is_activation(tensor: Tensor, weights: set[int]) -> bool:
    """Whether a saved tensor is to be moved. `weights` are the addresses of what stays."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return False
    storage = tensor.untyped_storage()
    if tensor.is_conj() or tensor.is_neg() or storage.nbytes() < SMALLEST or storage.data_ptr() in weights:
        return False
    # What is cast from a weight, by autocast or for a whole update, is kept elsewhere, and belongs to the weight.
    node = (tensor if tensor._base is None else tensor._base).grad_fn
    is_cast = node is not None and node.name() in ("ToCopyBackward0", "_CastBackward")
    return node is None or not is_cast or not hasattr(node.next_functions[0][0], "variable")


class _Left(NamedTuple):
    """A saved tensor that stays where it is."""

    tensor: Tensor
    version: int

    def restore(self) -> Tensor:
        """The tensor. Raises RuntimeError where it was written to: torch doesn't look where there are hooks."""
        if self.tensor._version != self.version:
            raise RuntimeError("a tensor that the backward pass needs has been modified in place since it was saved")
        return self.tensor


class _Moved(NamedTuple):
    """A saved tensor that is a view of a storage which was moved."""

    storage: "_Storage"
    dtype: torch.dtype
    offset: int  # like the strides, in elements
    size: torch.Size
    stride: tuple[int, ...]

    def restore(self) -> Tensor:
        storage = self.storage.restore()
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.size, self.stride)


class _Storage:
    """A storage that was moved; `restore` shares one copy among all that need it at the same time."""

    def __init__(self, parked: Parked, device: torch.device) -> None:
        self._parked, self._device = parked, device
        self._restored: ref[UntypedStorage] | None = None

    def restore(self) -> UntypedStorage:
        storage = self._restored() if self._restored else None
        if storage is None:
            # Without a wait, from pinned memory: the copy runs in order with what else its stream does.
            storage = self._parked.get().to(self._device, non_blocking=True).untyped_storage()
            self._restored = ref(storage)
        return storage


class HostMemory:
    """Keeps activations of a GPU in pinned memory of the host.

    Copies run on the stream that computes, in both directions: nothing waits for them but what comes later on it, and
    torch's allocators give their memory to others only after they are done.
    """

    def put(self, content: Tensor) -> Parked:
        """Keep a copy of the bytes."""
        host = torch.empty(content.shape, dtype=content.dtype, pin_memory=content.is_cuda)
        return _InMemory(host.copy_(content, non_blocking=True))


class _InMemory(NamedTuple):
    content: Tensor

    def get(self) -> Tensor:
        return self.content


class UnnamedFile:
    """Keeps activations in a temporary file without a name, so that nothing is left of it however the process ends.

    It is in Python's folder for temporary files, which TMPDIR sets. Parts that are free are used again, so it grows to
    what one forward pass saves and no further. `fix` is how a message for the user ends.
    """

    def __init__(self, fix: str) -> None:
        self._fix = fix
        self._lock = threading.Lock()
        self._gaps: list[tuple[int, int]] = []  # first byte and end of the free parts, in order
        self._end = 0
        # Parts may be freed by any thread and at any moment, even by one that holds the lock: they are only noted here.
        self._freed: deque[tuple[int, int]] = deque()
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Give the disk its space back. What is in the file is lost."""
        self._file.close()

    def put(self, content: Tensor) -> Parked:
        """Write the bytes. Raises UserError where the disk is full."""
        rest = memoryview(content.cpu().numpy().data)
        with self._lock:
            part = _Part(self, self._take(len(rest)), len(rest))
            try:
                self._file.seek(part.start)
                while rest:  # an unbuffered write may take only a part, as on a disk that is filling up
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                raise self._error(error) from error
        return part

    def read(self, start: int, content: Tensor) -> None:
        """Read the bytes from `start` on into `content`, (N,) uint8. Raises UserError where that fails."""
        rest = memoryview(content.numpy().data)
        with self._lock:
            try:
                self._file.seek(start)
                while rest:
                    count = self._file.readinto(rest)
                    assert count, "the file holds what was written to it"
                    rest = rest[count:]
            except OSError as error:
                raise self._error(error) from error

    def free(self, start: int, end: int) -> None:
        """Let the bytes from `start` to `end` be used again."""
        self._freed.append((start, end))

    def _take(self, size: int) -> int:
        """The first byte of a free part of at least `size` bytes, which is free no more."""
        size = _rounded(size)
        self._join_gaps()
        for index, (start, end) in enumerate(self._gaps):
            if end - start >= size:
                self._gaps[index : index + 1] = [(start + size, end)] if end - start > size else []
                return start
        self._end += size
        return self._end - size

    def _join_gaps(self) -> None:
        """Add to the gaps what was freed, and make one of those that touch."""
        parts = list(self._gaps)
        while self._freed:
            parts.append(self._freed.popleft())
        self._gaps = []
        for start, end in sorted(parts):
            if self._gaps and self._gaps[-1][1] == start:
                start, _ = self._gaps.pop()
            self._gaps.append((start, end))
        if self._gaps and self._gaps[-1][1] == self._end:
            self._end = self._gaps.pop()[0]

    def _error(self, error: OSError) -> UserError:
        folder = tempfile.gettempdir() if tempfile.tempdir else "any folder for temporary files"
        return UserError(f"can't keep activations in {folder} ({error.strerror or error}): {self._fix}")


class _Part:
    """Bytes in an `UnnamedFile`."""

    def __init__(self, file: UnnamedFile, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size

    def get(self) -> Tensor:
        content = torch.empty(self.size, dtype=torch.uint8)
        self.file.read(self.start, content)
        return content

    def __del__(self) -> None:
        self.file.free(self.start, self.start + _rounded(self.size))


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def is_in_memory(folder: Path) -> bool:
    """Whether a folder is known to be in memory, as /tmp is on some Linux systems: there is nothing to gain then."""
    device = os.stat(folder).st_dev
    with suppress(OSError):  # no Linux
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return kind.split()[0] in ("tmpfs", "ramfs")
    return False
