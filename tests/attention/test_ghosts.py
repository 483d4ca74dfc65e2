"""Radii against zeros of the partition function and the series' own coefficients; the controller against steps by hand."""

import cmath
import copy
import itertools
import math

import numpy as np
import pytest

from normkit.attention.ghosts import (
    convergence_radius,
    log_partition_series,
    radius_bound,
    radius_ratio,
    series_radius,
)

rng = np.random.default_rng(3)


# ---- the radius -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "spread"), [(0, 1), (0, 2), (3, 1), (10, 2), (-3, 0.01), (300, 40)])
def test_binary_radius_is_where_the_partition_function_vanishes(gap, spread):
    z, a = np.array([gap, 0.0]), np.array([spread, 0.0])
    zero = complex(-gap, math.pi) / spread
    assert abs(1 + cmath.exp(gap + spread * zero)) < 1e-12
    assert convergence_radius(z, a) == pytest.approx(abs(zero), rel=1e-14)
    others = [abs(complex(-gap, (2 * n + 1) * math.pi) / spread) for n in range(-4, 4)]
    assert min(others) == pytest.approx(convergence_radius(z, a), rel=1e-14)


def test_known_radii():
    pairs = [((0, 1), 3.1416), ((0, 2), 1.5708), ((3, 1), 4.3439), ((10, 2), 5.2409)]
    for (gap, spread), wanted in pairs:
        assert convergence_radius(np.array([gap, 0.0]), np.array([0.0, spread])) == pytest.approx(wanted, abs=5e-5)


def test_binary_radius_against_the_series():
    z, a = 4 * rng.normal(size=(40, 2)), np.exp(2 * rng.normal(size=(40, 1))) * rng.normal(size=(40, 2))
    measured = series_radius(log_partition_series(z, a, 200)) / np.ptp(a, -1)
    # The worst phase of a window of 40: log(1/|cos n theta|)/n, 160 < n, is below 1e-3 for theta away from 0.
    np.testing.assert_allclose(measured, convergence_radius(z, a), rtol=1e-3)


@pytest.mark.parametrize("classes", [3, 5, 10, 100])
def test_multiclass_bound_is_below_the_series(classes):
    z, a = 3 * rng.normal(size=(30, classes)), 50 * rng.normal(size=(30, classes))
    measured = series_radius(log_partition_series(z, a, 200)) / np.ptp(a, -1)
    bound = convergence_radius(z, a)
    np.testing.assert_array_equal(bound, radius_bound(a))
    np.testing.assert_allclose(bound, math.pi / np.ptp(a, -1), rtol=1e-15)
    assert (measured > bound * (1 - 1e-3)).all()
    assert (measured < 30 * bound).all()


def test_the_bound_is_attained():
    """All but two classes far below: the binary radius at gap 0 is the bound itself."""
    z, a = np.array([0.0, 0.0, -700.0, -650.0]), np.array([1.0, -1.0, 0.3, -0.4])
    assert series_radius(log_partition_series(z, a, 200)) / 2 == pytest.approx(radius_bound(a), rel=1e-3)


def test_series_is_the_function_inside_and_not_outside():
    z, a = rng.normal(size=6), rng.normal(size=6)
    spread = np.ptp(a)
    radius = series_radius(log_partition_series(z, a, 200))

    def error(t, terms):
        c = log_partition_series(z, a, terms)
        return abs(np.polynomial.polynomial.polyval(t, c) - np.log(np.exp(z + a * t / spread).sum()))

    assert error(0.5 * radius, 60) < 1e-12
    assert error(-0.5 * radius, 60) < 1e-12
    assert error(1.5 * radius, 120) > 1e6 * error(1.5 * radius, 20) > 0


def test_series_moments():
    z, a = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    c, spread = log_partition_series(z, a, 5), np.ptp(a, -1)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    mean = (p * a).sum(-1)
    centered = a - mean[:, None]
    second, third, fourth = ((p * centered**n).sum(-1) for n in (2, 3, 4))
    cumulants = [np.log(np.exp(z).sum(-1)), mean, second, third, fourth - 3 * second**2]
    for n, cumulant in enumerate(cumulants):
        np.testing.assert_allclose(c[:, n] * spread**n * math.factorial(n), cumulant, rtol=1e-9, atol=1e-12)
    still = log_partition_series(z[0], np.full(5, 2.0), 60)
    np.testing.assert_allclose(still[:2], [cumulants[0][0], 2])
    assert (still[2:] == 0).all()
    assert series_radius(still) == math.inf


def test_scaling_laws_of_the_radius():
    z, a = rng.normal(size=(8, 2)), rng.normal(size=(8, 2))
    base = convergence_radius(z, a)
    np.testing.assert_allclose(convergence_radius(z + 9, a - 5), base, rtol=1e-12)
    np.testing.assert_allclose(convergence_radius(z, 4 * a), base / 4, rtol=1e-14)
    assert (base >= radius_bound(a)).all()
    hot = convergence_radius(z / 10, a / 10)
    assert (hot > 3 * base).any()
    np.testing.assert_allclose(radius_bound(a / 10), 10 * radius_bound(a), rtol=1e-14)
    assert convergence_radius(np.zeros(3), np.zeros(3)) == math.inf
    assert convergence_radius(np.array([1e30, -1e30], np.float32), np.array([1, 0], np.float32)) == pytest.approx(2e30)


def test_ratio_is_the_worst_samples():
    a = rng.normal(size=(6, 4, 5))
    assert radius_ratio(a, 0.7) == pytest.approx(0.7 / radius_bound(a).min(), rel=1e-14)
    assert radius_ratio(np.zeros((2, 3))) == 0
    for step in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="step"):
            radius_ratio(a, step)


def test_formulas_take_torch_and_its_gradients():
    torch = pytest.importorskip("torch")
    z, a = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    tz, ta = (torch.tensor(x, requires_grad=True) for x in (z, a))
    np.testing.assert_allclose(convergence_radius(tz, ta).detach(), convergence_radius(z, a), rtol=1e-14)
    assert torch.autograd.gradcheck(convergence_radius, (tz, ta))
    wide = torch.tensor(rng.normal(size=(5, 4)), requires_grad=True)
    assert torch.autograd.gradcheck(radius_bound, (wide,))
    half = convergence_radius(tz.half(), ta.half())
    np.testing.assert_allclose(half.detach().double(), convergence_radius(z, a), rtol=2e-2)


@pytest.mark.parametrize(
    ("z", "a", "error", "words"),
    [
        (np.zeros((3, 1)), np.zeros((3, 1)), ValueError, "at least 2 classes"),
        (np.zeros((3, 2)), np.zeros((3, 3)), ValueError, "direction_logits must have shape"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), ValueError, "finite"),
        (np.array([0, np.inf]), np.zeros(2), ValueError, "finite"),
        (np.zeros(2), np.zeros(2, int), TypeError, "real floating"),
    ],
)
def test_errors(z, a, error, words):
    for function in (convergence_radius, log_partition_series):
        if error is TypeError and function is log_partition_series:
            continue
        with pytest.raises(error, match=words):
            function(z, a)


def test_series_errors():
    with pytest.raises(ValueError, match="terms"):
        log_partition_series(np.zeros(2), np.zeros(2), 1)
    for window in (0, 50):
        with pytest.raises(ValueError, match="window"):
            series_radius(np.ones(50), window)


# ---- models ---------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from normkit.attention import ghost_steps  # noqa: E402
from normkit.attention.ghost_steps import (  # noqa: E402
    ARMS,
    MODELS,
    RadiusController,
    direction_logits,
    spike,
    step_losses,
    toy,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Tied(nn.Module):
    """A little language model: attention, batch norm, dropout, tied embedding; returns an object with .logits."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, scale=1.0):
        x = self.block(self.embedding(tokens))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)

        class Output:
            logits = scale * self.head(x)

        return Output


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


def build(kind):
    model = Tied() if kind == "tied" else nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(p.numel())) * 0.5)
    tokens = torch.randint(11, (3, 6), generator=seeded(1))
    return model.double().eval(), tokens if kind == "tied" else torch.randn(9, 5, generator=seeded(1)).double()


def logits_of(model, inputs):
    out = model(inputs)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_directional_derivative_is_the_difference_quotient(kind):
    model, inputs = build(kind)
    direction = {n: torch.randn(p.shape, generator=seeded(5)).double() for n, p in model.named_parameters()}
    logits, slope = direction_logits(model, inputs, direction)
    with torch.no_grad():
        torch.testing.assert_close(logits, logits_of(model, inputs))
        sides = []
        for h in (1e-5, -1e-5):
            moved = copy.deepcopy(model)
            for n, p in moved.named_parameters():
                p.add_(direction[n], alpha=h)
            sides.append(logits_of(moved, inputs))
    torch.testing.assert_close(slope, (sides[0] - sides[1]) / 2e-5, rtol=1e-6, atol=1e-7)  # h^2 and 1e-16/h
    assert not slope.requires_grad


def test_inputs_of_any_form_and_partial_directions():
    model, tokens = build("tied")
    direction = {"norm.weight": torch.ones(8)}
    plain = direction_logits(model, tokens, direction)[1]
    torch.testing.assert_close(direction_logits(model, (tokens, 2.0), direction)[1], 2 * plain)
    torch.testing.assert_close(direction_logits(model, {"tokens": tokens, "scale": 3.0}, direction)[1], 3 * plain)
    for wrong in ({}, {"norm.gain": torch.ones(8)}, {"norm.weight": torch.ones(7)}):
        with pytest.raises(ValueError, match="direction"):
            direction_logits(model, tokens, wrong)
    with pytest.raises(TypeError, match="logits"):
        direction_logits(Pair(2, 2), torch.zeros(3, 2), {"bias": torch.zeros(2)})


def test_measuring_leaves_model_and_random_state_alone():
    model, tokens = build("tied")
    model.train()
    state, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    direction_logits(model, tokens, {n: torch.ones_like(p) for n, p in model.named_parameters()})
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr),
}


def gradients(model, inputs, seed):
    labels = torch.randint(4, (len(inputs),), generator=seeded(seed))
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("limit", [1.0, 0.3])
def test_controlled_step_is_the_shortened_step(name, limit):
    for lr in (1e-4, 3.0):
        model, inputs = build("plain")
        free = copy.deepcopy(model)
        controlled = RadiusController(OPTIMIZERS[name](model.parameters(), lr), model, limit=limit)
        plain = OPTIMIZERS[name](free.parameters(), lr)
        for seed in range(3):
            before = [p.detach().clone() for p in model.parameters()]
            free.load_state_dict(model.state_dict())  # what the plain optimizer would do from here
            gradients(model, inputs, seed)
            gradients(free, inputs, seed)
            plain.step()
            report = controlled.step(inputs)
            moves = [p.detach() - b for p, b in zip(free.parameters(), before, strict=True)]
            direction = dict(zip((n for n, _ in model.named_parameters()), moves, strict=True))
            free.load_state_dict({n: b for (n, _), b in zip(model.named_parameters(), before, strict=True)})
            ratio = radius_ratio(direction_logits(free, inputs, direction)[1])
            assert report.ratio == pytest.approx(ratio, rel=1e-9)
            assert report.scale == pytest.approx(min(1, limit / ratio), rel=1e-9)
            for p, b, move in zip(model.parameters(), before, moves, strict=True):
                torch.testing.assert_close(p.detach(), b + report.scale * move)
            assert controlled.last is report
        assert (report.scale < 1) == (lr > 1)


def test_a_safe_step_is_the_optimizers_to_the_bit():
    model, inputs = build("plain")
    twin = copy.deepcopy(model)
    controlled = RadiusController(torch.optim.Adam(model.parameters(), 1e-4), model)
    plain = torch.optim.Adam(twin.parameters(), 1e-4)
    for seed in range(3):
        gradients(model, inputs, seed)
        gradients(twin, inputs, seed)
        assert controlled.step(inputs).scale == 1
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    theirs, ours = plain.state_dict(), controlled.state_dict()
    assert theirs["param_groups"] == ours["param_groups"]
    assert all(
        torch.equal(theirs["state"][i][k], ours["state"][i][k]) for i in range(4) for k in ("exp_avg", "exp_avg_sq")
    )


def test_state_schedulers_groups_and_frozen_parameters():
    model, inputs = build("plain")
    first, last = model[0], model[2]
    first.bias.requires_grad_(False)
    groups = [{"params": [first.weight], "lr": 1e-3}, {"params": list(last.parameters())}]
    controller = RadiusController(torch.optim.Adam(groups, lr=1e-2), model)
    schedule = torch.optim.lr_scheduler.StepLR(controller.optimizer, 1, gamma=0.5)
    gradients(model, inputs, 0)
    frozen = first.bias.clone()
    controller.step(inputs)
    schedule.step()
    assert [g["lr"] for g in controller.param_groups] == pytest.approx([5e-4, 5e-3])
    assert torch.equal(first.bias, frozen)
    other = torch.optim.Adam([{"params": [first.weight]}, {"params": list(last.parameters())}], lr=1.0)
    other.load_state_dict(controller.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(5e-4)
    controller.zero_grad()
    assert first.weight.grad is None
    weights = [p.clone() for p in model.parameters()]
    assert controller.step(inputs) == ghost_steps.Step(0.0, 1.0)  # no gradients, no step
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_a_step_that_is_not_finite_is_refused():
    model, inputs = build("plain")
    before = copy.deepcopy(model.state_dict())
    controller = RadiusController(torch.optim.SGD(model.parameters(), 1.0), model)
    gradients(model, inputs, 0)
    model[0].weight.grad[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        controller.step(inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    gradients(model, inputs, 0)
    controller.param_groups[0]["lr"] = 1e30  # enormous, but finite: scaled down to the radius
    assert controller.step(inputs).ratio > 1e20
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in model.parameters())


def test_controller_on_a_language_model_that_trains():
    """Embedding, attention, batch norm, dropout and tied weights, in training mode; a spike does not reach the weights."""
    model, tokens = build("tied")
    model.train()
    controller = RadiusController(torch.optim.AdamW(model.parameters(), lr=1e-2), model)
    losses, state = [], torch.random.get_rng_state()
    try:
        torch.random.set_rng_state(seeded(3).get_state())
        for step in range(12):
            controller.param_groups[0]["lr"] = 1e4 if step == 6 else 1e-2
            controller.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.flatten())
            loss.backward()
            losses.append(loss.item())
            tracked = model.norm.num_batches_tracked.item()
            report = controller.step(tokens)
            assert model.norm.num_batches_tracked.item() == tracked
            assert (report.scale < 1e-3) == (step == 6)
    finally:
        torch.random.set_rng_state(state)
    assert losses[-1] < losses[0]
    assert model.head.weight is model.embedding.weight


def test_controller_wants_the_models_parameters():
    model, _ = build("plain")
    with pytest.raises(ValueError, match="the model has not"):
        RadiusController(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), model)
    for limit in (0, -1, math.nan):
        with pytest.raises(ValueError, match="limit"):
            RadiusController(torch.optim.SGD(model.parameters(), 0.1), model, limit=limit)


# ---- the toys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("along", ghost_steps.DIRECTIONS)
def test_step_losses_are_those_of_moved_models(kind, along):
    model, x, y = toy(kind, steps=5)
    found = step_losses(model, x, y, [0, 0.5, 4], along=along, directions=3, seed=2)
    assert found.loss.shape == (1 if along == "gradient" else 3, 3)
    torch.testing.assert_close(found.loss[:, 0], torch.full_like(found.loss[:, 0], found.start_loss))
    assert found.accuracy[:, 0].tolist() == pytest.approx([found.start_accuracy] * len(found.accuracy))
    if along == "gradient":
        loss = nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        length = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        unit = {n: -g / length for (n, _), g in zip(model.named_parameters(), grads, strict=True)}
        slope = direction_logits(model, x, unit)[1]
        assert found.radius[0].item() == pytest.approx(radius_bound(slope.double().numpy()).min(), rel=1e-5)
        for i, r in enumerate(found.ratios.tolist()):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for n, p in moved.named_parameters():
                    p.add_(unit[n], alpha=r * found.radius[0].item())
                logits = moved(x)
            assert found.loss[0, i].item() == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-4)
            assert found.accuracy[0, i].item() == pytest.approx(
                (logits.argmax(-1) == y).double().mean().item(), abs=2 / 600
            )
        assert found.loss_ratio[0, 1] < 1


def test_temperature_scales_the_radius_and_nothing_else():
    cold, warm = (step_losses(*toy("mlp", steps=5, temperature=t), [1.0], directions=4) for t in (1.0, 4.0))
    torch.testing.assert_close(warm.radius, 4 * cold.radius, rtol=1e-4, atol=0)
    assert warm.start_accuracy == cold.start_accuracy
    again = step_losses(*toy("mlp", steps=5), [1.0], directions=2)
    torch.testing.assert_close(again.radius, cold.radius[:2])


def test_random_directions_hurt_beyond_the_radius():
    for kind in MODELS:
        found = step_losses(*toy(kind), [0.25, 8.0])
        assert (found.loss_ratio[:, 0] < 1.2).all()
        assert (found.loss_ratio[:, 1] > 2).all()


def test_unit_directions_are_units_and_do_not_depend_on_their_number():
    model, x, y = toy("mlp", steps=1)
    many, few = (ghost_steps.unit_directions(model, x, y, directions=n, seed=4) for n in (5, 2))
    for unit in many:
        assert math.hypot(*(p.norm().item() for p in unit.values())) == pytest.approx(1, rel=1e-6)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(few, many, strict=False) for n in a)
    flat = [torch.cat([p.flatten() for p in unit.values()]) for unit in many]
    assert abs(flat[0] @ flat[1]) < 5 / math.sqrt(len(flat[0]))  # five standard deviations
    (downhill,) = ghost_steps.unit_directions(model, x, y, along="gradient", directions=5)
    logits, slope = direction_logits(model, x, downhill)
    change = ((logits.softmax(-1) - nn.functional.one_hot(y, 10)) * slope).sum(-1).mean()
    assert change < 0
    with pytest.raises(ValueError, match="points nowhere"):
        ghost_steps.unit_directions(Constant(), x, y, along="gradient")


def test_toy_errors():
    model, x, y = toy("linear", steps=0)
    for ratios in ([-1.0], [math.inf], [[1.0]]):
        with pytest.raises(ValueError, match="ratios"):
            step_losses(model, x, y, ratios)
    with pytest.raises(ValueError, match="unknown direction"):
        step_losses(model, x, y, [1.0], along="hessian")
    with pytest.raises(ValueError, match="moves no logit"):
        step_losses(Constant(), x, y, [1.0])
    for wrong in ({"kind": "cnn"}, {"steps": -1}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            toy(**wrong)


class Constant(nn.Module):
    """A model whose only weight no logit feels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x[:, :10] + 0 * self.weight.sum()


def test_spike_arms_share_all_but_the_spike():
    runs = {arm: list(spike(arm, factor=1000, start=4, steps=8, every=2, seed=1)) for arm in ARMS}
    for arm, reports in runs.items():
        assert [r["step"] for r in reports] == [0, 2, 4, 5, 6, 8]
        assert [r["lr"] for r in reports] == [2e-3, 2e-3, 2.0, 2e-3, 2e-3, 2e-3]
        assert [r["done"] for r in reports] == [False] * 5 + [True]
        assert (reports[3]["ratio"] is None) == (arm != "radius")
    starts = [[r["loss"] for r in runs[arm][:3]] for arm in ("plain", "radius")]
    assert starts[0] == starts[1]  # before the spike no step is shortened
    taken = runs["radius"][3]
    assert taken["ratio"] > 10
    assert taken["scale"] == pytest.approx(1 / taken["ratio"])
    assert runs["radius"][-1]["loss"] < 3 < runs["plain"][3]["loss"]
    assert [r["loss"] for r in spike("radius", factor=1000, start=4, steps=8, every=2, seed=1)] == [
        r["loss"] for r in runs["radius"]
    ]
    for a, b in itertools.pairwise(runs["radius"]):
        assert a["step"] < b["step"]
    for wrong in ({"arm": "brake"}, {"lr": 0.0}, {"factor": -1.0}, {"steps": 0}, {"start": -1}, {"length": 0}):
        with pytest.raises(ValueError):
            spike(**wrong)
