"""Random streams that do not depend on order, on batch size or on the thread count.

`stream(seed, "weights", layer)` is always the same stream, whoever asked for another one before.
"""

import zlib

import numpy as np


def stream(seed: int, *path: int | str) -> np.random.Generator:
    """An independent generator for `seed` and a path of names and numbers (NumPy's SeedSequence, PCG64).

    Raises ValueError for a seed or a path entry that is not a non-negative integer (or, in the path, a name).
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}; pass an explicit one such as seed=0")
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=tuple(_key(p) for p in path)))


def generator(seed: int, *path: int | str):
    """A torch.Generator (CPU) for `seed` and a path, as independent of all others as their streams are."""
    import torch

    return torch.Generator().manual_seed(int(stream(seed, *path).integers(2**63)))


def _key(part):
    if isinstance(part, str):
        return zlib.crc32(part.encode())  # Python's own hash() changes from run to run
    if isinstance(part, int | np.integer) and part >= 0:
        return int(part)
    raise ValueError(f"a stream's path holds names and non-negative integers, got {part!r}")
