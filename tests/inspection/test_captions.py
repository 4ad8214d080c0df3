"""Captions: encodings, signs, openings, words that all share, and the trigger word."""

from pathlib import Path

import pytest

from florence2ner import UserError
from tests.inspection.support import CAPTIONS, figures, findings, inspected, make_clean, names, put


def test_a_trigger_word_is_missed_where_it_is_not_a_word_of_its_own(tmp_path: Path) -> None:
    make_clean(tmp_path)
    for number, text in enumerate(CAPTIONS):
        (tmp_path / f"{number}.txt").write_text(f"ohwx, {text}" if number > 1 else f"ohwxes {text}")
    found = findings(tmp_path, trigger_word="ohwx")["no-trigger-word"]
    assert names(found) == ["0.png", "1.png"]
    assert found.severity == "hurts"
    assert found.headline == "captions lack the trigger word ohwx"


def test_openings_and_words_are_counted_with_their_share(tmp_path: Path) -> None:
    make_clean(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"This photo, shows {number}")
    opening = findings(tmp_path)["common-opening"]
    assert [(example.name, example.detail) for example in opening.examples] == [
        ("this photo shows", "25% of 12 captions")
    ]
    assert "common-opening" not in findings(tmp_path, common_opening=0.26)


def test_places_are_signs_only_in_a_task_without_places(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "1.txt").write_text("dog<loc_1><loc_2><loc_3><loc_4>")
    assert "special-token" in findings(tmp_path)
    assert "special-token" not in findings(tmp_path, task_prompt="<OD>")
    assert figures(tmp_path, task_prompt="<OD>")["images"] == "12, 12 with a caption"
    with pytest.raises(UserError, match="is more than its task"):
        inspected(tmp_path, task_prompt="<OD> please")


def test_openings_are_those_of_one_task(tmp_path: Path) -> None:
    """And answers about places have none."""
    for folder, text in (("detailed", "The image shows {}"), ("short", "{} dogs"), ("boxes", "dog<loc_{}>")):
        for number in range(12):
            seed = number + 20 * len(folder)
            put(tmp_path / folder / f"{number}.png", text.format(CAPTIONS[number].split()[-1]), seed=seed)
    prompts = {"detailed": "<DETAILED_CAPTION>", "short": "<CAPTION>", "boxes": "<OD>"}
    roots = [{"path": str(tmp_path / name), "task_prompt": prompt} for name, prompt in prompts.items()]
    examples = findings(roots, trigger_word="dogs")["common-opening"].examples
    assert [(example.name, example.detail) for example in examples] == [
        ("the image shows", "100% of 12 captions for <DETAILED_CAPTION>")
    ]
    assert names(findings(roots, trigger_word="dogs")["no-trigger-word"])[0].startswith("detailed/")


@pytest.mark.parametrize(("encoding", "command"), [("utf-16", "-f UTF-16 "), ("latin-1", "-f WINDOWS-1252 ")])
def test_the_command_for_an_encoding_is_told_by_its_mark(tmp_path: Path, encoding: str, command: str) -> None:
    make_clean(tmp_path)
    (tmp_path / "1.txt").write_text("café", encoding=encoding)
    (fix,) = findings(tmp_path)["not-utf8"].fixes
    assert command in fix


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n")
    assert findings(tmp_path) == {}
