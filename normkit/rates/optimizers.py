"""SGDP and AdamP (Heo et al. 2020, arXiv 2006.08217): no step along a weight that only has a direction.

A scale-invariant weight's gradient is orthogonal to it, momentum is not: it keeps lengthening the weight, and so
shrinks the effective learning rate. Both optimizers look for scale invariance in the angle of gradient and weight, and
remove the radial part of the update where they find it. Hyperparameters, defaults and behavior are those of the
authors' released code, and so are the names in the state: its checkpoints load.
"""

import math
import numbers

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.rates.optimizers needs torch; pip install 'normkit[torch]'") from error
from torch.nn.functional import cosine_similarity
from torch.optim.optimizer import Optimizer, required

__all__ = ["SGDP", "AdamP", "projected"]


def channels(x):
    """x (n, ...) as a matrix (n, m): a row for each output unit."""
    return x.reshape(x.shape[0], -1)


def layer(x):
    """x as one row (1, m)."""
    return x.reshape(1, -1)


def radial_test(w, g, delta, eps, view):
    """Boolean scalar tensor: |cos(g, w)| < delta / sqrt(m) in every row of the view (m numbers each)."""
    cosine = cosine_similarity(view(g), view(w), dim=1, eps=eps).abs()
    return cosine.max() < delta / math.sqrt(view(w).shape[1])


def tangent(w, update, eps, view):
    """update - <update, u> u for each row of the view, u = w / (|w| + eps): what does not change |w| to first order."""
    rows = view(w)
    u = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + eps)
    return update - (u * (u * view(update)).sum(dim=1, keepdim=True)).reshape(w.shape)


def projected(w, g, update, delta=0.1, eps=1e-8):
    """(update without its radial part, whether it was removed), for a weight w with gradient g.

    w, g, update: tensors of one shape. If the gradient is orthogonal to w in every row (`radial_test`: w feeds a
    BatchNorm, say) the rows are projected; else if it is orthogonal to w as a whole (a LayerNorm) the whole is; else,
    and for fewer than two axes, the update returns as it is. The second result is a boolean tensor of shape (): both
    come from torch.where, so that a GPU need not wait for the host. A random gradient passes the second test with
    probability P(|N(0,1)| < delta), 8 % at delta = 0.1.
    """
    found = torch.zeros((), dtype=torch.bool, device=w.device)
    if w.ndim < 2 or w.numel() == 0:
        return update, found
    result = update
    for view in (layer, channels):  # the later one wins
        passes = radial_test(w, g, delta, eps, view)
        result = torch.where(passes, tangent(w, update, eps, view), result)
        found = found | passes
    return result, found


class _Projecting(Optimizer):
    """What SGDP and AdamP share: checks, the loop over parameters, decay and step. `_update` is the subclass's own."""

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    def _check(self, group):
        for p in group["params"]:
            if not p.dtype.is_floating_point:
                raise TypeError(f"{type(self).__name__} needs real floating parameters, got one of {p.dtype}")
        for name in ("lr", "weight_decay", "eps", "wd_ratio"):
            _within(name, group[name], 0, math.inf)
        if group["delta"] != math.inf:  # which is allowed: always project
            _within("delta", group["delta"], 0, math.inf)

    @torch.no_grad()
    def step(self, closure=None):
        """One step for every parameter that has a gradient; returns closure()'s loss, or None without one.

        Raises TypeError, before anything changes, for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        learning = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in learning:
            if p.grad.layout != torch.strided:
                raise TypeError(
                    f"{type(self).__name__} cannot use a sparse gradient (parameter of shape {tuple(p.shape)}); "
                    "make it dense, e.g. with Embedding(sparse=False), or give that parameter to torch.optim.SparseAdam"
                )
        for p, group in learning:
            self._update(p, p.grad, self.state[p], group)
        return loss

    def _move(self, w, g, update, group, rate, decay):
        """w <- (1 - decay) w - rate update, both projected and with less decay where w looks scale invariant."""
        update, found = projected(w, g, update, group["delta"], group["eps"])
        if decay > 0:
            w.copy_(torch.where(found, w * (1 - decay * group["wd_ratio"]), w * (1 - decay)))
        w.add_(update, alpha=-rate)
        return update


class SGDP(_Projecting):
    """SGD with momentum whose update is projected (algorithm 1 of 2006.08217).

    momentum, dampening, nesterov: as in torch.optim.SGD, except that the first gradient is dampened too. weight_decay
    is decoupled: w shrinks by lr weight_decay / (1 - momentum) a step, times wd_ratio where the update was projected.
    delta, eps: see `projected`. project_buffer: with nesterov=False the released code writes the projected update back
    into the momentum buffer, and so does the default; False is the paper's algorithm, which keeps the buffer.
    Raises ValueError or TypeError for hyperparameters out of range and parameters that are not real floating.
    """

    def __init__(
        self,
        params,
        lr=required,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        eps=1e-8,
        delta=0.1,
        wd_ratio=0.1,
        *,
        project_buffer=True,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "eps": eps,
                "delta": delta,
                "wd_ratio": wd_ratio,
                "project_buffer": project_buffer,
            },
        )

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint of the released code has no such entry
            group.setdefault("project_buffer", True)

    def _check(self, group):
        super()._check(group)
        _within("momentum", group["momentum"], 0, 1)
        _within("dampening", group["dampening"], -math.inf, math.inf)

    def _update(self, w, g, state, group):
        beta = group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(w)
        buffer = state["momentum"]
        buffer.mul_(beta).add_(g, alpha=1 - group["dampening"])
        update = g + beta * buffer if group["nesterov"] else buffer
        decay = group["lr"] * group["weight_decay"] / (1 - beta)
        update = self._move(w, g, update, group, group["lr"], decay)
        if group["project_buffer"] and not group["nesterov"]:
            buffer.copy_(update)


class AdamP(_Projecting):
    """Adam whose update is projected (algorithm 2 of 2006.08217); for vectors, and with delta=0, torch's AdamW.

    lr, betas, eps: Adam's. weight_decay is decoupled: w shrinks by lr weight_decay a step, times wd_ratio where the
    update was projected. delta: see `projected`. nesterov: the update looks ahead, beta1 m + (1 - beta1) g for m.
    Raises ValueError or TypeError for hyperparameters out of range and parameters that are not real floating.
    """

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, delta=0.1, wd_ratio=0.1, nesterov=False
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "delta": delta,
                "wd_ratio": wd_ratio,
                "nesterov": nesterov,
            },
        )

    def _check(self, group):
        super()._check(group)
        betas = group["betas"]
        if not (isinstance(betas, tuple | list) and len(betas) == 2):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
            _within(name, beta, 0, 1)

    def _update(self, w, g, state, group):
        beta1, beta2 = group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(w), exp_avg_sq=torch.zeros_like(w))
        state["step"] += 1
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        scale = (v.sqrt() / math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        update = (beta1 * m + (1 - beta1) * g if group["nesterov"] else m) / scale
        rate = group["lr"] / (1 - beta1 ** state["step"])
        self._move(w, g, update, group, rate, group["lr"] * group["weight_decay"])


def _within(name, value, low, high):
    """ValueError unless low <= value < high (low itself excluded if it is infinite); TypeError for what is no number."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number and not (torch.is_tensor(value) and value.numel() == 1):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (low <= value < high and value > -math.inf):
        rule = "a finite number" if low == -math.inf else f"a finite number >= {low}"
        raise ValueError(f"{name} must be {rule}{f' and below {high}' if high < math.inf else ''}, got {value!r}")
