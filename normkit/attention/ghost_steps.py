"""The radius of convergence of a model's steps: one Jacobian-vector product, a step controller, and two toys.

See ghosts.py for the radius. Everything here needs torch and works on any model whose output is (..., classes).
"""

import contextlib
import math
import warnings
from dataclasses import dataclass
from functools import cache

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.attention.ghost_steps needs torch; pip install 'normkit[torch]'") from error
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from normkit.attention.ghosts import radius_ratio
from normkit.checks import count, pick, positive
from normkit.files import standardized_digits
from normkit.rng import generator, stream

__all__ = [
    "ARMS",
    "MODELS",
    "RadiusController",
    "Step",
    "StepLosses",
    "direction_logits",
    "spike",
    "step_losses",
    "toy",
]

MODELS, ARMS = ("linear", "mlp"), ("plain", "clip", "radius")
DIRECTIONS = ("random", "gradient")
SAMPLES, BATCH, TRAINING, HIDDEN = 600, 64, 1200, 64


@contextlib.contextmanager
def _forward_mode():
    """A level of dual numbers; the fused attention and encoder kernels, which have no forward mode, are off meanwhile.

    torch compiles some forward-mode rules for its first dual number, by a route that it warns about itself.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
            stack.enter_context(forward_ad.dual_level())
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def direction_logits(model, inputs, direction):
    """(logits, derivatives), each (..., classes): the model's output and its derivative along a direction of its weights.

    inputs: a tensor, a tuple of positional or a dict of keyword arguments. direction: dict from parameter names to
    tensors of their shapes; parameters that are not in it stand still. The output is a tensor or has `.logits`. One
    forward-mode pass, in the model's mode; buffers (BatchNorm's statistics) and torch's random state are left as they were, and attention is computed by the formula, as the fused kernels know no forward mode.
    Raises ValueError for names or shapes the model does not have, TypeError for an output that is neither, and torch's
    NotImplementedError for a layer that knows no forward mode (nn.LSTM on a CPU).
    """
    parameters = dict(model.named_parameters())
    for name, tangent in direction.items():
        if name not in parameters or parameters[name].shape != tangent.shape:
            has = tuple(parameters[name].shape) if name in parameters else "no parameter of that name"
            raise ValueError(f"direction[{name!r}] has shape {tuple(tangent.shape)}, the model has {has}")
    if not direction:
        raise ValueError("the direction is empty: give it at least one parameter to move")
    moving = {name: parameters[name].detach() for name in direction}
    still = {name: p.detach() for name, p in parameters.items() if name not in direction}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )

    cuda = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=cuda), _forward_mode():
        duals = {n: forward_ad.make_dual(p, direction[n].to(p.dtype)) for n, p in moving.items()}
        out = functional_call(model, (duals, still, buffers), args, kwargs)
        out = getattr(out, "logits", out)
        if not isinstance(out, torch.Tensor):
            raise TypeError(f"the model must return logits or something with .logits, got {type(out).__name__}")
        logits, slope = forward_ad.unpack_dual(out)
    return logits, torch.zeros_like(logits) if slope is None else slope


@dataclass(frozen=True)
class Step:
    """What a controlled step did: r = tau / rho of the step that the optimizer wanted, and the share that was taken."""

    ratio: float
    scale: float


class RadiusController:
    """Keep an optimizer's steps within the radius of convergence: lr_eff = min(lr, limit rho / |p|).

    optimizer: any torch.optim.Optimizer over parameters of `model`. `step(inputs)` lets it move, measures r of that
    move at the old weights on `inputs` (normally the batch of the gradient) and, where r exceeds `limit`, takes
    limit / r of it; what does not scale with lr, such as the moments, is the optimizer's own as ever. All groups are
    scaled alike, decoupled weight decay included. Learning rate schedulers take `.optimizer`.
    """

    def __init__(self, optimizer, model, *, limit=1.0):
        self.optimizer, self.model, self.limit = optimizer, model, positive("limit", limit)
        names = {p: name for name, p in model.named_parameters()}
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        if not all(p in names for p in moved):
            raise ValueError(
                "the optimizer has parameters that the model has not: their part of a step cannot be judged"
            )
        self.last = None

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        """The optimizer's own state: a plain run can go on from it, and the reverse."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)

    @torch.no_grad()
    def step(self, inputs) -> Step:
        """One step on gradients that are already there; the report is also kept as `.last`.

        Raises ValueError, with the weights as they were before, if the step or its logits are not finite.
        """
        names = {p: name for name, p in self.model.named_parameters()}
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in moved]
        self.optimizer.step()
        move = [p - old for p, old in zip(moved, before, strict=True)]
        after = [p.clone() for p in moved]
        for p, old in zip(moved, before, strict=True):
            p.copy_(old)
        ratio = 0.0
        if moved:
            # A long step as it is could overflow: measure it for a unit vector.
            length = math.hypot(*(torch.linalg.vector_norm(d.double()).item() for d in move))
            if not math.isfinite(length):
                raise ValueError("the optimizer's step is not finite; look for the first gradient that is not")
            if length > 0:
                unit = {names[p]: d / length for p, d in zip(moved, move, strict=True)}
                ratio = radius_ratio(direction_logits(self.model, inputs, unit)[1], length)
        scale = min(1.0, self.limit / ratio) if ratio > 0 else 1.0
        for p, old, new, d in zip(moved, before, after, move, strict=True):
            p.copy_(new if scale == 1 else old + scale * d)
        self.last = Step(ratio, scale)
        return self.last


# ---- toy 1: the loss after a step of r radii ------------------------------------------------------------------------


@cache
def _images():
    """Digits in a fixed random order, standardized, and their labels."""
    x, y = standardized_digits("ghost digits")
    return torch.tensor(x).float(), torch.tensor(y)


def _model(kind, seed):
    """Weights N(0, gain / fan_in), gain 2 before relu, biases 0."""
    pick("model", kind, MODELS)
    model = (
        nn.Linear(64, 10)
        if kind == "linear"
        else nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    )
    draws = generator(seed, "ghost weights")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(
                0, ((2 if name == "0.weight" else 1) / p.shape[-1]) ** 0.5, generator=draws
            ) if p.ndim > 1 else p.zero_()
    return model


def toy(kind="mlp", *, seed=0, steps=30, temperature=1.0):
    """(model, inputs (600, 64), labels (600,)): softmax regression or a ReLU net of width 64 on digits, not yet converged.

    steps of full-batch Adam at lr 0.01 from random weights; temperature divides the trained model's logits. Raises ValueError for an
    unknown kind, a temperature that is not positive and a negative number of steps.
    """
    model, (x, y) = _model(kind, seed), _images()
    x, y = x[:SAMPLES], y[:SAMPLES]
    positive("temperature", temperature)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(count("steps", steps, least=0)):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    return model if temperature == 1 else nn.Sequential(model, _Cooled(temperature)), x, y


class _Cooled(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, logits):
        return logits / self.temperature


@dataclass(frozen=True)
class StepLosses:
    """Losses after steps of r radii. Arrays are tensors: radius (directions,), the others (directions, ratios)."""

    ratios: torch.Tensor
    radius: torch.Tensor
    loss: torch.Tensor
    accuracy: torch.Tensor
    start_loss: float
    start_accuracy: float

    @property
    def loss_ratio(self):
        """Loss after the step over loss before it."""
        return self.loss / self.start_loss


@torch.no_grad()
def unit_directions(model, inputs, labels, *, along="random", directions=16, seed=0):
    """Unit vectors in the space of all weights, a list of dicts from parameter names to tensors.

    along "random": `directions` of them, uniform on the sphere (the first ones are the same for any number of them);
    "gradient": one, minus the gradient of the mean cross-entropy. Raises ValueError for another `along` and for a
    gradient that is 0 or not finite.
    """
    pick("direction", along, DIRECTIONS)
    weights = dict(model.named_parameters())
    if along == "gradient":
        with torch.enable_grad():
            gradients = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(weights.values()))
        vectors = [{name: -g for name, g in zip(weights, gradients, strict=True)}]
    else:
        draws = [generator(seed, "ghost directions", i) for i in range(count("directions", directions))]
        vectors = [{name: torch.randn(p.shape, generator=d).to(p) for name, p in weights.items()} for d in draws]
    lengths = [math.hypot(*(torch.linalg.vector_norm(x.double()).item() for x in v.values())) for v in vectors]
    if not 0 < min(lengths) <= max(lengths) < math.inf:
        raise ValueError(
            f"a direction of length {min(lengths)} points nowhere: is the loss finite, and not yet at its minimum?"
        )
    return [{name: x / length for name, x in v.items()} for v, length in zip(vectors, lengths, strict=True)]


@torch.no_grad()
def step_losses(model, inputs, labels, ratios, *, along="random", directions=16, seed=0) -> StepLosses:
    """The loss after steps of length r rho_a, for each r of `ratios` and each direction: all of them in one batched pass.

    along, directions, seed: see `unit_directions`. rho_a = pi / Delta_a is the smallest radius bound of the inputs along
    that direction. labels (samples,). Raises ValueError for an unknown `along`, ratios that are not finite numbers >= 0,
    and a direction that moves no logit.
    """
    ratios = torch.as_tensor(ratios, dtype=torch.float64)
    if ratios.ndim != 1 or not bool(((ratios >= 0) & ratios.isfinite()).all()):
        raise ValueError(f"ratios must be a list of finite numbers >= 0, got {ratios.tolist()}")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    vectors = unit_directions(model, inputs, labels, along=along, directions=directions, seed=seed)
    inverse = [radius_ratio(direction_logits(model, inputs, unit)[1]) for unit in vectors]
    if not min(inverse) > 0:
        raise ValueError("a direction moves no logit: it has no finite radius")
    radius = 1 / torch.tensor(inverse, dtype=torch.float64)
    units = {name: torch.stack([unit[name] for unit in vectors]) for name in weights}
    tau = radius[:, None] * ratios

    def after(unit, step):
        logits = functional_call(model, {name: w + step * unit[name] for name, w in weights.items()}, (inputs,))
        return F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).double().mean()

    start = model(inputs)
    loss, accuracy = vmap(vmap(after, (None, 0)), (0, 0))(units, tau.to(inputs.dtype))
    return StepLosses(
        ratios,
        radius,
        loss,
        accuracy,
        F.cross_entropy(start, labels).item(),
        (start.argmax(-1) == labels).double().mean().item(),
    )


# ---- toy 2: a learning rate spike -----------------------------------------------------------------------------------


def spike(arm="plain", *, seed=0, lr=2e-3, factor=1000.0, start=50, length=1, steps=150, every=5):
    """Train the ReLU net on digits with Adam while lr is `factor` times too large for `length` steps from `start` on.

    arm: "plain", "clip" (the gradient, to norm 1) or "radius" (RadiusController on the batch). Batches of 64 of 1200
    digits. Yields {step, steps, loss, accuracy, lr, ratio, scale, done}: before the first step, every `every`, around the
    spike and at the end; loss and accuracy on 597 held-out digits; ratio and scale of the step before (None without a
    controller). Same seed, same weights and batches. A loss that is not finite stays in the report as it is.
    Raises ValueError for an unknown arm, counts below 1 and an lr or factor that is not positive.
    """
    pick("arm", arm, ARMS)
    positive("lr", lr), positive("factor", factor)
    for name, value in (("length", length), ("steps", steps), ("every", every)):
        count(name, value)
    count("start", start, least=0)
    return _spike_steps(arm, seed, lr, factor, range(start, start + length), steps, every)


def _spike_steps(arm, seed, lr, factor, spiked, steps, every):
    x, y = _images()
    model = _model("mlp", seed)
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    controller = RadiusController(adam, model) if arm == "radius" else None
    batches = stream(seed, "ghost batches").integers(TRAINING, size=(steps, BATCH))
    taken = None
    for step in range(steps + 1):
        done = step == steps
        rate = lr * factor if step in spiked else lr
        if done or step % every == 0 or step in spiked or step - 1 in spiked:
            with torch.no_grad():
                logits, answers = model(x[TRAINING:]), y[TRAINING:]
            yield {
                "step": step,
                "steps": steps,
                "loss": F.cross_entropy(logits, answers).item(),
                "accuracy": (logits.argmax(-1) == answers).float().mean().item(),
                "lr": rate,
                "ratio": taken and taken.ratio,
                "scale": taken and taken.scale,
                "done": done,
            }
        if done:
            return
        for group in adam.param_groups:
            group["lr"] = rate
        picks = batches[step]
        adam.zero_grad()
        F.cross_entropy(model(x[picks]), y[picks]).backward()
        if arm == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if controller:
            with contextlib.suppress(ValueError):  # not finite: the step is refused, and the loss shows why
                taken = controller.step(x[picks])
        else:
            adam.step()
