"""WeightsLab: every control, measured matrices as recorded, the laws of random matrices, and one's own model."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import normkit
from normkit import Lab, Profile, WeightsLab
from normkit.rates.weights_lab import FLOOR, KINDS, MODELS
from normkit.real_lab import stored
from normkit.rng import stream

STORED = {"peri": "weights peri", "pre": "weights pre", "MiniLM": "MiniLM"}


def by_name(lab, quality="exact"):
    return {(c.label, c.axes): c for c in lab.curves(lab.run(quality))}


def record(name="w", shape=(4, 4), norm=2.0, radial=0.5, invariant="", **more):
    """What normkit.probe(weights=True) says of one weight."""
    return {"name": name, "shape": list(shape), "norm": norm, "gradient": 1.0, "radial": radial,
            "invariant": invariant, "with": [], "block": None, **more}  # fmt: skip


def own(*records):
    return Profile("mine", np.array([[1.0, 2.0]]), weights=list(records))


@pytest.mark.parametrize("settings", list(WeightsLab.grid()), ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_every_control_over_its_range(settings):
    lab = WeightsLab().set(**settings)
    for quality in ("coarse", "exact"):
        assert all((np.isfinite(t["y"]) & (t["y"] > 0)).all() for t in lab.picture(lab.run(quality))["data"])
    assert lab.describe() and lab.table()


# ---- what was measured


def kind(r):
    return {"joint": "only together", "": "not scale-invariant"}.get(r["invariant"], "scale-invariant")


@pytest.mark.parametrize("model", MODELS)
def test_the_dots_are_the_recorded_matrices(model):
    weights = [r for r in stored()[STORED[model]].weights if r["radial"] is not None]
    left = {(c.name, x): y for c in shown(model, 0) for x, y in zip(c.x, c.y, strict=True)}
    right = {(c.name, x): y for c in shown(model, 1) for x, y in zip(c.x, c.y, strict=True)}
    places = [(kind(r), i) for i, r in enumerate(weights, 1)]
    assert set(left) == set(right) == set(places) and len(left) == len(weights)
    for place, r in zip(places, weights, strict=True):
        assert left[place] == max(abs(r["radial"]), FLOOR) and right[place] == r["norm"]


def shown(model, axes, **settings):
    lab = WeightsLab(model=model, **settings)
    return [c for c in lab.curves(lab.run("coarse")) if c.axes == axes and c.kind == "real"]


def test_invariant_matrices_of_the_trained_peri_model_have_no_gradient_along_themselves():
    curves = by_name(WeightsLab(model="peri"), "coarse")
    invariant, other = (curves[f"{name} (real model)", 0].y for name in ("scale-invariant", "not scale-invariant"))
    assert len(invariant) == 36  # the first matrices of 12 blocks: queries, keys, values of six, gates of the MLPs
    assert invariant.max() < 1e-5 and np.median(other) > 1e-3  # rounding in float32; a cosine
    assert "only together (real model)" in {label for label, _ in curves}
    assert {label.removesuffix(" (real model)") for label, _ in curves if "real" in label} == set(KINDS)


@pytest.mark.parametrize(("steps", "power"), [("adam", 1), ("sgd", 2)])
def test_effective_learning_rates_are_lr_over_norm(steps, power):
    lab = {"right": "effective lr", "steps": steps, "lr": 2e-3}
    for norms, rates in zip(shown("pre", 1), shown("pre", 1, **lab), strict=True):
        np.testing.assert_allclose(rates.y, 2e-3 / norms.y**power, rtol=1e-12)
    plain, turned = by_name(WeightsLab()), by_name(WeightsLab(**lab))
    for label in ("random (theory)", "random (simulation)"):
        np.testing.assert_allclose(turned[label, 1].y, 2e-3 / plain[label, 1].y ** power, rtol=1e-12)
        np.testing.assert_array_equal(turned[label, 0].y, plain[label, 0].y)
    band, before = turned["random (simulation)", 1], plain["random (simulation)", 1]
    assert (band.lo <= band.y).all() and (band.y <= band.hi).all()
    np.testing.assert_allclose(band.lo, 2e-3 / before.hi**power, rtol=1e-12)
    assert WeightsLab(**lab).axes()[1].y == "effective learning rate"


# ---- random matrices


def test_the_laws_against_matrices_that_are_really_drawn():
    shapes = [(6, 5), (40, 10), (8, 3, 2)]  # a convolution has as many inputs as there are in one filter
    lab = WeightsLab(real=own(*(record(shape=s) for s in shapes)))
    result = lab.run()
    for i, shape in enumerate(shapes):
        n, draws = math.prod(shape), stream(7, "matrices", i)
        w, g = (draws.standard_normal((4000, n)) for _ in range(2))
        cosine = np.abs((w * g).sum(1)) / np.linalg.norm(w, axis=1) / np.linalg.norm(g, axis=1)
        norm = np.linalg.norm(w, axis=1) / math.sqrt(math.prod(shape[1:]))
        assert result["entries"][i] == n
        # 4000 and 2000 draws of a cosine that spreads by 0.76 of its mean: 0.02 of it is one standard error
        np.testing.assert_allclose(result["cosine"][0, i], cosine.mean(), rtol=0.08)
        np.testing.assert_allclose(result["cosine"][2, i], np.quantile(cosine, 0.95), rtol=0.08)
        np.testing.assert_allclose(result["norm"][:, i], [norm.mean(), *np.quantile(norm, [0.05, 0.95])], rtol=0.03)
        exact = math.exp(math.lgamma(n / 2) - math.lgamma((n + 1) / 2)) / math.sqrt(math.pi)
        assert result["cosine.theory"][i] == pytest.approx(exact, rel=0.5 / n)  # 1 / (4n) too low
        assert result["norm.theory"][i] == pytest.approx(math.sqrt(shape[0]))


def test_the_band_lies_around_the_line_for_every_stored_matrix():
    for fresh in ("1/√inputs", "0.02"):
        result = WeightsLab(model="MiniLM", fresh=fresh).run()
        for key in ("cosine", "norm"):
            mean, lo, hi = result[key]
            assert (lo < mean).all() and (mean < hi).all()
            np.testing.assert_allclose(mean, result[f"{key}.theory"], rtol=0.08)  # 2000 draws, as above
    np.testing.assert_allclose(result["norm.theory"], 0.02 * np.sqrt(result["entries"]))


def test_coarse_is_the_same_picture_with_fewer_draws():
    lab = WeightsLab()
    exact, coarse = lab.run(), lab.run("coarse")
    np.testing.assert_allclose(coarse["cosine"][0], exact["cosine"][0], rtol=0.3)  # 200 draws: 5 %, of 75 the worst
    np.testing.assert_array_equal(lab.run("coarse")["cosine"], coarse["cosine"])


# ---- one's own model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(functional.relu(self.up(self.norm(x))))


class Model(nn.Module):
    """Two Pre-LN blocks behind a normed matrix, whose size the norm undoes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 8, bias=False), nn.LayerNorm(8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def mine():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Model()
        batch = torch.randn(4, 5, 8)
    return model, normkit.probe(model, batch, loss=lambda y: y.square().sum(), name="mine", weights=True)


def test_ones_own_model_is_shown_instead(mine):
    model, profile = mine
    lab = WeightsLab(real=profile)
    curves = by_name(lab)
    names = [n for n, p in model.named_parameters() if p.ndim == 2]
    dots = [c for c in lab.curves(lab.run()) if c.kind == "real" and c.axes == 1]
    norms = {x: y for c in dots for x, y in zip(c.x, c.y, strict=True)}
    for i, name in enumerate(names, 1):
        assert norms[i] == pytest.approx(model.get_parameter(name).norm().item(), rel=1e-5)
    assert curves["scale-invariant (real model)", 0].x.tolist() == [1]
    assert curves["scale-invariant (real model)", 0].y[0] < 1e-4  # LayerNorm adds eps = 1e-5 to a variance near 1/3
    again = Lab.load(json.dumps(lab.set(right="effective lr", lr=0.004).state()))
    assert again.controls() == lab.controls() and again.real.name == "mine"
    assert [r["name"] for r in again.records()] == names
    np.testing.assert_array_equal(again.run()["cosine"], lab.run()["cosine"])


def test_the_state_of_a_stored_model_travels(tmp_path):
    lab = WeightsLab(model="pre", steps="sgd", fresh="0.02")
    for name in ("lab.html", "lab.json"):
        again = Lab.load(lab.save(tmp_path / name))
        assert type(again) is WeightsLab and again.controls() == lab.controls() and again.real is None


@pytest.mark.parametrize("weights", [None, [], [record(radial=None)]])
def test_a_profile_without_weights_says_how_to_get_them(weights):
    lab = WeightsLab(real=Profile("mine", np.array([[1.0, 2.0]]), weights=weights))
    for act in (lab.run, lab.describe, lambda: lab.run("coarse")):
        with pytest.raises(ValueError, match=r"mine holds no weights.*probe\(model, batch, weights=True\)"):
            act()
    with pytest.raises(TypeError, match="Profile"):
        WeightsLab(real={"weights": weights})


def test_a_weight_without_a_gradient_is_left_out():
    lab = WeightsLab(real=own(record("frozen", radial=None, norm=0.0), record("w", norm=3.0)))
    assert by_name(lab)["not scale-invariant (real model)", 1].y.tolist() == [3.0]
    assert len(lab.run()["entries"]) == 1


def test_an_exact_zero_has_a_place_on_the_log_axis():
    lab = WeightsLab(real=own(record(radial=0.0, invariant="layer"), record(radial=-0.25), record(radial=-1e-12)))
    curves = by_name(lab)
    assert curves["scale-invariant (real model)", 0].y.tolist() == [FLOOR]
    assert curves["not scale-invariant (real model)", 0].y.tolist() == [0.25, FLOOR]
    assert lab.axes()[0].log_y and "scale-invariant (real model) is 1e-09" in lab.describe()


def test_the_kinds_of_dots_are_the_recorded_kinds():
    kinds = {"layer": 1, "rows": 1, "blocks": 1, "joint": 2, "": 3}
    lab = WeightsLab(real=own(*(record(invariant=k) for k in kinds)))
    curves = by_name(lab)
    names = ("scale-invariant", "only together", "not scale-invariant")
    assert [curves[f"{n} (real model)", 0].x.tolist() for n in names] == [[1, 2, 3], [4], [5]]
    for n in names:
        assert curves[f"{n} (real model)", 0].style == curves[f"{n} (real model)", 1].style == KINDS[n]
    assert len({style.color for style in KINDS.values()}) == 3


def test_a_matrix_of_one_entry_lies_along_its_gradient():
    result = WeightsLab(real=own(record(shape=(1, 1), radial=1.0), record())).run()
    np.testing.assert_allclose(result["cosine"][:, 0], 1)
    assert (result["cosine"][:, 1] < 1).all()
