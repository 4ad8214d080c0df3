"""Plans a captioning run, without torch: which images are to be captioned, and where the captions go."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from florence2ner.config.commands import CaptionConfig
from florence2ner.data.formats import check_caption_extension
from florence2ner.data.shards import expand, is_shards
from florence2ner.engine import launcher
from florence2ner.errors import UserError
from florence2ner.files import UNFINISHED, check_writable, hold
from florence2ner.model.tasks import find_task, prompt_of
from florence2ner.outputs.answers import Output, Question
from florence2ner.outputs.forms import JsonLines
from florence2ner.outputs.records import METADATA, STANDARD_OUTPUT, RecordFile, StandardOutput
from florence2ner.outputs.shards import ShardPlace, check_finished, join, places_of, remove_files, shards_in
from florence2ner.outputs.sidecars import Sidecars
from florence2ner.outputs.style import TextStyle

# What these settings may be where tar shards are captioned.
_FOR_SHARDS: Mapping[str, Sequence[object]] = {
    "existing": ("skip", "overwrite"),
    "watch": (False,),
    "backup": (False,),
    "on_collision": ("refuse",),
}


@dataclass(frozen=True)
class CaptionSummary:
    """Numbers of images in a captioning run, over all processes."""

    done: int  # captioned by this run
    kept: int  # skipped, because they had captions
    failed: int  # unreadable, the model wrote nothing, or the caption file can't be read or replaced
    flagged: int = 0  # of those done, how many have a caption that looks wrong


@dataclass(frozen=True)
class CaptionPlan:
    """Which questions are to be asked about which images, and where the answers go."""

    todo: tuple[tuple[Path, tuple[Question, ...]], ...]
    kept: int  # number of images that have all their answers
    output: Output


@contextmanager
def hold_places(config: CaptionConfig, images: Sequence[Path]) -> Iterator[None]:
    """A context manager that keeps the output, and the file for failures, from other runs.

    To be held from before `make_plan`, which looks at what is there, until the end. Raises UserError where another run
    has one of them.
    """
    with ExitStack() as stack:
        stack.enter_context(_output(config, questions_of(config)).hold(images))
        if config.failures:
            stack.enter_context(hold(config.failures, f"the file {config.failures}"))
        yield


def make_plan(config: CaptionConfig, images: Sequence[Path], only: Sequence[Path] | None = None) -> CaptionPlan:
    """Plan the captioning of `images`, or of those in `only`; caption files must not collide among all `images`.

    With `only`, the same run has begun the output already: a row that is there is its own, and is not made again.

    Raises UserError where there is no image (unless `config.watch`), where images would share a caption file, and where
    settings don't fit together.
    """
    questions = questions_of(config)
    if config.shard_form != "jsonl":
        raise UserError(f"--shard-form {config.shard_form} is for tar shards: leave it out")
    if not images and not config.watch:
        raise UserError(f"no image in {', '.join(map(str, config.paths))}")
    output = _output(config, questions, is_begun=only is not None)
    output.look(images)
    chosen = images if only is None else only
    todo = tuple((image, missing) for image in chosen if (missing := output.missing(image)))
    if config.failures:
        _check_failures(config.failures, {"the output": output.files(images), "an image": images})
    if config.output is None and config.output_dir is None:
        for folder in {image.parent for image, _ in todo}:
            check_writable(folder, "write elsewhere with --output-dir or --output")
    return CaptionPlan(todo, kept=len(chosen) - len(todo), output=output)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Which questions are asked about the images of which shards, and where the answers go."""

    questions: tuple[Question, ...]
    todo: tuple[ShardPlace, ...]
    finished: tuple[ShardPlace, ...] = ()  # by earlier runs
    joined: tuple[ShardPlace, ...] = ()  # those whose captions are in `output`
    output: Path | None = None  # one file for all
    after_old: bool = True  # whether `output` goes on with the rows that it has

    def sweep(self) -> None:
        """Remove what a run that was killed has left of shards that are done."""
        remove_files(self.finished, rows_alone=True)
        remove_files(self.joined)

    def finish(self) -> None:
        """Write the one file for all, where there is one, with the captions of the shards that are finished."""
        if self.output is not None:
            join((*self.finished, *self.todo), self.output, after_old=self.after_old)


def shards_in_paths(config: CaptionConfig) -> list[str]:
    """What means tar shards among the paths; none where images are. Raises UserError for shards beside images."""
    folders = [str(path) for path in config.paths if path.is_dir() and is_shards(str(path))]
    if folders and len(folders) < len(config.paths):
        raise UserError(f"{folders[0]} holds tar shards: caption them in a run of their own")
    return [*config.shards, *folders]


@contextmanager
def hold_shards(config: CaptionConfig) -> Iterator[None]:
    """Like `hold_places` for tar shards; an output folder is shared, and each shard kept while it is worked on."""
    with ExitStack() as stack:
        if config.output:
            stack.enter_context(hold(Path(os.path.realpath(config.output)), f"the output {config.output}"))
        if config.failures:
            stack.enter_context(hold(config.failures, f"the file {config.failures}"))
        yield


def plan_shards(config: CaptionConfig, texts: Sequence[str]) -> ShardPlan:
    """Plan the captioning of the shards that `texts` mean.

    Raises UserError for settings that are not for shards, for shards that are missing or would share an output, and
    where something else than captions is in the place of an output.
    """
    folder = _folder_for_shards(config)
    questions = questions_of(config)
    check_places(config)
    places = places_of([shard for text in texts for shard in expand(text)], folder, config.shard_form)
    if config.failures:
        files = (file for place in places for file in (place.finished, place.rows))
        output = files if config.output is None else [config.output, *files]
        _check_failures(config.failures, {"the output": output, "a shard": (Path(place.shard) for place in places)})
    if config.existing == "overwrite":
        return ShardPlan(questions=questions, todo=tuple(places), output=config.output, after_old=False)
    names = shards_in(config.output, questions) if config.output else set()
    joined, finished, todo = list[ShardPlace](), list[ShardPlace](), list[ShardPlace]()
    for place in places:
        is_finished = place.name not in names and place.finished.exists()
        if is_finished and place.form == "jsonl":
            check_finished(place, questions)
        (joined if place.name in names else finished if is_finished else todo).append(place)
    return ShardPlan(
        questions=questions,
        todo=tuple(todo),
        finished=tuple(finished),
        joined=tuple(joined),
        output=config.output,
    )


def _folder_for_shards(config: CaptionConfig) -> Path:
    """The folder for the files of each shard. Raises UserError for settings that are not for shards."""
    for name, allowed in _FOR_SHARDS.items():
        if (value := getattr(config, name)) not in allowed:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}{'' if value is True else f' {value}'} is not for tar shards: leave it out")
    check_caption_extension(config.caption_extension)
    if config.output_dir is not None:
        return config.output_dir
    if config.output is None or config.output.suffix != ".jsonl" or config.output.name == METADATA:
        raise UserError(
            "the captions of tar shards go into a folder (--output-dir FOLDER) or into one file of JSON Lines "
            f"(--output captions.jsonl), not {config.output or 'beside the shards'}: give one of them"
        )
    if config.shard_form == "tar":
        raise UserError("--shard-form tar makes a new shard of each, in a folder: give --output-dir, not --output")
    return config.output.with_suffix(UNFINISHED)


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


def check_places(config: CaptionConfig) -> None:
    """Raise UserError where a place that the user named can't be written to, or is named twice."""
    if config.failures:
        check_writable(config.failures.parent, "choose another --failures")
        # Here already, as a run that holds its output would be told that somebody else does.
        if config.output and os.path.realpath(config.failures) == os.path.realpath(config.output):
            raise UserError(f"--failures {config.failures} is the output, too: name another file")
    if config.report:
        check_writable(config.report.parent, "choose another --report")
    if config.output_dir:
        check_writable(config.output_dir, "choose another --output-dir")
    if config.output and str(config.output) != STANDARD_OUTPUT:
        check_writable(config.output.parent, "choose another --output")


def _check_failures(failures: Path, taken: Mapping[str, Iterable[Path]]) -> None:
    """Raise UserError where the file for failures is one that is `taken`, by what that is, or is not ours."""
    real = cache(os.path.realpath)  # of folders, of which there are fewer than files
    names = {(real(path.parent), path.name) for path in (failures, Path(os.path.realpath(failures)))}
    for what, files in taken.items():
        if any((real(file.parent), file.name) in names for file in files):
            raise UserError(f"--failures {failures} is {what}, too: name another file")
    try:
        is_ours = failures.is_file() or not failures.exists()  # not a pipe or device
        is_ours = is_ours and all(row.keys() == {"path", "reason"} for row in JsonLines("path").read(failures))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--failures {failures} can't be read ({error.strerror}): name another file") from None
    except (ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise UserError(f"--failures {failures} holds something else than failures: name another file")


def _check_caption_files(config: CaptionConfig, questions: tuple[Question, ...]) -> None:
    """Raise UserError for the extension of an image format, and for "append" or "prepend" to answers in JSON."""
    check_caption_extension(config.caption_extension)
    boxes = [question.prompt for question in questions if not question.is_text]
    if config.existing in ("append", "prepend") and boxes:
        raise UserError(
            f"--existing {config.existing} extends text, but the answers to {', '.join(boxes)} are JSON: ask for them "
            "in a run of their own, with --existing skip or overwrite"
        )


def _output(config: CaptionConfig, questions: tuple[Question, ...], *, is_begun: bool = False) -> Output:
    settings = config.given() | ({} if config.temperature is None else {"seed": config.seed})
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
        overwrite=config.existing == "overwrite" and not is_begun,
        backup=config.backup,
        csv_safe=config.csv_safe,
    )
