"""The context that the parts of a training run share: settings, Accelerator and display."""

from dataclasses import dataclass

from accelerate import Accelerator

from florence2ner.config.commands import TrainConfig
from florence2ner.data.loader import Workers
from florence2ner.display import Display


@dataclass(frozen=True)
class Context:
    """What the parts of a training run share within a process."""

    config: TrainConfig
    accelerator: Accelerator
    display: Display

    @property
    def workers(self) -> Workers:
        """The DataLoader workers of this process, as the settings say."""
        config = self.config
        return Workers.for_device(
            self.accelerator.device,
            processes=config.dataloader_workers,
            prefetch=config.dataloader_prefetch,
            pin_memory=config.pin_memory,
        )
