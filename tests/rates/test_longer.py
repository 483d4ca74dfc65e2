"""Ghosts against nn.BatchNorm on each of them, the two laws on exact curves, and short trainings."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from normkit.rates import longer  # noqa: E402
from normkit.rates.longer import GhostBatchNorm1d, GhostBatchNorm2d, batch_lr, log_time_fit, train  # noqa: E402
from normkit.rng import stream  # noqa: E402

KINDS = [
    (GhostBatchNorm1d, nn.BatchNorm1d, (5,)),
    (GhostBatchNorm1d, nn.BatchNorm1d, (5, 3)),
    (GhostBatchNorm2d, nn.BatchNorm2d, (5, 4, 2)),
]
OPTIONS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-2, "momentum": 0.3}]


def normal(*shape, seed=0):
    return torch.from_numpy(stream(seed, "ghosts").normal(size=shape))


def disturbed(norm):
    with torch.no_grad():
        for k, p in enumerate(norm.parameters()):
            p.copy_(normal(*p.shape, seed=k + 1))
    return norm.double()


@pytest.mark.parametrize(("ghost", "plain", "inner"), KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [4, 12, 14, 3])
def test_each_ghost_is_a_batch_of_its_own(ghost, plain, inner, options, batch):
    ours, theirs = disturbed(ghost(5, 4, **options)), disturbed(plain(5, **options))
    x, g = normal(batch, *inner), normal(batch, *inner, seed=9)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        y = ours(a)
        expected = torch.cat([theirs(b[k : k + 4]) for k in range(0, batch, 4)])
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.backward(g)
    expected.backward(g)
    # sums over ghosts in another order
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    if options.get("track_running_stats", True):
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


def test_a_batch_of_one_ghost_is_batch_norm_and_many_are_not():
    x = normal(12, 5)
    torch.testing.assert_close(GhostBatchNorm1d(5, 12).double()(x), nn.BatchNorm1d(5).double()(x), rtol=0, atol=0)
    y = GhostBatchNorm1d(5, 4, eps=0.0 + 1e-30).double()(x)
    np.testing.assert_allclose(y.detach().reshape(3, 4, 5).mean(1), 0, atol=1e-14)
    np.testing.assert_allclose(y.detach().reshape(3, 4, 5).var(1, correction=0), 1, rtol=1e-12)


def test_samples_matter_to_their_own_ghost_only():
    norm, x = GhostBatchNorm1d(5, 4).double(), normal(12, 5)
    changed = x.clone()
    changed[5] += 1
    same = (norm(x) == norm(changed)).all(1)
    assert same.tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_running_mean_in_closed_form():
    norm = GhostBatchNorm1d(1, 2, momentum=0.25).double()
    norm(torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.float64))
    assert norm.running_mean.item() == pytest.approx(0.75 * (0.25 * 2) + 0.25 * 6)
    assert norm.running_var.item() == pytest.approx(0.75 * (0.75 + 0.25 * 2) + 0.25 * 2)  # unbiased variances 2, 2
    assert norm.num_batches_tracked.item() == 2


def test_a_last_ghost_without_a_variance_is_refused():
    with pytest.raises(ValueError, match="batch of 5 leaves a ghost of 1"):
        GhostBatchNorm1d(3, 4)(torch.zeros(5, 3))
    assert GhostBatchNorm1d(3, 4)(torch.zeros(5, 3, 2)).shape == (5, 3, 2)  # two values a channel: fine
    assert GhostBatchNorm1d(3, 4).eval()(torch.zeros(5, 3)).shape == (5, 3)


def test_refused_ghosts():
    with pytest.raises(ValueError, match="ghost_size must be at least 2"):
        GhostBatchNorm1d(3, 1)
    for shape in ((2, 3, 2, 2), (3,)):
        with pytest.raises(ValueError, match="2D or 3D"):
            GhostBatchNorm1d(3, 2)(torch.zeros(shape))
    assert "ghost_size=4" in repr(GhostBatchNorm2d(3, 4))


# ---- the two laws ---------------------------------------------------------------------------------------------------

T = np.unique(np.geomspace(1, 1000, 40).round())


def test_an_exact_logarithm():
    fit = log_time_fit(T, 2 + 3 * np.log(T))
    assert (fit.slope, fit.start) == pytest.approx((3, 2)) and fit.misfit < 1e-12
    assert fit.power_misfit > 0.05


@pytest.mark.parametrize("exponent", [0.05, 0.5, 1.0, 1.7])
def test_an_exact_power(exponent):
    fit = log_time_fit(T, 0.3 * T**exponent)
    assert (fit.exponent, fit.scale) == pytest.approx((exponent, 0.3), rel=1e-3)
    assert fit.power_misfit < 1e-4 and fit.misfit > fit.power_misfit


def test_both_fits_are_least_squares():
    optimize = pytest.importorskip("scipy.optimize")
    y = 2 * T**0.4 + 0.5 * np.sin(T)
    fit = log_time_fit(T, y)
    slope, start = np.polyfit(np.log(T), y, 1)
    assert (fit.slope, fit.start) == pytest.approx((slope, start), rel=1e-9)
    assert fit.misfit == pytest.approx(np.sqrt(np.mean((y - start - slope * np.log(T)) ** 2)) / y.std(), rel=1e-9)
    (scale, exponent), _ = optimize.curve_fit(lambda t, c, p: c * t**p, T, y, p0=(1, 0.5))
    assert (fit.scale, fit.exponent) == pytest.approx((scale, exponent), rel=1e-3)
    assert fit.power_misfit == pytest.approx(np.sqrt(np.mean((y - scale * T**exponent) ** 2)) / y.std(), rel=1e-4)


@pytest.mark.parametrize(
    ("t", "distance", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "n >= 4"),
        ([0, 1, 2, 3], [1, 2, 3, 4], "t > 0"),
        ([1, 2, 3, 4], [1, 2, 3], "shapes"),
        ([1, 2, 3, 4], [1, 2, 3, np.nan], "finite"),
        ([1, 2, 3, 4], [1, 1, 1, 1], "vary"),
        ([2, 2, 2, 2], [1, 2, 3, 4], "vary"),
    ],
)
def test_refused_curves(t, distance, message):
    with pytest.raises(ValueError, match=message):
        log_time_fit(t, distance)


# ---- training -------------------------------------------------------------------------------------------------------


def test_batch_lr():
    assert batch_lr(0.1, 4096, 256) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="batch"):
        batch_lr(0.1, 0, 4)


def test_a_training_repeats_and_learns():
    run, again = (train(100, updates=120, lr=0.05, seed=3) for _ in range(2))
    np.testing.assert_array_equal(run.distance, again.distance)
    assert (run.test_error, run.loss) == (again.test_error, again.loss)
    assert run.test_error < 0.1 and run.loss < 0.3  # guessing: 0.9 and 2.3
    assert run.t[0] == 1 and run.t[-1] == 120 and run.drop == 72
    assert train(100, updates=120, lr=0.05, seed=4).test_error != run.test_error


def test_the_first_step_has_the_length_of_lr_times_the_gradient():
    small, large = (train(100, updates=1, lr=lr, drops=()) for lr in (1e-3, 3e-3))
    assert large.distance[0] == pytest.approx(3 * small.distance[0], rel=1e-3)  # float32 weights of size 0.2
    assert 0 < small.distance[0] <= 1e-3 * 5 * (1 + 1e-3)  # the clip


def test_gradients_are_clipped_at_five(monkeypatch):
    norms, clip = [], nn.utils.clip_grad_norm_

    def record(parameters, bound):
        parameters = list(parameters)
        clip(parameters, bound)
        norms.append(torch.sqrt(sum(p.grad.square().sum() for p in parameters)).item())

    monkeypatch.setattr(longer, "_net", lambda width, ghost, seed: nn.Linear(64, 10))
    monkeypatch.setattr(longer.nn.functional, "cross_entropy", lambda z, y: 100 * z.square().mean())
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", record)
    run = train(100, updates=1, lr=0.01, drops=())
    assert norms == pytest.approx([5], rel=1e-4) and run.distance[0] == pytest.approx(0.05, rel=1e-3)


def test_a_cut_slows_the_walk():
    kept, cut = (train(100, updates=60, lr=0.05, drops=d) for d in ((), (0.5,)))
    before = kept.t <= 30
    np.testing.assert_array_equal(kept.distance[before], cut.distance[before])
    assert np.abs(np.diff(cut.distance[~before])).sum() < np.abs(np.diff(kept.distance[~before])).sum() / 2
    assert kept.drop == 60


def test_noise_draws_labels_anew():
    clean, noisy = longer._labels(0, 0.0), longer._labels(0, 0.5)
    # nine in ten of the new labels differ; five binomial standard deviations of 1200
    assert (clean != noisy).double().mean().item() == pytest.approx(0.45, abs=5 * math.sqrt(0.25 / 1200))


def test_the_epochs_hold_every_image_once():
    batches = longer._batches(0, 12, 5)
    first, second, third = (next(batches) for _ in range(3))
    assert len({*first.tolist(), *second.tolist()}) == 10
    assert {*third.tolist()} != {*first.tolist()}


def test_ghosts_change_the_training():
    assert train(100, updates=5, ghost=100).loss == train(100, updates=5).loss
    assert train(100, updates=5, ghost=20).loss != train(100, updates=5).loss


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (1, {}, "batch"),
        (1201, {}, "1200"),
        (100, {"lr": 0.0}, "lr"),
        (100, {"noise": 2.0}, "noise"),
        (100, {"updates": 0}, "updates"),
    ],
)
def test_refused_trainings(batch, options, message):
    with pytest.raises(ValueError, match=message):
        train(batch, **({"updates": 1} | options))


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="smaller lr"):
        train(100, updates=60, lr=1e38)
