"""The look of captions: openings that say nothing, templates, trigger words, and their order."""

import os
from pathlib import Path
from typing import Any

import pytest

from florence2ner.errors import UserError
from florence2ner.outputs.style import TextStyle, strip_opening

IMAGE = Path("photos/10_sks dog/rex.v2.jpg")


@pytest.mark.parametrize(
    ("caption", "stripped"),
    [
        ("The image shows a man on a horse.", "A man on a horse."),
        ("This image shows two dogs. The dogs are brown.", "Two dogs. The dogs are brown."),
        ("The image depicts a busy street", "A busy street"),
        ("the picture shows a cat", "a cat"),
        ("THE IMAGE SHOWS A CAT", "A CAT"),
        ("  The image features\n a vase.", "A vase."),
        ("The photo clearly shows that the door is open.", "The door is open."),
        ("The provided image showcases a watch.", "A watch."),
        ("The image shows iPhones on a table.", "iPhones on a table."),
        ("The image shows: a list.", "A list."),
        ("The image is a photograph of a handwritten note.", "A handwritten note."),
        ("The image is of a lake.", "A lake."),
        ("This is an image of a lake.", "A lake."),
        ("This is a picture of a car.", "A car."),
        ("The image is a black and white photograph of a man.", "A black and white photograph of a man."),
        ("The image appears to be a screenshot of a website.", "A screenshot of a website."),
        ("This is a digital illustration of a cat.", "A digital illustration of a cat."),
        ("In this image we can see a group of people.", "A group of people."),
        ("In this picture, I can see few trees.", "Few trees."),
        ("In this image we can see that there is a boat.", "There is a boat."),
        ("In the image, there is a red bus.", "A red bus."),
        ("In this image there are 3 birds.", "3 birds."),
        ("In the image, a woman holds an umbrella.", "A woman holds an umbrella."),
        ("The image shows a man. The image shows a dog.", "A man. The image shows a dog."),
    ],
)
def test_openings_without_content_go(caption: str, stripped: str) -> None:
    assert strip_opening(caption) == stripped


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A dog.",
        "1girl, solo, the image shows",
        "A photo of a dog on a beach.",
        "a black and white photo of a man",
        "The black and white image shows a man.",
        "The painting depicts a battle.",
        "The imagery shows a forest.",
        "The image showscases a watch.",
        "The image shows",
        "The image shows ...",
        "The image is blurry.",
        "The image is a bit like a painting.",
        "The image is set in a forest.",
        "The image was taken at night.",
        "The image shows and names three birds.",
        "In the image of the saint, gold prevails.",
        "In this imaginary city, there are towers.",
        "This is a dog.",
        "The picture frame shows scratches.",
        "A man shows the image of a dog.",
    ],
)
def test_content_stays(caption: str) -> None:
    assert strip_opening(caption) == caption


@pytest.mark.parametrize(
    ("style", "caption", "written"),
    [
        ({}, " The image shows\na dog. ", " The image shows\na dog. "),
        ({"single_line": True}, " a dog,\r\n\n  a cat  \n and a  bird\n", "a dog, a cat and a  bird"),
        ({"template": "{caption}"}, "{stem} {caption!r} {{", "{stem} {caption!r} {{"),
        ({"template": "{folder}/{stem}: {caption} {{x}}"}, "a dog", "10_sks dog/rex.v2: a dog {x}"),
        ({"template": "{caption} | {caption}"}, "a dog", "a dog | a dog"),
        ({"trigger_word": "sks dog"}, "a dog", "sks dog, a dog"),
        ({"trigger_word": "sks dog"}, "SKS dog on grass", "SKS dog on grass"),
        ({"trigger_word": "sks"}, "skskirt", "sks, skskirt"),
        ({"trigger_word": "<c++>"}, "<C++>, a book", "<C++>, a book"),
        ({"trigger_word": " sks "}, "", "sks"),
        ({"prefix": "a ", "suffix": " \n"}, "dog", "a dog \n"),
        (
            {
                "prefix": "[",
                "suffix": "]",
                "trigger_word": "rex",
                "strip_opening": True,
                "single_line": True,
                "template": "{stem}: {caption}",
            },
            "The image shows\na dog\non grass.",
            "[rex.v2: A dog on grass.]",  # it begins with the trigger word already
        ),
    ],
)
def test_styles(style: dict[str, Any], caption: str, written: str) -> None:
    assert TextStyle(**style).apply(caption, IMAGE) == written


def test_a_name_that_is_not_utf8_becomes_text_that_is() -> None:
    image = Path(os.fsdecode(b"f\xe9/caf\xe9.png"))
    assert TextStyle(template="{folder} {stem} {caption}").apply("a", image) == r"f\xe9 caf\xe9 a"


def test_the_folder_is_found_for_a_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert TextStyle(template="{folder} {caption}").apply("a", Path("x.png")) == f"{tmp_path.name} a"
    assert TextStyle(template="{folder} {caption}").apply("a", Path("sub/../x.png")) == f"{tmp_path.name} a"


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"template": "{captoin}"}, r"has \{captoin\}\. Did you mean \{caption\}\?"),
        ({"template": "{caption} {0}"}, r"has \{0\}\. It may have \{caption\}, \{stem\}, \{folder\}"),
        ({"template": "{caption} {}"}, r"has \{\}\."),
        ({"template": "{caption.__class__}"}, r"has \{caption.__class__\}\. Did you mean \{caption\}\?"),
        ({"template": "{caption[0]}"}, r"has \{caption\[0\]\}"),
        ({"template": "{caption!r}"}, r"has \{caption!r\}"),
        ({"template": "{caption:>{stem}}"}, r"has \{caption:>\{stem\}\}"),
        ({"template": "{caption"}, r"can't be read: expected '}' .*write \{\{ and \}\}"),
        ({"template": "a\n{caption} }"}, r"'a\\n\{caption\} \}' can't be read"),
        ({"template": "a dog"}, r"has no \{caption\}"),
        ({"template": "{{caption}}"}, r"has no \{caption\}"),
        ({"template": ""}, r"has no \{caption\}"),
        ({"trigger_word": " "}, "trigger_word is blank"),
    ],
)
def test_styles_that_cannot_be_applied_are_refused(style: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        TextStyle(**style)
    assert "\n" not in str(raised.value)
