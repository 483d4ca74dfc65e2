"""Laws of a scale-invariant weight under random gradients: its norm, its effective learning rate, its equilibrium.

The model: at weight w the loss does not depend on ||w||, so that the gradient g is tangent to the sphere, and scales as
1/||w||; it is isotropic in the tangent space, E||g||^2 = grad_norm^2 / ||w||^2, and new at every step. All laws here are
derived from it; they become exact as the dimension grows, with corrections of order 1/dim.

An update rule acts on the second moments <w, w>, <w, p>, <p, p> of weight and buffer alone (`norm_growth` iterates them):

    p <- beta p + g + pull w,    w <- shrink w - step p

"sgd" and "momentum" are torch.optim.SGD's (`decoupled` takes the decay out of the gradient: nothing changes without
momentum, a lot with it); "sgdp" and "adamp" remove the radial part of the step (Heo et al. 2006.08217) and, as
released, multiply the decay by 0.1 for such weights, SGDP's divided by 1 - momentum; "adam" is AdamW.
"""

import math
from dataclasses import dataclass

import numpy as np

from normkit.checks import count, pick

WD_RATIO = 0.1  # of SGDP and AdamP: how much of the decay is left for scale-invariant weights


@dataclass(frozen=True)
class Rule:
    """adaptive: divide by the root mean square gradient (Adam). tangent: remove the step's radial part (AdamP, SGDP)."""

    adaptive: bool
    tangent: bool


OPTIMIZERS = {
    "sgd": Rule(False, False),
    "momentum": Rule(False, False),
    "sgdp": Rule(False, True),
    "adam": Rule(True, False),
    "adamp": Rule(True, True),
}


def rule(optimizer):
    """The `Rule` of an optimizer's name. Raises ValueError for another name."""
    return OPTIMIZERS[pick("optimizer", optimizer, OPTIMIZERS)]


def buffers(optimizer, momentum=0.9, betas=(0.9, 0.999)):
    """(beta, fresh, beta2): p <- beta p + fresh g, and beta2 of Adam's mean square (0 for the SGD family).

    Raises ValueError for an unknown optimizer and for a momentum or beta outside [0, 1).
    """
    kind = rule(optimizer)
    if kind.adaptive:
        if not (isinstance(betas, tuple | list) and len(betas) == 2):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        beta1, beta2 = (_fraction("betas", b) for b in betas)
        return beta1, 1.0 - beta1, beta2
    return (0.0 if optimizer == "sgd" else _fraction("momentum", momentum)), 1.0, 0.0


def decay(optimizer, lr, weight_decay, *, momentum=0.9, decoupled=False):
    """(pull, shrink): what the decay adds to the gradient, pull w, and what it multiplies the weight by.

    Only "momentum" with decoupled=False has a pull. Arrays broadcast. Raises ValueError where the optimizer is unknown
    and where one step's decay removes the whole weight or more (lr weight_decay >= 1, after the factors of SGDP, AdamP).
    """
    shrinkage = _shrinkage(optimizer, lr, weight_decay, momentum)
    if np.any(np.asarray(shrinkage) >= 1):
        raise ValueError(
            f"a step of {optimizer} would shrink the weight by {np.max(shrinkage):g} of its length, which must be less "
            f"than 1: lower lr or weight_decay (their product is {np.max(lr * weight_decay):g})"
        )
    if optimizer == "momentum" and not decoupled:
        return weight_decay, 1.0
    return 0.0, 1.0 - shrinkage


def _shrinkage(optimizer, lr, weight_decay, momentum):
    if not rule(optimizer).tangent:
        return lr * weight_decay
    return lr * weight_decay * WD_RATIO / (1 - momentum if optimizer == "sgdp" else 1)


# ---- growth ---------------------------------------------------------------------------------------------------------


def trajectory(
    optimizer,
    steps,
    *,
    lr,
    grad_norm=1.0,
    radius=1.0,
    dim=None,
    weight_decay=0.0,
    momentum=0.9,
    betas=(0.9, 0.999),
    decoupled=False,
    project=False,
):
    """Norm of the weight after 0, ..., steps steps from norm `radius`, (steps+1,), and each step's angle in radians, (steps,).

    The exact recursion of the second moments, hence good at any lr. Without decay and once the memory of the buffers is
    small against the time the norm takes to grow, it is

        sgd       ||w||^4 = radius^4 + 2 lr^2 grad_norm^2 t               (momentum: lr / (1 - momentum) for lr)
        sgdp      the same with lr^2 / (1 - momentum^2) for lr^2
        adam      ||w||^2 = radius^2 + lr^2 dim t                         (adamp: times (1 - beta1) / (1 + beta1))

    so that SGD's norm grows as t^(1/4), Adam's as t^(1/2): `norm_exponent`. Adam's mean square lags behind while
    gradients shrink, and is a noisy divisor: the recursion knows the lag, the noise to first order in 1 - beta2 (as
    `equilibrium_norm`). At the start, when the divisor is made of a few squares, it is off by some per cent; by up to 20
    where a first step is several times as long as the weight. dim: number of entries, needed by "adam" and "adamp", whose step has norm lr sqrt(dim).
    grad_norm may be an array (steps,), one a step, such as was measured on a real net.
    project=True puts the weight back to `radius` after each step (Normalize-and-Project, 2407.01800).
    Raises ValueError for unknown names, numbers out of range, steps < 0, overflow.
    """
    kind, (beta, fresh, beta2) = rule(optimizer), buffers(optimizer, momentum, betas)
    count("steps", steps, 0)
    lr, grad_norm, radius = (_positive(*x) for x in (("lr", lr), ("grad_norm", grad_norm), ("radius", radius)))
    pull, shrink = decay(
        optimizer, lr, _positive("weight_decay", weight_decay, 0.0), momentum=momentum, decoupled=decoupled
    )
    if np.ndim(grad_norm) and np.shape(grad_norm) != (steps,):
        raise ValueError(f"grad_norm must be a number or one a step, shape ({steps},); got shape {np.shape(grad_norm)}")
    grad = np.broadcast_to(grad_norm, steps).tolist()
    noise = math.sqrt(_divisor_noise(beta, beta2, shrink, kind.tangent) * _dimension(dim)) if kind.adaptive else 1.0
    ww, wp, pp, square, step = radius * radius, 0.0, 0.0, 0.0, lr
    sizes, angles = np.full(steps + 1, ww), np.empty(steps)
    for t in range(1, steps + 1):
        gg = grad[t - 1] ** 2 / ww
        pp = beta * beta * pp + fresh * fresh * gg + pull * (pull * ww + 2 * beta * wp)
        wp = beta * wp + pull * ww
        if kind.adaptive:
            square = beta2 * square + (1 - beta2) * gg
            step = lr * noise * math.sqrt((1 - beta2**t) / square) / (1 - beta**t)
        moved, along = pp, wp
        if kind.tangent:
            moved, along = pp - wp * wp / ww, 0.0
            if not kind.adaptive:  # SGDP's buffer is projected in place
                pp, wp = moved, 0.0
        ahead, aside = shrink * ww - step * along, step * math.sqrt(max(0.0, moved * ww - along * along))
        angles[t - 1] = math.atan2(aside, ahead)  # both times ||w||
        ww, wp = shrink * shrink * ww - 2 * shrink * step * along + step * step * moved, shrink * wp - step * moved
        if not 1e-200 < ww < 1e200:
            raise ValueError(f"the norm leaves float64's range at step {t}: lower lr or start from a larger radius")
        if project:
            ww, wp = radius * radius, wp * radius / math.sqrt(ww)
        sizes[t] = ww
    return np.sqrt(sizes), angles


def norm_growth(optimizer, steps, *, lr, **options):
    """Norm of the weight after 0, ..., steps steps, (steps+1,): the first half of `trajectory`, with its options."""
    return trajectory(optimizer, steps, lr=lr, **options)[0]


def elr(optimizer, steps, *, lr, **options):
    """Effective learning rate after 0, ..., steps steps, (steps+1,): `effective_lr` of the norm in `norm_growth`.

    lr / ||w||^2 for the SGD family, lr / ||w|| for Adam and AdamP; lr is the optimizer's own (a heavy ball goes
    1 / (1 - momentum) times as far in the end). Without decay it falls as t^(-1/2) for both: `elr_exponent`.
    options and errors are those of `norm_growth`.
    """
    return lr / norm_growth(optimizer, steps, lr=lr, **options) ** (1 if rule(optimizer).adaptive else 2)


def norm_exponent(optimizer):
    """k in ||w|| ~ t^k without decay: 1/4 for the SGD family, 1/2 for Adam and AdamP. ValueError for another name."""
    return 0.5 if rule(optimizer).adaptive else 0.25


def elr_exponent(optimizer):
    """k in (effective learning rate) ~ t^k without decay: -1/2 for all. Raises ValueError for another name."""
    return -norm_exponent(optimizer) * (1 if rule(optimizer).adaptive else 2)


# ---- equilibrium ----------------------------------------------------------------------------------------------------


def equilibrium_norm(
    lr,
    weight_decay,
    grad_norm=1.0,
    *,
    optimizer="sgd",
    momentum=0.9,
    betas=(0.9, 0.999),
    dim=None,
    decoupled=False,
):
    """Norm at which decay and growth balance, a float, or an array for arrays of lr and weight_decay.

    With x = lr weight_decay, s = 1 - x, b = momentum (beta1), G = grad_norm:

        sgd                   ||w||^4 = lr^2 G^2 / (1 - s^2)                                    ~ lr G^2 / (2 wd)
        momentum, coupled     ||w||^4 = lr^2 G^2 (1 + b) / ((1 - b) x (2 + 2b - x))             ~ lr G^2 / (2 wd (1 - b))
        momentum, decoupled   ||w||^4 = lr^2 G^2 (1 + sb) / ((1 - sb)(1 - s^2)(1 - b^2))        ~ lr G^2 / (2 wd (1 - b)^2)
        sgdp                  ||w||^4 = lr^2 G^2 / ((1 - s^2)(1 - s^2 b^2)),                    x = lr wd 0.1 / (1 - b)
        adam                  ||w||^2 = lr^2 dim (1 - b)(1 + sb) / ((1 + b)(1 - sb)(1 - s^2))   ~ lr dim / (2 wd)
        adamp                 ||w||^2 = lr^2 dim (1 - b) / ((1 + b)(1 - s^2)(1 + h)),           x = lr wd 0.1,
                              h = b^2 (1 - s^2) / (1 - sb)^2

    The SGD family is exact at any x < 1 up to 1/dim. Adam's also needs its divisor's noise, which is included to first
    order in 1 - beta2: what is left out is about (1 - beta2)^2, below 1 % from beta2 = 0.9 on. Adam's does not depend on
    grad_norm. Sources: van Laarhoven 1706.05350 for the leading order; the finite-step forms are variances of the AR(2)
    process that w follows. Raises ValueError for lr, weight_decay or grad_norm <= 0 (no equilibrium without decay), a
    momentum or beta outside [0, 1), a step that shrinks w by all its length, Adam without dim.
    """
    grad_norm = _positive("grad_norm", grad_norm)
    size, _ = _equilibrium(optimizer, lr, weight_decay, momentum, betas, decoupled)
    if rule(optimizer).adaptive:
        return _plain(np.sqrt(size * _dimension(dim)))
    return _plain(np.sqrt(np.sqrt(size) * grad_norm))


def equilibrium_angle(lr, weight_decay, *, optimizer="sgd", momentum=0.9, betas=(0.9, 0.999), decoupled=False):
    """Angle in radians between one step's weight and the next one's at equilibrium, a float or an array.

    With x = lr weight_decay, s = 1 - x, b = momentum (beta1), cos(angle) is

        sgd                         s                            angle ~ sqrt(2 x)
        momentum, coupled           1 - x / (1 + b)                      sqrt(2 x / (1 + b))
        momentum, decoupled; adam   (s + b) / (1 + s b)                  sqrt(2 x (1 - b) / (1 + b))
        sgdp, adamp                 s, x as in `equilibrium_norm`        sqrt(2 x)

    whatever the gradient's size. Precision and errors are those of `equilibrium_norm`.
    """
    _, turn = _equilibrium(optimizer, lr, weight_decay, momentum, betas, decoupled)
    return _plain(2 * np.arcsin(np.sqrt(np.minimum(turn / 2, 1.0))))


def relaxation_steps(lr, weight_decay, *, optimizer="sgd", momentum=0.9, betas=(0.9, 0.999), decoupled=False):
    """Steps in which the weight forgets its length by a factor e; float or array. Wait five of them for an equilibrium.

    That is how long the decay alone takes, about 1/(lr weight_decay), from any height; near the equilibrium SGD's norm
    settles four times as fast. With coupled decay momentum divides it by 1/(1 - momentum), until the weight oscillates
    and it is 2/(1 - momentum). Adam and AdamP need 2/(1 - beta2) more: their mean square, which remembers 1/(1 - beta2)
    gradients, lags behind the norm. Raises ValueError as `equilibrium_angle` does.
    """
    lr, weight_decay, beta, beta2 = _balanced(optimizer, lr, weight_decay, momentum, betas)
    pull, shrink = decay(optimizer, lr, weight_decay, momentum=momentum, decoupled=decoupled)
    half = (1 + beta - lr * pull) / 2  # without noise w_{t+1} = 2 half w_t - beta w_{t-1}
    root = half + np.sqrt(np.asarray(half * half - beta, dtype=complex))
    with np.errstate(divide="ignore"):
        steps = -1 / np.log(np.where(np.asarray(pull) > 0, np.abs(root), shrink))
    return _plain(steps + 2 / (1 - beta2) if rule(optimizer).adaptive else steps)


def _equilibrium(optimizer, lr, weight_decay, momentum, betas, decoupled):
    """(||w||^4 / grad_norm^2, or ||w||^2 / dim for Adam; 1 - cos of the angle)."""
    kind = rule(optimizer)
    lr, weight_decay, b, beta2 = _balanced(optimizer, lr, weight_decay, momentum, betas)
    _, s = decay(optimizer, lr, weight_decay, momentum=momentum, decoupled=decoupled)
    x = _shrinkage(optimizer, lr, weight_decay, momentum)
    if optimizer == "momentum" and not decoupled:
        return lr**2 * (1 + b) / ((1 - b) * x * (2 + 2 * b - x)), x / (1 + b)
    lost = x * (2 - x)  # 1 - s^2 without cancellation
    if kind.tangent:
        if not kind.adaptive:
            return lr**2 / (lost * (1 - (s * b) ** 2)), x
        h = b**2 * lost / (1 - s * b) ** 2
        return lr**2 * _divisor_noise(b, beta2, s, True) * (1 - b) / ((1 + b) * lost * (1 + h)), x
    size, turn = lr**2 * (1 + s * b) / ((1 - s * b) * lost * (1 - b * b)), x * (1 - b) / (1 + s * b)
    if not kind.adaptive:
        return size, turn
    size = size * (1 - b) ** 2 * _divisor_noise(b, beta2, s, False)
    steady, fading = _update_covariance(b, beta2)
    next_ones = steady * b / (1 - s * b) + fading * b * beta2 / (1 - s * b * beta2)
    return size, x - lr**2 / size * next_ones


def _update_covariance(b, beta2):
    """(A, B): Adam's updates have covariance A b^l + B (b beta2)^l at lag l, entry by entry.

    u = m / sqrt(v), v = 1 + y with y = (1 - beta2) sum beta2^k (z_k^2 - 1): 1/sqrt(1 + y) to second order in y, whose
    variance is 2 (1 - beta2) / (1 + beta2) and whose covariance with z_k^2 is 2 (1 - beta2) beta2^k. beta2 -> 1 leaves
    A = (1 - b)/(1 + b), B = 0.
    """
    nu, variance = 1 - beta2, 2 * (1 - beta2) / (1 + beta2)
    common = nu / (1 - b * b * beta2)
    fresh = (1 - b) ** 2
    return fresh * ((1 + 0.75 * variance) / (1 - b * b) - common), fresh * (0.25 * variance / (1 - b * b) - common)


def _divisor_noise(b, beta2, s, tangent):
    """Factor by which the noise of Adam's divisor changes ||w||^2; for AdamP's projected step only its own variance counts."""
    steady, fading = _update_covariance(b, beta2)
    if tangent:
        return (steady + fading) * (1 + b) / (1 - b)
    lags = lambda k: (1 + s * k) / (1 - s * k)  # noqa: E731  1 + 2 sum (s k)^l
    return (steady * lags(b) + fading * lags(b * beta2)) * (1 + b) / (1 - b) / lags(b)


def _balanced(optimizer, lr, weight_decay, momentum, betas):
    beta, _, beta2 = buffers(optimizer, momentum, betas)
    if np.any(np.asarray(weight_decay) == 0):
        raise ValueError("weight_decay must be > 0: without decay the norm grows for ever, there is no equilibrium")
    return _positive("lr", lr), _positive("weight_decay", weight_decay), beta, beta2


def _positive(name, value, least=None):
    number = np.asarray(value)
    good = number.dtype.kind in "fiu" and np.isfinite(number).all()
    if not good or (number < least if least is not None else number <= 0).any():
        bound = "> 0" if least is None else f">= {least:g}"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")
    return float(number) if number.ndim == 0 else number.astype(np.float64)


def _fraction(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    return float(value)


def _dimension(dim):
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 2:
        raise ValueError(
            f"Adam's step has norm lr sqrt(dim): give dim, the number of entries, an integer >= 2; got {dim!r}"
        )
    return int(dim)


def _plain(value):
    return float(value) if np.ndim(value) == 0 else value
