"""Norms of stream and gradient of thousands of random nets, exact in law, from a few random numbers a layer.

One token, branches W h or W2 relu(W1 h). Given h, a fresh Gaussian matrix gives W h ~ N(0, |h|^2/d I): only its part
along x and the length of the rest matter for |x + W h|. Of a ReLU layer's m units K ~ Binomial(m, 1/2) are on, and
|relu|^2 ~ chi2_K.

Backward, given W h = y, W^T g is h (y.g)/|h|^2 plus a fresh Gaussian orthogonal to h, so that the state is |g| and g.x.
Given x_{l+1}, the way up (g_{l+1}) is independent of the way down (x_l), whose direction around x_{l+1} is uniform.
"""

import numpy as np

from normkit.checks import count, pick
from normkit.depth.placement import check, rule, weight_scales
from normkit.profile import Profile
from normkit.rng import stream


def exact_profile(placement, *, layers=64, width=128, sublayer="linear", seeds=1000, seed=0, mix=0.25) -> Profile:
    """Variance and gradient, (seeds, layers+1), with the joint law over l of `residual_profile` at tokens=1, eps=0.

    sublayer "linear" or "mlp" (ReLU, hidden size = width). Not a mean-field limit: finite-width fluctuations, their
    correlation over depth and between variance and gradient are those of real nets. variance[:, :k] does not depend on
    `layers` (but for rules that use L).
    Raises ValueError for unknown names, layers or seeds < 1, width < 3, or overflow.
    """
    placement = check(placement, layers)
    count("width", width, 3, "the law splits off two directions")
    count("seeds", seeds)
    pick("sublayer", sublayer, ("linear", "mlp"))
    gain = np.prod(weight_scales(placement, layers, 1 if sublayer == "linear" else 2)) ** 2
    rules = [rule(placement, layer, layers, mix=mix) for layer in range(layers)]

    forward, backward = stream(seed, "exact", "forward"), stream(seed, "exact", "backward")
    square = _chi2(forward, width, seeds)  # |x|^2
    squares, kept = [square], []
    with np.errstate(over="ignore", invalid="ignore"):
        for here in rules:
            square, tape = _forward(square, here, gain, width, sublayer, forward)
            squares.append(square)
            kept.append(tape)
        along = backward.standard_normal(seeds)  # g.x/|x| at the top
        total = along**2 + _chi2(backward, width - 1, seeds)  # |g|^2
        gradients = [total]
        for layer in reversed(range(layers)):
            total, along = _backward(total, along, squares[layer], rules[layer], gain, width, kept[layer], backward)
            gradients.append(total)
    meta = {"placement": placement, "sublayer": sublayer, "layers": layers, "width": width, "mix": mix, "seed": seed}
    return Profile(placement, np.stack(squares, 1) / width, np.stack(gradients[::-1], 1) / width, meta=meta)


def _forward(square, here, gain, width, sublayer, draws):
    """|x_{l+1}|^2, and what the way back needs: y is the branch before its output norm, r the sum before its norm."""
    h2 = here.input_scale**2 * (width if here.norm_input else square)
    active, chi_active = None, width / 2
    if sublayer == "mlp":
        active = _coins(draws, width, square.shape)
        chi_active = _chi2(draws, active)
    deviation = np.sqrt(gain * h2 * chi_active * 2) / width
    along = deviation * draws.standard_normal(square.shape)  # y.x/|x|
    y2 = along**2 + deviation**2 * _chi2(draws, width - 1, square.shape)
    scale = here.branch_scale * (_ratio(width, y2) ** 0.5 if here.norm_output else np.ones_like(y2))
    r2 = here.skip**2 * square + 2 * here.skip * scale * along * np.sqrt(square) + scale**2 * y2
    return (np.full_like(r2, width) if here.norm_sum else r2), (h2, active, chi_active, along, y2, scale, r2)


def _backward(total, along, square, here, gain, width, kept, draws):
    """|g_l|^2 and g_l.x_l/|x_l| from those at l+1."""
    h2, active, chi_active, y_along, y2, scale, r2 = kept
    norm, r_norm = np.sqrt(square), np.sqrt(r2)
    if here.norm_sum:
        total, along = (total - along**2) * width / r2, 0.0
    # g.x from the angle between x and r, and a uniform direction around r
    x_along_r = (here.skip * square + scale * y_along * norm) / r_norm
    x_across_r = np.sqrt(np.maximum(square - x_along_r**2, 0.0))
    z = draws.standard_normal(square.shape)
    uniform = z / np.sqrt(z**2 + _chi2(draws, width - 2, square.shape))
    g_x = along * x_along_r + x_across_r * np.sqrt(np.maximum(total - along**2, 0.0)) * uniform
    g_y = _ratio(along * r_norm - here.skip * g_x, scale)
    # the cotangent of y, then of the branch's input h: a part along h and `spread` in each other direction
    gy2 = scale**2 * (total - (_ratio(g_y**2, y2) if here.norm_output else 0.0))
    gy_y = 0.0 if here.norm_output else scale * g_y
    spread2 = gain * gy2
    if active is not None:
        spread2 = gain * gy2 * 2 / width * _chi2(draws, np.maximum(active - 1, 0)) + _ratio(
            gy_y**2 * width, h2 * chi_active
        )
    factor = here.input_scale * (np.sqrt(width / square) if here.norm_input else 1.0)
    spread = factor * np.sqrt(spread2 / width)
    new_along = here.skip * g_x / norm + (0.0 if here.norm_input else factor * gy_y / np.sqrt(h2))
    across2 = here.skip**2 * np.maximum(total - (g_x / norm) ** 2, 0.0)
    z = draws.standard_normal(square.shape)
    across2 = (np.sqrt(across2) + spread * z) ** 2 + spread**2 * _chi2(draws, width - 2, square.shape)
    return new_along**2 + across2, new_along


def _ratio(a, b):
    """a/b, and 0 where b is 0: a branch that returns nothing sends nothing back."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.not_equal(b, 0))


def _coins(draws, width, shape):
    """Binomial(width, 1/2) as the number of ones among `width` random bits, ten times as fast as the sampler."""
    bits = draws.integers(0, 2**64, (*shape, -(-width // 64)), dtype=np.uint64)
    bits[..., -1] >>= np.uint64(-width % 64)
    return np.bitwise_count(bits).sum(-1, dtype=np.int64)


def _chi2(draws, degrees, size=None):
    return 2 * draws.standard_gamma(np.asarray(degrees) / 2, size)
