"""Networks against independent evaluations, in pieces and whole."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn
from torch.func import functional_call

import probnn
from probnn.errors import DomainError, ShapeError
from probnn.networks import Block, Layout, base

MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def as_module(net: probnn.MLP) -> nn.Sequential:
    sizes = (net.input_dim, *net.hidden, net.output_dim)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(nn.Linear(a, b, dtype=torch.float64))
        if i < len(sizes) - 2:
            layers.append(MODULES[net.activation]())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("hidden", [(), (5,), (50, 50)])
@pytest.mark.parametrize(("d", "m", "stack"), [(1, 1, 3), (2, 3, 1), (3, 2, 0)])
def test_mlp_equals_torch_modules(activation: str, hidden: tuple, d: int, m: int, stack: int) -> None:
    net = probnn.MLP(input_dim=d, hidden=hidden, output_dim=m, activation=activation)
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(stack, net.num_parameters, dtype=torch.float64, generator=generator)
    X = torch.randn(7, d, dtype=torch.float64, generator=generator)
    module = as_module(net)
    values = net(params, X)
    assert values.shape == (stack, 7, m)
    for flat, value in zip(params, values, strict=True):
        named = dict(zip(dict(module.named_parameters()), net.layout.unflatten(flat).values(), strict=True))
        assert (functional_call(module, named, (X,)) - value).abs().max() < 1e-12


def test_pieces_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    net = probnn.MLP(input_dim=2, hidden=(5,), output_dim=2)
    params, X = torch.randn(9, net.num_parameters).double(), torch.randn(4, 3, 2).double()
    own = torch.randn(9, 4, 3, 2).double()
    whole, whole_own = net(params[:, None], X), net(params[:, None], own)
    monkeypatch.setattr(base, "CHUNK_BYTES", 2 * 12 * 5 * 8)  # two draws at a time
    assert torch.equal(net(params[:, None], X), whole)
    assert (net(params[:, None], own) - whole_own).abs().max() < 1e-12


def test_layout() -> None:
    layout = probnn.MLP(input_dim=3, hidden=(4,), output_dim=2).layout
    assert [b.shape for b in layout.blocks] == [(4, 3), (4,), (2, 4), (2,)]
    assert [b.fan_in for b in layout.blocks] == [3, 3, 4, 4]
    assert [b.exchangeable for b in layout.blocks] == [(0,), (0,), (1,), ()]
    flat = torch.arange(2.0 * layout.size).reshape(2, -1)
    assert torch.equal(layout.flatten(layout.unflatten(flat)), flat)
    with pytest.raises(ShapeError, match="expected"):
        layout.unflatten(flat[:, 1:])
    named = layout.unflatten(flat)
    with pytest.raises(DomainError, match=r"missing are \['layers.0.bias', 'layers.1.weight', 'layers.1.bias'\]"):
        layout.flatten({"layers.0.weight": named["layers.0.weight"], "a": flat})
    with pytest.raises(DomainError, match=r"unknown are \['a'\]"):
        layout.flatten({**named, "a": flat})
    with pytest.raises(ShapeError, match="layers.0.bias"):
        layout.flatten({**layout.unflatten(flat), "layers.0.bias": torch.zeros(2, 5)})
    assert layout.expand(torch.tensor([1.0, 2.0, 3.0, 4.0])).unique_consecutive(return_counts=True)[1].tolist() == [
        12, 4, 8, 2,
    ]  # fmt: skip


def test_pooling_averages_over_exchangeable_units() -> None:
    layout = Layout((Block("w", (3, 2), 2, (0,)), Block("b", (2,), 1, ())))
    pooled = layout.pool(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    assert pooled.tolist() == [3.0, 4.0, 3.0, 4.0, 3.0, 4.0, 7.0, 8.0]
    net = probnn.MLP(input_dim=2, hidden=(4,))
    permuted = torch.randn(net.num_parameters)
    pooled = net.layout.unflatten(net.layout.pool(permuted))
    assert all((pooled["layers.0.weight"] == pooled["layers.0.weight"][0]).flatten())


def test_permuting_hidden_units_changes_nothing() -> None:
    """The axes called exchangeable are."""
    net = probnn.MLP(input_dim=2, hidden=(4,), output_dim=2)
    named = net.layout.unflatten(torch.randn(net.num_parameters, dtype=torch.float64))
    order = torch.tensor([2, 0, 3, 1])
    permuted = {
        b.name: named[b.name].index_select(axis, order)
        if (axis := next((a for a in b.exchangeable), None)) is not None
        else named[b.name]
        for b in net.layout.blocks
    }
    X = torch.randn(5, 2, dtype=torch.float64)
    assert (net(net.layout.flatten(named), X) - net(net.layout.flatten(permuted), X)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "options",
    [{"input_dim": 0}, {"hidden": 5}, {"hidden": (5, 0)}, {"hidden": "50"}, {"activation": "elu"}, {"output_dim": 1.5}],
)
def test_bad_settings(options: dict) -> None:
    with pytest.raises(DomainError, match="MLP"):
        probnn.MLP(**{"input_dim": 2, **options})
    with pytest.raises(TypeError):
        probnn.MLP(input_dim=2, width=3)  # type: ignore[call-arg]


def test_wrong_shapes() -> None:
    net = probnn.MLP(input_dim=2, hidden=(3,))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 13\)"):
        net(torch.zeros(12), torch.zeros(4, 2))
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        net(torch.zeros(13), torch.zeros(4, 3))
    for evaluate in (net, net.pullback):
        with pytest.raises(DomainError, match=r"torch.float32 on cpu and torch.float64 on cpu; convert"):
            evaluate(torch.zeros(13), torch.zeros(4, 2).double())  # type: ignore[operator]
        with pytest.raises(DomainError, match="must be torch tensors, got a list"):
            evaluate([0.0] * 13, torch.zeros(4, 2))  # type: ignore[arg-type, operator]


def test_widths_of_numpy_become_pythons() -> None:
    net = probnn.MLP(input_dim=numpy.int64(2), hidden=numpy.array([3, 4]), output_dim=numpy.int32(1))  # type: ignore[arg-type]
    assert net == probnn.MLP(input_dim=2, hidden=(3, 4)) and type(net.hidden[0]) is type(net.input_dim) is int


def test_module_network_is_a_copy() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    net = probnn.ModuleNetwork(module, input_dim=2)
    value = net(torch.randn(4, net.num_parameters), torch.randn(5, 2))
    assert value.shape == (4, 5, 1) and module.training and not net.module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert [b.role for b in net.layout.blocks] == ["weight", "bias"] * 3
    assert [b.fan_in for b in net.layout.blocks] == [2, 2, 1, 1, 3, 3]


def test_module_network_freezes_what_needs_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    net = probnn.ModuleNetwork(module, input_dim=2)
    assert net.num_parameters == 4
    x = torch.randn(5, 2)
    flat = torch.cat([p.flatten() for p in module[1].parameters()]).detach()
    assert (net(flat, x) - module(x)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("module", "error"),
    [
        (nn.Linear(2, 3), ShapeError),
        (nn.Linear(3, 1), ShapeError),  # cannot take two columns at all
        (nn.LSTM(2, 1), ShapeError),  # gives a pair
        (nn.Tanh(), DomainError),
        (3, DomainError),
    ],
)
def test_bad_modules(module: object, error: type) -> None:
    with pytest.raises(error, match="ModuleNetwork"):
        probnn.ModuleNetwork(module, input_dim=2)  # type: ignore[arg-type]


class Noisy(nn.Module):
    """Another value at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.dropout(x, training=True))


class ZeroLast(nn.Module):
    """Looks at its neighbours, behind a last layer that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h - h.mean(0))


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(2, 1), nn.Softmax(0)),
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1)),
        Noisy(),
        ZeroLast(),
        ZeroLast().double(),
    ],
    ids=["softmax over rows", "batch statistics", "dropout always", "zero at first", "zero at first, double"],
)
def test_modules_whose_rows_are_not_alone(module: nn.Module) -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(DomainError, match="ModuleNetwork: the module must treat each row on its own"):
        probnn.ModuleNetwork(module, input_dim=2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_modules_whose_rows_are_alone(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(2, 64), nn.LayerNorm(64), nn.BatchNorm1d(64), nn.GELU(), nn.Softmax(-1))
    module.append(nn.Linear(64, 3))
    before = torch.random.get_rng_state()
    assert probnn.ModuleNetwork(module.to(dtype), input_dim=2, output_dim=3).num_parameters
    assert torch.equal(before, torch.random.get_rng_state())
