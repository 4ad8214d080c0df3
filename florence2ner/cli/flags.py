"""Makes flags from the fields of config models: name, type, default, help text and panel."""

import inspect
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator

from florence2ner.config.base import Config

NONE = object()  # what `--flag none` parses to; None means that the flag was not given


def config_file_parameter() -> inspect.Parameter:
    option = typer.Option(help="YAML file of settings, named as the flags are; flags win.", rich_help_panel="Data")
    return keyword("config", Annotated[Path | None, option])


def parameter_of(config: type[Config], name: str) -> inspect.Parameter:
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
    if get_origin(type_) is Literal and any(isinstance(check, BeforeValidator) for check in field.metadata):
        type_, common = str, common | {"metavar": f"<{'|'.join(get_args(type_))}>"}  # it knows other spellings, too
    if get_origin(type_) is Union:  # a number, or a word for it
        type_, common = str, common | {"metavar": "<int|auto>"}
    if type_ is bool:
        common |= {"metavar": ""}  # the flag and its --no- say it
    flag = config.flag_of(name)
    declared = [] if flag == f"--{name.replace('_', '-')}" else [flag]
    if config.is_positional(name):
        argument = typer.Argument(show_default=False, **common | {"metavar": name.upper()})
        return keyword(name, Annotated[type_ | None, argument])
    if optional and type_ in (int, float):
        common |= {"parser": _number_or_none, "metavar": f"<{type_.__name__}|none>"}
    option = typer.Option(*declared, show_default=_shown(field.default), **common)
    return keyword(name, Annotated[type_ | None, option])


def _without_checks(type_: Any) -> Any:
    """A type without the checks that the config model makes: Path of `Annotated[Path, ...]`."""
    return get_args(type_)[0] if get_origin(type_) is Annotated else type_


def keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _number_or_none(text: str) -> Any:
    """`NONE` for "none" or "null", else the text unparsed: the config model checks number and limits."""
    return NONE if text.lower() in {"none", "null"} else text


def _shown(default: Any) -> str | bool:
    """A default as `--help` shows it, for Typer's `show_default`; False shows none."""
    if isinstance(default, tuple):
        return ", ".join(default) or False
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None else str(default) if isinstance(default, (int, float, str, Path)) else False
