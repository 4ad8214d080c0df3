"""The real size on real input: base-size Florence-2, photographs of 1280x960, all three commands, their memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2ner import CaptionConfig, EvalConfig, TrainConfig, caption, evaluate
from florence2ner.data.layouts.pairs import read_captions
from florence2ner.model.checkpoints.scratch import init_model
from tests.photos import SIZE, make_photos
from tests.support import write


def check_estimate(config: TrainConfig, folder: Path) -> None:
    """Train, and compare the most memory that this has taken with what `--estimate` has said."""
    arguments = "train", "--config", str(write(config, folder))
    said, took = (
        subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True).stdout
        for command in (("florence2ner", *arguments, "--estimate"), ("tests.programs.peak", *arguments))
    )
    total = re.search(r"total +([\d.]+) GB", said)
    assert total
    assert float(total[1]) * 1e9 == pytest.approx(int(took.split()[-1]), rel=0.15), said


@pytest.mark.slow
def test_base_size_trains_evaluates_captions_and_reloads(tmp_path: Path) -> None:
    photos, base = tmp_path / "photos", tmp_path / "base"
    make_photos(photos, 4)
    assert Image.open(next(photos.glob("*.jpg"))).size == SIZE
    init_model(base, preset="base", captions=read_captions(photos), seed=0)

    generation = {"num_beams": 1, "max_new_tokens": 6}
    config = TrainConfig(
        model_name=str(base),
        dataset_path=photos,
        output_dir=tmp_path / "checkpoints",
        run_name="run",
        feature_cache_dir=tmp_path / "features",
        max_steps=1,
        warmup_steps=0,
        learning_rate=3e-4,  # one update is enough to learn, and to write something
        train_batch_size=1,
        gradient_accumulation_steps=1,
        eval_steps=None,
        log_with=("jsonl",),
        **generation,
    )
    check_estimate(config, tmp_path)
    checkpoint = (config.run_dir / "latest").resolve()
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 1
    assert losses[0] < 20

    imgs = tmp_path / "imgs"
    make_photos(imgs, 1)
    result = evaluate(EvalConfig(model_name=str(checkpoint), dataset_path=imgs, **generation))
    assert (result.samples, len(result.captions)) == (1, 1)
    assert 0 < result.loss < losses[0] - 0.1
    for text in imgs.glob("*.txt"):
        text.unlink()
    assert caption(CaptionConfig(paths=(imgs,), model_name=str(checkpoint), **generation)).done == 1

    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint)
    assert 230e6 < model.num_parameters() < 232e6
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = processor(images=Image.open(next(imgs.glob("*.jpg"))), text="<CAPTION>", return_tensors="pt")
    assert (inputs.input_ids == processor.image_token_id).sum() == 577
    with torch.no_grad():
        assert model(**inputs, labels=torch.tensor([[0, 5, 2]])).loss.isfinite()
