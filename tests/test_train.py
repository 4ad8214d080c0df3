"""The three commands on the tiny model: files, figures, freezing, two real processes, and what bad input gets."""

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2ner import CaptionConfig, EvalConfig, TrainConfig, UserError, caption, evaluate, train
from florence2ner.cli import main
from florence2ner.data.formats import sidecar_of
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.demo import draw_dataset
from florence2ner.model.checkpoints.loading import load_model
from tests.conftest import ColdStart, Start

MakeConfig = Callable[..., TrainConfig]
EXPORT = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
STATE = {"optimizer.bin", "random_states_0.pkl", "train_state.json"}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def figures(run_dir: Path, name: str) -> dict[int, float]:
    """Value of a metric at each step where it was logged."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_train_then_eval_then_caption(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(epochs=2, save_steps=2, save_total_limit=2, eval_steps=4)
    last = train(config)  # 22 images to train on, 2 held out: 3 updates an epoch, the last one short
    assert last == config.run_dir / "step-6"
    assert files_in(config.run_dir) == (
        {"config.yaml", "metrics.jsonl", "split.json"}
        | {f"{step}/{name}" for step in ("step-4", "step-6") for name in EXPORT}
        | {f"step-6/state/{name}" for name in STATE}
    )
    assert (config.run_dir / "latest").resolve() == last
    assert (config.run_dir / "best").resolve() in {config.run_dir / "step-4", last}
    assert TrainConfig.model_validate(yaml.safe_load((config.run_dir / "config.yaml").read_text())) == config
    assert list(figures(config.run_dir, "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert list(figures(config.run_dir, "eval/loss")) == [4, 6], "every eval_steps and at the end, never twice"
    assert figures(config.run_dir, "train/epoch")[3] == 1.0

    model = Florence2ForConditionalGeneration.from_pretrained(last)
    AutoProcessor.from_pretrained(last)
    assert model.generation_config.num_beams == 3

    results = tmp_path / "out" / "results.json"
    common = {"model_name": str(last), "num_beams": 1, "max_new_tokens": 8, "batch_size": 5}
    result = evaluate(EvalConfig(dataset_path=config.dataset_path, output=results, **common))
    written = json.loads(results.read_text())
    assert written["loss"] == result.loss
    assert written["perplexity"] == pytest.approx(math.exp(result.loss))
    assert (result.samples, len(result.captions), len(written["captions"])) == (24, 24, 24)
    captured = capsys.readouterr()
    assert "22 of these 24 images were trained on" in captured.err
    assert f"loss {result.loss:.4f}" in captured.out

    folder = tmp_path / "to caption"
    draw_dataset(folder, 3, seed=9, captions=False)
    (folder / "0001.txt").write_text("by hand\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    summary = caption(CaptionConfig(paths=(folder,), **common))
    assert (summary.done, summary.kept, summary.failed) == (2, 1, 1)
    assert files_in(folder) == {f"000{i}.{end}" for i in range(3) for end in ("png", "txt")} | {
        "broken.png",
        "truth.json",
    }
    assert (folder / "0001.txt").read_text() == "by hand\n"
    first = (folder / "0000.txt").read_text()
    assert first.endswith("\n")
    assert first.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["florence2ner", "caption", str(folder), "--model-name", str(last)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3, "some images could not be captioned"
    assert caption(CaptionConfig(paths=(folder / "0001.png",), existing="overwrite", **common)).done == 1
    assert (folder / "0001.txt").read_text() != "by hand\n"


def test_eval_loss_is_the_mean_over_tokens_that_a_plain_loop_gives(shapes: Path, tiny_model: Path) -> None:
    model, processor = load_model(tiny_model)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for sample in discover_samples(shapes, "<CAPTION>").samples:
            inputs = processor(images=Image.open(sample.image), text="<CAPTION>", return_tensors="pt")
            labels = processor.tokenizer(sample.caption, return_tensors="pt").input_ids
            total += model(**inputs, labels=labels).loss.item() * labels.numel()
            tokens += labels.numel()
    result = evaluate(
        EvalConfig(model_name=str(tiny_model), dataset_path=shapes, num_beams=1, max_new_tokens=2, batch_size=7, show=0)
    )
    assert result.tokens == tokens
    assert result.loss == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("part", ["vision", "language", "other"])
def test_a_frozen_part_stays_and_the_rest_learns(make_config: MakeConfig, tiny_model: Path, part: str) -> None:
    frozen = {"freeze_vision": False} | {f"freeze_{part}": True}
    last = train(make_config(max_steps=2, eval_steps=None, save_steps=None, **frozen))
    before, after = load_file(tiny_model / "model.safetensors"), load_file(last / "model.safetensors")
    owner = {
        "vision": "model.vision_tower.",
        "language": "model.language_model.",
        "other": "model.multi_modal_projector.",
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(owner[part]) for name in changed)
    for other in owner.keys() - {part}:
        assert any(name.startswith(owner[other]) for name in changed), other


def test_gradient_checkpointing_changes_nothing_but_memory(make_config: MakeConfig) -> None:
    settings = {"max_steps": 2, "eval_steps": None, "save_steps": None, "freeze_vision": False}
    with_ = train(make_config(run_name="with", gradient_checkpointing=True, **settings))
    without = train(make_config(run_name="without", gradient_checkpointing=False, **settings))
    first, second = load_file(with_ / "model.safetensors"), load_file(without / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_learning_rate_warms_up_and_restarts(make_config: MakeConfig) -> None:
    config = make_config(epochs=4, warmup_steps=4, restarts=2, eval_steps=None, save_steps=None, learning_rate=1e-3)
    train(config)
    total, warmup = 12, 4
    expected = {}
    for update in range(total):
        progress = max(0, (update - warmup) / (total - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * (2 * progress % 1)))
        expected[update + 1] = 1e-3 * (update / warmup if update < warmup else cosine)
    assert figures(config.run_dir, "train/learning_rate") == pytest.approx(expected)


def test_wandb_runs_offline_with_a_table_and_says_how_to_sync(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_steps=1, log_with=("wandb", "tensorboard"), log_every=1)
    train(config)
    assert f"wandb sync {config.run_dir}/wandb/offline-run-*" in capsys.readouterr().err
    (run,) = (config.run_dir / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    (table,) = (run / "files" / "media" / "table" / "eval").glob("*.json")
    assert json.loads(table.read_text())["columns"] == ["truth", "prediction", "image"]
    assert list(config.run_dir.rglob("events.out.tfevents.*"))
    # The resumed run goes on in the W&B run that it left.
    train(make_config(max_steps=2, log_with=("wandb",), resume="latest"))
    runs = list((config.run_dir / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert len({run.name.rsplit("-", 1)[1] for run in runs}) == 1
    assert figures(config.run_dir, "train/loss")


def test_unreadable_images_are_named_and_never_end_a_run(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    draw_dataset(folder / "train", 6, seed=1)
    draw_dataset(folder / "eval", 2, seed=2)
    (folder / "train" / "0003.png").write_bytes(b"")
    (folder / "eval" / "0001.png").write_bytes(b"no picture")
    config = make_config(dataset_path=folder, epochs=1)
    train(config)
    errors = capsys.readouterr().err
    assert "0003.png is skipped: empty file" in errors
    assert "0001.png is left out of the evaluation: not an image that can be read" in errors
    assert figures(config.run_dir, "train/epoch")[1] == pytest.approx(5 / 6)


def test_a_run_directory_with_checkpoints_is_refused(make_config: MakeConfig) -> None:
    config = make_config(max_steps=1, eval_steps=None)
    train(config)
    with pytest.raises(
        UserError, match=r"already has checkpoints: add --resume latest to go on from step-1, choose another --run-name"
    ):
        train(config)


@pytest.mark.slow
def test_two_processes_take_part_and_agree(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    config = make_config(max_steps=2, gradient_accumulation_steps=1, save_steps=None)
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    results, folder = tmp_path / "results.json", tmp_path / "imgs"
    draw_dataset(folder, 5, seed=4, captions=False)
    done = start("tests.three_commands", file, results, folder, processes=2).wait()
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stderr
    assert "5 captioned, 0 kept, 0 failed" in done.stderr
    last = config.run_dir / "step-2"
    assert len(list((last / "state").glob("random_states_*"))) == 2
    assert all(sidecar_of(path).exists() for path in folder.glob("*.png"))

    alone = evaluate(EvalConfig(model_name=str(last), dataset_path=config.dataset_path, num_beams=1, max_new_tokens=4))
    written = json.loads(results.read_text())
    assert written["samples"] == 24
    assert written["loss"] == pytest.approx(alone.loss, rel=1e-6)
    assert [row["image"] for row in written["captions"]] == [row.image for row in alone.captions]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--learnin-rate", "1"], "--learning-rate"),
        (["train"], "dataset_path is missing: give --dataset-path"),
        (["train", "--dataset-path", "nowhere"], "nowhere does not exist"),
        (["train", "--dataset-path", "nowhere", "--epochs", "two"], "--epochs"),
        (["train", "--config", "nowhere.yaml"], "can't read the config file nowhere.yaml"),
        (["caption"], "paths is missing: give PATHS"),
        (["caption", "nowhere"], "there is no file or folder nowhere"),
        (["caption", "--existing", "destroy", "."], "'destroy' is not one of 'skip', 'overwrite'"),
        (["eval", "--dataset-path", "."], "no image with a caption"),
        (["caption", "."], "no image in"),
        (["init-model", "m", "--dataset-path", "."], "no caption"),
        (["train", "--dataset-path", "DATA"], "no image with a caption in"),
        (
            ["caption", "DATA", "--model-name", "nowhere/at-all"],
            "can't find the model nowhere/at-all: give a local dir",
        ),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    data = tmp_path.parent / f"{tmp_path.name}-data"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(data / "alone.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["florence2ner", *(str(data) if arg == "DATA" else arg for arg in args)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not list(tmp_path.iterdir())


def test_help_answers_at_once(cold_start: ColdStart) -> None:
    def seconds(*args: str) -> tuple[float, str]:
        """Processor time of `python ARGS`, since other tests run beside this one; and what it printed."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = cold_start(*args)
        output, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output

    shown = [seconds("-m", "florence2ner", "--help") for _ in range(3)]
    assert all(name in shown[0][1] for name in ("train", "eval", "caption", "init-model", "demo"))
    # Twice what its libraries take, mostly for making the flags. With torch it would be twenty times that.
    yardstick = [seconds("-c", "import pydantic, rich.markdown, typer, yaml") for _ in range(3)]
    assert min(shown)[0] < 4 * min(yardstick)[0]

    _, errors = cold_start("-X", "importtime", "-m", "florence2ner", "--help").communicate(timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in errors.splitlines()}
    assert {"typer", "florence2ner.config.commands"} <= imported
    assert not imported & {"torch", "transformers", "accelerate", "numpy", "PIL"}


def test_train_help_shows_every_setting(command: Start) -> None:
    shown = command("train", "--help").stdout
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in shown, name
    assert "--no-freeze-vision" in shown
