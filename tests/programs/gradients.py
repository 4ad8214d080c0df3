"""One epoch with a learning rate of 0; the main process writes loss and gradient, before clipping, of each update.

`python -m tests.programs.gradients CONFIG FOLDER [RANK SPARED]`, alone or under `accelerate launch`. CONFIG is a
training config. In the process of that RANK memory runs out with more than one image, after SPARED batches.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR

from florence2ner.config.base import load_config
from florence2ner.config.commands import TrainConfig
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import TrainLoader
from florence2ner.data.order import ShuffledOrder
from florence2ner.engine import launcher
from florence2ner.engine.collectives import destroy_process_group
from florence2ner.engine.runtime import make_accelerator
from florence2ner.model.build import NOTHING, build_captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.training.step import UpdateStep, token_losses
from tests.training.support import BACKWARD, Short, TokenLosses


def main(config: TrainConfig, folder: Path, losses: TokenLosses = token_losses) -> None:
    accelerator = make_accelerator("no", seed=0)
    samples = discover_samples(config.roots[0].path, config.task_prompt).samples
    model, processor = load_model(config.model_name)
    captioner = build_captioner(model, processor, device=accelerator.device, frozen=NOTHING)
    optimizer = torch.optim.SGD(captioner.parameters(), lr=0.0)
    plan = ShuffledOrder(
        samples,
        config.train_batch_size,
        config.gradient_accumulation_steps,
        accelerator.num_processes,
        config.seed,
    )
    rank = accelerator.process_index
    end = plan.updates_per_epoch
    loader = TrainLoader(samples, processor, plan, process=rank, first=0, end=end)
    prepared, prepared_optimizer = accelerator.prepare(captioner, optimizer)
    gradients = {}

    def clip(parameters: object, largest: float) -> torch.Tensor:
        """Look at the gradients where they are complete, then clip as always."""
        for name, parameter in captioner.named_parameters():
            gradients[name] = parameter.grad.detach().clone(memory_format=torch.contiguous_format)
        return honest(parameters, largest)

    honest, accelerator.clip_grad_norm_ = accelerator.clip_grad_norm_, clip
    schedule = LambdaLR(optimizer, lambda _: 1.0)
    step = UpdateStep(accelerator, prepared, prepared_optimizer, schedule, losses, clip_grad_norm=None)
    folder.mkdir(exist_ok=True)
    for update, window in enumerate(loader):
        result = step(window)
        if accelerator.is_main_process:
            numbers = torch.tensor([result.loss_sum, result.tokens, result.samples, result.gradient_norm])
            save_file(gradients | {"": numbers}, folder / f"{update}.safetensors")
    destroy_process_group()


if __name__ == "__main__":
    config, folder, short = sys.argv[1], sys.argv[2], sys.argv[3:]
    losses = token_losses
    if short and int(short[0]) == launcher.rank():
        losses = Short(1, BACKWARD, spared=int(short[1]))
    main(load_config(TrainConfig, {}, Path(config)), Path(folder), losses)
