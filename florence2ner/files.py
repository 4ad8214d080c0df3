"""Files: written atomically, with locks between processes and backups of what the user had; read without a wait."""

import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END, BufferedReader, TextIOWrapper
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from filelock import FileLock, Timeout

from florence2ner import process
from florence2ner.errors import InUse, UserError

METRICS_FILE = "metrics.jsonl"  # in the folder of a training run
EVALUATIONS = "evaluations"  # in the folder of a training run: its evaluations, a file for each
UNFINISHED = ".unfinished"  # how names of temporary files end
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # of a file system without locks, as some mounts of Lustre
_STALE = 60.0  # seconds; a write takes milliseconds, so an older temporary file was left by a process that was killed


def temporary(path: Path) -> Path:
    """A hidden name beside `path` to write it under, which no other process uses, on this machine or on another.

    A hash stands for the file's own name, which with a suffix could be longer than the file system allows.
    """
    key = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return path.with_name(f".{key}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, with line ends as they are; otherwise as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no reader sees a part of it.

    A link stays one: its target is written. Makes the folder where it is missing. Raises UserError where the folder
    can't be written to or the disk is full.
    """
    target = Path(os.path.realpath(path))
    unfinished = temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(f"can't write {path}: {error.strerror}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def check_writable(folder: Path, fix: str) -> None:
    """Raise UserError, with `fix` at the end of its message, where `folder` can't be written to or can't be made."""
    existing = nearest_folder(folder)
    if not existing.is_dir():
        raise UserError(f"can't make the folder {folder} ({existing} is no folder): {fix}")
    try:
        TemporaryFile(dir=existing).close()  # on most file systems it never has a name
    except OSError as error:
        raise UserError(f"can't write to {existing} ({error.strerror}): {fix}") from None


def nearest_folder(folder: Path) -> Path:
    """`folder`, or where it doesn't exist the nearest of its parents that does (a file, if that is in its place)."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to be filled, which gets its name at the end; it goes where an error is raised.

    A link stays one: its target is made. Raises UserError, at once, where something is in `folder` or it can't be made;
    and where the disk is full.
    """
    target = Path(os.path.realpath(folder))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{folder} exists already: name a new folder")
    check_writable(target.parent, "name another folder")
    unfinished = target.with_name(f".{target.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(target)
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error, target.parent):
            raise UserError(f"the disk is full, {folder} can't be written: free some space") from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_disk_full(error: Exception, folder: Path) -> bool:
    """Whether a write in `folder` failed for want of space. safetensors and torch say so only in a message, or not."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or shutil.disk_usage(folder).free < 2**20


def sweep_unfinished(folder: Path) -> None:
    """Remove temporary files of `write_text` that processes left in a folder when they were killed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(UNFINISHED):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE:
                        os.unlink(entry.path)


def back_up(path: Path) -> Path:
    """Keep the content of `path` as `<name>.bak`, or `.bak2`, `.bak3` ... where that is taken. Returns the copy's path.

    Raises UserError where the copy can't be written.
    """
    for number in count(1):
        copy = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        try:
            os.link(
                os.path.realpath(path), copy
            )  # no bytes are copied; safe, as `path` is replaced or deleted later, not written into
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
    """The lock to hold while writing to a file that other processes write to; freed by the system if a holder dies."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def remove_lock(path: Path) -> None:
    """Remove the file of `lock(path)`. To be called when no process of this run writes any more."""
    Path(lock(path).lock_file).unlink(missing_ok=True)


@contextmanager
def hold(path: Path, what: str, fix: str = "start again when that has ended") -> Iterator[None]:
    """A context manager that keeps `path`, a file or folder that may not exist yet, for this process, for a whole run.

    All that call this obey it, on every machine that shares the folder. When the holder dies, the system frees it. The
    lock is a hidden file beside `path`, which goes at the end; so do folders that were made for it and are empty then.
    Raises InUse at once where another process holds it, which says who that is; `what` is how to call `path` then, and
    `fix` what to do. Raises UserError where no lock can be made, but not for a file system that has none at all.
    """
    file = _lock_of_run(path)
    made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]

    held = FileLock(file, blocking=False, fallback_to_soft=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
        file.write_text(process.name_of_this(), encoding="utf-8")
    except Timeout:
        named, _ = holder(path) or ("", 0.0)
        raise InUse(f"{what} is in use by {named.partition(chr(10))[0] or 'another process'}: {fix}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"can't lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # before it is freed, so that it isn't another's by then
        held.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def holder(path: Path) -> tuple[str, float] | None:
    """The process that is in `hold(path)` or was killed in it, as `process.name_of_this` names it, and since when.

    None where there is none. Only the file is read: a lock can be asked for only by taking it, and then a process that
    starts at this moment would be refused. See `process.is_alive`.
    """
    file = _lock_of_run(path)
    try:
        return file.read_text(encoding="utf-8", errors="replace"), file.stat().st_mtime
    except OSError:
        return None


def check_free(path: Path, what: str) -> None:
    """Raise UserError where another process is in `hold(path)`, which says who that is."""
    if _lock_of_run(path).exists():
        with hold(path, what):
            pass


def _lock_of_run(path: Path) -> Path:
    return path.with_name(f".{path.name}.in-use")


def append_text(path: Path, text: str, find_end: Callable[[BinaryIO], tuple[int, str]] | None = None) -> None:
    """Append whole rows to a file that other processes append to as well; by default, lines of JSON.

    `find_end` returns where the whole rows of the open file end, in bytes, and what they lack, such as a last newline.
    What comes after them, left by a process that was killed, is removed. Raises UserError where the file can't be
    written to or the disk is full; no part of `text` then stays in it.
    """
    try:
        with lock(path), open(path, "ab+", buffering=0) as file:
            with open(path, "rb") as reader:
                end, lacking = (find_end or end_of_json_lines)(reader)
            try:
                file.truncate(end)
                rest = memoryview((lacking + text).encode())
                while rest:  # an unbuffered write may take only a part, as on a disk that is filling up
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error


def end_of_json_lines(file: BinaryIO) -> tuple[int, str]:
    """Where the whole lines of an open JSON Lines file end, in bytes, and what the last one lacks: a newline, if any.

    A last line without a newline is left out only where it is the beginning of an object or array. Other lines are
    whole, or not written by us: an editor may have dropped the newline.
    """
    size = file.seek(0, SEEK_END)
    end = _end_of_last_line(file, size)
    file.seek(end)
    tail = file.read()
    return (end, "") if not tail or is_torn_json(tail) else (size, "\n")


def is_torn_json(line: bytes) -> bool:
    """Whether a line is the beginning of a JSON object or array whose end is missing."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith((b"{", b"["))
    return False


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """The position in bytes just after the last newline of an open file of `size` bytes; 0 where there is none."""
    position = size
    while position:
        start = file.seek(max(0, position - 65536))
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError for anything but a regular file: opening a pipe could block for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ENOENT, "broken link") from None
        raise
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def read_regular(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark. Raises UnicodeDecodeError, and OSError likewise.

    Line ends are those of Python: \\r\\n becomes \\n.
    """
    with TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
        return file.read()


def has_text(path: Path) -> bool:
    """Whether `path` is a file, not a folder or the like, and is not empty."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def as_utf8(name: Path | str) -> str:
    """A path or file name as text that can be encoded as UTF-8; bytes that are not UTF-8 become \\xff and the like."""
    return os.fsencode(name.as_posix() if isinstance(name, Path) else name).decode(errors="backslashreplace")
