"""What every benchmark measures with: turns, the machine's matmul peak, peak memory."""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from florence2ner.data.loader import Workers

MATRIX = {"cpu": 2048, "cuda": 8192}  # rows that are enough for the peak, and not too many for a laptop


@dataclass(frozen=True)
class Machine:
    """Where a benchmark runs, and in which precision: the one that `mixed_precision: auto` gives."""

    device: torch.device
    precision: str  # "no" or "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def workers(self) -> Workers:
        """Those that `florence2ner train` takes by default; the references get as many."""
        return Workers.for_device(self.device, processes=None, prefetch=None, pin_memory=None)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that `work` takes, until the device is done with it."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def matmul_peak(self) -> float:
        """Most floating-point operations a second, of several tries at multiplying two square matrices."""
        size = MATRIX[self.device.type]
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * size**3 / min(self.time(lambda: a @ b) for _ in range(20))

    def peak_memory(self) -> int:
        """Bytes: the most that this process has held, allocated on the GPU or resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        return f"{name}, precision {self.precision}, torch {torch.__version__}"


def take_turns(
    machine: Machine, contestants: Mapping[str, Callable[[], object]], *, seconds: float, rounds: tuple[int, int]
) -> dict[str, list[float]]:
    """Seconds of each contestant, A B C A B C ..., so that a machine that drifts is as slow for all.

    Not fewer than the first number of `rounds`; then more while less than `seconds` have gone by, up to the second.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.perf_counter()
    least, most = rounds
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for name, work in contestants.items():
            taken[name].append(machine.time(work))
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in taken.items()}
