"""Activations that wait elsewhere for the backward pass: they come back as they were, and nothing is left of them."""

import gc
import os
import random
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from florence2ner.engine.offload import SMALLEST, HostMemory, Offload, Parked, UnnamedFile, is_in_memory
from florence2ner.errors import UserError
from florence2ner.model.kernels.precision import TrainedWeights
from tests.support import unnamed_files

N = 256  # such that a square of it is moved, in bf16, too
assert SMALLEST <= N * N * 2


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """A context manager in which no file can grow beyond `size` bytes."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


class Counting(HostMemory):
    """Counts what it is given to keep."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def put(self, content: Tensor) -> Parked:
        self.sizes.append(len(content))
        return super().put(content)


@pytest.fixture
def file() -> Iterator[UnnamedFile]:
    file = UnnamedFile("mend it")
    yield file
    file.close()


@pytest.fixture(params=["memory", "file"])
def offload(request: pytest.FixtureRequest, file: UnnamedFile) -> Offload:
    return Offload(HostMemory() if request.param == "memory" else file)


class Halves(Function):
    """Saves views that overlap, in other dtypes, and what is not contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.view(torch.int32), x[:, ::2], x.T, x[:1].expand(N, N), x > 0, x.to(torch.complex64))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        bits, half, turned, row, positive, complex_ = ctx.saved_tensors
        assert (half.stride(), turned.stride(), row.stride()) == ((N, 2), (1, N), (0, 1))
        assert bits.dtype == torch.int32
        return gradient * bits.view(torch.float32) * half.sum() * turned.T * row * positive * complex_.real


def everything(model: nn.Module, x: Tensor, *, checkpointed: bool) -> Tensor:
    """A little of all that a model does."""

    def layer(x: Tensor) -> Tensor:
        return nn.functional.dropout(model.get_submodule("linear")(x), 0.3).relu_()

    x = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
    query, key, value = torch.cat([x, x * 2, x.sin()], dim=1).chunk(3, dim=1)
    x = nn.functional.scaled_dot_product_attention(*(part[None, None] for part in (query, key, value)))[0, 0]
    image = x.exp()[None, :, :, None].expand(1, N, N, 2).contiguous(memory_format=torch.channels_last)
    x = model.get_submodule("convolution")(image).mean(dim=(0, 3))
    view = x[:, : N // 2]
    view.mul_(2)  # a view that needs a gradient, written to
    return Halves.apply(x.where(x > 0, x * x).float()).logsumexp(dim=0).sum()  # type: ignore[no-untyped-call]


def gradients(
    saving: Callable[[nn.Module], AbstractContextManager[None]], *, checkpointed: bool, precision: torch.dtype | None
) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(N, N), "convolution": nn.Conv2d(N, N, 1)})
    x = torch.randn(N, N, requires_grad=True)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=bool(precision)), saving(model):
        loss = everything(model, x, checkpointed=checkpointed)
    loss.backward()
    return [loss, torch.rand(1), *(tensor.grad for tensor in (x, *model.parameters()))]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_gradient_is_the_same_to_the_bit(
    offload: Offload, checkpointed: bool, precision: torch.dtype | None
) -> None:
    plain = gradients(lambda _: nullcontext(), checkpointed=checkpointed, precision=precision)
    moved = gradients(offload.saving, checkpointed=checkpointed, precision=precision)
    assert len(plain) == 7
    assert all(one.isfinite().all() and torch.equal(one, other) for one, other in zip(plain, moved, strict=True))


def test_weights_and_small_tensors_stay_and_each_storage_is_moved_once() -> None:
    place = Counting()
    model = nn.Sequential(nn.Linear(N, N), nn.GELU(), nn.Linear(N, 1))
    model.register_buffer("table", torch.randn(N, N))
    with torch.autocast("cpu", torch.bfloat16), Offload(place).saving(model):
        x = torch.randn(N, N, requires_grad=True)
        loss = model(x + model.get_buffer("table")).sum()  # the layers save what they get, cast, and GELU what it gets
    assert place.sizes == [N * N * 2] * 3
    place.sizes.clear()
    weights = TrainedWeights()
    weights.adopt(model, torch.bfloat16)
    with weights.held(), torch.autocast("cpu", torch.bfloat16), Offload(place).saving(model):
        loss = model(torch.randn(N, N, requires_grad=True) * 2).sum()
    assert place.sizes == [N * N * 2] * 3
    place.sizes.clear()
    x = torch.randn(N, N, requires_grad=True)
    with Offload(place).saving(model):
        loss = (x.view(-1) * x.T.reshape(-1)).sum() + x.exp().square().sum() + (x[:, 1:] * x[:, :-1]).sum()
    assert place.sizes == [N * N * 4] * 3  # x, its transpose as a copy, and its exponential
    loss.backward()


def test_the_inputs_of_checkpointed_layers_are_moved() -> None:
    place, layer = Counting(), nn.Sequential(nn.Linear(N, N), nn.GELU(), nn.Linear(N, N))
    x = torch.randn(N, N, requires_grad=True)
    with Offload(place).saving(layer):
        for _ in range(3):
            x = checkpoint(layer, x, use_reentrant=False)
    assert place.sizes == [N * N * 4] * 3


def test_what_is_written_to_later_comes_back_as_it_was_or_is_an_error(offload: Offload) -> None:
    x = torch.randn(N, N, requires_grad=True)
    with offload.saving(nn.Module()):
        y = x * 1
        first = (y * y).sum()
        y.detach().zero_()
        second = (y * y).sum()  # the same storage with other values
    (first + second).backward()
    torch.testing.assert_close(x.grad, 2 * x)

    small = torch.ones(3, requires_grad=True)
    with offload.saving(nn.Module()):
        y = small * 1
        z = (y * y).sum()
        y.detach().zero_()
    with pytest.raises(RuntimeError, match="has been modified in place"):
        z.backward()


class Failing(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise MemoryError


def test_the_file_is_used_again_also_after_an_error_and_never_has_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file, weight = UnnamedFile("mend it"), nn.Linear(N, N)
    offload = Offload(file)

    def forward(*, last: Callable[[Tensor], Tensor]) -> Tensor:
        with offload.saving(weight):
            x = torch.randn(N, N)
            for _ in range(5):
                x = weight(x).sigmoid()
            return last(x).sum()

    forward(last=torch.exp).backward()
    (size,) = unnamed_files(tmp_path)
    assert size == 7 * N * N * 4  # the first input, five outputs that are the next one's inputs, and the last
    for last in (torch.exp, Failing.apply, lambda x: x / ""):
        for _ in range(2):
            try:
                forward(last=last).backward()
            except (MemoryError, TypeError):
                gc.collect()
            assert unnamed_files(tmp_path) == [size]
    assert list(tmp_path.iterdir()) == []
    file.close()
    assert unnamed_files(tmp_path) == []


def test_parts_of_all_sizes_never_overlap(file: UnnamedFile) -> None:
    draw, parts = random.Random(0), {}
    for number in range(600):
        content = torch.full((draw.choice([1, 4095, 4096, 9000, 50_000]),), number % 256, dtype=torch.uint8)
        parts[number] = content, file.put(content)
        while len(parts) > 20 or (parts and draw.random() < 0.4):
            expected, part = parts.pop(draw.choice(list(parts)))
            assert torch.equal(part.get(), expected)
    assert os.fstat(file._file.fileno()).st_size < 40 * 50_000


def test_a_full_disk_is_one_clear_line_and_the_room_is_there_again(file: UnnamedFile) -> None:
    content = torch.arange(100_000, dtype=torch.uint8)
    with room_for(150_000):
        part = file.put(content)
        with pytest.raises(UserError) as error:
            file.put(content)
        assert str(error.value) == f"can't keep activations in {tempfile.gettempdir()} (File too large): mend it"
        assert torch.equal(part.get(), content)
        del part
        assert torch.equal(file.put(content).get(), content)


def test_no_folder_for_the_file_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"can't keep activations in .*none \(No such file or directory\): mend it"):
        UnnamedFile("mend it")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs Linux")
def test_a_folder_in_memory_is_known() -> None:
    assert is_in_memory(Path("/dev/shm"))
    assert not is_in_memory(Path("/proc"))
