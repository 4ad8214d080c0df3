"""What is said of a run's memory: each number against what it is made of. `test_real_size.py` measures the truth."""

import re
from pathlib import Path

import pytest
from PIL import Image

from florence2ner import TrainConfig, UserError, load_model
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.engine.memory import resident_bytes
from florence2ner.model.checkpoints.adapters import save_adapter
from florence2ner.model.lora import Lora, add_lora
from florence2ner.training.estimate import Estimate, _load, estimate_memory
from tests.conftest import MakeConfig, Start
from tests.data.support import captioned, write_shard
from tests.support import files_in


@pytest.fixture(scope="module")
def plain(tiny_model: Path, shapes: Path) -> dict[str, int]:
    """The numbers of the settings that `make_config` makes of ONE and MANY."""
    settings = ONE | MANY | {"warmup_steps": 0}
    return all_of(estimate_memory(TrainConfig(model_name=str(tiny_model), dataset_path=shapes, **settings)))


ONE = {"gradient_accumulation_steps": 1, "eval_steps": None, "encode_batch_size": 1}
MANY = {"train_batch_size": 24}  # so that activations are more than what the optimizer needs for a moment


def all_of(found: Estimate) -> dict[str, int]:
    return {name: value for name, value in vars(found).items() if name not in ("parameters", "process")}


def test_the_numbers_of_the_tiny_model(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, disk = resident_bytes(), files_in(tmp_path)
    found = estimate_memory(make_config(**ONE))
    model, _ = load_model(tiny_model)
    trained = [p for name, p in model.named_parameters() if not name.startswith("model.vision_tower.")]
    assert found.parameters.total == model.num_parameters()
    assert found.parameters.trainable == sum(weight.numel() for weight in trained)
    whole = 4 * model.num_parameters()
    assert whole < found.weights < 1.01 * whole, "and the position tables"
    assert found.gradients == 4 * found.parameters.trainable
    assert 2 * found.gradients < found.optimizer < 2.001 * found.gradients, "AdamW's two, and its counts of steps"
    assert found.average == 0
    least, most = sorted((before, resident_bytes()))
    assert 0.9 * least < found.process < 1.1 * most
    assert found.saving > found.weights + found.optimizer + whole
    assert found.total == found.process + max(found.update, found.encoding, found.saving)
    assert found.gradients + found.optimizer < found.on_gpu < found.update
    assert files_in(tmp_path) == disk
    printed = capsys.readouterr().out
    assert printed.startswith(f"memory of each process: {tiny_model}, on cpu, in float32\nweights ")
    assert f"{found.parameters.total:,} parameters, {found.parameters.trainable:,} of them trained" in printed
    assert re.search(r"\nactivations .* 4 images from the feature cache, captions of up to \d+ tokens\n", printed)
    assert re.search(rf"\ntotal +{found.total / 1e9:.2f} GB  ", printed)


CHANGES = {
    "gradient_checkpointing": ({"gradient_checkpointing": False}, {"activations"}, set()),
    "ema_decay": ({"ema_decay": 0.9}, {"average"}, set()),
    "lion": ({"optimizer": "lion"}, set(), {"optimizer"}),
    "lora": ({"lora_rank": 2}, {"weights"}, {"gradients", "optimizer"}),
    "bf16": (
        {"weights_dtype": "bf16", "optimizer": "optimi_adamw", "mixed_precision": "bf16"},
        set(),
        {"weights", "gradients", "optimizer"},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_option_changes(make_config: MakeConfig, plain: dict[str, int], name: str) -> None:
    options, more, less = CHANGES[name]
    changed = all_of(estimate_memory(make_config(**ONE | MANY | options)))
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    if "activations" not in more:  # they follow from all of these
        parts = parts[:-1]
    assert {key for key in parts if changed[key] > plain[key]} == more
    assert {key for key in parts if changed[key] < plain[key]} == less


def test_longer_captions_and_a_second_micro_batch_take_more(
    make_config: MakeConfig, shapes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    for path in sorted(shapes.glob("*.png"))[:6]:
        Image.open(path).save(folder / path.name)
        (folder / f"{path.stem}.txt").write_text("a red circle and " * 20)
    settings = ONE | {"gradient_checkpointing": False, "train_batch_size": 16}
    short, long, two = (
        estimate_memory(make_config(**settings | changes))
        for changes in ({}, {"dataset_path": folder}, {"gradient_accumulation_steps": 2})
    )
    assert long.activations > 1.2 * short.activations
    more = two.activations - short.activations
    assert more == pytest.approx(short.gradients, rel=0.5), "gradients are there while the second is computed"


def test_shards_are_not_read(make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "0.tar", captioned("a"))
    settings = ONE | {"dataset_path": tmp_path / "0.tar", "max_steps": 1, "too_long": "skip"}
    found = estimate_memory(make_config(**settings))
    assert found.encoding is None
    assert (
        "4 images from pixels, captions of up to 128 tokens, assumed, as shards are not read" in capsys.readouterr().out
    )


def test_an_adapter_is_built_with_its_base(make_config: MakeConfig, tiny_model: Path, tmp_path: Path) -> None:
    model, processor = load_model(tiny_model)
    lora = Lora(rank=2, alpha=2, dropout=0.0, targets="language", dora=False, rslora=False)
    add_lora(model, lora, base=str(tiny_model), seed=0)
    save_adapter(model, processor, tmp_path / "adapter", layout="original")
    found = estimate_memory(make_config(model_name=str(tmp_path / "adapter"), **ONE))
    asked = estimate_memory(make_config(lora_rank=2, **ONE))
    assert found.parameters == asked.parameters
    assert found.gradients == asked.gradients < 0.1 * found.weights


@pytest.mark.parametrize(("size", "parameters"), [("base", 231_414_016), ("large", 776_465_408)])
def test_microsofts_sizes_are_known_without_a_network(shapes: Path, size: str, parameters: int) -> None:
    model, processor, source = _load(f"microsoft/Florence-2-{size}", discover_samples(shapes, "<CAPTION>").samples)
    assert model.num_parameters() == parameters
    assert all(weight.is_meta for weight in model.parameters())
    assert processor.num_image_tokens == 577
    assert source == f"microsoft/Florence-2-{size}, not at hand: its size is known, tokens are estimates"


def test_mistakes_are_one_line(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="can't find the model nowhere/at-all: give a local directory"):
        estimate_memory(make_config(model_name="nowhere/at-all"))
    with pytest.raises(UserError, match="there is no optimizer 'adamww'"):
        estimate_memory(make_config(optimizer="adamww"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--estimate is for one process: start it without accelerate launch"):
        estimate_memory(make_config())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="--estimate doesn't know how DeepSpeed shares the memory"):
        estimate_memory(make_config())


def test_the_command_prints_and_writes_nothing(command: Start, tmp_path: Path, shapes: Path, tiny_model: Path) -> None:
    done = command("train", "--estimate", "--dataset-path", shapes, "--model-name", tiny_model, "--log-with", "none")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(memory of .*\n)(\w+ .*[\d.]+ GB.*\n){10,11}", done.stdout)
    assert not files_in(tmp_path)
