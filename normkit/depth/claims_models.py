"""Claims about what a norm does in a given model: equal models, outliers that rescale, a proxy for the nuclear norm."""

import timeit
from dataclasses import replace
from functools import cache

import numpy as np

from normkit.depth.claims_init import RESIDUAL
from normkit.depth.equivalence import Affine, Block, pre_rmsnorm, random_stack, verify
from normkit.depth.expansion import truncation_error
from normkit.depth.nuclear import compare, mnn, nuclear_norm, prepare
from normkit.depth.sinks import train_sink
from normkit.layers import rms_norm
from normkit.ledger import claim
from normkit.rng import stream

RMS = {"paper": "Pre-RMSNorm", "arxiv": "2305.14858"}
SINKS = {"paper": "Residual sinks", "arxiv": "2601.22966"}
NUCLEAR = {"paper": "Matrix Nuclear-Norm", "arxiv": "2410.10672"}


def learnable(stack):
    """The stack with torch tensors that learn, and the list of these, in a fixed order."""
    import torch

    leaves = []

    def learn(array):
        leaves.append(torch.from_numpy(array).requires_grad_())
        return leaves[-1]

    def affine(own):
        return Affine(learn(own.weight), learn(own.bias))

    blocks = tuple(Block(learn(b.gain), learn(b.bias), affine(b.reader), affine(b.writer)) for b in stack.blocks)
    ends = {"embed": affine(stack.embed), "head": affine(stack.head), "gain": learn(stack.gain)}
    return replace(stack, blocks=blocks, bias=learn(stack.bias), **ends), leaves


def output_and_gradient(seed, convert):
    """Output (16, 8) of convert(random LayerNorm stack) and its gradient, flat, in the LayerNorm stack's parameters.

    The conversion is part of the forward pass, as 2305.14858 has it for training, so that both nets learn the same
    parameters.
    """
    import torch

    stack, leaves = learnable(random_stack(seed=seed))
    x, g = torch.from_numpy(stream(seed, "equivalence inputs").normal(size=(2, 16, 8)))
    y = convert(stack)(x)
    gradient = torch.autograd.grad((y * g).sum(), leaves)
    return y.detach().numpy(), torch.cat([part.flatten() for part in gradient]).numpy()


def relative_error(a, b):
    """log10 of |a - b| / |b|, Frobenius, from 1e-17 up."""
    return np.log10(max(np.linalg.norm(a - b) / np.linalg.norm(b), 1e-17))


@claim(
    **RMS,
    id="pre-ln-equals-pre-rmsnorm",
    statement="A Pre-LN net and its Pre-RMSNorm net with recentered stream are the same function, in use and training",
    regimes=("output", "gradient"),
    statistic="log10 relative difference after 12 blocks in float64",
    direction="<",
    threshold=-12.0,
    seeds=10,
    budget_s=5,
)
def rmsnorm_equals(seed):
    layernorm, rmsnorm = (output_and_gradient(seed, convert) for convert in (lambda stack: stack, pre_rmsnorm))
    return [relative_error(a, b) for a, b in zip(rmsnorm, layernorm, strict=True)]


@claim(
    **RMS,
    id="pre-crmsnorm-lossless",
    statement="Converting a Pre-LN net to Pre-RMSNorm, or to Pre-CRMSNorm with one feature less, keeps its outputs",
    regimes=("rmsnorm", "crmsnorm"),
    statistic="log10 of the largest output difference after 12 blocks in float64, outputs of order 1",
    direction="<",
    threshold=-12.0,
    seeds=10,
    budget_s=2,
)
def crmsnorm_lossless(seed):
    inputs = stream(seed, "equivalence inputs").normal(size=(16, 8))
    found = verify(random_stack(seed=seed), inputs)
    return np.log10([max(found[name], 1e-17) for name in ("rmsnorm", "crmsnorm")])


@claim(
    **RESIDUAL,
    id="residual-expansion-orders",
    statement="A residual net is the sum over its paths: cut at order k, the error falls as branch scale to the k+1",
    regimes=("order 0", "order 1", "order 2"),
    statistic="log2 error ratio when the scale is halved, over k+1",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=10,
    budget_s=5,
)
def expansion_orders(seed):
    scales = (1 / 64, 1 / 128)
    errors = [[truncation_error(scale, order, seed=seed) for scale in scales] for order in range(3)]
    return [np.log2(whole / half) / (order + 1) for order, (whole, half) in enumerate(errors)]


@cache
def sink(arm, seed):
    return train_sink(arm, seed=seed)


@claim(
    **SINKS,
    id="clipping-outliers-hurts",
    statement="Clipping the outliers of a trained net, with the norm in place, makes it worse",
    regimes=("at 20", "at 10", "at 5", "at 2"),
    statistic="log error ratio on the sink task, stream clipped over not clipped",
    direction=">",
    threshold=0.0,
    seeds=5,
    budget_s=30,
)
def clipping_hurts(seed):
    return np.log(sink("plain", seed).clipped_loss / sink("plain", seed).loss)


@claim(
    **SINKS,
    id="gates-replace-outliers",
    statement="A gate after the norm takes over from outliers, and the net learns better with it",
    regimes=("outlier", "loss"),
    statistic="log ratio, GatedNorm over RMSNorm: largest over median feature, and training task's error",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=60,
)
def gates_replace(seed):
    gated, plain = sink("gated", seed), sink("plain", seed)
    return [np.log(gated.peak_to_median / plain.peak_to_median), np.log(gated.loss / plain.loss)]


def other_outputs(seed, outliers, width=64):
    """rms of the RMSNorm outputs of ordinary features beside an outlier of each size."""
    x = stream(seed, "sink").normal(size=(256, width))
    return [rms(rms_norm(np.column_stack([x, np.full(256, s)]))[:, :-1]) for s in outliers]


def rms(x):
    return np.sqrt(np.mean(x**2))


@claim(
    **SINKS,
    id="outlier-rescales-others",
    statement="An outlier feature acts through the norm: it scales down all others, without adding content of its own",
    regimes=("outlier 10", "outlier 100", "outlier 1000"),
    statistic="log rms of the other normalized features, with the outlier over without",
    direction="<",
    threshold=0.0,
    seeds=10,
    budget_s=2,
)
def outlier_rescales(seed):
    return np.log(other_outputs(seed, (10.0, 100.0, 1000.0))) - np.log(other_outputs(seed, (0.0,)))


def representations(seed, rank, tokens=128, width=64):
    """(tokens, width) Gaussian representations of that rank, in a random basis."""
    draws = stream(seed, "representations", rank)
    return draws.normal(size=(tokens, rank)) @ draws.normal(size=(rank, width))


@claim(
    **NUCLEAR,
    id="mnn-approximates-nuclear-norm",
    statement="The Matrix Nuclear-Norm approximates the nuclear norm of the representations, within 10 %",
    regimes=("in the singular basis", "rank 64, random basis", "rank 8, random basis"),
    statistic="log ratio, Matrix Nuclear-Norm over nuclear norm",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=20,
    budget_s=2,
)
def mnn_approximates(seed):
    full, low = representations(seed, 64), representations(seed, 8)
    aligned = full @ np.linalg.svd(prepare(full))[2].T
    return [np.log(found.mnn / found.nuclear) for found in map(compare, (aligned, full, low))]


@claim(
    **NUCLEAR,
    id="mnn-captures-diversity",
    statement="The Matrix Nuclear-Norm captures diversity: it falls with rank at least half as far as the nuclear norm",
    regimes=("rank 64 to 16", "rank 64 to 4", "rank 64 to 1"),
    statistic="log fall of the Matrix Nuclear-Norm over log fall of the nuclear norm, random basis",
    direction=">",
    threshold=0.5,
    seeds=20,
    budget_s=2,
)
def mnn_diversity(seed):
    full = representations(seed, 64)
    lows = [representations(seed, rank) for rank in (16, 4, 1)]
    proxy = [np.log(mnn(full) / mnn(x)) for x in lows]
    exact = [np.log(nuclear_norm(prepare(full)) / nuclear_norm(prepare(x))) for x in lows]
    return np.divide(proxy, exact)


@claim(
    **NUCLEAR,
    id="mnn-faster-than-matrix-entropy",
    statement="The Matrix Nuclear-Norm takes at most an eighth of the time of matrix entropy by singular values",
    regimes=("256 x 256", "512 x 512"),
    statistic="log time ratio, matrix entropy over Matrix Nuclear-Norm",
    direction=">",
    threshold=float(np.log(8.0)),
    seeds=5,
    budget_s=20,
)
def mnn_faster(seed):
    return [np.log(seconds(matrix_entropy, x) / seconds(mnn, x)) for x in map(square(seed), (256, 512))]


def square(seed):
    return lambda size: stream(seed, "square", size).normal(size=(size, size))


def matrix_entropy(x):
    """Entropy of the squared singular values of the prepared x, scaled to sum to 1."""
    p = np.linalg.svd(prepare(x), compute_uv=False) ** 2
    p = p[p > 0] / p.sum()
    return -(p * np.log(p)).sum()


def seconds(work, x):
    """The shortest of 5 runs."""
    return min(timeit.repeat(lambda: work(x), number=1, repeat=5))
