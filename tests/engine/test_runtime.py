"""What the launcher starts and tells: processes that do not meet, and a precision that nobody chose."""

from functools import partial
from pathlib import Path

import pytest

from florence2ner.engine.run_files import list_checkpoints
from florence2ner.engine.runtime import NARROW, precision_note, resolve_mixed_precision
from florence2ner.model.checkpoints.loading import width_of
from tests.conftest import MakeConfig, Start
from tests.programs.starting import free_port, launched
from tests.support import write


@pytest.mark.slow
def test_the_launcher_that_makes_strangers_is_refused(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    config = make_config(max_steps=1)
    command = ("florence2ner", "train", "--config", write(config, tmp_path))
    run = start(*command, processes=2, ACCELERATE_USE_CPU="false").wait()
    assert run.returncode == 2
    assert "do not see each other" in run.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in run.stderr
    assert not list_checkpoints(config.run_dir)


@pytest.mark.parametrize(
    ("asked", "told", "fast", "noted"),
    [
        ("auto", "no", True, True),
        ("auto", "no", False, False),
        ("auto", "bf16", True, False),
        ("auto", None, True, False),
        ("no", "no", True, False),
    ],
)
def test_float32_on_a_gpu_that_is_fast_at_bf16_is_named_where_nobody_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, told: str | None, fast: bool, noted: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: fast)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    if told:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    note = precision_note(asked)
    assert ("add --mixed-precision bf16" in (note or "")) == noted
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert precision_note(asked) is None


@pytest.mark.parametrize("able", ["amx_bf16", "avx512_bf16", "avx2"])
def test_auto_is_bf16_where_a_processor_has_it_unless_the_model_is_narrow(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, able: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {able: True})
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    fast = "no" if able == "avx2" else "bf16"
    tiny = partial(width_of, tiny_model)
    assert (tiny() or NARROW) < NARROW
    assert resolve_mixed_precision("auto", tiny) == "no"
    for width, expected in ((NARROW - 1, "no"), (NARROW, fast), (768, fast), (None, fast)):
        assert resolve_mixed_precision("auto", partial(lambda known: known, width)) == expected
    assert resolve_mixed_precision("auto") == fast
    assert resolve_mixed_precision("bf16", tiny) == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert resolve_mixed_precision("auto", tiny) == "fp16"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_is_one_line(
    make_config: MakeConfig, start: Start, tmp_path: Path, rank: int
) -> None:
    file = write(make_config(process_timeout=2), tmp_path)
    run = start("florence2ner", "train", "--config", file, **launched(rank, 2, port := free_port(), machines=2)).wait()
    assert run.returncode == 2, run.stderr
    assert f"error: the 2 processes that were to meet at 127.0.0.1:{port} did not all come within 2 s" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_a_pass_exchanges_gradients_and_nothing_else(start: Start, tiny_model: Path, shapes: Path) -> None:
    run = start("tests.programs.forward", tiny_model, shapes, processes=2).wait()
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["gloo:all_reduce"] * 2, "the buffers are constant: nobody needs to be told them"
