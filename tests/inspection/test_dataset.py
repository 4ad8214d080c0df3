"""What is read and how it is divided is what training has with the same settings; what that refuses is collected."""

import json
import shutil
from pathlib import Path

import pytest

from florence2ner import InspectConfig, TrainConfig, UserError
from florence2ner.data.samples import Sample
from florence2ner.inspection.dataset import read_dataset
from florence2ner.training.run_folder import find_start
from tests.data.support import captioned, write_shard
from tests.inspection.support import figures, findings, inspected, make_clean, names, put

SETTINGS: dict[str, dict[str, object]] = {
    "flat": {},
    "train and eval": {},
    "eval only": {},
    "links": {},
    "count": {"eval_split_count": 5},
    "seed": {"seed": 7, "eval_split_ratio": 0.4},
    "nothing held out": {"eval_steps": None},
    "similar": {"split_by_similarity": 4},
    "each line": {"caption_lines": "each"},
    "one of the lines": {"caption_lines": "random"},
    "repeats": {"kohya_repeats": True},
}


def make(root: Path, name: str) -> Path:
    """A dataset in folders as `name` says; some images have two lines, are copies or nearly the same."""
    make_clean(root, split=name in ("train and eval", "eval only", "links"))
    if name == "eval only":
        (root / "train").rename(root / "more")
    if name == "links":
        (root / "train" / "seen.png").symlink_to(root / "eval" / "9.png")
        (root / "train" / "seen.txt").write_text("held out")
    folder = root if (root / "1.png").exists() else root / ("more" if name == "eval only" else "train")
    shutil.copy(folder / "1.png", folder / "copy.png")
    (folder / "copy.txt").write_text("the same boats\nonce more")
    put(folder / "smaller.jpg", "boats again", seed=1, size=(72, 64))
    put(folder / "3_many" / "extra.png", "three times", seed=60)
    put(root / "alone.png", None, seed=61)
    return root


@pytest.mark.parametrize("name", SETTINGS)
def test_the_split_and_its_length_are_those_of_training(tmp_path: Path, tiny_model: Path, name: str) -> None:
    settings = {"dataset_path": make(tmp_path / "data", name), "train_batch_size": 2, **SETTINGS[name]}
    start = find_start(TrainConfig(model_name=str(tiny_model), output_dir=tmp_path, **settings))  # type: ignore[arg-type]
    dataset = read_dataset(InspectConfig(**settings))  # type: ignore[arg-type]
    assert dataset.split == start.split
    assert dataset.refusals == []
    for side, samples in (("train", start.split.train), ("eval", start.split.eval)):
        keys = {item.image.key for item in dataset.items if item.side == side}
        assert keys == {sample.image.key for sample in samples}
    log = [note for note in start.notes if "florence2ner inspect" not in note]
    assert dataset.found.report() == log


def test_roots_have_settings_of_their_own_and_an_eval_path(tmp_path: Path, tiny_model: Path) -> None:
    photos, boxes, held_out = (tmp_path / name for name in ("photos", "boxes", "held-out"))
    make_clean(photos)
    for number in range(4):
        put(boxes / f"{number}.png", None, seed=20 + number)
        for task, text in (("<OD>", "car<loc_1><loc_2><loc_3><loc_4>"), ("<CAPTION>", f"{number} red cars")):
            (boxes / task).mkdir(exist_ok=True)
            (boxes / task / f"{number}.txt").write_text(text)
    put(held_out / "new.png", "never seen", seed=40)
    shutil.copy(photos / "5.png", held_out / "seen.png")
    (held_out / "seen.txt").write_text("red tulips")
    settings = {
        "dataset_path": [{"path": str(photos), "weight": 3, "task_prompt": "<DETAILED_CAPTION>"}, str(boxes)],
        "eval_path": str(held_out),
    }
    start = find_start(TrainConfig(model_name=str(tiny_model), output_dir=tmp_path, **settings))  # type: ignore[arg-type]
    assert read_dataset(InspectConfig(**settings)).split == start.split  # type: ignore[arg-type]
    found = inspected(**settings)
    assert {finding.kind for finding in found.findings} == {"copy-across-split"}, "another task is no other caption"
    (copy,) = found.findings
    (line,) = [note for note in start.notes if "are not trained on" in note]
    assert f"{copy.count} images are copies of some that are evaluated on, and are not trained on" in line
    (example,) = copy.examples
    assert (example.name, example.detail) == ("photos/5.png", "held-out/seen.png")
    assert (found.roots, found.eval_roots) == ((str(photos), str(boxes)), (str(held_out),))
    words = {figure.name: figure.words for figure in found.figures}
    assert words["images"] == "18, 18 with a caption"
    assert words["captions"] == "22: 12 for <DETAILED_CAPTION>, 6 for <CAPTION>, 4 for <OD>"
    assert words["trained on"] == "19 captions of 15 images, of which an epoch takes 41, 2 held out"


def test_an_image_with_several_captions_has_them_all(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "1.txt").write_text("two boats\n\na pier</s>\n")
    found = inspected(tmp_path, caption_lines="each")
    assert [(finding.kind, finding.count) for finding in found.findings] == [("special-token", 1)]
    assert figures(tmp_path, caption_lines="each")["captions"] == "13: 13 for <CAPTION>"
    (tmp_path / "1.caption").write_text("by another hand")
    several = figures(tmp_path, caption_extension=(".txt", ".caption"))
    assert several["captions"].startswith("13: ")
    assert findings(tmp_path, caption_lines="first", caption_extension=(".txt", ".caption")) == {}


@pytest.mark.parametrize("place", ["dataset_path", "eval_path", "folder"])
def test_shards_are_refused_in_one_line(tmp_path: Path, place: str) -> None:
    shard = write_shard(tmp_path / "shards" / "a.tar", captioned("one", "two"))
    folder = make_clean(tmp_path / "data")
    given = {"dataset_path": folder} | {"dataset_path" if place == "folder" else place: shard}
    if place == "folder":
        given["dataset_path"] = shard.parent
    with pytest.raises(
        UserError, match=r"means tar shards, .*: name the folder that they were made of, or one"
    ) as error:
        inspected(**given)
    assert "\n" not in str(error.value)


def test_what_is_refused_in_one_root_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    table = tmp_path / "table"
    put(table / "a.png", None, seed=30)
    (table / "metadata.jsonl").write_text(json.dumps({"image": "a.png", "text": "a"}) + "\n{torn\n")
    (make_clean(tmp_path / "photos") / "1.txt").unlink()
    settings = {"dataset_path": [table, tmp_path / "photos"], "eval_split_count": 2}
    found = findings(**settings)
    assert {kind: finding.severity for kind, finding in found.items()} == {
        "refused": "breaks",
        "image-without-caption": "hurts",
    }
    (line,) = names(found["refused"])
    assert line.startswith("line 2 of table/metadata.jsonl is not JSON")
    with pytest.raises(UserError, match=f"line 2 of {table}/metadata.jsonl is not JSON"):
        find_start(TrainConfig(model_name=str(tmp_path), output_dir=tmp_path, **settings))  # type: ignore[arg-type]
    assert figures(**settings)["trained on"] == "nothing: training refuses the dataset"


@pytest.mark.parametrize("kind", ["two readings", "prompt", "column", "outside"])
def test_what_training_refuses_is_told_in_its_words(tmp_path: Path, kind: str) -> None:
    settings: dict[str, object] = {"dataset_path": tmp_path / "data"}
    make_clean(tmp_path / "data")
    row = {"image": "../b.png" if kind == "outside" else "1.png", "text": "a"}
    if kind != "two readings":
        for text in (tmp_path / "data").glob("*.txt"):
            text.unlink()
    if kind == "prompt":
        row["prompt"] = "<OD> please"
    if kind == "column":
        settings["caption_column"] = "txt"
    put(tmp_path / "b.png", None, seed=50)
    (tmp_path / "data" / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"image": "2.png"}) + "\n")
    expected = {
        "two readings": "reads as a table of images and captions (--layout table) and as images with caption files",
        "prompt": "task prompt '<OD> please' is more than its task: give <OD> alone",
        "column": "has no column txt (caption_column). Did you mean text?",
        "outside": "names ../b.png, which is outside of",
    }
    found = findings(**settings)["refused"]
    assert found.severity == "breaks"
    assert expected[kind] in names(found)[0]


def test_sides_without_a_split_are_those_of_the_folders(tmp_path: Path) -> None:
    make_clean(tmp_path, split=True)
    (tmp_path / "train" / "1.txt").write_bytes(b"\xff")
    dataset = read_dataset(InspectConfig(dataset_path=tmp_path))  # type: ignore[arg-type]
    assert dataset.split is None
    sides = {item.image.key: item.side for item in dataset.items}
    assert (sides["eval/9.png"], sides["train/0.png"], sides["train/1.png"]) == ("eval", "train", "unused")


def test_a_sample_keeps_its_captions(tmp_path: Path) -> None:
    dataset = read_dataset(InspectConfig(dataset_path=make_clean(tmp_path)))  # type: ignore[arg-type]
    assert dataset.split is not None
    samples: dict[str, Sample] = {sample.image.key: sample for sample in dataset.split.samples}
    assert {item.image.key: (item.captions[0].text,) for item in dataset.items} == {
        key: sample.captions for key, sample in samples.items()
    }
