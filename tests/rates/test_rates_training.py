"""Training on digits against identities that hold step by step in float64: growth, turns, copied schedules, held norms."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from normkit.files import digits  # noqa: E402
from normkit.rates import training  # noqa: E402
from normkit.rates.groups import scale_invariant_groups  # noqa: E402

NAMES = ("hidden.0.weight", "hidden.1.weight")
SMALL = {"steps": 6, "width": 16, "batch": 32, "every": 1}
DOUBLE = {**SMALL, "dtype": torch.float64}
RATE = {"sgd": 0.5, "momentum": 0.1, "sgdp": 0.1, "adam": 0.01, "adamp": 0.01}


def column(reports, key, name):
    return np.array([report[key][name] for report in reports])


def numbers(reports):
    """All that the reports say, as exact numbers."""
    kinds = ("norms", "elr", "angle", "gradient")
    return [(r["step"], r["loss"], r["accuracy"], *(str(r[k]) for k in kinds)) for r in reports]


# ---- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_growth_identity_of_sgd(norm, weight_decay):
    """The gradient is orthogonal to the weight: |w'|^2 = (1 - lr wd)^2 |w|^2 + lr^2 |g|^2, and the turn is its angle."""
    lr = 0.5
    reports = list(training.train(norm=norm, lr=lr, weight_decay=weight_decay, **DOUBLE))
    for name in NAMES:
        norms, unit_gradient = column(reports, "norms", name), column(reports, "gradient", name)
        kept, side = (1 - lr * weight_decay) * norms[:-1], lr * unit_gradient[:-1] / norms[:-1]
        assert norms[1:] == pytest.approx(np.hypot(kept, side), rel=1e-12)
        assert column(reports, "angle", name)[1:] == pytest.approx(np.arctan2(side, kept), rel=1e-9)
        assert (side / norms[:-1]).max() > 0.01  # the steps are large enough to be seen


def test_without_a_norm_the_identity_breaks():
    reports = list(training.train(norm="none", lr=0.1, **DOUBLE))
    norms, unit_gradient = (column(reports, key, NAMES[0]) for key in ("norms", "gradient"))
    assert np.abs(norms[1:] / np.hypot(norms[:-1], 0.1 * unit_gradient[:-1] / norms[:-1]) - 1).max() > 1e-4


def test_momentum_grows_more_than_the_identity_and_its_projection_does_not():
    """Heavy ball: |w'|^2 exceeds |w|^2 + lr^2 |p|^2 for a buffer that leans outward; SGDP's step is tangent."""
    held = list(training.train(optimizer="sgdp", lr=0.1, **DOUBLE))
    free = list(training.train(optimizer="momentum", lr=0.1, **DOUBLE))
    for name in NAMES:
        for reports, tangent in ((held, True), (free, False)):
            norms, angle = column(reports, "norms", name), column(reports, "angle", name)[1:]
            gap = np.abs(norms[:-1] / norms[1:] - np.cos(angle))
            # a tangent step's cosine is the ratio of the norms; SGDP divides by |w| + 1e-8
            assert gap.max() < 1e-9 if tangent else gap.max() > 1e-4


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_projection_holds_the_norms(optimizer):
    options = {"optimizer": optimizer, "lr": RATE[optimizer], **SMALL}
    free, held = (list(training.train(project=project, **options)) for project in (False, True))
    for name in NAMES:
        assert column(held, "norms", name) == pytest.approx(held[0]["norms"][name], rel=1e-6)  # float32
        assert np.ptp(column(free, "norms", name)) > 1e-3
        assert np.ptp(column(held, "elr", name)) < 1e-5 * held[0]["elr"][name]


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
def test_one_projection_changes_no_loss(norm):
    """The first gradients are equal, and rescaling the weights after the step cannot be seen in the next loss."""
    runs = [training.train(norm=norm, project=p, gains="free", lr=0.5, **DOUBLE) for p in (False, True)]
    free, held = ([report["loss"] for report in run] for run in runs)
    assert held[:2] == pytest.approx(free[:2], rel=1e-12)
    assert abs(held[2] - free[2]) > 1e-9  # and yet the step after it is another one


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_copied_schedule(norm, optimizer):
    """SGD with the copied effective rates is the plain run to rounding; Adam, whose averages have a memory, is not."""
    options = {"optimizer": optimizer, "lr": RATE[optimizer], "steps": 100, "width": 16, "norm": norm}
    plain, copied = training.copied_schedule(**options)
    gap = np.abs(plain - copied)
    assert gap[:2].max() < 1e-12
    assert plain.shape == copied.shape == (101,)
    # rounding of 1e-16 a step; it grows with the path's own sensitivity, which a factor of 10^4 in 100 steps covers
    assert gap.max() < 1e-11 if optimizer == "sgd" else gap.max() > 1e-6
    held = training.train(
        project=True, gains="free", every=1, dtype=torch.float64, **options
    )  # without the schedule it is another run
    assert np.abs(plain - [report["loss"] for report in held]).max() > 1e-4


def test_the_copied_rates_are_those_of_the_plain_run():
    for optimizer in ("sgd", "adam"):
        options = {"optimizer": optimizer, "lr": RATE[optimizer], **DOUBLE}
        plain, copied = training.train(**options), training.train(schedule="copied", project=True, **options)
        plain, copied = list(plain), list(copied)
        for name in NAMES:
            wanted = column(plain, "elr", name)
            held = column(copied, "elr", name)
            assert held == pytest.approx(wanted, rel=1e-12)
            assert np.ptp(wanted) > 1e-3 * wanted[0]


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_effective_rate_of_a_linear_schedule(optimizer):
    lr, power = RATE[optimizer], 1 if optimizer.startswith("adam") else 2
    reports = list(training.train(optimizer=optimizer, lr=lr, schedule="linear", **DOUBLE))
    left = 1 - np.arange(7) / 6
    for name in NAMES:
        norms = column(reports, "norms", name)
        assert column(reports, "elr", name) == pytest.approx(lr * left / norms**power, rel=1e-12, abs=1e-15)


def test_gains_go_to_the_length_of_their_vectors_under_projection():
    *_, last = training.train(optimizer="adam", lr=0.05, project=True, **SMALL)
    *_, free = training.train(optimizer="adam", lr=0.05, project=True, gains="free", **SMALL)
    for norm, other in zip(last["model"].norms, free["model"].norms, strict=True):
        assert math.hypot(norm.weight.norm().item(), norm.bias.norm().item()) == pytest.approx(4, rel=1e-6)  # sqrt(16)
        assert abs(math.hypot(other.weight.norm().item(), other.bias.norm().item()) - 4) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_decay_takes_its_share_of_matrices_and_of_nothing_else(optimizer):
    """Two first steps with one gradient: they differ by lr wd w, which SGD adds to the gradient and AdamW takes itself."""
    lr, decay = 0.1, 0.5
    start = dict(training.Net(width=16, dtype=torch.float64).named_parameters())
    after = []
    for weight_decay in (0.0, decay):
        model = training.Net(width=16, dtype=torch.float64)
        learner = training.Learner(model, optimizer, lr, weight_decay)
        x, y, *_ = training.data(torch.float64)
        learner.step(torch.nn.functional.cross_entropy(model(x[:64]), y[:64]))
        after.append(dict(model.named_parameters()))
    for name, w in start.items():
        taken = after[0][name] - after[1][name]
        wanted = lr * decay * w if w.ndim > 1 else torch.zeros_like(w)
        assert (taken - wanted).abs().max() < 1e-14
        assert (after[0][name] - w).abs().max() > 1e-6


def test_head_and_gains_may_have_a_rate_of_their_own():
    model = training.Net(width=16)
    learner = training.Learner(model, "sgd", 0.5, head_lr=1e-3)
    learner.set_lr(0.25)
    rates = {id(p): group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert rates[id(p)] == (0.25 if name in NAMES else 1e-3)
    assert len(rates) == len(list(model.parameters()))


# ---- nets, data, reports --------------------------------------------------------------------------------------------


def test_the_hidden_matrices_are_scale_invariant_where_there_is_a_norm():
    x = training.data(torch.float64)[0][:32]
    for norm in training.NORMS:
        model = training.Net(norm, width=8, dtype=torch.float64)
        found = {name for group in scale_invariant_groups(model, x) if len(group.names) == 1 for name in group.names}
        assert (set(NAMES) <= found) == (norm != "none")


def test_same_weights_whatever_the_norm_the_depth_and_the_type():
    reference = training.Net("none", layers=3, dtype=torch.float64)
    for norm in training.NORMS:
        net = training.Net(norm, layers=2)
        for layer, linear in enumerate(net.hidden):
            assert torch.equal(linear.weight, reference.hidden[layer].weight.float())
            assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=5 / math.sqrt(2 * 4096))
            assert (linear.bias is None) == (norm != "none")
        assert torch.equal(net.head.weight, reference.head.weight.float())
    assert not torch.equal(training.Net(seed=1).head.weight, training.Net(seed=0).head.weight)


def test_all_arms_see_the_same_batches():
    """With a rate too small to change a bit of the loss, the losses are those of the first weights."""
    runs = [
        [r["loss"] for r in training.train(optimizer=o, project=p, lr=1e-14, **DOUBLE)]
        for o in training.OPTIMIZERS
        for p in (False, True)
    ]
    assert runs[0] == pytest.approx(runs[-1], rel=1e-9)
    assert all(run == pytest.approx(runs[0], rel=1e-9) for run in runs)
    assert len(set(runs[0])) == 7


def test_data_is_split_without_loss():
    x, y, test_x, test_y = training.data(torch.float64)
    images, labels = digits()
    assert (len(x), len(test_x)) == (1200, 597)
    both = torch.cat([x, test_x])
    assert both.mean().item() == pytest.approx(0, abs=1e-12)
    assert both.std(correction=0).item() == pytest.approx(1, rel=1e-12)
    rows = {(*row, label) for row, label in zip(images.tolist(), labels.tolist(), strict=True)}
    mine = (both * images.std() + images.mean()).mul(16).round().div(16)
    assert {(*r, label) for r, label in zip(mine.tolist(), [*y.tolist(), *test_y.tolist()], strict=True)} == rows


def test_label_noise_redraws_that_share():
    clean, noisy = (list(training.batches(99, 64, noise, 0, torch.float32)) for noise in (0.0, 0.4))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(clean, noisy, strict=True))
    wrong = torch.cat([a[1] != b[1] for a, b in zip(clean, noisy, strict=True)]).double().mean().item()
    # a label drawn anew is the right one in a tenth of the cases; 5 standard errors of 6400
    assert wrong == pytest.approx(0.36, abs=5 * math.sqrt(0.36 * 0.64 / 6400))


@pytest.mark.parametrize("norm", training.NORMS)
def test_same_seed_same_run_and_looking_often_changes_nothing(norm):
    torch.manual_seed(1)
    options = {"norm": norm, "optimizer": "adam", "lr": 0.01, "project": True, **SMALL}
    first = list(training.train(seed=3, **options))
    torch.manual_seed(2)
    again, other = (list(training.train(seed=seed, **options)) for seed in (3, 4))
    seldom = list(training.train(seed=3, **{**options, "every": 4}))
    assert numbers(first) == numbers(again)
    assert numbers(seldom) == [numbers(first)[i] for i in (0, 4, 6)]
    assert all(a["loss"] != b["loss"] for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("norm", training.NORMS)
def test_last_report_has_the_model_and_its_accuracy(norm):
    """Batch norm's accuracy is that of its running statistics, which looking must not change."""
    *reports, last = training.train(norm=norm, lr=0.1, **{**SMALL, "steps": 60, "every": 20})
    assert [r["step"] for r in reports] == [0, 20, 40]
    assert not any(r["done"] or "model" in r for r in reports)
    assert last["done"]
    assert not last["diverged"]
    _, _, x, y = training.data()
    right = np.mean(last["model"].eval()(x).detach().numpy().argmax(1) == y.numpy())
    assert last["accuracy"] == pytest.approx(right, abs=1e-12)
    assert right > 0.7  # it learns: chance is 0.1
    assert all(math.isnan(angle) for angle in reports[0]["angle"].values())


def test_turn_of_small_and_large_angles():
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle in (0.0, 1e-9, 1e-3, 1.0, math.pi):
        v = 3 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert training.turn(u, v) == pytest.approx(angle, rel=1e-6, abs=1e-15)


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_divergence_is_reported():
    *_, last = training.train(norm="none", lr=1e30, **SMALL)
    assert last["diverged"]
    assert last["done"]
    assert 0 < last["step"] < 6
    assert not math.isfinite(last["loss"])
    assert math.isnan(last["accuracy"])
    assert last["norms"] is last["elr"] is last["angle"] is last["gradient"] is None


def test_a_run_that_diverges_cannot_be_copied():
    reports = training.train(lr=1e38, schedule="copied", project=True, **SMALL)
    with pytest.raises(ValueError, match=r"the run to copy diverged at step \d: lower lr, which is 1e\+38"):
        next(reports)


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"norm": "layer"}, ValueError, "layernorm, batchnorm, none"),
        ({"optimizer": "rmsprop"}, ValueError, "sgd, momentum, sgdp, adam, adamp"),
        ({"schedule": "cosine"}, ValueError, "constant, linear, copied"),
        ({"schedule": "copied"}, ValueError, "project=True and a norm"),
        ({"schedule": "copied", "project": True, "norm": "none"}, ValueError, "project=True and a norm"),
        ({"gains": "drop"}, ValueError, "gains"),
        ({"lr": 0.0}, ValueError, "lr must be a finite positive number"),
        ({"lr": math.nan}, ValueError, "lr must be a finite positive number"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be a finite non-negative number"),
        ({"label_noise": 1.5}, ValueError, "from 0 to 1, got 1.5"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"every": 2.5}, TypeError, "every must be an integer"),
        ({"layers": 0}, ValueError, "layers must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer"),
    ],
)
def test_impossible_arguments_are_refused_at_the_call(options, error, rule):
    with pytest.raises(error, match=rule):
        training.train(**options)
