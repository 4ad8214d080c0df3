"""What tests all over the house share: how runs are started, and how their files, figures and weights are compared."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from florence2ner import CaptionConfig, TrainConfig
from florence2ner.captioning.plan import CaptionPlan, make_plan
from florence2ner.data.formats import discover_images
from tests.programs.starting import Running

TIMING = {"time", "train/images_per_second"}


def files_in(folder: Path) -> set[str]:
    """The files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def figures(run_dir: Path, name: str) -> dict[int, float]:
    """Value of a metric at each step where it was logged."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def history(run_dir: Path) -> list[dict[str, object]]:
    """All that was logged, but for how long it took."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in the native layout."""
    return load_file(checkpoint / "model.safetensors")


def relative_differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference by the norm, for each tensor.

    The biases of attention keys are left out: softmax does not see a shift of the keys, so their true gradient is zero
    and AdamW makes steps of the rounding. The vision tower holds them in the middle third of its qkv biases.
    """
    differences = {}
    for name, value in one.items():
        pair = value, other[name]
        if name.endswith("k_proj.bias"):
            continue
        if name.endswith("window_attn.qkv.bias"):
            pair = tuple(torch.cat([query, v]) for query, _, v in (tensor.chunk(3) for tensor in pair))
        differences[name] = ((pair[1] - pair[0]).norm() / pair[0].norm().clamp_min(1e-30)).item()
    return differences


def write(config: TrainConfig, folder: Path) -> Path:
    """Write the settings as a file for --config."""
    file = folder / f"{config.run_name}.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    return file


def without_roots_powers(*args: object) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGS` without root's powers to read and write everything. Skips the test where that can't be."""
    command = [sys.executable, *map(str, args)]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("as root this needs setpriv")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, capture_output=True, text=True)


def finish(running: Running) -> None:
    """Wait for processes that must end well."""
    assert running.wait().returncode == 0, running.stderr


def many(images: Path, shapes: Path, count: int) -> list[Path]:
    """`count` more images, as links."""
    sources = sorted(shapes.glob("*.png"))
    paths = [images / f"{number:03d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.symlink_to(sources[number % len(sources)])
    return paths


def large(folder: Path, shapes: Path, count: int) -> Path:
    """A new folder with captioned images of 36 million pixels: each takes long to decode."""
    folder.mkdir()
    file = io.BytesIO()
    Image.new("RGB", (6000, 6000), "red").save(file, "png")
    for number in range(count):
        shutil.copy(shapes / f"{number:04d}.txt", folder)
        # What comes after the end of a PNG is not looked at, but makes it another file.
        (folder / f"{number:04d}.png").write_bytes(file.getvalue() + bytes([number]))
    return folder


def wait_until_open(running: Running, rank: int, *files: Path) -> None:
    """Return when a process has one of these files open. Needs Linux."""
    paths = {str(file.resolve()) for file in files}
    while True:
        assert running.poll() is None, running.stderr
        for descriptor in Path(f"/proc/{running.pids[rank]}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if os.readlink(descriptor) in paths:
                    return


def assert_one_clear_line(running: Running, killed: int, go_on: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Kill a process of two, or stop it for a while, and look at what the other says about it."""
    other = 1 - killed
    running.signal(number, killed)
    end = time.monotonic() + 120
    while running.code(other) is None:
        running.poll(0.1)
        assert time.monotonic() < end, f"it still waits: {running.stderr}"
    if number != signal.SIGKILL:
        running.signal(signal.SIGKILL, killed)
    running.wait()
    said = running.stderr_of(other)
    assert running.code(killed) == -signal.SIGKILL
    assert running.code(other) == 2, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if "error" in line)
    assert line.startswith("error: lost contact with another process, which was killed, failed or fell silent")
    assert go_on in line


def plan(*paths: Path, **settings: Any) -> CaptionPlan:
    """What `florence2ner caption PATHS` would do with these settings."""
    config = CaptionConfig.model_validate({"paths": paths} | settings)
    return make_plan(config, discover_images(config.paths))


def unnamed_files(folder: Path, pid: int | str = "self") -> list[int]:
    """Sizes of the files in `folder` without a name that a process has open. Needs Linux."""
    sizes = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            target = os.readlink(descriptor)
            if target.startswith(f"{folder}/") and target.endswith(" (deleted)"):
                sizes.append(descriptor.stat().st_size)
    return sizes


def box_of_shape(picture: Image.Image) -> tuple[int, int, int, int]:
    """Where the shape of a drawn picture is: x1 y1 x2 y2 in pixels, the last two just beyond it."""
    ground = Image.new("RGB", picture.size, picture.getpixel((0, 0)))  # no shape reaches into a corner
    box = ImageChops.difference(picture, ground).getbbox()
    assert box is not None
    return box
