"""Learning rate and weight decay for wider nets: matrices and vectors by their own rules, and how to check them.

Fan, Liu, Zhao, Yuan, Gu, "Robust Layerwise Scaling Rules by Proper Weight Decay Tuning", arXiv 2510.15262. Under AdamW
each matrix settles at a spectrum of size sqrt(lr/weight_decay); the paper sees its top singular value grow as
sqrt(lr/weight_decay) width^0.75, so that with lr ~ 1/width a decay ~ sqrt(width) keeps it the same at all widths.
"""

import math
import numbers
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.rates.width needs torch; pip install 'normkit[torch]'") from error
from torch import nn
from torch.nn import functional as F

from normkit.checks import count, pick, positive
from normkit.rates.training import data, generator
from normkit.rng import stream

DECAY_POWER = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}  # weight decay of matrices ~ width^power


def layerwise_groups(
    model, *, lr, weight_decay, width, base_width, rule="sqrt", vector_lr=None, vector_like=()
) -> list[dict]:
    """Parameter groups for AdamW at `width`, from lr and weight_decay that were tuned at `base_width`.

    Matrix-like parameters (both sides grow with the width): lr base_width/width, decay (width/base_width)^p with p = 0,
    1/2, 1 for rule "constant", "sqrt" (the paper's), "linear". Vector-like ones: vector_lr (None: lr) at every width, no
    decay; these are all with fewer than two axes, the weights of nn.Embedding, and those whose names, or the names of
    their modules, are in `vector_like`: name the input layer and the head there, one side of which is fixed.
    At width = base_width every rule is the tuned setting. Frozen parameters are left out. Each group has the entries
    params, lr, weight_decay and name ("matrices" or "vectors"); an empty one is left out.
    Raises ValueError for an unknown rule, a name in `vector_like` that the model lacks, numbers that are not positive,
    and a model without a parameter that learns.
    """
    pick("rule", rule, DECAY_POWER)
    ratio = count("width", width) / count("base_width", base_width)
    positive("lr", lr)
    positive("weight_decay", weight_decay, zero=True)
    vector_lr = positive("vector_lr", lr if vector_lr is None else vector_lr)
    vectors = _vector_like(model, (vector_like,) if isinstance(vector_like, str) else tuple(vector_like))
    groups = {
        "matrices": {"lr": lr / ratio, "weight_decay": weight_decay * ratio ** DECAY_POWER[rule]},
        "vectors": {"lr": vector_lr, "weight_decay": 0.0},
    }
    for p in model.parameters():  # a shared parameter comes once
        if p.requires_grad:
            groups["vectors" if p.ndim < 2 or id(p) in vectors else "matrices"].setdefault("params", []).append(p)
    found = [{"name": name, **group} for name, group in groups.items() if "params" in group]
    if not found:
        raise ValueError("the model has no parameter that learns")
    return found


def _vector_like(model, names):
    """The ids of the parameters that `names` and nn.Embedding make vector-like."""
    modules = dict(model.named_modules())
    known = {name: [p] for name, p in model.named_parameters(remove_duplicate=False)}
    known |= {name: list(module.parameters()) for name, module in modules.items() if name}
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"vector_like names {name!r}, which the model lacks; {hint}")
    embeddings = [m.weight for m in modules.values() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return {id(p) for p in embeddings} | {id(p) for name in names for p in known[name]}


def decay_power(alpha: float) -> float:
    """2 alpha - 1: the power of the width in the weight decay that holds sigma_1 ~ sqrt(lr/decay) width^alpha at lr ~ 1/width.

    alpha = 0.75 gives 1/2; 0.5, independent entries, gives 0; 1, an aligned rank-one weight, gives 1.
    Raises ValueError for what is not finite.
    """
    if not (isinstance(alpha, numbers.Real) and math.isfinite(alpha)):
        raise ValueError(f"alpha must be a finite number, got {alpha!r}")
    return 2 * alpha - 1


def width_exponent(widths, values) -> float:
    """Least-squares p of values ~ widths^p, for two or more widths. Raises ValueError for what is not positive."""
    x, y = (np.asarray(v, dtype=float) for v in (widths, values))
    if x.ndim != 1 or x.shape != y.shape or len(np.unique(x)) < 2:
        raise ValueError(f"widths and values must be (n,) with two or more widths, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise ValueError("widths and values must be positive and finite to have logarithms")
    x, y = np.log(x), np.log(y)
    return float((x - x.mean()) @ y / ((x - x.mean()) ** 2).sum())


@dataclass(frozen=True)
class Spectrum:
    """A matrix's singular values in the units of the law: sqrt(lr/weight_decay)."""

    top: float  # sigma_1 / sqrt(lr/weight_decay); the diagnostic: match it across widths
    rms: float  # root mean square entry / sqrt(lr/weight_decay); 1/sqrt(2) for AdamW on pure noise
    shape: np.ndarray  # all singular values over the top one, falling from 1


def spectrum(w, *, lr: float, weight_decay: float) -> Spectrum:
    """The diagnostic of 2510.15262 for a weight w (n_out, n_in), a tensor or an array, trained by AdamW with lr, decay.

    Raises ValueError for what is no finite, nonzero matrix and for lr and weight_decay that are not positive.
    """
    w = torch.as_tensor(w).detach()
    if w.ndim != 2 or not bool(torch.isfinite(w).all()) or not bool(w.any()):
        raise ValueError(f"w must be a finite matrix with a nonzero entry, got shape {tuple(w.shape)}")
    unit = math.sqrt(positive("lr", lr) / positive("weight_decay", weight_decay))
    s = torch.linalg.svdvals(w.double()).numpy()
    return Spectrum(float(s[0]) / unit, float(w.double().square().mean().sqrt()) / unit, s / s[0])


class Sublayer(nn.Module):
    """embed (64 -> d), x + w2 relu(w1 norm(x)), norm, head (d -> 10); RMSNorms without gain, matrices w1, w2 (d, d)."""

    def __init__(self, width, seed=0):
        super().__init__()

        def linear(name, n_in, n_out):
            layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(n_out, n_in, generator=generator(seed, "width", name)) / n_in**0.5)
            return layer

        self.embed, self.head = linear("embed", 64, width), linear("head", width, 10)
        self.w1, self.w2 = linear("w1", width, width), linear("w2", width, width)

    def branch(self, x):
        return self.w2(F.relu(self.w1(F.rms_norm(x, x.shape[-1:]))))

    def forward(self, images):
        x = self.embed(images)
        x = x + self.branch(x)
        return self.head(F.rms_norm(x, x.shape[-1:])) / self.head.in_features**0.5


@dataclass(frozen=True)
class Steady:
    """One net after training: its two matrices and what they do, each number averaged over the last tenth of the steps."""

    width: int
    top: float  # geometric mean of the two top singular values
    rms: float  # geometric mean of the two root mean square entries
    gain: float  # root mean square of the branch's output: its input is normalized
    loss: float


def steady_state(
    width: int,
    *,
    lr: float = 0.02,
    weight_decay: float = 0.5,
    rule: str = "sqrt",
    base_width: int = 32,
    vector_lr: float = 3e-3,
    noise: float = 0.2,
    time_constants: float = 5.0,
    batch: int = 64,
    seed: int = 0,
) -> Steady:
    """Train `Sublayer` on digits by AdamW (betas 0.9, 0.95) with `layerwise_groups` until its weights have forgotten their start.

    lr, weight_decay: those at base_width. The number of steps is time_constants/(lr decay), in the values that hold at
    `width`. noise: share of labels drawn anew for every batch, so that gradients never vanish.
    Raises ValueError for numbers out of range, FloatingPointError for divergence.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is a share of labels, 0 to 1, got {noise}")
    positive("weight_decay", weight_decay)
    model = Sublayer(count("width", width, 2), seed)
    groups = layerwise_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        width=width,
        base_width=base_width,
        rule=rule,
        vector_lr=vector_lr,
        vector_like=("embed", "head"),
    )
    steps = math.ceil(positive("time_constants", time_constants) / (groups[0]["lr"] * groups[0]["weight_decay"]))
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    x, y, *_ = data()
    draws, seen = stream(seed, "width", "batches"), []
    for step in range(steps):
        picks = torch.from_numpy(draws.integers(len(x), size=batch))
        anew, other = torch.from_numpy(draws.random(batch) < noise), torch.from_numpy(draws.integers(10, size=batch))
        loss = F.cross_entropy(model(x[picks]), torch.where(anew, other, y[picks]))
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step >= 0.9 * steps and (steps - step) % 10 == 1:  # the last one too
            seen.append([*_measure(model, x), loss.item()])
    found = np.mean(seen, axis=0)
    if not np.isfinite(found).all():
        raise FloatingPointError(f"the training at width {width} diverged; use a smaller lr than {lr}")
    return Steady(width, *found.tolist())


@torch.no_grad()
def _measure(model, x):
    """(top, rms, gain) as in `Steady`."""
    matrices = [model.w1.weight, model.w2.weight]
    top = math.prod(torch.linalg.matrix_norm(w, ord=2).item() for w in matrices) ** 0.5
    rms = math.prod(w.square().mean().sqrt().item() for w in matrices) ** 0.5
    return top, rms, model.branch(model.embed(x)).square().mean().sqrt().item()
