"""The spherical walk: its kernel, its independence of everything but the seed, its meaning, its limits."""

import numpy as np
import pytest

from normkit.rates import elr, experiment, kernels, laws
from normkit.rates.experiment import equilibrium_grid, spherical_walk

OPTIMIZERS = list(laws.OPTIMIZERS)


def readable(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "walk", experiment.walk.reference)
        return spherical_walk(*arguments, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "signal": 0.5},
        {"weight_decay": 0.1, "decoupled": True, "dim": 2},
        {"project": True, "radius": 2.5, "grad_norm": 3.0, "dim": 3, "betas": (0.5, 0.9), "momentum": 0.5},
        {"weight_decay": 0.05, "dim": 300, "seeds": 2, "steps": 500, "eps": 1e-2},
    ],
)
def test_kernel_and_readable_body_agree(monkeypatch, optimizer, parallel, options):
    monkeypatch.setattr(kernels, "WALK_PARALLEL", 1 if parallel else 1 << 60)
    options = {"lr": 0.1, "seeds": 3, "steps": 400, "dim": 17, "keep_path": True} | options
    fast, slow = spherical_walk(optimizer, **options), readable(monkeypatch, optimizer, **options)
    for name in ("norm", "angle", "elr", "cosine", "path"):
        a, b = getattr(fast, name), getattr(slow, name)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())  # rounding of 500 steps
    assert fast.angle.min() > 0


def test_shapes_and_what_they_mean():
    walk = spherical_walk("adam", lr=0.05, weight_decay=0.3, seeds=3, steps=40, dim=6, radius=2.0, keep_path=True)
    assert walk.norm.shape == walk.elr.shape == walk.cosine.shape == (3, 41)
    assert walk.angle.shape == (3, 40) and walk.path.shape == (41, 6)
    assert spherical_walk("sgd", lr=0.1, steps=3).path is None
    np.testing.assert_allclose(walk.norm[:, 0], 2.0, rtol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(walk.path, axis=1), walk.norm[0], rtol=1e-13)
    unit = walk.path / walk.norm[0][:, None]
    np.testing.assert_allclose(unit[:, 0], walk.cosine[0], rtol=1e-12)
    np.testing.assert_allclose(np.arccos((unit[1:] * unit[:-1]).sum(1)), walk.angle[0], rtol=1e-7)
    np.testing.assert_allclose(
        walk.elr[0], [elr.effective_lr(0.05, w, optimizer="adam") for w in walk.path], rtol=1e-12
    )


def test_angles_of_tiny_steps_keep_their_digits():
    lr = 1e-9
    walk = spherical_walk("sgd", lr=lr, steps=50, dim=1000, seeds=4)
    # tan(angle) = lr ||g|| / ||w||, ||g||^2 = chi2_999 / 999: a mean of 200 of them to 0.2 %
    assert np.sqrt((walk.angle**2).mean()) == pytest.approx(lr, rel=0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_depends_on_its_seed_alone(optimizer):
    options = {"lr": 0.1, "weight_decay": 0.01, "dim": 5000, "signal": 0.1}  # blocks of 13 steps
    walk = spherical_walk(optimizer, steps=30, seeds=4, **options)
    fewer = spherical_walk(optimizer, steps=30, seeds=2, **options)
    shorter = spherical_walk(optimizer, steps=17, seeds=4, **options)
    np.testing.assert_array_equal(fewer.norm, walk.norm[:2])
    np.testing.assert_array_equal(shorter.norm, walk.norm[:, :18])
    np.testing.assert_array_equal(shorter.angle, walk.angle[:, :17])
    other = spherical_walk(optimizer, steps=30, seeds=4, seed=1, **options)
    assert (np.abs(other.angle - walk.angle) > 0).all()
    assert len(np.unique(walk.angle[:, 0])) == 4 or optimizer in ("adam", "adamp")  # whose first step has one length
    assert len(np.unique(walk.cosine[:, -1])) == 4


def test_noise_is_drawn_once_and_kept():
    experiment._noise.cache_clear()
    for lr in (0.1, 0.2):
        spherical_walk("sgd", lr=lr, steps=1000, seeds=4)
    assert experiment._noise.cache_info().misses == 4
    assert not experiment._noise(0, 0, 0, 1024, 64).flags.writeable


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_norms_follow_the_laws(optimizer):
    # 16 seeds of 256 entries; single heavy balls differ by a few per cent of dim^(-1/2) while their norm swings
    options = {"lr": 0.03, "weight_decay": 0.2, "momentum": 0.8, "betas": (0.9, 0.99)}
    walk = spherical_walk(optimizer, steps=1500, dim=256, seeds=16, **options)
    law = laws.norm_growth(optimizer, 1500, dim=256, **options)
    # or, under Adam, while its divisor is the mean of a few squares
    np.testing.assert_allclose(walk.norm.mean(0), law, rtol=0.03)
    np.testing.assert_allclose(walk.elr.mean(0), laws.elr(optimizer, 1500, dim=256, **options), rtol=0.06)


def test_the_gradient_is_the_model_s():
    walk = spherical_walk("sgd", lr=0.7, steps=2000, dim=8, seeds=8, grad_norm=3.0, project=True)
    step2 = np.tan(walk.angle) ** 2  # lr^2 ||g||^2 at norm 1: mean lr^2 grad_norm^2, 16 000 chi2_7 / 7
    assert step2.mean() == pytest.approx((0.7 * 3) ** 2, rel=5 * np.sqrt(2 / 7 / 16000))
    assert step2.var() / step2.mean() ** 2 == pytest.approx(2 / 7, rel=0.1)


def test_projection_holds_the_norm_and_with_it_the_rate():
    held = spherical_walk("adam", lr=0.02, steps=600, radius=3.0, project=True)
    free = spherical_walk("adam", lr=0.02, steps=600, radius=3.0)
    np.testing.assert_allclose(held.norm, 3.0, rtol=1e-14)
    np.testing.assert_allclose(held.elr, 0.02 / 3, rtol=1e-14)
    assert (free.norm[:, -1] > 4).all() and (np.diff(free.elr.mean(0)) < 0).all()
    np.testing.assert_allclose(held.angle[:, 0], free.angle[:, 0], rtol=1e-12)  # the projection itself turns nothing


def test_sgd_projected_at_the_copied_rate_walks_the_same_directions():
    # One step at lr and norm r turns as one at lr (1/r)^2 and norm 1: replay the free walk's last step on the sphere.
    free = spherical_walk("sgd", lr=0.5, steps=1, dim=12, seeds=1, radius=2.0, keep_path=True)
    copied = spherical_walk("sgd", lr=0.5 / 4, steps=1, dim=12, seeds=1, radius=1.0, project=True, keep_path=True)
    np.testing.assert_allclose(free.path[1] / free.norm[0, 1], copied.path[1], rtol=1e-13)


def test_a_signal_alone_is_gradient_descent_on_the_cosine():
    lr, s = 0.3, 0.8
    walk = spherical_walk("sgd", lr=lr, steps=400, dim=5, seeds=3, grad_norm=0.0, signal=s, keep_path=True)
    w = walk.path[0]
    for t in range(400):
        length = np.linalg.norm(w)
        w = w + lr * s * (np.eye(5)[0] - w * w[0] / length**2) / length
        np.testing.assert_allclose(w, walk.path[t + 1], rtol=1e-9, atol=1e-12)
    assert (walk.cosine[:, -1] > 0.999).all()
    noisy = spherical_walk("sgd", lr=0.01, steps=3000, dim=16, signal=1.0)
    assert noisy.cosine[:, -1].mean() > 0.8 > np.abs(noisy.cosine[:, 0]).mean()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("sgd", {}), ("momentum", {"momentum": 0.8}), ("adam", {"betas": (0.8, 0.95)}), ("sgdp", {}), ("adamp", {})],
)
def test_steps_are_those_of_torch_s_and_the_kit_s_optimizers(optimizer, options):
    torch = pytest.importorskip("torch")
    from normkit.rates.optimizers import SGDP, AdamP

    dim, steps, lr, wd = 10, 60, 0.1, 0.3
    walk = spherical_walk(
        optimizer, lr=lr, weight_decay=wd, dim=dim, steps=steps, seeds=1, grad_norm=2.0, keep_path=True, **options
    )
    noise = experiment._noise(0, 0, 0, experiment.BLOCK // dim, dim).astype(np.float64)
    w = torch.nn.Parameter(torch.from_numpy(walk.path[:1].copy()))  # one row: a matrix, as SGDP and AdamP want it
    rule = {
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, weight_decay=wd),
        "momentum": lambda p: torch.optim.SGD(p, lr=lr, weight_decay=wd, **options),
        "adam": lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=wd, **options),
        "sgdp": lambda p: SGDP(p, lr=lr, momentum=0.9, weight_decay=wd),
        "adamp": lambda p: AdamP(p, lr=lr, weight_decay=wd),
    }[optimizer]([w])
    for t in range(steps):
        unit = w.detach() / w.detach().norm()
        z = torch.from_numpy(noise[t : t + 1])
        w.grad = 2.0 * (z - unit * (unit * z).sum()) / (dim - 1) ** 0.5 / w.detach().norm()
        rule.step()
        np.testing.assert_allclose(
            w.detach()[0], walk.path[t + 1], rtol=1e-6, atol=1e-6
        )  # released eps in w/(||w|| + eps)


def test_adamp_takes_tangent_steps():
    lr = 0.1
    walk = spherical_walk("adamp", lr=lr, steps=200, dim=20, seeds=1, keep_path=True)
    for w, new in zip(walk.path[:-1], walk.path[1:], strict=True):
        measured, predicted = elr.growth(w, w - new)
        assert measured == pytest.approx(predicted, rel=1e-12)
    free = spherical_walk("adam", lr=lr, steps=200, dim=20, seeds=1)
    assert free.norm[0, -1] > 1.5 * walk.norm[0, -1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_grid_lies_on_the_laws(optimizer):
    lr, wd = np.array([0.05, 0.2]), np.array([0.01, 0.2, 0.9])
    grid = equilibrium_grid(lr, wd, optimizer=optimizer, momentum=0.5, betas=(0.9, 0.99), dim=128, steps=4000)
    assert grid.norm.shape == grid.angle.shape == grid.relaxed.shape == (2, 3)
    assert grid.relaxed[1, 2]
    options = {"optimizer": optimizer, "momentum": 0.5, "betas": (0.9, 0.99)}
    np.testing.assert_array_equal(grid.relaxed, 3 * laws.relaxation_steps(lr[:, None], wd, **options) <= 2000)
    np.testing.assert_allclose(grid.norm, grid.law_norm, rtol=0.01)  # corrections of 1/dim
    np.testing.assert_allclose(grid.angle, grid.law_angle, rtol=0.01)
    assert grid.law_norm[1, 2] == pytest.approx(laws.equilibrium_norm(0.2, 0.9, dim=128, **options))


def test_the_grid_would_leave_a_wrong_law(monkeypatch):
    right = laws.equilibrium_norm
    monkeypatch.setattr(laws, "equilibrium_norm", lambda *a, **k: 2 * right(*a, **k))
    grid = equilibrium_grid([0.2], [0.2], steps=4000, dim=64)
    assert grid.relaxed.all()
    np.testing.assert_allclose(grid.norm, grid.law_norm / 2, rtol=0.01)


def test_a_norm_out_of_range_names_its_step_and_the_cure(monkeypatch):
    monkeypatch.setattr(kernels, "WALK_PARALLEL", 1)
    for walk in (experiment.walk, experiment.walk.reference):
        monkeypatch.setattr(experiment, "walk", walk)
        with pytest.raises(ValueError, match=r"at step 1 of row 0 \(lr 1e\+120\): lower lr"):
            spherical_walk("sgd", lr=1e120)
        with pytest.raises(ValueError, match="at step 1 "):  # 0/0: no gradient, no eps
            spherical_walk("adam", lr=0.1, grad_norm=0.0, eps=0.0)
        with pytest.raises(ValueError, match=r"at step 3[34]\d "):  # halved at every step down to 1e-100
            spherical_walk("sgd", lr=0.5, weight_decay=1.0, grad_norm=1e-210, steps=2000)
        with pytest.raises(ValueError, match="at step 1 "):
            spherical_walk("sgd", lr=0.1, radius=1e101)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'"),
        ({"lr": 0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"weight_decay": 10.0}, "lower lr or weight_decay"),
        ({"dim": 1}, "dim must be at least 2"),
        ({"steps": 0}, "steps must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"seed": -1}, "seed must be"),
        ({"grad_norm": float("inf")}, "grad_norm must be"),
        ({"radius": 0.0}, "radius must be"),
        ({"signal": -1.0}, "signal must be"),
        ({"eps": -1e-8}, "eps must be"),
        ({"optimizer": "momentum", "momentum": 1.0}, "momentum must lie"),
        ({"optimizer": "adam", "betas": (0.9, -0.1)}, "betas must lie"),
    ],
)
def test_impossible_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        spherical_walk(**({"lr": 0.1, "steps": 5} | options))


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="two lists"):
        equilibrium_grid(0.1, [0.1])
    with pytest.raises(ValueError, match="without decay"):
        equilibrium_grid([0.1], [0.0, 0.1])
    with pytest.raises(ValueError, match="lower lr or weight_decay"):
        equilibrium_grid([0.1, 2.0], [0.1, 0.6])
    with pytest.raises(ValueError, match="steps must be at least 2"):
        equilibrium_grid([0.1], [0.1], steps=1)
