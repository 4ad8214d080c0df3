"""Folder in, captions out: what is to be done, decided before torch is imported; `caption_run.py` does it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2ner.config import CaptionConfig
from florence2ner.data.outputs import Output, Question, Sidecars
from florence2ner.data.records import STANDARD_OUTPUT, RecordFile, StandardOutput
from florence2ner.data.samples import ALL_EXTENSIONS, discover_images, name_some
from florence2ner.data.text import TextStyle
from florence2ner.engine.display import Display
from florence2ner.errors import UserError, did_you_mean
from florence2ner.model.tasks import TASKS, find_task, prompt_of

_SHOWN = 10  # images named by --dry-run
_DECODING = (
    *("num_beams", "max_new_tokens", "temperature", "top_p", "top_k"),
    *("no_repeat_ngram_size", "repetition_penalty", "length_penalty", "bad_words"),
)


@dataclass(frozen=True)
class CaptionSummary:
    """What a captioning run did, over all processes, in images."""

    done: int
    kept: int
    failed: int
    flagged: int = 0  # done, but the caption looks wrong


@dataclass(frozen=True)
class Plan:
    """Which questions are still to be asked of which images, and where the answers go."""

    todo: tuple[tuple[Path, tuple[Question, ...]], ...]
    kept: int  # images with all their answers
    output: Output


def caption(config: CaptionConfig) -> CaptionSummary:
    """Caption the images named and those below the folders named; what has captions already is kept by default.

    Each process takes what no other has taken. An image that can't be read is named, counted and skipped. Raises
    UserError when there is no image, when two images would share a caption file and when nothing can be written, and
    Interrupted after SIGINT or SIGTERM; what was finished by then is on the disk.
    """
    text_style(config)  # a mistake in a template shows before anything else
    plan = None
    display = Display(is_main=_is_main())
    if _is_main():
        for prompt in config.task_prompt:
            if prompt not in TASKS:
                display.say(f"note: {prompt} is not one of Florence-2's own tasks.{did_you_mean(prompt, TASKS)}")
        unreadable: list[Path] = []
        images = discover_images(config.paths, unreadable)
        if unreadable:
            display.warn(f"{len(unreadable)} folders can't be read and are left out: {name_some(unreadable)}")
        plan = make_plan(config, images)
        if config.dry_run:
            _show(plan, display)
        elif not plan.todo and not config.watch:
            display.say(f"nothing to do: all {plan.kept} images have captions (--existing overwrite replaces them)")
            plan.output.finish()  # a run may have been killed before it did
    if _processes() == 1 and plan is not None and (config.dry_run or not (plan.todo or config.watch)):
        return CaptionSummary(done=0, kept=plan.kept, failed=0)
    from florence2ner.caption_run import run  # torch takes seconds, and was not needed until here

    return run(config, plan, display)


def make_plan(config: CaptionConfig, images: Sequence[Path], only: Sequence[Path] | None = None) -> Plan:
    """Find what is to be done with `images`, or with `only` some of them; the others count where files collide.

    Raises UserError where there are none, unless more are waited for.
    """
    questions = questions_of(config)
    if not images and not config.watch:
        raise UserError(f"no image in {', '.join(map(str, config.paths))}")
    output = _output(config, questions)
    output.look(images)
    chosen = images if only is None else only
    todo = tuple((image, missing) for image in chosen if (missing := output.missing(image)))
    return Plan(todo, kept=len(chosen) - len(todo), output=output)


def questions_of(config: CaptionConfig) -> tuple[Question, ...]:
    """The tasks as they are asked. Raises UserError where a task and --text don't fit together, or one comes twice."""
    tasks = [find_task(prompt) for prompt in config.task_prompt]
    takes_input = [task for task in tasks if task.takes_input]
    if config.text is not None and not takes_input:
        raise UserError(f"--text is for tasks that take an input; {', '.join(config.task_prompt)} takes none")
    questions = tuple(
        Question(
            prompt_of(task, config.text if task.takes_input else None),
            task.name,
            is_text=not task.is_structured,
            may_be_empty=task.token == "<OCR>",
        )
        for task in tasks
    )
    names = [question.name for question in questions]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the task {name} is asked twice: give each --task-prompt once")
    return questions


def text_style(config: CaptionConfig) -> TextStyle:
    """How captions are dressed. Raises UserError for a template that can't be filled in."""
    return TextStyle(
        prefix=config.prefix,
        suffix=config.suffix,
        trigger_word=config.trigger_word,
        strip_opening=config.strip_opening,
        single_line=config.single_line,
        template=config.template,
    )


def decoding_settings(config: CaptionConfig) -> dict[str, Any]:
    """The settings of the generation that are not left to the checkpoint, by their names in `Decoding`."""
    values = {name: getattr(config, name) for name in _DECODING}
    return {name: value for name, value in values.items() if value not in (None, ())}


def _show(plan: Plan, display: Display) -> None:
    """What `--dry-run` prints."""
    display.say(f"{len(plan.todo)} images would be captioned, {plan.kept} have captions already")
    for image, _ in plan.todo[:_SHOWN]:
        display.say(f"  {image} -> {plan.output.place_of(image)}")
    if len(plan.todo) > _SHOWN:
        display.say(f"  and {len(plan.todo) - _SHOWN} more")


def _check_caption_files(config: CaptionConfig, questions: tuple[Question, ...]) -> None:
    """Raise UserError where caption files would be taken for images, or boxes would replace what is to be extended."""
    if Path(f"a{config.caption_extension}").suffix.lower() in ALL_EXTENSIONS:
        raise UserError(f"--caption-extension {config.caption_extension} is for images: choose another, such as .txt")
    boxes = [question.prompt for question in questions if not question.is_text]
    if config.existing in ("append", "prepend") and boxes:
        raise UserError(
            f"--existing {config.existing} extends text, but the answers to {', '.join(boxes)} are JSON: ask for them "
            "in a run of their own, with --existing skip or overwrite"
        )


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _output(config: CaptionConfig, questions: tuple[Question, ...]) -> Output:
    settings = decoding_settings(config)
    if config.output is None:
        _check_caption_files(config, questions)
        return Sidecars(
            questions,
            config.caption_extension,
            roots=tuple(path for path in config.paths if path.is_dir()),
            output_dir=config.output_dir,
            existing=config.existing,
            separator=config.separator,
            backup=config.backup,
            full_names=config.on_collision == "full-name",
        )
    if str(config.output) == STANDARD_OUTPUT:
        return StandardOutput(questions, config.model_name, settings, shared=_processes() > 1)
    overwrite = config.existing == "overwrite"
    return RecordFile(config.output, questions, config.model_name, settings, overwrite=overwrite, backup=config.backup)
