"""Whole checkpoints: what a full disk leaves, and a kill at any moment of a save."""

from pathlib import Path

import pytest

from florence2ner import UserError, load_model, train
from florence2ner.engine.run_files import list_checkpoints
from tests.conftest import MakeConfig, Start


def test_a_full_disk_leaves_the_last_checkpoint_and_one_clear_line(make_config: MakeConfig, small_disk: Path) -> None:
    # 7 MB of weights and 14 MB of optimizer state: the first checkpoint fits, the second does not.
    config = make_config(output_dir=small_disk, save_steps=1, eval_steps=None, freeze_vision=False)
    with pytest.raises(UserError, match=r"the disk is full, .*/step-2 can't be written: free .* resume from"):
        train(config)
    (only,) = list_checkpoints(config.run_dir)
    assert only.name == "step-1"
    assert not list(config.run_dir.glob(".unfinished-*"))
    load_model(only)
    assert (only / "state" / "train_state.json").exists()


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    """One process forks a child per try; each child saves over and over until it is killed. See programs/saver.py."""
    done = start("tests.programs.saver", tiny_model, tmp_path / "run", 25).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 25
    assert sum("interrupted" in line for line in lines) >= 10, "the kills must hit saves that were under way"
