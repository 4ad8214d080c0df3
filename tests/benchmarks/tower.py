"""The vision tower of the base size on a CPU: ours, ours compiled, and OpenVINO where it is installed (extra `bench`).

The same weights and the same image of 768x768 for all, in the precision that `auto` gives. What compiling takes is
told apart.
"""

import importlib.util
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from florence2ner.model.build import build_captioner
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.model.inputs import Pixels
from tests.benchmarks.machine import Machine, medians, take_turns

SIDE, AGREE = 768, 0.05  # pixels; the largest difference of what they compute, as a share of its deviation


class _Outputs(nn.Module):
    """The tower as a function of pixels to its last feature map."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.tower(pixels).last_hidden_state
        return features


def measure(machine: Machine) -> dict[str, Any]:
    """Seconds per image, and how much faster than OpenVINO ours is, where that is there."""
    plain, _ = build_model("base", ["a photograph"], seed=0)
    model, processor = build_model("base", ["a photograph"], seed=0)
    dtype = machine.dtype if machine.precision != "no" else None
    vision = build_captioner(model, processor, device=machine.device, dtype=dtype).vision
    pixels = Pixels(torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8, device=machine.device))
    found: dict[str, Tensor] = {}
    compiling: dict[str, float] = {}

    def ours(name: str) -> None:
        found[name] = vision.features(pixels).values.float()

    with torch.inference_mode(), machine.autocast(), ExitStack() as stack:
        turns: dict[str, Callable[[], None]] = {"ours": lambda: ours("ours")}
        if importlib.util.find_spec("openvino"):
            start = time.perf_counter()
            infer = _openvino(plain.model.vision_tower.eval(), machine)
            compiling["OpenVINO"] = time.perf_counter() - start
            given = vision.normalise(pixels.values).numpy()
            turns["OpenVINO"] = lambda: found.update({"OpenVINO": infer(given)})
        for work in turns.values():
            work()
        seconds = take_turns(machine, turns, seconds=30, rounds=(3, 9))
        start = time.perf_counter()
        stack.enter_context(vision.compiled())
        compiling["ours, compiled"] = time.perf_counter() - start
        seconds |= take_turns(machine, {"ours, compiled": lambda: ours("ours, compiled")}, seconds=15, rounds=(3, 9))
    for name, features in found.items():
        error = (features - found["ours"]).abs().max() / found["ours"].std()
        assert error < (10 * AGREE if machine.precision == "bf16" else AGREE), f"{name}: {error:.3f}"
    middle = medians(seconds)
    figures: dict[str, Any] = {"tower_seconds_per_image": middle, "tower_seconds_to_compile": compiling}
    if "OpenVINO" in middle:
        figures["tower_ratio"] = middle["OpenVINO"] / middle["ours"]
        figures["tower_ratio_compiled"] = middle["OpenVINO"] / middle["ours, compiled"]
    return figures


def _openvino(tower: nn.Module, machine: Machine) -> Callable[[Any], Tensor]:
    import openvino  # an extra of this benchmark

    converted = openvino.convert_model(_Outputs(tower), example_input=torch.zeros(1, 3, SIDE, SIDE))
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if machine.precision == "bf16" else "f32"}
    compiled = openvino.Core().compile_model(converted, "CPU", hint)
    return lambda pixels: torch.from_numpy(compiled(pixels)[0])


if __name__ == "__main__":
    from florence2ner.engine.runtime import resolve_mixed_precision

    here = Machine(torch.device("cpu"), resolve_mixed_precision("auto"))
    print(here)
    for name, value in measure(here).items():
        print(name, value)
