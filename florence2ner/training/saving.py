"""Saves the checkpoints of a run: decides what they contain; `engine/checkpoint.py` writes them."""

import shlex
from pathlib import Path

from accelerate.utils import gather_object

from florence2ner.engine.checkpoint import Retention, amend_checkpoint, save_checkpoint
from florence2ner.engine.collectives import check_same_weights
from florence2ner.engine.hub import push
from florence2ner.engine.run_files import TrainState, checkpoint_step, list_checkpoints
from florence2ner.engine.sharding import is_sharded, whole_state_dict
from florence2ner.errors import UserError
from florence2ner.files import write_text
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import save_model
from florence2ner.model.lora import is_adapted
from florence2ner.training.callbacks import Callbacks
from florence2ner.training.card import CARD_FILE, ModelCard
from florence2ner.training.context import Context
from florence2ner.training.step import UpdateStep
from florence2ner.training.streaming import furthest


class Checkpoints:
    """Writes the checkpoints of a run. `last` is the newest one, or None."""

    def __init__(
        self,
        context: Context,
        captioner: Captioner,
        step: UpdateStep,
        card: ModelCard,
        callbacks: Callbacks,
        *,
        resumed_from: int | None,
    ) -> None:
        """`step` has the captioner as Accelerate wrapped it. The checkpoint of step `resumed_from` is never deleted."""
        self._context = context
        self._card = card
        self._captioner = captioner
        self._step = step
        self._callbacks = callbacks
        config = context.config
        spared = () if resumed_from is None else (resumed_from,)
        self._retention = Retention(config.save_total_limit, states=config.keep_states, spared=spared)
        self.last = next(reversed(list_checkpoints(config.run_dir)), None)

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint of the current step and return its path. Every process must call this.

        Where the model in it has averaged weights, the run's own are in its state.

        Raises UserError when the disk is full.
        """
        accelerator, config = self._context.accelerator, self._context.config
        everywhere = gather_object([(state.unreadable, state.lanes)])
        state.unreadable = sorted({key for keys, _ in everywhere for key in keys})
        state.lanes = furthest([lanes for _, lanes in everywhere])
        if accelerator.num_processes > 1 and not is_sharded(accelerator):
            check_same_weights(accelerator, self._captioner)
        with self._captioner.as_loaded():
            weights = None
            if is_sharded(accelerator):
                state_dict = whole_state_dict(accelerator, self._step.model)
                weights = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}

            def export(directory: Path) -> None:
                model, processor = self._captioner.model, self._captioner.processor
                with self._step.averaged(ema=config.export_ema):
                    save_model(model, processor, directory, layout=config.export_layout, weights=weights)
                write_text(directory / CARD_FILE, self._card.text(state))

            self.last = save_checkpoint(
                accelerator,
                config.run_dir,
                state,
                export,
                retention=self._retention,
                with_weights=(config.export_layout != "native" and not is_adapted(self._captioner.model))
                or self._step.is_averaged(ema=config.export_ema),
            )
        self._callbacks.saved(state.step, self.last)
        return self.last

    def amend(self, state: TrainState) -> None:
        """Bring the newest checkpoint up to `state`, of the same step. Every process must call this.

        Where this folder has none of that step, as when the run goes on from another run's checkpoint, one is written.
        """
        if self.last is not None and checkpoint_step(self.last) == state.step:
            amend_checkpoint(self._context.accelerator, self.last, state)
        else:
            self.save(state)


def push_best(context: Context) -> None:
    """Upload what the run has made, where that is asked for. A failure is only told: the run is over."""
    config, display = context.config, context.display
    if not config.push_to_hub or not context.accelerator.is_main_process:
        return
    try:
        address = push(config.run_dir, config.push_to_hub, public=config.hub_public, say=display.say)
    except UserError as error:
        again = f"florence2ner push {shlex.quote(str(config.run_dir))} {config.push_to_hub}"
        display.warn(f"{error}; push it later: {again}")
    else:
        display.say(f"pushed to {address}")
