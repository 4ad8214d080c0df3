"""Plans a captioning run, without torch: which images are to be captioned, and where the captions go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2ner.config.commands import CaptionConfig
from florence2ner.data.formats import ALL_EXTENSIONS
from florence2ner.engine import launcher
from florence2ner.errors import UserError
from florence2ner.files import check_writable
from florence2ner.model.tasks import find_task, prompt_of
from florence2ner.outputs.answers import Output, Question
from florence2ner.outputs.records import STANDARD_OUTPUT, RecordFile, StandardOutput
from florence2ner.outputs.sidecars import Sidecars
from florence2ner.outputs.style import TextStyle


@dataclass(frozen=True)
class CaptionSummary:
    """Numbers of images in a captioning run, over all processes."""

    done: int  # captioned by this run
    kept: int  # skipped, because they had captions
    failed: int  # unreadable, or the model wrote nothing
    flagged: int = 0  # of those done, how many have a caption that looks wrong


@dataclass(frozen=True)
class CaptionPlan:
    """Which questions are to be asked about which images, and where the answers go."""

    todo: tuple[tuple[Path, tuple[Question, ...]], ...]
    kept: int  # number of images that have all their answers
    output: Output


def make_plan(config: CaptionConfig, images: Sequence[Path], only: Sequence[Path] | None = None) -> CaptionPlan:
    """Plan the captioning of `images`, or of those in `only`; caption files must not collide among all `images`.

    Raises UserError where there is no image (unless `config.watch`), where images would share a caption file, and where
    settings don't fit together.
    """
    questions = questions_of(config)
    if not images and not config.watch:
        raise UserError(f"no image in {', '.join(map(str, config.paths))}")
    output = _output(config, questions)
    output.look(images)
    chosen = images if only is None else only
    todo = tuple((image, missing) for image in chosen if (missing := output.missing(image)))
    _check_places(config, {image.parent for image, _ in todo})
    return CaptionPlan(todo, kept=len(chosen) - len(todo), output=output)


def questions_of(config: CaptionConfig) -> tuple[Question, ...]:
    """The questions for the task prompts. Raises UserError where a task and --text don't fit, or a task comes twice."""
    tasks = [find_task(prompt) for prompt in config.task_prompt]
    takes_input = [task for task in tasks if task.takes_input]
    if config.text is not None and not takes_input:
        raise UserError(f"--text is for tasks that take an input; {', '.join(config.task_prompt)} takes none")
    questions = tuple(
        Question(
            prompt_of(task, config.text if task.takes_input else None),
            task.name,
            is_text=not task.is_structured,
            may_be_empty=task.may_be_empty,
        )
        for task in tasks
    )
    names = [question.name for question in questions]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the task {name} is asked twice: give each --task-prompt once")
    return questions


def text_style(config: CaptionConfig) -> TextStyle:
    """The `TextStyle` of these settings. Raises UserError for a template that can't be filled in."""
    return TextStyle(
        prefix=config.prefix,
        suffix=config.suffix,
        trigger_word=config.trigger_word,
        strip_opening=config.strip_opening,
        single_line=config.single_line,
        template=config.template,
    )


def _check_places(config: CaptionConfig, folders: set[Path]) -> None:
    """Raise UserError where captions of images in `folders`, or failures, can't be written."""
    if config.failures:
        check_writable(config.failures.parent, "choose another --failures")
    if config.output is None and config.output_dir is None:
        for folder in folders:
            check_writable(folder, "write elsewhere with --output-dir or --output")
    elif config.output_dir:
        check_writable(config.output_dir, "choose another --output-dir")
    elif str(config.output) != STANDARD_OUTPUT:
        assert config.output is not None
        check_writable(config.output.parent, "choose another --output")


def _check_caption_files(config: CaptionConfig, questions: tuple[Question, ...]) -> None:
    """Raise UserError for the extension of an image format, and for "append" or "prepend" to answers in JSON."""
    if Path(f"a{config.caption_extension}").suffix.lower() in ALL_EXTENSIONS:
        raise UserError(f"--caption-extension {config.caption_extension} is for images: choose another, such as .txt")
    boxes = [question.prompt for question in questions if not question.is_text]
    if config.existing in ("append", "prepend") and boxes:
        raise UserError(
            f"--existing {config.existing} extends text, but the answers to {', '.join(boxes)} are JSON: ask for them "
            "in a run of their own, with --existing skip or overwrite"
        )


def _output(config: CaptionConfig, questions: tuple[Question, ...]) -> Output:
    settings = config.given()
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
        return StandardOutput(questions, config.model_name, settings, shared=launcher.processes() > 1)
    return RecordFile(
        config.output,
        questions,
        config.model_name,
        settings,
        overwrite=config.existing == "overwrite",
        backup=config.backup,
        csv_safe=config.csv_safe,
    )
