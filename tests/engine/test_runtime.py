"""Processes that a launcher starts and that do not see each other."""

from pathlib import Path

import pytest

from florence2ner.engine.checkpoint import list_checkpoints
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
