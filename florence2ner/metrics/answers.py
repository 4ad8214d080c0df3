"""Answers that aren't captions: boxes (mean average precision), and texts read in a picture (error rate)."""

from collections.abc import Sequence

import numpy as np

from florence2ner.metrics.metric import Parts
from florence2ner.metrics.observed import Box, Observed


def mean_average_precision(observed: Sequence[Observed]) -> float:
    """COCO's mAP from 0 to 1, over IoU 0.50 to 0.95. The model says no confidence, so all boxes have the same."""
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    numbers: dict[str, int] = {}

    def tensors(boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        labels = [numbers.setdefault(box.label, len(numbers)) for box in boxes]
        corners = torch.tensor([box[1:] for box in boxes], dtype=torch.float32).reshape(-1, 4)
        return {"boxes": corners, "labels": torch.tensor(labels, dtype=torch.int64)}

    # COCO's own thresholds: torchmetrics rounds them to single precision, which moves the last digits.
    overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision("xyxy", "bbox", overlaps, recalls, backend="pycocotools")
    metric.warn_on_many_detections = False
    for seen in observed:
        found = tensors(seen.predicted_boxes)
        found["scores"] = torch.ones(len(seen.predicted_boxes))
        metric.update([found], [tensors(seen.true_boxes)])
    value = float(metric.compute()["map"])
    return value if value >= 0 else float("nan")  # -1: there is no true box


def error_parts(observed: Sequence[Observed]) -> Parts:
    """Of each text: the letters to insert, delete or replace, and those of the closest reference (N, 2)."""
    from rapidfuzz.distance import Levenshtein

    rows = []
    for seen in observed:
        text = seen.prediction or ""
        counted = [(Levenshtein.distance(text, truth), len(truth)) for truth in seen.references]
        rows.append(min(counted, key=lambda row: row[0] / max(1, row[1])))
    return np.array(rows, np.float64)
