"""Radial derivatives <w, dL/dw> of every row, column, block and tensor of a model, and which of them vanish."""

import itertools

import numpy as np
import torch

from normkit.rng import stream

COTANGENTS = 8  # an ordinary weight passes eight independent tests at a tolerance of 0.02 once in 10^13 times
HALF_STEP = 3e-3  # of log |w| in a central difference: an error of 1e-5, and 1e-4 where a norm layer works in float32
ENTRIES = 4096  # of the outputs that a difference is looked at


class Radial:
    """Per tensor and axis: <w_i, g_ki>, |g_ki|^2 and |w_i|^2 of each slice i for K random functions k of the outputs."""

    def __init__(self, trial, seed):
        self.trial, self.seed = trial, seed
        names, tensors = zip(*trial.parameters.items(), strict=True)
        self.slices = {
            n: [([], [], self._sum(t.detach() ** 2, d)) for d in range(min(t.ndim, 2))]
            for n, t in zip(names, tensors, strict=True)
        }
        for k in range(COTANGENTS):
            cotangent = torch.as_tensor(stream(seed, "cotangent", k).standard_normal(trial.base.numel())).to(trial.base)
            gradients = torch.autograd.grad(
                trial.base, tensors, cotangent, retain_graph=k < COTANGENTS - 1, allow_unused=True
            )
            for name, w, g in zip(names, tensors, gradients, strict=True):
                g = torch.zeros_like(w) if g is None else g.to_dense() if g.is_sparse else g
                for d, (radial, square, _) in enumerate(self.slices[name]):
                    radial.append(self._sum(w.detach() * g, d))
                    square.append(self._sum(g * g, d))
        self.slices = {n: [(np.stack(r), np.stack(s), w) for r, s, w in axes] for n, axes in self.slices.items()}
        effects = {n: float(self.effect(n, None, 1).sum()) for n, axes in self.slices.items() if axes}
        self.floor = max(effects.values(), default=0) * 1e3 * torch.finfo(trial.base.dtype).eps
        self.touched = [name for name, effect in effects.items() if effect > self.floor]

    @staticmethod
    def _sum(x, dim):
        return x.movedim(dim, 0).reshape(x.shape[dim], -1).sum(1).cpu().numpy()

    def shape(self, name):
        return tuple(self.trial.parameters[name].shape)

    def _blocks(self, name, dim, parts):
        """(radial (K, parts), |g|^2 (K, parts), |w|^2 (parts,)) of equal blocks."""
        radial, square, size = self.slices[name][min(dim or 0, len(self.slices[name]) - 1)]
        return [x.reshape(*x.shape[:-1], parts, -1).sum(-1) for x in (radial, square, size)]

    def effect(self, name, dim, parts):
        """(parts,) root mean square over functions of the derivative along a random direction of length |w_p|."""
        _, square, size = self._blocks(name, dim, parts)
        return np.sqrt(square.mean(0) * size / (self.trial.parameters[name].numel() / parts))

    def violation(self, names, dim, parts):
        """(parts,) radial derivative of the tensors together over its effect, and whether a part has any effect."""
        radial = sum(self._blocks(name, dim, parts)[0] for name in names)
        effects = np.array([self.effect(name, dim, parts) for name in names])
        size = np.sqrt((effects**2).sum(0))
        touched = (effects > self.floor / max(parts, 1)).all(0)
        return np.where(touched, np.sqrt((radial**2).mean(0)) / np.maximum(size, 1e-300), np.inf), touched

    def views(self, name):
        """(dim, parts) from the finest cut to the whole."""
        return cuts(dict(enumerate(self.shape(name)[:2])))


def cuts(lengths):
    """(dim, parts) of all equal contiguous blocks along these axes ({dim: length}), finest first, the whole last."""
    fine = [(dim, parts) for dim, n in lengths.items() for parts in range(2, n + 1) if n % parts == 0]
    return [*sorted(fine, key=lambda cut: -cut[1]), (None, 1)]


def differences(trial, names):
    """(entries, len(names)) derivative of the outputs along log |w| of each tensor, at up to 4096 of their entries."""
    pick = np.linspace(0, trial.base.numel() - 1, min(trial.base.numel(), ENTRIES)).astype(int)
    columns = np.empty((len(pick), len(names)))
    for column, name in enumerate(names):
        w = trial.parameters[name].detach()
        up, down = (trial.outputs_at({name: w * (1 + h)}) for h in (HALF_STEP, -HALF_STEP))
        columns[:, column] = ((up - down)[pick] / (2 * HALF_STEP)).cpu().numpy()
    return columns


def null_vectors(columns, tolerance):
    """Sets of columns of a matrix (list of index tuples) that add up to nothing: 0/1 vectors in its null space.

    columns: (rows, n). Minimal sets only. A basis of the null space in reduced row echelon form shows them, after one
    or two of its rows are added where an entry is -1; it is taken from the left and from the right, and at two
    thresholds, for what is zero to rounding and for what is zero up to a norm layer's eps.
    """
    size = np.linalg.norm(columns, axis=0)
    if columns.shape[1] < 2 or not (size > 0).all():
        return []
    _, singular, right = np.linalg.svd(columns / size, full_matrices=True)
    singular = np.pad(singular, (0, len(right) - len(singular)))
    found = set()
    for threshold in (1e-4, tolerance):
        basis = right[singular < threshold] / size
        if len(basis):
            for order in (slice(None), slice(None, None, -1)):
                rows = _echelon(basis[:, order])[:, order]
                found |= {tuple(np.flatnonzero(z)) for z in _zero_one(rows)}
    found = [s for s in found if np.linalg.norm(columns[:, s].sum(1)) < tolerance * np.linalg.norm(size[list(s)])]
    return sorted((s for s in found if not any(set(o) < set(s) for o in found)), key=lambda s: (len(s), s))


def _echelon(basis):
    """Reduced row echelon form; entries below a thousandth of their row's largest are no pivots."""
    rows = basis / np.abs(basis).max(1, keepdims=True)
    done = 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        pivot = done + int(np.abs(rows[done:, column]).argmax())
        if np.abs(rows[pivot, column]) < 1e-3 * np.abs(rows[pivot]).max():
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= rows[others, column, None] * rows[done]
        done += 1
    return rows[:done]


def _zero_one(rows, slack=0.1):
    near = np.round(rows)
    whole = near[(np.abs(rows - near) < slack).all(1)]
    for row in whole:
        others = [r for r in whole if r is not row] if (row < 0).any() and len(whole) < 40 else []
        for several in itertools.chain([()], itertools.combinations(others, 1), itertools.combinations(others, 2)):
            z = row + sum(several)
            if z.min() >= 0 and z.max() == 1 and z.sum() > 1:
                yield z
