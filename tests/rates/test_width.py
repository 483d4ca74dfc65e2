"""Groups by width counted by hand, exponents on exact powers, the law of AdamW on pure noise, and one small training."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from normkit.rates import width as width_module  # noqa: E402
from normkit.rates.width import (  # noqa: E402
    DECAY_POWER,
    Sublayer,
    decay_power,
    layerwise_groups,
    spectrum,
    steady_state,
    width_exponent,
)
from normkit.rng import stream  # noqa: E402


class Model(nn.Module):
    """An embedding, a conv, two linear layers that share a weight, a LayerNorm, a head."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False))
        self.inner[2].weight = self.inner[0].weight
        self.head = nn.Linear(8, 3)


def groups(model=None, **options):
    settings = {"lr": 0.01, "weight_decay": 0.1, "width": 128, "base_width": 32} | options
    return {g["name"]: g for g in layerwise_groups(model or Model(), **settings)}


def names(model, group):
    known = {id(p): name for name, p in model.named_parameters()}
    return [known[id(p)] for p in group["params"]]


def test_who_is_in_which_group():
    model = Model()
    found = groups(model, vector_like=("head",))
    assert names(model, found["matrices"]) == ["conv.weight", "inner.0.weight"]
    assert sorted(names(model, found["vectors"])) == sorted(
        ["tokens.weight", "conv.bias", "inner.0.bias", "inner.1.weight", "inner.1.bias", "head.weight", "head.bias"]
    )
    by_name = groups(model, vector_like="head.weight")
    assert names(model, by_name["matrices"]) == names(model, found["matrices"])
    assert "head.weight" in names(model, groups(model)["matrices"])
    shared = groups(model, vector_like="inner.2.weight")  # its other name
    assert names(model, shared["matrices"]) == ["conv.weight", "head.weight"]


@pytest.mark.parametrize(("rule", "decay"), [("constant", 0.1), ("sqrt", 0.2), ("linear", 0.4)])
def test_four_times_the_width(rule, decay):
    found = groups(rule=rule, vector_lr=0.003)
    assert found["matrices"]["lr"] == pytest.approx(0.0025) and found["matrices"]["weight_decay"] == pytest.approx(
        decay
    )
    assert found["vectors"]["lr"] == 0.003 and found["vectors"]["weight_decay"] == 0


@pytest.mark.parametrize("rule", DECAY_POWER)
def test_at_the_base_width_every_rule_is_the_tuned_setting(rule):
    found = groups(width=32, rule=rule)
    assert (found["matrices"]["lr"], found["matrices"]["weight_decay"]) == (0.01, 0.1)
    assert found["vectors"]["lr"] == 0.01


def test_the_paper_rule_undoes_its_growth():
    # sigma_1 ~ sqrt(lr/decay) width^0.75: the same at every width, and only for this rule
    def top(width, rule):
        g = groups(width=width, rule=rule)["matrices"]
        return math.sqrt(g["lr"] / g["weight_decay"]) * width**0.75

    assert top(2048, "sqrt") == pytest.approx(top(32, "sqrt"))
    assert top(2048, "constant") > 2 * top(32, "constant") and top(2048, "linear") < top(32, "linear") / 2
    for alpha in (0.5, 0.75, 1.0):
        ratio = 64
        assert math.sqrt(ratio**-1 / ratio ** decay_power(alpha)) * ratio**alpha == pytest.approx(1)


def test_adamw_takes_them_and_frozen_parameters_stay_out():
    model = Model()
    model.head.requires_grad_(False)
    found = layerwise_groups(model, lr=0.01, weight_decay=0.1, width=64, base_width=32)
    optimizer = torch.optim.AdamW(found)
    assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.01]
    assert model.head.weight not in {p for g in optimizer.param_groups for p in g["params"]}
    only = layerwise_groups(nn.LayerNorm(4), lr=0.01, weight_decay=0.1, width=64, base_width=32)
    assert [g["name"] for g in only] == ["vectors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "cube"}, "choose from constant, sqrt, linear"),
        ({"lr": 0.0}, "lr"),
        ({"vector_lr": -1.0}, "vector_lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"base_width": 0}, "base_width"),
        ({"vector_like": ("haed",)}, "did you mean 'head'"),
    ],
)
def test_refused_groups(options, message):
    with pytest.raises(ValueError, match=message):
        groups(**options)


def test_a_model_that_does_not_learn():
    with pytest.raises(ValueError, match="no parameter"):
        groups(Model().requires_grad_(False))


def test_exponents():
    widths = np.array([32, 64, 128])
    assert width_exponent(widths, 3 * widths**0.75) == pytest.approx(0.75)
    noisy = [1.0, 5.0, 4.0]
    assert width_exponent(widths, noisy) == pytest.approx(np.polyfit(np.log(widths), np.log(noisy), 1)[0])
    for bad in ([1.0, 2.0], [1.0, -1.0, 2.0], [1.0, np.nan, 2.0]):
        with pytest.raises(ValueError, match="widths and values"):
            width_exponent(widths, bad)
    with pytest.raises(ValueError, match="two or more widths"):
        width_exponent([32, 32], [1.0, 2.0])


# ---- the law --------------------------------------------------------------------------------------------------------


def test_spectrum_of_known_matrices():
    found = spectrum(2 * np.eye(4), lr=0.04, weight_decay=0.01)
    assert (found.top, found.rms) == pytest.approx((1.0, 0.5)) and found.shape.tolist() == [1, 1, 1, 1]
    one = spectrum(torch.ones(3, 5), lr=1.0, weight_decay=1.0)  # rank one: sigma_1 = sqrt(mn) rms
    assert one.top == pytest.approx(math.sqrt(15)) and one.rms == pytest.approx(1) and one.shape[1] < 1e-12


@pytest.mark.parametrize(("lr", "decay"), [(0.01, 0.5), (0.02, 0.25)])
def test_adamw_on_pure_noise_settles_at_the_law(lr, decay):
    n = 64
    w = nn.Parameter(torch.zeros(n, n))
    adam = torch.optim.AdamW([w], lr=lr, weight_decay=decay, betas=(0.0, 0.999))
    draws = torch.Generator().manual_seed(int(stream(0, "noise").integers(2**63)))
    for _ in range(int(4 / (lr * decay))):
        w.grad = torch.randn(n, n, generator=draws)
        adam.step()
    found = spectrum(w, lr=lr, weight_decay=decay)
    # rms: 4096 entries, spread 1/sqrt(2 * 4096); Adam's bounded early steps and 4 time constants leave another percent
    assert found.rms == pytest.approx(math.sqrt(0.5), rel=0.05)
    # independent entries: sigma_1 = 2 sqrt(n) rms, reached from below by a fluctuation of order n^(-2/3)
    assert found.top == pytest.approx(2 * math.sqrt(n) * found.rms, rel=0.1)


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        (np.ones(3), {}, "matrix"),
        (np.zeros((2, 2)), {}, "nonzero"),
        (np.full((2, 2), np.inf), {}, "finite"),
        (np.ones((2, 2)), {"lr": 0.0}, "lr"),
        (np.ones((2, 2)), {"weight_decay": 0.0}, "weight_decay"),
    ],
)
def test_refused_spectra(w, options, message):
    with pytest.raises(ValueError, match=message):
        spectrum(w, **({"lr": 0.1, "weight_decay": 0.1} | options))


# ---- the toy --------------------------------------------------------------------------------------------------------


def test_sublayer_is_its_formula():
    model = Sublayer(6, seed=1).double()
    e, a, b, v = (m.weight.detach().numpy() for m in (model.embed, model.w1, model.w2, model.head))
    images = stream(0, "images").normal(size=(5, 64))

    def norm(x):
        return x / np.sqrt((x**2).mean(1, keepdims=True) + np.finfo(float).eps)

    x = images @ e.T
    x = x + np.maximum(norm(x) @ a.T, 0) @ b.T
    expected = norm(x) @ v.T / math.sqrt(6)
    np.testing.assert_allclose(model(torch.from_numpy(images)).detach(), expected, rtol=1e-9, atol=1e-12)


def test_a_steady_state_repeats_learns_and_obeys_the_law():
    short = {"lr": 0.04, "weight_decay": 1.0}
    one, two = steady_state(16, **short), steady_state(16, **short)
    assert one == two and one != steady_state(16, **short, seed=1)
    assert one.width == 16 and one.loss < 2.0  # guessing: 2.3
    # the decay bounds every entry by lr/(lr decay) = 1/decay, the law says sqrt(lr/(2 decay)) = 0.14
    assert 0.5 < one.rms / math.sqrt(0.04 / 2) < 2
    assert one.rms * 4 <= one.top <= one.rms * 16  # sqrt(n) rms <= sigma_1 <= n rms


def test_the_averages_are_over_the_last_tenth(monkeypatch):
    seen = []

    def measure(model, x):
        seen.append(model.w1.weight.detach().clone())
        return float(len(seen)), 1.0, 1.0

    monkeypatch.setattr(width_module, "_measure", measure)
    found = steady_state(
        16, lr=0.04, weight_decay=1.0, base_width=16, time_constants=8.0
    )  # 200 steps, so 20 at the end
    assert len(seen) == 2 and found.top == 1.5 and not torch.equal(*seen)


def test_the_decay_rules_part_only_away_from_the_base_width():
    options = {"lr": 0.04, "weight_decay": 1.0, "time_constants": 1.0}
    assert steady_state(16, **options, rule="linear", base_width=16) == steady_state(16, **options, base_width=16)
    wide = [steady_state(32, **options, rule=rule, base_width=16).rms for rule in DECAY_POWER]
    assert wide[0] > wide[1] > wide[2]


@pytest.mark.parametrize(
    "options", [{"width": 1}, {"noise": 1.5}, {"weight_decay": 0.0}, {"time_constants": 0.0}, {"rule": "x"}]
)
def test_refused_steady_states(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        steady_state(**({"width": 16} | options))


@pytest.mark.parametrize("alpha", [math.nan, math.inf, "0.5", None])
def test_the_decay_power_wants_a_finite_exponent(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        decay_power(alpha)
