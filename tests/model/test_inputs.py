"""What a model is given moves as one, and plain facts stay as they are."""

import torch

from florence2ner.data.batch import Batch
from florence2ner.model.inputs import Embeddings, Features, PartlyEncoded, Pixels, Tensors, Text

META = torch.device("meta")  # which every machine has


def _batch() -> Batch:
    pixels = Pixels(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    images = PartlyEncoded(pixels, Features(torch.zeros(1, 5, 2, 2)), (False, True, False))
    text = Text(torch.ones(3, 4), None, torch.ones(3, 2), torch.arange(6))
    return Batch(
        images, text, (4, 5, 6), (True, True, False), ((6, "empty file"),), ((9, 8), (7, 6), (0, 0)), (("a", "x/a"),)
    )


def _devices(batch: Batch) -> list[str]:
    images, text = batch.images, batch.text
    assert isinstance(images, PartlyEncoded)
    assert text is not None
    tensors = (images.pixels.values, images.encoded.values, text.input_ids, text.labels, text.label_positions)
    return [tensor.device.type for tensor in tensors]


def test_every_tensor_moves_however_deep_it_lies() -> None:
    batch = _batch()
    assert _devices(batch.to(META)) == ["meta"] * 5
    assert _devices(batch) == ["cpu"] * 5, "what was moved stays where it was"


def test_plain_facts_and_none_stay() -> None:
    batch, moved = _batch(), _batch().to(META)
    for name in ("indices", "valid", "failures", "sizes", "refs"):
        assert getattr(moved, name) == getattr(batch, name)
    assert isinstance(moved.images, PartlyEncoded)
    assert moved.images.is_encoded == (False, True, False)
    assert moved.text is not None
    assert moved.text.attention_mask is None


def test_types_shapes_and_kinds_of_numbers_stay() -> None:
    for tensors in (
        Pixels(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)),
        Features(torch.zeros(2, 5, 2, 2, dtype=torch.bfloat16)),
        Embeddings(torch.zeros(2, 6, 3)),
    ):
        moved = tensors.to(META)
        assert type(moved) is type(tensors)
        assert (moved.values.shape, moved.values.dtype) == (tensors.values.shape, tensors.values.dtype)


def test_values_survive_the_way() -> None:
    values = torch.randn(2, 3)
    moved: Tensors = Embeddings(values).to(torch.device("cpu"))
    assert isinstance(moved, Embeddings)
    assert torch.equal(moved.values, values)
