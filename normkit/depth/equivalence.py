"""Pre-LN = Pre-RMSNorm = Pre-CRMSNorm as a theorem one can run (2305.14858).

LayerNorm is RMSNorm of a recentered row, and a sum of zero-mean rows has zero mean. So take the mean over output
features out of every matrix and bias that writes to the residual stream, move LayerNorm's gain and bias into the
matrices that read it, and RMSNorm computes the same function. A zero-mean row of d numbers is known from d - 1 of them:
CRMSNorm works on those. The stream must only be read through a norm that no gain follows on the stream itself: in
Post-LN, Peri-LN and DeepNorm gain and bias put a mean back into the stream, and un-normed branches see the mean that
was taken away. These are refused. In training the recentering belongs in the forward pass; here it is done once.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from normkit.arrays import finite, floating, namespace, shaped
from normkit.checks import count, pick
from normkit.depth.placement import check, residual_step, rule
from normkit.layers import layer_norm, rms_norm
from normkit.rng import stream

EPS = 1e-5
NORMS = ("layernorm", "rmsnorm", "crmsnorm")


# ---- arrays of any library ------------------------------------------------------------------------------------------


def recenter(x):
    """x minus its mean over the last axis; (..., d) -> (..., d)."""
    xp = namespace(x)
    return x - xp.mean(floating("x", x), axis=-1, keepdims=True)


def compress(x):
    """The first d - 1 entries of zero-mean rows, (..., d) -> (..., d-1); `expand` is its inverse.

    Raises ValueError for d < 2 and for a row whose sum is not zero to half the dtype's digits: its mean would be lost.
    """
    xp = namespace(x)
    if floating("x", x).shape[-1] < 2:
        raise ValueError(f"x needs at least two entries a row to leave one out, got shape {tuple(x.shape)}")
    excess = xp.abs(xp.sum(x, axis=-1)) - float(xp.finfo(x.dtype).eps) ** 0.5 * xp.sum(xp.abs(x), axis=-1)
    if not bool(xp.all(excess <= 0)):  # NaN, too, is not zero
        raise ValueError("x must have rows of mean zero, or its mean would be lost: use compress(recenter(x))")
    return x[..., :-1]


def expand(y):
    """The zero-mean rows that `compress` shortened, (..., d-1) -> (..., d): the last entry is minus the others' sum."""
    xp = namespace(y)
    return xp.concat([y, -xp.sum(floating("y", y), axis=-1, keepdims=True)], axis=-1)


def crms_norm(y, *, eps=EPS):
    """y / sqrt((|y|^2 + (sum y)^2) / d + eps): compress(rms_norm(expand(y))) for y (..., d-1) (2305.14858).

    Raises ValueError for an empty row or an eps that is negative or not finite, TypeError for integers.
    """
    xp = namespace(y)
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a finite number >= 0, got {eps!r}; the paper has 1e-5")
    d = floating("y", y).shape[-1] + 1
    last = xp.sum(y, axis=-1, keepdims=True)
    return y / xp.sqrt((xp.sum(y * y, axis=-1, keepdims=True) + last * last) / d + eps)


# ---- what happens to a matrix (out, in) and its bias (out,) ---------------------------------------------------------


class Affine(NamedTuple):
    """weight @ x + bias, weight (out, in), bias (out,)."""

    weight: Any
    bias: Any

    def __call__(self, x):
        return x @ self.weight.T + self.bias

    def written_recentered(self):
        """Writes what it wrote before, minus the mean over the features it writes to."""
        return Affine(recenter(self.weight.T).T, recenter(self.bias))

    def reading_normalized(self, gain, bias, input_scale=1.0):
        """Reads n and computes what it did with input_scale (gain n + bias)."""
        return Affine(self.weight * gain, self.bias + input_scale * (self.weight @ bias))

    def written_compressed(self):
        return Affine(self.weight[:-1, :], self.bias[:-1])

    def reading_compressed(self):
        """W x = sum_{i<d} (W_i - W_d) x_i, since x_d = -sum_{i<d} x_i."""
        return Affine(self.weight[:, :-1] - self.weight[:, -1:], self.bias)


# ---- a stack of matrices --------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """One branch: writer(tanh(reader(gain norm(x) + bias))), gain and bias (d,) or None once they are folded."""

    gain: Any
    bias: Any
    reader: Affine
    writer: Affine


@dataclass(frozen=True)
class Stack:
    """A residual net out of matrices, NumPy or torch: head(gain norm(x_L) + bias), x_0 = embed(input).

    norm: one of NORMS, the width of a crmsnorm stack is d - 1. placement: as in depth.PLACEMENTS, with the block's own
    gain and bias on each of its norms. Raises ValueError for shapes that do not fit, non-finite entries, unknown names.
    """

    embed: Affine
    blocks: tuple[Block, ...]
    gain: Any
    bias: Any
    head: Affine
    norm: str = "layernorm"
    placement: str = "pre"
    eps: float = EPS

    def __post_init__(self):
        pick("norm", self.norm, NORMS)
        check(self.placement, len(self.blocks))
        width, affine = self.embed.weight.shape[0], self.norm == "layernorm"
        for k, block in enumerate(self.blocks):
            hidden = block.reader.weight.shape[0]
            _fits(f"blocks[{k}].reader", block.reader, hidden, width)
            _fits(f"blocks[{k}].writer", block.writer, width, hidden)
            _fits_norm(f"blocks[{k}]", block, width, affine)
        _fits("embed", self.embed, width, self.embed.weight.shape[1])
        _fits("head", self.head, self.head.weight.shape[0], width)
        _fits_norm("the final norm", self, width, affine)

    def __call__(self, inputs):
        """Outputs (..., outputs) for inputs (..., inputs)."""
        xp, layers = namespace(inputs), len(self.blocks)
        x = self.embed(inputs)
        for layer, block in enumerate(self.blocks):
            x = residual_step(
                x,
                lambda h, b=block: b.writer(xp.tanh(b.reader(h))),
                self.placement,
                layer,
                layers,
                lambda r, b=block: self._normalize(r, b),
            )
        return self.head(self._normalize(x, self))

    def _normalize(self, x, own):
        match self.norm:
            case "layernorm":
                return layer_norm(x, own.gain, own.bias, eps=self.eps)
            case "rmsnorm":
                return rms_norm(x, eps=self.eps)
        return crms_norm(x, eps=self.eps)


def random_stack(*, layers=12, width=32, hidden=64, inputs=8, outputs=8, placement="pre", seed=0, dtype=np.float64):
    """A LayerNorm `Stack` as training might leave it: gains near 1, biases, and writers whose mean is not zero.

    Weights N(1/fan_in, 1/fan_in). Raises ValueError for counts < 1, width < 2, an unknown placement.
    """
    count("width", width, 2, "the LayerNorm of a single number is zero")
    counts = {"layers": layers, "hidden": hidden, "inputs": inputs, "outputs": outputs}
    for name, value in counts.items():
        count(name, value)

    def affine(rows, columns, *path):
        draws = stream(seed, "equivalence", *path)
        weight = draws.standard_normal((rows, columns)) * columns**-0.5 + 1 / columns
        return Affine(weight.astype(dtype), draws.normal(0.2, 0.5, rows).astype(dtype))

    def norm(*path):
        draws = stream(seed, "equivalence", "norm", *path)
        return draws.uniform(0.5, 1.5, width).astype(dtype), draws.normal(0.1, 0.3, width).astype(dtype)

    blocks = tuple(
        Block(*norm(k), affine(hidden, width, "reader", k), affine(width, hidden, "writer", k)) for k in range(layers)
    )
    ends = affine(width, inputs, "embed"), affine(outputs, width, "head")
    return Stack(ends[0], blocks, *norm(), ends[1], placement=placement)


def pre_rmsnorm(stack: Stack) -> Stack:
    """The same function with RMSNorm without gain, of a stream of mean zero.

    Raises ValueError for a stack that does not use LayerNorm, and for a placement under which a branch sees the mean or
    a norm's gain writes one: all but pre and layernorm_scaling (and mix below 4 layers, which has no Post-LN block).
    """
    if stack.norm != "layernorm":
        raise ValueError(f"only a LayerNorm stack can be converted, this one has {stack.norm}")
    layers = len(stack.blocks)
    blocks = []
    for layer, block in enumerate(stack.blocks):
        scale = _input_scale(stack.placement, layer, layers)
        reader = block.reader.reading_normalized(block.gain, block.bias, scale)
        blocks.append(Block(None, None, reader, block.writer.written_recentered()))
    return replace(
        stack,
        embed=stack.embed.written_recentered(),
        blocks=tuple(blocks),
        gain=None,
        bias=None,
        head=stack.head.reading_normalized(stack.gain, stack.bias),
        norm="rmsnorm",
    )


def pre_crmsnorm(stack: Stack) -> Stack:
    """The same function on a stream of one feature less; raises ValueError as `pre_rmsnorm` does."""
    stack = pre_rmsnorm(stack)
    return replace(
        stack,
        embed=stack.embed.written_compressed(),
        blocks=tuple(
            Block(None, None, b.reader.reading_compressed(), b.writer.written_compressed()) for b in stack.blocks
        ),
        head=stack.head.reading_compressed(),
        norm="crmsnorm",
    )


def verify(stack: Stack, inputs) -> dict[str, float]:
    """max |difference| of the converted stacks' outputs from the LayerNorm stack's, by norm, in the stack's dtype.

    Raises ValueError for a stack that cannot be converted and for non-finite outputs.
    """
    xp = namespace(inputs)
    want = finite("the stack's output", stack(inputs))
    converted = {"rmsnorm": pre_rmsnorm(stack), "crmsnorm": pre_crmsnorm(stack)}
    return {name: float(xp.max(xp.abs(finite(f"{name}'s output", c(inputs)) - want))) for name, c in converted.items()}


def mean_injection(amounts, *, width=64, tokens=256, seed=0):
    """How far RMSNorm is from LayerNorm when c is added to every feature: (2, amounts) root mean squares.

    Row 0 is RMSNorm(x + c) - LayerNorm(x + c), where x ~ N(0, 1) is recentered; with rows of variance v it is
    sqrt(2 - 2 / sqrt(1 + c^2/v)). Row 1 recenters x + c first: zero but for roundoff. Raises ValueError for
    non-finite amounts and counts out of range.
    """
    count("width", width, 2, "the LayerNorm of a single number is zero")
    x = recenter(stream(seed, "equivalence", "injection").standard_normal((count("tokens", tokens), width)))
    rows = []
    for c in finite("amounts", np.atleast_1d(np.asarray(amounts, dtype=np.float64))):
        want = layer_norm(x + c, eps=EPS)
        rows.append([np.sqrt(((rms_norm(z, eps=EPS) - want) ** 2).mean()) for z in (x + c, recenter(x + c))])
    return np.array(rows).reshape(-1, 2).T


# ---- torch ----------------------------------------------------------------------------------------------------------


def to_rmsnorm(model):
    """A converted copy of depth.transformer's Transformer or DigitNet with norm="layernorm"; the same logits.

    Readers get biases, RMSNorm has no gain and LayerNorm's eps. Raises TypeError for another model, and ValueError for
    one without LayerNorm or of a placement that `pre_rmsnorm` refuses.
    """
    import torch
    from torch import nn

    from normkit.depth.transformer import Attention, DigitNet, Sublayer, Transformer

    if not isinstance(model, Transformer | DigitNet):
        raise TypeError(f"a Transformer or DigitNet of normkit.depth.transformer is wanted, got {type(model).__name__}")
    parts = [part for part in model.modules() if isinstance(part, Sublayer)]
    scales = [_input_scale(part.placement, *part.place) for part in parts]
    if not isinstance(model.final, nn.LayerNorm):
        raise ValueError(f'the model has no LayerNorm but {model.final}; build it with norm="layernorm"')

    def folded(linear, norm, scale=1.0):
        bias = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias
        sizes = linear.in_features, linear.out_features
        new = nn.utils.skip_init(nn.Linear, *sizes, device=bias.device, dtype=bias.dtype)
        new.load_state_dict(Affine(linear.weight, bias).reading_normalized(norm.weight, norm.bias, scale)._asdict())
        return new

    def without_gain(norm):
        return nn.RMSNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)

    model = copy.deepcopy(model)
    parts = [part for part in model.modules() if isinstance(part, Sublayer)]
    with torch.no_grad():
        for part, scale in zip(parts, scales, strict=True):
            branch = part.branch
            readers, writer = (("query", "key", "value"), "out") if isinstance(branch, Attention) else (("up",), "down")
            for name in readers:
                setattr(branch, name, folded(getattr(branch, name), part.norm, scale))
            weight = getattr(branch, writer).weight
            weight.copy_(recenter(weight.T).T)
            part.norm = without_gain(part.norm)
        if isinstance(model, Transformer):
            model.norm = "rmsnorm"
            for rows in (model.token.weight, model.position.weight):
                rows.copy_(recenter(rows))
        else:
            model.first.weight.copy_(recenter(model.first.weight.T).T)
        model.head, model.final = folded(model.head, model.final), without_gain(model.final)
    return model


# ---- checks ---------------------------------------------------------------------------------------------------------


def _input_scale(placement, layer, layers):
    """The block's scale on its normalized input; ValueError if something but a norm at its input sees the mean."""
    here = rule(placement, layer, layers)
    if not here.norm_input or here.norm_output or here.norm_sum:
        raise ValueError(
            f"block {layer} of placement {placement!r} cannot be converted: the stream must be read through a norm "
            "only, and no gain or bias of a norm may write to it; use pre or layernorm_scaling"
        )
    return here.input_scale


def _fits(name, affine, rows, columns):
    finite(f"{name}.weight", shaped(f"{name}.weight", affine.weight, (rows, columns), "the stack"))
    finite(f"{name}.bias", shaped(f"{name}.bias", affine.bias, (rows,), f"{name}.weight"))


def _fits_norm(name, own, width, wanted):
    if (own.gain is not None, own.bias is not None) != (wanted, wanted):
        raise ValueError(f"{name} must have {'both' if wanted else 'neither'} gain and bias: only layernorm has them")
    for part in ("gain", "bias") if wanted else ():
        finite(f"{name}.{part}", shaped(f"{name}.{part}", getattr(own, part), (width,), "the stream"))
