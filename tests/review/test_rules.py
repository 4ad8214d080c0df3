"""Rules for many captions: each changes what it says and nothing else."""

import pytest
from pydantic import ValidationError

from florence2ner.errors import UserError
from florence2ner.review.rules import AddTag, RemoveTag, Replacement


def replace(text: str, find: str, by: str, **more: bool) -> str:
    return Replacement.model_validate({"do": "replace", "find": find, "replace": by, **more}).rule()(text)


def test_words_are_replaced_as_they_are_written() -> None:
    assert replace("a red car, a Red car", "red", "blue") == "a blue car, a Red car"
    assert replace("a red car, a Red car", "red", "blue", match_case=False) == "a blue car, a blue car"
    assert replace("redder red", "red", "blue", whole_words=True) == "redder blue"
    assert replace("1.5 (a) 1x5", "1.5", r"\1") == r"\1 (a) 1x5"
    assert replace("a photo of a cat", "a photo of ", "") == "a cat"


def test_a_regular_expression_has_groups() -> None:
    assert replace("a red car", r"(\w+) (\w+)$", r"\2 that is \1", regex=True) == "a car that is red"
    assert replace("aXbxc", "x", "-", regex=True, match_case=False) == "a-b-c"


@pytest.mark.parametrize(("find", "by"), [("(", ""), ("a", r"\2"), ("a", r"\g<no>"), ("[", "x")])
def test_a_faulty_regular_expression_is_refused(find: str, by: str) -> None:
    with pytest.raises(UserError, match="the regular expression can't be read"):
        replace("text", find, by, regex=True)


def test_nothing_can_not_be_searched_for() -> None:
    with pytest.raises(ValidationError):
        replace("text", "", "x")


def test_a_tag_is_added_once() -> None:
    add = AddTag(do="add", tag=" night ").rule()
    assert add("a, b") == "a, b, night"
    assert add("a, b,") == "a, b, night"
    assert add("a,night , b") == "a,night , b"
    assert add("") == "night"
    assert add("tonight") == "tonight, night"
    assert AddTag(do="add", tag="night", first=True).rule()("a, b") == "night, a, b"


def test_a_tag_is_removed_wherever_it_is() -> None:
    remove = RemoveTag(do="remove", tag="b").rule()
    assert remove("a, b, c,d") == "a, c,d"
    assert remove("b, a") == "a"
    assert remove("a,b") == "a"
    assert remove("b") == ""
    assert remove("bb, a b") == "bb, a b"


@pytest.mark.parametrize("tag", [" ", "a, b"])
def test_a_tag_is_one_tag(tag: str) -> None:
    with pytest.raises(UserError, match="give one tag at a time"):
        AddTag(do="add", tag=tag).rule()
