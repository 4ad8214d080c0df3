"""The vision-feature cache: the same weights as without it, each image encoded once, and no stale or torn feature."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from florence2ner import TrainConfig, UserError, train
from florence2ner.data.features import FeatureCache, fingerprint_of, memory_directory
from florence2ner.data.order import TrainPlan
from florence2ner.engine.checkpoint import list_checkpoints
from florence2ner.model.captioner import Captioner
from tests.conftest import Start

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each run of the vision tower encoded; self-checks go another way."""
    batches: list[int] = []
    vision_features = Captioner.vision_features

    def count(captioner: Captioner, pixel_values: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixel_values))
        return vision_features(captioner, pixel_values)

    monkeypatch.setattr(Captioner, "vision_features", count)
    return batches


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


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
    plain = weights(train(make_config(run_name="plain", feature_cache="off", **common)))
    cached = weights(train(make_config(run_name="cached", feature_cache_dtype=dtype, **common)))
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
    full = weights(train(make_config(run_name="full", **common)))
    encoded.clear()
    room = 50_000 / 10**9  # for one batch of four, of about 9 kB each
    cut = train(make_config(run_name="cut", feature_cache_max_gb=room, feature_cache="memory", **common))
    first = {f"000{number}.png" for number in range(4)}
    split = json.loads((cut.parent / "split.json").read_text())
    others = [len(set(split[part]) - first) for part in ("train", "eval")]
    assert sum(encoded) == 4 + 2 * others[0] + others[1], "the others in both epochs and in the evaluation"
    assert furthest(weights(cut), full, weights(tiny_model)) < 1e-3


def test_a_resumed_run_sees_the_same_features(make_config: MakeConfig) -> None:
    for memory in ("disk", "memory"):
        common = {"epochs": 2, "feature_cache": memory, "save_steps": 2, "save_total_limit": None, "keep_states": True}
        whole = train(make_config(run_name=f"whole-{memory}", **common))
        config = make_config(run_name=f"stopped-{memory}", **common)
        train(config)
        for checkpoint in list_checkpoints(config.run_dir)[1:]:
            shutil.rmtree(checkpoint)
        resumed = train(make_config(run_name=f"stopped-{memory}", resume="latest", **common))
        one, other = weights(whole), weights(resumed)
        assert all(torch.equal(one[name], other[name]) for name in one)


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
    with pytest.raises(UserError, match=r"can't make the feature cache .*--feature-cache-dir"):
        train(make_config(run_name="other", feature_cache="disk", **common))


def test_torn_and_stale_features_are_never_read(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(image)
    feature = torch.randn(3, 4).bfloat16()
    cache = FeatureCache(tmp_path / "cache", "abc")
    cache.keys = cache.identify([image, tmp_path / "gone.png"])
    assert cache.missing([image]) == [image]
    assert cache.store(image, feature)
    assert torch.equal(cache.load(image), feature)
    assert cache.missing([image]) == []

    (file,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    for torn in (file.read_bytes()[:-9], bytes(file.stat().st_size), b""):
        file.write_bytes(torn)
        assert cache.load(image) is None

    cache.store(image, feature)
    Image.new("RGB", (8, 8), "blue").save(image)
    again = FeatureCache(tmp_path / "cache", "abc")
    again.keys = again.identify([image])
    assert again.load(image) is None, "the image has changed"
    assert FeatureCache(tmp_path / "cache", "other").load(image) is None


def test_the_fingerprint_changes_with_weights_and_facts() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    names = {
        fingerprint_of({"a": tensor}, 1),
        fingerprint_of({"a": tensor}, 2),
        fingerprint_of({"b": tensor}, 1),
        fingerprint_of({"a": tensor + 1e-6}, 1),
        fingerprint_of({"a": tensor.T}, 1),
        fingerprint_of({"a": tensor.bfloat16()}, 1),
    }
    assert len(names) == 6
    channels_last = torch.randn(2, 3, 4, 4)
    assert fingerprint_of({"a": channels_last}) == fingerprint_of(
        {"a": channels_last.contiguous(memory_format=torch.channels_last)}
    )


def test_memory_is_given_back_also_that_of_killed_runs() -> None:
    with memory_directory() as directory:
        assert str(os.getpid()) in directory.name
        abandoned = directory.with_name(directory.name.replace(str(os.getpid()), "999999999"))
        abandoned.mkdir()
    assert not directory.exists()
    with memory_directory():
        assert not abandoned.exists()


def test_grouping_by_length_keeps_every_sample_and_is_a_function_of_seed_and_epoch() -> None:
    lengths = tuple(torch.randint(3, 60, (1003,), generator=torch.Generator().manual_seed(0)).tolist())

    def plan(processes: int = 1, batch: int = 8, lengths: tuple[int, ...] | None = lengths) -> TrainPlan:
        return TrainPlan(1003, batch, 32 // batch // processes, processes, seed=3, lengths=lengths)

    def windows(plan: TrainPlan) -> list[list[int]]:
        shares = [
            [chain(*plan.window(update, process)) for process in range(plan.processes)]
            for update in range(2 * plan.updates_per_epoch)
        ]
        return [[draw.index for draw in chain(*share) if draw.counted] for share in shares]

    one = windows(plan())
    assert [sorted(w) for w in one] == [sorted(w) for w in windows(plan(2, 4))], "on any number of processes"
    epoch = plan().updates_per_epoch
    for windows_of_epoch in (one[:epoch], one[epoch:]):
        assert sorted(chain(*windows_of_epoch)) == list(range(1003))
    assert one[:epoch] != one[epoch:]

    def padding(plan: TrainPlan) -> float:
        batches = [[lengths[draw.index] for draw in batch] for u in range(epoch) for batch in plan.window(u, 0)]
        return sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches)) - 1

    assert padding(plan()) < 0.1 < 0.5 < padding(plan(lengths=None))


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
