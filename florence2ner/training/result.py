"""The result of a training run, for the program that called `train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import broadcast_object_list

from florence2ner.engine.run_files import PREFIX, TrainState
from florence2ner.engine.tracking import read_metrics
from florence2ner.evaluation.compare import Comparison
from florence2ner.training.context import Context

_NO_FIGURES = {"step", "time"}  # of a logged line


@dataclass(frozen=True)
class TrainResult:
    """What a training run has come to, the same in all processes."""

    checkpoint: Path  # the last one; `load_model`, `evaluate` and `caption` take it
    best: Path | None  # the one with the best metric_for_best; None where none was evaluated at its own step
    run_dir: Path  # the folder of the run
    figures: Mapping[str, float]  # the last value of each metric that was logged, such as "eval/loss"
    # All logged lines of the run, those before a resume included: step, time (Unix, in seconds) and metrics. Empty with
    # log_with none.
    history: tuple[Mapping[str, float], ...]
    comparison: Comparison | None = None  # of the first evaluation with the best, where there were two


def result_of(
    context: Context, state: TrainState, checkpoint: Path, comparison: Comparison | None = None
) -> TrainResult:
    """The result of a run whose last checkpoint is this. Every process must call this."""
    run_dir = checkpoint.parent
    lines = [read_metrics(run_dir) if context.accelerator.is_main_process else ()]  # the only one that has written them
    broadcast_object_list(lines)
    (history,) = lines
    figures = {name: value for line in history for name, value in line.items() if name not in _NO_FIGURES}
    best = run_dir / f"{PREFIX}{state.best_step}"  # of a fork, it may be in the folder of the other run
    found = state.best_step is not None and best.is_dir()
    return TrainResult(checkpoint, best if found else None, run_dir, figures, history, comparison)
