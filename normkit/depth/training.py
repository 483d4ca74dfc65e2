"""Train the small transformer, live: a generator that reports loss, stream and gradient while it goes."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from normkit.checks import count, pick
from normkit.depth.transformer import Transformer, generator
from normkit.profile import Profile

BATCH = 32


def copy_task(draws, batch=BATCH):
    """The second half of 16 tokens repeats the first; the loss counts what can be known. Chance: log 16."""
    half = torch.randint(16, (batch, 8), generator=draws)
    tokens = torch.cat([half, half], 1)
    targets = tokens[:, 1:].clone()
    targets[:, :7] = -100
    return tokens[:, :-1], targets


def running_sum_task(draws, batch=BATCH):
    """The sum modulo 5 of the 16 tokens so far. Chance: log 5."""
    tokens = torch.randint(5, (batch, 16), generator=draws)
    return tokens, tokens.cumsum(1) % 5


TASKS = {"copy": (copy_task, 16), "running_sum": (running_sum_task, 5)}


def train(
    placement,
    *,
    layers=12,
    width=32,
    heads=2,
    lr=4e-3,
    steps=300,
    warmup=0,
    task="copy",
    norm="rmsnorm",
    seed=0,
    every=10,
):
    """Train on fresh batches of 32: Adam (0.9, 0.999, eps 1e-8), constant lr after linear warmup, no decay, no clip.

    Yields {step, steps, loss, variance, gradient, diverged, done}: before the first step, every `every` and at the
    end; `variance` and `gradient` (layers+1,) are mean squares of the stream and of the loss's gradient to it at the
    borders of the blocks. A loss that is not finite, or a token whose square overflows (the norms make it 0 and the
    loss would read as chance; it is then nan), ends the training with diverged=True, and None for both. The last report
    has done=True and the `model`. Same seed, same weights and same batches, whatever the placement.
    Raises ValueError for unknown names, counts below 1, and lr that is not a positive number.
    """
    pick("task", task, TASKS)
    for name, value in (("steps", steps), ("every", every)):
        count(name, value)
    count("warmup", warmup, least=0)
    if not (isinstance(lr, float | int) and math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    draw, vocabulary = TASKS[task]
    model = Transformer(
        placement, vocabulary=vocabulary, context=16, layers=layers, width=width, heads=heads, norm=norm, seed=seed
    )
    return _steps(
        model, draw, lr, steps, warmup, seed, every
    )  # arguments are checked at the call, not at the first step


def _steps(model, draw, lr, steps, warmup, seed, every):
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    batches = generator(seed, "batches")
    for step in range(steps + 1):
        tokens, targets = draw(batches)
        last, seen = step == steps, step % every == 0 or step == steps
        loss, streams = loss_and_streams(model, tokens, targets)
        adam.zero_grad()
        if seen:
            for x in streams:
                x.retain_grad()
        loss.backward()
        value = loss.item() if _in_range(streams) else math.nan
        diverged = not math.isfinite(value)
        if seen or diverged:
            report = {"step": step, "steps": steps, "loss": value, "diverged": diverged, "done": last or diverged}
            report["variance"] = None if diverged else mean_squares(streams)
            report["gradient"] = None if diverged else mean_squares([x.grad for x in streams])
            yield {**report, "model": model} if report["done"] else report
        if last or diverged:
            return
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup) if warmup else lr
        adam.step()


def loss_and_streams(model, tokens, targets):
    """Mean cross-entropy over the targets that are not -100, and x_0 .. x_L, (batch, tokens, width) each."""
    streams = [model.embed(tokens)]
    for block in model.blocks:
        streams.append(block(streams[-1]))
    logits = model.head(model.final(streams[-1]))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), streams


def _in_range(streams):
    """Whether every token's square is a positive number: it overflows before a norm, and is 0 after one that did."""
    power = torch.stack(streams).detach().square().mean(-1)
    return power.min().item() > 0 and power.max().item() < math.inf


def mean_squares(tensors) -> np.ndarray:
    return np.array([t.detach().double().square().mean().item() for t in tensors])


def trained_profile(placement, *, lr=4e-3, steps=300, seeds=3, **options) -> Profile:
    """Profile of networks after `train`; runs are seeds. The gradient is scaled to mean square 1 at the last block, as
    in the toys. Raises ValueError when a run diverges, and as `train` does."""
    count("seeds", seeds)
    variance, gradient = [], []
    for seed in range(seeds):
        *_, last = train(placement, lr=lr, steps=steps, seed=seed, every=steps, **options)
        if last["diverged"]:
            raise ValueError(f"{placement} diverged at step {last['step']} with lr {lr:g} (seed {seed}): lower lr")
        variance.append(last["variance"])
        gradient.append(last["gradient"] / last["gradient"][-1])
    meta = {"lr": lr, "steps": steps, "sublayers": 2, **options}
    return Profile(f"trained {placement}", np.array(variance), np.array(gradient), meta=meta)
