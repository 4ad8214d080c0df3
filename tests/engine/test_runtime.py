"""What the launcher tells: processes that do not see each other, and a precision that nobody chose."""

from pathlib import Path

import pytest

from florence2ner.engine.checkpoint import list_checkpoints
from florence2ner.engine.runtime import precision_note
from tests.conftest import MakeConfig, Start
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
