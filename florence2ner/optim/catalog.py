"""The optimizers by name: where each comes from, which package it needs, and which can't be used, and why."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from florence2ner.errors import UserError, did_you_mean

SCHEDULE_FREE = "schedulefree_"  # how their names begin
_KAHAN = ("adam", "adamw", "lion", "radam", "sgd", "stableadamw")
KAHAN = {f"optimi_{name}" for name in _KAHAN}  # those that lose no small update of a bf16 weight; Adan and Ranger do
SETTINGS = ("betas", "eps", "momentum", "decouple_lr")  # that can be given for an optimizer that has them


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer: a class of `module`, or one of timm's registry where `module` is None."""

    name: str
    description: str
    module: str | None = None
    class_name: str | None = None

    @property
    def missing(self) -> str | None:
        """The package that must be installed first, or None."""
        if self.module is None or find_spec(self._package):
            return None
        return _DISTRIBUTIONS[self._package]

    @property
    def _package(self) -> str:
        return (self.module or "").partition(".")[0]


_DISTRIBUTIONS = {
    "optimi": "torch-optimi",
    "came_pytorch": "came-pytorch",
    "bitsandbytes": "bitsandbytes",
    "schedulefree": "schedulefree",
}

_KAHAN_SUM = "with Kahan summation for bf16 weights"
_8BIT = "whose state takes 8 bits a value"
_NO_SCHEDULE = "without a schedule: averages its weights"
# name: module, class, description
_OTHERS = {
    "optimi_adam": ("optimi", "Adam", f"Adam {_KAHAN_SUM}"),
    "optimi_adamw": ("optimi", "AdamW", f"AdamW {_KAHAN_SUM}"),
    "optimi_adan": ("optimi", "Adan", "Adaptive Nesterov Momentum"),
    "optimi_lion": ("optimi", "Lion", f"Lion {_KAHAN_SUM}"),
    "optimi_radam": ("optimi", "RAdam", f"RAdam {_KAHAN_SUM}"),
    "optimi_ranger": ("optimi", "Ranger", "RAdam with lookahead"),
    "optimi_sgd": ("optimi", "SGD", f"SGD {_KAHAN_SUM}"),
    "optimi_stableadamw": ("optimi", "StableAdamW", f"AdamW that clips its own update, {_KAHAN_SUM}"),
    "came": ("came_pytorch", "CAME", "Adafactor's memory, guided by how sure the update is"),
    "bnb_adam8bit": ("bitsandbytes.optim", "Adam8bit", f"Adam {_8BIT}"),
    "bnb_adamw8bit": ("bitsandbytes.optim", "AdamW8bit", f"AdamW {_8BIT}"),
    "bnb_ademamix8bit": ("bitsandbytes.optim", "AdEMAMix8bit", f"AdEMAMix {_8BIT}"),
    "bnb_lion8bit": ("bitsandbytes.optim", "Lion8bit", f"Lion {_8BIT}"),
    "schedulefree_adamw": ("schedulefree", "AdamWScheduleFree", f"AdamW {_NO_SCHEDULE}"),
    "schedulefree_radam": ("schedulefree", "RAdamScheduleFree", f"RAdam {_NO_SCHEDULE}"),
    "schedulefree_sgd": ("schedulefree", "SGDScheduleFree", f"SGD {_NO_SCHEDULE}"),
}

_RANDOM = "it draws random numbers, others in each process, and compiles itself for each shape of a weight"
# Those of timm's registry that can't be used here, with the reason.
REFUSED = {
    "adahessian": "it needs second derivatives, which this loop doesn't compute",
    **dict.fromkeys(("madgrad", "madgradw"), "it adds 1e-6 to the learning rate: no schedule brings it to rest"),
    **dict.fromkeys(("kron", "kronc", "kronw"), _RANDOM),
    **dict.fromkeys(
        ("fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd"),
        "it needs NVIDIA's apex, which has to be built; adamw is fused without it",
    ),
}


def catalog() -> dict[str, Entry]:
    """All that can be chosen, by name in alphabetical order, whether their packages are installed or not."""
    entries = [*_of_timm(), *_of_others()]
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}


def find_optimizer(name: str) -> Entry:
    """The optimizer of this name. Raises UserError where there is none, or it can't be used here."""
    entries = catalog()
    if name in REFUSED:
        raise UserError(f"optimizer {name} can't be used: {REFUSED[name]}")
    if name not in entries:
        raise UserError(
            f"there is no optimizer {name!r}.{did_you_mean(name, entries)} florence2ner train --list-optimizers "
            "lists them"
        )
    if missing := entries[name].missing:
        raise UserError(f"optimizer {name} needs a package that is not installed: pip install {missing}")
    return entries[name]


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """The settings of an optimizer from words such as betas=0.9,0.95. Raises ValueError for what isn't one."""
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in SETTINGS:
            raise ValueError(f"{word!r} is no key=value of {', '.join(SETTINGS)}, such as betas=0.9,0.95")
        if name in settings:
            raise ValueError(f"{name} is given twice")
        try:
            settings[name] = _TRUTH[text] if name == "decouple_lr" else _numbers(text)
        except (KeyError, ValueError):
            raise ValueError(f"{word!r} has no value that {name} can have") from None
    return settings


_TRUTH = {"true": True, "false": False}


def _numbers(text: str) -> float | tuple[float, ...]:
    numbers = tuple(map(float, text.split(",")))
    return numbers if len(numbers) > 1 else numbers[0]


def describe_optimizers() -> list[str]:
    """Lines for the user: those that are there, and those that need a package."""
    entries = catalog().values()
    width = max(len(entry.name) for entry in entries)
    lines = [f"{entry.name:{width}}  {entry.description}" for entry in entries if not entry.missing]
    for entry in entries:
        if entry.missing:
            lines.append(f"{entry.name:{width}}  {entry.description}; needs: pip install {entry.missing}")
    return lines


def _of_timm() -> Iterator[Entry]:
    from timm.optim import list_optimizers  # a slow import: only where it is needed

    for name, description in list_optimizers(with_description=True):
        if name not in REFUSED and not name.startswith("bnb"):  # bitsandbytes' own classes don't insist on a GPU
            yield Entry(name=name, description=description)


def _of_others() -> Iterator[Entry]:
    for name, (module, class_name, description) in _OTHERS.items():
        yield Entry(name=name, description=description, module=module, class_name=class_name)
