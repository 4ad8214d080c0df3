"""Gradient checkpointing: the same gradients, from less memory and as little computed again as said."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from florence2ner.model.build import NOTHING, Frozen, build_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.inputs import Embeddings, Images, Pixels, Text
from tests.model.support import IMAGES, RATE, prompts


@pytest.fixture(params=[0.0, RATE], ids=["plain", "dropout"])
def captioners(built_model: tuple[Any, Any], request: pytest.FixtureRequest) -> tuple[Captioner, Captioner]:
    """The same model without gradient checkpointing and with it, all of it trained."""
    captioners = []
    for checkpointing in (False, True):
        model, processor = copy.deepcopy(built_model)
        for layer in (*model.model.language_model.encoder.layers, *model.model.language_model.decoder.layers):
            layer.dropout = layer.activation_dropout = layer.self_attn.dropout = request.param
        captioner = build_captioner(
            model, processor, device=torch.device("cpu"), frozen=NOTHING, gradient_checkpointing=checkpointing
        )
        captioners.append(captioner.train())
    return captioners[0], captioners[1]


def loss_of(captioner: Captioner, images: Images) -> Tensor:
    torch.manual_seed(0)
    ids, mask = prompts(captioner.processor, padded=True)
    labels = torch.tensor([[0, 7, 8, 9, 2]]).expand(IMAGES, -1)
    return captioner(images, Text.of(ids, mask, labels)).sum()


def test_gradients_are_the_same_to_the_bit(captioners: tuple[Captioner, Captioner], pictures: Tensor) -> None:
    losses = []
    for captioner in captioners:
        losses.append(loss_of(captioner, Pixels(pictures)))
        losses[-1].backward()
    assert losses[0] == losses[1]
    for (name, plain), other in zip(captioners[0].named_parameters(), captioners[1].parameters(), strict=True):
        assert plain.grad is not None, name
        assert torch.equal(plain.grad, other.grad), name


def test_what_is_slow_to_recompute_is_computed_once(built_model: tuple[Any, Any]) -> None:
    """Again: of each attention queries, keys and values, of each feed-forward network the first half."""
    text_config = built_model[0].config.text_config
    width, layers = text_config.d_model, text_config.encoder_layers + text_config.decoder_layers
    attentions = layers + text_config.decoder_layers
    counts = []
    for checkpointing in (False, True):
        model, processor = copy.deepcopy(built_model)
        tower = Frozen(vision=True, language=False, other=False)
        captioner = build_captioner(
            model, processor, device=torch.device("cpu"), frozen=tower, gradient_checkpointing=checkpointing
        ).train()
        with _Products() as products:
            loss_of(captioner, Embeddings(torch.randn(IMAGES, 17, width))).backward()
        counts.append(products.shapes)
    assert counts[1] - counts[0] == {
        (width, width): 3 * attentions,
        (width, text_config.encoder_ffn_dim): layers,
    }


class _Products(TorchDispatchMode):
    """Counts products with a weight and a bias, by the shape of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = Counter[torch.Size]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.addmm.default:
            self.shapes[args[2].shape] += 1
        return function(*args, **(kwargs or {}))
