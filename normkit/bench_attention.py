"""The benchmark's cases of the attention theme."""

import functools
import importlib.util

import numpy as np

from normkit.bench import Case, Work
from normkit.bench_cases import _cuda_clock, _Sampled, _warm
from normkit.rng import stream


def cases():
    """Those that run anywhere."""
    return [
        Case(
            f"softmax_entropy_{rows}x{columns}",
            "probabilities and row entropies, float32",
            lambda r=rows, c=columns: softmax_entropy(r, c),
        )
        for rows, columns in ((32, 64), (64, 1024), (65536, 1024))
    ] + [
        Case("phase_grid", "phase diagram of attention, coarse: 12 lengths x 16 scales x 32 rows", phase_grid),
        Case("phase_grid_exact", "32 x 32 x 64 rows up to 4096 keys, with the exact mean", lambda: phase_grid(True)),
    ]


def cuda_cases():
    """Those that need a GPU."""
    return [Case("cuda_softmax_entropy_65536x4096", "p and H, float32, CUDA events", cuda_softmax_entropy)]


def softmax_entropy(rows, columns):
    """softmax and its entropy of a (rows, columns) float32 array; what is compared with float64 is the entropy."""
    from normkit.attention import softmax
    from normkit.layers.kernels import copy_rows

    x = 3 * stream(0, "bench", "softmax", rows).standard_normal((rows, columns), dtype=np.float32)
    p = np.empty_like(x)
    readable = softmax.softmax_entropy.reference
    variants = {
        "normkit": lambda: softmax.softmax_entropy(x, out=p)[1],
        "normkit, new output": lambda: softmax.softmax_entropy(x)[1],
        "normkit, no softmax": lambda: softmax.entropy(x),
        "numpy": lambda: readable(x)[1],
    }
    floors = {"row copy": lambda: copy_rows(x, p), "numpy.copyto": lambda: np.copyto(p, x)}
    if importlib.util.find_spec("torch"):
        peers, alone = _torch_softmax(x)
        variants, floors = variants | peers, floors | alone
    return Work(variants, readable(x.astype(np.float64))[1], floors, repeat=max(1, min(1000, 2**21 // x.size)))


def _softmax_then_entropy(z):
    import torch

    p = torch.softmax(z, -1)
    return p, torch.special.entr(p).sum(-1)


def _torch_softmax(x):
    """(variants, floors): torch's softmax and then the entropy; its softmax alone, which has less to do than we."""
    import torch

    z, compiled = torch.from_numpy(x), functools.cache(lambda: torch.compile(_softmax_then_entropy, dynamic=False))
    target = torch.empty_like(z)
    variants = {
        "torch": lambda: _softmax_then_entropy(z)[1],
        "torch, warm memory": _warm(lambda: _softmax_then_entropy(z)[1]),
        "torch.compile": _warm(lambda: compiled()(z)[1]),
    }
    return variants, {"torch softmax alone": lambda: torch.softmax(z, -1, out=target)}


def phase_grid(exact=False):
    """The attention lab's diagram, numbers drawn before; the reference is the exact mean entropy."""
    from normkit.attention import experiment, laws

    most, size, rows = (4096, (32, 32), 64) if exact else (1024, (12, 16), 32)
    tokens, scales = np.geomspace(8, most, size[0]).astype(int), np.linspace(0, 8, size[1])
    law = laws.mean_entropy(scales, tokens[:, None]) / np.log(tokens)[:, None]
    run = lambda: experiment.phase_grid(tokens, scales, rows=rows, exact=exact).entropy  # noqa: E731
    # a share of log T varies by up to 0.25 between rows: 0.045 for the mean of 32; five of them
    return Work({"normkit": run}, law, tolerance=0.22)


def cuda_softmax_entropy(rows=65536, columns=4096):
    """The readable body under torch.compile, torch's softmax and then entropy, compiled and not, and a device copy."""
    import torch

    from normkit.attention.softmax import softmax_entropy

    generator = torch.Generator("cuda").manual_seed(int(stream(0, "bench", "cuda").integers(2**31)))
    x = 3 * torch.randn(rows, columns, device="cuda", generator=generator)
    ours, theirs = (torch.compile(f, dynamic=False) for f in (softmax_entropy.reference, _softmax_then_entropy))
    few, target = slice(0, 64), torch.empty_like(x)
    variants = {
        "normkit": lambda: ours(x)[1],
        "torch": lambda: _softmax_then_entropy(x)[1],
        "torch.compile": lambda: theirs(x)[1],
    }
    reference = softmax_entropy(x[few].double())[1].cpu().numpy()
    floors = {"device copy": lambda: target.copy_(x), "torch softmax alone": lambda: torch.softmax(x, -1, out=target)}
    checked = {name: _Sampled(f, few) for name, f in variants.items()}
    return Work(checked, reference, floors, repeat=20, clock=_cuda_clock)
