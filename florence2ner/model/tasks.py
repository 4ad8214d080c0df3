"""Florence-2's tasks: the token, the input and the kind of answer of each. Imports no torch.

All of this is Microsoft's (processing_florence2.py of microsoft/Florence-2-large).
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from florence2ner.errors import UserError, did_you_mean

# "phrases" are boxes for the phrases of a given caption, "proposals" boxes without labels, "quads" four-cornered boxes.
AnswerKind = Literal["text", "boxes", "phrases", "proposals", "quads", "polygons", "boxes_or_polygons"]

_REGION = re.compile(r"(?:<loc_[0-9]{1,3}>){4}")
_SIGN = re.compile(r"</?s>|<(?:pad|unk|mask|image)>")
_LONGEST_NAME = 40

# In the order in which the original processor adds them; their ids are 50265 to 51288 in Microsoft's checkpoints.
# The misspelt `desciption` is the original's.
TASK_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{bin_}>" for bin_ in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"),
    *("<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"),
    *("<proposal>", "</proposal>", "<poly>", "</poly>", "<and>"),
)
_TASK_TOKEN = re.compile("|".join(map(re.escape, TASK_TOKENS)))


@dataclass(frozen=True)
class Task:
    """What is asked of the model: `token` starts the prompt, `name` stands for it in names of files and columns."""

    token: str
    name: str
    answer: AnswerKind = "text"
    input: Literal["text", "region"] | None = None

    @property
    def is_structured(self) -> bool:
        """Whether the answer is a dict of boxes or polygons, not text."""
        return self.answer != "text"

    @property
    def may_be_empty(self) -> bool:
        """Whether an empty answer can be right: an image may have no text to read, but always something to describe."""
        return self.token == "<OCR>"

    @property
    def takes_input(self) -> bool:
        """Whether the prompt is the token followed by a text or region that the user gives."""
        return self.input is not None


def _task(token: str, answer: AnswerKind = "text", takes: Literal["text", "region"] | None = None) -> Task:
    return Task(token, token.strip("<>").lower(), answer, takes)


TASKS: dict[str, Task] = {
    task.token: task
    for task in (
        _task("<CAPTION>"),
        _task("<DETAILED_CAPTION>"),
        _task("<MORE_DETAILED_CAPTION>"),
        _task("<OCR>"),
        _task("<OCR_WITH_REGION>", "quads"),
        _task("<OD>", "boxes"),
        _task("<DENSE_REGION_CAPTION>", "boxes"),
        _task("<REGION_PROPOSAL>", "proposals"),
        _task("<CAPTION_TO_PHRASE_GROUNDING>", "phrases", "text"),
        _task("<OPEN_VOCABULARY_DETECTION>", "boxes_or_polygons", "text"),
        _task("<REFERRING_EXPRESSION_SEGMENTATION>", "polygons", "text"),
        _task("<REGION_TO_SEGMENTATION>", "polygons", "region"),
        _task("<REGION_TO_CATEGORY>", takes="region"),
        _task("<REGION_TO_DESCRIPTION>", takes="region"),
        _task("<REGION_TO_OCR>", takes="region"),
    )
}


def find_task(prompt: str) -> Task:
    """The task that a prompt asks for. A prompt that is not Microsoft's (`<GENERATE_TAGS>`, a question) asks for text.

    Different prompts get different names, but for their case and punctuation. Raises UserError when a known token is
    only a part of the prompt; the user has to give the rest with --text. Raises it too for a token such as </s>.
    """
    prompt = prompt.strip()
    _check_signs("the task prompt", prompt)
    if prompt in TASKS:
        return TASKS[prompt]
    for task in TASKS.values():
        if task.token in prompt:
            rest = prompt.replace(task.token, "").strip()
            fix = f"give {task.token} alone, and --text {rest!r}" if task.takes_input else f"give {task.token} alone"
            raise UserError(f"task prompt {prompt!r} is more than its task: {fix}")
    return Task(prompt, _safe_name(prompt))


def doubt_about(prompt: str) -> str | None:
    """A warning that a prompt asks for none of Florence-2's own tasks; None where it does.

    Raises UserError as `find_task` does.
    """
    token = find_task(prompt).token
    if token in TASKS:
        return None
    return f"the task prompt {token} is not one of Florence-2's own tasks.{did_you_mean(token.upper(), TASKS)}"


def find_signs(text: str, task: Task) -> list[str]:
    """The tokens in a caption for `task` that every Florence-2 takes for signs to itself, not for text.

    Those of places, such as <loc_1>, belong into answers about places. Whether a task that is not Florence-2's own asks
    for places is not known: there they are not looked for.
    """
    found = _SIGN.findall(text)
    return found if task.is_structured or task.token not in TASKS else found + _TASK_TOKEN.findall(text)


def _check_signs(what: str, text: str) -> None:
    """Raise UserError where a text holds a token of the tokenizer that stands for no text."""
    if found := _SIGN.search(text):
        raise UserError(f"{what} holds {found[0]}, which the model doesn't take for text, but for a sign: leave it out")


def _safe_name(prompt: str) -> str:
    """A name of letters, digits and underscores; with a checksum where it is shortened, empty or a known task's."""
    name = "_".join(re.findall(r"\w+", prompt.lower()))
    short = name[:_LONGEST_NAME].strip("_")
    if short and short == name and f"<{name.upper()}>" not in TASKS:
        return short
    checksum = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return f"{short or 'prompt'}_{checksum}"


def prompt_of(task: Task, text: str | None = None) -> str:
    """The prompt for the processor: the task's token, followed by its input where it takes one.

    The input of a region task is a box in thousandths of the image's width and height,
    `<loc_x1><loc_y1><loc_x2><loc_y2>`. Raises UserError when `text` is missing, not wanted or malformed.
    """
    text = (text or "").strip()
    if not task.takes_input:
        if text:
            raise UserError(f"{task.token} takes no text: leave out --text")
        return task.token
    example = "<loc_100><loc_250><loc_500><loc_750>" if task.input == "region" else "a red car"
    if not text:
        raise UserError(f'{task.token} asks about a text: give it with --text, such as --text "{example}"')
    if task.input == "region" and not _REGION.fullmatch(text):
        raise UserError(
            f"{task.token} asks about a box: --text must be <loc_x1><loc_y1><loc_x2><loc_y2>, each from 0 to 999 in "
            f'thousandths of the width or height, such as "{example}"; it is {text!r}'
        )
    for token in TASKS:
        if token in text:
            raise UserError(f"--text holds the task {token}: {task.token} must be followed by plain text")
    _check_signs("--text", text)
    return task.token + text
