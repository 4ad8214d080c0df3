"""The loop of a run: what a signal or the end of the run changes of what is due after an update."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from florence2ner import load_model, train
from florence2ner.engine.run_files import list_checkpoints
from florence2ner.errors import Interrupted
from florence2ner.training import validation
from tests.conftest import MakeConfig
from tests.support import files_in, history, weights

# The learning rate is so high that every evaluation after the first is worse.
WORSE = {"epochs": 4, "learning_rate": 0.3, "save_steps": 1, "eval_steps": 1, "early_stopping_patience": 3}


def stop_in_evaluations(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Send SIGTERM to this process at the start of the evaluations with these numbers, counted from 1."""
    evaluate_samples, done = validation.evaluate_samples, 0

    def evaluate(*args: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done in numbers:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_samples(*args, **options)

    monkeypatch.setattr(validation, "evaluate_samples", evaluate)


def states(run_dir: Path) -> dict[str, str]:
    """The progress that the checkpoints with a state keep, without the name of the run."""
    texts = {path.parent.parent.name: path.read_text() for path in run_dir.glob("step-*/state/train_state.json")}
    return {
        step: "".join(line for line in text.splitlines() if "tracker_id" not in line) for step, text in texts.items()
    }


def test_a_signal_in_the_evaluation_that_ends_a_run_changes_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = (make_config(run_name=name, **WORSE) for name in ("whole", "stopped"))
    last = train(whole).checkpoint
    evaluations = int(last.name.removeprefix("step-"))

    stop_in_evaluations(monkeypatch, evaluations, evaluations + 1)
    resumed = stopped.model_copy(update={"resume": "latest"})
    with pytest.raises(Interrupted, match=f"after update {evaluations} of .* saved in"):
        train(stopped)
    with pytest.raises(Interrupted, match=f"after update {evaluations} of .* saved in"):
        train(resumed)  # stopped in the evaluation that it came back for: no update is made
    again = train(resumed).checkpoint

    assert again.name == last.name
    assert files_in(stopped.run_dir) == files_in(whole.run_dir)
    assert history(stopped.run_dir) == history(whole.run_dir)
    assert states(stopped.run_dir) == states(whole.run_dir)
    assert (stopped.run_dir / "best").resolve().name == (whole.run_dir / "best").resolve().name
    ours, theirs = weights(again), weights(last)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert "stopping early" in capsys.readouterr().err
    assert train(resumed).checkpoint == again
    assert "was stopped early: raise early_stopping_patience" in capsys.readouterr().err


def test_a_run_that_goes_on_from_another_and_ends_at_once_leaves_that_one_alone(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_config(run_name="first", **WORSE)
    stop_in_evaluations(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train(first)
    (checkpoint,) = list_checkpoints(first.run_dir)[-1:]
    before = states(first.run_dir)
    fork = make_config(run_name="fork", resume=str(checkpoint), **WORSE)
    ended = train(fork).checkpoint
    assert ended == fork.run_dir / checkpoint.name
    assert states(first.run_dir) == before
    load_model(ended)
