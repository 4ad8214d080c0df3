"""Writing files so that nobody ever sees half of one, and so that no text of the user's is lost."""

import hashlib
import os
import shutil
import time
from contextlib import suppress
from io import SEEK_END, RawIOBase
from itertools import count
from pathlib import Path

from filelock import FileLock

from florence2ner.errors import UserError

_UNFINISHED = ".unfinished"
_STALE = 60.0  # seconds: a write takes milliseconds, so what is older was left behind by a kill


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file under a temporary name and rename it: nobody ever sees half of it.

    Raises UserError where the folder can't be written to or the disk is full.
    """
    key = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()  # the name itself may be as long as can be
    unfinished = path.with_name(f".{key}.{os.getpid()}{_UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(f"can't write {path}: {error.strerror}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def check_writable(folder: Path, fix: str) -> None:
    """Raise UserError, which ends with `fix`, where nothing can be written to a folder, or it can't be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"can't make the folder {folder} ({existing} is no folder): {fix}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"can't write to {existing} (no permission): {fix}")


def sweep_unfinished(folder: Path) -> None:
    """Remove what killed runs left half-written in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(_UNFINISHED):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE:
                        os.unlink(entry.path)


def back_up(path: Path) -> Path:
    """Keep what `path` holds now as `<name>.bak`, or `.bak2` and so on where there is one. Returns the copy's path."""
    for number in count(1):
        copy = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        try:
            os.link(path, copy)  # as fast as a rename, and `path` is later replaced, never written into
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links
            if copy.exists():
                continue
            try:
                shutil.copy2(path, copy)
            except OSError as error:
                raise UserError(f"can't keep a copy of {path} as {copy}: {error.strerror}") from error
        return copy
    raise AssertionError("count() has no end")


def lock(path: Path) -> FileLock:
    """The lock under which processes write to the same file in turn; the system frees it when its holder is killed."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def remove_lock(path: Path) -> None:
    """Remove the file behind `lock(path)`, once no process of this run needs it any more."""
    Path(lock(path).lock_file).unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file that other processes add to as well.

    What a killed process left of its last line is cut off first. Raises UserError, and leaves the file as it was, where
    it can't be written to or the disk is full.
    """
    try:
        with lock(path), open(path, "ab+", buffering=0) as file:
            end = _end_of_last_line(file)
            try:
                file.truncate(end)
                rest = memoryview(text.encode())
                while rest:  # a disk that fills up takes a part first
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error


def _end_of_last_line(file: RawIOBase) -> int:
    """Position behind the last newline of an open file, in bytes; 0 where there is none."""
    position = file.seek(0, SEEK_END)
    while position:
        start = file.seek(max(0, position - 65536))
        newline = (file.read(position - start) or b"").rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def has_text(path: Path) -> bool:
    """Whether there is a file with anything in it."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def as_utf8(name: Path | str) -> str:
    """A path, or a name of a file, as text that can be written; bytes that are not UTF-8 show as \\xff."""
    return os.fsencode(name.as_posix() if isinstance(name, Path) else name).decode(errors="backslashreplace")
