"""Random residual nets against torch autograd on nets rebuilt from their weights, the laws and the exact sampler."""

import math
import threading

import numpy as np
import pytest

from normkit.depth import PLACEMENTS, exact_profile, experiment, laws, residual_profile
from normkit.depth.activations import second_moment

# Betas and norms of each placement for L = 6 blocks, written out once more, so that the package's table is checked too.
L = 6


def _torch_net(placement, x, weights, branch):
    import torch

    def norm(v):
        return v / torch.sqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6)

    points = [x]
    for k, w in enumerate(weights, start=1):
        x = points[-1]
        x = {
            "none": lambda x, w: x + branch(x, w),
            "pre": lambda x, w: x + branch(norm(x), w),
            "post": lambda x, w: norm(x + branch(x, w)),
            "peri": lambda x, w: x + norm(branch(norm(x), w)),
            "mix": lambda x, w, k=k: norm(x + branch(x, w)) if k <= 1 else x + branch(norm(x), w),
            "layernorm_scaling": lambda x, w, k=k: x + branch(norm(x) / k**0.5, w),
            "deepnorm": lambda x, w: norm((2 * L) ** 0.25 * x + branch(x, w, (8 * L) ** -0.25)),
            "scaled_sqrt_l": lambda x, w: x + branch(x, w) / L**0.5,
            "scaled_l": lambda x, w: x + branch(x, w) / L,
            "skipinit": lambda x, w: x + 0 * branch(x, w),
            "fixup": lambda x, w: x + 0 * branch(x, w),
        }[placement](x, w)
        points.append(x)
    return points


def _torch_branch(sublayer, activation, heads):
    import torch

    phi = {
        "relu": torch.relu,
        "selu": torch.selu,
        "elu": torch.nn.functional.elu,
        "gelu": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
        "identity": lambda z: z,
    }[activation]
    gain = second_moment(activation) ** -0.5

    def attention(h, w, beta=1.0):
        q, k, v = ((h @ m).unflatten(-1, (heads, -1)).transpose(0, 1) for m in w[:3])
        o = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], beta * v[None])[0]
        return beta * o.transpose(0, 1).flatten(1) @ w[3]

    return {
        "linear": lambda h, w, beta=1.0: beta * h @ w[0],
        "mlp": lambda h, w, beta=1.0: beta * gain * phi(beta * h @ w[0]) @ w[1],
        "attention": attention,
    }[sublayer]


SUBLAYERS = [
    ("linear", "relu", 1),
    ("mlp", "relu", 1),
    ("mlp", "selu", 1),
    ("mlp", "elu", 1),
    ("mlp", "gelu", 1),
    ("mlp", "identity", 1),
    ("attention", "relu", 1),
    ("attention", "relu", 4),
]


@pytest.mark.parametrize(("sublayer", "activation", "heads"), SUBLAYERS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_profile_is_torch_autograd(placement, sublayer, activation, heads):
    import torch

    tokens, width, runs = 3, 8, 2
    got = residual_profile(
        placement,
        layers=L,
        width=width,
        tokens=tokens,
        sublayer=sublayer,
        seeds=runs,
        seed=7,
        activation=activation,
        heads=heads,
        dtype=np.float64,
    )
    branch = _torch_branch(sublayer, activation, heads)
    for run in range(runs):
        draw = lambda name, run=run: torch.from_numpy(  # noqa: E731
            experiment._normal((tokens, width), 7, run, name).astype(np.float64)
        )
        count = experiment.MATRICES[sublayer]
        weights = [
            torch.from_numpy(experiment._weights(7, run, layer, width, count).astype(np.float64)) for layer in range(L)
        ]
        points = _torch_net(placement, draw("input").requires_grad_(), weights, branch)
        gradients = torch.autograd.grad((points[-1] * draw("cotangent")).sum(), points)
        # float64 roundings over 6 layers; the conditioning of peri's division by small outputs leaves 1e-11
        for have, want in ((got.variance, points), (got.gradient, gradients)):
            np.testing.assert_allclose(have[run], [float(p.detach().pow(2).mean()) for p in want], rtol=1e-10)


def _z(values, theory):
    """Distance of the mean over runs from theory, in standard errors."""
    return np.abs(values.mean(0) - theory) / (values.std(0, ddof=1) / math.sqrt(len(values)) + 1e-12)


@pytest.mark.parametrize("sublayer", ["linear", "mlp"])
@pytest.mark.parametrize("placement", sorted(set(PLACEMENTS) - {"post", "deepnorm", "none"}))
def test_variance_follows_its_law(placement, sublayer):
    """The law is the exact mean, but for peri, whose norm makes it so too; 16 runs: |t_15| < 5.2 with p = 1e-4."""
    got = residual_profile(placement, layers=64, width=96, tokens=8, sublayer=sublayer, seeds=16)
    theory = laws.variance(placement, 64)
    points = [1, 8, 16, 32, 64]
    bias = 1e-5 * theory  # float32, eps
    distance = np.maximum(np.abs(got.variance.mean(0) - theory) - bias, 0) * 4 / got.variance.std(0, ddof=1).clip(1e-12)
    assert (distance[points] < 5.2).all()
    # the gradient's law neglects 1/width a block where a norm drops a direction: under 64/96 of the growth's logarithm
    ratio = got.gradient.mean(0) / laws.gradient(placement, 64)
    spread = got.gradient.std(0, ddof=1) / got.gradient.mean(0) / 4
    assert (np.abs(np.log(ratio))[points] < 5.2 * spread[points] + math.log(theory[-1]) / 96 + 1e-5).all()


def test_the_suggested_oracles():
    """Pre within 10 % of 65, Peri within 10 % of 65, LayerNorm Scaling within 6 % of 1 + H_64, Post 1 to 1e-5."""
    end = {
        p: residual_profile(p, layers=64, width=128, tokens=8, seeds=12).variance.mean(0)
        for p in ("pre", "peri", "layernorm_scaling", "post", "deepnorm")
    }
    assert end["pre"][-1] == pytest.approx(65, rel=0.1)
    assert end["peri"][-1] == pytest.approx(65, rel=0.1)
    assert end["layernorm_scaling"][-1] == pytest.approx(1 + (1 / np.arange(1, 65)).sum(), rel=0.06)
    np.testing.assert_allclose(end["post"][1:], 1, atol=1e-5)
    np.testing.assert_allclose(end["deepnorm"][1:], 1, atol=1e-5)


def test_post_neither_grows_nor_vanishes_at_initialization():
    """Backward gain 1 a block: the gradient stays within a factor 3 over 32 blocks, the skip path alone is 2^-16."""
    gradient = residual_profile("post", layers=32, width=128, tokens=16, seeds=8).gradient.mean(0)
    assert 1 / 3 < gradient[0] / gradient[-1] < 3


@pytest.mark.parametrize("sublayer", ["linear", "mlp", "attention"])
def test_identities(sublayer):
    size = {"layers": 8, "width": 16, "tokens": 4, "sublayer": sublayer, "seeds": 3}
    pre, post = residual_profile("pre", **size), residual_profile("post", **size)
    for mix, same in ((0.0, pre), (1.0, post)):
        np.testing.assert_array_equal(residual_profile("mix", mix=mix, **size).variance, same.variance)
        np.testing.assert_array_equal(residual_profile("mix", mix=mix, **size).gradient, same.gradient)
    for placement in ("skipinit", "fixup"):
        got = residual_profile(placement, **size)
        for values in (got.variance, got.gradient):
            np.testing.assert_array_equal(values, np.broadcast_to(values[:, :1], values.shape))
    # the first block of LayerNorm Scaling is Pre's: 1/sqrt(1)
    np.testing.assert_array_equal(residual_profile("layernorm_scaling", **size).variance[:, 1], pre.variance[:, 1])


@pytest.mark.parametrize("sublayer", ["linear", "mlp", "attention"])
def test_runs_and_layers_do_not_depend_on_how_many_there_are(sublayer):
    size = {"width": 16, "tokens": 4, "sublayer": sublayer}
    few = residual_profile("pre", layers=4, seeds=2, **size)
    experiment._cache.clear()
    many = residual_profile("pre", layers=9, seeds=5, **size)
    np.testing.assert_array_equal(few.variance, many.variance[:2, :5])
    np.testing.assert_array_equal(residual_profile("pre", layers=4, seeds=5, **size).gradient[:2], few.gradient)
    assert not np.array_equal(few.variance, residual_profile("pre", layers=4, seeds=2, seed=1, **size).variance)
    assert len({row.tobytes() for row in many.variance}) == 5


def test_cache_is_bounded_and_safe_in_threads(monkeypatch):
    size = {"layers": 6, "width": 32, "tokens": 2, "seeds": 3}
    want = residual_profile("pre", **size).gradient
    experiment._cache.clear()
    monkeypatch.setattr(experiment, "CACHE_BYTES", 5 * 32 * 32 * 4)  # 5 of 18 matrices fit
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(residual_profile("pre", **size).gradient)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for gradient in found:
        np.testing.assert_array_equal(gradient, want)
    assert sum(w.nbytes for w in experiment._cache.values()) <= experiment.CACHE_BYTES
    with pytest.raises(ValueError, match="read-only"):
        next(iter(experiment._cache.values()))[0, 0, 0] = 1.0


def test_precisions_see_the_same_net():
    size = {"layers": 16, "width": 32, "tokens": 4, "seeds": 2}
    single, double = (residual_profile("pre", dtype=d, **size) for d in (np.float32, np.float64))
    np.testing.assert_allclose(single.gradient, double.gradient, rtol=1e-4)  # 16 layers of float32 rounding
    assert not np.array_equal(single.gradient, double.gradient)
    # x^2 of a net without norms leaves float32's range before x does
    deep = residual_profile("none", layers=140, width=16, tokens=2, seeds=2)
    assert deep.variance[:, -1].min() > np.finfo(np.float32).max


def _smirnov(a, b):
    """Two-sample Kolmogorov-Smirnov distance in units in which P(> t) < 2 exp(-2 t^2) for any continuous law."""
    grid = np.sort(np.append(a, b))
    steps = (np.searchsorted(np.sort(sample), grid, side="right") / len(sample) for sample in (a, b))
    return np.abs(np.subtract(*steps)).max() * math.sqrt(len(a) * len(b) / (len(a) + len(b)))


@pytest.mark.parametrize("sublayer", ["linear", "mlp"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_exact_profile_has_the_law_of_real_nets(placement, sublayer):
    """Laws, spreads and correlations at width 12, where fluctuations are large; 400 nets against 8000 samples."""
    layers, width, nets = 8, 12, 400
    size = {"layers": layers, "width": width, "sublayer": sublayer}
    real = residual_profile(placement, tokens=1, seeds=nets, dtype=np.float64, **size)
    exact = exact_profile(placement, seeds=8000, **size)
    for key in ("variance", "gradient"):
        values, want = getattr(exact, key), getattr(real, key)
        constant = np.log(want).std(0) < 1e-3  # after a norm: 1 to eps/variance
        np.testing.assert_allclose(
            values[:, constant], np.broadcast_to(want[:1, constant], (8000, constant.sum())), 1e-3
        )
        for a, b in zip(values[:, ~constant].T, want[:, ~constant].T, strict=True):
            # P(t > 2.6) < 3e-6 each, some 350 dependent pairs in all; first the law, then its spread about the middle
            assert _smirnov(a, b) < 2.6
            middle = np.median(np.log(a))
            assert _smirnov(np.abs(np.log(a) - middle), np.abs(np.log(b) - middle)) < 2.6
    for a, b in (
        ((0, "variance"), (-1, "gradient")),
        ((0, "gradient"), (-1, "gradient")),
        ((-2, "variance"), (0, "gradient")),
    ):
        pairs = [[np.log(getattr(p, key)[:, at]) for at, key in (a, b)] for p in (exact, real)]
        if min(values.std() for pair in pairs for values in pair) > 1e-3:
            z = [np.arctanh(np.clip(np.corrcoef(*pair)[0, 1], -1 + 1e-9, 1 - 1e-9)) for pair in pairs]
            # Fisher: sd 1/sqrt(n-3) for Gaussian logs, 1.3 times that for the tails; an identity has both z > 9
            assert abs(z[0] - z[1]) < 4.5 * 1.3 / math.sqrt(nets - 3) or min(z) > 9


@pytest.mark.parametrize("sublayer", ["linear", "mlp"])
def test_exact_mean_is_the_law(sublayer):
    for placement in ("pre", "layernorm_scaling", "scaled_sqrt_l", "peri"):
        got = exact_profile(placement, layers=64, width=64, sublayer=sublayer, seeds=4000)
        assert got.variance.shape == got.gradient.shape == (4000, 65)
        assert _z(got.variance, laws.variance(placement, 64)).max() < 4.5  # 65 dependent normals


def test_exact_profile_is_reproducible_and_nested():
    a, b = (
        exact_profile("pre", layers=5, width=70, sublayer="mlp"),
        exact_profile("pre", layers=9, width=70, sublayer="mlp"),
    )
    np.testing.assert_array_equal(a.variance, b.variance[:, :6])
    np.testing.assert_array_equal(a.gradient, exact_profile("pre", layers=5, width=70, sublayer="mlp").gradient)
    assert not np.array_equal(a.variance, exact_profile("pre", layers=5, width=70, sublayer="mlp", seed=1).variance)


@pytest.mark.parametrize("width", [5, 64, 70, 128])
def test_coins_are_binomial(width):
    from normkit.depth.exact import _coins

    heads = _coins(np.random.default_rng(width), width, (40_000,))
    want = np.array([math.comb(width, k) for k in range(width + 1)]) / 2**width * 40_000
    groups = want >= 20  # the usual rule for chi-square cells; the rare ones go into one
    observed = np.bincount(heads, minlength=width + 1)
    cells = (
        np.append(observed[groups], observed[~groups].sum()),
        np.append(want[groups], max(want[~groups].sum(), 1e-9)),
    )
    degrees = groups.sum() - (0 if (~groups).any() else 1)
    chi2 = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    # Wilson and Hilferty: (chi2/k)^(1/3) is normal, mean 1 - 2/9k, variance 2/9k
    assert ((chi2 / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / math.sqrt(2 / (9 * degrees)) < 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: residual_profile("pre", layers=0), "layers must be at least 1, got 0"),
        (lambda: residual_profile("prre"), "did you mean 'pre'"),
        (lambda: residual_profile("pre", width=1), "width must be at least 2, got 1: the RMSNorm of a single number"),
        (lambda: residual_profile("pre", tokens=0), "tokens must be at least 1"),
        (lambda: residual_profile("pre", seeds=0), "seeds must be at least 1"),
        (lambda: residual_profile("pre", sublayer="linaer"), "did you mean 'linear'"),
        (lambda: residual_profile("pre", activation="rely"), "did you mean 'relu'"),
        (lambda: residual_profile("pre", width=10, heads=4), "heads must divide width"),
        (lambda: residual_profile("pre", dtype=np.int32), "float32 or float64"),
        (lambda: residual_profile("pre", seed=-1), "seed must be a non-negative integer"),
        (lambda: residual_profile("mix", mix=2.0), "share of post-norm blocks"),
        (lambda: residual_profile("none", layers=3000, width=4, tokens=1, seeds=1), "use fewer layers"),
        (lambda: exact_profile("none", layers=3000, seeds=2), "use fewer layers"),
        (lambda: exact_profile("pre", sublayer="attention"), "unknown sublayer 'attention'"),
        (lambda: exact_profile("pre", width=2), "width must be at least 3"),
        (lambda: exact_profile("pre", seeds=0), "seeds must be at least 1"),
    ],
)
def test_impossible_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
