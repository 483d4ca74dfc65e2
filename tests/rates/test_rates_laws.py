"""The laws against a simulation written here, against each other, and at their limits."""

import math

import numpy as np
import pytest

from normkit.rates import laws
from normkit.rng import stream

DIM, RUNS = 256, 4


def simulate(optimizer, lr, weight_decay=0.0, *, steps, momentum=0.9, betas=(0.9, 0.999), decoupled=False, size=1.0):
    """Norms and angles, (steps, RUNS), by the published update rules, spelled out one by one."""
    rng = stream(0, "rates", "laws", optimizer)
    w = rng.standard_normal((RUNS, DIM))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    p, v = np.zeros_like(w), np.zeros_like(w)
    norms, angles = [], []
    for t in range(1, steps + 1):
        unit = w / np.linalg.norm(w, axis=1, keepdims=True)
        radial = lambda x: unit * (unit * x).sum(1, keepdims=True)  # noqa: B023, E731
        z = rng.standard_normal(w.shape)
        g = size * (z - radial(z)) / math.sqrt(DIM - 1) / np.linalg.norm(w, axis=1, keepdims=True)
        if optimizer in ("sgd", "momentum"):
            beta = momentum if optimizer == "momentum" else 0.0
            p = beta * p + g + (0.0 if decoupled else weight_decay * w)
            new = w * (1 - lr * weight_decay if decoupled else 1.0) - lr * p
        elif optimizer == "sgdp":
            p = momentum * p + g
            p -= radial(p)
            new = w * (1 - lr * weight_decay * 0.1 / (1 - momentum)) - lr * p
        else:
            p, v = betas[0] * p + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
            d = p / (1 - betas[0] ** t) / np.sqrt(v / (1 - betas[1] ** t))
            new = w * (1 - lr * weight_decay) - lr * d
            if optimizer == "adamp":
                new = w * (1 - 0.1 * lr * weight_decay) - lr * (d - radial(d))
        cosine = (w * new).sum(1) / np.linalg.norm(w, axis=1) / np.linalg.norm(new, axis=1)
        w = new
        norms.append(np.linalg.norm(w, axis=1))
        angles.append(np.arccos(cosine))
    return np.array(norms), np.array(angles)


EQUILIBRIA = [  # (optimizer, lr, decay, other options, tolerance)
    # SGD's square norm is nearly deterministic: its noise is of relative size x/dim.
    ("sgd", 0.5, 0.1, {}, 0.001),
    ("sgd", 0.1, 0.9, {}, 0.001),
    # A heavy ball keeps 1/(1-momentum) noises: corrections of order 1/dim = 0.4 %.
    ("momentum", 0.5, 0.02, {}, 0.004),
    ("momentum", 1.0, 0.09, {"momentum": 0.99}, 0.004),
    ("momentum", 0.5, 0.1, {"momentum": 0.5}, 0.004),
    ("momentum", 0.3, 0.1, {"decoupled": True}, 0.004),
    ("momentum", 0.5, 0.1, {"momentum": 0.99, "decoupled": True}, 0.004),
    ("sgdp", 0.1, 0.1, {}, 0.002),
    ("sgdp", 0.1, 0.5, {"momentum": 0.95}, 0.002),
    # Adam's norm fluctuates by sqrt(1 - beta2)/dim^(1/2) or less; second order in 1 - beta2 is left out.
    ("adam", 0.01, 1.0, {}, 0.005),
    ("adam", 0.01, 5.0, {"betas": (0.9, 0.95)}, 0.005),
    ("adam", 0.1, 0.2, {"betas": (0.5, 0.9)}, 0.01),
    ("adam", 0.1, 0.2, {"betas": (0.0, 0.99)}, 0.005),
    ("adamp", 0.1, 1.0, {"betas": (0.9, 0.99)}, 0.005),
    ("adamp", 0.1, 5.0, {"betas": (0.9, 0.9)}, 0.025),
]


@pytest.mark.parametrize(("optimizer", "lr", "wd", "options", "tolerance"), EQUILIBRIA)
def test_equilibria_are_those_of_simulated_optimizers(optimizer, lr, wd, options, tolerance):
    relax = laws.relaxation_steps(lr, wd, optimizer=optimizer, **options)
    norms, angles = simulate(optimizer, lr, wd, steps=2500, **options)
    # what is measured has forgotten its start, which for a mean square of 1000 steps is not far off
    assert 3 * relax < 1000 or options.get("betas", (0, 0.999))[1] == 0.999
    norm = laws.equilibrium_norm(lr, wd, 1.0, optimizer=optimizer, dim=DIM, **options)
    angle = laws.equilibrium_angle(lr, wd, optimizer=optimizer, **options)
    assert norms[1000:].mean() == pytest.approx(norm, rel=tolerance)
    assert np.sqrt((angles[1000:] ** 2).mean()) == pytest.approx(angle, rel=max(tolerance, 0.002))
    # The way there, from norm 1: a swing of momentum, or Adam's first divisors, means of a few squares, are roughest.
    law = laws.norm_growth(optimizer, 2500, lr=lr, weight_decay=wd, dim=DIM, **options)
    assert law[0] == 1 and law.shape == (2501,)
    assert np.abs(norms.mean(1) / law[1:] - 1).max() < 0.12
    assert law[-1] == pytest.approx(norm, rel=0.01)


@pytest.mark.parametrize(
    ("optimizer", "lr", "size", "tolerance"),
    [
        ("sgd", 0.3, 2.0, 0.003),
        ("sgd", 3.0, 1.0, 0.003),
        ("momentum", 0.1, 1.0, 0.02),
        ("sgdp", 0.3, 0.5, 0.005),
        ("adam", 0.02, 3.0, 0.02),
        ("adamp", 0.02, 1.0, 0.01),
    ],
)
def test_growth_without_decay(optimizer, lr, size, tolerance):
    # Relative error of the mean of RUNS: SGD's growth averages chi2_255 over the steps; the momentum of few runs wobbles.
    norms, _ = simulate(optimizer, lr, steps=1500, size=size)
    law = laws.norm_growth(optimizer, 1500, lr=lr, grad_norm=size, dim=DIM)
    np.testing.assert_allclose(norms.mean(1)[200:], law[201:], rtol=tolerance)
    assert (np.diff(law) > 0).all()
    power = 1 if optimizer.startswith("adam") else 2
    np.testing.assert_allclose(laws.elr(optimizer, 1500, lr=lr, grad_norm=size, dim=DIM), lr / law**power, rtol=1e-14)


@pytest.mark.parametrize(
    ("optimizer", "radius", "power"),
    [
        ("sgd", 1, lambda t: (1 + 2 * 0.01 * t) ** 0.5),
        ("momentum", 1, lambda t: (1 + 2 * 1.0 * t) ** 0.5),
        ("sgdp", 1, lambda t: (1 + 2 * 0.01 / 0.19 * t) ** 0.5),
        # Adam from a norm that doubles in more steps than its mean square remembers
        ("adam", 30, lambda t: 900 + 0.01 * 64 * t),
        ("adamp", 30, lambda t: 900 + 0.01 * 64 * t / 19),
    ],
)
def test_growth_tends_to_its_closed_form(optimizer, radius, power):
    law = laws.norm_growth(optimizer, 20000, lr=0.1, dim=64, radius=radius, betas=(0.9, 0.99))
    assert law[-1] ** 2 == pytest.approx(power(20000), rel=0.025)


@pytest.mark.parametrize("optimizer", laws.OPTIMIZERS)
def test_exponents_are_the_slopes_of_the_laws(optimizer):
    options = {"lr": 0.1, "dim": 64, "betas": (0.9, 0.99)}
    law, rate = (f(optimizer, 40_000, **options) for f in (laws.norm_growth, laws.elr))
    slope = lambda x: np.log(x[-1] / x[20_000]) / np.log(2)  # noqa: E731
    assert slope(law) == pytest.approx(laws.norm_exponent(optimizer), abs=0.015)
    assert slope(rate) == pytest.approx(laws.elr_exponent(optimizer), abs=0.015)
    assert laws.elr_exponent(optimizer) == -0.5


def test_the_forms_named_in_the_docs():
    lr, wd, size = 0.02, 0.3, 1.7
    assert laws.equilibrium_norm(lr, wd, size) ** 4 == pytest.approx(
        (lr * size) ** 2 / (1 - (1 - lr * wd) ** 2), rel=1e-12
    )
    assert math.cos(laws.equilibrium_angle(lr, wd)) == pytest.approx(1 - lr * wd, abs=1e-15)
    # tiny steps: no cancellation, the leading order to 1 part in 1e9
    assert laws.equilibrium_angle(1e-5, 1e-5) == pytest.approx(math.sqrt(2e-10), rel=1e-9)
    assert laws.equilibrium_norm(1e-5, 1e-5) == pytest.approx(0.5**0.25, rel=1e-9)
    small = {"lr": 1e-4, "weight_decay": 1e-3}
    leading = {
        ("momentum", False): (0.1 / (2 * 0.1), 2e-7 / 1.9),
        ("momentum", True): (0.1 / (2 * 0.01), 2e-7 * 0.1 / 1.9),
        ("sgdp", False): (0.1 / (2 * 0.19), 2e-7),
    }
    for (optimizer, decoupled), (fourth, square) in leading.items():
        options = {"optimizer": optimizer, "decoupled": decoupled}
        assert laws.equilibrium_norm(**small, **options) ** 4 == pytest.approx(fourth, rel=1e-5)
        assert laws.equilibrium_angle(**small, **options) ** 2 == pytest.approx(square, rel=1e-5)
    adam = laws.equilibrium_norm(**small, grad_norm=5.0, optimizer="adam", dim=100)
    assert adam / 10 == pytest.approx(math.sqrt(0.1 / 2), rel=1e-3)  # root mean square entry, whatever grad_norm
    assert laws.equilibrium_angle(**small, optimizer="adam") ** 2 == pytest.approx(2e-7 / 19, rel=5e-3)
    assert laws.equilibrium_angle(**small, optimizer="adamp") ** 2 == pytest.approx(2e-8, rel=1e-5)


def test_momentum_zero_is_sgd_and_arrays_are_pairs():
    lr, wd = np.array([[0.1], [0.4]]), np.array([0.01, 0.1, 0.5])
    for law in (laws.equilibrium_norm, laws.equilibrium_angle, laws.relaxation_steps):
        want = law(lr, wd)
        assert want.shape == (2, 3)
        for decoupled in (False, True):
            np.testing.assert_allclose(
                law(lr, wd, optimizer="momentum", momentum=0.0, decoupled=decoupled), want, rtol=1e-12
            )
        assert want[1, 2] == pytest.approx(law(0.4, 0.5), rel=1e-12)
        assert isinstance(law(0.4, 0.5), float)


@pytest.mark.parametrize(("optimizer", "options"), [("sgd", {}), ("momentum", {}), ("momentum", {"decoupled": True})])
def test_relaxation_is_the_decay_of_a_weight_without_gradients(optimizer, options):
    lr, wd = 0.01, 0.2
    law = laws.norm_growth(optimizer, 200, lr=lr, weight_decay=wd, grad_norm=1e-9, **options)
    tau = laws.relaxation_steps(lr, wd, optimizer=optimizer, **options)
    assert -1 / np.log(law[200] / law[199]) == pytest.approx(tau, rel=1e-3)
    adam = laws.relaxation_steps(lr, wd, optimizer="adam", betas=(0.9, 0.99))
    assert adam == pytest.approx(laws.relaxation_steps(lr, wd) + 200)
    assert laws.relaxation_steps(0.5, 0.2, optimizer="momentum", momentum=0.99) == pytest.approx(-2 / math.log(0.99))


def test_adam_settles_as_slowly_as_its_mean_square_forgets():
    # Two coupled modes: at lr wd (= 0.1) far above 1 - beta2 the norm's deviation halves at once, then lives 2/(1 - beta2).
    options = {"lr": 0.2, "weight_decay": 0.5, "dim": 64, "betas": (0.0, 0.998)}
    norm = laws.equilibrium_norm(0.2, 0.5, optimizer="adam", dim=64, betas=(0.0, 0.998))
    off = laws.norm_growth("adam", 5000, radius=norm / 1.5, **options) / norm - 1
    assert np.abs(off[2000]) > 1e-3
    assert -1 / np.log(off[5000] / off[4999]) == pytest.approx(
        laws.relaxation_steps(0.2, 0.5, optimizer="adam", betas=(0.0, 0.998)), rel=0.15
    )


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="without decay"):
        laws.equilibrium_norm(0.1, 0.0)
    for lr, wd, size in ((0, 0.1, 1), (-1, 0.1, 1), (0.1, -1, 1), (math.nan, 1, 1), (0.1, math.inf, 1), (0.1, 0.1, 0)):
        with pytest.raises(ValueError, match="must be a finite number > 0"):
            laws.equilibrium_norm(lr, wd, size)
    for law in (laws.equilibrium_norm, laws.equilibrium_angle, laws.relaxation_steps):
        with pytest.raises(ValueError, match="lower lr or weight_decay"):
            law(2.0, 0.5)
        with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
            law(0.1, 0.1, optimizer="momentum", momentum=1.0)
        with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\)"):
            law(0.1, 0.1, optimizer="adam", betas=(0.9, 1.0))
        with pytest.raises(ValueError, match="betas must be two numbers"):
            law(0.1, 0.1, optimizer="adam", betas=0.9)
        with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
            law(0.1, 0.1, optimizer="lion")
    with pytest.raises(ValueError, match="lower lr or weight_decay"):
        laws.equilibrium_angle(1.0, 0.51, optimizer="sgdp", momentum=0.95)  # 0.51 * 0.1 / 0.05 > 1
    laws.equilibrium_angle(1.0, 0.49, optimizer="sgdp", momentum=0.95)
    for dim in (None, 1, 2.5):
        with pytest.raises(ValueError, match="give dim"):
            laws.equilibrium_norm(0.1, 0.1, optimizer="adam", dim=dim)
        with pytest.raises(ValueError, match="give dim"):
            laws.norm_growth("adamp", 3, lr=0.1, dim=dim)
    with pytest.raises(ValueError, match="steps"):
        laws.norm_growth("sgd", -1, lr=0.1)
    with pytest.raises(ValueError, match="at step 1"):
        laws.norm_growth("sgd", 3, lr=1e120)
    with pytest.raises(ValueError, match="weight_decay"):
        laws.norm_growth("sgd", 3, lr=0.1, weight_decay=-0.1)
    with pytest.raises(ValueError, match="unknown optimizer"):
        laws.elr_exponent("lamb")


@pytest.mark.parametrize("optimizer", laws.OPTIMIZERS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_units_of_the_laws(optimizer, decoupled):
    # Gradients scale as grad_norm/||w||: measured in another unit of length c, the SGD family's lr is c^2 times as
    # large (or its gradient norm), Adam's, whose step has a length of its own, c times; angles do not change.
    options = {"optimizer": optimizer, "decoupled": decoupled}
    adaptive, c = optimizer.startswith("adam"), 3.0
    norm = laws.equilibrium_norm(0.2, 0.1, 1.3, dim=50, **options)
    if adaptive:
        other = laws.equilibrium_norm(0.2 * c, 0.1 / c, 7.0, dim=50, **options)
        assert laws.equilibrium_norm(0.2, 0.1, dim=200, **options) == pytest.approx(2 * norm, rel=1e-12)
    else:
        other = laws.equilibrium_norm(0.2 * c**2, 0.1 / c**2, 1.3, **options)
        assert laws.equilibrium_norm(0.2, 0.1, 1.3 * c**2, **options) == pytest.approx(c * norm, rel=1e-12)
    assert other == pytest.approx(c * norm, rel=1e-12)
    for law in (laws.equilibrium_angle, laws.relaxation_steps):
        assert law(0.2 * c, 0.1 / c, **options) == pytest.approx(law(0.2, 0.1, **options), rel=1e-12)
    start = {"lr": 0.2, "weight_decay": 0.1, "dim": 50, "decoupled": decoupled}
    far = start | ({"lr": 0.6, "weight_decay": 0.1 / 3} if adaptive else {"grad_norm": 9.0})
    np.testing.assert_allclose(
        laws.norm_growth(optimizer, 300, radius=6.0, **far),
        3 * laws.norm_growth(optimizer, 300, radius=2.0, **start),
        rtol=1e-10,
    )


@pytest.mark.parametrize("optimizer", laws.OPTIMIZERS)
def test_doubling_lr_and_decay_keeps_the_norm_and_doubles_the_angle(optimizer):
    # The classroom question: to leading order in lr weight_decay = 1e-6.
    options = {"optimizer": optimizer, "betas": (0.9, 0.99999)}
    one = laws.equilibrium_norm(1e-3, 1e-3, dim=10, **options), laws.equilibrium_angle(1e-3, 1e-3, **options)
    two = laws.equilibrium_norm(2e-3, 2e-3, dim=10, **options), laws.equilibrium_angle(2e-3, 2e-3, **options)
    assert two[0] == pytest.approx(one[0], rel=1e-3)
    assert two[1] == pytest.approx(2 * one[1], rel=1e-3)


@pytest.mark.parametrize("optimizer", laws.OPTIMIZERS)
@pytest.mark.parametrize("start", [0.2, 5.0])
def test_every_start_ends_at_the_equilibrium(optimizer, start):
    options = {"momentum": 0.6, "betas": (0.7, 0.98)}
    lr, wd = 0.3, 0.1
    norm = laws.equilibrium_norm(lr, wd, 0.7, optimizer=optimizer, dim=40, **options)
    tau = laws.relaxation_steps(lr, wd, optimizer=optimizer, **options)
    steps = int(8 * tau)
    law = laws.norm_growth(
        optimizer, steps, lr=lr, weight_decay=wd, grad_norm=0.7, radius=start * norm, dim=40, **options
    )
    assert law[-1] == pytest.approx(norm, rel=1e-3)
    assert abs(law[steps // 20] / norm - 1) > 0.05  # and it takes the time that was told
    rates = laws.elr(optimizer, steps, lr=lr, weight_decay=wd, grad_norm=0.7, radius=start * norm, dim=40, **options)
    assert rates[-1] == pytest.approx(lr / norm ** (1 if optimizer.startswith("adam") else 2), rel=3e-3)


def test_decay_and_buffers_as_the_optimizers_use_them():
    assert laws.decay("sgd", 0.1, 0.5) == laws.decay("adam", 0.1, 0.5) == (0.0, 0.95)
    assert laws.decay("momentum", 0.1, 0.5) == (0.5, 1.0)
    assert laws.decay("momentum", 0.1, 0.5, decoupled=True) == (0.0, 0.95)
    assert laws.decay("sgdp", 0.1, 0.5, momentum=0.5) == (0.0, 0.99)  # times wd_ratio 0.1, over 1 - momentum
    assert laws.decay("adamp", 0.1, 0.5) == (0.0, 0.995)
    assert laws.buffers("sgd") == (0.0, 1.0, 0.0)
    assert laws.buffers("sgdp", 0.7) == (0.7, 1.0, 0.0)
    assert laws.buffers("adamp", 0.7, (0.5, 0.75)) == (0.5, 0.5, 0.75)
