"""The feature cache: files with the encodings of images, shared by processes and runs.

A feature is stored under the digest of its image file and a fingerprint of everything else that it depends on: weights
and precision of the vision tower, decoding and resizing. So a stale feature is never found.
"""

import glob
import hashlib
import json
import os
import shutil
import socket
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
from florence2ner.files import append_text, open_regular, sweep_unfinished, temporary

DECODING = "2"  # version of images.py's decoding and resizing; change it with these, so that old features aren't found
_DIGESTS = "digests.jsonl"  # digests of image files by their stamps, so that unchanged files aren't read again
_CHECKSUM_BYTES = 4
_RESERVE = 0.05  # share of a disk that the cache leaves free
_TEMPORARY = "florence2ner-features-"


class FeatureCache:
    """The features of images, one file each below `directory`. Several processes and runs can use it at once."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        """`fingerprint` is that of `fingerprint_of`. Raises UserError where the directory can't be made."""
        self.directory = directory
        self.folder = directory / fingerprint
        self.digests: dict[str, str] = {}  # of image files, by the image's key; the caller fills it from `identify`
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"can't make the feature cache {self.folder} ({error.strerror}): choose another --feature-cache-dir"
            ) from error
        sweep_unfinished(self.folder)

    def identify(self, images: Iterable[ImageRef]) -> dict[str, str]:
        """The digests of image files, by the images' keys; only files that are new or have changed are read.

        An image that can't be read has none. Add the result to `digests`, in every process that needs these images.
        Raises UserError where the directory can't be written to.
        """
        known = _read_digests(self.directory / _DIGESTS)
        found: dict[str, str] = {}
        unknown: list[tuple[ImageRef, str]] = []
        for image in images:
            if (stamp := image.stamp()) is None:
                continue
            if digest := known.get(stamp):
                found[image.key] = digest
            else:
                unknown.append((image, stamp))
        with ThreadPoolExecutor() as pool:  # threads help, as reading and hashing release the GIL
            digests = pool.map(_digest, (image for image, _ in unknown))
            pairs = zip(unknown, digests, strict=True)
            while batch := list(islice(pairs, 1000)):  # in parts, so that little is lost when the process is killed
                new = {image.key: digest for (image, _), digest in batch if digest}
                lines = (json.dumps([stamp, new[image.key]]) + "\n" for (image, stamp), _ in batch if image.key in new)
                append_text(self.directory / _DIGESTS, "".join(lines))
                found |= new
        return found

    def missing(self, images: Iterable[ImageRef]) -> list[ImageRef]:
        """Those of the identified images that have no feature yet; of images with the same content only one."""
        by_digest = {digest: image for image in images if (digest := self.digests.get(image.key))}
        return [image for digest, image in by_digest.items() if not self._file(digest).is_file()]

    def load(self, key: str) -> Tensor | None:
        """The feature of the image with this key, on the CPU; None where there is none, or it is damaged."""
        digest = self.digests.get(key)
        if digest is None:
            return None
        try:
            with open_regular(self._file(digest)) as file:
                data = file.read()
        except OSError:
            return None
        content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:  # files aren't flushed: power may fail
            self._file(digest).unlink(missing_ok=True)  # the next run encodes it again
            return None
        return safetensors.torch.load(content)["feature"]

    def store(self, key: str, feature: Tensor) -> bool:
        """Store the feature of an identified image. Returns False where it can't be written, as on a full disk."""
        file = self._file(self.digests[key])
        content = safetensors.torch.save({"feature": feature.contiguous()})
        unfinished = self.folder / temporary(file).name
        try:
            file.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(content + zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little"))
            unfinished.replace(file)
        except OSError:
            unfinished.unlink(missing_ok=True)
            return False
        return True

    def room(self, entry_bytes: int, max_bytes: float) -> int:
        """How many more features of `entry_bytes` fit: into `max_bytes` for the directory, and on the disk."""
        used = sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file())
        disk = shutil.disk_usage(self.directory)
        left = min(max_bytes - used, disk.free - _RESERVE * disk.total)
        return max(0, int(left // entry_bytes))

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest


def fingerprint_of(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """A hexadecimal digest of everything but the image that features depend on: weights, and the `repr` of `facts`."""
    digest = hashlib.blake2b(repr((DECODING, *facts)).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A context manager with a directory in memory (/dev/shm, else a temporary one) that all processes can read.

    It is removed at the end. One process per machine must call this and tell the others its path.
    """
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    # With the host's name, as containers may share this folder but don't see each other's processes.
    prefix = f"{_TEMPORARY}{socket.gethostname()}-"
    for left in base.glob(f"{glob.escape(prefix)}*"):  # left by runs that were killed; the name ends in the process id
        if not _is_running(left.name.removeprefix(prefix)):
            shutil.rmtree(left, ignore_errors=True)
    directory = base / f"{prefix}{os.getpid()}"
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
    except PermissionError:  # it runs, but belongs to another user
        return True
    return True


def _digest(image: ImageRef) -> str | None:
    with suppress(OSError), image.open() as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return None


def _read_digests(path: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    with suppress(OSError), open_regular(path) as file:
        for line in file:
            with suppress(ValueError):  # an incomplete line, left by a process that was killed
                stamp, digest = json.loads(line)
                known[stamp] = digest
    return known
