"""The optimizer of a run: rates by part, weights in bf16, averaged weights; each resumes exactly, or is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay

from florence2ner import UserError, train
from florence2ner.model.build import NOTHING, load_captioner
from florence2ner.training.optimization import make_optimizer
from tests.conftest import MakeConfig, Start
from tests.engine.test_sharding import sharded
from tests.support import figures, finish, relative_differences, weights, write
from tests.training.test_run_folder import assert_same_bits

SHORT = {"max_steps": 4, "save_steps": 2, "save_total_limit": None, "keep_states": True, "eval_steps": None}
SHORT |= {"train_batch_size": 2, "gradient_accumulation_steps": 1, "feature_cache": "off"}
BF16 = {"weights_dtype": "bf16", "optimizer": "optimi_adamw", "mixed_precision": "bf16"}
FREE = {"optimizer": "schedulefree_adamw", "lr_schedule": "constant"}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon", "optimizer_args": ("momentum=0.8",)},
        {"optimizer": "bnb_adamw8bit", "export_layout": "original"},
        {"freeze_vision": False, "vision_lr": 1e-4, "other_lr": 2e-3, "layer_decay": 0.5},
        BF16 | {"freeze_vision": False, "export_layout": "original", "optimizer": "optimi_lion"},
        FREE,
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_resumes_exactly(make_config: MakeConfig, dropout_model: Path, settings: dict[str, Any]) -> None:
    settings = SHORT | {"model_name": str(dropout_model)} | settings
    whole = train(make_config(run_name="whole", **settings)).checkpoint
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-2"), **settings)).checkpoint
    assert_same_bits(whole, fork)


def test_parts_have_their_rates_scaled_by_the_schedule_and_logged(make_config: MakeConfig) -> None:
    rates = {"learning_rate": 1e-3, "vision_lr": 1e-4, "other_lr": 2e-3, "freeze_vision": False}
    config = make_config(**SHORT | rates, lr_schedule="linear")
    train(config)
    shares = dict(zip(range(1, 5), (1, 0.75, 0.5, 0.25), strict=True))
    for name, peak in (("", 1e-3), ("_vision", 1e-4), ("_other", 2e-3)):
        logged = figures(config.run_dir, f"train/learning_rate{name}")
        assert logged == pytest.approx({step: peak * share for step, share in shares.items()})
    with pytest.raises(UserError, match=r"the run has vision_lr 0.0001, this command None: it can't change on the way"):
        train(make_config(resume="latest", **SHORT | rates | {"vision_lr": None, "max_steps": 6}))
    plain = make_config(run_name="plain", **SHORT)
    train(plain)
    assert not figures(plain.run_dir, "train/learning_rate_vision")


def test_the_rates_of_the_towers_blocks_are_timms(make_config: MakeConfig, tiny_model: Path) -> None:
    captioner = load_captioner(tiny_model, device=torch.device("cpu"), frozen=NOTHING)
    config = make_config(freeze_vision=False, vision_lr=1e-4, layer_decay=0.7)
    optimizer = make_optimizer(config, captioner)
    ours = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(captioner.vision.tower.named_parameters())
    assert {rate for p, rate in ours.items() if p not in {*names.values()}} == {config.learning_rate}

    depths = captioner.model.config.vision_config.depths
    size = {"embed_dims": (8,) * len(depths), "num_heads": (2,) * len(depths), "num_classes": 0}
    davit = timm.create_model("davit_tiny", depths=tuple(depths), **size)
    davit.head = torch.nn.Identity()  # what would come after the last block
    groups = param_groups_layer_decay(davit, layer_decay=0.7)
    scales = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    found = {name: scales[parameter] for name, parameter in davit.named_parameters()}
    prefixes = {"stem": "convs.0"}
    for stage, count in enumerate(depths):
        prefixes |= {f"stages.{stage}.downsample": f"convs.{stage}"} if stage else {}
        prefixes |= {f"stages.{stage}.blocks.{block}": f"blocks.{stage}.{block}" for block in range(count)}
    assert len({*found.values()}) == sum(depths) + 1
    for name, scale in found.items():
        prefix = next(prefix for prefix in prefixes if name.startswith(f"{prefix}."))
        mine = {ours[p] for key, p in names.items() if key.startswith(f"{prefixes[prefix]}.")}
        assert [*mine] == [pytest.approx(1e-4 * scale)], name


@pytest.mark.parametrize("freezing", [{"freeze_vision": False}, {"freeze_language": True}])
def test_weights_in_bf16_train_and_are_saved_as_such(
    make_config: MakeConfig, tiny_model: Path, freezing: dict[str, bool]
) -> None:
    settings = SHORT | BF16 | freezing | {"eval_steps": 2, "train_batch_size": 8, "max_steps": 6, "save_steps": None}
    last = train(make_config(**settings)).checkpoint
    before, saved = weights(tiny_model), weights(last)
    frozen = {
        "model.vision_tower.": settings.get("freeze_vision", True),
        "model.language_model.": settings.get("freeze_language", False),
        "model.multi_modal_projector.": settings.get("freeze_other", False),
    }
    for name, weight in saved.items():
        (is_frozen,) = (value for prefix, value in frozen.items() if name.startswith(prefix))
        if name.endswith("pos_idx_to_embed"):  # a table that is computed
            continue
        assert weight.dtype == (torch.float32 if is_frozen else torch.bfloat16), name
        assert not is_frozen or torch.equal(weight, before[name]), name
    state = torch.load(last / "state" / "optimizer.bin", weights_only=True)["state"]
    assert {value.dtype for moments in state.values() for value in moments.values() if value.ndim} == {torch.bfloat16}
    loss = figures(last.parent, "eval/loss")
    assert loss[6] < loss[2]


def test_bf16_weights_learn_as_those_in_float32_do(make_config: MakeConfig) -> None:
    losses, norms = {}, {}
    for dtype in ("fp32", "bf16"):
        settings = SHORT | BF16 | {"weights_dtype": dtype, "max_steps": 10, "save_steps": None, "train_batch_size": 4}
        run_dir = train(make_config(run_name=dtype, **settings)).run_dir
        losses[dtype], norms[dtype] = figures(run_dir, "train/loss"), figures(run_dir, "train/gradient_norm")
    assert losses["fp32"][10] < losses["fp32"][1] / 1.3
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert norms["bf16"] == pytest.approx(norms["fp32"], rel=0.1)
    assert norms["bf16"][1] == pytest.approx(norms["fp32"][1], rel=0.01)


def test_an_evaluation_or_a_save_changes_nothing_of_a_schedule_free_run(make_config: MakeConfig) -> None:
    settings = SHORT | FREE | {"warmup_steps": 2, "train_batch_size": 4, "max_steps": 8}
    quiet = train(make_config(run_name="quiet", **settings | {"save_steps": None, "eval_steps": 99})).checkpoint
    config = make_config(run_name="busy", **settings | {"eval_steps": 1, "eval_before_training": True, "save_steps": 3})
    busy = train(config).checkpoint
    exported, other = weights(busy), weights(quiet)
    assert all(torch.equal(weight, other[name]) for name, weight in exported.items())
    trained = load_file(busy / "state" / "model.safetensors")
    moved = [name for name, weight in exported.items() if not torch.equal(weight, trained[f"model.{name}"])]
    trainable = [name for name in exported if "vision_tower" not in name]
    assert len(moved) > len(trainable) / 2, "the average is not what is trained"
    loss = figures(config.run_dir, "eval/loss")
    assert loss[8] < loss[3] < loss[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lion"}, "the run has optimizer adamw, this command lion: it can't change on the way"),
        ({"optimizer_args": ("eps=1e-6",)}, r"the run has optimizer_args \[\], this command \['eps=1e-6'\]: it can't"),
    ],
)
def test_a_resumed_run_keeps_its_optimizer(make_config: MakeConfig, settings: dict[str, Any], message: str) -> None:
    train(make_config(**SHORT | {"max_steps": 2}))
    with pytest.raises(UserError, match=message):
        train(make_config(resume="latest", **SHORT | settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("special", "tolerance"),
    [(FREE | {"other_lr": 1e-4}, 1e-4), (BF16 | {"optimizer_args": ("eps=1e-3",)}, 1e-2)],
    ids=["averaged", "bf16"],
)
def test_two_processes_train_as_one_does(
    make_config: MakeConfig, start: Start, tmp_path: Path, special: dict[str, Any], tolerance: float
) -> None:
    settings = SHORT | special | {"save_steps": None, "max_steps": 3}
    one = train(make_config(run_name="one", **settings | {"train_batch_size": 4})).checkpoint
    config = make_config(run_name="two", **settings)
    finish(start("florence2ner", "train", "--config", write(config, tmp_path), processes=2))
    differences = relative_differences(weights(one), weights(config.run_dir / one.name))
    assert max(value for name, value in differences.items() if not name.endswith("bias")) < tolerance
    rate = "train/learning_rate_other"
    assert figures(config.run_dir, rate) == figures(one.parent, rate)


@pytest.mark.slow
def test_what_was_never_run_on_sharded_weights_is_refused(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    run = sharded(start, make_config(optimizer="lion"), tmp_path).wait()
    assert run.returncode == 2
    assert "error: optimizer lion doesn't work under FSDP: choose adamw, or another launcher" in run.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamx"}, "there is no optimizer 'adamx'. Did you mean adam"),
        ({"optimizer_args": ("momentum=0.5",)}, "optimizer adamw has no momentum: it has betas, eps"),
        (BF16 | {"mixed_precision": "no"}, "weights_dtype bf16 needs a forward pass in bf16, here it is no: add --mix"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_written(
    make_config: MakeConfig, settings: dict[str, Any], message: str
) -> None:
    config = make_config(**SHORT | settings)
    with pytest.raises(UserError, match=re.escape(message)):
        train(config)
    assert not config.run_dir.exists()
