"""GhostsLab: every control, its dots by hand, its Taylor series against losses in float64, and its ends."""

import json
import math

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from normkit import GhostsLab, Lab
from normkit.attention import ghost_steps
from normkit.attention.ghosts_lab import LINE, MODELS, ORDERS, RATIOS


def by_name(lab, result=None):
    return {(c.label, c.axes): c for c in lab.curves(lab.run() if result is None else result)}


def losses(lab, directions, ratios):
    """Loss over the loss before, and accuracy, (directions, ratios), in float64, one weight after the other."""
    model, x, y = ghost_steps.toy(lab.model, seed=lab.seed, steps=lab.trained, temperature=lab.temperature)
    units = ghost_steps.unit_directions(model, x, y, along=lab.along, directions=directions, seed=lab.seed)
    model, x, found = model.double(), x.double(), []
    before = dict(model.named_parameters())
    start = F.cross_entropy(model(x), y).item()
    for unit in units:
        # the images' logits along this direction, by central differences
        ends = [functional_call(model, {k: w + h * unit[k] for k, w in before.items()}, (x,)) for h in (1e-4, -1e-4)]
        a = (ends[0] - ends[1]) / 2e-4
        radius = math.pi / (a.amax(-1) - a.amin(-1)).max().item()
        for r in ratios:
            z = functional_call(model, {k: w + r * radius * unit[k] for k, w in before.items()}, (x,))
            found.append((F.cross_entropy(z, y).item() / start, (z.argmax(-1) == y).double().mean().item()))
    return np.array(found).reshape(len(units), len(ratios), 2).transpose(2, 0, 1)


@pytest.mark.parametrize("settings", list(GhostsLab.grid()), ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_every_control_over_its_range(settings):
    lab = GhostsLab().set(**settings)
    for quality in ("coarse", "exact"):
        result = lab.run(quality)
        rows = 1 if lab.along == "gradient" else 12 if quality == "exact" else 3
        assert result["loss"].shape == result["accuracy"].shape == (rows, len(RATIOS))
        assert (result["loss"] > 0).all() and result["radius"].shape == (rows,)
        assert ((result["accuracy"] >= 0) & (result["accuracy"] <= 1)).all()
        picture = lab.picture(result)
        assert all(np.isfinite(t["y"]).all() and len(t["y"]) for t in picture["data"])
    text = lab.describe(result)
    assert "After the step: " in text and "Right answers: " in text and lab.table()
    assert ("series" in result) == (lab.model == "linear") == (f"Taylor, order {lab.order}" in text)


def test_the_models_are_those_of_the_toy():
    declared = GhostsLab.declared()
    assert declared["model"].values == tuple(MODELS) == tuple(ghost_steps.MODELS)
    assert declared["along"].values == tuple(ghost_steps.DIRECTIONS)
    assert declared["order"].values[-1] == ORDERS and 1 in RATIOS.round(12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("settings", [{}, {"along": "gradient"}, {"temperature": 4.0, "seed": 3}], ids=str)
def test_the_dots_are_losses_after_the_step(model, settings):
    lab = GhostsLab(model=model).set(**settings)
    result = lab.run("coarse")
    loss, accuracy = losses(lab, 3, RATIOS)
    # float32 losses, and for the ReLU net radii by differences in float64 where a unit may switch
    np.testing.assert_allclose(result["loss"], loss, rtol=2e-4)
    np.testing.assert_allclose(result["accuracy"], accuracy, atol=2 / 600)  # one image on the edge, at most two
    dots = by_name(lab, result)[f"{model} (real model)", 0]
    np.testing.assert_array_equal(dots.x, RATIOS)
    np.testing.assert_allclose(dots.y, loss.mean(0), rtol=2e-4)
    np.testing.assert_allclose([dots.lo, dots.hi], [loss.min(0), loss.max(0)], rtol=2e-4)
    right = by_name(lab, result)[f"{model} (real model)", 1]
    np.testing.assert_allclose(right.y, accuracy.mean(0), atol=2 / 600)


# ---- the series


@pytest.mark.parametrize(("along", "temperature"), [("random", 1.0), ("gradient", 1.0), ("random", 0.25)])
def test_the_series_converges_to_the_loss_within_the_radius(along, temperature):
    within = LINE[LINE < 0.9][::12]
    lab = GhostsLab(along=along, temperature=temperature, order=1)
    want = losses(lab, 3, within)[0].mean(0)
    errors = []
    for order in (1, 2, 4, 8, 16, 24):
        series = lab.set(order=order).run("coarse")["series"]
        errors.append(np.abs(series[LINE < 0.9][::12] / want - 1))
    errors = np.array(errors)
    assert (errors[-1] < 1e-6 + within**25).all()  # what is left shrinks as r to the power of the next order
    assert (errors[0] > 1e-5).any() and (errors[0, within < 0.2] < 0.02).all()
    assert (errors[-1] <= errors[0]).all() and errors[3].max() < 0.3 * errors[1].max()


def test_the_series_is_the_taylor_polynomial_of_autograd():
    """Of order 3, by three derivatives of the loss at the start of the step."""
    lab = GhostsLab(order=3)
    model, x, y = ghost_steps.toy("linear", seed=0, steps=30)
    model, x = model.double(), x.double()
    weights = dict(model.named_parameters())
    units = ghost_steps.unit_directions(model, x, y, directions=3, seed=0)
    polynomials = []
    for unit in units:
        a = x @ unit["weight"].double().T + unit["bias"].double()
        radius = math.pi / (a.amax(-1) - a.amin(-1)).max()
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        f = F.cross_entropy(functional_call(model, {k: w + t * radius * unit[k] for k, w in weights.items()}, (x,)), y)
        start, value, c = f.item(), f, [1.0]
        for n in (1, 2, 3):
            (value,) = torch.autograd.grad(value, t, create_graph=True)
            c.append(value.item() / math.factorial(n) / start)
        polynomials.append(np.polynomial.Polynomial(c)(LINE))
    np.testing.assert_allclose(lab.run("coarse")["series"], np.mean(polynomials, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quality", ["coarse", "exact"])
def test_line_and_dots_are_of_the_same_steps(quality):
    result = GhostsLab(order=ORDERS).run(quality)
    inside = RATIOS < 0.9
    at = np.interp(np.log(RATIOS[inside]), np.log(LINE), result["series"])
    # 120 points over a factor of 128: straight between them to (ln 128 / 119)^2 / 8 = 2e-4 of the curvature, about 1
    np.testing.assert_allclose(at, result["loss"].mean(0)[inside], rtol=3e-4)


def test_the_series_breaks_beyond_the_radius_and_more_orders_do_not_help():
    far = np.searchsorted(LINE, 4.0)
    off = []
    for order in (4, 12, 24):
        lab = GhostsLab(order=order)
        result = lab.run()
        off.append(abs(result["series"][far] / np.interp(LINE[far], RATIOS, result["loss"].mean(0)) - 1))
        line = by_name(lab, result)[f"Taylor, order {order} (theory)", 0]
        np.testing.assert_array_equal(line.x, LINE[: len(line.x)])  # drawn until it leaves the picture
        assert 1 < line.x[-1] <= 8
    assert off[0] < off[1] < off[2] and off[2] > 1e3


def test_only_the_linear_model_has_a_series():
    assert not any("Taylor" in label for label, _ in by_name(GhostsLab(model="mlp")))
    assert ("Taylor, order 7 (theory)", 0) in by_name(GhostsLab(order=7))


# ---- the ends


def test_the_range_over_directions_and_what_was_before():
    lab = GhostsLab()
    coarse, exact = lab.run("coarse"), lab.run()
    np.testing.assert_allclose(coarse["loss"], exact["loss"][:3], rtol=1e-5)  # float32, batches of another size
    model, x, y = ghost_steps.toy("linear")
    assert exact["start"] == pytest.approx((model(x).argmax(-1) == y).double().mean().item())
    before = by_name(lab, exact)["before (theory)", 1]
    assert before.x.tolist() == RATIOS[[0, -1]].tolist() and (before.y == exact["start"]).all()
    for axes in (0, 1):
        assert by_name(lab, exact)["r = 1 (theory)", axes].x.tolist() == [1, 1]
    assert exact["loss"][:, 0] == pytest.approx(1, abs=0.05) and exact["loss"].mean(0)[-1] > 1.5


def test_a_higher_temperature_makes_longer_radii():
    """Linear logits over T move 1/T as far: the same directions, T times the radius."""
    one, four = (GhostsLab(temperature=t).run()["radius"] for t in (1.0, 4.0))
    np.testing.assert_allclose(four, 4 * one, rtol=1e-5)


def test_orders_are_only_added_up(monkeypatch):
    lab = GhostsLab(seed=2)
    before = lab.run()["series"]
    monkeypatch.setattr(ghost_steps, "toy", None)
    monkeypatch.setattr(ghost_steps, "step_losses", None)
    after = lab.set(order=5).run()["series"]
    difference = after - before
    assert np.polyfit(np.log(LINE), np.log(np.abs(difference)), 1)[0] == pytest.approx(5)  # a term r^5


def test_the_state_travels(tmp_path):
    lab = GhostsLab(model="mlp", along="gradient", order=9, trained=60, temperature=0.5, seed=4)
    again = Lab.load(json.dumps(lab.state()))
    assert type(again) is GhostsLab and again.controls() == lab.controls()
    np.testing.assert_array_equal(again.run()["loss"], lab.run()["loss"])
    for name in ("lab.html", "lab.json"):
        assert Lab.load(lab.save(tmp_path / name)).controls() == lab.controls()
