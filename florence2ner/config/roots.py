"""The roots of a dataset: folders that are read each in its own way, and trained on more or less often."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainValidator, model_serializer, model_validator

from florence2ner.config.base import option
from florence2ner.config.options import ReadingOptions, folder_or_hub_id, is_on_hub

_REMOTE = ("pipe:", "http://", "https://")
_TAR = re.compile(r"(.+?)\.(?:tar|tar\.gz|tgz)", re.IGNORECASE)


def is_shard_text(text: str) -> bool:
    """Whether a path means tar shards by its text alone: a command after `pipe:`, a URL, or the name of a .tar file."""
    return is_remote(text) or bool(_TAR.fullmatch(text))


def is_remote(text: str) -> bool:
    """Whether shards are no files on this machine, but what a command after `pipe:` writes or a URL leads to."""
    return text.startswith(_REMOTE)


def _root_path(value: Any) -> Path | str:
    """A folder, an id on the hub, or the text that means tar shards, which a Path would change in a URL."""
    if not isinstance(value, str | Path):
        raise ValueError("must be a path")
    return str(value) if is_shard_text(str(value)) else folder_or_hub_id(Path(value))


class DatasetRoot(ReadingOptions):
    """A folder of a dataset, as a path alone or, in YAML, with a weight and whatever is read otherwise there."""

    panel: ClassVar[str] = "Data"
    metavar: ClassVar[str] = "path"  # what the command line takes for it

    path: Annotated[Path | str, PlainValidator(_root_path)]  # text: it means tar shards
    weight: float = option(1.0, "How often its images are trained on in each epoch, on average.", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value

    @model_serializer
    def _only_what_is_set(self) -> Any:
        """What is not set follows the settings of the command, when it is read back too."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return str(self.path) if given.keys() == {"path"} else given | {"path": str(self.path)}

    @property
    def name(self) -> str:
        """A name for a run on this dataset: the folder's, or that of a single tar file or of the folder of several."""
        if isinstance(self.path, Path):
            return self.path.resolve().name
        if is_remote(self.path):
            return "shards"
        path = Path(self.path).expanduser().resolve()
        found = _TAR.fullmatch(path.name)
        return found[1] if found and not set("{}").intersection(path.name) else path.parent.name


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path | dict | DatasetRoot) else value


DatasetRoots = Annotated[tuple[DatasetRoot, ...], BeforeValidator(_one_or_several)]


@dataclass(frozen=True)
class Root:
    """A root with everything that is to be known about it."""

    path: Path
    options: ReadingOptions
    weight: float = 1.0
    name: str = ""  # in front of its images' keys; empty where there is no other root
    shards: str = ""  # the text that means tar shards, where it is no folder

    def __str__(self) -> str:
        return self.shards or str(self.path)


def resolve_roots(roots: Sequence[DatasetRoot], defaults: ReadingOptions) -> tuple[Root, ...]:
    """The roots with names that tell them apart, and with what they don't set themselves from `defaults`.

    Raises ValueError where one of them is no folder, nor read from the hub or from shards, is in another one, or is
    there twice in the same way. The same folder may be read in several ways, such as for several tasks: it has one name
    then.
    """
    paths = [Path(root.path).resolve() for root in roots]
    names = _names(paths)
    resolved = [_resolve(root, defaults, names[path]) for root, path in zip(roots, paths, strict=True)]
    for at, path in enumerate(paths):
        for other, before in zip(paths[:at], resolved[:at], strict=True):
            apart = resolved[at].shards or before.shards or path == other
            if not apart and (path.is_relative_to(other) or other.is_relative_to(path)):
                raise ValueError(f"{path} and {other} are one in the other: name the outer one alone, or move one")
            if path == other and resolved[at].options == before.options:
                raise ValueError(f"{roots[at].path} is given twice; to take its images more often, set a weight")
    return tuple(resolved)


def _resolve(root: DatasetRoot, defaults: ReadingOptions, name: str) -> Root:
    path, options = root.path, _options(root, defaults)
    if isinstance(path, str):
        if options.layout not in ("auto", "shards"):
            raise ValueError(f"{path} means tar shards, which have no layout {options.layout}: leave that out")
        if options.only_accepted:
            raise ValueError(f"{path} means tar shards, which review doesn't show: leave out only_accepted")
        options = options.model_copy(update={"layout": "shards"})
        return Root(Path(path), options, root.weight, name, path)
    if is_on_hub(path) and options.layout != "huggingface":
        raise ValueError(f"{path} names no folder; for a dataset on the hub add --layout huggingface")
    return Root(path, options, root.weight, name)


def absolute_roots(roots: Sequence[DatasetRoot]) -> tuple[DatasetRoot, ...]:
    """The same roots, by absolute paths; those on the hub by their ids, URLs and commands as they are."""
    return tuple(root.model_copy(update={"path": _absolute(root.path)}) for root in roots)


def absolute_shard(shard: str) -> str:
    """The same shard, or shards, by an absolute path; a URL or a command as it is."""
    return shard if is_remote(shard) else str(Path(shard).expanduser().absolute())


def _absolute(path: Path | str) -> Path | str:
    if isinstance(path, str):
        return absolute_shard(path)
    return path if is_on_hub(path) else path.absolute()


def _options(root: DatasetRoot, defaults: ReadingOptions) -> ReadingOptions:
    names = ReadingOptions.model_fields
    return ReadingOptions(
        **{name: getattr(root if name in root.model_fields_set else defaults, name) for name in names}
    )


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """For each path as many of its last parts as tell it from the others; nothing where it is the only one."""
    different = dict.fromkeys(paths)
    if len(different) == 1:
        return dict.fromkeys(different, "")
    length = 1
    while len({path.parts[-length:] for path in different}) < len(different):
        length += 1
    return {path: "/".join(path.parts[-length:]).lstrip("/") for path in different}
