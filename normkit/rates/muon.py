"""MuonPP: Muon whose updates obey the spectral condition at every shape."""

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.rates.muon needs torch; pip install 'normkit[torch]'") from error

from normkit.checks import count, positive
from normkit.rates.spectral import MUON, mup_scale, newton_schulz


class MuonPP(torch.optim.Optimizer):
    """w <- (1 - lr weight_decay) w - lr sqrt(n_out/n_in) NS(u), u the (Nesterov) momentum of the gradient.

    After "Towards a Principled Muon under muP", arXiv 2601.01306: with updates of spectral norm Theta(sqrt(n_out/n_in))
    the weights keep theirs, no normalization of the weights needed; `spectral_bound` says by how much. The paper's exact
    algorithm for Muon++ was not available to us: this is Muon (Jordan et al. 2024) with muP's shape factor in place of
    max(1, sqrt(n_out/n_in)) and AdamW's decay. Start the weights with `to_mup_norm`.

    Muon is for hidden matrices. Convolutions enter as (n_out, the rest); vectors are refused, and belong, like embeddings
    and the head, to another optimizer, say torch.optim.AdamW. lr: spectral norm of an update over sqrt(n_out/n_in), about.
    momentum m: buffer <- m buffer + (1-m) g; with nesterov u = m buffer + (1-m) g. steps, coefficients: of
    `newton_schulz`. Gradients are only read. Raises ValueError for a parameter with fewer than two axes and for
    hyperparameters out of range, TypeError for parameters or gradients that are not dense and real floating.
    """

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0, nesterov=True, steps=5, coefficients=MUON):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "steps": steps,
            "coefficients": tuple(coefficients),
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    def _check(self, group):
        for name in ("lr", "weight_decay"):
            positive(name, group[name], zero=True)
        if positive("momentum", group["momentum"], zero=True) >= 1:
            raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
        count("steps", group["steps"], 0)
        for p in group["params"]:
            if not p.dtype.is_floating_point:
                raise TypeError(f"MuonPP needs real floating parameters, got one of {p.dtype}")
            if p.ndim < 2 or p.numel() == 0:
                raise ValueError(
                    f"MuonPP is for matrices that are not empty, got a parameter of shape {tuple(p.shape)}; "
                    "give biases and gains to another optimizer, e.g. torch.optim.AdamW"
                )

    @torch.no_grad()
    def step(self, closure=None):
        """One step for every parameter that has a gradient; returns closure()'s loss, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        learning = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in learning:
            if p.grad.layout != torch.strided:
                raise TypeError(f"MuonPP cannot use a sparse gradient (parameter of shape {tuple(p.shape)})")
        for p, group in learning:
            self._update(p, p.grad, self.state[p], group)
        return loss

    def _update(self, w, g, state, group):
        m = group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(w)
        buffer = state["momentum_buffer"].lerp_(g, 1 - m)
        u = (torch.lerp(g, buffer, m) if group["nesterov"] else buffer).flatten(1)
        o = newton_schulz(u, group["steps"], group["coefficients"])
        w.mul_(1 - group["lr"] * group["weight_decay"])
        w.add_(o.reshape(w.shape), alpha=-group["lr"] * mup_scale(*u.shape))
