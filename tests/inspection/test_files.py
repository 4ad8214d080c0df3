"""What lies in the folders of a dataset without being used is found, and what is used is not."""

import json
from pathlib import Path

from tests.inspection.support import CAPTIONS, findings, make_clean, names, put
from tests.support import without_roots_powers


def test_only_what_another_extension_leaves_out_is_named(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "1.CAPTION").write_text("another")
    found = findings(tmp_path)["other-extension"]
    assert (names(found), found.count) == ([".caption"], 1)
    assert findings(tmp_path, caption_extension=(".txt", ".caption")) == {}


def test_a_caption_file_that_images_share_is_named_once(tmp_path: Path) -> None:
    make_clean(tmp_path)
    put(tmp_path / "x.png", None, seed=30)
    put(tmp_path / "x.jpg", None, seed=31)
    (tmp_path / "x.txt").write_bytes(b"\xff")
    found = findings(tmp_path)
    assert names(found["not-utf8"]) == ["x.txt"]
    assert names(found["shared-caption"]) == ["x.txt"]


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    closed = make_clean(tmp_path) / "closed"
    closed.mkdir(mode=0)
    done = without_roots_powers("-m", "florence2ner", "inspect", tmp_path, "--json", "-")
    found = {finding["kind"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert [example["name"] for example in found["unreadable-folder"]["examples"]] == ["closed"]


def test_an_image_that_needs_a_plugin_is_named(tmp_path: Path, without_plugins: None) -> None:
    make_clean(tmp_path)
    (tmp_path / "phone.heic").write_bytes(b"whatever")
    (tmp_path / "phone.txt").write_text("its caption, which has an image")
    found = findings(tmp_path)
    assert [*found] == ["needs-package"]
    assert names(found["needs-package"]) == ["phone.heic"]
    assert "pip install pillow-heif" in found["needs-package"].advice


def test_what_neither_side_takes_is_named(tmp_path: Path) -> None:
    make_clean(tmp_path, split=True)
    (tmp_path / "train" / "seen.png").symlink_to(tmp_path / "eval" / "9.png")
    (tmp_path / "train" / "seen.txt").write_text("held out")
    put(tmp_path / "lonely.png", "on its own", seed=50)
    assert names(findings(tmp_path)["outside-of-train"]) == ["lonely.png", "train/seen.png"]


def test_images_in_no_list_of_a_given_split_are_named(tmp_path: Path) -> None:
    make_clean(tmp_path / "data")
    lists = {"train": [f"{number}.png" for number in range(3, 12)], "eval": ["1.png", "2.png"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    found = findings(tmp_path / "data", split=tmp_path / "split.json")
    assert {kind: names(finding) for kind, finding in found.items()} == {"in-no-list": ["0.png"]}


def test_a_folder_that_is_read_for_two_tasks_lacks_the_captions_of_one(tmp_path: Path) -> None:
    make_clean(tmp_path)
    for number in range(12):
        (tmp_path / f"{number}.caption").write_text(f"of {CAPTIONS[number]}")
    (tmp_path / "1.caption").unlink()
    (tmp_path / "2.caption").write_text("")
    other = {"path": str(tmp_path), "caption_extension": ".caption", "task_prompt": "<DETAILED_CAPTION>"}
    found = findings([str(tmp_path), other])
    command = f"florence2ner caption {tmp_path} --caption-extension .caption --task-prompt '<DETAILED_CAPTION>'"
    assert {kind: (names(finding), finding.fixes) for kind, finding in found.items()} == {
        "image-without-caption": (["1.png"], (command,)),
        "empty-caption": (["2.png"], (command,)),
    }


def test_each_root_has_the_command_that_captions_it(tmp_path: Path) -> None:
    for place, name in enumerate(("one", "two")):
        put(make_clean(tmp_path / name, seed=50 * place) / "alone.png", None, seed=90 + place)
    for text in (tmp_path / "two").glob("*.txt"):
        text.rename(text.with_suffix(".caption"))
    other = {"path": str(tmp_path / "two"), "caption_extension": ".caption", "task_prompt": "<DETAILED_CAPTION>"}
    found = findings([str(tmp_path / "one"), other])["image-without-caption"]
    assert names(found) == ["one/alone.png", "two/alone.png"]
    assert found.fixes == (
        f"florence2ner caption {tmp_path}/one",
        f"florence2ner caption {tmp_path}/two --caption-extension .caption --task-prompt '<DETAILED_CAPTION>'",
    )
