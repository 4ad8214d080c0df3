"""Where the captions of tar shards are written: beside each other in a folder, as JSON Lines or as new shards."""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError
from florence2ner.files import as_utf8, temporary
from florence2ner.outputs.answers import Question
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
    def finished(self) -> Path:
        """The file that is written last, under its own name when it is whole."""
        return self.folder / f"{name_of_shard(self.shard)}.{self.form}"

    @property
    def rows(self) -> Path:
        """The captions so far: a run that was killed goes on after them."""
        return self.folder / f"{name_of_shard(self.shard)}.unfinished.jsonl"


def places_of(shards: Sequence[str], folder: Path, form: Literal["jsonl", "tar"]) -> list[ShardPlace]:
    """The place of each shard. Raises UserError where two would share one, or a shard would be written over itself."""
    places: dict[Path, ShardPlace] = {}
    for shard in shards:
        place = ShardPlace(shard, folder, form)
        if place.finished in places:
            other = places[place.finished].shard
            raise UserError(f"{other} and {shard} would both be written to {place.finished}: caption them in two runs")
        if place.finished.resolve() == Path(shard).resolve():
            raise UserError(f"{shard} would be written over: choose another --output-dir")
        places[place.finished] = place
    return list(places.values())


def finish_shard(place: ShardPlace, images: Iterable[ImageRef], questions: Sequence[Question], extension: str) -> None:
    """Write the finished file of a shard, all of whose `images` were asked about; then its rows are gone.

    A new shard has those images that have captions, in their order, each with its captions in members of the same key:
    `extension` for text, .json for answers with places, named by the task where there are several. Raises UserError
    where it can't be written.
    """
    unfinished = temporary(place.finished)
    try:
        place.rows.touch()  # of a shard without a single caption there are none
        if place.form == "tar":
            _write_tar(unfinished, _members(place, images, questions, extension))
            unfinished.replace(place.finished)
            place.rows.unlink()
        else:
            place.rows.replace(place.finished)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"can't write {place.finished}: {error.strerror}") from error


def _members(
    place: ShardPlace, images: Iterable[ImageRef], questions: Sequence[Question], extension: str
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members of a new shard."""
    answers: dict[str, dict[str, Any]] = {}
    for line in place.rows.read_text(encoding="utf-8").splitlines():
        row: Mapping[str, Any] = json.loads(line)
        answers.setdefault(row["path"], {})[row["task"]] = row["caption"]
    name = name_of_shard(place.shard)
    for image in images:
        member = image.path.relative_to(place.shard).as_posix()
        given = answers.get(as_utf8(f"{name}/{member}"))
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
