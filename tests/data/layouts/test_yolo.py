"""YOLO's label files become answers that read back as the same boxes; what can't be used is named by file and line."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner import UserError
from florence2ner.data.layouts.yolo import discover, matches
from florence2ner.model.answers import parse_answer
from florence2ner.model.tasks import TASKS
from tests.data.support import put

NAMES = "train: images\nnames:\n  0: car\n  1: traffic light\n"


def write(root: Path, labels: dict[str, str | None], *, names: str = NAMES, file: str = "data.yaml") -> Path:
    """Images with their label files, by the path of the image without its extension."""
    for name, text in labels.items():
        put(root / f"{name}.png")
        if text is not None:
            path = root / f"{name.replace('images', 'labels')}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (root / file).write_text(names)
    return root


def answers(root: Path, **where: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Of each sample, by its key: labels and boxes in thousandths, as a user would read them."""
    result: dict[str, Any] = {}
    for sample in discover(root, **where).samples:
        assert sample.task_prompt == "<OD>"
        answer = parse_answer(TASKS["<OD>"], sample.caption, (1000, 1000))
        assert isinstance(answer, dict)
        result[sample.image.key] = [*zip(answer["labels"], answer["bboxes"], strict=True)]
    return result


@pytest.mark.parametrize("name", ["images/a", "images/train/a", "train/images/a", "a", "images/images/a"])
def test_labels_are_beside_the_image_or_in_a_tree_of_their_own(tmp_path: Path, name: str) -> None:
    put(tmp_path / f"{name}.png")
    path = tmp_path / f"{'labels'.join(name.rsplit('images', 1))}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1 0.5 0.25 0.5 0.1\n\n0 0.1 0.1 0.1 0.1\n1 0.9 0.9 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text(NAMES)
    assert matches(tmp_path)
    light = [("traffic light", [250.5, 200.5, 750.5, 300.5]), ("traffic light", [800.5, 800.5, 999.5, 999.5])]
    assert answers(tmp_path) == {f"{name}.png": [*light, ("car", [50.5, 50.5, 150.5, 150.5])]}
    assert not discover(tmp_path).report()


def test_a_folder_of_the_dataset_is_searched_alone(tmp_path: Path) -> None:
    box = "0 0.5 0.5 0.5 0.5"
    write(tmp_path, {"train/images/a": box, "eval/images/b": box})
    assert answers(tmp_path, folder=tmp_path / "train").keys() == {"train/images/a.png"}
    assert discover(tmp_path, folder=tmp_path / "train").captions_without_image == ()


def test_polygons_and_poses_become_boxes(tmp_path: Path) -> None:
    write(tmp_path, {"a": "0 0.1 0.2 0.3 0.4 0.2 0.9\n"})
    assert answers(tmp_path) == {"a.png": [("car", [100.5, 200.5, 300.5, 900.5])]}
    write(tmp_path, {"a": "0 0.5 0.5 0.2 0.2 0.1 0.1\n"}, names=NAMES + "kpt_shape: [1, 2]\n")
    assert answers(tmp_path) == {"a.png": [("car", [400.5, 400.5, 600.5, 600.5])]}


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_a_class_list_names_the_classes_where_there_are_labels(tmp_path: Path, place: str) -> None:
    (tmp_path / "labels").mkdir()
    write(tmp_path, {"images/a": None, "images/b": "a picture of two cars"}, names="car\n\ndog\n", file=place)
    assert not matches(tmp_path), "captions that happen to have a classes.txt"
    write(tmp_path, {"images/a": "2 0.5 0.5 0.2 0.2\n"}, names="car\n\ndog\n", file=place)
    assert matches(tmp_path)
    assert answers(tmp_path) == {"images/a.png": [("dog", [400.5, 400.5, 600.5, 600.5])]}


@pytest.mark.parametrize(
    ("file", "text"), [("run.yaml", "epochs: 3\n"), ("other.yaml", "names: [a]\n"), ("data.yaml", "# names: of all")]
)
def test_captions_beside_another_yaml_are_not_yolos(tmp_path: Path, file: str, text: str) -> None:
    write(tmp_path, {"a": "a red car"}, names=text, file=file)
    assert not matches(tmp_path)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.2 0\n0 1.5 0.5 0.2 0.2\n0 0.9 0.5 0.4 0.2\n"
    write(tmp_path, {"images/a": text, "images/none": None, "images/empty": "\n"})
    (tmp_path / "labels" / "orphan.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "README.txt").write_text("about")
    found = discover(tmp_path)
    assert [sample.image.key for sample in found.samples] == ["images/a.png"]
    label = tmp_path / "labels" / "a.txt"
    assert found.report() == [
        f"2 images have no caption and are left out: {tmp_path}/images/empty.png, {tmp_path}/images/none.png",
        f"1 captions have no image and are left out: {tmp_path}/labels/orphan.txt",
        f"1 boxes are empty and are left out: {label} line 1",
        f"1 boxes lie outside of their pictures and are left out: {label} line 2",
        f"1 boxes reach over the edges of their pictures and are cut there: {label} line 3",
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 0.5 0.5 0.2", "line 2 has 4 numbers: a class and 4 make a box, 6 or more a polygon"),
        ("0 0.5 0.5 0.2 0.2 0.9", "line 2 has 6 numbers: a class and 4 make a box, 6 or more a polygon"),
        ("car 0.5 0.5 0.2 0.2", "line 2 holds 'car 0.5 0.5 0.2 0.2', which are not numbers"),
        ("0.5 0.5 0.5 0.2 0.2", "line 2: 0.5 is no class, or a coordinate is not finite"),
        ("0 nan 0.5 0.2 0.2", "line 2: 0.0 is no class, or a coordinate is not finite"),
        ("0 0.5 0.5 0.2 0.2 caf\xe9", "not UTF-8 text"),
    ],
)
def test_an_image_with_a_broken_line_is_left_out_and_the_line_named(tmp_path: Path, line: str, why: str) -> None:
    box = "0 0.5 0.5 0.2 0.2\n"
    write(tmp_path, {"a": box, "b": box})
    (tmp_path / "b.txt").write_bytes((box + line).encode("latin-1"))
    found = discover(tmp_path)
    assert [sample.image.key for sample in found.samples] == ["a.png"]
    assert found.report() == [f"1 label files can't be read, and their images are left out: {tmp_path}/b.txt: {why}"]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("names: [car]", "{root}/a.txt line 1: the class 1 has no name in {root}/data.yaml: add it there"),
        ("names: [car, Café]", "{root}/data.yaml: the class 1, 'Café', holds letters that are not ASCII"),
        ("names: [car, '<a>']", "{root}/data.yaml: the class 1, '<a>', holds a <"),
        ("names: [car, no]", "{root}/data.yaml: the name of the class 1 is False: put it in quotes"),
        ("names: {a: b}", "{root}/data.yaml: the name of the class a is 'b': put it in quotes, after a whole number"),
        ("names: two", "{root}/data.yaml: `names` must be a list of the classes"),
        ("names: [car", "{root}/data.yaml is not YAML: while parsing a flow sequence"),
    ],
)
def test_classes_that_can_not_be_right_are_refused(tmp_path: Path, names: str, why: str) -> None:
    write(tmp_path, {"a": "1 0.5 0.5 0.2 0.2\n"}, names=names)
    assert matches(tmp_path), "a mistake in it makes it no other layout"
    with pytest.raises(UserError) as error:
        discover(tmp_path)
    assert str(error.value).startswith(why.format(root=tmp_path))
    assert "\n" not in str(error.value)


def test_a_dataset_without_names_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing names the classes in .*: give it a data\.yaml with a list `names`"):
        discover(tmp_path)
