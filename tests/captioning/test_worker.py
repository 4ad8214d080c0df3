"""The captioning itself: tasks that share an image, bad images, second tries, words never to write, Ctrl-C."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2ner.model.checkpoints.loading import load_model
from tests.conftest import Caption, Start
from tests.support import files_in, many


def test_several_tasks_encode_each_image_once(
    run: Caption, images: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def load_and_watch(*args: Any, **kwargs: Any) -> Any:
        model, processor = load_model(*args, **kwargs)
        model.model.vision_tower.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
        return model, processor

    monkeypatch.setattr("florence2ner.model.build.load_model", load_and_watch)
    (images / "0.caption.txt").write_text("there already\n")
    tasks = ("<CAPTION>", "<OD>", "<OCR>")
    assert run(task_prompt=tasks).done == 5
    assert sum(encoded) == 5
    expected = {
        f"{stem}.{end}"
        for stem in ("0", "1", "2", "sub/3", "sub/4")
        for end in ("caption.txt", "od.json", "ocr.txt", "png")
    }
    assert files_in(images) == expected
    assert (images / "0.caption.txt").read_text() == "there already\n"
    assert json.loads((images / "0.od.json").read_text()).keys() == {"bboxes", "labels"}
    assert run(task_prompt=tasks).kept == 5


@pytest.mark.slow
def test_many_images_are_captioned_alike_by_a_compiled_tower(
    run: Caption, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(batch_size=1).done == 5
    plain = {path: path.read_text() for path in images.rglob("*.txt")}
    assert "compiling" not in capsys.readouterr().err
    monkeypatch.setattr("florence2ner.model.vision.COMPILE_FROM", 5 * (64 / 768) ** 2)
    assert run(batch_size=1, existing="overwrite").done == 5
    assert capsys.readouterr().err.count("compiling the vision tower for 5 images") == 1
    assert {path: path.read_text() for path in images.rglob("*.txt")} == plain
    assert len(plain) == 5


def test_bad_images_are_named_counted_and_skipped(run: Caption, images: Path, tmp_path: Path) -> None:
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.png").write_text("no image")
    Image.new("RGB", (100, 101)).save(images / "large.png")
    (images / "gone.png").symlink_to("nowhere.png")
    (images / os.fsdecode(b"caf\xe9.png")).write_text("no image, and no UTF-8 in its name")
    (images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    summary = run(max_pixels=10_000, failures=tmp_path / "failures.jsonl")
    assert (summary.done, summary.failed) == (5, 6)
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    bad = {"empty.jpg", "text.png", "large.png", "gone.png", "phone.heic", r"caf\xe9.png"}
    assert {Path(row["path"]).name for row in failures} == bad
    assert all(row["reason"] for row in failures)
    assert files_in(tmp_path) - {f"images/{name}" for name in files_in(images)} == {"failures.jsonl"}, "no lock is left"
    assert not [path for path in images.rglob("*.txt") if path.stem in {"empty", "text", "large", "gone"}]


def test_captions_cut_off_are_asked_again_and_named(
    run: Caption, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(retry=True, max_new_tokens=4)
    assert summary.flagged == summary.done == 5
    assert "5 captions look wrong even after a second try:" in capsys.readouterr().err
    run(retry=False, max_new_tokens=4, existing="overwrite")
    assert "5 captions look wrong:" in capsys.readouterr().err


def test_bad_words_are_never_written(run: Caption, images: Path) -> None:
    run()
    word = (images / "0.txt").read_text().split()[0]
    run(existing="overwrite", bad_words=(word,))
    assert word not in (images / "0.txt").read_text().split()


def test_a_temperature_repeats_with_the_seed_whatever_the_batches_and_processes(
    run: Caption, start: Start, images: Path, trained_model: Path, tmp_path: Path
) -> None:
    def texts(name: str) -> dict[str, str]:
        folder = tmp_path / name
        return {path: (folder / path).read_text() for path in files_in(folder)}

    run(temperature=1.5, batch_size=4, output_dir=tmp_path / "one")
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 16, "--no-retry")
    two = ("--temperature", 1.5, "--output-dir", tmp_path / "two", "--seed", 42)
    assert start("florence2ner", "caption", "images", *flags, *two, processes=2).wait().returncode == 0
    assert texts("one") == texts("two")
    run(temperature=1.5, seed=1, output_dir=tmp_path / "other")
    assert texts("one") != texts("other")


def test_ctrl_c_keeps_what_is_finished(start: Start, images: Path, trained_model: Path, shapes: Path) -> None:
    many(images, shapes, 200)
    flags = ("--model-name", trained_model, "--batch-size", 2, "--num-beams", 1, "--max-new-tokens", 16, "--no-retry")
    running = start("florence2ner", "caption", images, *flags, processes=2)
    while not list(images.glob("*.txt")):
        assert running.poll() is None, running.stderr
    running.signal(signal.SIGINT)
    assert running.wait().returncode == 130
    done = len(list(images.rglob("*.txt")))
    assert 0 < done < 205
    assert f"{done} captioned, 0 kept, 0 failed" in running.stderr
    said = "stopped by signal 2: what is captioned is on the disk; the same command goes on"
    assert running.stderr.count(said) == 1, "by the main process alone"
    assert "Traceback" not in running.stderr
