"""LoRA in a training run: adapters for the model as the settings say, and the whole model that is made of them."""

import shutil

from transformers import Florence2ForConditionalGeneration

from florence2ner.config.commands import TrainConfig
from florence2ner.config.lora_options import LORA_FREEZES
from florence2ner.engine.checkpoint import UNFINISHED
from florence2ner.engine.collectives import all_or_none
from florence2ner.engine.run_files import find_model
from florence2ner.engine.sharding import name_of_sharding
from florence2ner.errors import UserError
from florence2ner.model.build import Frozen, frozen_beside_adapters
from florence2ner.model.checkpoints.adapters import check_original_adapter
from florence2ner.model.checkpoints.loading import convert
from florence2ner.model.lora import Lora, add_lora, difference, import_peft, is_adapted
from florence2ner.training.context import Context
from florence2ner.training.run_folder import absolute_model

MERGED = "merged"


def check_lora(context: Context) -> None:
    """Raise UserError where LoRA is asked for and can't be had, before a model is loaded."""
    if context.config.lora_rank is not None:
        import_peft()
        _check_launch(context)


def settle_lora(context: Context, model: Florence2ForConditionalGeneration, name: str) -> Frozen:
    """Give `model`, loaded by `name`, the adapters that the settings ask for, unless it was loaded with such.

    Returns which parts are not trained. Raises UserError for settings that don't fit an adapter that is trained on, and
    where there are adapters where none can be.
    """
    config = context.config
    if config.lora_rank is None and not is_adapted(model):
        if config.lora_merge:
            raise UserError("lora_merge does nothing without LoRA: set lora_rank, or start from an adapter")
        return Frozen(vision=config.freeze_vision, language=config.freeze_language, other=config.freeze_other)
    if is_adapted(model):
        _check_launch(context)
        _check_adapter(config, model, name)
    else:
        add_lora(model, _lora(config), base=absolute_model(name), seed=config.seed)
    if config.export_layout == "original":
        check_original_adapter(model)
    frozen = frozen_beside_adapters(model)
    if config.feature_cache in ("memory", "disk") and not frozen.vision:
        raise UserError(
            f"feature_cache: {config.feature_cache} keeps what a frozen vision tower makes, but it has adapters: leave "
            "feature_cache at auto"
        )
    return frozen


def write_merged(context: Context) -> None:
    """Write the whole model of the run's best checkpoint, else of its newest, to merged/, where that is asked for.

    Every process must call this. What was there is replaced. Raises UserError as `convert` does.
    """
    config = context.config
    if not config.lora_merge:
        return

    def write() -> None:
        if context.accelerator.is_main_process:
            source = find_model(str(config.run_dir))
            final, unfinished = config.run_dir / MERGED, config.run_dir / f"{UNFINISHED}{MERGED}"
            shutil.rmtree(unfinished, ignore_errors=True)
            convert(source, unfinished, layout=config.export_layout)
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            context.display.say(f"merged: {final}, the whole model of {source}")

    all_or_none(context.accelerator, write)


def _lora(config: TrainConfig) -> Lora:
    assert config.lora_rank is not None
    return Lora(
        rank=config.lora_rank,
        alpha=config.lora_alpha or config.lora_rank,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        dora=config.use_dora,
        rslora=config.use_rslora,
    )


def _check_adapter(config: TrainConfig, model: Florence2ForConditionalGeneration, name: str) -> None:
    """Raise UserError where the settings ask for other adapters than those that are trained on."""
    if changed := config.freezing_changed:
        raise UserError(f"{changed} does nothing with the adapter {name}, {LORA_FREEZES}")
    if config.lora_rank is not None and (problem := difference(model, _lora(config))):
        raise UserError(
            f"the adapters of {name} can't be changed on the way: {problem}; leave out all settings of LoRA to train "
            "them on as they are, or merge them with convert and start new ones"
        )


def _check_launch(context: Context) -> None:
    if name_of_sharding(context.accelerator):
        raise UserError(
            "LoRA can't be used under FSDP or DeepSpeed, which would have next to nothing to shard: launch with "
            "accelerate_configs/multi_gpu.yaml"
        )
