"""The command line. The only file that uses Typer; it imports no torch, so that `--help` answers at once.

The flags of train, schedule, eval, caption and inspect are made from the fields of their config models: name, type,
default, help text and panel.
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperGroup

from florence2ner.config.base import SETTINGS_FILE, Config, load_config
from florence2ner.config.commands import CaptionConfig, EvalConfig, InspectConfig, ScheduleConfig, TrainConfig
from florence2ner.display import Display, hide_lines_of_libraries
from florence2ner.engine import launcher
from florence2ner.errors import Interrupted, UserError


class _Ended(Exception):
    """Ctrl-C or a broken pipe: Typer itself would make an exit code of these, with other numbers or without a word."""

    def __init__(self, cause: KeyboardInterrupt | BrokenPipeError) -> None:
        super().__init__()
        self.cause = cause


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as cause:
            raise _Ended(cause) from cause


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune Florence-2 as an image captioner, measure it, and caption folders with it.",
)

_NONE = object()  # what `--flag none` parses to; None means that the flag was not given


def main() -> None:
    """Entry point: run the command of `sys.argv` and exit.

    Exit codes: 0 done, 1 `inspect` found what breaks training, 2 a mistake that the user can mend (shown in one line),
    3 some images could not be captioned, 130 interrupted by SIGINT, 141 the reader of standard output went away, 143
    interrupted by SIGTERM.
    """
    hide_lines_of_libraries()
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        _fail(error.format_message())
    except UserError as error:
        _fail(str(error))
    except Interrupted as error:
        if not launcher.is_main():  # all processes stop together: only the main one prints it
            sys.exit(128 + error.signal)
        _fail(str(error), code=128 + error.signal)
    except _Ended as ended:
        if isinstance(ended.cause, BrokenPipeError):  # the reader of standard output, such as `head`, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + 13)
        if launcher.is_main():
            print("interrupted", file=sys.stderr)
        sys.exit(130)


def _leave_processes() -> None:
    """Destroy the process group, if there is one. Torch is imported only then."""
    if launcher.processes() > 1:
        from florence2ner.engine.collectives import destroy_process_group

        destroy_process_group()


def _fail(message: str, code: int = 2) -> None:
    first = launcher.local_rank() == 0
    # Before torch is imported, only settings and files are read: all processes fail alike, one per machine reports it.
    if first or "torch" in sys.modules:
        process = "" if first else f" (process {launcher.rank()})"
        print(f"error: {' '.join(message.split())}{process}", file=sys.stderr)
    sys.exit(code)


def _command(
    config: type[Config], *, name: str, further: dict[str, Any] | None = None
) -> Callable[[Callable[..., int | None]], None]:
    """Register `run(config)` as a command whose flags are the fields of `config`, plus `--config FILE`.

    `further` are annotations of other flags, each of which is an argument of `run` where it was given.
    """

    def register(run: Callable[..., int | None]) -> None:
        def command(**given: Any) -> None:
            arguments = {flag: value for flag in further or {} if (value := given.pop(flag))}
            config_file = given.pop("config", None) or _settings_of_run(given.get("resume"))
            flags = {key: None if value is _NONE else value for key, value in given.items() if value is not None}
            exit_code = run(load_config(config, flags, config_file), **arguments)
            _leave_processes()
            if exit_code:
                raise typer.Exit(exit_code)

        parameters = [_config_file_parameter()] + [_parameter(config, field) for field in config.model_fields]
        parameters += [_keyword(flag, annotation) for flag, annotation in (further or {}).items()]
        # Typer reads signature and annotations, and takes the docstring as the help text.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = run.__doc__
        app.command(name)(command)

    return register


def _settings_of_run(resume: str | None) -> Path | None:
    """The settings file of the run that the checkpoint `resume` belongs to; None without a path or such a file."""
    if resume is None or resume == "latest":
        return None
    saved = Path(resume).resolve().parent / SETTINGS_FILE
    return saved if saved.is_file() else None


def _config_file_parameter() -> inspect.Parameter:
    option = typer.Option(help="YAML file of settings, named as the flags are; flags win.", rich_help_panel="Data")
    return _keyword("config", Annotated[Path | None, option])


def _parameter(config: type[Config], name: str) -> inspect.Parameter:
    """The command-line parameter of the field `name`. Its default is always None, which means "not given"."""
    field = config.model_fields[name]
    types = get_args(field.annotation) if NoneType in get_args(field.annotation) else (field.annotation,)
    optional = NoneType in types
    type_ = _without_checks(next(t for t in types if t is not NoneType))
    common: dict[str, Any] = {"help": field.description, "rich_help_panel": config.panel_of(name)}
    if get_args(type_)[-1:] == (Ellipsis,):  # tuple[X, ...]: a flag that repeats
        inner = _without_checks(get_args(type_)[0])  # the config model checks it
        words = get_args(inner) or (getattr(inner, "metavar", inner.__name__.lower()),)
        common |= {"metavar": f"<{'|'.join(words)}>"}
        type_ = list[str]
    if get_origin(type_) is Union:  # a number, or a word for it
        type_, common = str, common | {"metavar": "<int|auto>"}
    if type_ is bool:
        common |= {"metavar": ""}  # the flag and its --no- say it
    flag = config.flag_of(name)
    declared = [] if flag == f"--{name.replace('_', '-')}" else [flag]
    if config.is_positional(name):
        argument = typer.Argument(show_default=False, **common | {"metavar": name.upper()})
        return _keyword(name, Annotated[type_ | None, argument])
    if optional and type_ in (int, float):
        common |= {"parser": _number_or_none, "metavar": f"<{type_.__name__}|none>"}
    option = typer.Option(*declared, show_default=_shown(field.default), **common)
    return _keyword(name, Annotated[type_ | None, option])


def _without_checks(type_: Any) -> Any:
    """A type without the checks that the config model makes: Path of `Annotated[Path, ...]`."""
    return get_args(type_)[0] if get_origin(type_) is Annotated else type_


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _number_or_none(text: str) -> Any:
    """`_NONE` for "none" or "null", else the text unparsed: the config model checks number and limits."""
    return _NONE if text.lower() in {"none", "null"} else text


def _shown(default: Any) -> str | bool:
    """A default as `--help` shows it, for Typer's `show_default`; False shows none."""
    if isinstance(default, tuple):
        return ", ".join(default) or False
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None else str(default) if isinstance(default, (int, float, str, Path)) else False


def _list_optimizers(wanted: bool | None) -> None:
    if wanted:
        from florence2ner.optim.catalog import describe_optimizers

        print("\n".join(describe_optimizers()))
        raise typer.Exit


_OPTIMIZERS = typer.Option(
    "--list-optimizers",
    help="Print the names that --optimizer takes, and end.",
    callback=_list_optimizers,
    is_eager=True,
    rich_help_panel="Optimizer",
    metavar="",
)


_ESTIMATE = typer.Option(
    "--estimate",
    help="Print the memory that a run with these settings takes, without loading the model, and end.",
    rich_help_panel="Machine",
    metavar="",
)
_FLAGS_OF_TRAIN = {
    "list_optimizers": Annotated[bool | None, _OPTIMIZERS],
    "estimate": Annotated[bool | None, _ESTIMATE],
}


@_command(TrainConfig, name="train", further=_FLAGS_OF_TRAIN)
def _train(config: TrainConfig, *, estimate: bool = False) -> None:
    """Fine-tune Florence-2 on a folder of images and captions."""
    if estimate:
        from florence2ner.training.estimate import estimate_memory

        estimate_memory(config)
        return
    from florence2ner.training.train import train

    train(config)


@_command(ScheduleConfig, name="schedule")
def _schedule(config: ScheduleConfig) -> None:
    """Draw the learning rate that a run of train with these settings would have."""
    from florence2ner.training.preview import draw_schedule

    draw_schedule(config)


@_command(EvalConfig, name="eval")
def _eval(config: EvalConfig) -> None:
    """Say how good a model is: loss, perplexity, exact match, captions beside the truth."""
    from florence2ner.evaluation.evaluate import evaluate

    evaluate(config)


@_command(CaptionConfig, name="caption")
def _caption(config: CaptionConfig) -> int:
    """Caption images and folders: a .txt beside each image, existing ones kept."""
    from florence2ner.captioning.caption import caption

    return 3 if caption(config).failed else 0


@_command(InspectConfig, name="inspect")
def _inspect(config: InspectConfig) -> int:
    """Look at a dataset before it is trained on: what breaks, what hurts, what is doubled or odd."""
    if not launcher.is_main():  # one process is enough, and all would write the same files
        return 0
    from florence2ner.inspection.inspect import inspect_dataset

    return 1 if inspect_dataset(config).breaks else 0


@app.command("init-model")
def _init_model(
    directory: Annotated[Path, typer.Argument(help="New folder for the model.")],
    dataset_path: Annotated[Path, typer.Option(help="Folder with captions to make the vocabulary from.")],
    preset: Annotated[
        Literal["tiny", "base", "large"],
        typer.Option(help="tiny learns small pictures on a CPU; base and large have the real sizes."),
    ] = "tiny",
    caption_extension: Annotated[
        list[str] | None, typer.Option(help="Extension of the caption files.", metavar="<str>", show_default=".txt")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 42,
) -> None:
    """Make a new Florence-2 with random weights and a vocabulary of its own."""
    from florence2ner.data.formats import CAPTION_EXTENSION, LeftOut
    from florence2ner.data.layouts.pairs import read_captions
    from florence2ner.model.checkpoints.scratch import init_model

    left_out = LeftOut()
    captions = read_captions(dataset_path, extensions=caption_extension or (CAPTION_EXTENSION,), left_out=left_out)
    for line in left_out.report():
        Display(is_main=True).warn(line)
    init_model(directory, preset=preset, captions=captions, seed=seed)


@app.command("convert")
def _convert(
    source: Annotated[str, typer.Argument(help="Model directory or hub id, in either layout.")],
    destination: Annotated[Path, typer.Argument(help="New folder for the converted model.")],
    layout: Annotated[
        Literal["native", "original"],
        typer.Option(help="native: for transformers' own class. original: for tools that use Microsoft's code."),
    ],
    dtype: Annotated[
        Literal["keep", "fp32", "fp16", "bf16"], typer.Option(help="Type of the weights; keep: as they are.")
    ] = "keep",
) -> None:
    """Convert a Florence-2 between Microsoft's original layout and the native one, and check the result."""
    from florence2ner.engine.run_files import find_model
    from florence2ner.model.checkpoints.loading import convert

    convert(find_model(source), destination, layout=layout, dtype=dtype)


@app.command("push")
def _push(
    directory: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run: its best checkpoint.")],
    repo: Annotated[str, typer.Argument(help="Repository, such as somebody/my-florence-2; made where it is missing.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository for everybody to see.")] = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub, without the training state."""
    from florence2ner.engine.hub import push

    display = Display(is_main=True)
    display.say(f"pushed to {push(directory, repo, public=public, say=display.say)}")


@app.command("demo")
def _demo(
    directory: Annotated[Path, typer.Argument(help="Folder for the pictures, the model and its captions.")] = Path(
        "florence2ner-demo"
    ),
) -> None:
    """Watch a tiny Florence-2 learn to caption drawn shapes, in a few minutes on a CPU."""
    from florence2ner.demo import demo

    demo(directory)


@app.command("guide")
def _guide(
    topic: Annotated[str | None, typer.Argument(help="A topic; without one, the topics are listed.")] = None,
) -> None:
    """Read the guide: training, resume, captioning, several GPUs, settings and more."""
    from rich.console import Console
    from rich.markdown import Markdown

    from florence2ner.guide import read_page, topics

    console = Console(emoji=False)
    if topic is None:
        width = max(map(len, topics()))
        for name, sentence in topics().items():
            console.print(f"{name:{width}}  {sentence}", highlight=False, markup=False, soft_wrap=True)
        return
    console.print(Markdown(read_page(topic.lower().removesuffix(".md"))))
