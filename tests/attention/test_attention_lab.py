"""AttentionLab: every control, its lines by other means, its map, the heads of the real models, and its ends."""

import json

import numpy as np
import pytest

from normkit import AttentionLab, Lab
from normkit.attention import experiment, laws, real
from normkit.attention.lab import FINE, LENGTHS, MODELS, PHASES, REAL, SCALES, SHOWN
from normkit.figures import Heat

SETTINGS = list(AttentionLab.grid())


def by_name(lab, quality="exact"):
    return {(c.label, c.axes): c for c in lab.curves(lab.run(quality)) if not isinstance(c, Heat)}


def heat(lab, quality="exact"):
    (found,) = [c for c in lab.curves(lab.run(quality)) if isinstance(c, Heat)]
    return found


def softmax(z):
    weights = np.exp(z - z.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def shares(z):
    """Entropy of softmax rows over log T, in float64 and by the definition."""
    p = softmax(z.astype(float))
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1) / np.log(z.shape[-1])


def sphere(z, size):
    """Rows of mean 0 and norm `size`."""
    z = z - z.mean(-1, keepdims=True)
    return size * z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_every_control_over_its_range(settings):
    lab = AttentionLab().set(**settings)
    for quality in ("coarse", "exact"):
        result = lab.run(quality)
        for key in ("entropy", "largest"):
            mean, lo, hi = result[key]
            assert (lo >= -1e-6).all() and (lo <= hi).all() and (hi <= 1 + 1e-6).all()
            assert (np.diff(mean) < 1e-6 if key == "entropy" else np.diff(mean) > -1e-6).all()  # sharper and sharper
        picture = lab.picture(result)
        assert all(np.isfinite(t["y"]).all() for t in picture["data"])
        panels = {t["xaxis"] for t in picture["data"]}
        assert panels == {"x", "x2", "x3"}  # the third is the color bar's
    text = lab.describe(result)
    assert all(f"{a.title}: " in text for a in lab.axes()) and lab.table()


@pytest.mark.parametrize("left", ["attention", "logits", "phase diagram"])
@pytest.mark.parametrize("right", ["entropy", "largest probability", "spectral norm"])
def test_what_each_view_shows(left, right):
    lab = AttentionLab(left=left, right=right)
    names = set(by_name(lab, "coarse"))
    want = {("random head (simulation)", 1)}
    if left == "phase diagram":
        want |= {("freezing (theory)", 0), ("here (simulation)", 0)}
    if right == "spectral norm":
        want |= {("random head (theory)", 1)}
    else:
        want |= {("here (simulation)", 1)}
    if right == "entropy":
        want |= {(f"{name} (theory)", 1) for name in ("random head", "leading order", "floor")}
        want |= {("MiniLM (real model)", 1)}
    assert names == want
    assert [a.title for a in lab.axes()] == [
        {"phase diagram": "Phases"}.get(left, left.capitalize()),
        right.capitalize(),
    ]
    assert heat(lab, "coarse").axes == 0


# ---- the lines


@pytest.mark.parametrize("tokens", [8, 64, 1024])
def test_no_logits_of_that_size_go_below_the_floor(tokens):
    """The least entropy by numbers: `one` logit against equal others, `k` against the others, and steepest descent."""
    line = by_name(AttentionLab(tokens=tokens), "coarse")["floor (theory)", 1]
    np.testing.assert_array_equal(line.x, FINE)
    draws = np.random.default_rng(tokens)
    for std in (0.25, 1.0, 2.5, 6.0):
        at = np.interp(std, line.x, line.y)
        size = std * np.sqrt(tokens)
        favorites = [shares(sphere((np.arange(tokens) < k).astype(float), size)) for k in range(1, tokens)]
        assert min(favorites) == pytest.approx(at, rel=1e-6) == favorites[0]
        z = sphere(draws.standard_normal((8, tokens)), size)
        for _ in range(300 if tokens < 100 else 30):
            p = softmax(z)
            surprise = -np.log(np.maximum(p, 1e-300))
            slope = p * (surprise - (p * surprise).sum(-1, keepdims=True))  # d entropy / d z
            z = sphere(z - 0.1 * size * slope / np.maximum(np.linalg.norm(slope, axis=-1, keepdims=True), 1e-30), size)
            assert (shares(z) > at - 1e-9).all()
        if tokens < 100:
            assert shares(z).min() == pytest.approx(at, abs=0.02)


@pytest.mark.parametrize("tokens", [8, 128])
def test_the_lines_of_random_logits_by_brute_force(tokens):
    curves = by_name(AttentionLab(tokens=tokens), "coarse")
    line, leading = curves["random head (theory)", 1], curves["leading order (theory)", 1]
    z = np.random.default_rng(0).standard_normal((4000, tokens))
    for i in (1, 3, 8, 28):
        found = shares(z * SCALES[i])
        error = found.std() / np.sqrt(len(found))
        assert line.y[i] == pytest.approx(found.mean(), abs=5 * error)
        assert leading.y[i] == pytest.approx(max(0, 1 - SCALES[i] ** 2 / (2 * np.log(tokens))))
    assert line.y[0] == leading.y[0] == 1


@pytest.mark.parametrize("tokens", [8, 9, 64, 1024])
def test_simulated_rows_lie_on_the_exact_mean_and_within_their_band(tokens):
    """T = 9 lies between the slider's marks."""
    for quality, rows in (("coarse", 32), ("exact", 256)):
        curves = by_name(AttentionLab(tokens=tokens), quality)
        dots, line = curves["random head (simulation)", 1], curves["random head (theory)", 1]
        spread = (dots.hi - dots.lo) / 3.29  # 5 % to 95 % are 3.29 standard deviations
        assert (np.abs(dots.y - line.y) < 5 * spread / np.sqrt(rows) + 1e-3).all()
        assert (dots.lo <= dots.y + 1e-6).all() and (dots.y <= dots.hi + 1e-6).all()


def test_the_spectral_norm_of_random_logits_is_2_s_sqrt_t():
    curves = by_name(AttentionLab(right="spectral norm", scale=3.0))
    dots, line = curves["random head (simulation)", 1], curves["random head (theory)", 1]
    np.testing.assert_allclose(line.y, [2 * 3 * t**0.5 for t in dots.x])
    # the edge's mean and spread (Tracy-Widom, beta = 1: -1.21, 1.27) come in units of about 4^(1/3) T^(-2/3) / 2 of it
    relative = (dots.y / line.y - 1) * dots.x ** (2 / 3) * 2 / 4 ** (1 / 3)
    assert (np.abs(relative + 1.21) < 4 * 1.27).all()
    fresh = 3 * np.random.default_rng(1).standard_normal((200, 200))
    assert np.linalg.norm(fresh, 2) == pytest.approx(2 * 3 * 200**0.5, rel=0.06)
    heads = by_name(AttentionLab(right="spectral norm", scale=3.0, logits="queries and keys"))
    assert ("random head (theory)", 1) not in heads
    # rank 16: its norm grows as T, not as sqrt(T)
    slope = np.polyfit(np.log(LENGTHS[3:8]), np.log(heads["random head (simulation)", 1].y[3:]), 1)[0]
    assert 0.7 < slope < 1.05


def test_queries_and_keys_have_no_line_that_is_not_theirs():
    curves = by_name(AttentionLab(logits="queries and keys"), "coarse")
    assert ("random head (theory)", 1) not in curves
    assert {("leading order (theory)", 1), ("floor (theory)", 1)} <= set(curves)


# ---- the maps


@pytest.mark.parametrize("logits", ["independent", "queries and keys"])
@pytest.mark.parametrize("tokens", [8, 64])
def test_the_map_is_the_softmax_of_the_logits(logits, tokens):
    base = AttentionLab(tokens=tokens, scale=3.0, temperature=2.0, logits=logits)
    z, p = heat(base.set(left="logits")), heat(base.set(left="attention"))
    assert z.z.shape == p.z.shape == (min(tokens, SHOWN),) * 2
    np.testing.assert_allclose(p.z, softmax(z.z), atol=1e-6)
    np.testing.assert_allclose(p.z.sum(-1), 1, rtol=1e-5)
    more = ", 40 tokens" if tokens > 40 else ""
    assert (z.title, p.title) == ("logit" + more, "attention" + more)
    if tokens == 64 and logits == "independent":
        assert z.z.std() == pytest.approx(1.5, rel=5 / (2 * 1600) ** 0.5)


def test_the_phase_diagram_is_the_entropy_of_the_other_panel():
    lab = AttentionLab(left="phase diagram", tokens=256, scale=3.0)
    shown, right = heat(lab), by_name(lab)["random head (simulation)", 1]
    assert shown.z.shape == (len(PHASES), len(LENGTHS))
    row = shown.z[list(PHASES).index(3.0), list(LENGTHS).index(256)]
    # 64 and 256 rows
    assert row == pytest.approx(np.interp(3.0, right.x, right.y), abs=4 * (right.hi - right.lo)[6] / 3.29 / 8)
    np.testing.assert_allclose(shown.z[0], 1, rtol=1e-6)  # logits of size 0
    freezing = by_name(lab)["freezing (theory)", 0]
    np.testing.assert_allclose(freezing.y**2 / 2, np.log(freezing.x))
    here = by_name(lab)["here (simulation)", 0]
    assert (here.x.tolist(), here.y.tolist()) == ([256], [3.0])


# ---- real heads


@pytest.mark.parametrize("model", MODELS)
def test_real_dots_are_the_recorded_heads(model):
    dots = by_name(AttentionLab(real=model), "coarse")[f"{model} (real model)", 1]
    heads = real.load_real(model)
    seen = heads["std"] <= SCALES[-1]
    np.testing.assert_array_equal(dots.x, heads["std"][seen])
    np.testing.assert_allclose(dots.y, heads["entropy"][seen] / np.log(heads["tokens"]))
    assert dots.style == REAL and len(dots.x) >= 0.9 * heads["std"].size
    floor = laws.entropy_floor(heads["std"] * heads["tokens"] ** 0.5, heads["tokens"]) / np.log(heads["tokens"])
    assert (heads["share"] > floor - 1e-4).all()  # at the model's own length; five digits are recorded


def test_models_are_the_recorded_ones_without_a_mask():
    assert set(MODELS) == {m for m in real.MODELS if not real.load_real(m)["causal"]}
    assert AttentionLab.declared()["real"].values == ("none", *MODELS)
    assert not any(kind == "real" for kind in [c.kind for c in by_name(AttentionLab(real="none"), "coarse").values()])


# ---- the ends


def test_temperature_acts_as_a_smaller_scale():
    for left in ("attention", "phase diagram"):
        for right in ("entropy", "spectral norm"):
            a = AttentionLab(left=left, right=right, scale=4.0, temperature=2.0)
            b = AttentionLab(left=left, right=right, scale=2.0)
            assert a.effective == b.effective == 2
            for one, other in zip(a.picture(a.run())["data"], b.picture(b.run())["data"], strict=True):
                np.testing.assert_array_equal(one["y"], other["y"])
                assert "z" not in one or np.array_equal(one["z"], other["z"])


@pytest.mark.parametrize("quality", ["coarse", "exact"])
def test_logits_of_size_0_are_uniform_attention(quality):
    lab = AttentionLab(scale=0.0)
    np.testing.assert_allclose(heat(lab, quality).z, 1 / SHOWN, rtol=1e-6)
    assert by_name(lab, quality)["here (simulation)", 1].y == pytest.approx(1)
    assert by_name(lab.set(left="phase diagram"), quality)["here (simulation)", 0].y.tolist() == [0]
    np.testing.assert_array_equal(heat(lab.set(left="logits"), quality).z, 0)
    flat = lab.set(right="spectral norm")
    assert flat.picture(flat.run(quality)) and "Spectral norm: " in flat.describe()


def test_the_cross_is_drawn_only_where_it_is():
    lab = AttentionLab(left="phase diagram", scale=14.0, temperature=1.0)
    cross = "here (simulation)"
    assert (cross, 1) in by_name(lab, "coarse") and (cross, 0) not in by_name(lab, "coarse")
    assert (cross, 1) not in by_name(lab.set(temperature=0.5), "coarse")
    assert by_name(lab.set(temperature=4.0), "coarse")[cross, 0].y.tolist() == [3.5]


def test_a_slider_of_the_scale_draws_no_random_numbers(monkeypatch):
    lab = AttentionLab(tokens=128)
    lab.run()
    monkeypatch.setattr(experiment, "stream", None)
    for scale in (0.0, 1.25, 14.0):
        lab.set(scale=scale).run()


def test_the_state_travels(tmp_path):
    lab = AttentionLab(left="phase diagram", right="spectral norm", tokens=512, temperature=0.5, real="majority")
    again = Lab.load(json.dumps(lab.state()))
    assert type(again) is AttentionLab and again.controls() == lab.controls()
    for name in ("lab.html", "lab.json"):
        assert Lab.load(lab.save(tmp_path / name)).controls() == lab.controls()
