"""Captioning folders: what is kept, what is written where, what resumes, and what the exit code says."""

import csv
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2ner import CaptionConfig, TrainConfig, UserError, caption, train
from florence2ner.model.checkpoints.loading import load_model
from tests.conftest import ColdStart, Start

Caption = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, shapes: Path, tiny_model: Path) -> Path:
    """A tiny model that has learnt to write something. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"max_steps": 30, "train_batch_size": 8, "gradient_accumulation_steps": 1, "warmup_steps": 0}
    settings |= {"learning_rate": 3e-3, "gradient_checkpointing": False, "eval_steps": None, "save_steps": None}
    config = TrainConfig(
        dataset_path=shapes,
        model_name=str(tiny_model),
        output_dir=folder,
        log_with=("none",),
        feature_cache="off",
        epochs=99,
        **settings,
    )
    return train(config)


@pytest.fixture
def images(tmp_path: Path, shapes: Path) -> Path:
    """Five images in a folder and a subfolder, without captions."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        shutil.copy(shapes / f"000{number}.png", folder / ("sub" if number > 2 else "") / f"{number}.png")
    return folder


@pytest.fixture
def run(model: Path, images: Path) -> Caption:
    """Caption `images` quickly, with other settings where given."""

    def run(**changes: object) -> Any:
        quick: dict[str, object] = {"paths": (images,), "model_name": str(model), "batch_size": 2}
        quick |= {"num_beams": 1, "max_new_tokens": 16, "retry": False}
        return caption(CaptionConfig.model_validate(quick | changes))

    return run


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_existing_captions_are_kept_overwritten_or_extended(run: Caption, images: Path) -> None:
    (images / "0.txt").write_text("by hand\n")
    (images / "1.txt").write_text("")
    summary = run()
    assert (summary.done, summary.kept, summary.failed) == (4, 1, 0)
    assert (images / "0.txt").read_text() == "by hand\n"
    written = {path: path.read_text() for path in images.rglob("*.txt")}
    assert len(written) == 5
    assert all(text.endswith("\n") and text.strip() and text.count("\n") == 1 for text in written.values())

    first = (images / "0.png",)
    assert run(paths=first, existing="append", backup=True).done == 1
    text = (images / "0.txt").read_text()
    model_text = text.removeprefix("by hand ")
    assert text == f"by hand {model_text}" != model_text
    assert (images / "0.txt.bak").read_text() == "by hand\n"
    run(paths=first, existing="append", backup=True)
    assert (images / "0.txt").read_text() == text, "a run that is started again adds nothing twice"
    run(paths=first, existing="prepend", separator=" | ")
    assert (images / "0.txt").read_text() == f"{model_text.strip()} | {text}"
    run(paths=first, existing="overwrite", backup=True)
    assert (images / "0.txt").read_text() == model_text
    assert {path.name for path in images.glob("0.txt.bak*")} == {"0.txt.bak", "0.txt.bak2"}, "none needless"
    assert (images / "0.txt.bak").read_text() == "by hand\n", "the oldest text is never lost"


def test_output_dir_mirrors_the_tree_and_long_names_fit(run: Caption, images: Path, tmp_path: Path) -> None:
    long = "ü" * 121 + " [1].png"  # 250 bytes, of 255 that most file systems allow
    shutil.copy(images / "0.png", images / long)
    run(output_dir=tmp_path / "out")
    assert names(tmp_path / "out") == {path.replace(".png", ".txt") for path in names(images)}
    assert not list(images.rglob("*.txt"))


def test_images_that_would_share_a_caption_are_refused_or_named_in_full(run: Caption, images: Path) -> None:
    Image.open(images / "0.png").convert("RGB").save(images / "0.jpg")
    before = names(images)
    with pytest.raises(UserError, match=r"0\.jpg and .*0\.png would share .*0\.txt.*--on-collision full-name"):
        run()
    assert names(images) == before
    run(on_collision="full-name")
    assert names(images) - before == {"0.jpg.txt", "0.png.txt", "1.txt", "2.txt", "sub/3.txt", "sub/4.txt"}


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.json", "metadata.jsonl"])
def test_one_file_for_all_captions_goes_on_where_it_was(run: Caption, images: Path, name: str) -> None:
    output = images / name
    run(output=output, paths=(images / "0.png", images / "1.png"))
    if not name.endswith(".json"):
        with output.open("ab") as file:
            file.write(output.read_bytes().splitlines()[-1][:30])  # the torn line of a killed run
    summary = run(output=output)
    assert (summary.done, summary.kept) == (3, 2)
    assert run(output=output).done == 0
    assert not list(images.rglob("*.txt"))
    text = output.read_text()
    rows = {
        "captions.jsonl": lambda: [json.loads(line) for line in text.splitlines()],
        "metadata.jsonl": lambda: [json.loads(line) for line in text.splitlines()],
        "captions.csv": lambda: list(csv.DictReader(text.splitlines())),
        "captions.json": lambda: json.loads(text),
    }[name]()
    key = "file_name" if name == "metadata.jsonl" else "path"
    assert sorted(row[key] for row in rows) == ["0.png", "1.png", "2.png", "sub/3.png", "sub/4.png"]
    assert names(images) == {"0.png", "1.png", "2.png", "sub/3.png", "sub/4.png", name}, "nothing else is left"
    if name == "metadata.jsonl":
        assert all(row.keys() == {"file_name", "text"} for row in rows)
    else:
        assert {(int(row["width"]), int(row["height"])) for row in rows} == {(64, 64)}
        assert {row["task"] for row in rows} == {"<CAPTION>"}
        settings = rows[0]["settings"]
        assert (json.loads(settings) if isinstance(settings, str) else settings)["max_new_tokens"] == 16
    run(output=output, existing="overwrite", backup=True)
    assert (images / f"{name}.bak").read_text() == text


def test_standard_output_is_json_lines(run: Caption, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(output="-", trigger_word="sks")
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {row["path"] for row in rows} == {str(path) for path in images.rglob("*.png")}
    assert all(row["caption"].startswith("sks, ") for row in rows)


def test_several_tasks_encode_each_image_once(
    run: Caption, images: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def load_and_watch(*args: Any, **kwargs: Any) -> Any:
        model, processor = load_model(*args, **kwargs)
        model.model.vision_tower.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
        return model, processor

    monkeypatch.setattr("florence2ner.captioning.worker.load_model", load_and_watch)
    (images / "0.caption.txt").write_text("there already\n")
    tasks = ("<CAPTION>", "<OD>", "<OCR>")
    assert run(task_prompt=tasks).done == 5
    assert sum(encoded) == 5
    expected = {
        f"{stem}.{end}"
        for stem in ("0", "1", "2", "sub/3", "sub/4")
        for end in ("caption.txt", "od.json", "ocr.txt", "png")
    }
    assert names(images) == expected
    assert (images / "0.caption.txt").read_text() == "there already\n"
    assert json.loads((images / "0.od.json").read_text()).keys() == {"bboxes", "labels"}
    assert run(task_prompt=tasks).kept == 5


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
    assert names(tmp_path) - {f"images/{name}" for name in names(images)} == {"failures.jsonl"}, "no lock is left"
    assert not [path for path in images.rglob("*.txt") if path.stem in {"empty", "text", "large", "gone"}]


def test_captions_cut_off_are_asked_again_and_named(
    run: Caption, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(retry=True, max_new_tokens=4)
    assert summary.flagged == summary.done == 5
    assert "5 captions look wrong even after a second try" in capsys.readouterr().err


def test_bad_words_are_never_written(run: Caption, images: Path) -> None:
    run()
    word = (images / "0.txt").read_text().split()[0]
    run(existing="overwrite", bad_words=(word,))
    assert word not in (images / "0.txt").read_text().split()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"template": "{captoin}"}, "caption"),
        ({"task_prompt": "<CAPTION_TO_PHRASE_GROUNDING>"}, "--text"),
        ({"text": "a dog"}, "--text"),
        ({"task_prompt": ("<OD>", "<OD>")}, "twice"),
    ],
)
def test_mistakes_are_one_line_each(run: Caption, flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**flags)


def test_dry_run_and_nothing_to_do_need_no_torch(cold_start: ColdStart, images: Path) -> None:
    for flags, said in ((["--dry-run"], "5 images would be captioned"), ([], "nothing to do: all 5 images")):
        before = names(images)
        watch = "import sys; from florence2ner.cli import main; sys.argv = sys.argv[1:]\n"
        watch += "try: main()\nfinally: assert 'torch' not in sys.modules"
        result = cold_start("-c", watch, "florence2ner", "caption", images, *flags)
        _, errors = result.communicate(timeout=60)
        assert result.returncode == 0, errors
        assert said in errors
        assert names(images) == before
        for image in images.rglob("*.png"):
            image.with_suffix(".txt").write_text("done\n")


def many(images: Path, shapes: Path, count: int) -> list[Path]:
    """`count` more images, as links."""
    sources = sorted(shapes.glob("*.png"))
    paths = [images / f"{number:03d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.symlink_to(sources[number % len(sources)])
    return paths


def test_two_processes_share_the_work(start: Start, images: Path, model: Path, shapes: Path, tmp_path: Path) -> None:
    many(images, shapes, 27)
    (images / "bad.png").write_text("no image")
    flags = ("--model-name", model, "--batch-size", 3, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    output = tmp_path / "captions.jsonl"
    result = start("florence2ner", "caption", images, *flags, "--output", output, processes=2).wait()
    assert result.returncode == 3, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == sorted(
        path.name for path in images.rglob("*.png") if path.name != "bad.png"
    )
    assert result.stderr.count("32 captioned, 0 kept, 1 failed") == 1, "one summary for the whole"


def test_two_processes_print_in_turn(start: Start, images: Path, model: Path, tmp_path: Path) -> None:
    flags = ("--model-name", model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    result = start("florence2ner", "caption", images, *flags, "--output", "-", processes=2, HOME=str(tmp_path)).wait()
    assert {json.loads(line)["path"] for line in result.stdout.splitlines()} == {str(p) for p in images.rglob("*.png")}
    assert not list((tmp_path / ".cache" / "florence2ner").iterdir()), "no lock is left"


@pytest.mark.parametrize("moment", ["before the array", "after the array"])
def test_a_json_array_survives_a_kill_at_its_end(run: Caption, images: Path, tmp_path: Path, moment: str) -> None:
    output = tmp_path / "captions.json"
    run(output=output)
    rows = json.loads(output.read_text())
    (tmp_path / "captions.unfinished.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if moment == "before the array":
        output.unlink()
    assert run(output=output).kept == len(rows) == 5
    assert json.loads(output.read_text()) == rows
    assert not (tmp_path / "captions.unfinished.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sidecars", "jsonl"])
def test_kill_minus_nine_leaves_every_image_with_one_whole_caption(
    run: Caption, start: Start, images: Path, model: Path, shapes: Path, tmp_path: Path, form: str
) -> None:
    run(paths=(shapes,), output=tmp_path / "expected.jsonl")
    rows = map(json.loads, (tmp_path / "expected.jsonl").read_text().splitlines())
    expected = {Path(row["path"]).name: row["caption"] for row in rows}
    shutil.rmtree(images)
    images.mkdir()
    paths = many(images, shapes, 300)
    output = tmp_path / "captions.jsonl"
    flags = ["--model-name", model, "--batch-size", 2, "--num-beams", 1, "--max-new-tokens", 16, "--no-retry"]
    flags += ["--output", output] if form == "jsonl" else []

    def written() -> dict[Path, str]:
        if form == "sidecars":
            return {path.with_suffix(".png"): path.read_text() for path in images.glob("*.txt")}
        lines = output.read_text().split("\n")[:-1] if output.exists() else []
        rows = [json.loads(line) for line in lines]
        assert len({row["path"] for row in rows}) == len(rows), "no image twice"
        return {tmp_path / row["path"]: row["caption"] + "\n" for row in rows}

    rng = random.Random(0)
    for _ in range(5):
        goal = len(written()) + rng.randint(1, 10)
        running = start("florence2ner", "caption", images, *flags, processes=2)
        while len(written()) < goal:
            assert running.poll() is None, running.stderr
        running.poll(rng.uniform(0, 0.05))  # somewhere in the next batch
        running.signal(signal.SIGKILL)
        assert running.wait().returncode == -signal.SIGKILL
    assert 0 < len(written()) < 300, "it was killed on the way"
    result = start("florence2ner", "caption", images, *flags, processes=2).wait()
    assert result.returncode == 0, result.stderr
    assert written() == {path: expected[path.resolve().name] + "\n" for path in paths}


def test_ctrl_c_keeps_what_is_finished(start: Start, images: Path, model: Path, shapes: Path) -> None:
    many(images, shapes, 200)
    flags = ("--model-name", model, "--batch-size", 2, "--num-beams", 1, "--max-new-tokens", 16, "--no-retry")
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


def test_watch_captions_images_as_they_appear(start: Start, images: Path, model: Path, shapes: Path) -> None:
    flags = ("--model-name", model, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry", "--watch")
    running = start("florence2ner", "caption", images, *flags)

    def wait_for(stem: str) -> None:
        while not (images / f"{stem}.txt").exists():
            assert running.poll(0.01) is None, running.stderr

    wait_for("0")
    start_of_watch = time.monotonic()
    (images / "bad.png").write_text("no image")
    for name in ("new", "newer"):
        shutil.copy(shapes / "0007.png", images / f"{name}.png")
        wait_for(name)
    seconds = time.monotonic() - start_of_watch
    running.signal(signal.SIGINT)
    assert running.wait().returncode == 130
    assert running.stderr.count("bad.png is skipped") == 1, "a bad file is tried once"
    found = re.search(r"7 captioned, 0 kept, 1 failed \(([\d.]+) images/s\)", running.stderr)
    assert found, running.stderr
    assert float(found[1]) > 1.5 * 7 / seconds, "waiting for images is not captioning"


def test_out_of_memory_halves_the_batch_and_goes_on(start: Start) -> None:
    result = start("tests.short_of_memory").wait()
    assert result.returncode == 0, result.stderr
