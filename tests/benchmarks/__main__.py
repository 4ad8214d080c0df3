"""`make bench`: all benchmarks side by side, a table, `benchmarks/benchmarks.json` and `benchmarks/benchmarks.png`."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import torch

from florence2ner.engine.runtime import resolve_mixed_precision
from tests.benchmarks import captioning, decode, loop, tower, training
from tests.benchmarks.machine import Machine

OUTPUT = Path("benchmarks")
FAST = 4e11  # floating-point operations a second, below which batches of four take too long for a benchmark


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="caption with torch.compile: minutes more")
    parser.add_argument(
        "--batch-size", type=int, help="images per micro-batch of training (default: by speed, 1 or 4; 32 on a GPU)"
    )
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    machine = Machine(torch.device(arguments.device), resolve_mixed_precision("auto"))
    peak = machine.matmul_peak()
    print(f"{machine}, matmul peak {peak / 1e9:.0f} GFLOP/s", flush=True)
    default = 32 if machine.device.type == "cuda" else 4 if peak > FAST else 1
    batch_size = arguments.batch_size or default
    with TemporaryDirectory() as folder:
        figures: dict[str, Any] = {"machine": str(machine), "matmul_peak": peak}
        figures |= training.measure(machine, Path(folder, "training"), batch_size, peak)
        _print(figures, "train_seconds_per_image", "train_label_tokens_per_second")
        figures |= captioning.measure(machine, Path(folder, "captioning"), 2 * batch_size, compiled=arguments.compile)
        _print(figures, "caption_seconds_per_image", "caption_tokens_per_second")
    if machine.device.type == "cpu":
        figures |= tower.measure(machine)
    figures |= loop.measure()
    figures |= {f"decode_{name}": value for name, value in decode.measure().items()}
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "benchmarks.json").write_text(json.dumps(figures, indent=1) + "\n")
    _plot(figures, OUTPUT / "benchmarks.png")
    for name, value in figures.items():
        if isinstance(value, float) and name != "matmul_peak":
            print(f"{name:28} {value:.3f}")
    for name, value in figures["peak_memory_gb"].items():
        print(f"peak memory, {name:28} {value:.2f} GB")
    for title, values in figures.items():
        if title.startswith(("train_ratios", "peak_memory_ratios", "tower_seconds")):
            for name, value in values.items():
                print(f"{title}, {name:34} {value:.2f}")
    print(f"written to {OUTPUT}")


def _print(figures: Mapping[str, Any], seconds: str, tokens: str) -> None:
    print(f"\n{'':32}{'s per image':>12}{'tokens/s':>10}{'ratio':>8}")
    slowest = next(iter(figures[seconds].values()))
    for name, value in figures[seconds].items():
        print(f"{name:32}{value:12.3f}{figures[tokens][name]:10.1f}{slowest / value:8.2f}", flush=True)


def _plot(figures: Mapping[str, Any], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    panels = {"Training": "train_seconds_per_image", "Captioning": "caption_seconds_per_image"}
    figure, axes = pyplot.subplots(1, len(panels) + 1, figsize=(14, 3.2), layout="constrained")
    for axis, (title, key) in zip(axes, panels.items(), strict=False):
        _bars(axis, figures[key], f"{title}, seconds per image", "{:.2f}")
    _bars(axes[-1], figures["peak_memory_gb"], "Training, peak memory in GB", "{:.1f}")
    figure.suptitle(f"Florence-2 base, random weights: {figures['machine']}", fontsize=10)
    figure.savefig(path, dpi=120)


def _bars(axis: Any, values: Mapping[str, float], title: str, form: str) -> None:
    colours = ["tab:green" if name.startswith("ours") else "tab:gray" for name in values]
    bars = axis.barh(list(values), list(values.values()), color=colours)
    axis.bar_label(bars, [form.format(value) for value in values.values()], padding=3)
    axis.set_title(title, fontsize=10)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
