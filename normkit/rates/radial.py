"""Radial derivatives <w, dL/dw> of every row, column, block and tensor of a model, and which of them vanish."""

import itertools

import numpy as np
import torch

from normkit.rng import stream

COTANGENTS = 4  # at each point; an ordinary weight passes eight tests at a tolerance of 0.02 once in 10^13 times
STEP = 1e-3  # of log |w| in central differences: errors of 1e-6, and 1e-4 where a norm layer works in float32
ENTRIES = 4096  # of the outputs that a difference is looked at
CLEAR = 1e-5  # of the largest effect: less may be rounding, where a layer works in float32, and spoils a null space
LEAST = 1e-3, 0.05  # pivots: small where the rows are unlike in size, less so where an eps blurs the zeros
ROWS = 4  # equations for each tensor, before a null space means something


class Radial:
    """Per tensor and axis, for each slice i and K random functions k of the outputs, some at each point: the radial
    derivative sum(w_i g_ki), and sum((w_i g_ki)^2), the square of what it would be if its terms had random signs."""

    def __init__(self, trials, seed):
        self.parameters = trials[0].parameters
        terms = {name: [] for name, p in self.parameters.items() if p.ndim and p.numel()}
        for point, trial in enumerate(trials):
            for k in range(COTANGENTS):
                draw = stream(seed, "cotangent", point, k).standard_normal(trial.base.numel())
                for name, wg in self._terms(trial, torch.as_tensor(draw).to(trial.base), k < COTANGENTS - 1):
                    square = wg.square()
                    terms[name].append([(_sums(wg, d), _sums(square, d)) for d in range(min(wg.ndim, 2))])
        self.slices = {n: [np.stack(axis, 1) for axis in zip(*k, strict=True)] for n, k in terms.items()}
        effects = {n: self.effect(n, None, 1).item() for n in self.slices}
        largest = max((e for e in effects.values() if np.isfinite(e)), default=0)
        self.floor = largest * 1e3 * torch.finfo(trials[0].base.dtype).eps
        self.touched = [name for name, effect in effects.items() if not effect <= self.floor]  # nan is an effect
        self.clear = {name for name, effect in effects.items() if effect > CLEAR * largest}

    @staticmethod
    def _terms(trial, cotangent, again):
        tensors = {name: p for name, p in trial.parameters.items() if p.ndim and p.numel()}
        if not tensors:
            return
        found = torch.autograd.grad(trial.base, [*tensors.values()], cotangent, retain_graph=again, allow_unused=True)
        for (name, w), g in zip(tensors.items(), found, strict=True):
            yield name, torch.zeros_like(w) if g is None else w.detach() * (g.to_dense() if g.is_sparse else g)

    def shape(self, name):
        return tuple(self.parameters[name].shape)

    def _blocks(self, name, dim, parts):
        """(radial derivatives (K, parts), sums of squares (K, parts)) of equal blocks."""
        axes = self.slices[name]
        sums = axes[min(dim or 0, len(axes) - 1)]
        return sums.reshape(*sums.shape[:2], parts, -1).sum(-1)

    def effect(self, name, dim, parts):
        """(parts,) the size of a derivative along a random direction, as long as w: root mean square over functions."""
        return np.sqrt(self._blocks(name, dim, parts)[1].mean(0))

    def violation(self, name, dim, parts, partners=()):
        """((partners or 1, parts) radial derivative over its effect, those without an effect at all).

        partners: vectors that are scaled with the tensor, each by itself a candidate.
        """
        mine = self._blocks(name, dim, parts)[None]
        theirs = np.stack([self._blocks(other, dim, parts) for other in partners]) if partners else np.zeros_like(mine)
        radial, square = np.moveaxis(mine + theirs, 1, 0)
        effect, floor = np.sqrt(square.mean(1)), self.floor / parts
        touched = ~(np.sqrt(mine[:, 1].mean(1)) <= floor)
        if partners:
            touched = touched & ~(np.sqrt(theirs[:, 1].mean(1)) <= floor)
        known = touched & np.isfinite(effect)  # a gradient that is not finite is no evidence of invariance
        ratio = np.full(effect.shape, np.inf)
        ratio[known] = np.sqrt((radial**2).mean(1))[known] / effect[known]
        return ratio, touched

    def whole(self, name):
        return self.violation(name, None, 1)[0].item()

    def views(self, name):
        """(dim, parts) from the finest cut to the whole."""
        return cuts(dict(enumerate(self.shape(name)[:2])))


def _sums(x, dim):
    return x.sum([d for d in range(x.ndim) if d != dim]).cpu().numpy() if x.ndim > 1 else x.cpu().numpy()


def cuts(lengths):
    """(dim, parts) of all equal contiguous blocks along these axes ({dim: length}), finest first, the whole last."""
    fine = [(dim, parts) for dim, n in lengths.items() for parts in range(2, n + 1) if n % parts == 0]
    return [*sorted(fine, key=lambda cut: -cut[1]), (None, 1)]


def differences(trials, names):
    """(entries, len(names)) derivative of the outputs along log |w| of each tensor, at up to 4096 of their entries.

    The first point is enough where the outputs have many entries for each tensor; else the points are stacked.
    """
    enough = trials[0].base.numel() >= ROWS * len(names)
    return np.concatenate([_differences(trial, names) for trial in (trials[:1] if enough else trials)])


def _differences(trial, names):
    size = trial.base.numel()
    pick = np.linspace(0, size - 1, min(size, ENTRIES)).astype(int)
    columns = np.empty((len(pick), len(names)))
    for column, name in enumerate(names):
        w = trial.parameters[name].detach()
        up, down = (trial.outputs_at({name: w * (1 + step)}) for step in (STEP, -STEP))
        columns[:, column] = ((up - down)[pick] / (2 * STEP)).cpu().numpy()
    return columns


def null_vectors(columns, tolerance, vectors=()):
    """Sets of columns of a matrix (list of index tuples) that add up to nothing: 0/1 vectors in its null space.

    columns: (rows, n); columns of zeros are left out. Minimal sets only. A basis of the null space in reduced row
    echelon form shows them, after one or two of its rows are added where an entry is -1. What is no pivot is likelier
    to be in the sets, so it is taken from the left, from the right, and with the columns in `vectors` first (the last
    matrices stay); and for every number of smallest singular values, since what is zero to rounding, what is zero up to a
    norm layer's eps and what is small by chance may lie close together.
    """
    size = np.linalg.norm(columns, axis=0)
    used = np.flatnonzero(size > 0)
    if len(used) < len(size):
        place = {int(c): i for i, c in enumerate(used)}
        sets = null_vectors(columns[:, used], tolerance, [place[c] for c in vectors if c in place])
        return [tuple(int(used[c]) for c in s) for s in sets]
    if len(size) < 2:
        return []
    _, singular, right = np.linalg.svd(columns / size, full_matrices=True)
    singular = np.pad(singular, (0, len(right) - len(singular)))
    found, every = set(), list(range(len(size)))
    for first in np.flatnonzero(singular < tolerance)[::-1]:
        basis = right[first:] / size
        orders = every, every[::-1], [*vectors, *sorted(set(every) - set(vectors))]
        for order, least in itertools.product(orders, LEAST):
            rows = np.empty_like(basis)
            rows[:, order] = _echelon(basis[:, order], least)
            found |= {tuple(np.flatnonzero(z)) for z in _zero_one(rows)}
    found = [s for s in found if np.linalg.norm(columns[:, s].sum(1)) < tolerance * np.linalg.norm(size[list(s)])]
    return sorted((s for s in found if not any(set(o) < set(s) for o in found)), key=lambda s: (len(s), s))


def _echelon(basis, least):
    """Reduced row echelon form; entries below `least` of their row's largest are no pivots."""
    rows = basis / np.abs(basis).max(1, keepdims=True)
    done = 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        pivot = done + int(np.abs(rows[done:, column]).argmax())
        if np.abs(rows[pivot, column]) < least * np.abs(rows[pivot]).max():
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= rows[others, column, None] * rows[done]
        done += 1
    return rows


def _zero_one(rows, slack=0.1):
    near = np.round(rows)
    whole = near[(np.abs(rows - near) < slack).all(1)]
    for row in whole:
        others = [r for r in whole if r is not row] if (row < 0).any() and len(whole) < 40 else []
        for several in itertools.chain([()], itertools.combinations(others, 1), itertools.combinations(others, 2)):
            z = row + sum(several)
            if z.min() >= 0 and z.max() == 1 and z.sum() > 1:
                yield z
