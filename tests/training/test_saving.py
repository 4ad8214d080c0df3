"""The checkpoints of a run: whole models in full precision, and the ones that stay."""

import shutil
from pathlib import Path

import pytest
import torch

from florence2ner import load_model, train
from florence2ner.engine.run_files import list_checkpoints
from tests.conftest import MakeConfig, Start
from tests.programs.starting import free_port, launched
from tests.support import finish, weights, write

PLAIN = {"eval_steps": None, "feature_cache": "off"}


@pytest.mark.parametrize(("frozen", "cache"), [("vision", "off"), ("vision", "memory"), ("language", "off")])
def test_a_checkpoint_holds_all_weights_in_full_though_frozen_ones_are_cast_in_training(
    make_config: MakeConfig, tiny_model: Path, frozen: str, cache: str
) -> None:
    settings = {"freeze_vision": frozen == "vision", "freeze_language": frozen == "language"}
    last = train(
        make_config(max_steps=2, mixed_precision="bf16", **PLAIN | {"feature_cache": cache} | settings)
    ).checkpoint
    before, after = weights(tiny_model), weights(last)
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    part = {"vision": "model.vision_tower.", "language": "model.language_model."}[frozen]
    kept = [name for name in before if name.startswith(part)]
    assert any(not torch.equal(before[name], before[name].bfloat16().float()) for name in kept), "bf16 would show"
    assert not [name for name in kept if not torch.equal(before[name], after[name])]
    assert [name for name in before if not torch.equal(before[name], after[name])], "the rest has learnt"
    loaded = load_model(last)[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in after.items())


def test_the_step_that_was_resumed_from_is_never_deleted(make_config: MakeConfig) -> None:
    settings = PLAIN | {"save_steps": 1, "save_total_limit": 1}
    config = make_config(max_steps=2, **settings)
    train(config)
    assert [path.name for path in list_checkpoints(config.run_dir)] == ["step-2"]
    last = train(make_config(max_steps=5, resume="latest", **settings)).checkpoint
    assert [path.name for path in list_checkpoints(config.run_dir)] == ["step-2", "step-5"]
    assert last.name == "step-5"
    assert (config.run_dir / "latest").resolve() == last.resolve()
    with_state = [path.name for path in list_checkpoints(config.run_dir) if (path / "state").exists()]
    assert with_state == ["step-5"], "only the newest keeps its state"


@pytest.mark.parametrize("layout", ["native", "original"])
def test_the_weights_are_written_once_where_the_layout_holds_them_to_the_bit(
    make_config: MakeConfig, layout: str
) -> None:
    last = train(make_config(max_steps=1, export_layout=layout, **PLAIN)).checkpoint
    assert bool(list((last / "state").glob("model*.safetensors"))) == (layout == "original")
    assert load_model(last)[0].config.model_type == "florence2"


@pytest.mark.slow
def test_a_process_that_took_its_tower_back_saves_with_the_others(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    """Two processes with caches of their own; in one cache the features are damaged, which shows when they are read."""
    settings = {"feature_cache": "disk", "eval_steps": None, "train_batch_size": 2, "gradient_accumulation_steps": 1}
    train(make_config(run_name="first", feature_cache_dir=tmp_path / "0" / "features", **settings))
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    features = [path for path in (tmp_path / "1").rglob("*") if path.is_file() and not path.suffix]
    for path in features:
        path.write_bytes(path.read_bytes()[:-1])
    file = write(make_config(feature_cache_dir="features", save_steps=1, max_steps=2, **settings), tmp_path)
    port = free_port()
    running = [
        start("florence2ner", "train", "--config", file, cwd=tmp_path / str(rank), **launched(rank, 2, port))
        for rank in range(2)
    ]
    for process in running:
        finish(process)
    assert not all(path.exists() for path in features), "features were lost on the way"
