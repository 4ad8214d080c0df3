"""The findings of a real inspection, for the folder that is reviewed."""

import shutil
from pathlib import Path

import pytest

from florence2ner import inspect_dataset
from florence2ner.config.commands import InspectConfig
from florence2ner.errors import UserError
from florence2ner.review.findings import load_findings


def inspected(file: Path, *roots: Path) -> Path:
    inspect_dataset(InspectConfig(dataset_path=roots, eval_steps=None, json_file=file))
    return file


def test_a_real_inspection_is_read(photos: Path, tmp_path: Path) -> None:
    (photos / "1.txt").unlink()
    shutil.copy(photos / "2.png", photos / "copy.png")
    shutil.copy(photos / "2.txt", photos / "copy.txt")
    found = {kind.kind: {*kind.details} for kind in load_findings(inspected(tmp_path / "a.json", photos), photos)}
    assert found["image-without-caption"] == {"1.png"}
    assert found["copy"] == {"2.png", "copy.png"}


def test_of_several_folders_only_this_one_counts(photos: Path, tmp_path: Path) -> None:
    other = shutil.copytree(photos, tmp_path / "other")
    (photos / "1.txt").unlink()
    (other / "2.txt").unlink()
    file = inspected(tmp_path / "a.json", photos, other)
    found = {kind.kind: {*kind.details} for kind in load_findings(file, photos)}
    assert found["image-without-caption"] == {"1.png"}
    with pytest.raises(UserError, match=r"is about .*, not about"):
        load_findings(file, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset_path": 1}', '{"dataset_path": [], "eval_path": []}'])
def test_what_is_no_inspection_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="doesn't hold findings: make it with florence2ner inspect --json"):
        load_findings(tmp_path / "a.json", tmp_path)
