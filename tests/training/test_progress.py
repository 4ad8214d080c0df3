"""Updates whose numbers are none: skipped, named, and after too many of them the end."""

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress as RichProgress
from safetensors.torch import load_file, save_file

from florence2ner import UserError, train
from florence2ner.data.batch import Window
from florence2ner.demo import draw_dataset
from florence2ner.display import Bar, Display
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.runtime import make_accelerator
from florence2ner.training.context import Context
from florence2ner.training.progress import Progress
from florence2ner.training.step import Update
from tests.conftest import MakeConfig
from tests.support import history, weights


def test_numbers_that_are_none_are_skipped_and_named(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    draw_dataset(data, 8, seed=1)
    (data / "0003.txt").write_text("a small red star " * 12)
    model = tmp_path / "poisoned"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.language_model.decoder.embed_positions.weight"][32:] = float("nan")  # only long captions reach it
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    common = {"model_name": str(model), "dataset_path": data, "eval_steps": None, "gradient_accumulation_steps": 1}

    config = make_config(**common, run_name="skipped", train_batch_size=2, epochs=2)
    last = train(config).checkpoint
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.endswith("it is skipped")]
    assert len(skipped) == 2
    assert all("0003.png" in line for line in skipped)
    assert [line["train/skipped_updates"] for line in history(config.run_dir)][-1] == 2
    after = weights(last)
    changed = [name for name, value in after.items() if not torch.equal(value, tensors[name])]
    assert changed
    assert all(after[name].isfinite().all() for name in changed if "embed_positions" not in name)

    with pytest.raises(UserError, match=r"not finite .*0003.png.*the 2th in a row.*last good checkpoint: none yet"):
        train(make_config(**common, run_name="stopped", train_batch_size=8, epochs=3, max_bad_updates=2))


def test_a_loss_scale_that_is_being_found_is_no_bad_update(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_bad_updates=2)
    context = Context(config, make_accelerator("no", seed=0), Display(is_main=True))
    state = TrainState()
    checkpoints = SimpleNamespace(last=None)
    with context.display.bar("training", total=9) as bar:
        progress = Progress(context, state, 1, bar, checkpoints)
        numbers = {"loss_sum": 2.0, "tokens": 1, "samples": 1, "learning_rate": 0.0}
        for _ in range(4):
            progress.count(Window(()), Update(**numbers, gradient_norm=math.inf, skipped=True))
        assert (state.skipped_updates, state.skipped_in_a_row) == (4, 0)
        progress.count(Window(()), Update(**numbers, gradient_norm=math.inf, skipped=True, suspects=("a.png",)))
        assert (state.skipped_updates, state.skipped_in_a_row) == (5, 1)
    assert capsys.readouterr().err.count("not finite") == 1


@pytest.mark.parametrize(
    ("changes", "epoch", "label"),
    [
        ({"epochs": 3}, "0.50/3", "eval"),
        ({"max_steps": 9, "metric_for_best": "eval/exact_match"}, "0.50", "exact_match"),
    ],
)
def test_the_bar_shows_epoch_loss_evaluation_and_speed(
    make_config: MakeConfig, changes: dict[str, object], epoch: str, label: str
) -> None:
    context = Context(make_config(**changes), make_accelerator("no", seed=0), Display(is_main=True))
    rich = RichProgress(disable=True)
    progress = Progress(context, TrainState(), 4, Bar(rich, 9, 0), SimpleNamespace(last=None))
    shown = []
    for value in (None, 0.25, None):  # evaluations, of which one gave the metric
        progress.note_evaluation(value)
        progress.start_clock()
        state = progress._state
        state.samples_seen = 0
        progress.count(Window(()), Update(loss_sum=2.0, tokens=1, samples=2, learning_rate=1e-3, gradient_norm=1.0))
        progress.log()
        shown.append(re.sub(r"images/s [\d.]+", "images/s N", rich.tasks[0].fields["figures"]))
    before = f"epoch {epoch}  loss 2.0000  images/s N  lr 1.00e-03"
    after = f"epoch {epoch}  loss 2.0000  {label} 0.2500  images/s N  lr 1.00e-03"
    assert shown == [before, after, after]
