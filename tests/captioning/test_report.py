"""`caption --report`: the page of a real run, of files and of tar shards, from one process and from two."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Caption, Start
from tests.data.support import write_shard


def rows_of(report: Path) -> list[dict[str, Any]]:
    (data,) = re.findall(r'id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    (gallery,) = (block for block in json.loads(data)["blocks"] if block["block"] == "gallery")
    return list(gallery["rows"])


def test_the_page_has_every_image_with_its_answers(
    run: Caption, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    run(report=report, task_prompt=("<CAPTION>", "<OD>"))
    assert f"the report is in {report}" in capsys.readouterr().err
    rows = rows_of(report)
    assert {row["image"] for row in rows} == {str(path) for path in images.rglob("*.png")}
    for row in rows:
        written = Path(row["image"]).with_suffix(".caption.txt")
        assert row["texts"][0]["who"] == "<CAPTION>"
        assert "".join(row["texts"][0]["parts"]).strip() == written.read_text().strip()
    assert report.read_text().count("data:image/jpeg") == 5


def test_images_of_shards_have_their_pictures_though_they_are_gone(run: Caption, shapes: Path, tmp_path: Path) -> None:
    shard, report = tmp_path / "in" / "0.tar", tmp_path / "report.html"
    write_shard(shard, {f"{n}.png": (shapes / f"{n:04d}.png").read_bytes() for n in range(3)})
    run(paths=(str(shard),), output_dir=tmp_path / "out", report=report)
    assert [Path(row["image"]).name for row in rows_of(report)] == ["0.png", "1.png", "2.png"]
    assert report.read_text().count("data:image/jpeg") == 3


def test_a_page_that_cannot_be_written_costs_no_caption(
    run: Caption, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "report.html").symlink_to(tmp_path / "report" / "x.html")
    (tmp_path / "report").write_text("no folder, though it could be made one when the run began")
    done = run(report=folder / "report.html")
    assert done.done == 5
    assert "warning: can't write" in capsys.readouterr().err
    assert len(list(images.rglob("*.txt"))) == 5


@pytest.mark.slow
def test_two_processes_write_one_page(trained_model: Path, shapes: Path, tmp_path: Path, start: Start) -> None:
    folder, report = tmp_path / "images", tmp_path / "report.html"
    folder.mkdir()
    for number in range(12):
        shutil.copy(shapes / f"{number:04d}.png", folder)
    words = ("--model-name", trained_model, "--num-beams", 1, "--max-new-tokens", 8, "--batch-size", 2)
    start("florence2ner", "caption", folder, *words, "--report", report, processes=2).wait()
    assert {Path(row["image"]).name for row in rows_of(report)} == {f"{number:04d}.png" for number in range(12)}
