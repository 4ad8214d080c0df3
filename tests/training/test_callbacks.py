"""Callbacks: told of updates, evaluations and saves after they happened, and able to end a run."""

import json
from pathlib import Path

import pytest

from florence2ner import Callback, Evaluation, Update, train
from florence2ner.engine.run_files import list_checkpoints
from tests.conftest import MakeConfig, Start
from tests.support import figures, files_in, weights, write
from tests.training.test_run_folder import assert_same_bits

EVENTS = {"epochs": 2, "eval_steps": 2, "save_steps": 3, "save_total_limit": None, "eval_before_training": True}


class Diary(Callback):
    """Writes down what it is told, and looks at what is on the disk at that moment."""

    def __init__(self, run_dir: Path, end_at: int | None = None) -> None:
        self.run_dir, self.end_at = run_dir, end_at
        self.lines: list[tuple[str, int]] = []
        self.losses: dict[str, dict[int, float]] = {"update": {}, "evaluation": {}}

    def on_update(self, step: int, update: Update) -> bool:
        self.lines.append(("update", step))
        self.losses["update"][step] = update.loss
        assert figures(self.run_dir, "train/loss")[step] == update.loss, "it is logged already"
        return step == self.end_at

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self.lines.append(("evaluation", step))
        self.losses["evaluation"][step] = evaluation.loss
        assert len(evaluation.captions) == 2
        assert figures(self.run_dir, "eval/loss")[step] == evaluation.loss

    def on_save(self, step: int, checkpoint: Path) -> None:
        self.lines.append(("save", step))
        assert checkpoint == self.run_dir / f"step-{step}"
        assert weights(checkpoint)
        assert (self.run_dir / "latest").resolve() == checkpoint


def test_each_thing_is_told_after_it_happened_and_a_run_that_a_callback_ends_goes_on_exactly(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(run_name="whole", keep_states=True, **EVENTS)
    diary, silent = Diary(config.run_dir), Callback()
    whole = train(config, callbacks=(silent, diary))
    assert diary.lines == [
        ("evaluation", 0),
        ("update", 1),
        *(("update", 2), ("evaluation", 2)),
        *(("update", 3), ("save", 3)),
        *(("update", 4), ("evaluation", 4)),
        ("update", 5),
        *(("update", 6), ("evaluation", 6), ("save", 6)),
    ]
    config = make_config(run_name="ended", **EVENTS)
    first, second = Diary(config.run_dir, end_at=4), Diary(config.run_dir)
    ended = train(config, callbacks=[first])
    assert "a callback ends the run after update 4" in capsys.readouterr().err
    assert ended.checkpoint.name == "step-4"
    assert first.lines[-3:] == [("update", 4), ("evaluation", 4), ("save", 4)]
    resumed = train(config.model_copy(update={"resume": "latest"}), callbacks=[second])
    assert second.lines == [("update", 5), ("update", 6), ("evaluation", 6), ("save", 6)]
    assert_same_bits(whole.checkpoint, resumed.checkpoint)
    for kind, losses in diary.losses.items():
        assert first.losses[kind] | second.losses[kind] == losses


class Faulty(Callback):
    """A callback with a bug that shows in the fourth update."""

    def on_update(self, step: int, update: Update) -> None:
        if step == 4:
            raise ZeroDivisionError("a bug")


def test_a_bug_in_a_callback_shows_and_leaves_the_checkpoints_whole(make_config: MakeConfig) -> None:
    whole = train(make_config(run_name="whole", epochs=2, eval_steps=None, save_steps=3)).checkpoint
    config = make_config(run_name="faulty", epochs=2, eval_steps=None, save_steps=3)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train(config, callbacks=[Faulty()])
    assert [path.name for path in list_checkpoints(config.run_dir)] == ["step-3"]
    assert not [name for name in files_in(config.run_dir) if "unfinished" in name]
    resumed = train(config.model_copy(update={"resume": "latest"})).checkpoint
    assert_same_bits(whole, resumed)


@pytest.mark.slow
def test_one_process_of_two_ends_the_run_of_both_and_both_have_its_result(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    config = make_config(max_steps=5, gradient_accumulation_steps=1, eval_steps=3, save_steps=None)
    done = start("tests.programs.watching", write(config, tmp_path), tmp_path, processes=2).wait()
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == other
    assert one["told"] == ["update 1", "update 2", "save 2"]
    assert one["checkpoint"] == str(config.run_dir / "step-2")
    assert [line["step"] for line in one["history"]] == [1, 2]
