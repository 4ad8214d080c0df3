"""Saves checkpoints until it is killed, many times over: `python -m tests.programs.saver MODEL RUN_DIR TRIES`.

Importing torch takes seconds, so one parent imports and loads everything and forks a child per try. The parent kills it
with SIGKILL at a random moment of its saving, then looks at what is on the disk, as the next start of a run would.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from florence2ner.display import hide_lines_of_libraries
from florence2ner.engine.checkpoint import Retention, save_checkpoint, sweep
from florence2ner.engine.run_files import TrainState, list_checkpoints, load_train_state
from florence2ner.engine.runtime import make_accelerator
from florence2ner.model.checkpoints.loading import load_model, save_model


def main(model_dir: Path, run_dir: Path, tries: int) -> None:
    torch.set_num_threads(1)
    hide_lines_of_libraries()
    accelerator = make_accelerator("no", seed=0)
    model, processor = load_model(model_dir)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer = accelerator.prepare(optimizer)
    rng = random.Random(0)
    norm = model.model.multi_modal_projector.image_proj_norm.weight

    def export(directory: Path) -> None:
        save_model(model, processor, directory)

    def save(step: int) -> None:
        torch.nn.init.constant_(norm, step)  # each checkpoint tells whose it is
        save_checkpoint(accelerator, run_dir, TrainState(step=step), export, retention=Retention(2))

    run_dir.mkdir()
    for step in (1, 2):  # the first takes longer
        start = time.monotonic()
        save(step)
        seconds = time.monotonic() - start
    for attempt in range(tries):
        before = list_checkpoints(run_dir)[-1]
        step = load_train_state(before).step
        child = os.fork()
        if child == 0:
            while True:
                step += 1
                save(step)
        time.sleep(rng.uniform(0, 1.5 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        leftovers = sorted(path.name for path in run_dir.glob(".unfinished-*"))
        newest = list_checkpoints(run_dir)[-1]
        state = load_train_state(newest)
        assert newest.name == f"step-{state.step}"
        assert state.step >= step
        weights = load_file(newest / "model.safetensors")
        assert (weights["model.multi_modal_projector.image_proj_norm.weight"] == state.step).all()
        assert torch.load(newest / "state" / "optimizer.bin", weights_only=True).keys() == {"state", "param_groups"}
        linked = (run_dir / "latest").resolve()
        assert linked in {newest, *list_checkpoints(run_dir)}, "latest must point to a whole checkpoint"
        sweep(run_dir)
        assert not list(run_dir.glob(".unfinished-*"))
        print(attempt, newest.name, f"interrupted {leftovers}" if leftovers else "between saves", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
