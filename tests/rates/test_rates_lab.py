"""RatesLab and EquilibriumLab: every control, theory against simulation in the picture, real dots, the sphere."""

import json
import math

import numpy as np
import pytest

from normkit import EquilibriumLab, Lab, RatesLab
from normkit.figures import Heat
from normkit.rates import laws
from normkit.rates.lab import OPTIMIZERS, STYLES


def by_name(lab, quality="exact"):
    return {(c.label, c.axes): c for c in lab.curves(lab.run(quality)) if not isinstance(c, Heat)}


def settings_id(settings):
    return "-".join(map(str, settings.values())) or "default"


@pytest.mark.parametrize("settings", list(RatesLab.grid()), ids=settings_id)
def test_every_control_of_the_rates_lab(settings):
    lab = RatesLab().set(**settings)
    for quality in ("coarse", "exact"):
        picture = lab.picture(lab.run(quality))
        assert all(np.isfinite(t["y"]).all() for t in picture["data"])
    assert lab.describe() and lab.table()


@pytest.mark.parametrize("settings", list(EquilibriumLab.grid(per_control=2)), ids=settings_id)
def test_every_control_of_the_equilibrium_lab(settings):
    lab = EquilibriumLab().set(**settings)
    for quality in ("coarse", "exact"):
        lab.picture(lab.run(quality))
    assert lab.describe() and lab.table()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("project", ["off", "on"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_line_goes_through_the_dots(optimizer, project, weight_decay):
    result = RatesLab(optimizer=optimizer, project=project, weight_decay=weight_decay).run()
    for key in ("norm", "elr", "angle"):
        mean, law = result[f"{optimizer}.{key}"][0], result[f"{optimizer}.{key}.theory"]
        assert mean.shape == law.shape == (1001 - (key == "angle"),)
        # over 500 steps of 16 seeds: the mean of a length is below its root mean square by 1/(4 64), that of its inverse
        # square above; equilibria forget within tens of steps, so that they average over a hundred fluctuations of 1/8
        np.testing.assert_allclose(mean[500:].mean(), law[500:].mean(), rtol=0.05)
    if project == "on":
        np.testing.assert_allclose(result[f"{optimizer}.norm"], 1, rtol=1e-12)
        np.testing.assert_array_equal(result[f"{optimizer}.norm.theory"], 1)


def test_growth_shrinks_the_steps_as_the_root_of_time():
    late = np.arange(2000, 4001)
    slopes = {}
    for optimizer in ("sgd", "adam"):
        result = RatesLab(optimizer=optimizer, lr=0.32, steps=4000).run()
        slopes[optimizer], law = (
            np.polyfit(np.log(late), np.log(result[key][late]), 1)[0] for key in ("elr", f"{optimizer}.elr.theory")
        )
        assert slopes[optimizer] == pytest.approx(law, abs=0.02)
    # the start is 1/(2 0.32^2 t) of SGD's ||w||^4, 0.2 % here; Adam's mean square still lags by a thousand steps
    assert slopes["sgd"] == pytest.approx(-0.5, abs=0.01)
    assert -0.7 < slopes["adam"] < -0.5


def test_the_left_panel_is_a_walk_outward_from_the_sphere():
    for view, dim in (("circle", 2), ("sphere", 3)):
        lab = RatesLab(view=view, against="adam")
        curves = lab.curves(lab.run())
        outlines = [c for c in curves if c.name == "start"]
        assert len(outlines) == (1 if view == "circle" else 4)
        for c in outlines:  # a great circle is seen within the silhouette
            assert np.hypot(c.x, c.y).max() <= 1 + 1e-12
        assert np.hypot(outlines[0].x, outlines[0].y) == pytest.approx(1)
        path = next(c for c in curves if c.name == "sgd" and c.axes == 0)
        assert path.join and len(path.x) <= 501
        if dim == 2:  # every step of SGD is tangent: the radius never falls
            assert (np.diff(np.hypot(path.x, path.y)) >= -1e-12).all()
    assert lab.axes()[0].equal


def test_turning_the_sphere_keeps_what_is_seen_of_its_axis():
    seen = []
    for turn in (0, 90):
        lab = RatesLab(turn=turn)
        seen.append(lab.run()["sgd.path"])
    # seen from two sides a quarter turn apart: together the two horizontal shadows give the distance from the axis
    from normkit.rates.experiment import spherical_walk

    path = spherical_walk("sgd", lr=lab.lr, dim=3, seeds=1, steps=lab.steps, keep_path=True).path[:: lab.steps // 250]
    np.testing.assert_allclose(seen[0][:, 0] ** 2 + seen[1][:, 0] ** 2, path[:, 0] ** 2 + path[:, 1] ** 2, rtol=1e-9)
    np.testing.assert_allclose(
        seen[0][:, 1], path[:, 2] * math.cos(math.radians(25)) - path[:, 0] * math.sin(math.radians(25)), atol=1e-12
    )


def test_real_dots_are_the_recorded_runs_and_only_where_there_are_any():
    from normkit.rates.real import load_real

    lab = RatesLab(optimizer="adam", right="angle")
    real = load_real("adam", lab.lr, 0.0, False)
    np.testing.assert_array_equal(by_name(lab)["adam (real model)", 1].y, real["norm"])
    np.testing.assert_array_equal(by_name(lab)["adam (real model)", 2].y, real["angle"])
    assert by_name(lab)["adam (real model)", 1].style == STYLES["adam"]
    assert by_name(lab.set(steps=125))["adam (real model)", 1].x.max() <= 125
    assert ("adam (real model)", 1) in by_name(lab.set(momentum=0.5))  # which is not Adam's


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_momentum_hides_the_real_dots_of_those_whose_picture_it_changes(optimizer):
    for lab in (RatesLab(optimizer=optimizer, steps=125), EquilibriumLab(optimizer=optimizer)):
        label, key = f"{optimizer} (theory)", (f"{optimizer} (real model)", 1)
        before, after = by_name(lab, "coarse"), by_name(lab.set(momentum=0.5), "coarse")
        changed = not np.array_equal(before[label, 1].y, after[label, 1].y)
        assert changed == (optimizer in ("momentum", "sgdp"))
        assert key in before and (key in after) != changed


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decoupling_hides_the_real_dots_of_the_one_whose_picture_it_changes(optimizer):
    curves = [by_name(EquilibriumLab(optimizer=optimizer, coupling=c), "coarse") for c in ("coupled", "decoupled")]
    before, after = (c[f"{optimizer} (theory)", 1].y for c in curves)
    assert np.array_equal(before, after) == ((f"{optimizer} (real model)", 1) in curves[1])


def test_the_first_step_of_the_real_net_turns_as_far_as_that_of_the_walk():
    lab = RatesLab(optimizer="sgd", right="angle", lr=0.04)
    curves = by_name(lab)
    # one batch's gradient differs in length from the mean over batches that set the learning rate
    assert curves["sgd (real model)", 2].y[0] == pytest.approx(curves["sgd (theory)", 2].y[0], rel=0.5)


def test_the_map_and_its_cut_show_the_same_numbers():
    for cut, key in (("learning rate", "lr"), ("weight decay", "weight_decay")):
        lab = EquilibriumLab(cut=cut, lr=0.32, weight_decay=0.2)
        shown = lab.curves(lab.run())
        heat, line = shown[0], {(c.label, c.axes): c for c in shown[1:]}["sgd (simulation)", 1]
        i, j = 5, 4  # 0.32 and 0.2 on their grids
        column = heat.z[j, :] if key == "lr" else heat.z[:, i]
        np.testing.assert_allclose(line.y, column)
        law = {(c.label, c.axes): c for c in shown[1:]}["sgd (theory)", 1]
        x = law.x if key == "lr" else np.full(7, 0.32)
        decay = np.full(7, 0.2) if key == "lr" else law.x
        np.testing.assert_allclose(law.y, laws.equilibrium_angle(x, decay))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_simulated_equilibrium_is_the_law(optimizer):
    result = EquilibriumLab(optimizer=optimizer).run()
    for key in ("norm", "angle"):
        # 4 seeds, 1000 steps, 32 entries: corrections of order 1/32, and the norm of a slow walk forgets its start slowly
        np.testing.assert_allclose(result[key].mean(0), result[f"{key}.theory"], rtol=0.12)


def test_real_equilibria_are_where_they_were_measured():
    assert ("adam (real model)", 1) in by_name(EquilibriumLab(optimizer="adam"))
    assert by_name(EquilibriumLab(optimizer="adam", cut="weight decay"))["adam (real model)", 1].x.tolist() == [0.1]
    assert ("adam (real model)", 1) not in by_name(EquilibriumLab(optimizer="adam", weight_decay=0.2))


def test_states_travel(tmp_path):
    for lab in (RatesLab(optimizer="adamp", turn=90), EquilibriumLab(show="norm")):
        again = Lab.load(json.dumps(lab.state()))
        assert type(again) is type(lab) and again.controls() == lab.controls()
        assert Lab.load(lab.save(tmp_path / "lab.html")).controls() == lab.controls()
