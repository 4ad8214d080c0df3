"""Train with a callback that ends the run in one process; each writes what it was told and the result.

`python -m tests.programs.watching CONFIG FOLDER`, under `accelerate launch`.
"""

import json
import sys
from pathlib import Path

from florence2ner import Callback, Evaluation, TrainConfig, Update, train
from florence2ner.config.base import load_config
from florence2ner.engine import launcher
from florence2ner.engine.collectives import destroy_process_group


class Watcher(Callback):
    """Notes what happens. The second process asks for an end after update 2."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_update(self, step: int, update: Update) -> bool:
        self.told.append(f"update {step}")
        return step == 2 and launcher.rank() == 1

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self.told.append(f"evaluation {step}")

    def on_save(self, step: int, checkpoint: Path) -> None:
        self.told.append(f"save {step}")


def main(config: TrainConfig, folder: Path) -> None:
    watcher = Watcher()
    result = train(config, callbacks=[watcher])
    values = {"told": watcher.told, "checkpoint": str(result.checkpoint), "history": result.history}
    (folder / f"{launcher.rank()}.json").write_text(json.dumps(values))
    destroy_process_group()


if __name__ == "__main__":
    main(load_config(TrainConfig, {}, Path(sys.argv[1])), Path(sys.argv[2]))
