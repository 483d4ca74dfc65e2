"""Normalize-and-Project: norm layers, and weights that keep their length (Lyle et al. 2024, 2407.01800)."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from normkit.checks import count, pick, positive
from normkit.rates.generic import plain
from normkit.rates.groups import Group, scale_invariant_groups, split
from normkit.rates.insertion import insert_norms, is_norm


class NormalizeAndProject:
    """Keeps every scale-invariant group of a model at the length it starts with, so that the learning rate you set is
    the effective one (up to the constant 1 / radius^2 for SGD, 1 / radius for Adam).

        nap = NormalizeAndProject(model, normalize="layernorm", inputs=x)
        optimizer = torch.optim.Adam(model.parameters())  # after it: the model may have new parameters
        nap.attach(optimizer)  # or call nap.project() after each optimizer.step()

    normalize: "layernorm" or "rmsnorm" puts norms before the nonlinearity modules, in place (see `insert_norms`);
    "as_is" takes those that the model has. every: optimizer steps from one projection to the next.
    gains: of the elementwise gain and offset (gamma, beta) in R^d of the norm layers. "project": jointly to length
    sqrt(d), a change of the function; "decay": gamma <- gamma + gain_decay (1 - gamma), beta <- (1 - gain_decay) beta,
    at each projection; "free": left alone.
    groups: from `scale_invariant_groups`; searched for, with inputs and seed, unless given. Groups with a gain in them
    are left to `gains`. Where groups share a tensor (the bias that scales with W1, and with W2), their lengths are
    measured without it. Parts of length 0, such as the row of a padding token, stay as they are.
    Projection does not change what the network computes, but for eps; weights that are not scale-invariant are free.
    Raises ValueError where no group is found (a network without normalization), and for impossible options.
    """

    def __init__(
        self, model, *, normalize="as_is", every=1, gains="project", gain_decay=1e-3, groups=None, inputs=None, seed=0
    ):
        model = plain(model)
        count("every", every)
        pick("gains", gains, ("project", "decay", "free"))
        if not isinstance(model, nn.Module):
            raise TypeError(f"NormalizeAndProject needs a torch.nn.Module, got {type(model).__name__}")
        groups = list(groups) if isinstance(groups, Iterable) else groups
        if groups is not None and not (isinstance(groups, list) and all(isinstance(g, Group) for g in groups)):
            raise TypeError(f"groups must be a list as scale_invariant_groups returns, got {groups!r}")
        if positive("gain_decay", gain_decay, zero=True) > 1:
            raise ValueError(f"gain_decay is the fraction that goes per projection, in [0, 1], got {gain_decay}")
        self.inserted = [] if normalize == "as_is" else insert_norms(model, normalize, inputs, seed)
        self.model, self.every, self.gains, self.gain_decay = model, every, gains, gain_decay
        self._parameters = dict(model.named_parameters())
        names = {id(p): name for name, p in self._parameters.items()}
        self._gains = []  # [gamma] or [gamma, beta] of each norm layer
        for module in filter(is_norm, model.modules()):
            affine = [getattr(module, key, None) for key in ("weight", "bias")]
            affine = [p for p in affine if isinstance(p, nn.Parameter)]
            self._gains += [affine] if affine else []
        gain_names = {names[id(p)] for affine in self._gains for p in affine}
        groups = scale_invariant_groups(model, inputs, seed=seed) if groups is None else groups
        self.groups, self._anchors = _measurable([g for g in groups if not gain_names & set(g.names)])
        if not self.groups:
            raise ValueError(
                f"{type(model).__name__} has no scale-invariant weights, so there is nothing to project: it has no "
                "normalization layers behind them; normalize='layernorm' or 'rmsnorm' puts some in"
            )
        self.radii = self._lengths(self._buckets())
        for group, radius in zip(self.groups, self.radii, strict=True):
            if not torch.isfinite(radius).all() or not (radius > 0).any():
                raise ValueError(
                    f"{' + '.join(group.names)} has length 0 or not finite at the start: initialize it first"
                )
        self.step, self._optimizer, self._factors = 0, None, {}

    def norms(self) -> dict[Group, torch.Tensor]:
        """Present length of each group's parts, {group: (len(index),)}; what `follow` takes from another run."""
        return dict(zip(self.groups, self._lengths(self._buckets()), strict=True))

    def _lengths(self, buckets):
        found = {}
        for members in buckets.values():
            tensors = [self._parameters[self.groups[i].names[0]].detach() for i in members]
            dtype = torch.promote_types(tensors[0].dtype, torch.float32)
            norms = torch._foreach_norm(tensors, 2, dtype=dtype)
            found |= dict(zip(members, torch.stack(norms).unsqueeze(1), strict=True))
        return [found[i] if i in found else anchor.norms(self._parameters) for i, anchor in enumerate(self._anchors)]

    def _buckets(self):
        """Groups that are one whole tensor, by device and type: these go through torch's fused kernels."""
        buckets = defaultdict(list)
        for i, group in enumerate(self.groups):
            if group.whole and len(group.names) == 1:
                tensor = self._parameters[group.names[0]]
                buckets[tensor.device, tensor.dtype].append(i)
        return buckets

    @torch.no_grad()
    def project(self) -> None:
        """Counts one optimizer step; every `every` of them, brings all groups and gains back to their lengths."""
        self.step += 1
        if self.step % self.every:
            return
        buckets = self._buckets()
        pairs = zip(self.radii, self._lengths(buckets), strict=True)
        factors = [torch.where(now > 0, radius.to(now) / now, 1) for radius, now in pairs]
        fused = {i for members in buckets.values() for i in members}
        for i, group in enumerate(self.groups):
            if i not in fused:
                group.multiply_(self._parameters, factors[i])
        for members in buckets.values():
            tensors = [self._parameters[self.groups[i].names[0]] for i in members]
            torch._foreach_mul_(tensors, [factors[i][0] for i in members])
        for affine in self._gains if self.gains != "free" else ():
            if self.gains == "decay":
                for p, rest in zip(affine, (1.0, 0.0), strict=False):
                    p.lerp_(torch.full_like(p, rest), self.gain_decay)
            else:
                norm = torch.stack([torch.linalg.vector_norm(p) for p in affine]).square().sum().sqrt()
                torch._foreach_mul_(affine, torch.where(norm > 0, affine[0].numel() ** 0.5 / norm, 1))

    def attach(self, optimizer) -> "NormalizeAndProject":
        """From now on, each optimizer.step() is followed by project(). Raises ValueError when already attached."""
        if not hasattr(optimizer, "register_step_post_hook"):
            raise TypeError(f"attach needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if self._optimizer is not None:
            raise ValueError("this NormalizeAndProject is already attached to an optimizer; call detach() first")
        before, kept = optimizer.register_step_pre_hook(lambda *_: kept.update(self._before())), {}
        after = optimizer.register_step_post_hook(lambda *_: self._after(kept))
        self._optimizer = (optimizer, before, after)
        return self

    def detach(self) -> None:
        """Undoes attach()."""
        for hook in self._optimizer[1:] if self._optimizer else ():
            hook.remove()
        self._optimizer = None

    def _before(self):
        names = {name for i in self._factors for name in self.groups[i].names}
        return {name: self._parameters[name].detach().clone() for name in names}

    @torch.no_grad()
    def _after(self, kept):
        for i, factors in self._factors.items():
            group = self.groups[i]
            for name in group.names:
                new, old = (split(t[name], group.dim, group.parts) for t in (self._parameters, kept))
                at = list(group.index)
                scale = factors.to(new.dtype).view(-1, *[1] * (new.ndim - 1))
                new[at] = old[at] + scale * (new[at] - old[at])
        kept.clear()
        self.project()

    def parameter_groups(self, lr, **options) -> list[dict]:
        """Groups for torch.optim: one for each scale-invariant group (or set of groups that share a tensor), and one
        for all other weights. "base_lr" is the rate that `follow` multiplies. Raises ValueError unless lr >= 0 is finite."""
        positive("lr", lr, zero=True)
        found = defaultdict(list)
        for name, parameter in self._parameters.items():
            if parameter.requires_grad:
                found[tuple(i for i, g in enumerate(self.groups) if name in g.names)].append(parameter)
        return [
            {"params": params, "lr": lr, "base_lr": lr, "nap": members, **options}
            for members, params in sorted(found.items(), key=lambda item: item[0] or (len(self.groups),))
        ]

    def follow(self, optimizer, norms, *, power=2) -> None:
        """Gives the next step the effective learning rates of a run whose weights have these lengths (`norms()`).

        lr = base_lr (length here / length there)^power: power 2 copies SGD, and its losses to rounding, when the other
        run started from the same weights; power 1 is for Adam and other updates that ignore the gradient's scale,
        where it is approximate, as their averages mix gradients of different scales. Parts of one tensor (rows) have
        one rate in an optimizer; their steps are scaled after it was taken, for which attach() is needed.
        Raises ValueError for an optimizer without `parameter_groups`, for norms of other groups, and for lengths that are
        not finite or 0 where they are not here (the other run has diverged).
        """
        if not math.isfinite(power):
            raise ValueError(f"power must be a finite number, got {power!r}")
        if not any("nap" in group for group in optimizer.param_groups):
            raise ValueError("build the optimizer from nap.parameter_groups(lr), so that each group has its own rate")
        if set(norms) != set(self.groups):
            raise ValueError(
                "these norms are not of this network's groups: take them from norms() of a twin with the same"
            )
        lengths = self.norms()
        ratios = [(here / norms[g].to(here)) ** power for g, here in lengths.items()]
        for (group, here), ratio in zip(lengths.items(), ratios, strict=True):
            if not torch.isfinite(ratio[here > 0]).all() or not torch.isfinite(norms[group]).all():
                raise ValueError(f"the norms to follow are not finite and positive for {group}: has that run diverged?")
        ratios = [torch.where(torch.isfinite(r), r, 1) for r in ratios]  # parts of length 0
        self._factors = {i: r for i, r in enumerate(ratios) if not self.groups[i].whole}
        if self._factors and (self._optimizer is None or self._optimizer[0] is not optimizer):
            raise ValueError("some groups are parts of a tensor: attach(optimizer) first, so that steps can be scaled")
        for group in optimizer.param_groups:
            factor = 1.0
            for i in group.get("nap", ()):
                factor *= ratios[i].item() if self.groups[i].whole else 1.0
            if "nap" in group:
                group["lr"] = group["base_lr"] * factor

    def state_dict(self) -> dict:
        """{"step", "radii", "groups"}: with the model's and the optimizer's state, what an identical resume needs."""
        groups = [[list(g.names), g.dim, g.parts, list(g.index)] for g in self.groups]
        return {"step": self.step, "radii": [r.clone() for r in self.radii], "groups": groups}

    def load_state_dict(self, state) -> None:
        """Raises ValueError when the state is of other groups, or not one of `state_dict`."""
        if not isinstance(state, dict) or not {"step", "radii", "groups"} <= set(state):
            raise ValueError("this is no state of a NormalizeAndProject, which has step, radii and groups")
        if not all(bool(torch.isfinite(r).all()) for r in state["radii"]):
            raise ValueError("the state's radii are not finite")
        if state["groups"] != self.state_dict()["groups"]:
            raise ValueError("this state has other scale-invariant groups: was it saved from the same architecture?")
        self.step = state["step"]
        self.radii = [saved.to(own) for saved, own in zip(state["radii"], self.radii, strict=True)]

    def __repr__(self):
        lines = [f"  {group}" for group in self.groups]
        return "\n".join(
            [f"NormalizeAndProject({type(self.model).__name__}, every={self.every}, gains={self.gains!r})", *lines]
        )


def _measurable(groups):
    """(groups, anchors): an anchor is the group without what other groups have, too; groups without one are left out."""
    users = defaultdict(int)
    for group in groups:
        for name in group.names:
            users[name] += 1
    kept, anchors = [], []
    for group in groups:
        own = tuple(n for n in group.names if users[n] == 1)
        if len(group.names) == 1:  # the groups of one tensor do not overlap
            own = group.names
        if own:
            kept.append(group)
            anchors.append(replace(group, names=own))
    return kept, anchors
