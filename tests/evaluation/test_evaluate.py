"""The evaluation: its loss against a plain loop's, its captions as they are made, its output whole or of before."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from florence2ner import EvalConfig, UserError, evaluate
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.demo import draw_dataset
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from tests.conftest import Caption, Start
from tests.support import files_in, large, wait_until_open


def test_eval_loss_is_the_mean_over_tokens_that_a_plain_loop_gives(shapes: Path, tiny_model: Path) -> None:
    model, processor = load_model(tiny_model)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for sample in discover_samples(shapes, "<CAPTION>").samples:
            inputs = processor(images=Image.open(sample.image.path), text="<CAPTION>", return_tensors="pt")
            labels = processor.tokenizer(sample.caption, return_tensors="pt").input_ids
            total += model(**inputs, labels=labels).loss.item() * labels.numel()
            tokens += labels.numel()
    result = evaluate(
        EvalConfig(model_name=str(tiny_model), dataset_path=shapes, num_beams=1, max_new_tokens=2, batch_size=7, show=0)
    )
    assert result.tokens == tokens
    assert result.loss == pytest.approx(total / tokens, rel=1e-5)


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"can't make the folder .*file/out .*choose another --output"):
        evaluate(EvalConfig(model_name="nowhere", dataset_path=shapes, output=tmp_path / "file" / "out" / "r.json"))
    with pytest.raises(ValueError, match=r"is a folder; name a file, such as results\.json"):
        EvalConfig(dataset_path=shapes, output=tmp_path)


def test_an_output_stays_as_it_is_until_the_new_one_is_whole(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = tmp_path / "data", tmp_path / "results.json"
    draw_dataset(data, 2, seed=1)
    output.write_text("of before")
    seen: list[str] = []
    loss = Captioner.forward

    def look(*args: Any) -> Any:
        seen.append(output.read_text())
        return loss(*args)

    monkeypatch.setattr(Captioner, "forward", look)
    config = EvalConfig(model_name=str(tiny_model), dataset_path=data, output=output, num_beams=1, max_new_tokens=2)
    result = evaluate(config)
    assert seen == ["of before"]
    assert json.loads(output.read_text())["figures"]["eval/loss"] == result.loss

    output.write_text("of before")
    for image in data.glob("*.png"):
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the images to evaluate on can be read"):
        evaluate(config)
    assert output.read_text() == "of before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["results.json"]


@pytest.mark.slow
def test_an_output_survives_a_run_that_is_killed(start: Start, tiny_model: Path, shapes: Path, tmp_path: Path) -> None:
    data, output = large(tmp_path / "data", shapes, 4), tmp_path / "results.json"
    output.write_text("of before")
    running = start("florence2ner", "eval", "--model-name", tiny_model, "--dataset-path", data, "--output", output)
    wait_until_open(running, 0, *data.glob("*.png"))
    running.signal(signal.SIGKILL)
    assert running.wait().returncode == -signal.SIGKILL
    assert output.read_text() == "of before"
    assert files_in(tmp_path) == {"results.json"} | {f"data/{path.name}" for path in data.iterdir()}


def test_captions_that_are_too_long_are_left_out_and_what_is_odd_is_warned_of_as_in_training(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    draw_dataset(data, 3, seed=1)
    settings = {"model_name": str(tiny_model), "dataset_path": data, "num_beams": 1, "max_new_tokens": 2}
    config = EvalConfig(**settings, task_prompt="<CAPTON>")
    (data / "0000.txt").write_text("a red star</s>")
    (data / "0001.txt").write_text("a red star " * 20_000)
    result = evaluate(config)
    assert [row.image for row in result.captions] == ["0000.png", "0002.png"]
    longest = load_model(tiny_model)[0].config.text_config.max_position_embeddings
    said = f"1 captions are longer than the {longest} tokens that the model can write and are left out"
    lines = capsys.readouterr().err.splitlines()
    assert said in lines
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert warnings[0].endswith("<CAPTON> is not one of Florence-2's own tasks. Did you mean <CAPTION>?")
    assert warnings[1].startswith("warning: 1 captions hold </s>, ")
    assert warnings[1].endswith("0000.png")

    for path in data.glob("*.txt"):
        path.write_text("a red star " * 200)
    with pytest.raises(UserError, match="every caption is longer than the"):
        evaluate(config)


@pytest.mark.parametrize(
    "decoding",
    [
        {"num_beams": 1, "max_new_tokens": 12},
        {"num_beams": 3, "max_new_tokens": 20, "length_penalty": -1.0, "no_repeat_ngram_size": 2},
        {"num_beams": 2, "max_new_tokens": 12, "bad_words": ("a", "large")},
        {"num_beams": 1, "max_new_tokens": 3},  # cut off: asked once more
        {"num_beams": 1, "max_new_tokens": 3, "retry": False},
    ],
    ids=str,
)
def test_a_caption_is_evaluated_as_it_is_made(
    trained_model: Path, images: Path, run: Caption, decoding: dict[str, Any]
) -> None:
    run(**{"retry": True, "num_beams": 3} | decoding)
    made = {
        path.with_suffix(".png").relative_to(images).as_posix(): path.read_text().strip()
        for path in images.rglob("*.txt")
    }
    assert len(made) == 5
    assert all(made.values())
    config = EvalConfig(model_name=str(trained_model), dataset_path=images, batch_size=2, show=0, **decoding)
    result = evaluate(config)
    assert {row.image: row.prediction for row in result.captions} == made
    assert result.exact_match == 1, "the truth is what the model wrote"


@pytest.mark.slow
def test_ci_fails_where_a_model_is_worse(
    command: Start, tiny_model: Path, trained_model: Path, shapes: Path, tmp_path: Path
) -> None:
    common = ("--dataset-path", shapes, "--num-beams", 1, "--max-new-tokens", 16, "--show", 2)
    judged = ("--fail-if-worse", "eval/loss", "--fail-if-worse", "cider")
    models = {"new": trained_model, "old": tiny_model}
    better = command(
        "eval", "--model-name", models["new"], "--against", models["old"], *common, *judged, "--output", "r.json",
        COLUMNS="200",
    )  # fmt: skip
    assert better.returncode == 0, better.stderr
    assert "the largest differences in CIDEr-D:" in better.stdout
    stored = json.loads((tmp_path / "r.json").read_text())
    found = {entry["metric"]: entry for entry in stored["comparison"]}
    loss = found["eval/loss"]
    assert loss["after"] == stored["figures"]["eval/loss"] < loss["before"]
    assert loss["difference"] == pytest.approx(loss["after"] - loss["before"])
    assert loss["interval"][0] < loss["difference"] < loss["interval"][1] < 0
    assert (loss["wins"], loss["losses"]) == (24, 0)
    assert (stored["model_name"], stored["against"]) == (str(trained_model), str(tiny_model))

    worse = command("eval", "--model-name", models["old"], "--against", models["new"], *common, *judged)
    assert worse.returncode == 1
    assert "error" not in worse.stderr
    same = command("eval", "--model-name", models["new"], "--against", models["new"], *common, *judged)
    assert same.returncode == 0
    assert "the largest differences" not in same.stdout

    draw_dataset(tmp_path / "few", 4, seed=1)
    old = ("--model-name", models["old"], "--against", models["old"])
    few = command("eval", *old, "--dataset-path", "few", *judged)
    assert few.returncode == 2
    assert few.stderr.endswith("error: fail_if_worse needs 5 images to tell what is no chance, and there are 4\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fail_if_worse": ("cider",)}, "fail_if_worse does nothing alone: name another model with against"),
        (
            {"fail_if_worse": ("cider",), "against": "b", "eval_metrics": ("bleu4",)},
            "fail_if_worse eval/cider is not computed: add it to eval_metrics",
        ),
        ({"eval_metrics": ("cidre",)}, "eval/loss"),
    ],
)
def test_settings_that_do_nothing_are_refused(shapes: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalConfig(dataset_path=shapes, **settings)


def test_a_second_model_that_is_none_is_refused_before_the_first_is_evaluated(
    tiny_model: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="can't find the model nowhere"):
        evaluate(EvalConfig(model_name=str(tiny_model), dataset_path=shapes, against="nowhere"))
    assert "evaluating" not in capsys.readouterr().err
