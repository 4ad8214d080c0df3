"""Reads the offline files of Weights & Biases with the messages of the installed wandb, and its own checksums."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)  # identifier, magic number, version
_BLOCK = 32768  # bytes; a record that doesn't fit is cut: full, first, middle, last are 1 to 4, as in LevelDB's log


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, in their order. Fails for one that is not whole."""
    content = path.read_bytes()
    assert content.startswith(_HEADER)
    position, parts = len(_HEADER), b""
    while position < len(content):
        if _BLOCK - position % _BLOCK < 7:  # no header fits into the rest of a block
            position += _BLOCK - position % _BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + 7 : position + 7 + length]
        assert checksum == zlib.crc32(data, zlib.crc32(bytes([kind]))), "damaged"
        position += 7 + length
        parts += data
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
    assert not parts


def history(path: Path) -> dict[int, dict[str, Any]]:
    """What was logged at each step, without wandb's own figures."""
    found: dict[int, dict[str, Any]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                first, *path = [item.key] if item.key else item.nested_key
                if first.startswith("_"):
                    continue
                place = found.setdefault(record.history.step.num, {})
                for name in path:  # a table is a mapping
                    place, first = place.setdefault(first, {}), name
                place[first] = json.loads(item.value_json)
    return found


def settings(path: Path) -> dict[str, Any]:
    """The configuration that was logged."""
    found: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            config = record.run.config if kind == "run" else record.config
            found |= {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in config.update}
    return found


def run_id(path: Path) -> str:
    """The id of the run."""
    return next(record.run.run_id for record in records(path) if record.WhichOneof("record_type") == "run")


def artifacts(path: Path) -> list[dict[str, Path]]:
    """Of each artifact the files, by their names in it."""
    logged = [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
    return [{entry.path: Path(entry.local_path) for entry in one.manifest.contents} for one in logged]
