"""Which checkpoint of a run is meant."""

from pathlib import Path

import pytest

from florence2ner.engine.run_files import find_model, find_resume_point, list_checkpoints
from florence2ner.errors import UserError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (2, 10, 9):
        (tmp_path / "run" / f"step-{step}").mkdir(parents=True)
    (tmp_path / "run" / "step-9-old").mkdir()
    return tmp_path / "run"


def test_checkpoints_are_in_the_order_of_their_steps(run_dir: Path) -> None:
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-2", "step-9", "step-10"]


def test_the_folder_of_a_run_means_its_best_checkpoint_else_its_newest(run_dir: Path) -> None:
    assert find_model(str(run_dir)) == str(run_dir / "step-10")
    (run_dir / "best").symlink_to("step-9", target_is_directory=True)
    assert find_model(str(run_dir)) == str(run_dir / "step-9")
    (run_dir / "best").unlink()
    (run_dir / "best").symlink_to("step-3", target_is_directory=True)
    assert find_model(str(run_dir)) == str(run_dir / "step-10"), "the best was deleted by hand"


@pytest.mark.parametrize("name", ["microsoft/Florence-2-base", "run/step-2", "run/best", "empty", "model"])
def test_any_other_name_means_itself(run_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(run_dir.parent)
    (run_dir / "best").symlink_to("step-9", target_is_directory=True)
    Path("empty").mkdir()
    Path("model/step-5").mkdir(parents=True)
    Path("model/config.json").touch()
    assert find_model(name) == name


def test_a_checkpoint_that_is_not_there_is_named_whatever_else_the_run_has(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"can't resume from .*step-11: it does not exist; give a step-<n> folder"):
        find_resume_point(str(run_dir / "step-11"), run_dir)
    with pytest.raises(UserError, match=r"can't resume from .*step-9: it has no training state"):
        find_resume_point(str(run_dir / "step-9"), run_dir)
    (run_dir / "step-9" / "state").mkdir()
    (run_dir / "step-9" / "state" / "train_state.json").touch()
    with pytest.raises(UserError, match=r"already has checkpoints: add --resume latest to go on from step-10"):
        find_resume_point(str(run_dir / "step-9"), run_dir)
