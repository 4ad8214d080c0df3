"""The three commands on the tiny model, one after the other: files, figures, bad images, two real processes."""

import json
import math
from pathlib import Path

import pytest
import yaml
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2ner import CaptionConfig, EvalConfig, TrainConfig, caption, evaluate, train
from florence2ner.cli import main
from florence2ner.data.formats import sidecar_of
from florence2ner.demo import draw_dataset
from tests.conftest import MakeConfig, Start
from tests.support import figures, files_in

EXPORT = {
    "config.json",
    "generation_config.json",
    "README.md",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
STATE = {"optimizer.bin", "random_states_0.pkl", "train_state.json"}


def test_train_then_eval_then_caption(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(epochs=2, save_steps=2, save_total_limit=2, eval_steps=4)
    last = train(config).checkpoint  # 22 images to train on, 2 held out: 3 updates an epoch, the last one short
    assert last == config.run_dir / "step-6"
    assert files_in(config.run_dir) == (
        {"config.yaml", "metrics.jsonl", "report.html", "split.json", "status.json"}
        | {f"evaluations/step-0000000{step}.json" for step in (4, 6)}
        | {f"{step}/{name}" for step in ("step-4", "step-6") for name in EXPORT}
        | {f"step-6/state/{name}" for name in STATE}
    )
    assert (config.run_dir / "latest").resolve() == last
    assert (config.run_dir / "best").resolve() in {config.run_dir / "step-4", last}
    assert TrainConfig.model_validate(yaml.safe_load((config.run_dir / "config.yaml").read_text())) == config
    assert list(figures(config.run_dir, "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert list(figures(config.run_dir, "eval/loss")) == [4, 6], "every eval_steps and at the end, never twice"
    assert figures(config.run_dir, "train/epoch")[3] == 1.0

    model = Florence2ForConditionalGeneration.from_pretrained(last)
    AutoProcessor.from_pretrained(last)
    assert model.generation_config.num_beams == 3

    results = tmp_path / "out" / "results.json"
    common = {"model_name": str(last), "num_beams": 1, "max_new_tokens": 8, "batch_size": 5}
    result = evaluate(EvalConfig(dataset_path=config.dataset_path, output=results, **common))
    written = json.loads(results.read_text())
    assert written["figures"]["eval/loss"] == result.loss
    assert written["figures"]["eval/perplexity"] == pytest.approx(math.exp(result.loss))
    assert (result.samples, len(result.captions), len(written["captions"])) == (24, 24, 24)
    captured = capsys.readouterr()
    assert "22 of these 24 images were trained on" in captured.err
    assert f"loss {result.loss:.4f}" in captured.out

    folder = tmp_path / "to caption"
    draw_dataset(folder, 3, seed=9, captions=False)
    (folder / "0001.txt").write_text("by hand\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    summary = caption(CaptionConfig(paths=(folder,), **common))
    assert (summary.done, summary.kept, summary.failed) == (2, 1, 1)
    assert files_in(folder) == {f"000{i}.{end}" for i in range(3) for end in ("png", "txt")} | {
        "broken.png",
        "truth.json",
    }
    assert (folder / "0001.txt").read_text() == "by hand\n"
    first = (folder / "0000.txt").read_text()
    assert first.endswith("\n")
    assert first.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["florence2ner", "caption", str(folder), "--model-name", str(last)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3, "some images could not be captioned"
    assert caption(CaptionConfig(paths=(folder / "0001.png",), existing="overwrite", **common)).done == 1
    assert (folder / "0001.txt").read_text() != "by hand\n"


def test_unreadable_images_and_odd_captions_are_named_and_never_end_a_run(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    draw_dataset(folder / "train", 6, seed=1)
    draw_dataset(folder / "eval", 2, seed=2)
    (folder / "train" / "0003.png").write_bytes(b"")
    (folder / "eval" / "0001.png").write_bytes(b"no picture")
    (folder / "train" / "0002.txt").write_text("a star</s>")
    config = make_config(dataset_path=folder, epochs=1, task_prompt="<CAPTON>")
    train(config)
    errors = capsys.readouterr().err
    assert "warning: the task prompt <CAPTON> is not one of Florence-2's own tasks. Did you mean <CAPTION>?" in errors
    assert "warning: 1 captions hold </s>, which the model doesn't take for text" in errors
    assert "0003.png is skipped: empty file" in errors
    assert "0001.png is left out of the evaluation: not an image that can be read" in errors
    assert figures(config.run_dir, "train/epoch")[1] == pytest.approx(5 / 6)


@pytest.mark.slow
def test_two_processes_take_part_and_agree(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    config = make_config(max_steps=2, gradient_accumulation_steps=1, save_steps=None)
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    results, folder = tmp_path / "results.json", tmp_path / "imgs"
    draw_dataset(folder, 5, seed=4, captions=False)
    done = start("tests.programs.three_commands", file, results, folder, processes=2).wait()
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stderr
    assert "5 captioned, 0 kept, 0 failed" in done.stderr
    last = config.run_dir / "step-2"
    assert len(list((last / "state").glob("random_states_*"))) == 2
    assert all(sidecar_of(path).exists() for path in folder.glob("*.png"))

    alone = evaluate(EvalConfig(model_name=str(last), dataset_path=config.dataset_path, num_beams=1, max_new_tokens=4))
    written = json.loads(results.read_text())
    assert written["samples"] == 24
    assert written["figures"] == pytest.approx(dict(alone.figures), rel=1e-6)
    assert [row["image"] for row in written["captions"]] == [row.image for row in alone.captions]
