"""Lookups whose gradient goes into that of the head."""

import copy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from florence2ner.model.build import NOTHING, build_captioner
from florence2ner.model.inputs import IGNORE_INDEX, Embeddings, Text


class _Tables(TorchDispatchMode):
    """Keeps the storages of results that have a shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.made = shape, dict[int, torch.UntypedStorage]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.layout == torch.strided and result.shape == self.shape:
            self.made[result.data_ptr()] = result.untyped_storage()
        return result


def test_lookups_make_no_table_of_gradients_of_their_own(
    built_model: tuple[Any, Any],
) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"), frozen=NOTHING)
    images = Embeddings(torch.randn(2, 17, model.config.text_config.d_model))
    ids = torch.tensor([[processor.image_token_id] * 17 + [5, 6, 2, 1]] * 2)  # with padding, which gets no gradient
    text = Text.of(ids, None, torch.tensor([[0, 7, 8, 9, 2], [0, 7, 2, IGNORE_INDEX, IGNORE_INDEX]]))
    table = captioner.model.lm_head.weight
    losses = captioner(images, text)
    with _Tables(table.shape) as tables:
        losses.sum().backward()
    del losses
    assert not table._backward_hooks  # type: ignore[attr-defined]  # they go with the graph
    assert len(tables.made.keys() - {table.data_ptr()}) == 1  # the gradient
    gradient, table.grad = table.grad, None
    captioner.model.lm_head.weight = torch.nn.Parameter(table.detach().clone())  # no longer tied: torch's own lookups
    captioner(images, text).sum().backward()
    torch.testing.assert_close(gradient, table.grad + captioner.model.lm_head.weight.grad)
