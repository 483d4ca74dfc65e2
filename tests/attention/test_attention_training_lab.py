"""AttentionTrainingLab: every control, what training reports against what is drawn, its lines, a run that diverges."""

import json

import numpy as np
import pytest
import torch

from normkit import AttentionTrainingLab, Lab
from normkit.attention import laws, training
from normkit.attention.training_lab import CURES, GUESS, HEADS, LAYERS, TOKENS, half_norm
from normkit.figures import style

SHORT = {"steps": 50}
HEAD_NAMES = [f"layer {i}, head {j}" for i in range(1, LAYERS + 1) for j in range(1, HEADS + 1)]


def by_name(lab, result):
    return {(c.label, c.axes): c for c in lab.curves(result)}


@pytest.mark.parametrize(
    "settings", list(AttentionTrainingLab.grid()), ids=lambda s: "-".join(map(str, s.values())) or "default"
)
def test_every_control_over_its_range_before_the_first_step(settings):
    lab = AttentionTrainingLab().set(**settings)
    result = lab.run("coarse")
    assert result["step"].tolist() == [0]
    assert all(result[key].shape == (1, LAYERS, HEADS) for key in ("entropy", "floor", "spectral"))
    # chance, and what random logits cost: their variance is 1 with a norm, about 2^(2 3) / 10 without one
    assert -0.5 < result["loss"] - np.log(GUESS[lab.task]) < (5 if lab.placement == "none" else 1)
    assert (result["floor"] <= result["entropy"]).all() and (result["entropy"] <= lab.uniform() + 1e-9).all()
    picture = lab.picture(result)
    assert all(np.isfinite(t["y"]).all() for t in picture["data"])
    text = lab.describe(result)
    assert all(f"{a.title}: " in text for a in lab.axes())


def test_the_constants_are_those_of_training():
    declared = AttentionTrainingLab.declared()
    assert tuple(training.CURES) == CURES == declared["cure"].values
    assert set(declared["placement"].values) == set(training.PLACEMENTS)
    assert tuple(training.TASKS) == tuple(GUESS) == declared["task"].values
    assert {"majority": training.TYPES, "copy": training.SYMBOLS} == GUESS
    assert {name: task.classes for name, task in training.TASKS.items()} == GUESS
    report = next(training.train(steps=1))
    assert report["entropy"].shape == (LAYERS, HEADS)
    net = training.Net("majority", "post", "plain")
    assert net.position.weight.shape[0] == TOKENS and len(net.blocks) == LAYERS


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cure": "sigma_reparam", "placement": "pre", "lr": 0.128, "seed": 3},
        {"cure": "qk_norm", "task": "copy"},
        {"cure": "gate", "placement": "none", "lr": 0.008, "steps": 60},
    ],
    ids=lambda s: s.get("cure", "default"),
)
def test_what_is_drawn_is_what_training_reports(settings):
    lab = AttentionTrainingLab(**SHORT).set(**settings)
    fractions, results = zip(*lab.stream(), strict=True)
    options = {key: getattr(lab, key) for key in ("cure", "placement", "task", "lr", "steps", "seed")}
    want = list(training.train(**options))
    assert fractions[0] == 0 and fractions[-1] == 1 and (np.diff(fractions) > 0).all()
    assert [len(r["step"]) for r in results] == list(range(1, len(want) + 1)) and len(want) == lab.steps // 5 + 1
    result, curves = results[-1], by_name(lab, results[-1])
    for key in ("step", "loss", "entropy", "floor", "spectral"):
        np.testing.assert_array_equal(result[key], [r[key] for r in want])
    loss = curves[f"{lab.cure} (real model)", 0]
    np.testing.assert_array_equal([loss.x, loss.y], [result["step"], result["loss"]])
    for i, name in enumerate(HEAD_NAMES):
        for kind, axes, key in (("theory", 1, "floor"), ("real model", 1, "entropy"), ("real model", 2, "spectral")):
            shown = curves[f"{name} ({kind})", axes]
            np.testing.assert_array_equal(shown.y, result[key][:, i // HEADS, i % HEADS])
            assert shown.style == style(i)
    assert (result["entropy"] >= result["floor"] - 1e-6).all()
    assert lab.describe(result) and lab.picture(result)


def test_every_control_reaches_training():
    base = AttentionTrainingLab(**SHORT).run()
    for change in ({"cure": "warmup"}, {"placement": "pre"}, {"task": "copy"}, {"lr": 0.016}, {"seed": 1}):
        assert not np.array_equal(AttentionTrainingLab(**SHORT).set(**change).run()["loss"], base["loss"]), change
    np.testing.assert_array_equal(AttentionTrainingLab(**SHORT).run()["loss"], base["loss"])


def test_steps_between_the_marks_of_the_slider():
    fractions, results = zip(*AttentionTrainingLab(steps=53, lr=0.004).stream(), strict=True)
    assert results[-1]["step"][-2:].tolist() == [50, 53] and fractions[-1] == 1


def test_attention_freezes_without_a_cure_and_not_with_one():
    plain, cured = (AttentionTrainingLab(cure=cure, steps=100).run() for cure in ("plain", "sigma_reparam"))
    assert plain["spectral"][-1].max() > 3 * cured["spectral"][-1].max()
    assert plain["entropy"][-1].min() < 0.5 * np.log(TOKENS) < cured["entropy"][-1].min()


# ---- the lines


@pytest.mark.parametrize("task", GUESS)
def test_chance_and_uniform_attention(task):
    lab = AttentionTrainingLab(task=task)
    curves = by_name(lab, lab.run("coarse"))
    chance, uniform = curves["chance (theory)", 0], curves["uniform attention (theory)", 1]
    assert chance.x.tolist() == uniform.x.tolist() == [0, lab.steps]
    np.testing.assert_allclose(chance.y, np.log({"majority": 8, "copy": 16}[task]))
    z = np.zeros((TOKENS, TOKENS))
    if task == "copy":
        z[np.triu_indices(TOKENS, 1)] = -np.inf
    np.testing.assert_allclose(uniform.y, training.measure(torch.from_numpy(z))["entropy"])
    assert lab.uniform() == pytest.approx(laws.causal_entropy(TOKENS) if task == "copy" else np.log(TOKENS))


@pytest.mark.parametrize("task", GUESS)
def test_below_its_norm_no_head_loses_half_of_its_entropy(task):
    """By the worst logits there are, one favorite in each row: at that norm they lose half, at less they lose less."""
    lab = AttentionTrainingLab(task=task)
    line = by_name(lab, lab.run("coarse"))["half of the entropy (theory)", 2]
    assert line.y[0] == line.y[1] == half_norm(lab.keys())

    def entropy(norm):
        z = np.full((TOKENS, TOKENS), -np.inf)
        for row, keys in enumerate(lab.keys()):
            z[row, :keys] = laws.floor_logits(norm if keys > 1 else 0.0, int(keys))
        return training.measure(torch.from_numpy(z))["entropy"]

    assert entropy(line.y[0]) == pytest.approx(lab.uniform() / 2, rel=1e-9)
    assert entropy(0.9 * line.y[0]) > lab.uniform() / 2 > entropy(1.1 * line.y[0])


def test_half_of_two_tokens_by_hand():
    # p log(1/p) + (1-p) log(1/(1-p)) = log(2) / 2 at p = 0.1100278644; logits +-norm/sqrt 2 give log((1-p)/p)
    assert half_norm([2]) == pytest.approx(np.log(0.8899721356 / 0.1100278644) / 2**0.5, rel=1e-8)
    assert half_norm([2, 2, 2]) == half_norm([2]) < half_norm([32])


# ---- a run that goes wrong, and one that is stopped


@pytest.mark.parametrize("cure", ["plain", "gate"])
def test_a_run_that_diverges_says_what_to_do_and_the_lab_lives_on(monkeypatch, cure):
    """Within the sliders' ranges losses of 1e14 are finite; a rate of 1e12 is beyond any."""
    whole = training.train
    monkeypatch.setattr(training, "train", lambda **options: whole(**options | {"lr": 1e12}))
    lab = AttentionTrainingLab(cure=cure, placement="none", **SHORT)
    seen = []
    with pytest.raises(FloatingPointError, match=rf"{cure} diverged at step \d+: lower the learning rate, or choose a"):
        seen.extend(lab.stream())
    with pytest.raises(FloatingPointError):
        lab.run()
    monkeypatch.undo()
    assert lab.run("coarse")["step"].tolist() == [0]
    assert lab.set(placement="post").run()["step"][-1] == 50


def test_the_largest_rate_without_norms_is_a_picture():
    lab = AttentionTrainingLab(placement="none", lr=0.128, **SHORT)
    result = lab.run()
    assert result["loss"].max() > 1e4
    assert np.isfinite(lab.picture(result)["data"][-1]["y"]).all() and lab.describe(result)


def test_a_stopped_stream_is_a_picture():
    lab = AttentionTrainingLab()
    stream = lab.stream()
    for _ in range(3):
        done, result = next(stream)
    stream.close()
    assert 0 < done < 0.1 and result["step"].tolist() == [0, 5, 10]
    assert "layer 3, head 2 (real model)" in lab.describe(result)


def test_the_state_travels(tmp_path):
    lab = AttentionTrainingLab(cure="affine", placement="pre", task="copy", lr=0.008, seed=4, **SHORT)
    again = Lab.load(json.dumps(lab.state()))
    assert type(again) is AttentionTrainingLab and again.controls() == lab.controls()
    for name in ("lab.html", "lab.json"):
        assert Lab.load(lab.save(tmp_path / name)).controls() == lab.controls()
