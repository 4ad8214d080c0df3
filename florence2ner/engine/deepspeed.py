"""DeepSpeed ZeRO-2: an Accelerator that trains as under DDP, and what the launcher may ask for."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, GradientAccumulationPlugin

from florence2ner.display import hide_lines_of_libraries
from florence2ner.errors import UserError

_SHIPPED = "as accelerate_configs/deepspeed_zero2.yaml does"
_OPTIMIZER_STATES = "pytorch_model/*_optim_states.pt"  # in the folder of a training state, one file per process


def accelerator_class() -> type[Accelerator]:
    """The class of this command's Accelerator. Raises UserError where the launcher asks for DeepSpeed in vain."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return Accelerator  # type: ignore[no-any-return]
    if not find_spec("deepspeed"):
        raise UserError("the launcher asks for DeepSpeed, which is not installed: pip install deepspeed")
    return DeepSpeedAccelerator


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed shards gradients and optimizer; each process then holds the whole weights, as in DDP."""
    return isinstance(accelerator, DeepSpeedAccelerator)


class DeepSpeedAccelerator(Accelerator):  # type: ignore[misc]
    """An Accelerator under DeepSpeed ZeRO-2 whose methods mean what they mean under DDP.

    Accelerate gives bf16 weights to DeepSpeed where bf16 is asked for. Here weights stay float32 and DeepSpeed's
    `torch_autocast` casts, as autocast does elsewhere; gradients are summed in float32. DeepSpeed makes its update,
    clipping included, in the last `backward` of a window: `optimizer.step()` and `zero_grad()` do nothing.
    """

    def __init__(self, *, mixed_precision: str, **settings: Any) -> None:
        """`settings` are Accelerator's. Raises UserError where the launcher asks for what was never run here."""
        hide_lines_of_libraries()
        if mixed_precision == "fp16":
            raise UserError("mixed_precision fp16 can't be used under DeepSpeed: choose bf16 or no")
        plugin = _read_plugin()
        bf16 = mixed_precision == "bf16"
        plugin.deepspeed_config |= {
            # No module is "safe": those that are would have their gradients summed in bf16.
            "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
            "timers": {"throughput": {"enabled": False}},  # it would wait for the device in each forward
        }
        self._autocasts_to = torch.bfloat16 if bf16 else None
        # The step says of each window how many micro-batches it has; Accelerate can't read the launcher's `auto`.
        accumulation = GradientAccumulationPlugin(num_steps=1)
        settings |= {"deepspeed_plugin": plugin, "gradient_accumulation_plugin": accumulation}
        super().__init__(mixed_precision="no", **settings)

    @property
    def mixed_precision(self) -> str:
        """The word "bf16" where autocast is on, else "no"."""
        return "bf16" if self._autocasts_to else "no"

    @contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        """Autocast in a `with`, as Accelerator's does everywhere but under DeepSpeed."""
        with torch.autocast(self.device.type, dtype=self._autocasts_to, enabled=self._autocasts_to is not None):
            yield

    def backward(self, loss: torch.Tensor, **settings: Any) -> None:
        """Compute gradients and sum them over the processes; after a window's last micro-batch, update the weights.

        As elsewhere, the loss is divided by the window's number of micro-batches. DeepSpeed would divide by another
        one: the same for all windows. A loss that isn't finite makes its gradients NaN, and so those of all processes:
        DeepSpeed then skips the update.
        """
        finite_or_nan = loss * (1 + 0 * loss.detach())
        with warnings.catch_warnings():  # DeepSpeed 0.19 calls functions of torch under their old names
            warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
            super().backward(finite_or_nan / self.gradient_accumulation_steps, scale_wrt_gas=False, **settings)

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: int = 2) -> torch.Tensor:
        """The norm () of the update's gradient before DeepSpeed clipped it; infinite where the update was skipped."""
        return torch.tensor(float(super().clip_grad_norm_(parameters, max_norm, norm_type)), device=self.device)

    def load_state(self, input_dir: str | None = None, **settings: Any) -> None:
        """Restore a training state, but not the clipping that it was saved with."""
        super().load_state(input_dir, **settings)
        engine = self.deepspeed_engine_wrapped.engine
        engine.optimizer.clip_grad = engine.gradient_clipping()


def configure_deepspeed(
    accelerator: Accelerator, *, micro_batch: int, micro_batches: int, clip_grad_norm: float | None
) -> None:
    """Tell DeepSpeed the settings of a training run, in place of `auto`. Does nothing without DeepSpeed.

    `micro_batch` is its number of samples, `micro_batches` how many make an update, both per process. Raises UserError
    where the launcher's configuration has other values: they would be ignored.
    """
    if not uses_deepspeed(accelerator):
        return
    config = accelerator.deepspeed_plugin.deepspeed_config
    wanted = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro_batch * micro_batches * accelerator.num_processes,
        "gradient_clipping": clip_grad_norm or 0.0,  # 0: none
    }
    for name, value in wanted.items():
        if config.get(name, "auto") not in ("auto", value):
            raise UserError(
                f"DeepSpeed's {name} is {config[name]}, by the run's settings it is {value}: set it to auto"
            )

    # `backward` is told which micro-batch is a window's last, as an epoch's last window may have fewer. Left to itself,
    # DeepSpeed is to see one micro-batch per update, and to divide by nothing.
    wanted |= {"gradient_accumulation_steps": 1, "train_batch_size": micro_batch * accelerator.num_processes}
    config |= wanted


def check_state(accelerator: Accelerator, folder: Path) -> None:
    """Raise UserError where this command can't load the training state in `folder`: it is DeepSpeed's or it is not."""
    saved = len(list(folder.glob(_OPTIMIZER_STATES)))
    if bool(saved) != uses_deepspeed(accelerator):
        how = "under DeepSpeed" if saved else "without DeepSpeed"
        raise UserError(f"{folder} was saved {how}: resume with the launch config that the run was started with")
    if saved and saved != accelerator.num_processes:
        raise UserError(
            f"{folder} was saved by {saved} processes, here are {accelerator.num_processes}: DeepSpeed needs as many"
        )


def _read_plugin() -> DeepSpeedPlugin:
    """DeepSpeed's configuration from the launcher. Raises UserError for what can't be used or was never run."""
    try:
        plugin = DeepSpeedPlugin()
    except ValueError as error:
        raise UserError(f"the launcher's configuration of DeepSpeed can't be used: {error}") from error
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    if plugin.zero_stage != 2:
        raise UserError(f"DeepSpeed works in ZeRO stage 2 only: set zero_stage: 2, {_SHIPPED}")
    for part in ("optimizer", "param"):
        if (zero.get(f"offload_{part}") or {}).get("device", "none") not in ("none", "auto"):
            raise UserError(f"DeepSpeed can't offload here: set offload_{part}_device: none, {_SHIPPED}")
    for part in ("optimizer", "scheduler"):
        if part in config:
            raise UserError(f"the run's settings choose the {part}: take it out of DeepSpeed's configuration")
    for dtype in ("bf16", "fp16"):
        if config.get(dtype, {}).get("enabled", "auto") not in ("auto", False):
            raise UserError(f"mixed_precision decides the precision: set {dtype} to auto in DeepSpeed's configuration")
    for name in [name for name, value in zero.items() if value == "auto"]:
        del zero[name]  # for DeepSpeed's default: Accelerate would look for the model's hidden_size
    return plugin
