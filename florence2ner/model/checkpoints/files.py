"""Reads the files of a model directory: JSON, safetensors and pickled weights, sharded or not. Runs no code."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from florence2ner.errors import UserError


def read_state_dict(directory: Path) -> dict[str, Tensor]:
    """All tensors of `directory` on the CPU, by name: of model.safetensors, else of pytorch_model.bin, or their shards.

    They are memory-mapped where the format allows: data is read when a tensor is used, so copy what must outlive the
    files. No code in a pickle is run. Raises UserError when there is no file, when one is damaged or holds more than
    tensors, and when an index names files outside the directory.
    """
    files = weight_files(directory)
    if not files:
        raise UserError(f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin.")
    return {name: tensor for path in files for name, tensor in read_tensors(path).items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises UserError when the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy it from the model's source.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({one_line(error)}): download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return content


def section(content: dict[str, Any], name: str) -> dict[str, Any]:
    """An object within a config; {} where it is missing or not an object, so that the caller reports missing fields."""
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def one_line(error: Exception) -> str:
    """The message of an error on one line, cut to 200 characters."""
    return " ".join(str(error).split())[:200]


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, safetensors preferred; [] where there are none.

    Raises UserError for an index that can't be read or names anything but files beside it.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = sorted({str(shard) for shard in section(read_json(index), "weight_map").values()})
            for shard in shards:
                # Check the name, not the resolved path: in the hub's cache every file is a link out of the directory.
                if re.fullmatch(r"[\w.-]+", shard) is None or Path(shard).suffix != Path(name).suffix:
                    raise UserError(f"{index} names {shard!r}, which is not a {Path(name).suffix} file beside it.")
            return [directory / shard for shard in shards]
    return []


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, as `read_state_dict` reads them, with the same errors."""
    if not path.is_file():
        raise UserError(f"{path} is missing, though a file beside it needs it: download it again.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or incomplete ({one_line(error)}): download it again.") from error
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything
        reason = "is damaged, or holds more than tensors, which can run code and was refused"
        raise UserError(f"{path} {reason}: download it again, or take a .safetensors file.") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} is not a state dict: it must hold named tensors and nothing else.")
    return state
