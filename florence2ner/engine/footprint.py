"""Counts the memory that computing takes, without computing: with tensors that have a shape, a device and no data."""

import ctypes
import sys
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_ALIGNMENT = 64  # in bytes, of torch's tensors on a CPU


class Footprint:
    """A context manager in which tensors are imaginary: nothing is computed or allocated, but their bytes are counted.

    Only those on `device` count. Tensors that are there before can be used too, and count from their first use. What
    has the host read a value of a tensor gets 1 (0 for whether a gradient has overflowed), as no value is known. Make a
    module inside, or move it there with `to_empty`: torch moves no module of imaginary tensors by `to`.

    The numbers are bytes: `live` of all tensors at this moment, `held` of what the process keeps for them, `most_live`
    and `peak` the most of both since `restart`. On a GPU, `held` is `live`; on a CPU malloc keeps more.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.live = 0
        self.peak = self.live_at_peak = self.most_live = 0
        self._malloc = _Malloc() if device.type == "cpu" and _Malloc.is_known() else None
        self._stack = ExitStack()

    @property
    def held(self) -> int:
        """What the process keeps for the tensors that are live."""
        # Less only where an earlier footprint has left room: malloc asks the system for nothing then.
        return max(self.live, self._malloc.held()) if self._malloc else self.live

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.live_at_peak, self.most_live = self.held, self.live, self.live

    def __enter__(self) -> Self:
        self._stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self._stack.enter_context(_Counter(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, size: int) -> Callable[[], None]:
        """Count a block of `size` bytes; the function that is returned gives it back."""
        self.live += size
        free = self._malloc.take(size) if self._malloc else None
        self.most_live = max(self.most_live, self.live)
        held = self.held
        if held > self.peak:
            self.peak, self.live_at_peak = held, self.live

        def give_back() -> None:
            self.live -= size
            if free:
                free()

        return give_back


class _Malloc:
    """Has glibc's malloc say what it keeps for blocks of memory. They are taken from it, and never written to.

    Small blocks come from a heap, which seldom shrinks: what is free in it stays with the process, and where it lies
    between blocks that are not, only smaller ones find room there.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.mallinfo2.restype = _MallInfo
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._beyond = 0
        self._before = 0
        self._before = self.held()

    @staticmethod
    def is_known() -> bool:
        """Whether this is glibc, from 2.33 on."""
        return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")

    def take(self, size: int) -> Callable[[], None]:
        """Take a block; the function that is returned gives it back."""
        block = ctypes.c_void_p()
        if self._libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(_ALIGNMENT), ctypes.c_size_t(size)) == 0:
            return lambda: self._libc.free(block)
        self._beyond += size  # more than the machine has

        def give_back() -> None:
            self._beyond -= size

        return give_back

    def held(self) -> int:
        """The bytes that malloc has from the system for all blocks so far."""
        info = self._libc.mallinfo2()
        return int(info.arena + info.hblkhd) - self._before + self._beyond


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`: `arena` are the bytes of its heaps, `hblkhd` those of blocks on their own."""

    _fields_: ClassVar = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the arguments and the results of every operation."""

    def __init__(self, footprint: Footprint) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.footprint = footprint
        self.counted: dict[int, weakref.ref[UntypedStorage]] = {}  # by id
        self.overflows: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()  # those of GradScaler's flags

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count((args, kwargs))
        try:
            result = function(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if function is not torch.ops.aten._local_scalar_dense.default:
                raise
            return 0.0 if args[0].untyped_storage() in self.overflows else _one(args[0].dtype)
        if function is torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default:
            self.overflows.add(args[1].untyped_storage())
        self.count(result)
        return result

    def count(self, tensors: Any) -> None:
        for tensor in tree_iter(tensors):
            if isinstance(tensor, Tensor) and tensor.device.type == self.footprint.device.type:
                self.count_storage(tensor.untyped_storage())

    def count_storage(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.counted:
            return

        give_back = self.footprint.take(size)

        def gone(_: object) -> None:
            del self.counted[key]
            give_back()

        self.counted[key] = weakref.ref(storage, gone)


def _one(dtype: torch.dtype) -> bool | int | float:
    return 1.0 if dtype.is_floating_point else dtype == torch.bool or 1
