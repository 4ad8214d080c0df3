"""Parses generated text into an answer, writes answers to train on, and flags those that look wrong. No torch.

`parse_answer` gives what Microsoft's post-processor gives (processing_florence2.py of microsoft/Florence-2-large), to
the last bit of each coordinate. transformers' post-processor differs: it truncates coordinates to whole pixels, labels
malformed polygons differently, and can't read a caption without the `post_processor_config` that few checkpoints have.
"""

import math
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from florence2ner.errors import UserError
from florence2ner.model.tasks import Task

Flag = Literal["empty", "loop", "special_tokens", "cut_off"]
_Pairs = Iterable[tuple[str, list[Any]]]  # label, coordinates

# --- parsing ----------------------------------------------------------------------------------------------------------

# Phrases that phrase grounding leaves out of its answer.
_BANNED = (
    "I|a|a group|a set|all|an|another|any|anybody|anyone|anything|each|each other|everybody|everyone|everything|few|he|"
    "her|hers|herself|him|himself|his|image|images|it|its|itself|lots|many|me|mine|myself|nobody|none|one|one another|"
    "oneself|other objects|our|ours|ourselves|several|she|some|somebody|someone|something|that|the|the image|their|"
    "theirs|them|themselves|these|they|this|those|us|we|what|which|who|whom|whose|you|your|yours|yourself|yourselves"
)
BANNED_PHRASES = tuple(_BANNED.split("|"))

_BINS = 1000  # <loc_0> ... <loc_999> divide the width, and the height, into as many equal parts
_LOC = "<loc_[0-9]{1,3}>"
_MARK = f"(?:{_LOC}|<sep>|<poly>|</poly>)"
# The original's [^<]+, but anchored to where a label can begin and possessive: without that, a long text without boxes
# takes quadratic time.
_LABEL = "(?:^|(?<=[<>]))[^<]++"
_LABELLED_BOXES = re.compile(f"{_LABEL}(?:{_LOC}){{4,}}")
_BOXES = re.compile(f"(?:{_LOC}){{4,}}")
_QUAD = re.compile(f"(?:{_LOC}){{8}}")
_LABELLED_POLYGONS = re.compile(f"{_LABEL}{_MARK}{{4,}}")
_POLYGONS = re.compile(f"{_MARK}{{4,}}")
_POLYGON = re.compile(f"((?:{_LOC})+)(?:<sep>|$)")
_POLYGON_LABEL = re.compile(r"(?:loc_[0-9]{1,3}>)?(.*?)(?=<loc_|<poly>)", re.DOTALL)
_BIN = re.compile("<loc_([0-9]+)>")
_LOCATIONS = re.compile(f"((?:{_LOC})+)")
_FRAME = re.compile("<s>|</s>|<pad>")  # the tokens around a text


def parse_answer(task: Task, raw_text: str, image_size: tuple[int, int]) -> str | dict[str, list[Any]]:
    """Parse generated text, decoded with its special tokens: a string, or a dict of lists ready for JSON.

    `image_size` is (width, height) in pixels. All coordinates are in pixels: x1 y1 x2 y2 in `bboxes`, x y x y ... in
    `quad_boxes` and in each polygon of an object's `polygons`. `labels` has one label for each of these, in the same
    order; open-vocabulary detection has `bboxes_labels` and `polygons_labels` instead. Never raises: malformed parts
    are left out. Two differences from the original: no answer contains `<pad>`, and no OCR label contains the `</s>`
    that generation starts with.
    """
    text = _FRAME.sub("", raw_text)
    match task.answer:
        case "text":
            return plain_text(raw_text)
        case "quads":
            return _columns(_read_quads(raw_text, image_size), "quad_boxes", "labels")
        case "polygons":
            return _columns(_read_polygons(_POLYGONS, text, image_size), "polygons", "labels")
        case "boxes_or_polygons":
            has_polygons = "<poly>" in text
            boxes = () if has_polygons else _read_boxes(_LABELLED_BOXES, text, image_size)
            polygons = _read_polygons(_LABELLED_POLYGONS, text, image_size) if has_polygons else ()
            return _columns(boxes, "bboxes", "bboxes_labels") | _columns(polygons, "polygons", "polygons_labels")
        case "boxes":
            return _columns(_read_boxes(_LABELLED_BOXES, text, image_size), "bboxes", "labels")
        case "phrases":
            boxes = _read_boxes(_LABELLED_BOXES, text, image_size, banned=BANNED_PHRASES)
            return _columns(boxes, "bboxes", "labels")
        case "proposals":
            return _columns(_read_boxes(_BOXES, text, image_size), "bboxes", "labels")


def plain_text(raw_text: str) -> str:
    """Generated text without the tokens around it: as captions are written, and as labels are."""
    return _FRAME.sub("", raw_text).strip()


def _columns(pairs: _Pairs, coordinates: str, labels: str) -> dict[str, list[Any]]:
    rows = list(pairs)
    return {coordinates: [row[1] for row in rows], labels: [row[0] for row in rows]}


def _read_boxes(pattern: re.Pattern[str], text: str, size: tuple[int, int], banned: tuple[str, ...] = ()) -> _Pairs:
    """Label and box for every box of every phrase. Labels lose what is not ASCII, as in the original."""
    for phrase in pattern.findall(text):
        label = phrase.partition("<")[0].strip()
        bins = _bins(phrase)
        for start in range(0, len(bins) - 3, 4):
            if label not in banned:
                yield label.encode("ascii", "ignore").decode(), _pixels(bins[start : start + 4], size)


def _read_quads(raw_text: str, size: tuple[int, int]) -> _Pairs:
    """Every line of text that is followed by eight locations, and these.

    The original's pattern wants at least one character before the locations, and counts `</s>` as one: so it is removed
    only from the labels found.
    """
    text, start = raw_text.replace("<s>", ""), 0
    while quad := _QUAD.search(text, start + 1):
        yield _FRAME.sub("", text[start : quad.start()]), _pixels(_bins(quad[0]), size)
        start = quad.end()


def _read_polygons(pattern: re.Pattern[str], text: str, size: tuple[int, int]) -> _Pairs:
    """Label and polygons of every object. One phrase may hold several objects, each between <poly> and </poly>."""
    for phrase in pattern.findall(text):
        label = _POLYGON_LABEL.match(phrase)
        if label is None:
            continue
        parts = re.findall("<poly>(.*?)</poly>", phrase) if "<poly>" in phrase and "</poly>" in phrase else [phrase]
        for part in parts:
            polygons = [_bins(polygon) for polygon in _POLYGON.findall(part)]
            if polygons:
                whole = [bins[: len(bins) // 2 * 2] for bins in polygons]  # without a last x that has no y
                yield label[1].strip(), [_pixels(bins, size) for bins in whole]


def _bins(text: str) -> list[int]:
    return [int(bin_) for bin_ in _BIN.findall(text)]


def _pixels(bins: list[int], size: tuple[int, int]) -> list[float]:
    """Bins x y x y ... -> the middle of each in pixels, computed in float32 as the original does."""
    width, height = (_single(side / _BINS) for side in size)
    return [_single((bin_ + 0.5) * (height if index % 2 else width)) for index, bin_ in enumerate(bins)]


def _single(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


# --- writing ----------------------------------------------------------------------------------------------------------


def write_boxes(labels: Sequence[str], boxes: Iterable[Sequence[float]], image_size: tuple[float, float]) -> str:
    """The text of an `<OD>` answer, which `parse_answer` reads back: "car<loc_1><loc_2><loc_3><loc_4>dog<loc_...".

    `image_size` is (width, height), and each box x1 y1 x2 y2, in pixels. A label stands once, where it first occurs,
    with all its boxes behind it: so do Microsoft's checkpoints answer. A coordinate becomes the bin that it lies in,
    one outside the image the nearest. Without boxes, the text is "". Raises UserError for a label with a `label_fault`.
    """
    written: dict[str, str] = {}
    for label, box in zip(map(str.strip, labels), boxes, strict=True):
        if fault := label_fault(label):
            raise UserError(f"the label {label!r} {fault}: rename it")
        written[label] = written.get(label, label) + _locations(box, image_size)
    return "".join(written.values())


def label_fault(label: str) -> str | None:
    """Why an `<OD>` answer can't have this label, as the rest of a sentence about it; None where it can."""
    if not label.strip():
        return "is empty"
    if "<" in label:
        return "holds a <, with which locations begin"
    return (
        None if label.isascii() else "holds letters that are not ASCII, which Florence-2 leaves out of labels of boxes"
    )


def answer_fault(task: Task, text: str) -> str | None:
    """Why not all of an answer would be read back by `parse_answer`, as the rest of a sentence; None where it would.

    Text has no fault. Of polygons only whether they are there is looked at.
    """
    if not task.is_structured:
        return None
    *pairs, rest = _LOCATIONS.split(text.strip())
    if not pairs:
        return "holds no location, such as <loc_500>"
    if task.answer in ("polygons", "boxes_or_polygons"):
        return None
    for label, locations in zip(map(str.strip, pairs[::2]), pairs[1::2], strict=True):
        number = locations.count("<")
        if task.answer == "quads":
            fault = text_fault(label)
            fits = number == 8
        else:
            fault = None if task.answer == "proposals" else label_fault(label)
            fits = number % 4 == 0
        if fault:
            return f"has the label {label!r}, which {fault}"
        if not fits:
            return f"has {number} locations after {label!r}, not {'8' if task.answer == 'quads' else '4 for each box'}"
    return f"ends with {rest.strip()!r}, which no location follows" if rest.strip() else None


def write_quads(labels: Sequence[str], quads: Iterable[Sequence[float]], image_size: tuple[float, float]) -> str:
    """The text of an `<OCR_WITH_REGION>` answer, as `write_boxes` does it: each text and x y of its four corners.

    Raises UserError for a text that is empty or holds a token such as <loc_1> or </s>.
    """
    written = []
    for label, quad in zip(map(str.strip, labels), quads, strict=True):
        if fault := text_fault(label):
            raise UserError(f"the text {label!r} {fault}: leave it out")
        written.append(label + _locations(quad, image_size))
    return "".join(written)


def text_fault(text: str) -> str | None:
    """Why an `<OCR_WITH_REGION>` answer can't have this text, as the rest of a sentence about it; None where it can."""
    if not text.strip() or "<loc_" in text or _FRAME.search(text):
        return "is empty or holds a token of Florence-2"
    return None


def _locations(coordinates: Sequence[float], size: tuple[float, float]) -> str:
    """Pixels x y x y ... -> the token of the bin of each, computed in float32 as Microsoft's quantiser does."""
    width, height = (_single(side / _BINS) for side in size)
    scaled = (_single(value) / (height if index % 2 else width) for index, value in enumerate(coordinates))
    return "".join(f"<loc_{min(max(math.floor(_single(bin_)), 0), _BINS - 1)}>" for bin_ in scaled)


# --- problems ---------------------------------------------------------------------------------------------------------

_SPECIAL = re.compile("<(?:s|/s|pad|unk|mask|image)>")
_BEFORE = re.compile("(?:</s>)?(?:<s>)?")  # what may stand before an answer, and after it
_AFTER = re.compile("</s>(?:<pad>)*$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[。\uff01\uff1f]")  # the last two are the full-width ! and ?

# The limits of `_is_loop`: the longest units that are looked for, in words and in letters, and how many make a loop.
_LONGEST_PHRASE, _LONGEST_SYLLABLES = 30, 12
_MANY_WORDS, _MANY_LETTERS, _MANY_NUMBERS = 5, 16, 50
_MANY_SENTENCES, _SENTENCE_LETTERS = 3, 12


def flag_problems(raw_text: str, *, new_tokens: int | None = None, limit: int | None = None) -> tuple[Flag, ...]:
    """Flags for what makes generated text unfit for use; () where it looks right.

    - "empty": nothing but white space and punctuation.
    - "loop": the text repeats itself, see `_is_loop`.
    - "special_tokens": `<s>`, `<pad>` or another special token inside the text; those around it are normal.
    - "cut_off": generation stopped at `limit` tokens. `new_tokens` counts the generated tokens up to and including
      `</s>`, without the decoder's start token and padding. Florence-2's checkpoints force the token at the limit to be
      `</s>`, so a text of exactly `limit` tokens counts as cut off although it ends with one.

    `raw_text` is decoded with its special tokens; locations in it count as words.
    """
    text = _SPECIAL.sub(" ", raw_text)
    inside = _AFTER.sub("", _BEFORE.sub("", raw_text, count=1), count=1)
    problems: dict[Flag, bool] = {
        "empty": _is_empty(text),
        "loop": _is_loop(text.casefold()),
        "special_tokens": _SPECIAL.search(inside) is not None,
        "cut_off": new_tokens is not None and limit is not None and new_tokens >= limit,
    }
    return tuple(flag for flag, is_there in problems.items() if is_there)


def _is_empty(text: str) -> bool:
    """Whether all is white space, punctuation, control or replacement characters. $, + and emoji are content."""
    return all(unicodedata.category(sign)[0] in "ZPC" or sign == "\ufffd" for sign in set(text))


def _is_loop(text: str) -> bool:
    """Whether a lower-case text repeats itself more than people do. One of:

    - a phrase of up to 30 words at least four times in a row, a single word five times: three are common in speech and
      lists ("very, very, very big"). Punctuation doesn't count. A phrase without any letter must go on for 50 words,
      since tables and scales repeat numbers.
    - within one word, a unit of up to 12 letters at least four times in a row, over 16 letters or more: "hahaha" is
      laughter, eight times "ha" is a loop. This also finds repeated phrases in languages written without spaces.
    - a sentence of at least 12 letters three times, anywhere.
    """
    words = re.findall(r"\w+", text)
    for phrase, length in _repeats(words, _LONGEST_PHRASE):
        if length >= (_MANY_WORDS if _has_letter("".join(phrase)) else _MANY_NUMBERS):
            return True
    for word in words:
        if len(word) >= _MANY_LETTERS and _has_letter(word):
            for syllables, length in _repeats(word, _LONGEST_SYLLABLES):
                if length >= _MANY_LETTERS and _has_letter("".join(syllables)):
                    return True
    sentences = Counter(sentence.strip(" .!?") for sentence in _SENTENCE_END.split(text))
    return any(
        times >= _MANY_SENTENCES and sum(map(str.isalpha, sentence)) >= _SENTENCE_LETTERS
        for sentence, times in sentences.items()
    )


def _repeats(items: Sequence[str], longest: int) -> Iterator[tuple[Sequence[str], int]]:
    """Every stretch that repeats a unit of at most `longest` items at least four times: the unit, the stretch's length.

    Four repetitions of p items contain 3p items in a row that each equal the item p later. So for each p it is enough
    to probe every 3p-th item: for p up to 30 that is fewer than 1.4 probes per item in total.
    """
    for period in range(1, longest + 1):
        look = end = 0
        while look + period < len(items):
            if items[look] == items[look + period]:
                start, end = look, look + period
                while start > 0 and items[start - 1] == items[start - 1 + period]:
                    start -= 1
                while end < len(items) and items[end] == items[end - period]:
                    end += 1
                if end - start >= 4 * period:
                    yield items[start : start + period], end - start
                look = max(look, end - period)
            look += 3 * period - look % (3 * period)


def _has_letter(text: str) -> bool:
    return any(sign.isalpha() for sign in text)
