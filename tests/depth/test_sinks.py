"""The rescaling formula against the norm itself, the norms' variants against torch, and three trained toys."""

import math

import numpy as np
import pytest

from normkit.depth import sinks
from normkit.layers import rms_norm

EPS = np.finfo(np.float64).eps
rng = np.random.default_rng(11)


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("torch")
    return {arm: [sinks.train_sink(arm, seed=seed) for seed in range(2)] for arm in sinks.ARMS}


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.1, 0.01])
def test_a_sink_of_that_height_scales_the_others_by_the_gain(gain):
    rest = rng.normal(size=(20, 15))
    sink = sinks.sink_height(gain, np.linalg.norm(rest, axis=-1))

    def others(sink):
        return rms_norm(np.column_stack([rest, sink]), eps=0.0)[:, :-1]

    np.testing.assert_allclose(others(sink), gain * others(np.zeros(20)), rtol=1e3 * EPS)
    np.testing.assert_allclose(others(-sink), others(sink), rtol=8 * EPS)
    np.testing.assert_allclose(sinks.rest_gain(sink, np.linalg.norm(rest, axis=-1)), gain, rtol=8 * EPS)


def test_heights_of_the_paper_and_limits():
    assert sinks.sink_height(0.1, math.sqrt(15)) == pytest.approx(math.sqrt(15 * 99))  # 38.5
    assert sinks.sink_height(0.01, 1.0) == pytest.approx(100, rel=1e-4)
    assert sinks.sink_height(1.0, 3.0) == 0
    assert sinks.sink_height(1 - 1e-12, 1.0) == pytest.approx(math.sqrt(2e-12), rel=1e-4)  # no cancellation
    assert sinks.rest_gain(1e200, 1e-100) == pytest.approx(1e-300)  # no square overflows
    spike = np.zeros((1, 16))
    spike[0, 3] = 1e4
    assert rms_norm(spike, eps=0.0).max() == pytest.approx(4)  # sqrt(width) is all that one feature can get


def test_pre_affine_is_the_norm_between_two_gains():
    torch = pytest.importorskip("torch")
    x, before, after = rng.normal(size=(5, 8)), rng.uniform(0.5, 9, 8), rng.normal(size=8)
    expected = torch.nn.functional.rms_norm(torch.tensor(x * before), (8,), torch.tensor(after), 1e-6).numpy()
    np.testing.assert_allclose(sinks.pre_affine(x, before, after), expected, rtol=64 * EPS)
    got = sinks.pre_affine(*map(torch.tensor, (x, before, after)))
    np.testing.assert_allclose(got.numpy(), expected, rtol=64 * EPS)
    # A sink that exists in the norm only: 100 times the first feature turns the others down as a stream of 100 would.
    loud = np.array([100.0, *[1.0] * 7])
    gain = sinks.rest_gain(100 * x[:, 0], np.linalg.norm(x[:, 1:], axis=1)) / sinks.rest_gain(
        x[:, 0], np.linalg.norm(x[:, 1:], axis=1)
    )
    got = sinks.pre_affine(x, loud, np.ones(8), eps=0.0)[:, 1:]
    np.testing.assert_allclose(got, gain[:, None] * rms_norm(x, eps=0.0)[:, 1:], rtol=64 * EPS)


def test_gated_norm_is_its_formula_and_starts_as_the_norm():
    torch = pytest.importorskip("torch")
    x, down, up, weight = (
        rng.normal(size=(2, 5, 8)),
        rng.normal(size=(3, 8)),
        rng.normal(size=(8, 3)),
        rng.normal(size=8),
    )
    y = torch.nn.functional.rms_norm(torch.tensor(x), (8,), torch.tensor(weight), 1e-6)
    gate = torch.sigmoid(torch.nn.functional.silu(y @ torch.tensor(down).T) @ torch.tensor(up).T)
    np.testing.assert_allclose(sinks.gated_norm(x, down, up, weight), (2 * y * gate).numpy(), rtol=1e-12)
    np.testing.assert_array_equal(sinks.gated_norm(x, down, 0 * up, weight), rms_norm(x, weight))  # to the bit
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, down, up, weight)]
    assert torch.autograd.gradcheck(sinks.gated_norm, tensors)
    assert np.isfinite(sinks.gated_norm(x, 1e5 * down, 1e5 * up, weight)).all()


def test_the_plain_net_builds_the_predicted_outlier(trained):
    for got in trained["plain"]:
        assert got.shrink == pytest.approx(0.1, rel=0.15)
        # ||rest|| is about sqrt(15), and the MLP moves it a little: 38.5 within 15 % (seen: 37.5 to 38.9)
        assert got.height == pytest.approx(sinks.sink_height(0.1, math.sqrt(15)), rel=0.15)
        assert got.peak_to_median > 20  # the other 15 features have a mean size of about 0.8: 48
        assert got.sink_gain < 1e-3  # the wanted output is 0 there: a scale, no content
        assert got.rms_ratio == pytest.approx(10, rel=0.15)  # it does all of the work
        assert got.loss < 2e-3  # the wanted outputs' mean square is (1 + 0.01)/2 * 15/16 = 0.47


def test_clipping_the_sink_destroys_the_scaling(trained):
    for got in trained["plain"]:
        # What the formula leaves of the scaling, for a rest of sqrt(15); Jensen and the MLP move it by a few percent,
        # and tokens whose other features are clipped as well by more: hence only levels above 4 sigma.
        level, shrink = got.clips[:3], got.clipped_shrink[:3]
        np.testing.assert_allclose(shrink, sinks.rest_gain(level, math.sqrt(15)), rtol=0.15)
        assert (np.diff(got.clipped_loss) > 0).all()
        assert got.clipped_loss[-1] > 100 * got.loss


def test_a_gate_does_it_with_less_outlier(trained):
    for plain, gated in zip(trained["plain"], trained["gated"], strict=True):
        assert gated.shrink == pytest.approx(0.1, rel=0.25)
        assert gated.loss < 5e-3
        # Three seeds gave 5.3 to 12.3 beside 37 to 39: the gate shares the work, it need not remove the sink.
        assert gated.height < plain.height / 2
        assert gated.rms_ratio < plain.rms_ratio / 2
        assert gated.clipped_shrink[1] < plain.clipped_shrink[1] / 2  # clipped at 10


def test_pre_affine_moves_a_part_of_the_sink_into_the_norm(trained):
    for plain, moved in zip(trained["plain"], trained["pre_affine"], strict=True):
        assert moved.shrink < 0.2
        assert moved.height < 0.8 * plain.height  # seen: 11 to 24 beside 38


def test_training_is_reproducible_and_asks_for_nothing_at_gain_one():
    pytest.importorskip("torch")
    a, b, c = (sinks.train_sink(seed=seed, steps=20) for seed in (3, 3, 4))
    assert a.loss == b.loss != c.loss
    np.testing.assert_array_equal(a.clipped_loss, b.clipped_loss)
    idle = sinks.train_sink(gain=1.0, steps=300)
    assert idle.peak_to_median < 5  # the null control: nothing to turn down, no sink


def test_bad_input_is_an_error():
    for gain in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="gain must be in"):
            sinks.sink_height(gain, 1.0)
        with pytest.raises(ValueError, match="gain must be in"):
            sinks.train_sink(gain=gain)
    for f, first in ((sinks.sink_height, 0.5), (sinks.rest_gain, 1.0)):
        for rest in (0.0, -1.0):
            with pytest.raises(ValueError, match="rest_norm must be positive"):
                f(first, rest)
        with pytest.raises(ValueError, match="finite"):
            f(first, np.array([1.0, np.inf]))
    x, w = np.ones((2, 4)), np.ones(4)
    with pytest.raises(ValueError, match="before must have shape"):
        sinks.pre_affine(x, np.ones(3), w)
    with pytest.raises(ValueError, match="weight must have shape"):
        sinks.pre_affine(x, w, np.ones(3))
    with pytest.raises(ValueError, match=r"\(rank, width\)"):
        sinks.gated_norm(x, w, np.ones((4, 2)))
    with pytest.raises(ValueError, match="up must have shape"):
        sinks.gated_norm(x, np.ones((2, 4)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="did you mean 'gated'"):
        sinks.train_sink("gate")
    with pytest.raises(ValueError, match="steps"):
        sinks.train_sink(steps=0)
    with pytest.raises(ValueError, match="positive levels"):
        sinks.train_sink(steps=1, clips=(0.0,))
