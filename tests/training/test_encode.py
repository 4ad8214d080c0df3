"""Runs with the feature cache: the same weights as without it, and each image encoded once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from florence2ner import UserError, train
from florence2ner.engine.run_files import list_checkpoints
from florence2ner.files import has_text, lock
from florence2ner.model.inputs import Features, Pixels
from florence2ner.model.vision import VisionEncoder
from tests.conftest import MakeConfig, Start
from tests.programs.starting import free_port, launched
from tests.support import finish, large, weights, write


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each run of the vision tower encoded; self-checks go another way."""
    batches: list[int] = []
    features = VisionEncoder.features

    def count(vision: VisionEncoder, pixels: Pixels) -> Features:
        batches.append(len(pixels.values))
        return features(vision, pixels)

    monkeypatch.setattr(VisionEncoder, "features", count)
    return batches


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """The largest difference of two trained models, as a share of how far training moved that tensor."""
    shares = []
    for name, tensor in one.items():
        moved = (tensor - start[name]).norm()
        if moved > 0 and "k_proj.bias" not in name:  # the true gradient of those is zero
            shares.append(float((tensor - other[name]).norm() / moved))
    return max(shares)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 0.1)])
@pytest.mark.parametrize("freeze_other", [False, True])
def test_training_gives_the_weights_of_a_run_without_the_cache(
    make_config: MakeConfig, tiny_model: Path, dtype: str, tolerance: float, freeze_other: bool
) -> None:
    common = {"epochs": 2, "freeze_other": freeze_other, "gradient_checkpointing": False, "learning_rate": 1e-4}
    plain = weights(train(make_config(run_name="plain", feature_cache="off", **common)).checkpoint)
    cached = weights(train(make_config(run_name="cached", feature_cache_dtype=dtype, **common)).checkpoint)
    start = weights(tiny_model)
    assert plain.keys() == cached.keys() == start.keys(), "the tower is in every checkpoint"
    assert all(torch.equal(cached[name], start[name]) for name in start if "vision_tower" in name)
    assert furthest(cached, plain, start) < tolerance


def test_each_image_is_encoded_once_and_the_next_run_encodes_none(
    make_config: MakeConfig, encoded: list[int], shapes: Path, tmp_path: Path
) -> None:
    train(make_config(run_name="first", epochs=3, eval_before_training=True))
    assert sum(encoded) == 24
    encoded.clear()
    train(make_config(run_name="second", epochs=3))
    assert encoded == []

    moved = tmp_path / "moved"  # the content counts, not the name
    shutil.copytree(shapes, moved)
    Image.new("RGB", (64, 64), "red").save(moved / "0003.png")
    train(make_config(run_name="third", dataset_path=moved, encode_batch_size=1))
    assert sum(encoded) == 1


def test_nothing_is_cached_where_the_tower_learns(make_config: MakeConfig, encoded: list[int], tmp_path: Path) -> None:
    train(make_config(freeze_vision=False, max_steps=1))
    assert sum(encoded) > 0
    assert not (tmp_path / "features").exists()


def test_beyond_its_limit_it_computes_on_the_fly(make_config: MakeConfig, encoded: list[int], tiny_model: Path) -> None:
    common = {"gradient_checkpointing": False, "encode_batch_size": 4, "feature_cache_dtype": "fp32", "epochs": 2}
    full = weights(train(make_config(run_name="full", **common)).checkpoint)
    encoded.clear()
    room = 50_000 / 10**9  # for one batch of four, of about 9 kB each
    cut = train(make_config(run_name="cut", feature_cache_max_gb=room, feature_cache="memory", **common)).checkpoint
    first = {f"000{number}.png" for number in range(4)}
    split = json.loads((cut.parent / "split.json").read_text())
    others = [len(set(split[part]) - first) for part in ("train", "eval")]
    assert sum(encoded) == 4 + 2 * others[0] + others[1], "the others in both epochs and in the evaluation"
    assert furthest(weights(cut), full, weights(tiny_model)) < 1e-3


def test_a_resumed_run_sees_the_same_features(make_config: MakeConfig) -> None:
    for memory in ("disk", "memory"):
        common = {"epochs": 2, "feature_cache": memory, "save_steps": 2, "save_total_limit": None, "keep_states": True}
        whole = train(make_config(run_name=f"whole-{memory}", **common)).checkpoint
        config = make_config(run_name=f"stopped-{memory}", **common)
        train(config)
        for checkpoint in list_checkpoints(config.run_dir)[1:]:
            shutil.rmtree(checkpoint)
        resumed = train(make_config(run_name=f"stopped-{memory}", resume="latest", **common)).checkpoint
        one, other = weights(whole), weights(resumed)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_many_images_are_encoded_by_a_compiled_tower(
    make_config: MakeConfig, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[bool] = []
    features = VisionEncoder.features

    def note(vision: VisionEncoder, pixels: Pixels) -> Features:
        compiled.append(vision._compiled is not None)
        return features(vision, pixels)

    monkeypatch.setattr(VisionEncoder, "features", note)
    # One image at a time, as real sizes have it: another number would be compiled too.
    common = {"epochs": 1, "gradient_checkpointing": False, "learning_rate": 1e-4, "encode_batch_size": 1}
    plain = train(make_config(run_name="plain", feature_cache="memory", **common))
    assert not any(compiled)
    count = len(compiled)
    monkeypatch.setattr("florence2ner.model.vision.COMPILE_FROM", 8 * (64 / 768) ** 2)
    fast = train(make_config(run_name="fast", feature_cache="memory", **common))
    assert capsys.readouterr().err.count("compiling the vision tower for 24 images, which takes about a minute") == 1
    assert compiled[count:] == [True] * (count + 1)  # and once to be compiled; nothing after the cache is filled
    one, other = weights(plain.checkpoint), weights(fast.checkpoint)
    assert furthest(other, one, weights(Path(make_config().model_name))) < 1e-2
    assert abs(plain.figures["eval/loss"] - fast.figures["eval/loss"]) < 1e-4


def test_where_the_tower_cannot_be_compiled_it_is_encoded_without(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("florence2ner.model.vision.COMPILE_FROM", 8 * (64 / 768) ** 2)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    train(make_config(max_steps=1, feature_cache="memory"))
    said = capsys.readouterr().err
    assert said.count("the vision tower can't be compiled here, so it runs without: ") == 1
    assert "images, once for all\n" in said


def test_two_processes_fill_one_cache(start: Start, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(train_batch_size=2, encode_batch_size=2, max_steps=1, eval_steps=None)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    result = start("florence2ner", "train", "--config", tmp_path / "run.yaml", processes=2).wait()
    assert result.returncode == 0, result.stderr
    assert "encoding 8 of 8 images" in result.stderr, "only what the run will draw"


def test_images_that_cannot_be_read_are_named_and_not_taken_for_too_many(
    make_config: MakeConfig, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    (data / "0001.png").write_bytes(b"\x89PNG")
    (data / "0002.png").unlink()
    (data / "0002.png").symlink_to("nowhere.png")
    train(make_config(dataset_path=data, max_steps=1, epochs=1, train_batch_size=24, eval_steps=None))
    said = capsys.readouterr().err
    assert "warning: 2 images can't be read and are skipped: " in said
    assert f"{data}/0001.png (not an image that can be read)" in said
    assert f"{data}/0002.png (can't be opened)" in said
    assert "no place" not in said


def test_without_a_place_for_the_cache_auto_goes_on_and_others_say_so(
    make_config: MakeConfig, encoded: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    common = {"feature_cache_dir": tmp_path / "file" / "features", "max_steps": 1, "eval_steps": None}
    train(make_config(**common))
    assert sum(encoded) > 0
    assert "warning: can't make the feature cache" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"can't make the folder .*--feature-cache-dir"):
        train(make_config(run_name="other", feature_cache="disk", **common))


def test_a_feature_lost_on_the_way_is_computed_again(make_config: MakeConfig, tmp_path: Path) -> None:
    """The tower is away by then, and comes back."""
    settings = {"feature_cache": "disk", "feature_cache_dir": tmp_path / "cache", "eval_steps": None, "max_steps": 2}
    config = make_config(**settings)
    train(config)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.suffix]
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])  # as after a power failure
    train(make_config(run_name="after", **settings))
    assert not any(path.exists() for path in files)  # the next run makes them anew


@pytest.mark.slow
def test_a_process_with_a_full_cache_waits_for_one_that_encodes_for_longer_than_the_timeout(
    make_config: MakeConfig, start: Start, shapes: Path, tmp_path: Path
) -> None:
    data = large(tmp_path / "data", shapes, 24)
    common = {"dataset_path": data, "feature_cache": "disk", "encode_batch_size": 1, "eval_steps": None}
    train(make_config(run_name="first", feature_cache_dir=tmp_path / "0" / "features", **common))
    (tmp_path / "1").mkdir()
    file = write(make_config(feature_cache_dir="features", process_timeout=5, **common), tmp_path)
    port = free_port()
    full, empty = (
        start("florence2ner", "train", "--config", file, cwd=tmp_path / str(rank), **launched(rank, 2, port))
        for rank in range(2)
    )
    finish(full)
    finish(empty)
    times = [path.stat().st_mtime for path in (tmp_path / "1").rglob("*") if path.is_file() and not path.suffix]
    assert len(times) == 24
    assert max(times) - min(times) > 5


@pytest.mark.slow
def test_a_process_waits_for_one_that_identifies_images_for_longer_than_the_timeout(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    """Of two machines with caches of their own, one reads slowly: another holds the lock of its list of images."""
    settings = {"feature_cache": "disk", "feature_cache_dir": "features", "max_steps": 1, "eval_steps": None}
    file = write(make_config(process_timeout=5, **settings), tmp_path)
    port = free_port()
    for rank in range(2):
        (tmp_path / str(rank) / "features").mkdir(parents=True)
    quick, slow = (tmp_path / str(rank) / "features" / "digests.jsonl" for rank in range(2))
    with lock(slow):
        machines = [
            start("florence2ner", "train", "--config", file, cwd=tmp_path / str(rank), **launched(rank, 2, port))
            for rank in range(2)
        ]
        while not has_text(quick):
            assert machines[0].poll(0.01) is None, machines[0].stderr
        assert machines[0].poll(5 + 3) is None, machines[0].stderr
        assert not has_text(slow)
    for machine in machines:
        finish(machine)
