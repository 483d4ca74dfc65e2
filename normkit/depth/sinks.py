"""Residual sinks and outlier-driven rescaling (Qiu et al. 2601.22966): an outlier is how a norm is told to turn down.

RMSNorm divides a token by its own size. A net that wants all features of a token smaller has no gain for it, but can
write one huge value s into a feature that nobody reads (its norm gain is about 0): every other normalized feature then
shrinks by 1/sqrt(1 + s^2/||rest||^2). A gate after the norm does the same without the outlier.
The formulas take arrays of NumPy, torch, ...; `train_sink` needs torch.
"""

import math
from dataclasses import dataclass

import numpy as np

from normkit.arrays import finite, floating, namespace, shaped
from normkit.checks import count, pick
from normkit.layers import rms_norm

__all__ = ["ARMS", "Sink", "gated_norm", "pre_affine", "rest_gain", "sink_height", "train_sink"]

ARMS = ("plain", "pre_affine", "gated")
WIDTH, HIDDEN, RANK, BATCH, RATE, TESTS = 16, 4, 4, 128, 1e-2, 2048


def sink_height(gain, rest_norm):
    """|s| of the sink that multiplies all other normalized features by `gain`: ||rest|| sqrt(gain^-2 - 1).

    rest_norm: Euclidean norm of the other features, any shape; gain in (0, 1], a number or of that shape. float64.
    Raises ValueError for a gain outside (0, 1] (an outlier can only turn down) and a rest_norm that is not positive.
    """
    gain, rest_norm = np.asarray(gain, float), np.asarray(rest_norm, float)
    if not ((gain > 0) & (gain <= 1)).all():
        raise ValueError(f"gain must be in (0, 1], an outlier can only turn the others down; got {gain}")
    return _positive(rest_norm) * np.sqrt((1 - gain) * (1 + gain)) / gain


def rest_gain(sink, rest_norm):
    """What a sink of value `sink` multiplies the other normalized features by: 1/sqrt(1 + sink^2/rest_norm^2).

    The inverse of `sink_height`, float64. Raises ValueError for a non-finite sink or a rest_norm that is not positive.
    """
    rest_norm = _positive(np.asarray(rest_norm, float))
    return rest_norm / np.hypot(rest_norm, finite("sink", np.asarray(sink, float)))


def pre_affine(x, before, after, *, eps=1e-6):
    """PreAffine norm RMSNorm(before * x) * after over the last axis: `before` amplifies a sink inside the norm only.

    x: (..., width); before, after: (width,). Raises ValueError for other shapes, TypeError for mixed libraries.
    """
    namespace(floating("x", x), before, after)
    shaped("before", before, x.shape[-1:])
    return rms_norm(x * before, after, eps=eps)


def gated_norm(x, down, up, weight=None, *, eps=1e-6):
    """GatedNorm y * 2 sigmoid(up SiLU(down y)), y = RMSNorm(x) * weight: a token's scale without an outlier.

    x: (..., width); down: (rank, width); up: (width, rank); weight: (width,) or None. With up = 0 the gate is exactly
    1, which is what the 2 is for. Raises ValueError for other shapes, TypeError for mixed libraries.
    """
    xp = namespace(floating("x", x), down, up)
    if down.ndim != 2:
        raise ValueError(f"down must have shape (rank, width), got {tuple(down.shape)}")
    shaped("down", down, (down.shape[0], x.shape[-1]))
    shaped("up", up, (x.shape[-1], down.shape[0]), like="x and down")
    y = rms_norm(x, weight, eps=eps)
    z = y @ down.T
    silu = z * (1 + xp.tanh(z / 2)) / 2
    return y * (1 + xp.tanh(silu @ up.T / 2))  # 2 sigmoid(a) = 1 + tanh(a/2), which cannot overflow


@dataclass(frozen=True)
class Sink:
    """A trained toy, measured on new tokens. "On" is a token whose flag asks for the smaller scale."""

    gain: float  # asked for: rms of the wanted output, flag on over off
    shrink: float  # reached: the same of the net's output, median token
    loss: float  # mean square error
    peak_to_median: float  # of the features' mean |stream|, flag on: the sink, if there is one
    sink_gain: float  # |norm gain| of that largest feature (nearly 0: its content is thrown away)
    rms_ratio: float  # rms of the stream, flag on over off, median token; 1/gain if the outlier does all of the work
    height: float  # mean |stream| of the largest feature, flag on
    clips: np.ndarray  # (levels,) to which the stream was clipped before the norm
    clipped_shrink: np.ndarray  # (levels,)
    clipped_loss: np.ndarray  # (levels,)


def train_sink(arm="plain", *, gain=0.1, seed=0, steps=1500, clips=(20.0, 10.0, 5.0, 2.0)) -> Sink:
    """Ask a small net to scale flagged tokens by `gain`, and see how it does it.

    Tokens: 15 features N(0,1) and a flag +-1. Wanted: the 15 features at rms 1, times `gain` if flagged, and 0 for the
    16th. Net: norm(x + MLP(x)), 4 hidden ReLU units, with the norm of `arm`: "plain" RMSNorm with gain, "pre_affine",
    or "gated" (rank 4). Adam at 1e-2, fresh batches of 128; the arms see the same tokens and start as one function.
    `clips` are levels to which the trained stream is clipped before the norm, without training again.
    Raises ValueError for an unknown arm, gain outside (0, 1], steps < 1, or a level that is not positive.
    """
    import torch
    from torch.nn import functional as F

    from normkit.depth.transformer import generator

    pick("arm", arm, ARMS)
    sink_height(gain, 1.0)
    count("steps", steps)
    clips = np.asarray(clips, float)
    if clips.ndim != 1 or not (clips > 0).all():
        raise ValueError(f"clips must be a sequence of positive levels, got {clips}")

    draws = generator(seed, "sink", "weights")

    def weights(*shape):
        return (torch.randn(shape, generator=draws) * shape[-1] ** -0.5).requires_grad_()

    w1, w2, down = weights(HIDDEN, WIDTH), weights(WIDTH, HIDDEN), weights(RANK, WIDTH)
    bias, up = (torch.zeros(shape, requires_grad=True) for shape in (HIDDEN, (WIDTH, RANK)))
    before, after = (torch.ones(WIDTH, requires_grad=True) for _ in range(2))
    norm, learned = {
        "plain": (lambda x: rms_norm(x, after), []),
        "pre_affine": (lambda x: pre_affine(x, before, after), [before]),
        "gated": (lambda x: gated_norm(x, down, up, after), [down, up]),
    }[arm]

    def batch(draws, size):
        x = torch.randn(size, WIDTH, generator=draws)
        on = torch.rand(size, generator=draws) < 0.5
        x[:, -1] = torch.where(on, 1.0, -1.0)
        wanted = rms_norm(x[:, :-1]) * torch.where(on, gain, 1.0)[:, None]
        return x, on, F.pad(wanted, (0, 1))

    def stream(x):
        return x + F.relu(F.linear(x, w1, bias)) @ w2.T

    adam = torch.optim.Adam([w1, bias, w2, after, *learned], lr=RATE)
    tokens = generator(seed, "sink", "tokens")
    for _ in range(steps):
        x, _, wanted = batch(tokens, BATCH)
        loss = F.mse_loss(norm(stream(x)), wanted)
        adam.zero_grad()
        loss.backward()
        adam.step()

    def ratio(x, on):
        size = x.square().mean(-1).sqrt()
        return (size[on].median() / size[~on].median()).item()

    with torch.no_grad():
        x, on, wanted = batch(generator(seed, "sink", "test"), TESTS)
        r = stream(x)
        levels = r[on].abs().mean(0)
        clipped = [norm(r.clamp(-level, level)) for level in (math.inf, *clips.tolist())]
        shrinks = [ratio(y[:, :-1], on) for y in clipped]
        losses = [F.mse_loss(y, wanted).item() for y in clipped]
        return Sink(
            gain=float(gain),
            shrink=shrinks[0],
            loss=losses[0],
            peak_to_median=(levels.max() / levels.median()).item(),
            sink_gain=after[levels.argmax()].abs().item(),
            rms_ratio=ratio(r, on),
            height=levels.max().item(),
            clips=clips,
            clipped_shrink=np.array(shrinks[1:]),
            clipped_loss=np.array(losses[1:]),
        )


def _positive(rest_norm):
    if not (finite("rest_norm", rest_norm) > 0).all():
        raise ValueError(f"rest_norm must be positive, got {rest_norm}: without other features nothing is rescaled")
    return rest_norm
