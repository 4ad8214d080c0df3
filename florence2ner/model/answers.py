"""From what the model wrote to an answer, and what is wrong with it. Pure functions on strings, light to import.

`parse_answer` gives what Microsoft's post-processor gives (processing_florence2.py of microsoft/Florence-2-large), to
the last bit of each coordinate. transformers' own differs: it cuts coordinates to whole pixels, labels malformed
polygons otherwise, and can't read a caption without the `post_processor_config` that few checkpoints have.
"""

import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from florence2ner.model.tasks import Task

Flag = Literal["empty", "loop", "special_tokens", "cut_off"]
_Pairs = Iterable[tuple[str, list[Any]]]  # label, coordinates

# --- parsing ----------------------------------------------------------------------------------------------------------

# Words that phrase grounding never boxes.
_BANNED = (
    "I|a|a group|a set|all|an|another|any|anybody|anyone|anything|each|each other|everybody|everyone|everything|few|he|"
    "her|hers|herself|him|himself|his|image|images|it|its|itself|lots|many|me|mine|myself|nobody|none|one|one another|"
    "oneself|other objects|our|ours|ourselves|several|she|some|somebody|someone|something|that|the|the image|their|"
    "theirs|them|themselves|these|they|this|those|us|we|what|which|who|whom|whose|you|your|yours|yourself|yourselves"
)
BANNED_PHRASES = tuple(_BANNED.split("|"))

_BINS = 1000  # <loc_0> ... <loc_999> over the width, and over the height
_LOC = "<loc_[0-9]{1,3}>"
_MARK = f"(?:{_LOC}|<sep>|<poly>|</poly>)"
_LABEL = "(?:^|(?<=[<>]))[^<]++"  # the original's [^<]+, tried only where text can begin: long texts stay quick
_LABELLED_BOXES = re.compile(f"{_LABEL}(?:{_LOC}){{4,}}")
_BOXES = re.compile(f"(?:{_LOC}){{4,}}")
_QUAD = re.compile(f"(?:{_LOC}){{8}}")
_LABELLED_POLYGONS = re.compile(f"{_LABEL}{_MARK}{{4,}}")
_POLYGONS = re.compile(f"{_MARK}{{4,}}")
_POLYGON = re.compile(f"((?:{_LOC})+)(?:<sep>|$)")
_POLYGON_LABEL = re.compile(r"(?:loc_[0-9]{1,3}>)?(.*?)(?=<loc_|<poly>)", re.DOTALL)
_BIN = re.compile("<loc_([0-9]+)>")
_FRAME = re.compile("<s>|</s>|<pad>")


def parse_answer(task: Task, raw_text: str, image_size: tuple[int, int]) -> str | dict[str, list[Any]]:
    """The answer in what the model wrote (decoded with its special tokens): text, or lists ready for JSON.

    `image_size` is (width, height) in pixels, and so are the coordinates: x1 y1 x2 y2 of `bboxes`, x y x y ... of
    `quad_boxes` and of each polygon in an object's `polygons`. A label stands beside each in `labels`; open-vocabulary
    detection has `bboxes_labels` and `polygons_labels`. Never raises: what makes no sense is left out. Unlike the
    original's, no answer holds `<pad>`, and none of the labels of OCR the end-of-sequence token that generation starts
    with.
    """
    text = _FRAME.sub("", raw_text)
    match task.answer:
        case "text":
            return text.strip()
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


def _columns(pairs: _Pairs, coordinates: str, labels: str) -> dict[str, list[Any]]:
    rows = list(pairs)
    return {coordinates: [row[1] for row in rows], labels: [row[0] for row in rows]}


def _read_boxes(pattern: re.Pattern[str], text: str, size: tuple[int, int], banned: tuple[str, ...] = ()) -> _Pairs:
    """Every box of every phrase. Labels lose what is not ASCII, as in the original."""
    for phrase in pattern.findall(text):
        label = phrase.partition("<")[0].strip()
        bins = _bins(phrase)
        for start in range(0, len(bins) - 3, 4):
            if label not in banned:
                yield label.encode("ascii", "ignore").decode(), _pixels(bins[start : start + 4], size)


def _read_quads(raw_text: str, size: tuple[int, int]) -> _Pairs:
    """Every line of text before eight locations. `</s>` is removed late: like the original, we want at least a sign."""
    text, start = raw_text.replace("<s>", ""), 0
    while quad := _QUAD.search(text, start + 1):
        yield _FRAME.sub("", text[start : quad.start()]), _pixels(_bins(quad[0]), size)
        start = quad.end()


def _read_polygons(pattern: re.Pattern[str], text: str, size: tuple[int, int]) -> _Pairs:
    """Every object with its list of polygons. One phrase may hold several objects, each between <poly> and </poly>."""
    for phrase in pattern.findall(text):
        label = _POLYGON_LABEL.match(phrase)
        if label is None:
            continue
        parts = re.findall("<poly>(.*?)</poly>", phrase) if "<poly>" in phrase and "</poly>" in phrase else [phrase]
        for part in parts:
            polygons = [_bins(polygon) for polygon in _POLYGON.findall(part)]
            if polygons:
                whole = [bins[: len(bins) // 2 * 2] for bins in polygons]  # a last x without its y is left out
                yield label[1].strip(), [_pixels(bins, size) for bins in whole]


def _bins(text: str) -> list[int]:
    return [int(bin_) for bin_ in _BIN.findall(text)]


def _pixels(bins: list[int], size: tuple[int, int]) -> list[float]:
    """x y x y ... in bins -> the middle of each bin in pixels, in the original's single precision."""
    width, height = (_single(side / _BINS) for side in size)
    return [_single((bin_ + 0.5) * (height if index % 2 else width)) for index, bin_ in enumerate(bins)]


def _single(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


# --- problems ---------------------------------------------------------------------------------------------------------

_SPECIAL = re.compile("<(?:s|/s|pad|unk|mask|image)>")
_BEFORE = re.compile("(?:</s>)?(?:<s>)?")
_AFTER = re.compile("</s>(?:<pad>)*$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[。\uff01\uff1f]")  # the last two are the wide ! and ?

_LONGEST_PHRASE, _LONGEST_SYLLABLES = 30, 12  # the longest units that are looked for, in words and in letters
_MANY_WORDS, _MANY_LETTERS, _MANY_NUMBERS = 5, 16, 50
_MANY_SENTENCES, _SENTENCE_LETTERS = 3, 12


def flag_problems(raw_text: str, *, new_tokens: int | None = None, limit: int | None = None) -> tuple[Flag, ...]:
    """What makes an answer unfit to be used, as a tuple of flags; () where nothing does.

    - "empty": nothing but white space and punctuation.
    - "loop": the model is stuck, see `_is_loop`.
    - "special_tokens": `<s>`, `<pad>` or another token that is no text inside the answer, not around it.
    - "cut_off": generation stopped at `limit` tokens. `new_tokens` counts what was generated after the decoder's start
      token, up to and with `</s>`, without padding. Florence-2's checkpoints force `</s>` upon the token at the limit,
      so that one is no sign of an end: only an answer of fewer tokens has ended.

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
    """Signs such as $, + and emoji are content; the sign for broken bytes is none."""
    return all(unicodedata.category(sign)[0] in "ZPC" or sign == "\ufffd" for sign in set(text))


def _is_loop(text: str) -> bool:
    """Whether the same thing comes again and again, which people don't write and stuck models do. One of:

    - a phrase of up to 30 words four times in a row, a single word five times: three are common in speech and lists
      ("very, very, very big", "red, red, red flags"). Case and punctuation don't count. Without any letter it must go
      on for 50 words, since tables and scales repeat numbers.
    - within one word, up to 12 letters four times in a row over at least 16: "hahaha" is laughter, eight "ha" are none.
      Languages without spaces have their phrases here.
    - a sentence of at least 12 letters three times, wherever.
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
    """Every stretch that is one unit at least four times in a row: the unit, of up to `longest` items, and the length.

    In four units of p items, 3p in a row equal the item p later, so it is enough to look at every 3p-th item: all p
    together look at fewer than 1.4 times the items there are.
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
