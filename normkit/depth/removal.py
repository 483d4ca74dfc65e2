"""LayerNorm removal with fine-tuning (Baroni et al. 2507.02559): each token's own deviation becomes one frozen number.

"Removed" does not mean deleted: the mean is still taken out, gain and bias stay, and the division is by the average
deviation of the tokens, a constant. What is lost is that every token is divided by its own. `make_removable` and
`export` work on any torch model with nn.LayerNorm.
"""

import copy
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from normkit.arrays import floating, namespace
from normkit.checks import count
from normkit.depth.transformer import DigitNet, generator
from normkit.files import standardized_digits
from normkit.layers import layer_norm
from normkit.rng import stream

__all__ = [
    "FakeLN",
    "Removal",
    "deviation_loss",
    "export",
    "fake_layer_norm",
    "make_removable",
    "remove_and_finetune",
    "schedule",
    "token_deviations",
]

TRAINING, BATCH, RATE, TUNING_RATE = 1200, 64, 3e-3, 1e-3
EXPORT_EPS = 1e12  # a variance is nothing beside it


def fake_layer_norm(x, deviation, weight=None, bias=None):
    """(x - mean) / deviation * weight + bias over the last axis: LayerNorm with a deviation that is given.

    x: (..., width), NumPy or torch; deviation: one positive number for all tokens. It equals LayerNorm for tokens whose
    sqrt(variance + eps) is that number. Raises ValueError for a deviation that is not positive and finite.
    """
    xp = namespace(floating("x", x))
    y = (x - xp.mean(x, axis=-1, keepdims=True)) / _positive(deviation)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class FakeLN(nn.Module):
    """A LayerNorm that can be removed, (..., width) -> the same; it takes over the parameters of `norm`.

    Until `remove()` it is that LayerNorm, and in training mode it follows the mean of the tokens' sqrt(variance + eps):
    `deviation`, an exponential moving average that starts with the first batch. Afterwards it divides by that number.
    Raises ValueError for a LayerNorm over several axes.
    """

    def __init__(self, norm, momentum=0.1):
        super().__init__()
        if len(norm.normalized_shape) != 1:
            raise ValueError(f"only a LayerNorm over the last axis can be removed, got shape {norm.normalized_shape}")
        self.width, self.weight, self.bias, self.eps = norm.normalized_shape[0], norm.weight, norm.bias, norm.eps
        self.momentum, self.removed = momentum, False
        self.register_buffer("deviation", torch.tensor(math.nan, dtype=torch.float64))

    def forward(self, x):
        if x.shape[-1:] != (self.width,):
            raise ValueError(f"x must have shape (..., {self.width}), got {tuple(x.shape)}")
        if self.removed:
            return fake_layer_norm(x, self.deviation, self.weight, self.bias)
        if self.training:
            now = token_deviations(x.detach(), self.eps).double().mean()
            self.deviation.copy_(now if self.deviation.isnan() else torch.lerp(self.deviation, now, self.momentum))
        return layer_norm(x, self.weight, self.bias, eps=self.eps)

    def remove(self):
        """Freeze the deviation. Raises ValueError if no finite token was seen in training mode."""
        _positive(self.deviation)
        self.removed = True

    def exported(self, like=None):
        """A plain nn.LayerNorm of the same function: eps = 1e12 hides the variance, gain * 1e6 / deviation makes up.

        Relative error variance / (2 * 1e12). One that is not removed becomes the LayerNorm that it was.
        like: a tensor whose dtype and device it gets where it has no weight of its own.
        """
        example = like if self.weight is None else self.weight
        norm = nn.LayerNorm(self.width, eps=EXPORT_EPS if self.removed else self.eps)
        norm = norm if example is None else norm.to(example)
        with torch.no_grad():
            if self.weight is not None:
                norm.weight.copy_(self.weight)
            if self.bias is not None:
                norm.bias.copy_(self.bias)
            if self.removed:
                norm.weight *= EXPORT_EPS**0.5 / float(self.deviation)
        return norm


def token_deviations(x, eps=0.0):
    """sqrt(variance + eps) of every token, (..., width) tensor -> (...): what LayerNorm would divide by."""
    return (x.var(-1, correction=0) + eps).sqrt()


def make_removable(model, momentum=0.1):
    """Put a `FakeLN` in the place of every nn.LayerNorm of `model`, in place; {name: FakeLN}, in the model's order.

    Raises ValueError if there is none, or one over several axes.
    """
    found = {name: FakeLN(m, momentum) for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    if not found:
        raise ValueError(f"{type(model).__name__} holds no nn.LayerNorm; RMSNorm and others cannot be removed this way")
    for name, norm in found.items():
        model.set_submodule(name, norm.train(model.training).to(next(model.parameters()).device))
    return found


def export(model):
    """A copy of `model` with plain nn.LayerNorms instead of FakeLN (see `FakeLN.exported`), which any loader reads.

    Raises ValueError if there is no FakeLN.
    """
    model = copy.deepcopy(model)
    found = {name: m for name, m in model.named_modules() if isinstance(m, FakeLN)}
    if not found:
        raise ValueError(f"{type(model).__name__} holds no FakeLN; call make_removable first")
    for name, norm in found.items():
        model.set_submodule(name, norm.exported(like=next(model.parameters(), None)))
    return model


def schedule(groups, *, start=20, gaps=2):
    """[(step, norm), ...]: one norm at a time, group after group, the first at `start`.

    groups: lists of names, the least harmful first; gaps: steps after each removal, one number or one a group. The
    paper's order for GPT-2: the LayerNorms before the MLPs, those before attention (first for queries and keys, then
    for values), the final one, with gaps 2, 2, 2 and 3, and last the exceptions for special tokens.
    Raises ValueError for no name, a name that comes twice, a negative start, gaps below 1 or not one a group.
    """
    count("start", start, 0)
    gaps = [gaps] * len(groups) if hasattr(gaps, "__index__") else list(gaps)
    if len(gaps) != len(groups):
        raise ValueError(f"gaps must be one number or one a group, got {len(gaps)} for {len(groups)} groups")
    plan, step = [], start
    for group, gap in zip(groups, gaps, strict=True):
        count("gaps", gap)
        for name in group:
            plan.append((step, name))
            step += gap
    names = [name for _, name in plan]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"groups must name every norm once, got {names}")
    return plan


def deviation_loss(x, *, weight=0.1, ordinary=None):
    """weight * mean_t (sigma_t - target)^2, the auxiliary loss on the stream x before the last norm, (..., width).

    sigma_t is a token's deviation, the target their mean, through which no gradient goes. ordinary: bool (...), the
    tokens that count for the target (the paper leaves the special ones out), all by default.
    Raises ValueError if no token is ordinary.
    """
    sigma = token_deviations(x)
    chosen = sigma if ordinary is None else sigma[ordinary]
    if chosen.numel() == 0:
        raise ValueError("no ordinary token is left to take the mean deviation of")
    return weight * (sigma - chosen.mean().detach()).square().mean()


@dataclass(frozen=True)
class Removal:
    """Cross-entropies in nats on images that were not trained on. Compare `finetuned` with `vanilla_finetuned`."""

    names: tuple[str, ...]  # of the norms, first to last
    base: float  # trained with LayerNorm
    hard_swap: float  # all norms removed at once, no fine-tuning
    one_at_a_time: np.ndarray  # (norms,) one norm removed, no fine-tuning
    finetuned: float  # removed one after the other while training on
    vanilla_finetuned: float  # the same training, nothing removed
    exported: float  # `finetuned` as plain LayerNorms with eps = 1e12
    deviations: np.ndarray  # (norms, images) the base net's token deviations; their spread is what removal ignores

    @property
    def spread(self):
        """(norms,) standard deviation of the token deviations over their mean."""
        return self.deviations.std(1) / self.deviations.mean(1)


def remove_and_finetune(
    *, seed=0, steps=300, finetune=80, layers=6, width=32, token_spread=0.0, auxiliary=0.1
) -> Removal:
    """Train a Pre-LN net of residual MLPs on the UCI digits, then remove its LayerNorms while training on.

    Adam at 3e-3, then a new one at 1e-3, batches of 64. The removals follow `schedule`, the final norm last, and end
    halfway through the fine-tuning. token_spread is the standard deviation of the log length that images are scaled
    by: a LayerNorm does not care, one frozen number does. auxiliary is the weight of `deviation_loss` while removing
    (vanilla fine-tuning has none); the loss goes with the square of the stream, so that the paper's 0.1 is too much
    for uneven tokens here.
    Raises ValueError for counts below 1, fewer than 4 (layers + 1) fine-tuning steps, token_spread outside 0..2, or an
    auxiliary weight that is negative or not finite;
    FloatingPointError if a loss is not finite.
    """
    count("steps", steps)
    count("layers", layers)
    count("finetune", finetune, 4 * (layers + 1), "each norm needs a step, and the last ones time to heal")
    if not 0 <= token_spread <= 2:
        raise ValueError(f"token_spread must be in 0..2, got {token_spread}: the log length's standard deviation")
    if not 0 <= auxiliary < math.inf:
        raise ValueError(f"auxiliary must be a finite weight, 0 or more, got {auxiliary}")
    images, labels = _images()
    scales = np.exp(token_spread * stream(seed, "removal", "lengths").standard_normal((len(images), 1)))
    images = images * torch.from_numpy(scales).float()
    tests = images[TRAINING:], labels[TRAINING:]

    def fit(model, rate, steps, name, before_step=None, weight=0.0):
        norms, adam = _norms(model), torch.optim.Adam(model.parameters(), lr=rate)
        last = {}
        hook = norms["final"].register_forward_pre_hook(lambda module, inputs: last.update(stream=inputs[0]))
        draws = generator(seed, "removal", name)
        for step in range(steps):
            if before_step:
                before_step(step, norms)
            picks = torch.randint(TRAINING, (BATCH,), generator=draws)
            loss = F.cross_entropy(model(images[picks]), labels[picks])
            loss = loss + deviation_loss(last["stream"], weight=weight) if weight else loss
            adam.zero_grad()
            loss.backward()
            adam.step()
        hook.remove()
        return model

    def test(model, removed=()):
        model = copy.deepcopy(model).eval()
        for name in removed:
            _norms(model)[name].remove()
        with torch.no_grad():
            loss = F.cross_entropy(model(tests[0]), tests[1]).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}; use fewer layers, less token_spread or another seed")
        return loss

    base = DigitNet("pre", layers=layers, width=width, norm="layernorm", seed=seed)
    names = tuple(make_removable(base))
    fit(base, RATE, steps, "training")
    plan = dict(schedule([names[:-1], names[-1:]], start=finetune // 8, gaps=3 * finetune // (8 * len(names))))

    def remove(step, norms):
        if step in plan:
            norms[plan[step]].remove()

    removed = fit(copy.deepcopy(base), TUNING_RATE, finetune, "tuning", remove, weight=auxiliary)
    vanilla = fit(copy.deepcopy(base), TUNING_RATE, finetune, "tuning")
    return Removal(
        names,
        base=test(base),
        hard_swap=test(base, names),
        one_at_a_time=np.array([test(base, [name]) for name in names]),
        finetuned=test(removed),
        vanilla_finetuned=test(vanilla),
        exported=test(export(removed)),
        deviations=_watch(base, tests[0]),
    )


def _norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeLN)}


def _watch(model, x):
    seen = []
    hooks = [
        norm.register_forward_pre_hook(lambda norm, inputs: seen.append(token_deviations(inputs[0], norm.eps).numpy()))
        for norm in _norms(model).values()
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return np.stack(seen)


@cache
def _images():
    """Standardized digits (1797, 64) in a fixed random order, and their labels, as tensors."""
    x, y = standardized_digits("removal/split")
    return torch.tensor(x).float(), torch.tensor(y)


def _positive(deviation):
    deviation = float(deviation)
    if not 0 < deviation < math.inf:
        raise ValueError(
            f"the deviation must be positive and finite, got {deviation}; nan: no token was seen in training mode yet"
        )
    return deviation
