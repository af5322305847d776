"""Voronoi losses against values by hand, a naive implementation and the invariances of their gates."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from probnn import moe
from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.random import generator_from

# The truth of the experiments of arXiv 2305.03288.
TRUTH = moe.MixingMeasure([-8.0, 0.0], [[25.0], [0.0]], [15.0, -5.0], [[-20.0], [20.0]], [0.09, 0.16])


def changed(G, **fields):
    names = ("gate_bias", "gate_weight", "intercept", "coef", "variance", "temperature", "gate_covariance", "gate")
    return moe.MixingMeasure(**{name: fields.get(name, getattr(G, name)) for name in names})


def split(masses=(0.5, 0.5), spread=0.1, slope=0.0):
    """The truth with its second atom in two, intercepts and slopes to either side."""
    b = [math.log(m) for m in masses]
    return moe.MixingMeasure(
        [-8.0, *b], [[25.0], [0.0], [0.0]], [15.0, -5 - spread, -5 + spread], [[-20.0], [20 + slope], [20 - slope]],
        [0.09, 0.16, 0.16],
    )  # fmt: skip


def random_measure(g, k, d, m=None, R=None, gate=None, near=None, size=1.0, **extra):
    """A random measure, or one around `near` whose first atoms are those of `near`."""
    lead = () if R is None else (R,)
    outcomes = () if m is None else (m,)

    def draw(*shape):
        return size * torch.randn(*lead, *shape, generator=g, dtype=torch.float64)

    shapes = {"gate_bias": (k,), "gate_weight": (k, d), "intercept": (k, *outcomes), "coef": (k, *outcomes, d)}
    x = {name: draw(*shape) for name, shape in shapes.items()}
    x["variance"] = draw(k, *outcomes)
    if near is not None:
        of = torch.arange(k) % near.num_atoms
        for name in shapes:
            x[name] = x[name] + getattr(near, name)[of]
        x["variance"] = x["variance"] + near.variance[of].log()
        x["gate_bias"] = x["gate_bias"] - torch.bincount(of)[of].double().log()
    x["variance"] = x["variance"].exp()
    return moe.MixingMeasure(**x, gate=moe.SoftmaxGate() if gate is None else gate, **extra)


def shifted(G, t0=3.0, t1=7.0):
    return changed(G, gate_bias=G.gate_bias + t0, gate_weight=G.gate_weight + t1)


def test_values_by_hand():
    assert moe.voronoi_loss(TRUTH, TRUTH).item() == 0
    moved = changed(TRUTH, intercept=[15.0, -4.9])
    assert moe.voronoi_loss(moved, TRUTH).item() == pytest.approx(0.1, abs=1e-12)
    moved = changed(TRUTH, intercept=[16.0, -5.0])
    assert moe.voronoi_loss(moved, TRUTH).item() == pytest.approx(math.exp(-8), rel=1e-12)
    assert moe.voronoi_loss(split(), TRUTH, "overfit").item() == pytest.approx(1e-4, abs=1e-13)
    both = split(slope=0.01)
    assert moe.voronoi_loss(both, TRUTH, "overfit").item() == pytest.approx(2e-4, abs=1e-13)
    heavy = split((0.5, 0.6), spread=0.0)
    assert moe.voronoi_loss(heavy, TRUTH, "overfit", translate=None).item() == pytest.approx(0.1, abs=1e-13)


def test_scale_of_the_masses():
    # Masses e^-8 and 1.1 against e^-8 and 1: the scale that is fitted, 1/1.1, moves the misfit to the small atom.
    heavy = split((0.5, 0.6), spread=0.0)
    small = math.exp(-8)
    assert moe.voronoi_loss(heavy, TRUTH, "overfit").item() == pytest.approx(small * (1 - 1 / 1.1), rel=1e-10)
    assert moe.voronoi_loss(heavy, TRUTH, "overfit", translate="truth").item() == pytest.approx(small * 0.1, rel=1e-10)


@pytest.mark.parametrize("kind", ["exact", "overfit"])
def test_order_of_atoms_and_of_replicates(kind, seed):
    g = generator_from(seed)
    true = random_measure(g, 2, 2)
    G = random_measure(g, 3, 2, R=6, near=true, size=0.3)
    loss = moe.voronoi_loss(G, true, kind)
    assert loss.shape == (6,)
    order = torch.stack([torch.randperm(3, generator=g) for _ in range(6)])
    torch.testing.assert_close(moe.voronoi_loss(G.permuted(order), true, kind), loss, rtol=1e-10, atol=1e-12)
    flipped = true.permuted(torch.tensor([1, 0]))
    torch.testing.assert_close(moe.voronoi_loss(G, flipped, kind), loss, rtol=1e-10, atol=1e-12)
    single = torch.stack([moe.voronoi_loss(G[r], true, kind) for r in range(6)])
    torch.testing.assert_close(single, loss, rtol=1e-10, atol=1e-12)
    fields = (getattr(true, f) for f in ("gate_bias", "gate_weight", "intercept", "coef", "variance"))
    wide = moe.MixingMeasure(*(x.expand(6, *x.shape) for x in fields))
    torch.testing.assert_close(moe.voronoi_loss(G, wide, kind), loss, rtol=1e-10, atol=1e-12)
    assert moe.voronoi_cells(G, true).shape == (6, 3)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("kind", ["exact", "overfit", "temperature", "topk"])
def test_translation_changes_nothing(kind, d, seed):
    g = generator_from(seed)
    gate = {"temperature": moe.TemperatureGate(), "topk": moe.TopKGate(active=2)}.get(kind, moe.SoftmaxGate())
    true = random_measure(g, 3, d, gate=gate)
    G = random_measure(g, 4, d, R=5, near=true, size=0.2, gate=gate)
    loss = moe.voronoi_loss(G, true, kind)
    torch.testing.assert_close(moe.voronoi_loss(shifted(G), true, kind), loss, rtol=0, atol=1e-8)
    plain = moe.voronoi_loss(G, true, kind, translate=None)
    away = moe.voronoi_loss(shifted(G), true, kind, translate=None, bar_r={4: 8})
    assert (away - plain).abs().min() > 1
    assert (loss <= plain + 1e-9).all()
    X = torch.zeros(3, d).double()
    model, other = moe.GaussianMoE.from_mixing_measure(G), moe.GaussianMoE.from_mixing_measure(shifted(G))
    Y = torch.ones(5, 3, 1).double()
    torch.testing.assert_close(model.log_prob(X.expand(5, 3, d), Y), other.log_prob(X.expand(5, 3, d), Y))


def naive_pieces(G, true, kind, norm, t, r):
    """Loss of every atom and its cell, with loops; `t` is added to the gate's weights."""
    names = ["gate_weight", "coef", "intercept", "variance"]
    if kind == "gaussian_gate":
        names.append("gate_covariance")
    if kind == "activation":
        names.append("temperature")
    groups = {
        "exact": [(names, 1, 1)],
        "overfit": [(["gate_weight", "intercept"], "r", 1), (["coef", "variance"], "r", 2)],
        "activation": [(["gate_weight", "temperature", "coef"], 2, 1), (["intercept"], "r", 1), (["variance"], "r", 2)],
        "gaussian_gate": [
            (["gate_weight", "intercept"], "r", 1), (["coef", "variance", "gate_covariance"], "r", 2),
        ],
    }[kind]  # fmt: skip

    def atom(H, i, shift):
        out = {}
        for name in names:
            x = getattr(H, name).numpy()
            out[name] = np.ravel(x if name == "temperature" else x[i]) + (shift if name == "gate_weight" else 0)
        return out

    fitted, trues = [atom(G, i, t) for i in range(G.num_atoms)], [atom(true, j, 0) for j in range(true.num_atoms)]
    cells = []
    for a in fitted:
        away = [math.dist(np.concatenate(list(a.values())), np.concatenate(list(b.values()))) for b in trues]
        cells.append(int(np.argmin(away)))
    losses = []
    for a, j in zip(fitted, cells, strict=True):
        size, b = cells.count(j), trues[j]
        gap = {name: float(np.linalg.norm(a[name] - b[name])) for name in names}
        total = 0.0
        for members, power, half in groups if size > 1 or kind == "exact" else [(names, 1, 1)]:
            p = r[size] / half if power == "r" else power
            total += sum(gap[n] ** p for n in members) if norm == "sum" else math.hypot(*(gap[n] for n in members)) ** p
        losses.append(total)
    return losses, cells


def naive_loss(G, true, kind, norm="sum", subset=None, translated=True):
    """The least over (t1, s) by a grid and Nelder and Mead, restricted to a subset of the true atoms."""
    r = {1: 1, 2: 4, 3: 6}
    tau = (1.0, 1.0) if kind != "activation" else (G.temperature.item(), true.temperature.item())
    mass, c = (np.exp(H.gate_bias.numpy() / x) for H, x in ((G, tau[0]), (true, tau[1])))
    free = kind != "gaussian_gate"
    if not free:
        mass, c = mass / mass.sum(), c / c.sum()
    subset = range(true.num_atoms) if subset is None else subset

    def value(z):
        t, s = (z[:-1], abs(z[-1])) if translated else (0.0, abs(z[-1]) if free else 1.0)
        losses, cells = naive_pieces(G, true, kind, norm, t, r)
        out = sum(s * mass[i] * x for i, (x, j) in enumerate(zip(losses, cells, strict=True)) if j in subset)
        for j in subset:
            out += abs(s * sum(mass[i] for i in range(len(mass)) if cells[i] == j) - c[j])
        return out

    d = G.input_dim if translated else 0
    grid = [np.zeros(d)] + [np.array(t) for t in itertools.product((-0.4, -0.1, 0.1, 0.4), repeat=d)]
    starts = sorted((value([*t, s]), *t, s) for t in grid for s in (0.5, 1.0, c.sum() / mass.sum()))[:2]
    best = math.inf
    for start in starts:
        z = np.array(start[1:])
        for _ in range(4):  # restarts, which free a simplex that a kink has flattened
            found = minimize(value, z, method="Nelder-Mead", options={"xatol": 1e-11, "fatol": 1e-13, "maxiter": 3000})
            z, best = found.x, min(best, found.fun)
    return best


@pytest.mark.parametrize("norm", ["sum", "joint"])
@pytest.mark.parametrize(
    ("kind", "d", "m"), [("exact", 1, None), ("exact", 2, 2), ("overfit", 1, 2), ("overfit", 2, None)]
)
def test_naive_implementation(kind, d, m, norm, seed):
    g = generator_from(seed)
    true = random_measure(g, 2, d, m, size=2.0)
    G = random_measure(g, 3, d, m, R=2, near=true, size=0.15)
    loss = moe.voronoi_loss(G, true, kind, norm=norm)
    for r in range(2):
        assert loss[r].item() == pytest.approx(naive_loss(G[r], true, kind, norm), abs=2e-6)


@pytest.mark.parametrize("norm", ["sum", "joint"])
def test_naive_implementation_of_gates_without_translation(norm, seed):
    g = generator_from(seed)
    gate = moe.ActivationGate("gelu")
    true = random_measure(g, 2, 2, gate=gate, size=2.0, temperature=torch.tensor(0.8).double())
    G = random_measure(g, 4, 2, near=true, size=0.15, gate=gate, temperature=torch.tensor(0.9).double())
    expected = naive_loss(G, true, "activation", norm, translated=False)
    assert moe.voronoi_loss(G, true, "activation", norm=norm).item() == pytest.approx(expected, abs=1e-7)
    cov = torch.eye(2).double().expand(2, 2, 2) * 0.3
    true = random_measure(g, 2, 2, gate=moe.GaussianGate(), size=2.0, gate_covariance=cov)
    G = random_measure(
        g, 4, 2, near=true, size=0.15, gate=moe.GaussianGate(), gate_covariance=1.2 * cov[:1].expand(4, 2, 2)
    )
    expected = naive_loss(G, true, "gaussian_gate", norm, translated=False)
    assert moe.voronoi_loss(G, true, "gaussian_gate", norm=norm).item() == pytest.approx(expected, abs=1e-7)
    # The Laplace gate has the exponents of an activation gate, and no temperature.
    true, G = (changed(H, gate=moe.LaplaceGate(), gate_covariance=None) for H in (true, G))
    one = torch.tensor(1.0).double()
    pair = [changed(H, gate=gate, temperature=one) for H in (G, true)]
    same = moe.voronoi_loss(*pair, "activation", norm=norm)
    torch.testing.assert_close(moe.voronoi_loss(G, true, "laplace", norm=norm), same)


def test_topk_is_the_largest_over_regions(seed):
    g = generator_from(seed)
    gate = moe.TopKGate(active=2)
    true = random_measure(g, 3, 1, gate=gate, size=2.0)
    G = random_measure(g, 4, 1, near=true, size=0.15, gate=moe.TopKGate(active=3))
    expected = max(naive_loss(G, true, "overfit", subset=S) for S in itertools.combinations(range(3), 2))
    assert moe.voronoi_loss(G, true, "topk").item() == pytest.approx(expected, abs=2e-6)
    everything = changed(true, gate=moe.TopKGate(active=3))
    torch.testing.assert_close(moe.voronoi_loss(G, everything, "topk"), moe.voronoi_loss(G, true, "overfit"))


def test_a_single_active_expert_has_no_gate_in_its_density(seed):
    g = generator_from(seed)
    true = changed(TRUTH, gate=moe.TopKGate(active=1))
    G = changed(
        true, intercept=[15.2, -4.9], gate_bias=torch.randn(2, generator=g).double(), gate_weight=[[30.0], [3.0]]
    )
    assert moe.voronoi_loss(G, true, "topk").item() == pytest.approx(0.2, abs=1e-12)
    # Two fitted atoms in a region: weights within it, and their difference of the gate's weights counts.
    G = changed(split(), gate=moe.TopKGate(active=2), gate_weight=[[25.0], [0.2], [-0.2]])
    assert moe.voronoi_loss(G, true, "topk").item() == pytest.approx(1e-4 + 0.2**4, abs=1e-12)


def test_temperature_is_not_identified_by_linear_scores(seed):
    g = generator_from(seed)
    gate = moe.TemperatureGate()
    true = random_measure(g, 2, 2, gate=gate, temperature=torch.tensor(0.7).double())
    G = changed(true, gate_bias=3 * true.gate_bias, gate_weight=3 * true.gate_weight, temperature=3 * true.temperature)
    X, Y = (torch.randn(20, s, generator=g, dtype=torch.float64) for s in (2, 1))
    log_probs = [moe.GaussianMoE.from_mixing_measure(H).log_prob(X, Y) for H in (G, true)]
    torch.testing.assert_close(*log_probs)
    for r in (1.0, 2.0, 5.0):
        loss = moe.voronoi_loss(G, true, "temperature", exponent=r, translate=None).item()
        mass = (true.gate_bias / true.temperature).exp()
        away = (2 * true.gate_weight).norm(dim=-1) ** r + (2 * true.temperature) ** r
        assert loss == pytest.approx((mass * away).sum().item(), rel=1e-10)
        # The least over translations stays away from zero, whatever the exponent.
        assert moe.voronoi_loss(G, true, "temperature", exponent=r).item() > 1e-3
    assert moe.voronoi_loss(G, true, "exact").item() < 1e-12


def test_failures_saturate():
    far = changed(TRUTH, intercept=[1e6, -1e6], gate_bias=[300.0, 800.0])
    assert moe.voronoi_loss(far, TRUTH).item() == TRUTH.gate_bias.exp().sum().item()


def test_without_inputs():
    none = torch.zeros(2, 0).double()
    true = moe.MixingMeasure([0.0, 0.3], none, [0.0, 3.0], none, [1.0, 1.0])
    G = moe.MixingMeasure([2.0, 2.3], none, [0.1, 3.0], none, [1.0, 1.0])
    for kind in ("exact", "overfit"):
        assert moe.voronoi_loss(G, true, kind).item() == pytest.approx(0.1, abs=1e-12)


def test_mean_gate_masses(seed):
    g = generator_from(seed)
    true = random_measure(g, 2, 2)
    G = random_measure(g, 2, 2, R=3, near=true, size=1e-3)
    X = torch.randn(40, 2, generator=g, dtype=torch.float64)
    model = moe.GaussianMoE.from_mixing_measure(G)
    mass = model.gate_log_probs(X.expand(3, 40, 2)).exp().mean(-2)
    true_mass = moe.GaussianMoE.from_mixing_measure(true).gate_log_probs(X).exp().mean(-2)
    loss = moe.voronoi_loss(G, true, translate=None, weights="mean_gate", X=X)
    gaps = sum(
        (getattr(G, f) - getattr(true, f)).reshape(3, 2, -1).norm(dim=-1)
        for f in ("gate_weight", "intercept", "coef", "variance")
    )
    torch.testing.assert_close(loss, (mass * gaps).sum(-1) + (mass - true_mass).abs().sum(-1))
    fitted = moe.voronoi_loss(G, true, weights="mean_gate", X=X)
    torch.testing.assert_close(moe.voronoi_loss(shifted(G), true, weights="mean_gate", X=X), fitted, rtol=0, atol=1e-8)


def test_cells_beyond_the_proven_exponents():
    true = moe.MixingMeasure([0.0], [[0.0]], [0.0], [[0.0]], [1.0])
    G = moe.MixingMeasure([-math.log(4)] * 4, [[0.0]] * 4, [-0.5, 0.5, -0.5, 0.5], [[0.0]] * 4, [1.0] * 4)
    with pytest.raises(DomainError, match=r"at most 3 atoms, but 1 of 1 replicates have a cell of 4; pass one"):
        moe.voronoi_loss(G, true, "overfit")
    assert moe.voronoi_loss(G, true, "overfit", bar_r={4: 8}).item() == pytest.approx(0.5**8)
    assert moe.voronoi_loss(G, true, "exact").item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (DomainError, "kind must be one of 'exact'", lambda: moe.voronoi_loss(TRUTH, TRUTH, "over")),
        (DomainError, "translate", lambda: moe.voronoi_loss(TRUTH, TRUTH, translate="none")),
        (DomainError, "only for kind='temperature'", lambda: moe.voronoi_loss(TRUTH, TRUTH, exponent=2.0)),
        (DomainError, "X comes with", lambda: moe.voronoi_loss(TRUTH, TRUTH, weights="mean_gate")),
        (DomainError, "bar_r must map", lambda: moe.voronoi_loss(TRUTH, TRUTH, "overfit", bar_r=4)),
        (UnsupportedError, "must be a MixingMeasure", lambda: moe.voronoi_loss(torch.ones(2), TRUTH)),
        (UnsupportedError, "is a loss of activation gates", lambda: moe.voronoi_loss(TRUTH, TRUTH, "activation")),
        (UnsupportedError, "needs a G_true with gate=TopKGate", lambda: moe.voronoi_loss(TRUTH, TRUTH, "topk")),
        (
            ShapeError,
            r"gate_weight of the shape \(1,\) of G_true's, got \(2,\)",
            lambda: moe.voronoi_loss(random_measure(generator_from(0), 2, 2), TRUTH),
        ),
        (
            ShapeError,
            r"G has replicates \(2,\), G_true \(3,\)",
            lambda: moe.voronoi_cells(*(random_measure(generator_from(0), 2, 1, R=R) for R in (2, 3))),
        ),
        (
            UnsupportedError,
            "G must have the gate of G_true",
            lambda: moe.voronoi_loss(changed(TRUTH, gate=moe.LaplaceGate()), TRUTH),
        ),
        (
            UnsupportedError,
            "positively homogeneous",
            lambda: moe.voronoi_loss(*[changed(TRUTH, gate=moe.ActivationGate("relu"))] * 2, "activation"),
        ),
        (
            UnsupportedError,
            "SigmoidGate has no masses",
            lambda: moe.voronoi_loss(*[changed(TRUTH, gate=moe.SigmoidGate())] * 2),
        ),
    ],
)  # fmt: skip
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_temperature_of_the_gate_is_that_of_the_measure():
    atoms = ([0.5, 0.0], [[3.0], [0.0]], [1.0, -1.0], [[2.0], [-1.5]], [0.16, 0.25])
    G = moe.MixingMeasure(*atoms, gate=moe.SoftmaxGate(2.0))
    again = moe.GaussianMoE.from_mixing_measure(G).mixing_measure()
    assert moe.voronoi_loss(again, G).item() < 1e-12
