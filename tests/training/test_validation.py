"""The best checkpoint, and a run that ends when nothing gets better."""

from florence2ner import load_model, train
from florence2ner.engine.run_files import list_checkpoints
from tests.conftest import MakeConfig
from tests.support import history

# The learning rate is so high that every evaluation after the first is worse.
WORSE = {"epochs": 4, "learning_rate": 0.3, "save_steps": 1, "eval_steps": 1, "early_stopping_patience": 3}


def test_best_is_linked_and_never_pruned_and_patience_ends_the_run(make_config: MakeConfig) -> None:
    config = make_config(save_total_limit=1, **WORSE)
    last = train(config).checkpoint
    losses = {line["step"]: line["eval/loss"] for line in history(config.run_dir) if "eval/loss" in line}
    best = min(losses, key=lambda step: losses[step])  # type: ignore[arg-type]
    assert last.name == f"step-{best + 3}", losses
    assert {path.name for path in list_checkpoints(config.run_dir)} == {f"step-{best}", last.name}
    assert (config.run_dir / "best").resolve().name == f"step-{best}"
    assert (config.run_dir / "latest").resolve().name == last.name
    load_model(config.run_dir / "best")
