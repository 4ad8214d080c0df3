"""The evaluations of a training run, kept in its folder: `evaluations/step-00000100.json`, a file for each."""

import json
from pathlib import Path

from florence2ner.evaluation.result import Evaluation, as_json
from florence2ner.evaluation.rows import Row, rows_from_json
from florence2ner.files import EVALUATIONS, write_text


def write_record(run_dir: Path, step: int, result: Evaluation) -> None:
    """Keep an evaluation: its figures, all captions, and the loss of the other images. Raises OSError."""
    path = _path(run_dir, step)
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps({"step": step} | as_json(result), ensure_ascii=False) + "\n")


def recorded_steps(run_dir: Path) -> list[int]:
    """The updates after which evaluations are kept, in order."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run_dir / EVALUATIONS).glob("step-*.json"))


def read_rows(run_dir: Path, step: int) -> tuple[Row, ...]:
    """What an evaluation found out about each image."""
    return rows_from_json(json.loads(_path(run_dir, step).read_text(encoding="utf-8")))


def read_figures(run_dir: Path, step: int) -> dict[str, float]:
    """The metrics of an evaluation."""
    figures: dict[str, float] = json.loads(_path(run_dir, step).read_text(encoding="utf-8"))["figures"]
    return figures


def rewind_records(run_dir: Path, step: int) -> None:
    """Remove evaluations of later steps than `step`, since a resumed run makes them again."""
    for later in recorded_steps(run_dir):
        if later > step:
            _path(run_dir, later).unlink(missing_ok=True)


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / EVALUATIONS / f"step-{step:08d}.json"
