"""Which words differ between a caption and what it should be."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

Parts = list[str]  # a text in pieces: those at odd places are marked, and may be empty as the others may

# A run of letters or digits, one sign of a script without spaces, white space, or one other sign.
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|\s+|.", re.S
)
_LONGEST = 1500  # words and spaces that are compared; what comes after them is left unmarked


def mark_differences(prediction: str, references: Sequence[str]) -> tuple[int, Parts, Parts]:
    """Compare a prediction with the closest of its references, word by word.

    Returns the index of that reference, the reference with the words marked that the prediction lacks, and the
    prediction with the words marked that are not in the reference.
    """
    tokens = _split(prediction)
    truths = [_split(reference) for reference in references]
    matchers = [SequenceMatcher(None, truth, tokens, autojunk=False) for truth in truths]
    best = 0 if len(matchers) == 1 else max(range(len(matchers)), key=lambda index: matchers[index].ratio())
    truth = truths[best]
    lacking: list[tuple[str, bool]] = []
    odd: list[tuple[str, bool]] = []
    for kind, a, b, c, d in matchers[best].get_opcodes():
        lacking += [(token, kind != "equal") for token in truth[a:b]]
        odd += [(token, kind != "equal") for token in tokens[c:d]]
    rest = (
        references[best][sum(len(token) for token, _ in lacking) :],
        prediction[sum(len(token) for token, _ in odd) :],
    )
    return best, _pieces(lacking, rest[0]), _pieces(odd, rest[1])


def _split(text: str) -> list[str]:
    return _TOKEN.findall(text)[:_LONGEST]


def _pieces(tokens: Sequence[tuple[str, bool]], rest: str) -> Parts:
    """The text in pieces. White space is marked only between marked words."""
    marks = [marked for _, marked in tokens]
    for place, (token, _) in enumerate(tokens):
        if token.isspace():
            marks[place] = 0 < place < len(tokens) - 1 and tokens[place - 1][1] and tokens[place + 1][1]
    pieces = [""]
    for (token, _), marked in zip([*tokens, (rest, False)], [*marks, False], strict=True):
        if marked == len(pieces) % 2:  # the piece at hand is of the other kind
            pieces.append("")
        pieces[-1] += token
    return pieces
