"""The run that a dataset is for: as many updates and samples as training has, and the disk of its cache."""

import shutil
from pathlib import Path

import pytest

from florence2ner import UserError
from florence2ner.data.split import SplitRule, discover_split
from florence2ner.inspection.run import BASE_ENCODING
from florence2ner.model.checkpoints.scratch import _SIZES
from florence2ner.model.vision import bytes_of_encoding
from tests.data.support import root_of
from tests.inspection.support import figures, findings, make_clean, put


@pytest.mark.parametrize("split", [False, True])
def test_the_run_is_the_one_that_train_would_make(tmp_path: Path, split: bool) -> None:
    make_clean(tmp_path, split=split)
    expected, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=42, ratio=0.3))
    found = figures(tmp_path, eval_split_ratio=0.3, train_batch_size=2, gradient_accumulation_steps=2, epochs=3)
    assert found["trained on"] == f"{len(expected.train)} images, {len(expected.eval)} held out"
    each = -(-len(expected.train) // 4)
    assert found["updates"] == f"{3 * each} of 4 images, {each} per epoch, in one process"
    assert figures(tmp_path, max_steps=7)["updates"].startswith("7 of 256 images")


def test_weights_and_repeats_make_an_epoch_longer(tmp_path: Path) -> None:
    put(make_clean(tmp_path, split=True) / "train" / "3_many" / "extra.png", "three times", seed=60)
    run = tmp_path.parent / f"{tmp_path.name}-run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"train/images_per_second": 4.0}\n')
    root = {"path": str(tmp_path), "weight": 2}
    settings = {"kohya_repeats": True, "train_batch_size": 5, "gradient_accumulation_steps": 1, "earlier_run": run}
    found = figures([root], **settings)
    assert found["trained on"] == "10 images, of which an epoch takes 24, 3 held out"
    assert found["updates"] == "10 of 5 images, 5 per epoch, in one process"
    assert found["time per epoch"].startswith("6 seconds")
    cache = figures(tmp_path, train_batch_size=5, gradient_accumulation_steps=1, max_steps=1)["feature cache"]
    assert cache.startswith("0.00947 GB"), "of 5 images that are taken in the first update and 3 held out"


def test_the_cache_holds_a_copy_once_and_no_image_that_cannot_be_read(tmp_path: Path) -> None:
    make_clean(tmp_path, split=True)
    before = float(figures(tmp_path)["feature cache"].split()[0])
    for end in ("png", "txt"):
        shutil.copy(tmp_path / "train" / f"1.{end}", tmp_path / "train" / f"copy.{end}")
    put(tmp_path / "train" / "broken.png", "broken", seed=50).write_bytes(b"no picture")
    assert float(figures(tmp_path)["feature cache"].split()[0]) == before
    assert figures(tmp_path)["trained on"] == "11 images, 3 held out", "as train counts: it skips what it can't read"


@pytest.mark.parametrize("side", ["train", "eval"])
def test_a_side_without_an_image_that_can_be_read_breaks(tmp_path: Path, side: str) -> None:
    for image in (make_clean(tmp_path, split=True) / side).glob("*.png"):
        image.write_bytes(f"no picture {image}".encode())
    found = findings(tmp_path)
    verb = "train" if side == "train" else "evaluate"
    assert {kind: finding.severity for kind, finding in found.items()} == {
        f"nothing-to-{verb}-on": "breaks",
        "unreadable-image": "hurts",
    }


def test_the_cache_is_measured_with_a_model_and_estimated_without(tmp_path: Path, tiny_model: Path) -> None:
    make_clean(tmp_path)
    estimate = figures(tmp_path)["feature cache"]
    assert estimate.startswith("0.0142 GB on the disk, 1.18 MB per image (an estimate")
    assert figures(tmp_path, feature_cache_dtype="fp32")["feature cache"].startswith("0.0284 GB")
    assert "estimate" not in figures(tmp_path, model_name=str(tiny_model))["feature cache"]


def test_an_earlier_run_tells_how_long_an_epoch_takes(tmp_path: Path) -> None:
    root, run = make_clean(tmp_path / "data", split=True), tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl can't be read"):
        figures(root, earlier_run=run)
    (run / "metrics.jsonl").write_text('{"step": 1, "eval/loss": 2.0}\n')
    with pytest.raises(UserError, match="has no train/images_per_second"):
        figures(root, earlier_run=run)
    speeds = [1.0] * 30 + [4.0] * 19 + [900.0]
    (run / "metrics.jsonl").write_text("".join(f'{{"train/images_per_second": {speed}}}\n' for speed in speeds))
    assert figures(root, earlier_run=run)["time per epoch"].startswith("2.25 seconds at the 4 images per second of run")
    assert "time per epoch" not in figures(root)


def test_the_estimate_is_that_of_base() -> None:
    from transformers import Florence2Config

    size = _SIZES["base"]
    config = Florence2Config(vision_config=size.vision, text_config=dict(size.text))
    assert bytes_of_encoding(config, 577, 2) == BASE_ENCODING
