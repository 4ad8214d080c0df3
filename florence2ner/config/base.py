"""The base class of all settings, and how they are read: defaults, overridden by YAML, overridden by flags.

The settings themselves are in `options.py` and in the `*_options.py` of each command.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from florence2ner.errors import UserError, did_you_mean

SETTINGS_FILE = "config.yaml"  # in the folder of a training run


def option(default: Any, help_: str, *, positional: bool = False, flag: str | None = None, **constraints: Any) -> Any:
    """The pydantic field of one setting: default (`...`: required), help text with the unit, limits such as `ge=1`.

    `positional`: the command line takes it as an argument instead of a flag. `flag`: its flag, where that is not the
    field's name, as pydantic has methods of some names.
    """
    extra: dict[str, Any] = {"positional": positional, "flag": flag}
    return Field(default, description=help_, json_schema_extra=extra, **constraints)


class Config(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error.

    `panel` is the heading in `--help`, and in the guide's tables, under which the fields of a class are listed.
    """

    panel: ClassVar[str]
    also_known: ClassVar[frozenset[str]] = frozenset()  # keys of another command, which a file may have: no mistake

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _words_of_yaml(cls, values: Any) -> Any:
        """Read YAML as flags are read: `none` is None, a single word is a list of one.

        YAML's `no` is False, but `mixed_precision: no` means the word.
        """
        if not isinstance(values, Mapping):
            return values
        read = dict(values)
        for name, value in values.items():
            types = get_args(cls.model_fields[name].annotation) if name in cls.model_fields else ()
            if NoneType in types and isinstance(value, str) and value.lower() in {"none", "null"}:
                read[name] = None
            if Ellipsis in types and isinstance(value, str):  # tuple[X, ...]
                read[name] = (value,)
        if read.get("mixed_precision") is False:
            read["mixed_precision"] = "no"
        return read

    @classmethod
    def panel_of(cls, name: str) -> str:
        """The panel of the class that declares the field `name`."""
        return next(owner.panel for owner in cls.__mro__ if issubclass(owner, Config) and name in owner.__annotations__)

    @classmethod
    def is_positional(cls, name: str) -> bool:
        """Whether the command line takes the field `name` as an argument instead of a flag."""
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        return bool(extra["positional"])

    @classmethod
    def flag_of(cls, name: str) -> str:
        """The flag of the field `name` on the command line, such as --epochs."""
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        return str(extra["flag"] or f"--{name.replace('_', '-')}")

    def to_yaml(self) -> str:
        """The settings as a YAML file that `--config` reads back to an equal object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_config(cls: type[AnyConfig], flags: Mapping[str, Any], config_file: Path | None = None) -> AnyConfig:
    """The settings of a command: defaults, overridden by the YAML file, overridden by `flags`.

    Raises UserError for a file that can't be read, an unknown key and a value that is refused.
    """
    values = _read_yaml(config_file) if config_file else {}
    source = f"{config_file}: " if config_file else ""
    for key in values:
        if key not in cls.model_fields and key not in cls.also_known:
            raise UserError(f"{source}unknown key {key!r}.{did_you_mean(str(key), cls.model_fields)}")
    own = {key: value for key, value in values.items() if key in cls.model_fields}
    try:
        return cls.model_validate(own | dict(flags))
    except ValidationError as error:
        problems = error.errors()
        # Of a list, what is refused is no item: pydantic also says that it has too few.
        named = {problem["loc"][:1] for problem in problems if problem["type"] != "too_short"}
        told = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"][:1] not in named]
        raise UserError("; ".join(_describe(cls, problem) for problem in told)) from None


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that is given twice, of which YAML's own would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, first = key.start_mark.line + 1, lines.get((key.tag, key.value))
            if first is not None:
                raise yaml.YAMLError(f"{key.value} is given twice, in lines {first} and {line}: keep one of them")
            lines[key.tag, key.value] = line
        return node


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(values).__name__}")
    return values or {}


def _describe(cls: type[Config], problem: Any) -> str:
    """One of pydantic's errors as a clause that names the key, what is wrong and what was given."""
    name = ".".join(str(part) for part in problem["loc"][:1])
    inner = ".".join(part for part in problem["loc"][1:] if isinstance(part, str))  # a key of a mapping in the value
    if problem["type"] == "missing":
        if inner:
            return f"{name}: {inner} is missing"
        flag = name.upper() if cls.is_positional(name) else cls.flag_of(name)
        return f"{name} is missing: give {flag} or set it in the config file"
    if problem["type"] == "extra_forbidden":
        if not inner:
            return f"unknown key {name!r}.{did_you_mean(name, cls.model_fields)}"
        kinds = get_args(cls.model_fields[name].annotation)
        known = [field for kind in kinds if kind is not Ellipsis for field in kind.model_fields]
        return f"{name}: unknown key {inner!r}.{did_you_mean(inner, known)}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    given = problem["input"]
    shown = str(given) if isinstance(given, Path) else repr(given)
    if problem["type"] == "value_error":
        inner = ""  # the message says what is meant
        if not isinstance(given, str | Path) or str(given) in message:
            shown = ""  # the message names it already, or it is the whole model
    end = f", not {shown}" if shown else ""
    if problem["type"] == "literal_error" and (near := did_you_mean(str(given), re.findall("'(.*?)'", message))):
        end += f".{near}"
    return f"{name}: {inner}{inner and ' '}{message}{end}" if name else message
