"""What is done when memory runs out: the same again with fewer rows of a batch, or one clear line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from florence2ner.errors import UserError

Result = TypeVar("Result")
_USABLE = 0.95  # share of the free memory: the rest is for what an allocator can't use
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")
_CONTAINERS = (  # a container's limit and what it uses, of both kinds of control groups
    (_CGROUP / "memory.max", _CGROUP / "memory.current"),
    (_CGROUP / "memory/memory.limit_in_bytes", _CGROUP / "memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def unless_out_of_memory(function: Callable[[], Result]) -> Result | None:
    """What `function` returns; None where memory ran out in it, and then all that it held is free again."""
    try:
        return function()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    clear_device_cache(garbage_collection=True)  # not in the `except` block, where the traceback keeps tensors alive
    return None


@contextmanager
def out_of_memory_in_one_line(advice: str) -> Iterator[None]:
    """A context manager that raises UserError with `advice` where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(f"memory ran out: {advice}") from error
        raise


class Generators:
    """The states of torch's random generators, of the CPU and of `device`, as they were when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._other = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    def restore(self) -> None:
        """Go back to these states."""
        torch.set_rng_state(self._cpu)
        if self._other is not None:
            torch.get_device_module(self._device).set_rng_state(self._other, self._device)


class Memory:
    """The memory that this process may use of a device's, and what it has used at most."""

    def __init__(self, device: torch.device, limit: int | None, *, shared_by: int) -> None:
        """`limit` in bytes; None: what is free now, but for a margin. So many processes share a CPU's equally."""
        self._device = device
        if limit is None:
            limit = int(_USABLE * (self._free() // (shared_by if device.type == "cpu" else 1) + self._used()))
        self.limit = limit

    @staticmethod
    def is_known(device: torch.device) -> bool:
        """Whether it can be told how much memory of the device there is, and how much is used."""
        return device.type == "cuda" or (device.type == "cpu" and _STATUS.is_file())

    def restart(self) -> None:
        """Begin anew with the peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):  # where the system forbids it, the peak is that since the start of the process
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """The most bytes that were in use since `restart`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _kilobytes(_STATUS, "VmHWM") * 1024

    def _used(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_reserved(self._device)
        return resident_bytes()

    def _free(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        free = _kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024
        for limit, used in _CONTAINERS:
            with suppress(OSError, ValueError):  # there is no such file, or no limit
                free = min(free, int(limit.read_text()) - int(used.read_text()))
        return free


def resident_bytes() -> int:
    """Bytes of memory that this process has at this moment; 0 where that isn't known, elsewhere than on Linux."""
    return _kilobytes(_STATUS, "VmRSS") * 1024 if _STATUS.is_file() else 0


def _kilobytes(file: Path, name: str) -> int:
    """A figure of a file in /proc, such as `VmHWM:  1234 kB`."""
    lines = (line.split() for line in file.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{name}:")


class AdaptiveBatch:
    """Calls a function on at most `size` rows of a batch at once; `size` is halved for good when memory runs out."""

    def __init__(self, size: int, notify: Callable[[str], None]) -> None:
        self.size = size
        self._notify = notify

    def run(self, function: Callable[[slice], list[Result]], rows: int) -> list[Result]:
        """The results for rows 0 to `rows` - 1; `function` returns one for each row of the slice that it is given.

        Raises UserError when memory doesn't suffice for a single row.
        """
        results: list[Result] = []
        while len(results) < rows:
            part = slice(len(results), min(len(results) + self.size, rows))
            if (done := unless_out_of_memory(partial(function, part))) is not None:
                results += done
                continue
            tried = part.stop - part.start
            if tried == 1:
                raise UserError(
                    "memory runs out with a single image: lower num_beams or max_new_tokens, or set mixed_precision"
                )
            self.size = -(-tried // 2)
            self._notify(f"out of memory with {tried} images at once: going on with {self.size}")
        return results
