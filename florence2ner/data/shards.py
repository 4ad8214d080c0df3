"""Reads WebDataset's tar shards: local files, what a URL leads to and what a command writes. Nothing is unpacked."""

import hashlib
import http.client
import io
import json
import lzma
import os
import re
import signal
import tarfile
import urllib.request
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path, PurePosixPath
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from typing import IO, Any, Self

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import is_remote, is_shard_text
from florence2ner.data.formats import ALL_EXTENSIONS, list_files
from florence2ner.data.layouts.pairs import choose_captions, make_samples
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.display import name_some
from florence2ner.errors import UserError
from florence2ner.files import open_regular

PIPE_SCHEME = "pipe:"
_URL = re.compile(r"https?://")
_CAPTION_FIELD = "caption"  # as img2dataset calls it
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}\s]*,[^{}\s]*)\}")
_MEMBER = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")  # key and extension, as WebDataset divides a name
_BROKEN = (tarfile.TarError, OSError, EOFError, http.client.HTTPException, zlib.error, lzma.LZMAError)
_PATIENCE = 60  # seconds to wait for a server
_REST = 2**20  # bytes after the end of an archive that are read, so that the command which writes them can end
_TORN = "shards can't be read to their end"
_NAMED = 3  # names of each kind of fault that are kept


def is_shards(text: str) -> bool:
    """Whether a dataset's path means shards: a .tar file, a URL, a command, or a folder of .tar files without images.

    Braces stand for several, such as shards/{000..099}.tar.
    """
    if is_shard_text(text):
        return True
    folder = Path(text)
    return folder.is_dir() and any(folder.glob("*.tar")) and not list_files(folder, ALL_EXTENSIONS)


def expand(text: str) -> list[str]:
    """The shards that a dataset's path means, in their order: files, URLs, and commands after `pipe:`.

    Braces hold a range of numbers, with as many zeros in front as its ends have, or a list: {00..10}, {train,more}.
    Raises UserError for a local file that is missing, and a folder without shards.
    """
    if not is_shard_text(text):
        if found := sorted(map(str, Path(text).glob("*.tar"))):
            return found
        raise UserError(f"there is no .tar file in {text}: name the folder that holds them, or the files with braces")
    parts, end = list[list[str]](), 0
    for match in _BRACES.finditer(text):
        parts += [text[end : match.start()]], _alternatives(match)
        end = match.end()
    shards = ["".join(chosen) for chosen in product(*parts, [text[end:]])]
    if is_remote(text):
        return shards
    shards = [str(Path(shard).expanduser()) for shard in shards]
    if missing := [shard for shard in shards if not Path(shard).is_file()]:
        raise UserError(f"{len(missing)} of {len(shards)} shards are missing: {name_some(missing)}; mend {text}")
    return shards


def _alternatives(braces: re.Match[str]) -> list[str]:
    first, last, listed = braces.groups()
    if listed is not None:
        return list(listed.split(","))
    step = 1 if int(first) <= int(last) else -1
    width = max(map(len, (first, last))) if "0" in (first[0], last[0]) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]


@dataclass(frozen=True, slots=True)
class ShardImage(ImageRef):
    """An image in a shard, with the bytes of its file. Its path is that of the shard with the image's name in it."""

    content: bytes = field(default=b"", repr=False)

    @classmethod
    def within(cls, shard: str, member: str, content: bytes) -> Self:
        """The image that is called `member` in `shard`."""
        return cls(f"{shard}/{member}", Path(shard, member), content=content)

    def open(self) -> io.BytesIO:
        """The file, opened for reading."""
        return io.BytesIO(self.content)

    def size(self) -> int:
        """The size of the file in bytes."""
        return len(self.content)

    def stamp(self) -> str:
        """A hash of the file: another string whenever it changes."""
        return hashlib.blake2b(self.content, digest_size=16).hexdigest()

    def __str__(self) -> str:
        return str(self.path).replace(":/", "://")  # paths have no double slashes


@dataclass
class Faults:
    """What reading shards has passed over: of each kind the number, and the first few names."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_torn(self) -> bool:
        """Whether a shard could not be read to its end."""
        return _TORN in self.counts

    def add(self, what: str, name: str) -> None:
        """Count one thing of the kind `what`."""
        self.merge({what: 1}, {what: [name]})

    def merge(self, counts: Mapping[str, int], names: Mapping[str, list[str]]) -> None:
        """Count what others found."""
        for what, count in counts.items():
            self.counts[what] = self.counts.get(what, 0) + count
            known = self.names.setdefault(what, [])
            known += [name for name in names[what] if name not in known][: _NAMED - len(known)]

    def take(self) -> "Faults":
        """What was found until now; counting begins anew."""
        found = Faults(self.counts, self.names)
        self.counts, self.names = {}, {}
        return found

    def report(self) -> list[str]:
        """One line for each kind, with the number and a few names."""
        lines = []
        for what, count in self.counts.items():
            names = self.names[what]
            more = f" and {count - len(names)} more" if count > len(names) == _NAMED else ""  # else all are there
            lines.append(f"{count} {what}: {', '.join(names)}{more}")
        return lines


def labels(shards: Sequence[str]) -> list[str]:
    """What to call each shard in its images' names: its path without the folder that they all are in.

    Such names stay the same when the shards are moved together, or named from another folder.
    """
    start = os.path.commonprefix(shards).rfind("/") + 1  # noqa: RUF071 (no paths where they are commands or URLs)
    return [shard[start:] for shard in shards]


def read_shard(
    shard: str, options: ReadingOptions, faults: Faults, *, captions: bool = True, label: str = ""
) -> Generator[Sample, None, None]:
    """The samples of a shard in their order, with images in memory; what is passed over is added to `faults`.

    Members of one key that follow each other belong together. Captions are in members with the `caption_extension`, or
    under `caption_column` (else "caption") in a member .json, where that is set or there is no other; `prompt_column`
    names a field, too. Without `captions`, every image is a sample, and they have none. Of a shard that ends half-way
    or can't be opened, the samples before that are read. Members that are no regular files are never followed. The
    `label` is what the shard is called in the names of its images; none: as it is given.
    """
    read = 0
    try:
        with _open(shard) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
            for key, members in _groups(archive, shard, faults):
                for sample in _samples(shard, key, members, options, faults, captions=captions):
                    read += 1
                    yield _called(label, shard, sample) if label else sample
    except _BROKEN as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        faults.add(_TORN, f"{shard} ({reason}; {read} samples were read)")


def read_shards(
    shards: Sequence[str], options: ReadingOptions, faults: Faults, *, limit: int | None = None, captions: bool = True
) -> list[Sample]:
    """The first `limit` samples of shards (None: all), with their images in memory; otherwise as `read_shard`.

    Raises UserError where there are none.
    """
    every = (
        sample
        for shard, label in zip(shards, labels(shards), strict=True)
        for sample in read_shard(shard, options, faults, captions=captions, label=label)
    )
    if samples := list(islice(every, limit)):
        return samples
    raise UserError("; ".join((f"no image{' with a caption' if captions else ''} in the shards", *faults.report())))


def _called(label: str, shard: str, sample: Sample) -> Sample:
    name = f"{label}{sample.image.name.removeprefix(shard)}"
    return replace(sample, image=replace(sample.image, name=name))


class _Member(tarfile.TarInfo):
    """The header of a member. Without it, a shard that is cut off between two members would seem to be whole."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark at the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error) or "no end mark") from None


@contextmanager
def _open(shard: str) -> Iterator[IO[bytes]]:
    """A context manager with a shard's bytes. Raises OSError, with what the command said, where that fails."""
    if shard.startswith(PIPE_SCHEME):
        with _run(shard.removeprefix(PIPE_SCHEME)) as stream:
            yield stream
    elif _URL.match(shard):
        with urllib.request.urlopen(shard, timeout=_PATIENCE) as stream:
            yield stream
    else:
        with open_regular(Path(shard)) as stream:
            yield stream


@contextmanager
def _run(command: str) -> Iterator[IO[bytes]]:
    """A context manager with the output of a shell's command; one that is left early stops the command."""
    with (
        TemporaryFile() as said,
        # In a session of its own: Ctrl-C is for the run, which finishes its update, and needs these images for it.
        Popen(command, shell=True, stdin=DEVNULL, stdout=PIPE, stderr=said, start_new_session=True) as process,
    ):
        assert process.stdout
        stopped = True
        try:
            yield process.stdout
            process.stdout.read(_REST)
            stopped = False
        except _BROKEN as error:
            process.stdout.close()
            if not process.wait():
                raise
            raise OSError(_last_words(said, process)) from error
        finally:
            process.stdout.close()
            if stopped:  # a worker's children ignore gentle signals, as it does
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.wait():
            raise OSError(_last_words(said, process))


def _last_words(said: IO[bytes], process: "Popen[bytes]") -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    return next(filter(None, map(str.strip, reversed(lines))), f"exit code {process.returncode}")


def _groups(archive: tarfile.TarFile, shard: str, faults: Faults) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key, and content by extension in lower case, of members of one key that follow each other."""
    key, members = "", dict[str, bytes]()
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep the headers of all
        name = PurePosixPath(member.name)
        if member.isdir() or (match := _MEMBER.fullmatch(member.name.removeprefix("./"))) is None:
            continue
        if not member.isreg() or member.issparse() or name.is_absolute() or ".." in name.parts:
            faults.add("members are no regular files or have unsafe names and are left out", f"{shard}/{name}")
            continue
        if match[1] != key:
            if members:
                yield key, members
            key, members = match[1], {}
        file = archive.extractfile(member)
        assert file
        content = file.read()
        if members.setdefault(match[2].lower(), content) is not content:
            faults.add("members have the name of another and are left out", f"{shard}/{name}")
    if members:
        yield key, members


def _samples(
    shard: str, key: str, members: Mapping[str, bytes], options: ReadingOptions, faults: Faults, *, captions: bool
) -> list[Sample]:
    """The samples of one key; none where image or caption is missing or can't be read."""
    extensions = [extension for extension in members if extension in ALL_EXTENSIONS]
    if not extensions:
        faults.add("keys have no image and are left out", f"{shard}/{key}")
        return []
    for other in extensions[1:]:
        faults.add("images share their key with another and are left out", f"{shard}/{key}{other}")
    image = ShardImage.within(shard, key + extensions[0], members[extensions[0]])
    if not captions:
        return [Sample(image, options.task_prompt)]
    try:
        fields = _fields(members, options)
        prompt = str(fields.get(options.prompt_column or "") or "").strip() or options.task_prompt
        samples = make_samples(image, prompt, _captions(members, fields, options), options.caption_lines)
    except UnicodeDecodeError:
        faults.add("keys have text that is not UTF-8 and are left out", f"{shard}/{key}")
        return []
    except _NotAnObject as error:
        faults.add(f"keys have a .json that {error} and are left out", f"{shard}/{key}")
        return []
    if not samples:
        faults.add("images have no caption and are left out", str(image))
    return samples


class _NotAnObject(Exception):
    """A .json is not what it should be; the message says what it is instead, as a clause after "that"."""


def _fields(members: Mapping[str, bytes], options: ReadingOptions) -> Mapping[str, Any]:
    """The fields in a key's .json, where there is one and it is needed. Raises UnicodeDecodeError and _NotAnObject."""
    texts = any(extension.lower() in members for extension in options.caption_extension)
    if ".json" not in members or (texts and not options.caption_column and not options.prompt_column):
        return {}
    try:
        fields = json.loads(members[".json"].decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError):
        raise _NotAnObject("is not JSON") from None
    if not isinstance(fields, dict):
        raise _NotAnObject("holds no object")
    return fields


def _captions(members: Mapping[str, bytes], fields: Mapping[str, Any], options: ReadingOptions) -> list[str]:
    """The captions of a key as the settings say. Raises UnicodeDecodeError, and _NotAnObject for no text in a .json."""
    contents = [members[name] for extension in options.caption_extension if (name := extension.lower()) in members]
    if options.caption_column or not contents:
        cell = fields.get(options.caption_column or _CAPTION_FIELD)
        texts = [cell] if isinstance(cell, str) else cell or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _NotAnObject("has no text for a caption")
    else:
        texts = [io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read() for content in contents]
    return choose_captions([text.strip() for text in texts], options.caption_lines)
