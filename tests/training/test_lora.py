"""Runs with LoRA: what they leave alone, what they write, how they go on, and which settings they refuse."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import EvalConfig, TrainConfig, UserError, evaluate, load_model, train
from florence2ner.demo import draw_dataset
from florence2ner.engine.run_files import list_checkpoints
from florence2ner.evaluation.result import Evaluation
from florence2ner.model.checkpoints.loading import convert
from florence2ner.model.lora import adapted_layers, config_of
from tests.conftest import Caption, MakeConfig, Start
from tests.engine.test_sharding import sharded
from tests.model.checkpoints.support import assert_same_weights
from tests.support import figures, files_in, finish, history, weights, write

SHORT = {"lora_rank": 4, "max_steps": 2, "epochs": 9, "eval_steps": None, "learning_rate": 1e-2}
ADAPTER = "adapter_model.safetensors"


def trained(config: TrainConfig) -> Path:
    """The checkpoint that a run ends with."""
    return train(config).checkpoint


def adapter(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / ADAPTER)


@pytest.mark.parametrize("targets", ["language", "vision"])
def test_a_run_trains_adapters_and_leaves_the_model_to_the_bit(
    make_config: MakeConfig, tiny_model: Path, capsys: pytest.CaptureFixture[str], targets: str
) -> None:
    config = make_config(lora_targets=targets, mixed_precision="bf16", export_layout="native", **SHORT)
    last = trained(config)
    said = capsys.readouterr().err
    assert ("once for all" in said) == (targets == "language"), "the feature cache"
    model, _ = load_model(last, merge=False)
    plain = weights(tiny_model)
    names = {name: name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}
    now = {names[name]: tensor for name, tensor in model.state_dict().items() if name in names}
    assert all(torch.equal(now[name], tensor) for name, tensor in plain.items())
    assert {name.split(".")[1] for name in adapted_layers(model)} == {
        {"language": "language_model", "vision": "vision_tower"}[targets]
    }
    learnt = adapter(last)
    assert all(bool(tensor.any()) for name, tensor in learnt.items() if "lora_B" in name)
    assert {tensor.dtype for tensor in learnt.values()} == {torch.float32}
    assert config_of(model).base_model_name_or_path == str(tiny_model)
    assert 'model = PeftModel.from_pretrained(model, "PATH")' in (last / "README.md").read_text()
    assert not [name for name in files_in(last) if name.startswith(("model", "config.json", "state/model"))]


@pytest.mark.parametrize(
    "kind",
    [
        {"lora_targets": "all"},
        {"use_dora": True, "export_layout": "original"},
        {"use_rslora": True, "lora_alpha": 12.5, "lora_targets": r".*encoder.*fc1|.*image_projection"},
        {"ema_decay": 0.5, "label_smoothing": 0.1},
    ],
    ids=["all", "dora, original", "rslora, regex", "averaged"],
)
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(
    make_config: MakeConfig, dropout_model: Path, kind: dict[str, object]
) -> None:
    settings = SHORT | {"lora_dropout": 0.2, "model_name": str(dropout_model), "save_steps": 1, "max_steps": 3} | kind
    whole = trained(make_config(run_name="whole", keep_states=True, **settings))
    fork = trained(make_config(run_name="fork", resume=str(whole.parent / "step-2"), **settings))
    assert files_in(whole) == files_in(fork)
    assert (whole / ADAPTER).read_bytes() == (fork / ADAPTER).read_bytes()
    assert (whole / "adapter_config.json").read_bytes() == (fork / "adapter_config.json").read_bytes()
    assert history(whole.parent)[-1] == history(fork.parent)[-1]
    train(make_config(run_name="fork", resume="latest", lora_merge=True, **settings))  # it is over: merged, no more
    assert_same_weights(load_model(fork.parent / "merged")[0], load_model(fork)[0])
    for change, message in (
        ({"lora_rank": 8}, "the run has lora_rank 4, this command 8: it can't change on the way"),
        ({"lora_dropout": 0.0}, "the run has lora_dropout 0.2, this command 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            train(make_config(run_name="fork", resume="latest", **settings | change))


def measure(model: Path, folder: Path) -> Evaluation:
    return evaluate(
        EvalConfig(model_name=str(model), dataset_path=folder, num_beams=1, max_new_tokens=8, batch_size=8, show=0)
    )


def test_eval_caption_convert_and_merged_take_a_run_for_the_model_that_it_trained(
    make_config: MakeConfig, trained_model: Path, run: Caption, tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    draw_dataset(held_out, 8, seed=6)
    changes = {"model_name": str(trained_model), "max_steps": 4, "eval_steps": 4, "feature_cache": "off"}
    config = make_config(lora_merge=True, eval_path=held_out, **SHORT | changes)
    last = trained(config)
    expected = figures(config.run_dir, "eval/loss")[4]
    convert(str(last), tmp_path / "whole", layout="original")
    results = [measure(model, held_out) for model in (config.run_dir, config.run_dir / "merged", tmp_path / "whole")]
    assert [result.loss for result in results] == pytest.approx([expected] * 3, rel=1e-5)
    assert results[0].captions == results[1].captions == results[2].captions
    assert abs(measure(trained_model, held_out).loss - expected) > 1e-3, "it has learnt"
    captions = []
    for name in ("adapter", "merged"):
        model = last if name == "adapter" else config.run_dir / "merged"
        run(model_name=str(model), output=tmp_path / f"{name}.jsonl")
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        captions.append([json.loads(line)["caption"] for line in lines])
    assert captions[0] == captions[1]
    folders = {name.split("/")[0] for name in files_in(config.run_dir) if "/" in name}
    assert folders - {"latest", "best"} == {last.name, "merged", "evaluations"}


def test_an_adapter_is_trained_on_as_it_is(make_config: MakeConfig, trained_model: Path) -> None:
    kind = {"use_dora": True, "lora_alpha": 6}
    first = trained(make_config(run_name="first", **SHORT | kind | {"model_name": str(trained_model)}))
    on = partial(make_config, **SHORT | {"model_name": str(first.parent), "lora_rank": None})
    second = trained(on(run_name="second"))
    assert (second / "adapter_config.json").read_bytes() == (first / "adapter_config.json").read_bytes()
    before, after = adapter(first), adapter(second)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    again = trained(on(run_name="again", lora_rank=4, **kind))
    assert (again / ADAPTER).read_bytes() == (second / ADAPTER).read_bytes()
    resumed = trained(on(run_name="second", resume="latest", max_steps=3, save_steps=None))
    assert resumed.name == "step-3"
    for changes, message in (
        ({"lora_rank": 8}, r"the adapters of .*/first/step-2 can't be changed .*: their rank is 4, not 8; leave out"),
        ({"freeze_vision": False}, "freeze_vision does nothing with the adapter .*, which freezes the whole model"),
    ):
        with pytest.raises(UserError, match=message):
            train(on(run_name="other", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": None, "lora_merge": True}, "lora_merge does nothing without LoRA"),
        ({"lora_targets": r".*\.qkv", "feature_cache": "memory"}, "keeps what a frozen vision tower makes, but it has"),
        ({"lora_targets": "q_proj"}, "is the whole name of no layer"),
        ({"lora_targets": r".*image_projection", "export_layout": "original"}, "is no layer in Microsoft's code"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    make_config: MakeConfig, changes: dict[str, object], message: str
) -> None:
    config = make_config(**SHORT | changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not list_checkpoints(config.run_dir)


@pytest.mark.slow
def test_two_processes_train_as_one_does(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    settings = SHORT | {"lora_targets": "all", "gradient_accumulation_steps": 1, "lora_merge": True}
    one = make_config(run_name="one", train_batch_size=4, **settings)
    two = make_config(run_name="two", train_batch_size=2, **settings)
    train(one)
    finish(start("florence2ner", "train", "--config", write(two, tmp_path), processes=2))
    for name in ("train/loss", "train/gradient_norm"):
        expected = figures(one.run_dir, name)
        assert len(expected) == 2
        assert figures(two.run_dir, name) == pytest.approx(expected, rel=1e-4)
    assert (two.run_dir / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_sharding_is_refused(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    run = sharded(start, make_config(mixed_precision="no", **SHORT), tmp_path).wait()
    assert run.returncode == 2
    assert "error: LoRA can't be used under FSDP or DeepSpeed" in run.stderr
    assert "Traceback" not in run.stderr
