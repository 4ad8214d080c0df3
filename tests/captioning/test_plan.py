"""What is to be captioned, decided without a model: tasks that go together, and mistakes that are one line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from florence2ner import CaptionConfig, UserError, caption
from tests.conftest import ROOT, Caption
from tests.support import files_in, plan, without_roots_powers


def test_planning_needs_no_torch() -> None:
    code = "import sys, florence2ner.model.answers, florence2ner.outputs.style; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_boxes_do_not_replace_what_is_to_be_extended(tmp_path: Path, existing: str) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=f"--existing {existing} extends text, but the answers to <OD> are JSON"):
        plan(tmp_path, existing=existing, task_prompt=("<CAPTION>", "<OD>"))
    assert plan(tmp_path, existing=existing, task_prompt=("<CAPTION>", "<OCR>")).todo


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"template": "{captoin}"}, "caption"),
        ({"task_prompt": "<CAPTION_TO_PHRASE_GROUNDING>"}, "--text"),
        ({"text": "a dog"}, "--text"),
        ({"task_prompt": ("<OD>", "<OD>")}, "twice"),
        ({"shard_form": "tar"}, "--shard-form tar is for tar shards: leave it out"),
    ],
)
def test_mistakes_are_one_line_each(run: Caption, flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**flags)


@pytest.mark.parametrize("flag", ["output", "output_dir", "failures"])
def test_places_that_cannot_be_written_to_are_refused_before_the_model_is_looked_for(
    images: Path, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / "out" / ("" if flag == "output_dir" else "x.jsonl")
    before = files_in(tmp_path)
    for settings in ({}, {"dry_run": True}):
        with pytest.raises(UserError, match=f"can't make the folder .*choose another --{flag.replace('_', '-')}"):
            caption(CaptionConfig(paths=(images,), model_name="nowhere", **settings, **{flag: place}))
    assert files_in(tmp_path) == before


def test_folders_that_cannot_be_written_to_are_refused_before_the_model_is_looked_for(images: Path) -> None:
    os.chmod(images / "sub", 0o555)
    done = without_roots_powers("-m", "florence2ner", "caption", images, "--model-name", "nowhere")
    assert done.returncode == 2, done.stderr
    said = f"error: can't write to {images}/sub (Permission denied): write elsewhere with --output-dir or --output"
    assert done.stderr.splitlines() == [said]


@pytest.mark.parametrize(
    ("name", "text", "settings", "said"),
    [
        ("captions.jsonl", "", {"output": "captions.jsonl"}, "is the output, too"),
        ("link.jsonl", None, {"output": "captions.jsonl"}, "is the output, too"),
        ("captions.unfinished.jsonl", None, {"output": "captions.json"}, "is the output, too"),
        ("sub/../images/a.txt", None, {}, "is the output, too"),
        ("link/a.txt", None, {}, "is the output, too"),
        ("images/a.od.json", None, {"task_prompt": ("<OD>", "<OCR>")}, "is the output, too"),
        ("images/a.png", "", {}, "is an image, too"),
        ("notes.txt", "call the plumber", {}, "holds something else than failures"),
        ("captions.jsonl", '{"path": "a.png", "caption": "a dog"}\n', {}, "holds something else than failures"),
        ("list.json", "[]", {}, "holds something else than failures"),
        ("bytes", b"\xff\n", {}, "holds something else than failures"),
        ("pipe", None, {}, "holds something else than failures"),
    ],
)
def test_failures_replace_nothing_but_failures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str | bytes | None,
    settings: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "sub"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("images")
    (tmp_path / "link.jsonl").symlink_to("captions.jsonl")
    (tmp_path / "images" / "a.png").touch()
    os.mkfifo("pipe")
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=f"--failures {name} {said}: name another file"):
        plan(Path("images"), failures=name, **settings)
    with pytest.raises(UserError, match=f"--failures {name} {said}: name another file"):  # as a user starts it
        caption(CaptionConfig.model_validate({"paths": ("images",), "failures": name, "model_name": "no"} | settings))
    assert files_in(tmp_path) == before
    for whole in ("", '{"path": "b.png", "reason": "x"}\n', '{"path": "b.png", "reason": "x"}\n{"path": "to'):
        (tmp_path / "failures.jsonl").write_text(whole)
        assert plan(Path("images"), failures="failures.jsonl", **settings).todo, "one of ours is taken"
