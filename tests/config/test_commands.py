"""The settings of the commands: the original script's names and defaults."""

from pathlib import Path

from florence2ner.config.commands import TrainConfig

ORIGINAL_DEFAULTS = {
    "model_name": "microsoft/Florence-2-base",
    "epochs": 2,
    "learning_rate": 1e-5,
    "gradient_checkpointing": True,
    "freeze_vision": True,
    "freeze_language": False,
    "freeze_other": False,
    "train_batch_size": 16,
    "eval_batch_size": 16,
    "gradient_accumulation_steps": 16,
    "clip_grad_norm": 1,
    "weight_decay": 1e-5,
    "save_steps": 50,
    "save_total_limit": 3,
    "eval_steps": 50,
    "warmup_steps": 50,
    "restarts": 1,
    "eval_split_ratio": 0.1,
    "seed": 42,
    "task_prompt": "<CAPTION>",
    "attn_implementation": "sdpa",
}


def test_the_original_scripts_names_and_defaults(tmp_path: Path) -> None:
    config = TrainConfig(dataset_path=tmp_path)
    assert {name: getattr(config, name) for name in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS
