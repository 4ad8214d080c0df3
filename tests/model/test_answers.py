"""What answers hold, how they are written, and degenerate captions: against Microsoft's results and by eye."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florence2ner.data.layouts.pairs import read_captions
from florence2ner.errors import UserError
from florence2ner.model.answers import answer_fault, flag_problems, label_fault, parse_answer, write_boxes, write_quads
from florence2ner.model.tasks import TASKS, Task
from tests.model.support import needs_oracle


def original_cases(facts: dict[str, Any]) -> list[tuple[Task, str, tuple[int, int], Any]]:
    """Task, raw text, image size and the original's answer: made by hand, and what the tiny model wrote."""
    cases = [(case["task"], case["text"], case["image_size_wh"], case["result"]) for case in facts["postprocess"]]
    for case in facts["cases"]:
        size = facts["images"][case["image"]]["size_wh"]
        for how in ("greedy", "beam3", "greedy_plain", "beam3_plain", "default"):
            cases.append((case["task"], case[f"{how}_text"], size, case[f"{how}_post"]))
    return [(TASKS[token], text, tuple(size), result[token]) for token, text, size, result in cases]


# --- answers ----------------------------------------------------------------------------------------------------------


@needs_oracle
def test_answers_are_the_originals_to_the_last_bit(facts: dict[str, Any]) -> None:
    for task, text, size, expected in original_cases(facts):
        if task.answer == "quads":  # generation starts with </s>, which the original leaves on the first label
            expected["labels"] = [label.replace("</s>", "") for label in expected["labels"]]
        answer = parse_answer(task, text, size)
        assert answer == expected, (task.token, text)
        assert json.loads(json.dumps(answer)) == answer


@needs_oracle
def test_transformers_answers_are_ours_in_whole_pixels(facts: dict[str, Any], processor: Any) -> None:
    def whole(value: Any) -> Any:
        return [whole(part) for part in value] if isinstance(value, list) else int(value)

    for task, text, size, _ in original_cases(facts):
        ours = parse_answer(task, text, size)
        if isinstance(ours, dict):
            ours = {key: value if "labels" in key else whole(value) for key, value in ours.items()}
        assert processor.post_process_generation(text, task=task.token, image_size=size)[task.token] == ours


# Worked out by hand from the original's code, for a picture of 1000 x 2000: location n is n + 0.5 and 2n + 1.
@pytest.mark.parametrize(
    ("token", "text", "answer"),
    [
        ("<CAPTION>", "</s><s> A dog. </s><pad><pad>", "A dog."),
        ("<CAPTION>", "", ""),
        ("<REGION_TO_OCR>", "<s>a<loc_1>b</s>", "a<loc_1>b"),
        ("<OD>", "</s><s></s>", {"bboxes": [], "labels": []}),
        ("<OD>", "dog<loc_1><loc_2><loc_3></s>", {"bboxes": [], "labels": []}),
        (
            "<OD>",
            "Café 日本<loc_1><loc_2><loc_3><loc_4><loc_5> dog<loc_0><loc_1><loc_2>",
            {"bboxes": [[1.5, 5, 3.5, 9]], "labels": ["Caf "]},
        ),
        ("<OD>", "x<loc_1><loc_2><loc_3><loc_12345>", {"bboxes": [], "labels": []}),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>",
            "it<loc_1><loc_2><loc_3><loc_4>It<loc_1><loc_2><loc_3><loc_4>",
            {"bboxes": [[1.5, 5, 3.5, 9]], "labels": ["It"]},
        ),
        ("<REGION_PROPOSAL>", "no<loc_1><loc_2><loc_3><loc_4>", {"bboxes": [[1.5, 5, 3.5, 9]], "labels": [""]}),
        (
            "<OCR_WITH_REGION>",
            "</s><s>" + "<loc_1>" * 8 + "two words" + "<loc_2>" * 8 + "<pad>cut" + "<loc_3>" * 7,
            {"quad_boxes": [[1.5, 3] * 4, [2.5, 5] * 4], "labels": ["", "two words"]},
        ),
        (
            "<REFERRING_EXPRESSION_SEGMENTATION>",
            "<loc_1><loc_2><loc_3><sep><loc_4><loc_5>",  # a point without its y is dropped
            {"polygons": [[[1.5, 5], [4.5, 11]]], "labels": [""]},
        ),
        ("<REGION_TO_SEGMENTATION>", "<loc_1><sep><sep><sep>", {"polygons": [[[]]], "labels": [""]}),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            "cat<poly><loc_1><loc_2><sep><loc_3><loc_4></poly><poly><loc_5><loc_6></poly>",
            {
                "bboxes": [],
                "bboxes_labels": [],
                "polygons": [[[1.5, 5], [3.5, 9]], [[5.5, 13]]],
                "polygons_labels": ["cat", "cat"],
            },
        ),
    ],
)
def test_malformed_and_rare_answers(token: str, text: str, answer: Any) -> None:
    assert parse_answer(TASKS[token], text, (1000, 2000)) == answer


@pytest.mark.parametrize("token", TASKS)
def test_no_text_breaks_the_parser(token: str) -> None:
    pieces = ("", "<s>", "<", "é", "a\nb", "<loc_", "<loc_²>", "<loc_7>", "<loc_7>" * 9, "<poly>", "</poly>", "<sep>")
    for first in pieces:
        for second in pieces:
            for third in pieces:
                json.dumps(parse_answer(TASKS[token], first + second + third, (640, 480)), allow_nan=False)


# --- writing ----------------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 20_000), st.integers(1, 20_000))
shares = st.floats(0, 1, width=32)
ascii_signs = st.characters(max_codepoint=127, exclude_characters="<")
box_labels = st.text(ascii_signs, min_size=1).filter(lambda text: label_fault(text) is None)
texts = st.text(min_size=1).filter(lambda text: text.strip() and not re.search("<loc_|</?s>|<pad>", text))


def in_pixels(rows: list[tuple[str, list[float]]], size: tuple[int, int]) -> list[tuple[str, list[float]]]:
    return [(label, [share * size[i % 2] for i, share in enumerate(place)]) for label, place in rows]


def check_round_trip(token: str, write: Any, rows: list[tuple[str, list[float]]], size: tuple[int, int]) -> None:
    text = write([label for label, _ in rows], [place for _, place in rows], size)
    answer = parse_answer(TASKS[token], f"</s><s>{text}</s><pad>", size)
    assert isinstance(answer, dict)
    places = answer["bboxes" if token == "<OD>" else "quad_boxes"]
    assert answer["labels"] == [label.strip() for label, _ in rows]
    for read, (_, written) in zip(places, rows, strict=True):
        for i, (there, here) in enumerate(zip(read, written, strict=True)):
            assert abs(there - here) <= size[i % 2] / 1000 * 0.5001, "half a bin, but for the rounding of float32"
    assert write(answer["labels"], places, size) == text


@given(st.lists(st.tuples(box_labels, st.lists(shares, min_size=4, max_size=4)), max_size=8), sizes)
def test_boxes_are_read_back_within_half_a_bin(rows: list[tuple[str, list[float]]], size: tuple[int, int]) -> None:
    first = [label.strip() for label, _ in rows]
    together = sorted(rows, key=lambda row: first.index(row[0].strip()))  # each label with all its boxes
    one, other = (
        write_boxes([label for label, _ in some], [box for _, box in in_pixels(some, size)], size)
        for some in (rows, together)
    )
    assert one == other
    check_round_trip("<OD>", write_boxes, in_pixels(together, size), size)


@given(st.lists(st.tuples(texts, st.lists(shares, min_size=8, max_size=8)), max_size=5), sizes)
def test_quads_are_read_back_within_half_a_bin(rows: list[tuple[str, list[float]]], size: tuple[int, int]) -> None:
    check_round_trip("<OCR_WITH_REGION>", write_quads, in_pixels(rows, size), size)


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), sizes)
def test_coordinates_become_the_bins_of_microsofts_quantiser(box: list[float], size: tuple[int, int]) -> None:
    per_bin = [side / 1000 for side in (*size, *size)]
    bins = [int((torch.tensor([x]) / step).floor().clamp(0, 999)) for x, step in zip(box, per_bin, strict=True)]
    assert write_boxes(["a"], [box], size) == "a" + "".join(f"<loc_{bin_}>" for bin_ in bins)


def test_a_label_stands_once_before_its_boxes_as_microsofts_model_writes_it() -> None:
    # What Florence-2-base-ft answers about the picture of a car that transformers' tests use.
    text = (
        "car<loc_53><loc_333><loc_933><loc_774>door handle<loc_425><loc_503><loc_474><loc_515>wheel<loc_709><loc_576>"
        "<loc_865><loc_772><loc_150><loc_584><loc_309><loc_773>"
    )
    answer = parse_answer(TASKS["<OD>"], text, (640, 480))
    assert isinstance(answer, dict)
    assert answer["labels"] == ["car", "door handle", "wheel", "wheel"]
    assert write_boxes(answer["labels"], answer["bboxes"], (640, 480)) == text


@pytest.mark.parametrize(("label", "why"), [(" \n", "is empty"), ("a<b", "holds a <"), ("Café", "not ASCII")])
def test_labels_that_would_not_be_read_back_are_refused(label: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        write_boxes([label], [[0, 0, 1, 1]], (2, 2))
    assert repr(label.strip()) in str(error.value)


@pytest.mark.parametrize("text", ["", "a<loc_1>", "</s>"])
def test_texts_that_would_not_be_read_back_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is empty or holds a token of Florence-2: leave it out"):
        write_quads([text], [[0] * 8], (2, 2))


@given(st.lists(st.tuples(box_labels, st.lists(shares, min_size=4, max_size=4)), min_size=1, max_size=5))
def test_what_we_write_of_boxes_has_no_fault(rows: list[tuple[str, list[float]]]) -> None:
    text = write_boxes([label for label, _ in rows], [box for _, box in rows], (1, 1))
    assert answer_fault(TASKS["<OD>"], text) is None


@given(st.lists(st.tuples(texts, st.lists(shares, min_size=8, max_size=8)), min_size=1, max_size=5))
def test_what_we_write_of_quads_has_no_fault(rows: list[tuple[str, list[float]]]) -> None:
    text = write_quads([label for label, _ in rows], [quad for _, quad in rows], (1, 1))
    assert answer_fault(TASKS["<OCR_WITH_REGION>"], text) is None


BOX, QUAD = "<loc_1>" * 4, "<loc_1>" * 8


@pytest.mark.parametrize(
    ("task", "text", "why"),
    [
        ("<CAPTION>", "a cat", None),
        ("<OD>", f"cat{BOX}{BOX} black dog{BOX}\n", None),
        ("<OD>", "a cat", "holds no location, such as <loc_500>"),
        (
            "<OD>",
            "cat<loc_1000><loc_1><loc_1><loc_1>",
            "has the label 'cat<loc_1000>', which holds a <, with which loca",
        ),
        ("<OD>", f"cat{BOX}<loc_1>", "has 5 locations after 'cat', not 4 for each box"),
        ("<OD>", BOX, "has the label '', which is empty"),
        ("<OD>", f"Café{BOX}", "has the label 'Café', which holds letters that are not ASCII"),
        ("<OD>", f"cat{BOX}dog", "ends with 'dog', which no location follows"),
        ("<REGION_PROPOSAL>", BOX, None),
        ("<OCR_WITH_REGION>", f"Café <b>{QUAD}", None),
        ("<OCR_WITH_REGION>", f"a{BOX}", "has 4 locations after 'a', not 8"),
        ("<OCR_WITH_REGION>", f"a{QUAD}{QUAD}", "has 16 locations after 'a', not 8"),
        ("<OCR_WITH_REGION>", f"a</s>{QUAD}", "has the label 'a</s>', which is empty or holds a token of Florence-2"),
        ("<REGION_TO_SEGMENTATION>", f"{BOX}<sep>{BOX}", None),
        ("<REGION_TO_SEGMENTATION>", "none", "holds no location, such as <loc_500>"),
    ],
)
def test_answers_that_would_not_be_read_back_whole_have_a_fault(task: str, text: str, why: str | None) -> None:
    fault = answer_fault(TASKS[task], text)
    assert fault is None if why is None else str(fault).startswith(why)


# --- problems ---------------------------------------------------------------------------------------------------------

SOUND = [
    "A dog.",
    "?!  $5",
    "knock knock",
    "a very very very big dog",
    "a row of red, red, red flags",
    "Ha ha ha! He said no, no, no, no.",
    "hahahahaha",
    "Noooooooo!",
    "10 20 30 10 20",
    "0 0 0 0 0 0 0 0 0 0 0 0",
    "Total 5.00 5.00 5.00 5.00 5.00 5.00 Name ................................ Date ______________________________",
    "1000000000000000000000000",
    "EXIT EXIT EXIT\nSALE 50% SALE 50% SALE 50%",
    "Add to cart. Add to cart. Add to cart.",
    "row, row, row your boat gently down the stream, merrily, merrily, merrily, merrily, life is but a dream",
    "https://www.example.com/aaaa/bbbb/index.html?id=0x00000000ffffffff",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
    "猫が猫を見て、犬が犬を見て、猫が犬を見て、犬が猫を見ている。",
    "1girl, solo, long hair, blue eyes, long sleeves, looking at viewer, blue hair, blue dress, long dress, white "
    "gloves, white boots, white flower, hair flower, hair ribbon, blue ribbon, blue sky, day, outdoors, standing",
    "person<loc_10><loc_20><loc_30><loc_40>person<loc_50><loc_20><loc_70><loc_40>person<loc_1><loc_2><loc_3><loc_4>"
    "person<loc_11><loc_21><loc_31><loc_41>person<loc_12><loc_22><loc_32><loc_42>",
    "The image shows a vintage Volkswagen Beetle car parked on a cobblestone street in front of a yellow building with "
    "two wooden doors. The car is painted in a bright turquoise color and has a white stripe running along the side. "
    "It has two doors on either side of the car, one on top of the other, and a small window on the front. The "
    "building appears to be old and dilapidated, with peeling paint and crumbling walls. The sky is blue and "
    "there are trees in the background.",
    "In this image we can see a group of people standing on the ground. Some are wearing caps and some are wearing "
    "goggles. In the background there are trees, there are buildings and there are poles. At the top there is the sky.",
    "A man in a white shirt and black pants and a man in a white shirt and blue pants and a woman in a white shirt and "
    "red pants stand side by side by side.",
    "The man on the left is smiling. The man on the right is smiling. The man in the middle is not smiling.",
    "The first panel shows a girl. The girl is smiling. The second panel shows a boy. The girl is smiling. The third "
    "panel shows a dog. The dog is on the left and the boy is on the right and the girl is in the middle.",
    "A stack of books: a red book, a blue book, a green book, a red book, a white book, a blue book and a red book, "
    "with a cup, a cup and a cup on top.",
    "Checkers: red, black, red, black, red, black in the front row and black, red, black, red in the second.",
    "Two giraffes stand in a grassy field next to two zebras, and behind the two giraffes and the two zebras two trees "
    "rise into a sky of two colors, pink and blue; pink at the bottom and blue at the top.",
    "GRAND OPENING SALE SALE SALE! Buy one get one free. Buy one get one free. Open Mon 9-5 Tue 9-5 Wed 9-5 Thu 9-5",
]
LOOPS = [
    "a man a man a man a man",
    "the the the the the",
    "A man, a man; A MAN. a man",
    "aaaaaaaaaaaaaaaaaa",
    "hahahahahahahahahahahaha",
    "and a tree and a tree and a tree and a tree",
    "A woman in a red dress sits on a bench in the park, with a dog and a cat and a cat and a cat and a cat and",
    "A blue blue car car blue blue car car blue blue car car blue blue car car",
    "The sky is clear. The sky is clear. The sky is clear.",
    "The sky is clear. A tree stands there. The sky is clear! A bush stands here. The sky is clear",
    "男の人と女の人と男の人と女の人と男の人と女の人と男の人と女の人と",
    "空は青くて雲一つない晴天です。空は青くて雲一つない晴天です。空は青くて雲一つない晴天です。",
    "0 " * 50,
    "<loc_152>" * 20,
    "1girl, solo, long hair, " * 4,
    "a on the left side of the picture next to the large brown wooden table with white chairs " * 4,
]


@pytest.mark.parametrize("text", SOUND)
def test_sound_captions_are_not_flagged(text: str) -> None:
    assert flag_problems(text) == ()
    assert flag_problems(f"</s><s>{text}</s><pad><pad>", new_tokens=99, limit=100) == ()


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_found(text: str) -> None:
    assert flag_problems(text) == ("loop",)
    assert flag_problems(f"</s><s>A white bird sits on the roof of a house. {text}</s>") == ("loop",)


def test_drawn_captions_are_not_flagged(shapes: Path) -> None:
    assert not any(flag_problems(caption) for caption in read_captions(shapes))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", ("empty",)),
        ("</s><s></s><pad>", ("empty",)),
        (" .,!\n\ufffd", ("empty",)),
        ("</s><s><s><s></s>", ("empty", "special_tokens")),
        ("</s><s>a <s><s>dog</s>", ("special_tokens",)),
        ("<s>a dog</s></s></s>", ("special_tokens",)),
        ("<s>a<pad>dog</s>", ("special_tokens",)),
        ("<s>a <image> dog</s>", ("special_tokens",)),
        ("<s>a <GENERATE_TAGS> dog</s>", ()),
    ],
)
def test_empty_answers_and_stray_tokens(text: str, flags: tuple[str, ...]) -> None:
    assert flag_problems(text) == flags


@pytest.mark.parametrize(("new_tokens", "flags"), [(19, ()), (20, ("cut_off",)), (21, ("cut_off",))])
def test_an_answer_as_long_as_the_limit_is_cut_off(new_tokens: int, flags: tuple[str, ...]) -> None:
    assert flag_problems("</s><s>A dog on</s>", new_tokens=new_tokens, limit=20) == flags


@needs_oracle
def test_the_limit_is_counted_as_the_original_generates(facts: dict[str, Any]) -> None:
    for case in facts["cases"]:
        new_tokens = len(case["greedy_ids"]) - 1  # generation starts with </s>
        flags = flag_problems(case["greedy_text"], new_tokens=new_tokens, limit=20)
        assert case["greedy_text"].endswith("</s>"), "by force, where 20 tokens were not enough"
        assert ("cut_off" in flags) is (new_tokens == 20)


def test_long_texts_are_quick() -> None:
    numbered = " ".join(f"word{number % 97} and" for number in range(400))
    for text in (numbered, "a" * 4000, "7" * 4000, ". " * 2000, "<pad>" * 800, "a a a a b " * 400, "<poly>" * 600):
        start = time.process_time()
        flag_problems(text)
        for task in TASKS.values():
            parse_answer(task, text, (640, 480))
        assert time.process_time() - start < 0.2, text[:20]  # milliseconds in fact; anything quadratic takes seconds
