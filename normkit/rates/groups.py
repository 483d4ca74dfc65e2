"""Which weights a network does not feel the length of: scale-invariant groups of any torch model, found by testing."""

import numbers
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from normkit.rates.generic import GenericCopy, plain
from normkit.rates.radial import ROWS, Radial, cuts, differences, null_vectors
from normkit.rng import stream

FINITE = 5  # times the tolerance: at half the length, eps weighs four times as much as at the point itself
EXACT = 1e-3  # of the ordinary change: what finite factors may move without being asked whether it is an eps
FEW = 8  # entries: among many parts as small as that, some are orthogonal to their gradients by chance
POINTS, MEMORY = 16, 10**8  # at most so many copies, and numbers in them, for a model with few outputs (a scalar loss)
BETTER = 10  # times smaller: what a bias must make the violation before its matrix counts as invariant with it only


@dataclass(frozen=True, repr=False)
class Group:
    """Weights whose length the network's output does not depend on: multiply any part by c > 0, and nothing changes.

    names: the parameters, as in model.named_parameters(). More than one: they are invariant when scaled together only.
    dim: None for the whole tensor, 0 or 1 where the tensor is cut along that axis into `parts` equal contiguous blocks
    (parts = the axis' length: single rows or columns). A vector that belongs to a matrix is cut along its only axis.
    index: the invariant parts; all of them unless given. The others are no part of the group.
    """

    names: tuple[str, ...]
    dim: int | None = None
    parts: int = 1
    index: tuple[int, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "names", (self.names,) if isinstance(self.names, str) else tuple(self.names))
        index = range(self.parts) if self.index is None else self.index
        object.__setattr__(self, "index", tuple(int(i) for i in index))
        if self.dim not in (None, 0, 1) or self.parts < 1 or (self.dim is None and self.parts != 1):
            raise ValueError(f"a group is cut along dim 0 or 1, or whole (None, 1 part), got {self.dim}, {self.parts}")
        if not self.names or not self.index or not all(0 <= i < self.parts for i in self.index):
            raise ValueError(f"a group needs names and parts among 0..{self.parts - 1}, got {self.names}, {self.index}")

    @property
    def whole(self) -> bool:
        return self.parts == 1

    def tensors(self, model) -> list:
        """The group's parameters in a model, or in a mapping from names. Raises ValueError for a name it lacks."""
        have = dict(plain(model).named_parameters()) if isinstance(model, nn.Module) else model
        missing = [name for name in self.names if name not in have]
        if missing:
            raise ValueError(f"the model has no parameter {missing[0]!r}; is the group another model's?")
        return [have[name] for name in self.names]

    @torch.no_grad()
    def norms(self, model) -> torch.Tensor:
        """(len(index),) length of each part, over all the group's tensors; float32 or wider."""
        first, *others = (self._norms(tensor) for tensor in self.tensors(model))
        return first if not others else torch.stack([first, *others]).square().sum(0).sqrt()

    def _norms(self, tensor):
        parts = split(tensor, self.dim, self.parts).unsqueeze(-1)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        norms = torch.linalg.vector_norm(parts, dim=tuple(range(1, parts.ndim)), dtype=dtype)
        return norms if len(self.index) == self.parts else norms[list(self.index)]

    @torch.no_grad()
    def multiply_(self, model, factors) -> None:
        """Multiplies each part, in place, by its factor: a number, or (len(index),)."""
        for tensor in self.tensors(model):
            factors = torch.as_tensor(factors, dtype=torch.promote_types(tensor.dtype, torch.float32))
            full = torch.ones(self.parts, dtype=factors.dtype, device=tensor.device)
            full[list(self.index) if len(self.index) < self.parts else slice(None)] = factors.to(tensor.device)
            parts = split(tensor, self.dim, self.parts)
            parts.mul_(full.view(-1, *[1] * (parts.ndim - 1)))

    def scale_(self, model, radii) -> None:
        """Brings each part, in place, to its radius (a number, or (len(index),)). A part of length 0 stays.

        Raises ValueError for radii that do not fit, are not finite, or not positive.
        """
        norms, radii = self.norms(model), torch.as_tensor(radii)
        if radii.shape not in ((), norms.shape) or not ((radii > 0) & torch.isfinite(radii)).all():
            raise ValueError(f"radii must be a positive finite number, or {tuple(norms.shape)} of them, got {radii}")
        self.multiply_(model, torch.where(norms > 0, radii.to(norms) / norms, 1))

    def kind(self, model) -> str:
        """What is invariant: "joint" (several tensors), "layer", "rows", "columns", or "blocks" of rows or columns."""
        if len(self.names) > 1 or self.whole:
            return "layer" if len(self.names) == 1 else "joint"
        return ("rows", "columns")[self.dim] if self.tensors(model)[0].shape[self.dim] == self.parts else "blocks"

    def __str__(self):
        cut = "whole" if self.whole else f"{self.parts} equal parts along {('rows', 'columns')[self.dim]}"
        some = "" if len(self.index) == self.parts else f", of these {_ranges(self.index)}"
        return f"{cut + some:<32} {' + '.join(self.names)}"

    def __repr__(self):
        return f"Group({' '.join(str(self).split())})"  # an embedding's index has thousands of numbers


def split(tensor, dim, parts):
    """View (parts, ...) of a tensor's equal blocks along dim, or (1, ...) of the whole."""
    if dim is None:
        return tensor.unsqueeze(0)
    dim = min(dim, tensor.ndim - 1)
    return tensor.unflatten(dim, (parts, -1)).movedim(dim, 0)


def _ranges(index):
    """(0, 1, 2, 5) -> "0-2, 5"."""
    cut = np.flatnonzero(np.diff(index) != 1) + 1
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in np.split(np.array(index), cut))


@torch.inference_mode(False)
@torch.enable_grad()
def scale_invariant_groups(model, inputs=None, *, tolerance=0.02, seed=0) -> list[Group]:
    """The weights of any torch model that its outputs depend on by direction only; [] where there are none.

    Nothing is looked up by name or by type. Copies of the model, in float64 and at generic points (noise on all
    parameters, so that a zero bias does not look invariant), are differentiated: by Euler's theorem the derivative along
    an invariant w is <w, grad_w> = 0, for every function of the outputs. Parts go from single rows and columns over
    equal blocks to whole tensors; then come tensors that are invariant together only: a matrix and its bias, and 0/1
    vectors in the null space of all radial derivatives. What passes must also leave the outputs alone when its parts
    are multiplied by random factors 1/2 and 2, or it is no group. Groups of one tensor do not overlap, and are as fine
    as they can be without leaving more of it out; groups of several may share vectors, as {W1, b1, b2} and {W2, b2} do.

    The copies are in train mode (batch norm uses its batch), with the same dropout masks each time. Parts that the outputs
    do not depend on are no evidence: embedding rows of tokens that are not in the inputs go with the others.
    inputs: a dict, tuple or tensor as for normkit.probe; None guesses (tokens, images, sequences, vectors).
    tolerance: of the radial derivative, relative to one along a random direction; finite factors may move the outputs
    five times as much. 0.02 lets the usual eps of norm layers pass (a violation of about eps / variance), not 0.1.
    Where outputs jump (top-k routing of experts), a joint group of many tensors may be missed.
    Cost: 8 backward passes and, for each tensor that is not invariant alone, two forward passes, in float64; a few
    short runs as inputs are enough.
    seed: of the noise, the guessed inputs, the random functions and the factors. The model is left as it is.
    Raises TypeError for no Module, ValueError for inputs that do not run or cannot be guessed, and for parameters or
    outputs that are not finite.
    """
    if not isinstance(tolerance, numbers.Real) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance!r}")
    trials = [GenericCopy(model, inputs, seed, 0)]
    sizes = [p.numel() for p in trials[0].parameters.values()]
    points = min(-(-ROWS * len(sizes) // trials[0].base.numel()), POINTS, MEMORY // (sum(sizes) or 1))
    trials += [GenericCopy(model, inputs, seed, point) for point in range(1, max(2, points))]
    if not sum(sizes) or not all(trial.base.requires_grad for trial in trials):
        return []
    radial = Radial(trials, seed)
    test = _Test(trials, radial, tolerance, seed)
    pairs = test.pairs()
    within = {g.names[0] for g in pairs if len(g.index) == g.parts}
    singles = [g for name in radial.touched if name not in within for g in test.single(name)]
    done = {g.names[0] for g in singles if len(g.index) == g.parts}
    rest = [name for name in radial.touched if name in radial.clear and name not in done]
    return [*singles, *pairs, *test.joint(rest, [*singles, *pairs])]


class _Test:
    """Which groups the radial derivatives of a copy suggest, and whether finite factors confirm them."""

    def __init__(self, trials, radial, tolerance, seed):
        self.trials, self.radial, self.tolerance, self.seed = trials, radial, tolerance, seed

    def single(self, name):
        """Groups of one tensor: greedily from the finest parts on, or one coarser view where that covers more."""
        mask = torch.zeros(self.radial.shape(name), dtype=torch.bool)
        found, coarser = [], []
        for dim, parts in self.radial.views(name):
            violation, touched = (x[0] for x in self.radial.violation(name, dim, parts))
            passed = violation < self.tolerance
            if not passed.any():
                continue
            if passed[touched].all():
                passed = passed | ~touched
            elif mask.numel() / parts < FEW:
                continue
            blocks = split(mask, dim, parts)
            free = passed & ~blocks.flatten(1).any(1).numpy() if mask.ndim else passed
            if free.any() and self.confirmed(group := Group(name, dim, parts, np.flatnonzero(free))):
                found.append(group)
                blocks[torch.from_numpy(free)] = True
            if (passed & ~free).any():
                coarser.append(Group(name, dim, parts, np.flatnonzero(passed)))
            if mask.all():
                return found
        share = mask.double().mean().item()
        wider = [g for g in coarser if len(g.index) / g.parts > share + 1e-9]
        wider.sort(key=lambda g: -len(g.index) / g.parts)
        return next(([g] for g in wider if self.confirmed(g)), found)

    def pairs(self):
        """Groups of a matrix and a vector as long as one of its axes, such as its bias."""
        vectors, options = {}, {}
        for name in self.radial.touched:
            if len(shape := self.radial.shape(name)) == 1 and self.radial.whole(name) > self.tolerance:
                vectors.setdefault(shape[0], []).append(name)
        for name in self.radial.touched:
            if len(shape := self.radial.shape(name)) > 1 and self.radial.whole(name) > 1e-9:
                for axis in range(2):
                    for dim, parts in cuts({axis: shape[axis]}) if shape[axis] in vectors else ():
                        for vector, passed in self._passing(name, vectors[shape[axis]], dim, parts):
                            group = Group((name, vector), dim, parts, np.flatnonzero(passed))
                            options.setdefault(group.names, []).append(group)
        for groups in options.values():
            groups.sort(key=lambda g: -len(g.index) / g.parts)  # a stable sort: the finest of equals stays first
        found = (next((g for g in groups if self.confirmed(g)), None) for groups in options.values())
        return [group for group in found if group is not None]

    def _passing(self, name, vectors, dim, parts):
        alone = self.radial.violation(name, dim, parts)[0]
        violation, touched = self.radial.violation(name, dim, parts, vectors)
        passed = (violation < self.tolerance) & (violation < alone / BETTER)
        for v in np.flatnonzero(passed.any(1)):
            yield vectors[v], passed[v] | ~touched[v] if passed[v][touched[v]].all() else passed[v]

    def joint(self, names, others):
        """Groups of any number of whole tensors; of those that share a matrix, and so are variants, the smallest.

        Attention has many: what reaches the residual stream through V and the projection doubles with either.
        """
        taken = {name for g in others for name in g.names}
        whole = [set(g.names) for g in others if len(g.index) == g.parts]
        vectors = [c for c, name in enumerate(names) if len(self.radial.shape(name)) == 1]
        found = null_vectors(differences(self.trials, names), self.tolerance, vectors)
        found.sort(key=lambda s: (sum(names[c] in taken for c in s), len(s), len({*vectors} & {*s}), -sum(s)))
        found = [tuple(names[c] for c in columns) for columns in found]
        kept, matrices = [], set()
        for members in found:
            own = {name for name in members if len(self.radial.shape(name)) > 1}
            if own & matrices or any(group <= set(members) for group in whole):
                continue
            if self.confirmed(group := Group(members)):
                kept.append(group)
                matrices |= own
        return kept

    def confirmed(self, group):
        """Do random factors 1/2 and 2 move the outputs far less than changes of the same sizes and random signs do?"""
        return all(self._confirmed(group, trial, point) for point, trial in enumerate(self.trials))

    def _confirmed(self, group, trial, point):
        draw = stream(self.seed, "factors", *group.names, group.parts, point)
        kept, base = {name: trial.parameters[name].detach() for name in group.names}, trial.base.detach()
        factors = np.resize([0.5, 2.0], len(group.index))
        draw.shuffle(factors)
        for factor in (factors, 1 / factors):
            scaled = {name: w.clone() for name, w in kept.items()}
            group.multiply_(scaled, factor)
            signs = {name: torch.as_tensor(draw.choice([-1.0, 1.0], tuple(w.shape))).to(w) for name, w in kept.items()}
            ordinary = {name: w + (scaled[name] - w) * signs[name] for name, w in kept.items()}
            moved, expected = (torch.linalg.vector_norm(trial.outputs_at(x) - base) for x in (scaled, ordinary))
            if not moved < FINITE * self.tolerance * expected:
                return False
            if moved > EXACT * expected and not self._fades(group, trial, kept):
                return False
        return True

    def _fades(self, group, trial, kept):
        """Is what a change of length moves an eps, which fades as 1 / length^2?

        A saturated tanh fades as 1 / length only; a small term of a sum, as embeddings beside normalized branches are, grows.
        """
        outputs = []
        for factor in (1.0, 4.0, 64.0):
            longer = {name: w.clone() for name, w in kept.items()}
            group.multiply_(longer, factor)
            outputs.append(trial.outputs_at(longer))
        near, far = (torch.linalg.vector_norm(x - outputs[2]) for x in outputs[:2])
        return bool(far < near / 8)
