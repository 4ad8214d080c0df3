"""The model card of a checkpoint: what it was made from and how, how good it is, and how to load it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from florence2ner.chart import in_text
from florence2ner.config.commands import TrainConfig
from florence2ner.display import printable
from florence2ner.engine.run_files import TrainState
from florence2ner.files import METRICS_FILE

CARD_FILE = "README.md"
_CURVES = ("train/loss", "eval/loss", "train/learning_rate")
_WIDTH, _HEIGHT = 64, 8  # of a curve, in characters
_SHOWN = 4  # captions
# Settings that say where something is, or what it is called there.
_PRIVATE = {
    "model_name",
    "dataset_path",
    "eval_path",
    "split",
    "output_dir",
    "run_name",
    "resume",
    "feature_cache_dir",
    "log_with",
    "wandb_project",
    "push_to_hub",
    "hub_public",
}

_MODEL = """\
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

model = Florence2ForConditionalGeneration.from_pretrained("PATH")
"""
_ADAPTER = """\
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

model = Florence2ForConditionalGeneration.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "PATH")
"""
_NATIVE = """\
```python
{loading}processor = AutoProcessor.from_pretrained("PATH")
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(text="{prompt}", images=image, return_tensors="pt")
print(processor.decode(model.generate(**inputs, {generation})[0], skip_special_tokens=True))
```

`PATH` is this folder, or the model's id on the hub. For tools that use Microsoft's code (ComfyUI-Florence2, taggui),
convert it: `florence2ner convert PATH ./florence-2-converted --layout original`.
"""
_ORIGINAL_ADAPTER = """\
It is an adapter for Microsoft's layout: in tools that use their code, `PeftModel.from_pretrained(model, "PATH")` adds
it to `{base}`. `florence2ner convert PATH ./whole --layout original` makes a whole model of both.
"""
_ORIGINAL = """\
It is in Microsoft's layout: tools that use their code (ComfyUI-Florence2, taggui) load this folder as they load
`microsoft/Florence-2-base`. In plain transformers, without remote code:

```
florence2ner convert PATH ./native --layout native
```

```python
from transformers import Florence2ForConditionalGeneration

model = Florence2ForConditionalGeneration.from_pretrained("./native")
```

`PATH` is this folder, or the model's id on the hub.
"""


@dataclass(kw_only=True)
class ModelCard:
    """What is said of the checkpoints of a run. Nothing in it shows the images, their captions or where they are."""

    config: TrainConfig
    base_model: str  # hub id or path
    trained_on: str  # how many images and captions
    held_out: int
    parameters: str  # how many are trained
    is_adapter: bool = False  # beside the base model, in peft's format
    captions: Sequence[str] = field(default=())  # that the last evaluation wrote

    def text(self, state: TrainState) -> str:
        """The card of the checkpoint that is saved with `state`, as Markdown."""
        history = _read_history(self.config.run_dir, state.step)
        parts = [
            _front_matter(self._base(), "peft" if self.is_adapter else "transformers"),
            f"# {self.config.run_dir.name}\n\nA Florence-2, fine-tuned from {self._base()} in {state.step} updates of "
            f"{state.global_batch} images on {self.trained_on}; {self.held_out} are held out. {self.parameters} are "
            "trained.\n",
            f"## How to use it\n\n{self._how_to_load()}",
            _figures(history),
            _curves(history),
            _captions(self.captions),
            f"## Settings\n\n```yaml\n{self._settings(state)}```\n",
        ]
        return printable("\n".join(part for part in parts if part))

    def _base(self) -> str:
        """The base model as the hub calls it, or the name of its folder without the path."""
        path = Path(self.base_model)
        return path.resolve().name if path.exists() or path.is_absolute() else self.base_model

    def _how_to_load(self) -> str:
        loading = _ADAPTER.format(base=self._base()) if self.is_adapter else _MODEL
        if self.config.export_layout == "original":
            return _ORIGINAL_ADAPTER.format(base=self._base()) if self.is_adapter else _ORIGINAL
        generation = f"max_new_tokens={self.config.max_new_tokens}, num_beams={self.config.num_beams}"
        return _NATIVE.format(
            loading=loading, prompt=self.config.task_prompt.replace('"', '\\"'), generation=generation
        )

    def _settings(self, state: TrainState) -> str:
        """What differs from the defaults, without paths and names that say where something is."""
        default = TrainConfig.model_fields
        values = self.config.model_dump(mode="json")
        said = {
            name: value
            for name, value in values.items()
            if name not in _PRIVATE and getattr(self.config, name) != default[name].default
        }
        said |= {"processes": state.processes, "precision": state.precision}
        text: str = yaml.safe_dump(said, allow_unicode=True, sort_keys=False)
        return text


def _front_matter(base_model: str, library: str) -> str:
    """What the hub reads: see its documentation of model cards."""
    facts: dict[str, Any] = {"library_name": library, "pipeline_tag": "image-to-text"}
    if "/" in base_model:
        facts |= {"base_model": base_model}
    facts |= {"tags": ["florence-2", "image-captioning", "florence2ner"]}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"


def _read_history(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """What was logged up to `step`; nothing where nothing is."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["step"] <= step]


def _series(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """The finite values of a figure, each with its update."""
    values = [(row["step"], row.get(name)) for row in history]
    return [(step, value) for step, value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def _figures(history: Sequence[Mapping[str, Any]]) -> str:
    """A table of the evaluations: the first and the last value of each figure."""
    names = sorted({name for row in history for name in row if name.startswith("eval/")})
    rows = []
    for name in names:
        if series := _series(history, name):
            (first, before), (last, after) = series[0], series[-1]
            rows.append(f"| {name} | {before:.4g} (update {first}) | {after:.4g} (update {last}) |")
    table = "\n".join(("| figure | first | last |", "|---|---|---|", *rows))
    return f"## Figures\n\nOf the images that are held out:\n\n{table}\n" if rows else ""


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    drawn = []
    for name in _CURVES:
        series = _series(history, name)
        if len(series) > 1:
            values = [value for _, value in series]
            curve = "\n".join(in_text(values, width=_WIDTH, height=_HEIGHT))
            ends = f"updates {series[0][0]} to {series[-1][0]}, highest {max(values):.4g}, last {values[-1]:.4g}"
            drawn.append(f"{name}: {ends}\n{curve}")
    text = "\n\n".join(drawn)
    return f"## Curves\n\n```text\n{text}\n```\n" if drawn else ""


def _captions(captions: Sequence[str]) -> str:
    """Captions as text that Markdown takes as it is."""
    lines = [f"    {' '.join(caption.split())}" for caption in captions[:_SHOWN]]
    text = "\n".join(lines)
    return f"## Captions that it writes\n\nFor images that are held out:\n\n{text}\n" if lines else ""
