"""Train a small transformer, live, until its attention freezes, or not: entropy, its floor and the logits of each head.

The "majority" task wants broad attention: of 31 tokens the net tells, at the 32nd, the most frequent one. So a head that
looks at a single token is of no use, and entropy that collapses is a symptom. "copy" wants narrow attention: there low
entropy is what success looks like (arXiv 2303.06296 reports a correlation, not a cause).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from normkit.attention.heads import MultiHeadAttention
from normkit.attention.laws import entropy_floor
from normkit.attention.reparam import SigmaReparam
from normkit.attention.softmax import entropy
from normkit.checks import count, pick, positive
from normkit.rng import generator

BATCH = 32
TYPES, FAVORED = 8, 0.3  # majority: kinds of tokens, and how often the sequence's favorite replaces a token
SYMBOLS = 16  # copy
IGNORED = -100
PLACEMENTS = ("post", "pre", "none")
MEASURED = ("entropy", "floor", "spectral")


@dataclass(frozen=True)
class Cure:
    """What a cure changes: the attention, the gain that SigmaReparam gives every matrix at the start, the warmup."""

    variant: str = "plain"
    gamma: str | float | None = None
    warmup: float = 0.0  # share of the steps


CURES = {
    "plain": Cure(),
    "warmup": Cure(warmup=0.4),
    "sigma_reparam": Cure(gamma=1.0),  # the paper's start: every matrix has spectral norm 1
    "sigma_reparam_same_start": Cure(gamma="sigma"),  # the gain is the matrix's own norm: the plain net's function
    "qk_norm": Cure("qk_norm"),
    "qk_unit": Cure("qk_unit"),
    "affine": Cure("affine"),
    "sink": Cure("sink"),
    "gate": Cure("gate"),
}


def majority_task(draws, tokens, batch=BATCH):
    """Tokens 0..7, the last one 8; the target there is the most frequent, the lowest among equals. Chance: log 8."""
    favorite = torch.randint(TYPES, (batch, 1), generator=draws)
    favored = torch.rand(batch, tokens - 1, generator=draws) < FAVORED
    drawn = torch.where(favored, favorite, torch.randint(TYPES, (batch, tokens - 1), generator=draws))
    votes = F.one_hot(drawn, TYPES).sum(1) * TYPES - torch.arange(TYPES)  # no two are equal
    targets = torch.full((batch, tokens), IGNORED)
    targets[:, -1] = votes.argmax(1)
    return torch.cat([drawn, torch.full((batch, 1), TYPES)], 1), targets


def copy_task(draws, tokens, batch=BATCH):
    """A sequence with period tokens / 2; the target is the next token where it can be known. Chance: log 16."""
    half = tokens // 2
    drawn = torch.randint(SYMBOLS, (batch, half), generator=draws).repeat(1, 2)
    targets = drawn.roll(-1, 1)
    targets[:, : half - 1] = IGNORED
    return drawn, targets


@dataclass(frozen=True)
class Task:
    draw: object  # (draws, tokens) -> tokens and targets, (batch, tokens) each
    vocabulary: int
    classes: int
    causal: bool


TASKS = {"majority": Task(majority_task, TYPES + 1, TYPES, False), "copy": Task(copy_task, SYMBOLS, SYMBOLS, True)}


class Block(nn.Module):
    """Attention, then W_2 GELU(W_1 x) of twice the width, each added to the stream (batch, tokens, width)."""

    def __init__(self, width, heads, placement, variant, causal, tokens, draws):
        super().__init__()
        self.placement = placement
        self.attention = MultiHeadAttention(
            width, heads, variant=variant, causal=causal, tokens=tokens, generator=draws("attention")
        )
        mlp = draws("mlp")
        self.up, self.down = _matrix(width, 2 * width, mlp), _matrix(2 * width, width, mlp)
        self.norms = nn.ModuleList(_norm(width) if placement != "none" else nn.Identity() for _ in range(2))

    def forward(self, x):
        for norm, branch in zip(self.norms, (self.attention, self.mlp), strict=True):
            x = norm(x + branch(x)) if self.placement == "post" else x + branch(norm(x))
        return x

    def mlp(self, x):
        return self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    """Logits (batch, tokens, classes) from token numbers (batch, tokens).

    Weights ~ N(0, 1/fan_in), no biases; token and position embeddings have variance 1/2 each. RMSNorm with gains,
    after the sum ("post"), before the branch and before the head ("pre"), or nowhere ("none"). A cure with SigmaReparam
    has it on every matrix but the two tables of embeddings. A seed gives all cures and placements the same matrices.
    """

    def __init__(self, task, placement, cure, *, tokens=32, layers=3, width=32, heads=2, seed=0, dtype=torch.float32):
        super().__init__()
        here, cured = TASKS[pick("task", task, TASKS)], CURES[pick("cure", cure, CURES)]
        pick("placement", placement, PLACEMENTS)
        for name, value, least in (("tokens", tokens, 4), ("layers", layers, 1), ("width", width, 1)):
            count(name, value, least)
        if task == "copy" and tokens % 2:
            raise ValueError(f"copy repeats the first half of the tokens: tokens must be even, got {tokens}")
        self.token, self.position = (
            _normal(skip_init(nn.Embedding, rows, width), 0.5, generator(seed, name))
            for rows, name in ((here.vocabulary, "tokens"), (tokens, "positions"))
        )
        self.blocks = nn.ModuleList(
            Block(width, heads, placement, cured.variant, here.causal, tokens, partial(generator, seed, "block", i))
            for i in range(layers)
        )
        self.final = _norm(width) if placement == "pre" else nn.Identity()
        self.head = _matrix(width, here.classes, generator(seed, "head"))
        self.to(dtype)
        if cured.gamma is not None:
            SigmaReparam(self, gamma=cured.gamma)  # it works in place

    def forward(self, tokens):
        x = self.token(tokens) + self.position.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.final(x))

    def logits(self, tokens):
        """Attention logits (layers, batch, heads, tokens, tokens), -inf where masked, of evaluation mode; nothing moves."""
        return self._inspect(tokens)[0]

    @torch.no_grad()
    def _inspect(self, tokens):
        """The logits, and the stream (layers + 1, batch, tokens, width) at the borders of the blocks."""
        training, x, found = self.training, self.token(tokens) + self.position.weight, []
        self.eval()
        streams = [x]
        for block in self.blocks:
            found.append(block.attention.logits(block.norms[0](x) if block.placement == "pre" else x))
            x = block(x)
            streams.append(x)
        self.train(training)
        return torch.stack(found), torch.stack(streams)


def _norm(width):
    return nn.RMSNorm(width, eps=1e-6)


def _matrix(fan_in, fan_out, draws):
    return _normal(skip_init(nn.Linear, fan_in, fan_out, bias=False), 1 / fan_in, draws)


def _normal(module, variance, draws):
    nn.init.normal_(module.weight, std=math.sqrt(variance), generator=draws)
    return module


def measure(logits):
    """What attention logits (..., queries, keys) say: a dict of float64 arrays (...), -inf marks a masked key.

    "entropy" of the softmax (nats), "floor": the least entropy that rows of these norms can have (arXiv 2303.06296,
    theorem 3.1, row by row), "norm" and "std" of a row around its mean: each the mean over queries; and "spectral", the
    norm of the whole matrix, 0 where masked. So entropy >= floor holds to rounding, however much the rows differ.
    Raises ValueError for logits that are nan or +inf, and for a query without keys.
    """
    z = logits.detach().double()
    entropies = entropy(z)
    hidden = z == -math.inf
    keys = (~hidden).sum(-1)
    z = z.masked_fill(hidden, 0)
    norm = torch.linalg.vector_norm((z - (z.sum(-1) / keys)[..., None]).masked_fill(hidden, 0), dim=-1)
    floor = torch.from_numpy(entropy_floor(norm.numpy(), keys.numpy()))
    rows = {"entropy": entropies, "floor": floor, "norm": norm, "std": norm / keys.double().sqrt()}
    means = {name: values.mean(-1).numpy() for name, values in rows.items()}
    return means | {"spectral": torch.linalg.matrix_norm(z, 2).numpy()}


def train(
    *,
    cure="plain",
    placement="post",
    lr=0.03,
    steps=150,
    warmup=None,
    tokens=32,
    task="majority",
    seed=0,
    every=5,
    layers=3,
    width=32,
    heads=2,
    dtype=torch.float32,
):
    """Train on fresh batches of 32: Adam (0.9, 0.999, eps 1e-8), lr constant after linear warmup, no decay, no clip.

    A generator of reports before the first step, every `every` steps and at the end: {step, steps, loss and accuracy (of
    this step's batch, before the step), entropy, floor, spectral, diverged, done}; the last one has the `model`, too.
    entropy, floor and spectral are (layers, heads) float64 arrays, means over the batch of what `measure` says. They are
    those of softmax(logits) over the tokens: what a sink takes, a gate or affine scaling come after it.
    A loss, stream or logits that are out of range end the run with diverged=True and None for the arrays.

    cure: see CURES; warmup counts steps, None is what the cure says (2 in 5 for "warmup", else 0).
    Same seed, same matrices and batches, whatever the cure, placement, lr and `every` are.
    Raises ValueError or TypeError for unknown names, counts that are too small, tokens that are odd for copy, and lr that
    is no positive number.
    """
    positive("lr", lr)
    count("steps", steps)
    count("every", every)
    net = Net(task, placement, cure, tokens=tokens, layers=layers, width=width, heads=heads, seed=seed, dtype=dtype)
    warmup = round(CURES[cure].warmup * steps) if warmup is None else count("warmup", warmup, 0)
    draws = generator(seed, "batches", task)
    batches = (TASKS[task].draw(draws, tokens) for _ in range(steps + 1))
    return _steps(net, batches, lr, steps, warmup, every)  # arguments are checked at the call, not at the first step


def _steps(net, batches, lr, steps, warmup, every):
    adam = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    for step, (tokens, targets) in enumerate(batches):
        out = net(tokens)
        loss = F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        value = loss.item()
        diverged, last = not math.isfinite(value), step == steps
        if step % every == 0 or last or diverged:
            look = None if diverged else _look(net, tokens)
            done = last or diverged or look is None
            report = {"step": step, "steps": steps, "loss": value, "accuracy": _accuracy(out, targets)}
            report |= look or dict.fromkeys(MEASURED)
            report |= {"diverged": look is None, "done": done}
            yield {**report, "model": net} if done else report
            if done:
                return
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup) if warmup else lr
        adam.zero_grad()
        loss.backward()
        adam.step()


def _accuracy(out, targets):
    known = targets != IGNORED
    return (out.argmax(-1) == targets)[known].double().mean().item()


def _look(net, tokens):
    """MEASURED, (layers, heads) each, means over the batch; None where a logit or a token's square is out of range.

    A norm makes a token whose square overflows 0, and the loss would read as chance.
    """
    logits, streams = net._inspect(tokens)
    power = streams.square().mean(-1)
    if not (power.min() > 0 and power.max() < math.inf) or logits.isnan().any() or logits.isposinf().any():
        return None
    found = measure(logits)
    return {name: found[name].mean(1) for name in MEASURED}
