"""numba, set up for the kit's kernels: threads, a short first call, and a cache that notices edited callees."""

import functools
import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path

HOME = Path(__file__).parent


def load_numba():
    """numba, with OpenMP before the slower workqueue. For files of kernels."""
    first = "numba" not in sys.modules
    import numba

    if first and "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    _spare_scipy()
    _name_by_callees()
    return numba


def _name_by_callees():
    """Have the cache of a kernel of ours bear in its name a hash of all that its file imports from the kit.

    numba looks at the kernel's own file, while the functions and constants of others are compiled into it: without this
    an upgrade of the kit could run what is half the old one, or fail over a class that has moved. Does nothing where numba
    is built otherwise.
    """
    from numba.core import caching

    files = getattr(caching, "_SourceFileBackedLocatorMixin", None)
    alone = getattr(files, "get_disambiguator", None)
    if alone is None or hasattr(alone, "alone"):
        return

    def name(self):
        own = Path(self._py_file)
        return f"{alone(self)}-{_digest(own)}" if own.is_relative_to(HOME) else alone(self)

    name.alone = alone
    files.get_disambiguator = name


@functools.cache
def _digest(path):
    """A hash of a file of ours and of all that it imports from normkit at its top."""
    texts, left = {}, [path]
    while left:
        path = left.pop()
        if path not in texts and path.is_file():
            texts[path] = text = path.read_bytes()
            for module, names in re.findall(r"^from normkit\.?(\S*) import (.*)", text.decode(), re.MULTILINE):
                base = HOME.joinpath(*module.split("."))
                left += [base.with_suffix(".py"), *(base / f"{name}.py" for name in re.findall(r"\w+", names))]
    return hashlib.sha256(b"\0".join(texts[p] for p in sorted(texts))).hexdigest()[:12]


def _spare_scipy():
    """Keep numba's first compilation from importing scipy.linalg (0.3 s), which it does only to see whether it can.

    `numba.np.arraymath` asks `ensure_blas` once, at import, and remembers the answer. We answer for it by looking for
    scipy; whatever really needs BLAS still calls the real `ensure_blas`. Does nothing where numba is built otherwise.
    """
    if "numba.np.arraymath" in sys.modules:
        return
    from numba.np import linalg

    real = getattr(linalg, "ensure_blas", None)
    if real is None:
        return

    def answer():
        if importlib.util.find_spec("scipy") is None:
            raise ImportError("scipy is not installed")

    linalg.ensure_blas = answer
    try:
        from numba.np import arraymath

        arraymath.ensure_blas = real
    finally:
        linalg.ensure_blas = real
