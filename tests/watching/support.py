"""Folders as runs leave them, written by hand."""

import json
from pathlib import Path

from florence2ner.watching.record import RECORD_FILE

STARTED = 1_700_000_000.0  # Unix time


def make_run(folder: Path, steps: int = 4, **record: object) -> Path:
    """A run of ten updates that made `steps`, two seconds each, and was evaluated after each second one."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        values = {"train/loss": 1 / step, "train/learning_rate": 1e-5, "train/images_per_second": 8.0}
        lines.append({"step": step, "time": STARTED + 2 * step} | values | {"train/epoch": step / 5})
        if step % 2 == 0:
            found = {"eval/loss": abs(step - 2) + 0.5, "eval/exact_match": step / 10}
            lines.append({"step": step, "time": STARTED + 2 * step + 1} | found)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("epochs: 2\nmax_steps: null\n")
    facts: dict[str, object] = {"started": STARTED, "first_step": 0, "total_steps": 10, "processes": 1}
    (folder / RECORD_FILE).write_text(json.dumps(facts | record))
    return folder


def evaluate(run: Path, step: int, prediction: str) -> Path:
    """Write what an evaluation leaves."""
    file = run / "evaluations" / f"step-{step:08d}.json"
    file.parent.mkdir(exist_ok=True)
    row = {"image": "a.png", "references": ["a red\nstar", "another"], "prediction": prediction}
    file.write_text(json.dumps({"step": step, "figures": {"eval/loss": 1.0}, "captions": [row] * 3}))
    return file
