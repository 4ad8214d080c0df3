"""Vision features on the disk: each image is encoded once, by whichever process or run comes first.

A feature is found by the content of its image file and by a fingerprint of everything else that it depends on: weights
and precision of the vision tower, decoding and resizing. A stale one can't be found.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError
from florence2ner.files import append_text, sweep_unfinished

DECODING = "1"  # to be raised whenever images.py decodes or resizes differently: old features are then not found
_DIGESTS = "digests.jsonl"  # what files held when they were last read, told by size and times
_CHECKSUM_BYTES = 4
_RESERVE = 0.05  # share of a disk that the cache leaves free
_TEMPORARY = "florence2ner-features-"


class FeatureCache:
    """The features of images: one file each below `directory`, whole or not there, shared by processes and runs."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        """Raises UserError where the directory can't be written to."""
        self.directory = directory
        self.folder = directory / fingerprint
        self.digests: dict[str, str] = {}  # of the content of every image that was identified, by its key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"can't make the feature cache {self.folder} ({error.strerror}): choose another --feature-cache-dir"
            ) from error
        sweep_unfinished(self.folder)

    def identify(self, images: Iterable[ImageRef]) -> dict[str, str]:
        """Digest the contents of images, of those that have changed since they were last digested.

        An image that can't be read has none. The result is for `digests`, here and in other processes.
        """
        known = _read_digests(self.directory / _DIGESTS)
        found: dict[str, str] = {}
        unknown: list[tuple[ImageRef, str]] = []
        for image in images:
            if (stamp := _stamp(image)) is None:
                continue
            if digest := known.get(stamp):
                found[image.key] = digest
            else:
                unknown.append((image, stamp))
        with ThreadPoolExecutor() as pool:  # reading waits for the disk, and hashing lets other threads run
            digests = pool.map(_digest, (image for image, _ in unknown))
            pairs = zip(unknown, digests, strict=True)
            while batch := list(islice(pairs, 1000)):  # so that a kill loses little
                new = {image.key: digest for (image, _), digest in batch if digest}
                lines = (json.dumps([stamp, new[image.key]]) + "\n" for (image, stamp), _ in batch if image.key in new)
                append_text(self.directory / _DIGESTS, "".join(lines))
                found |= new
        return found

    def missing(self, images: Iterable[ImageRef]) -> list[ImageRef]:
        """Those of the identified images that have no feature yet, one for each content."""
        by_digest = {digest: image for image in images if (digest := self.digests.get(image.key))}
        return [image for digest, image in by_digest.items() if not self._file(digest).exists()]

    def load(self, key: str) -> Tensor | None:
        """The feature of an image, by its key; None where there is no whole one."""
        digest = self.digests.get(key)
        if digest is None:
            return None
        try:
            data = self._file(digest).read_bytes()
        except OSError:
            return None
        content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:  # the power failed while it was written
            self._file(digest).unlink(missing_ok=True)  # the next run makes it anew
            return None
        return safetensors.torch.load(content)["feature"]

    def store(self, key: str, feature: Tensor) -> bool:
        """Keep the feature of an identified image. False where the disk is full."""
        file = self._file(self.digests[key])
        content = safetensors.torch.save({"feature": feature.contiguous()})
        unfinished = self.folder / f".{file.name}.{os.getpid()}.unfinished"
        try:
            file.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(content + zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little"))
            unfinished.replace(file)
        except OSError:
            unfinished.unlink(missing_ok=True)
            return False
        return True

    def room(self, entry_bytes: int, max_bytes: float) -> int:
        """How many more features fit, by the limit on the whole directory and by what the disk has left."""
        used = sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file())
        disk = shutil.disk_usage(self.directory)
        left = min(max_bytes - used, disk.free - _RESERVE * disk.total)
        return max(0, int(left // entry_bytes))

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest


def fingerprint_of(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """A name for everything but the image that features depend on: weights, and the `repr` of other facts."""
    digest = hashlib.blake2b(repr((DECODING, *facts)).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory in memory, where the system has one, that all processes of the machine see. Removed at the end."""
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    for left in base.glob(f"{_TEMPORARY}*"):  # by a run that was killed
        if not _is_running(left.name.removeprefix(_TEMPORARY)):
            shutil.rmtree(left, ignore_errors=True)
    directory = base / f"{_TEMPORARY}{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _stamp(image: ImageRef) -> str | None:
    """What changes whenever the file does."""
    try:
        found = image.path.stat()
    except OSError:
        return None
    return f"{os.path.abspath(image.path)} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _digest(image: ImageRef) -> str | None:
    with suppress(OSError), image.open() as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return None


def _read_digests(path: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    with suppress(OSError), path.open(encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError):  # a line that a kill cut off
                stamp, digest = json.loads(line)
                known[stamp] = digest
    return known
