"""The application that commands register with, its entry point and its exit codes."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from florence2ner.cli.flags import NONE, config_file_parameter, keyword, parameter_of
from florence2ner.config.base import SETTINGS_FILE, Config, load_config
from florence2ner.display import hide_lines_of_libraries
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


def main() -> None:
    """Entry point: run the command of `sys.argv` and exit.

    Exit codes: 0 done, 1 `inspect` found what breaks training or `eval` a worse model, 2 a mistake that the user can
    mend (shown in one line), 3 some images could not be captioned, 130 interrupted by SIGINT, 141 the reader of
    standard output went away, 143 interrupted by SIGTERM.
    """
    hide_lines_of_libraries()
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        if not (message := error.format_message()):  # no argument at all: the help has been shown
            sys.exit(2)
        _fail(message)
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


def config_command(
    config: type[Config], *, name: str, further: dict[str, Any] | None = None
) -> Callable[[Callable[..., int | None]], None]:
    """Register `run(config)` as a command whose flags are the fields of `config`, plus `--config FILE`.

    `further` are annotations of other flags, each of which is an argument of `run` where it was given.
    """

    def register(run: Callable[..., int | None]) -> None:
        def command(**given: Any) -> None:
            arguments = {flag: value for flag in further or {} if (value := given.pop(flag))}
            config_file = given.pop("config", None) or _settings_of_run(given.get("resume"))
            flags = {key: None if value is NONE else value for key, value in given.items() if value is not None}
            exit_code = run(load_config(config, flags, config_file), **arguments)
            _leave_processes()
            if exit_code:
                raise typer.Exit(exit_code)

        parameters = [config_file_parameter()] + [parameter_of(config, field) for field in config.model_fields]
        parameters += [keyword(flag, annotation) for flag, annotation in (further or {}).items()]
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
