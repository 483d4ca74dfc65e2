"""Train a small net on handwritten digits, live: norms, effective learning rates and turns of its weights as it goes.

The net is a stack of linear - norm - ReLU blocks and a linear head. With a norm the linear maps have no bias and only
the direction of their matrix counts; the norm's eps is so small that this is true to rounding.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from normkit.checks import count, pick, positive
from normkit.files import standardized_digits
from normkit.rates.elr import effective_lr
from normkit.rates.groups import Group
from normkit.rates.laws import rule
from normkit.rates.nap import NormalizeAndProject
from normkit.rates.optimizers import SGDP, AdamP
from normkit.rng import generator

EPS = 1e-20
MOMENTUM = 0.9
CLASSES = 10
TRAINING = 1200  # images to learn from; the other 597 are held out
NORMS = {
    "layernorm": lambda width: nn.LayerNorm(width, eps=EPS),
    "batchnorm": lambda width: nn.BatchNorm1d(width, eps=EPS),
    "none": lambda width: nn.Identity(),
}
OPTIMIZERS = {
    "sgd": lambda params, **options: torch.optim.SGD(params, fused=True, **options),
    "momentum": lambda params, **options: torch.optim.SGD(params, momentum=MOMENTUM, fused=True, **options),
    "sgdp": lambda params, **options: SGDP(params, momentum=MOMENTUM, **options),
    "adam": lambda params, **options: torch.optim.AdamW(params, fused=True, **options),
    "adamp": lambda params, **options: AdamP(params, **options),
}
MEASURED = ("norms", "elr", "angle", "gradient")
SCHEDULES = ("constant", "linear", "copied")


class Net(nn.Module):
    """Blocks ReLU(norm(W x)), gains and offsets in the norm, and a linear head: (batch, inputs) -> (batch, classes).

    Hidden weights ~ N(0, 2 / fan_in), those of the head N(0, 1 / fan_in), biases 0, drawn in float64 and then
    rounded. A seed gives every norm and every number of layers the same hidden weights.
    """

    def __init__(
        self, norm="layernorm", *, inputs=64, layers=2, width=64, classes=CLASSES, seed=0, dtype=torch.float32
    ):
        super().__init__()
        pick("norm", norm, NORMS)
        sizes = [inputs] + [count("width", width)] * count("layers", layers)
        linear = [nn.Linear(a, width, bias=norm == "none", dtype=dtype) for a in sizes[:-1]]
        self.hidden = nn.ModuleList(linear)
        self.norms = nn.ModuleList(NORMS[norm](width).to(dtype) for _ in linear)
        self.head = nn.Linear(width, classes, dtype=dtype)
        with torch.no_grad():
            for layer, part in enumerate(self.hidden):
                _draw(part, 2, generator(seed, "hidden", layer))
            _draw(self.head, 1, generator(seed, "head"))

    def forward(self, x):
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = F.relu(norm(linear(x)))
        return self.head(x)

    def matrices(self):
        """The hidden weights by their names in named_parameters()."""
        return {f"hidden.{i}.weight": linear.weight for i, linear in enumerate(self.hidden)}


def _draw(linear, gain, draws):
    w = torch.randn(linear.weight.shape, generator=draws, dtype=torch.float64)
    linear.weight.copy_(w * math.sqrt(gain / linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


@cache
def data(dtype=torch.float32):
    """Images (1200, 64) and (597, 64), standardized together, and labels: training x, y, held-out x, y."""
    images, labels = standardized_digits("digits split")
    x, y = torch.tensor(images).to(dtype), torch.tensor(labels)
    return x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:]


class Learner:
    """A net with its optimizer and, where asked for, the projection of its hidden matrices: what is trained step by step.

    Only matrices decay; biases, gains and offsets do not. adam is AdamW and decays the weight itself; sgd and momentum
    add weight_decay w to the gradient, as torch does. gains: see `NormalizeAndProject`, which also holds the matrices
    of a net without norms, where it does change the function. copied: lengths of the matrices at each step of another
    run, whose effective learning rates they get. head_lr: of all that is no hidden matrix, if it is to be another one.
    """

    def __init__(
        self, model, optimizer, lr, weight_decay=0.0, *, project=False, gains="project", copied=None, head_lr=None
    ):
        self.model, self.name, self.lr, self.matrices = model, optimizer, lr, model.matrices()
        self.head_lr = head_lr
        self.hold = NormalizeAndProject(model, groups=[Group(name) for name in self.matrices], gains=gains)
        *matrices, rest = self.hold.parameter_groups(lr, weight_decay=weight_decay)
        head = {**rest, "params": [p for p in rest["params"] if p.ndim > 1]}
        vectors = {**rest, "params": [p for p in rest["params"] if p.ndim < 2], "weight_decay": 0.0}
        self.optimizer = OPTIMIZERS[optimizer]([*matrices, head, vectors], lr=lr)
        if project:
            self.hold.attach(self.optimizer)
        self.copied = iter(copied) if copied is not None else None

    def set_lr(self, lr):
        """The learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] = lr if group["nap"] or self.head_lr is None else self.head_lr
        if self.copied is not None:
            self.hold.follow(self.optimizer, next(self.copied), power=1 if rule(self.name).adaptive else 2)

    def step(self, loss):
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def norms(self):
        """Frobenius norm of each hidden matrix, by name."""
        return {group.names[0]: norm.item() for group, norm in self.hold.norms().items()}

    def elr(self):
        """Effective learning rate of each hidden matrix in the next step, by name."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        weights = self.matrices.items()
        return {
            n: effective_lr(lr, w.detach(), optimizer=self.name) for (n, w), lr in zip(weights, rates, strict=False)
        }


def turn(before, after):
    """Angle in radians between two tensors, exact for small ones too: 2 asin(|u - v| / 2) for unit u, v."""
    u, v = (t.double() / torch.linalg.vector_norm(t.double()) for t in (before, after))
    return 2 * math.asin(min(1.0, torch.linalg.vector_norm(u - v).item() / 2))


def train(
    *,
    norm="layernorm",
    optimizer="sgd",
    lr=0.5,
    weight_decay=0.0,
    project=False,
    schedule="constant",
    steps=300,
    layers=2,
    width=64,
    batch=64,
    gains=None,
    label_noise=0.0,
    seed=0,
    every=10,
    dtype=torch.float32,
):
    """Train on the digits; a generator of reports before the first step, every `every` steps and at the end.

    Each is {step, steps, loss (of this step's batch, before the step), accuracy (of the 597 held-out images), norms,
    elr, angle, gradient, diverged, done}; the last has the `model` too. norms, elr (lr over norm, squared for sgd,
    momentum and sgdp), angle (radians by which the last step turned the matrix; nan before the first) and gradient
    (norm it would have at weight norm 1) are dicts by the name of each hidden matrix. A loss that is not finite ends
    the run with diverged=True, None for the dicts and nan for accuracy.

    schedule: "constant", "linear" (from lr down to 0), or "copied": the same run is made first without projection, and
    then the norms are held and each matrix gets the effective learning rates of that first run. For sgd both have the
    same losses to rounding, see `copied_schedule`. Same seed, same weights and batches, whatever the rest is.
    Raises ValueError or TypeError for unknown names, counts below 1, lr that is not positive, and "copied" without
    project or without a norm.
    """
    pick("norm", norm, NORMS)
    pick("optimizer", optimizer, OPTIMIZERS)
    pick("schedule", schedule, SCHEDULES)
    positive("lr", lr)
    positive("weight_decay", weight_decay, zero=True)
    for name, value in (("steps", steps), ("batch", batch), ("every", every)):
        count(name, value)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise is a share, from 0 to 1, got {label_noise}")
    if schedule == "copied" and (norm == "none" or not project):
        raise ValueError("schedule='copied' is for norms that are held: pass project=True and a norm")
    hold = {"project": project, "gains": gains or ("free" if schedule == "copied" else "project")}
    net = {"norm": norm, "layers": layers, "width": width, "seed": seed, "dtype": dtype}
    Learner(Net(**net), optimizer, lr, **hold)  # arguments are checked at the call, not at the first step
    run = {"steps": steps, "every": every, "batches": lambda: batches(steps, batch, label_noise, seed, dtype)}
    return _train(net, (optimizer, lr, weight_decay), schedule, hold, run)


def batches(steps, batch, label_noise, seed, dtype):
    """(images, labels) of each step and of the last look."""
    x, y, *_ = data(dtype)
    draws = generator(seed, "batches")
    for _ in range(steps + 1):
        picks = torch.randint(TRAINING, (batch,), generator=draws)
        luck, other = torch.rand(batch, generator=draws), torch.randint(CLASSES, (batch,), generator=draws)
        yield x[picks], torch.where(luck < label_noise, other, y[picks])


def _train(net, options, schedule, hold, run):
    norms = None
    if schedule == "copied":
        norms = []
        *_, last = _steps(Learner(Net(**net), *options), "constant", run, keep=norms)
        if last["diverged"]:
            raise ValueError(f"the run to copy diverged at step {last['step']}: lower lr, which is {options[1]:g}")
    learner = Learner(Net(**net), *options, **hold, copied=norms)
    yield from _steps(learner, schedule, run)


def _steps(learner, schedule, run, keep=None):
    model, lr, steps, every = learner.model, learner.lr, run["steps"], run["every"]
    before, (*_, test_x, test_y) = None, data(model.head.weight.dtype)
    for step, (x, y) in enumerate(run["batches"]()):
        if keep is not None:
            keep.append(learner.hold.norms())
        learner.set_lr(lr * (1 - step / steps) if schedule == "linear" else lr)
        loss = F.cross_entropy(model(x), y)
        value = loss.item()
        diverged, last = not math.isfinite(value), step == steps
        if step % every == 0 or last or diverged:
            done = last or diverged
            report = {"step": step, "steps": steps, "loss": value, "diverged": diverged, "done": done}
            report["accuracy"] = math.nan if diverged else accuracy(model, test_x, test_y)
            report |= dict.fromkeys(MEASURED) if diverged else _look(learner, loss, before)
            yield {**report, "model": model} if done else report
            if done:
                return
        if (step + 1) % every == 0 or step + 1 == steps:
            before = {name: w.detach().clone() for name, w in learner.matrices.items()}
        learner.step(loss)


def _look(learner, loss, before):
    """What is MEASURED: dicts by the name of each hidden matrix."""
    norms = learner.norms()
    gradients = torch.autograd.grad(loss, list(learner.matrices.values()), retain_graph=True)
    return {
        "norms": norms,
        "elr": learner.elr(),
        "angle": {n: turn(before[n], w.detach()) if before else math.nan for n, w in learner.matrices.items()},
        "gradient": {n: norms[n] * g.norm().item() for n, g in zip(norms, gradients, strict=True)},
    }


@torch.no_grad()
def accuracy(model, x, y):
    """Share of right answers, in evaluation mode."""
    model.eval()
    right = (model(x).argmax(1) == y).double().mean().item()
    model.train()
    return right


def copied_schedule(*, optimizer="sgd", lr=1.0, steps=300, dtype=torch.float64, **options):
    """Losses of a run without projection, and of Normalize-and-Project with its effective learning rates: (steps+1,) each.

    The gradient depends on the direction of w, and on its length as 1/||w||. So a step of SGD with rate lr moves the
    direction as one with rate lr (rho/||w||)^2 does at norm rho, and the two losses agree to rounding: 1e-12 or so after
    hundreds of steps in float64, and more where training is unstable and rounding errors grow by themselves (lr 3). For
    the other optimizers, which remember gradients at other norms, they do not. options and errors are those of `train`.
    """
    run = {"optimizer": optimizer, "lr": lr, "steps": steps, "dtype": dtype, "every": 1, **options}
    plain, held = train(**run), train(**{**run, "schedule": "copied", "project": True})
    return tuple(np.array([report["loss"] for report in reports]) for reports in (plain, held))
