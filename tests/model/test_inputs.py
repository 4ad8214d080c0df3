"""What a model is given moves as one, and plain facts stay as they are."""

import pytest
import torch

from florence2ner.data.batch import Batch
from florence2ner.model.inputs import Embeddings, Features, PartlyEncoded, Pixels, Tensors, Text, images_of_rows

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


def _images(*is_encoded: bool) -> PartlyEncoded:
    """Images whose pixels, or features, are all their number."""
    numbers = torch.arange(len(is_encoded)).view(-1, 1, 1, 1)
    known = torch.tensor(is_encoded)
    pixels, features = numbers[~known].expand(-1, 3, 2, 2), numbers[known].expand(-1, 5, 2, 2)
    return PartlyEncoded(Pixels(pixels), Features(features), is_encoded)


@pytest.mark.parametrize("part", [slice(a, b) for a in range(5) for b in range(a + 1, 6)], ids=str)
def test_rows_of_images_that_are_partly_encoded(part: slice) -> None:
    is_encoded = (False, True, True, False, True)
    rows = images_of_rows(_images(*is_encoded), part)
    found = {Pixels: [], Features: []}
    for images in (rows.pixels, rows.encoded) if isinstance(rows, PartlyEncoded) else (rows,):
        found[type(images)] = images.values[:, 0, 0, 0].tolist()
    wanted = range(5)[part]
    assert found[Pixels] == [i for i in wanted if not is_encoded[i]]
    assert found[Features] == [i for i in wanted if is_encoded[i]]
    if isinstance(rows, PartlyEncoded):
        assert rows.is_encoded == is_encoded[part]


def test_a_batch_is_cut_evenly_and_each_label_stays_with_its_sample() -> None:
    labels = torch.tensor([[7, -100], [8, 9], [-100, -100], [4, -100], [5, 6]])
    text = Text.of(torch.arange(10).view(5, 2), torch.ones(5, 2), labels)
    batch = Batch(Pixels(torch.arange(5).view(5, 1)), text, tuple("abcde"), (True,) * 5, (), ((1, 1),) * 5)
    assert batch.cut(5) == [batch]
    for rows, sizes in ((4, [2, 3]), (2, [1, 2, 2]), (1, [1] * 5)):
        parts = batch.cut(rows)
        assert [len(part.valid) for part in parts] == sizes
        assert sum(part.label_tokens for part in parts) == batch.label_tokens
        assert [index for part in parts for index in part.indices] == list(batch.indices)
        for part in parts:
            first = part.images.values[0, 0].item()
            assert torch.equal(part.text.labels, labels[first : first + len(part.valid)])
            chosen = part.text.labels.flatten()[part.text.label_positions]
            assert torch.equal(chosen, part.text.labels[part.text.labels != -100])
