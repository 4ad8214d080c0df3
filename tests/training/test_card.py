"""The model card of a checkpoint: true, whole, and silent about where things are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard as HubCard
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2ner import train
from florence2ner.engine.run_files import TrainState
from florence2ner.training.card import CARD_FILE, ModelCard
from tests.conftest import MakeConfig


@pytest.fixture
def checkpoint(make_config: MakeConfig) -> Path:
    return train(make_config(max_steps=4, eval_steps=2, save_steps=2, eval_split_count=4, epochs=9)).checkpoint


def test_it_says_what_the_run_logged_and_nothing_of_where(checkpoint: Path, tmp_path: Path, shapes: Path) -> None:
    text = (checkpoint / CARD_FILE).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert f"| eval/loss | {losses[2]:.4g} (update 2) | {losses[4]:.4g} (update 4) |" in text
    assert "in 4 updates of 8 images on 20 images; 4 are held out." in text
    assert "train/loss: updates 1 to 4, highest" in text
    assert "learning_rate: 0.001\n" in text
    assert "seed" not in text, "it is the default"
    for secret in (str(tmp_path), str(shapes), "0001.png"):
        assert secret not in text
    before = (checkpoint.parent / "step-2" / CARD_FILE).read_text(encoding="utf-8")
    assert "in 2 updates" in before
    assert f"{losses[4]:.4g}" not in before
    facts = HubCard.load(checkpoint / CARD_FILE).data
    assert facts.pipeline_tag == "image-to-text"
    assert "florence-2" in facts.tags
    assert facts.base_model is None, "the base is a folder here"


def test_what_it_says_of_loading_runs(
    checkpoint: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(shapes / "0001.png").save(checkpoint / "photo.jpg")
    monkeypatch.chdir(checkpoint)
    text = (checkpoint / CARD_FILE).read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("PATH", str(checkpoint))
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    written = capsys.readouterr().out.strip()
    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    with Image.open(checkpoint / "photo.jpg") as image:
        inputs = processor(text="<CAPTION>", images=image.convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=8, num_beams=1)
    assert written == processor.decode(ids[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("base", "said"),
    [("microsoft/Florence-2-base", "microsoft/Florence-2-base"), ("/nowhere/secret/tiny", "tiny")],
)
def test_a_run_without_a_log_has_a_card(make_config: MakeConfig, base: str, said: str) -> None:
    settings: dict[str, Any] = {"task_prompt": '<"quoted">', "export_layout": "original", "bad_words": ("<b>",)}
    config = make_config(**settings)
    card = ModelCard(config=config, base_model=base, trained_on="7 shards", held_out=0, parameters="3 of 4")
    card.captions = ["# no heading\n\n<script>alert(1)</script>"]
    text = card.text(TrainState(step=5, global_batch=8))
    front = yaml.safe_load(text.split("---")[1])
    assert front.get("base_model") == (said if "/" in said else None)
    assert f"fine-tuned from {said} in 5 updates" in text
    assert "secret" not in text
    assert "## Curves" not in text
    assert "\n    # no heading <script>alert(1)</script>\n" in text, "a block of code"
    assert "Microsoft's layout" in text


def test_figures_that_are_not_finite_are_left_out(make_config: MakeConfig) -> None:
    config = make_config()
    config.run_dir.mkdir(parents=True)
    lines = [{"step": step, "train/loss": loss} for step, loss in ((1, 2.0), (2, float("nan")), (3, 1.0), (9, 0.5))]
    (config.run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    card = ModelCard(config=config, base_model="x", trained_on="1 images", held_out=0, parameters="1 of 1")
    assert "train/loss: updates 1 to 3, highest 2, last 1" in card.text(TrainState(step=3))
