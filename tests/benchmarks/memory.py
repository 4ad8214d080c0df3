"""What each option costs and saves: peak memory and seconds per image of training a model of the base size.

`python -m tests.benchmarks.memory` trains with each option, in a process of its own, and prints a table in Markdown.
The first row is the original script's way: the native class in bf16, AdamW with Kahan summation, its processor in the
loop. On a CPU the memory is what is resident, libraries included; checkpoints aren't counted.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from florence2ner import Callback, TrainConfig, Update, train
from florence2ner.data.layouts.pairs import read_captions
from florence2ner.engine.memory import Memory
from florence2ner.engine.runtime import resolve_mixed_precision
from florence2ner.model.checkpoints.scratch import init_model
from tests.benchmarks.machine import Machine
from tests.benchmarks.training import ACCUMULATION, Original, make_dataset

UPDATES = 3  # the first is left out: it makes the optimizer's state
ORIGINAL = "the original script's way"
BF16 = {"mixed_precision": "bf16"}
KAHAN = BF16 | {"weights_dtype": "bf16", "optimizer": "optimi_adamw"}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "`--no-gradient-checkpointing`": {"gradient_checkpointing": False},
    "`--activation-offload disk`": {"activation_offload": "disk"},
    "`--no-gradient-checkpointing --activation-offload disk`": {
        "gradient_checkpointing": False,
        "activation_offload": "disk",
    },
    "`--mixed-precision bf16`": BF16,
    "`--mixed-precision bf16 --weights-dtype bf16 --optimizer optimi_adamw`": KAHAN,
    "`--optimizer adafactor`": {"optimizer": "adafactor"},
    "`--ema-decay 0.999`": {"ema_decay": 0.999},
    "`--lora-rank 16`": {"lora_rank": 16},
    "`--lora-rank 16 --no-gradient-checkpointing`": {"lora_rank": 16, "gradient_checkpointing": False},
    "`--no-freeze-vision`": {"freeze_vision": False},
    "`--no-freeze-vision --no-gradient-checkpointing`": {"freeze_vision": False, "gradient_checkpointing": False},
}


class Watch(Callback):
    """Measures the updates after the first."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = Memory(machine.device, None, shared_by=1)
        self.start = self.seconds = 0.0
        self.peak = 0

    def on_update(self, step: int, update: Update) -> None:
        self.machine.wait()
        if step == 1:
            self.memory.restart()
            self.start = time.perf_counter()
        else:
            self.seconds, self.peak = (time.perf_counter() - self.start) / (step - 1), self.memory.peak()


def measure(name: str, folder: Path, batch_size: int, machine: Machine) -> tuple[int, float]:
    """Peak memory in bytes and seconds per image of one row, in this process."""
    images = batch_size * ACCUMULATION
    watch = Watch(machine)
    if name == ORIGINAL:
        original = Original(machine, folder / "photos", batch_size)
        for step in range(1, UPDATES + 1):
            original.epoch()
            watch.on_update(step, None)  # type: ignore[arg-type]
    else:
        config = TrainConfig(
            dataset_path=folder / "photos",
            model_name=str(folder / "model"),
            output_dir=folder / "checkpoints",
            run_name=f"run-{list(OPTIONS).index(name)}",
            max_steps=UPDATES,
            train_batch_size=batch_size,
            gradient_accumulation_steps=ACCUMULATION,
            feature_cache_dir=folder / "features",
            eval_steps=None,
            save_steps=None,
            log_with=("none",),
            **{"mixed_precision": machine.precision} | OPTIONS[name],
        )
        train(config, callbacks=[watch])
    return watch.peak, watch.seconds / images


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=4, help="images per micro-batch, of which an update has two")
    parser.add_argument("--precision", default="auto", choices=["auto", "no", "bf16"], help="of the forward pass")
    parser.add_argument("--only", help="one row, in this process, in the folder of --folder")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    machine = Machine(torch.device(arguments.device), resolve_mixed_precision(arguments.precision))
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.folder, arguments.batch_size, machine)))
        return
    print(f"{machine}, base size, micro-batches of {arguments.batch_size}\n", flush=True)
    print("| | peak memory, GB | seconds per image |\n|---|---|---|", flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_dataset(folder, arguments.batch_size * ACCUMULATION)
        init_model(folder / "model", preset="base", captions=read_captions(photos), seed=0)
        for row in (ORIGINAL, *OPTIONS):
            command = [sys.executable, "-m", "tests.benchmarks.memory", "--only", row, "--folder", name]
            command += ["--device", arguments.device, "--batch-size", str(arguments.batch_size)]
            command += ["--precision", machine.precision]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            peak, seconds = json.loads(told.splitlines()[-1])
            print(f"| {row} | {peak / 1e9:.2f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
