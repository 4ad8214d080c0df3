"""Where the captions of tar shards go: a file for each in a folder, JSON Lines or a new shard; or all into one file."""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from florence2ner.data.samples import ImageRef
from florence2ner.errors import InUse, UserError
from florence2ner.files import UNFINISHED, as_utf8, end_of_json_lines, hold, remove_lock
from florence2ner.outputs.answers import Question
from florence2ner.outputs.forms import JsonLines
from florence2ner.outputs.records import RecordFile

_NAME = re.compile(r"([^/\s]+?)\.(?:tar\.gz|tgz|tar)\b", re.IGNORECASE)


@dataclass(kw_only=True)
class ShardRecords(RecordFile):
    """The captions of one shard while it is worked on. Rows name their image by the shard's own name and the member."""

    shard: str

    def _name_of(self, image: Path) -> str:
        return as_utf8(f"{name_of_shard(self.shard)}/{image.relative_to(self.shard).as_posix()}")


def name_of_shard(shard: str) -> str:
    """The name of a shard without folders and extension: 00012 of s3://bucket/00012.tar.

    Raises UserError where no part of the text is the name of a .tar file.
    """
    if found := _NAME.findall(shard):
        return str(found[-1])
    raise UserError(f"{shard} doesn't name a .tar, after which its captions could be named")


@dataclass(frozen=True)
class ShardPlace:
    """The files of one shard: `finished` is there when all of it is captioned, `rows` until then."""

    shard: str
    folder: Path
    form: Literal["jsonl", "tar"]

    @property
    def name(self) -> str:
        """The shard's own name, which is that of its files."""
        return name_of_shard(self.shard)

    @property
    def finished(self) -> Path:
        """The file that is written last, under its own name when it is whole."""
        return self.folder / f"{self.name}.{self.form}"

    @property
    def rows(self) -> Path:
        """The captions so far: a run that was killed goes on after them."""
        return self.folder / f"{self.name}.unfinished.jsonl"


def places_of(shards: Sequence[str], folder: Path, form: Literal["jsonl", "tar"]) -> list[ShardPlace]:
    """The place of each shard. Raises UserError where two would share one, or a shard would be written over itself."""
    places: dict[Path, ShardPlace] = {}
    for shard in shards:
        place = ShardPlace(shard, folder, form)
        if place.finished in places:
            other = places[place.finished].shard
            raise UserError(
                f"{other} and {shard} would both be written to {place.finished}: caption them in two runs, with an "
                "output of its own each"
            )
        if place.finished.resolve() == Path(shard).resolve():
            raise UserError(f"{shard} would be written over: choose another --output-dir")
        places[place.finished] = place
    return list(places.values())


def check_finished(place: ShardPlace, questions: Sequence[Question]) -> None:
    """Raise UserError where the finished JSON Lines of a shard are no captions, or lack the answers to a question."""
    lacking, found = {question.prompt for question in questions}, set()
    for _, prompt in _answers_in(place.finished):
        found.add(prompt)
        lacking.discard(prompt)
        if not lacking:  # after the rows of the first image
            return
    if found:
        raise _other_tasks(place.finished, found, lacking, "choose another --output-dir")


def shards_in(output: Path, questions: Sequence[Question]) -> set[str]:
    """The names of the shards about which a file of captions has rows; none where there is no such file.

    Raises UserError where it holds something else, or lacks the answers to a question.
    """
    if not output.exists():
        return set()
    names, found = set(), set()
    for path, prompt in _answers_in(output):
        names.add(path.partition("/")[0])
        found.add(prompt)
    if found and (lacking := {question.prompt for question in questions} - found):
        raise _other_tasks(output, found, lacking, "name another file for --output")
    return names


def _answers_in(path: Path) -> Iterator[tuple[str, str]]:
    """The image and the prompt of each row of a file of captions."""
    try:
        for row in JsonLines("path").read(path):
            yield row["path"], row["task"]
    except UserError:
        raise
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} holds something else than captions: write to another place") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def _other_tasks(path: Path, found: set[str], lacking: set[str], fix: str) -> UserError:
    has, lacks = (", ".join(sorted(prompts)) for prompts in (found, lacking))
    return UserError(f"{path} has answers to {has}, and none to {lacks}: {fix}, or add --existing overwrite")


def remove_files(places: Sequence[ShardPlace], *, rows_alone: bool = False) -> None:
    """Remove the files of shards, or only the rows, unless another run works on them."""
    for place in places:
        files = [file for file in (place.rows, place.finished)[: 1 if rows_alone else 2] if file.exists()]
        if files:
            with suppress(InUse), hold(place.finished, str(place.finished)):
                for file in files:
                    file.unlink(missing_ok=True)
                remove_lock(place.rows)
    for folder in () if rows_alone else {place.folder for place in places}:
        _remove_if_empty(folder)


def finish_shard(place: ShardPlace, images: Iterable[ImageRef], questions: Sequence[Question], extension: str) -> None:
    """Write the finished file of a shard, all of whose `images` were asked about; then its rows are gone.

    To be called within `hold(place.finished)`, so that the temporary file can have a name that the next run knows.

    A new shard has those images that have captions, in their order, each with its captions in members of the same key:
    `extension` for text, .json for answers with places, named by the task where there are several. Raises UserError
    where it can't be written.
    """
    unfinished = _temporary(place.finished)
    try:
        if place.form == "tar":
            _write_tar(unfinished, _members(place, images, questions, extension))
            unfinished.replace(place.finished)
            place.rows.unlink()
        else:
            place.rows.replace(place.finished)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"can't write {place.finished}: {error.strerror}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def join(places: Sequence[ShardPlace], output: Path, *, after_old: bool) -> None:
    """Write the captions of those shards that are finished into one file, in their order, and remove their own files.

    With `after_old`, they come after what the file has. To be called within `hold(output)`. Raises UserError where it
    can't be written.
    """
    target = Path(os.path.realpath(output))
    unfinished = _temporary(target)
    parts = [place.finished for place in places if place.finished.exists()]
    if not parts:
        return
    try:
        with unfinished.open("wb") as file:
            if target.exists() and after_old:
                with target.open("rb") as old:
                    end, lacking = end_of_json_lines(old)
                    old.seek(0)
                    shutil.copyfileobj(old, file)
                file.truncate(end)
                file.seek(end)
                file.write(lacking.encode())
            for part in parts:
                with part.open("rb") as rows:
                    shutil.copyfileobj(rows, file)
        unfinished.replace(target)
        for part in parts:
            part.unlink()
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"can't write {output}: {error.strerror}") from error
    _remove_if_empty(places[0].folder)  # not so, where a shard could not be read to its end


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{UNFINISHED}")


def _members(
    place: ShardPlace, images: Iterable[ImageRef], questions: Sequence[Question], extension: str
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members of a new shard."""
    answers: dict[str, dict[str, Any]] = {}
    for line in place.rows.read_text(encoding="utf-8").splitlines():
        row: Mapping[str, Any] = json.loads(line)
        answers.setdefault(row["path"], {})[row["task"]] = row["caption"]
    for image in images:
        member = image.path.relative_to(place.shard).as_posix()
        given = answers.get(as_utf8(f"{place.name}/{member}"))
        if given is None:
            continue
        with image.open() as file:
            yield member, file.read()
        path = PurePosixPath(member)
        key = str(path.with_name(path.name.partition(".")[0]))
        for question in questions:
            if (content := given.get(question.prompt)) is not None:
                task = f".{question.name}" if len(questions) > 1 else ""
                ending = extension if question.is_text else ".json"
                text = f"{content}\n" if question.is_text else json.dumps(content, ensure_ascii=False) + "\n"
                yield f"{key}{task}{ending}", text.encode()


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, BytesIO(content))
