"""Random residual nets, forward and backward: the variance of the stream and of its gradient at every depth.

Plain NumPy with hand-written vector-Jacobian products; runs are stacked in a leading dimension. Weights come from one
stream per (seed, run, layer) and are kept, so that a slider that changes depth or placement never draws them again.
"""

import threading
from collections import OrderedDict

import numpy as np

from normkit.checks import count, pick
from normkit.depth.activations import ACTIVATIONS, second_moment
from normkit.depth.exact import exact_profile
from normkit.depth.placement import check, rule, weight_scales
from normkit.profile import Profile
from normkit.rng import stream

__all__ = ["exact_profile", "residual_profile"]

EPS = 1e-6  # of the RMSNorm, inside the root
MATRICES = {"linear": 1, "mlp": 2, "attention": 4}
CACHE_BYTES = 2**28  # of weights kept between calls


def residual_profile(
    placement,
    *,
    layers=64,
    width=128,
    tokens=16,
    sublayer="linear",
    seeds=8,
    seed=0,
    activation="relu",
    heads=1,
    mix=0.25,
    dtype=np.float32,
) -> Profile:
    """Variance and gradient of `seeds` random residual nets, both (seeds, layers+1).

    sublayer: "linear" W h; "mlp" W2 phi(W1 h), hidden size = width; "attention" W_O softmax(q k / sqrt(width/heads)) v
    over all tokens, no mask. Weights N(0, 1/fan_in), those after phi N(0, 1/(fan_in E phi(z)^2)) (He's 2/fan_in for
    ReLU), so that linear and mlp keep a unit variance; DeepNorm and Fixup rescale them (placement.weight_scales).
    Norms are RMSNorm without gain, eps 1e-6. Input x_0 ~ N(0,1), (tokens, width), another one for every run.
    variance[:, l] is the mean square of x_l, gradient[:, l] that of dl/dx_l for l = <x_L, g>, g ~ N(0,1). The profile
    also has norm, the mean token norm; update, the mean square of x_{l+1} - x_l; angle, between the two over pi; and with
    attention its entropy in nats.
    A run does not depend on how many others there are, nor its layer k on `layers` (but for rules that use L).
    Raises ValueError for unknown names, layers, tokens, seeds < 1, width < 2, heads that do not divide width, overflow.
    """
    placement = check(placement, layers)
    count("width", width, 2, "the RMSNorm of a single number is its sign")
    count("tokens", tokens)
    count("seeds", seeds)
    count("heads", heads)
    pick("sublayer", sublayer, MATRICES)
    pick("activation", activation, ACTIVATIONS)
    if width % heads:
        raise ValueError(f"heads must divide width, got {heads} heads and width {width}")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")

    branch = _branch(sublayer, activation, heads, weight_scales(placement, layers, min(MATRICES[sublayer], 2)))
    rules = [rule(placement, layer, layers, mix=mix) for layer in range(layers)]

    def weights(layer):
        kept = [_weights(seed, run, layer, width, MATRICES[sublayer]) for run in range(seeds)]
        return kept if np.dtype(dtype) == np.float32 else [w.astype(dtype) for w in kept]

    x = np.stack([_normal((tokens, width), seed, run, "input") for run in range(seeds)]).astype(dtype)
    g = np.stack([_normal((tokens, width), seed, run, "cotangent") for run in range(seeds)]).astype(dtype)
    variance, gradient, norm = np.empty((3, layers + 1, seeds))
    update, angle = np.empty((2, layers, seeds))
    entropy = np.empty((layers, seeds)) if sublayer == "attention" else None
    tapes = []
    with np.errstate(over="ignore", invalid="ignore"):  # Profile reports an overflow, with its layer
        last = x.astype(np.float64)  # squares of a large float32 overflow
        variance[0], norm[0] = _sizes(np.vecdot(last, last), width)
        for layer, here in enumerate(rules):
            x, tape = _forward(x, here, branch, weights(layer))
            tapes.append(tape)
            now = x.astype(np.float64)
            power, was, both = np.vecdot(now, now), np.vecdot(last, last), np.vecdot(last, now)
            variance[layer + 1], norm[layer + 1] = _sizes(power, width)
            update[layer] = np.maximum(power + was - 2 * both, 0).mean(-1) / width
            cosine = both / np.sqrt(power * was)
            angle[layer] = np.arccos(np.clip(cosine, -1, 1)).mean(-1) / np.pi
            last = now
            if entropy is not None:
                entropy[layer] = branch.entropy(tape[2])
        gradient[layers] = _mean_square(g)
        for layer in reversed(range(layers)):
            g = _backward(g, rules[layer], branch, weights(layer), tapes.pop())
            gradient[layer] = _mean_square(g)
    meta = {
        "placement": placement,
        "sublayer": sublayer,
        "activation": activation,
        "layers": layers,
        "width": width,
        "tokens": tokens,
        "heads": heads,
        "mix": mix,
        "seed": seed,
    }
    entropy = None if entropy is None else entropy.T
    return Profile(placement, variance.T, gradient.T, update.T, norm.T, angle.T, entropy, meta)


# ---- one block ------------------------------------------------------------------------------------------------------


def _forward(x, here, branch, weights):
    n, inverse = _norm(x) if here.norm_input else (x, None)
    h = n if here.input_scale == 1.0 else n * x.dtype.type(here.input_scale)
    y, tape = branch.forward(h, weights)
    output = _norm(y) if here.norm_output else None
    y = output[0] if output else y
    if here.branch_scale != 1.0:
        y = y * x.dtype.type(here.branch_scale)
    r = (x if here.skip == 1.0 else x * x.dtype.type(here.skip)) + y
    total = _norm(r) if here.norm_sum else None
    return (total[0] if total else r), (n, inverse, tape, output, total)


def _backward(g, here, branch, weights, saved):
    n, inverse, tape, output, total = saved
    if total:
        g = _norm_vjp(g, *total)
    gy = g if here.branch_scale == 1.0 else g * g.dtype.type(here.branch_scale)
    if output:
        gy = _norm_vjp(gy, *output)
    gh = branch.backward(gy, weights, tape)
    if here.input_scale != 1.0:
        gh *= gh.dtype.type(here.input_scale)
    if inverse is not None:
        gh = _norm_vjp(gh, n, inverse)
    return (g if here.skip == 1.0 else g * g.dtype.type(here.skip)) + gh


def _norm(x):
    inverse = 1 / np.sqrt(np.vecdot(x, x)[..., None] / x.dtype.type(x.shape[-1]) + x.dtype.type(EPS))
    return x * inverse, inverse


def _norm_vjp(g, n, inverse):
    """d(x/rms)/dx^T g = (g - n <n, g>/width) / rms; with eps, <n, n> < width, and the same formula holds."""
    return (g - n * (np.vecdot(n, g)[..., None] / n.dtype.type(n.shape[-1]))) * inverse


# ---- sublayers: forward(h, weights) -> y, tape; backward(gy, weights, tape) -> gh; h (runs, tokens, width) -----------


class _Linear:
    def __init__(self, scales):
        self.scale = scales[0]

    def forward(self, h, weights):
        return _scaled(_matmul(h, [w[0] for w in weights]), self.scale), None

    def backward(self, gy, weights, tape):
        return _scaled(_matmul(gy, [w[0].T for w in weights]), self.scale)


class _MLP:
    def __init__(self, scales, activation):
        self.activation, self.slope = ACTIVATIONS[activation]
        self.first, self.second = scales[0], scales[1] * second_moment(activation) ** -0.5

    def forward(self, h, weights):
        z = _scaled(_matmul(h, [w[0] for w in weights]), self.first)
        return _scaled(_matmul(self.activation(z), [w[1] for w in weights]), self.second), z

    def backward(self, gy, weights, z):
        gz = _matmul(gy, [w[1].T for w in weights]) * self.slope(z)
        return _scaled(_matmul(gz, [w[0].T for w in weights]), self.first * self.second)


class _Attention:
    """Weights per run: W_Q, W_K, W_V, W_O."""

    def __init__(self, scales, heads):
        self.scale, self.heads = scales[0] * scales[1], heads

    def forward(self, h, weights):
        q, k, v = (self._split(_matmul(h, [w[i] for w in weights])) for i in range(3))
        q *= q.dtype.type(q.shape[-1] ** -0.5)
        a = np.matmul(q, k.swapaxes(-1, -2))
        a -= a.max(-1, keepdims=True)
        np.exp(a, out=a)
        a /= a.sum(-1, keepdims=True)
        o = self._join(np.matmul(a, v))
        return _scaled(_matmul(o, [w[3] for w in weights]), self.scale), (q, k, v, a)

    def backward(self, gy, weights, tape):
        q, k, v, a = tape
        go = self._split(_scaled(_matmul(gy, [w[3].T for w in weights]), self.scale))
        ga = np.matmul(go, v.swapaxes(-1, -2))
        gs = a * (ga - np.vecdot(a, ga)[..., None])
        gq = np.matmul(gs, k) * q.dtype.type(q.shape[-1] ** -0.5)
        gk, gv = np.matmul(gs.swapaxes(-1, -2), q), np.matmul(a.swapaxes(-1, -2), go)
        return sum(_matmul(self._join(part), [w[i].T for w in weights]) for i, part in enumerate((gq, gk, gv)))

    def entropy(self, tape):
        """Mean over heads and queries of -sum a log a, in nats, (runs,)."""
        a = tape[3]
        return -np.where(a > 0, a * np.log(np.maximum(a, np.finfo(a.dtype).tiny)), 0).sum(-1).mean((1, 2))

    def _split(self, x):
        runs, tokens, width = x.shape
        return x.reshape(runs, tokens, self.heads, width // self.heads).swapaxes(1, 2)

    def _join(self, x):
        runs, heads, tokens, size = x.shape
        return x.swapaxes(1, 2).reshape(runs, tokens, heads * size)


def _branch(sublayer, activation, heads, scales):
    if sublayer == "linear":
        return _Linear(scales)
    return _MLP(scales, activation) if sublayer == "mlp" else _Attention(scales, heads)


def _scaled(x, scale):
    if scale != 1.0:
        x *= x.dtype.type(scale)
    return x


def _matmul(x, weights):
    """One product a run: its bits cannot depend on the number of runs, and cached weights need not be stacked."""
    y = np.empty(x.shape[:-1] + weights[0].shape[-1:], x.dtype)
    for run, w in enumerate(weights):
        np.matmul(x[run], w, out=y[run])
    return y


def _sizes(power, width):
    """Mean square and mean norm, (runs,), from every token's sum of squares, (runs, tokens)."""
    return power.mean(-1) / width, np.sqrt(power).mean(-1)


def _mean_square(x):
    total = np.vecdot(x, x).mean(-1, dtype=np.float64) / x.shape[-1]
    if not np.isfinite(total).all():  # the square of a large float32
        x = x.astype(np.float64)
        total = np.vecdot(x, x).mean(-1) / x.shape[-1]
    return total


# ---- random numbers -------------------------------------------------------------------------------------------------


class _Kept(OrderedDict):
    """Arrays by key, at most CACHE_BYTES of them; the one used longest ago goes first. Locked: labs run two threads."""

    def __init__(self):
        super().__init__()
        self.lock, self.nbytes = threading.Lock(), 0

    def recall(self, key):
        with self.lock:
            if key in self:
                self.move_to_end(key)
            return self.get(key)

    def keep(self, key, array):
        with self.lock:
            if key not in self:
                self[key] = array
                self.nbytes += array.nbytes
            while self.nbytes > CACHE_BYTES:
                self.nbytes -= self.popitem(last=False)[1].nbytes

    def clear(self):
        with self.lock:
            super().clear()
            self.nbytes = 0


_cache = _Kept()


def _normal(shape, seed, run, *path):
    """float32 draws for either precision, so that both see the same net."""
    return stream(seed, "depth", run, *path).standard_normal(shape, dtype=np.float32)


def _weights(seed, run, layer, width, matrices):
    """(matrices, width, width), entries N(0, 1/width); read-only, kept up to CACHE_BYTES, oldest use dropped first."""
    key = (int(seed), run, layer, width, matrices)
    w = _cache.recall(key)
    if w is None:
        w = _normal((matrices, width, width), seed, run, "weights", layer)
        w *= np.float32(width**-0.5)
        w.flags.writeable = False
        _cache.keep(key, w)
    return w
