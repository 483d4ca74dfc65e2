"""Claims about signals at initialization: forward variance, gradients and fixed points.

Thresholds are the paper's or the law's; 0, no difference, where the sentence has no number; 10 % around an equality.
"""

from functools import cache

import numpy as np

from normkit.depth import laws
from normkit.depth.activations import activation_profile
from normkit.depth.experiment import residual_profile
from normkit.depth.placement import residual_step
from normkit.ledger import claim
from normkit.rng import stream

PERI = {"paper": "Peri-LN", "arxiv": "2502.02732"}
MIX = {"paper": "Mix-LN", "arxiv": "2412.13795"}
CURSE = {"paper": "Curse of Depth", "arxiv": "2502.05795"}
RESIDUAL = {"paper": "On residual network depth", "arxiv": "2510.03470"}
SNN = {"paper": "Self-normalizing networks", "arxiv": "1706.02515"}
ELU = {"paper": "ELU", "arxiv": "1511.07289"}
SUBLAYERS = ("linear", "mlp", "attention")
LAYERS = 64


@cache
def profile(placement, sublayer, seed, layers=LAYERS, width=128, tokens=16):
    """(variance, gradient) of one random net, both (layers+1,); kept, since many claims look at the same nets."""
    found = residual_profile(
        placement, layers=layers, width=width, tokens=tokens, sublayer=sublayer, seeds=1, seed=seed, dtype=np.float64
    )
    return found.variance[0], found.gradient[0]


def slope(x, y):
    """Least-squares slope of y on x."""
    x = x - x.mean()
    return x @ (y - y.mean()) / (x @ x)


def growth_exponent(variance):
    """p of Var(x_l) - Var(x_0) ~ l^p, by least squares on logarithms over the deep half."""
    depth = np.arange(len(variance) // 2, len(variance))
    return slope(np.log(depth), np.log(variance[depth] - variance[0]))


def exponential_over_power(variance):
    """log of the misfit of log Var on log(1+l) over that on l, as sums of squares; > 0: the exponential fits better.

    Over l >= 1: the first step away from the embedding belongs to neither law.
    """
    y, depth = np.log(variance[1:]), np.arange(1, len(variance))

    def misfit(x):
        return np.sum((y - y.mean() - slope(x, y) * (x - x.mean())) ** 2)

    return np.log(misfit(np.log1p(depth)) / misfit(depth.astype(float)))


def log_spread(gradient):
    """Standard deviation over layers of log mean-square gradient: 0 for a uniform profile."""
    return np.log(gradient).std()


@claim(
    id="control-null",
    arxiv="",
    paper="(null control)",
    statement="A known falsehood: the first of two nets drawn from the same law has the larger output variance",
    regimes=("pre", "peri", "layernorm_scaling"),
    statistic="log variance ratio at layer 16, net 1 over net 2",
    direction=">",
    threshold=0.0,
    seeds=40,
    budget_s=5,
)
def control(seed):
    pairs = [[profile(p, "linear", 2 * seed + k, layers=16)[0][-1] for k in (0, 1)] for p in control.regimes]
    return [np.log(first / second) for first, second in pairs]


@claim(
    **PERI,
    id="peri-ln-linear-variance",
    statement="With Peri-LN the stream's variance grows linearly with depth at initialization",
    regimes=SUBLAYERS,
    statistic="exponent of variance growth over the deep half of 64 layers",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=40,
    budget_s=10,
)
def peri_linear(seed):
    return [growth_exponent(profile("peri", s, seed)[0]) for s in SUBLAYERS]


def last_matrix_gradient(placement, seed, factor):
    """Norm of dl/dW2 in one block with branch W2 relu(factor W1 h), l = <x_1, g>; 16 tokens of width 64."""
    import torch

    draws = stream(seed, "last matrix")
    x, g = torch.from_numpy(draws.normal(size=(2, 16, 64)))
    w1, w2 = torch.from_numpy(draws.normal(size=(2, 64, 64)) / 8)
    w2.requires_grad_()
    norm = torch.nn.RMSNorm(64, eps=1e-6, dtype=torch.float64)
    y = residual_step(x, lambda h: torch.relu(h @ w1 * factor) @ w2, placement, 0, 1, norm)
    return torch.autograd.grad((y * g).sum(), w2)[0].norm().item()


@claim(
    **PERI,
    id="peri-ln-bounded-gradient",
    statement="With Peri-LN large activations inside a branch do not enlarge the gradient of its last matrix",
    regimes=("first matrix x 10", "first matrix x 100"),
    statistic="log2 of the growth of the last matrix's gradient norm",
    direction="<",
    threshold=1.0,
    seeds=40,
    budget_s=2,
)
def peri_bounded_gradient(seed):
    return [np.log2(last_matrix_gradient("peri", seed, f) / last_matrix_gradient("peri", seed, 1)) for f in (10, 100)]


@claim(
    **PERI,
    id="pre-ln-gradient-follows-activations",
    statement="With Pre-LN the gradient of a branch's last matrix grows in proportion to the activations inside it",
    regimes=("first matrix x 10", "first matrix x 100"),
    statistic="log growth of the last matrix's gradient norm over log growth of the activations",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=40,
    budget_s=2,
)
def pre_gradient_follows(seed):
    growth = [last_matrix_gradient("pre", seed, f) / last_matrix_gradient("pre", seed, 1) for f in (10, 100)]
    return np.log(growth) / np.log([10, 100])


@claim(
    **MIX,
    id="pre-ln-deep-gradients-shrink",
    statement="With Pre-LN gradients are smaller in deep layers than in early ones (here: at initialization)",
    regimes=SUBLAYERS,
    statistic="log mean-square gradient, stream at layer 60 over layer 4",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=10,
)
def pre_deep_gradients(seed):
    return [np.log(g[-5] / g[4]) for _, g in (profile("pre", s, seed) for s in SUBLAYERS)]


@claim(
    **MIX,
    id="post-ln-early-gradients-vanish",
    statement="With Post-LN gradients are smaller in early layers than in deep ones (here: at initialization)",
    regimes=SUBLAYERS,
    statistic="log mean-square gradient, stream at layer 4 over layer 60",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=10,
)
def post_early_gradients(seed):
    return [np.log(g[4] / g[-5]) for _, g in (profile("post", s, seed) for s in SUBLAYERS)]


@claim(
    **MIX,
    id="mix-ln-uniform-gradients",
    statement="Mix-LN makes gradients more uniform over layers than Pre-LN and than Post-LN (here: at initialization)",
    regimes=("vs pre, mlp", "vs post, mlp", "vs pre, attention", "vs post, attention"),
    statistic="spread over layers of the log stream gradient, Mix-LN minus the other",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=15,
)
def mix_uniform(seed):
    spread = {(p, s): log_spread(profile(p, s, seed)[1]) for p in ("mix", "pre", "post") for s in SUBLAYERS[1:]}
    return [spread["mix", s] - spread[p, s] for s in SUBLAYERS[1:] for p in ("pre", "post")]


@claim(
    **CURSE,
    id="pre-ln-exponential-variance",
    statement="With Pre-LN the stream's variance grows exponentially with depth (here: at initialization)",
    regimes=SUBLAYERS,
    statistic="log misfit ratio, power law over exponential, layers 1 to 64",
    direction=">",
    threshold=0.0,
    seeds=40,
    budget_s=10,
)
def pre_exponential(seed):
    return [exponential_over_power(profile("pre", s, seed)[0]) for s in SUBLAYERS]


@claim(
    **CURSE,
    id="lns-at-least-linear",
    statement="With LayerNorm Scaling the variance still grows at least linearly with depth (the paper's lower bound)",
    regimes=SUBLAYERS,
    statistic="exponent of variance growth over the deep half of 64 layers",
    direction=">",
    threshold=0.9,
    seeds=40,
    budget_s=10,
)
def lns_at_least_linear(seed):
    return [growth_exponent(profile("layernorm_scaling", s, seed)[0]) for s in SUBLAYERS]


@claim(
    **CURSE,
    id="lns-mitigates-variance",
    statement="LayerNorm Scaling holds the output variance below that of Pre-LN (here: at initialization)",
    regimes=SUBLAYERS,
    statistic="log variance ratio at layer 64, LayerNorm Scaling over Pre-LN",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=15,
)
def lns_below_pre(seed):
    return [np.log(profile("layernorm_scaling", s, seed)[0][-1] / profile("pre", s, seed)[0][-1]) for s in SUBLAYERS]


def thirds(variance):
    """Growth of log variance over each third of the layers: how much the blocks there change the stream."""
    n = len(variance) - 1
    return np.diff(np.log(variance[[0, n // 3, 2 * n // 3, n]]))


@claim(
    **CURSE,
    id="pre-ln-deep-blocks-idle",
    statement="With Pre-LN deep blocks change the stream less than early ones: they come near the identity",
    regimes=SUBLAYERS,
    statistic="growth of log variance, last third of 64 layers minus first third",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=10,
)
def pre_deep_idle(seed):
    growth = [thirds(profile("pre", s, seed)[0]) for s in SUBLAYERS]
    return [last - first for first, _, last in growth]


@claim(
    **CURSE,
    id="lns-deep-blocks-contribute",
    statement="With LayerNorm Scaling deep blocks change the stream more than with Pre-LN (here: at initialization)",
    regimes=SUBLAYERS,
    statistic="growth of log variance over the last third of 64 layers, LayerNorm Scaling minus Pre-LN",
    direction=">",
    threshold=0.0,
    seeds=40,
    budget_s=15,
)
def lns_deep_contribute(seed):
    return [
        thirds(profile("layernorm_scaling", s, seed)[0])[2] - thirds(profile("pre", s, seed)[0])[2] for s in SUBLAYERS
    ]


@claim(
    **RESIDUAL,
    id="unscaled-residual-explodes",
    statement="Without norms or scaling the signal explodes with the number of paths, 2^L: twice the variance a layer",
    regimes=("linear", "mlp"),
    statistic="slope of log2 variance per layer",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=40,
    budget_s=10,
)
def residual_explodes(seed):
    return [slope(np.arange(LAYERS + 1.0), np.log2(profile("none", s, seed)[0])) for s in ("linear", "mlp")]


@claim(
    **RESIDUAL,
    id="scaled-residual-tamed",
    statement="Scaling every branch by 1/sqrt(L) or 1/L keeps the output variance independent of depth, within 10 %",
    regimes=("1/sqrt(L)", "1/L"),
    statistic="log variance ratio, output of 256 layers over output of 64 layers",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=40,
    budget_s=20,
)
def scaled_tamed(seed):
    outputs = [[profile(p, "mlp", seed, layers=n)[0][-1] for n in (256, 64)] for p in ("scaled_sqrt_l", "scaled_l")]
    return [np.log(deep / shallow) for deep, shallow in outputs]


def plain_net(activation, seed, *, variance=1.0, **options):
    """Moments of one plain net of width 256 whose inputs, 64 samples, are N(0, variance)."""
    inputs = stream(seed, "plain input").normal(0, np.sqrt(variance), (64, 256))
    return activation_profile(activation, width=256, seeds=1, seed=seed, inputs=inputs, **options)


@claim(
    **SNN,
    id="selu-unit-variance",
    statement="SELU nets with LeCun weights pull any activation variance to 1: into the paper's domain, 0.8 to 1.5",
    regimes=("from variance 1", "from variance 16", "from variance 0.02"),
    statistic="variance over units and samples at layer 32",
    direction="within",
    threshold=(0.8, 1.5),
    seeds=40,
    budget_s=15,
)
def selu_unit_variance(seed):
    return [plain_net("selu", seed, layers=32, variance=v).variance[0, -1] for v in (1.0, 16.0, 0.02)]


def mapped_variance(mean, variance, weight_square, draws, layers=32):
    """Variance after the moment map of `layers` layers whose sums of weights are uniform in +-0.1."""
    for _ in range(layers):
        mean, variance = laws.selu_map(mean, variance, draws.uniform(-0.1, 0.1), weight_square)
    return variance


@claim(
    **SNN,
    id="selu-bounded-variance",
    statement="SELU nets can neither explode nor vanish for any sum of squared weights in 0.8 to 1.25: 0.16 < Var < 3",
    regimes=("0.8 from 16", "0.8 from 0.02", "1.25 from 16", "1.25 from 0.02"),
    statistic="variance after 32 steps of the map, by sum of squared weights and first variance; mean +-1, sum w +-0.1",
    direction="within",
    threshold=(0.16, 3.0),
    seeds=40,
    budget_s=5,
)
def selu_bounded(seed):
    draws = stream(seed, "selu corner")
    corners = [(square, variance) for square in (0.8, 1.25) for variance in (16.0, 0.02)]
    return [mapped_variance(draws.uniform(-1, 1), variance, square, draws) for square, variance in corners]


@claim(
    **SNN,
    id="selu-fixed-point-robust",
    statement="Perturbed weights do not push SELU nets off: 32 layers on, variances stay within 0.8 to 1.5",
    regimes=("sum w^2 = 0.8", "sum w^2 = 0.95", "sum w^2 = 1", "sum w^2 = 1.1", "sum w^2 = 1.25"),
    statistic="variance after 32 steps of the map, from mean +-0.1, variance 0.8 to 1.5, sum w +-0.1",
    direction="within",
    threshold=(0.8, 1.5),
    seeds=40,
    budget_s=5,
)
def selu_robust(seed):
    draws = stream(seed, "selu start")
    squares = (0.8, 0.95, 1.0, 1.1, 1.25)
    return [mapped_variance(draws.uniform(-0.1, 0.1), draws.uniform(0.8, 1.5), square, draws) for square in squares]


@claim(
    **ELU,
    id="elu-mean-nearer-zero",
    statement="Negative values let ELU push mean activations nearer to zero than ReLU does",
    regimes=("layer 1", "layer 8"),
    statistic="log ratio of |mean| over rms activation, ELU with LeCun weights over ReLU with He weights",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=5,
)
def elu_mean(seed):
    def shift(activation, init):  # the part of the activations that is bias, not signal
        found = plain_net(activation, seed, layers=8, init=init)
        return np.abs(found.mean[0]) / np.sqrt(found.mean[0] ** 2 + found.variance[0])

    return np.log(shift("elu", "lecun") / shift("relu", "he"))[[1, 8]]
