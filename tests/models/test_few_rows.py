"""The turned-round product is the product."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unspool.models.few_rows import FewRowsLinear, use_few_rows


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 8, 11, 16, 63, 96, 97])
@pytest.mark.parametrize("bias", [False, True])
def test_any_number_of_rows(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    plain = nn.Linear(24, 40, bias=bias)
    turned = copy.deepcopy(plain)
    use_few_rows(turned)
    assert type(turned) is FewRowsLinear
    x = torch.randn(rows, 24)
    torch.testing.assert_close(turned(x), plain(x), rtol=1e-5, atol=1e-6)
    assert turned(x).is_contiguous()


def test_leading_dimensions_strides_and_other_dtypes() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 6)
    turned = copy.deepcopy(plain)
    use_few_rows(turned)
    x = torch.randn(8, 3, 2).transpose(0, 2)
    assert turned(x).shape == (2, 3, 6)
    torch.testing.assert_close(turned(x), plain(x))
    torch.testing.assert_close(turned.double()(x.double()), plain.double()(x.double()))


def test_only_plain_layers_are_touched_and_weights_stay() -> None:
    class Special(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(4, 4), Special(4, 4), nn.Embedding(3, 4))
    before = [p.data_ptr() for p in net.parameters()]
    use_few_rows(net)
    assert [type(m) for m in net] == [FewRowsLinear, Special, nn.Embedding]
    assert [p.data_ptr() for p in net.parameters()] == before


def test_gradients_flow() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 6)
    use_few_rows(layer)
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 8))
