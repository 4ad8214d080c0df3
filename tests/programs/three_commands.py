"""Train, evaluate and caption one after the other: `python -m tests.programs.three_commands CONFIG RESULTS IMAGES`.

For `accelerate launch`, where each start of a command takes seconds.
"""

import sys
from pathlib import Path

from florence2ner import CaptionConfig, EvalConfig, TrainConfig, caption, evaluate, train
from florence2ner.config.base import load_config
from florence2ner.engine.collectives import destroy_process_group


def main(config: TrainConfig, results: Path, images: Path) -> None:
    checkpoint = train(config).checkpoint
    common = {"model_name": str(checkpoint), "num_beams": 1, "max_new_tokens": 4, "batch_size": 2}
    evaluate(EvalConfig(dataset_path=config.dataset_path, output=results, **common))
    caption(CaptionConfig(paths=(images,), **common))
    destroy_process_group()


if __name__ == "__main__":
    main(load_config(TrainConfig, {}, Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
