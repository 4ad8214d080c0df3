"""What every part of a training run needs to know."""

from dataclasses import dataclass

from accelerate import Accelerator

from florence2ner.config.commands import TrainConfig
from florence2ner.data.loader import Workers
from florence2ner.display import Display


@dataclass(frozen=True)
class Context:
    """One process's view of the run: its settings, the other processes, and the user."""

    config: TrainConfig
    accelerator: Accelerator
    display: Display

    @property
    def workers(self) -> Workers:
        """The processes that decode images for this one."""
        config = self.config
        return Workers.for_device(
            self.accelerator.device,
            processes=config.dataloader_workers,
            prefetch=config.dataloader_prefetch,
            pin_memory=config.pin_memory,
        )
