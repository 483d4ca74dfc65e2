"""Written once, run three ways: the namespace of the inputs, and `accelerated`, which adds a numba kernel.

A readable body against the Python array API standard serves NumPy (the reference) and torch (CPU, CUDA, autograd,
torch.compile). `@accelerated("package.module:function")` gives it a kernel that NumPy arrays of float32 and float64
take by themselves. numba is imported by the first such call, never by `import normkit`.
"""

import functools
import importlib
import importlib.util
import threading

import numpy as np

# One parallel numba region at a time in this process: the workqueue layer aborts on two, and OpenMP oversubscribes.
# Re-entrant, so that a lab can hold it around a computation that itself runs parallel kernels.
compute_lock = threading.RLock()

_FAST = (np.dtype(np.float32), np.dtype(np.float64))


def namespace(*arrays):
    """The array-API namespace of `arrays`: numpy itself, or array-api-compat's module for torch and others.

    None is skipped. Raises TypeError for no array at all, for something that is not an array, and for a mixture.
    """
    given = [a for a in arrays if a is not None]
    if given and all(isinstance(a, (np.ndarray, np.generic)) for a in given):
        return np  # NumPy 2 is the standard's own; the compat module would cost 0.2 s of imports
    import array_api_compat

    kinds = ", ".join(f"{type(a).__module__}.{type(a).__name__}" for a in given) or "nothing"
    if not given or not all(array_api_compat.is_array_api_obj(a) for a in given):
        raise TypeError(f"arrays wanted (NumPy, torch, ...), got {kinds}; convert first, e.g. with numpy.asarray(x)")
    try:
        return array_api_compat.array_namespace(*given)
    except TypeError as error:
        raise TypeError(f"all arrays must come from one library, got {kinds}; convert to one of them") from error


def floating(name, x):
    """`x` itself, an array of real floating dtype with at least one axis and a non-empty last one; else an error."""
    xp = namespace(x)
    if isinstance(x, np.generic) or x.ndim == 0:
        raise ValueError(f"{name} needs at least one axis to normalize over, got a scalar (shape ())")
    real = x.dtype.kind == "f" if xp is np else xp.isdtype(x.dtype, "real floating")
    if not real:
        raise TypeError(f"{name} must be of a real floating dtype, got {x.dtype}; convert it, e.g. to float32")
    if x.shape[-1] == 0:
        raise ValueError(f"{name} has an empty last axis (shape {tuple(x.shape)}); there is nothing to normalize")
    return x


def shaped(name, x, shape, like="x"):
    """`x` itself if it is None or of exactly this shape; else ValueError naming both shapes. TypeError for no array."""
    if x is not None and not hasattr(x, "shape"):
        raise TypeError(
            f"{name} must be an array, got {type(x).__name__}; convert it first, e.g. with numpy.asarray(x)"
        )
    if x is not None and tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)} to match {like}, got {tuple(x.shape)}")
    return x


def finite(name, x):
    """`x` itself if every entry is finite; else ValueError naming the first bad index and its value."""
    xp = namespace(x)
    good = xp.isfinite(x)
    if not bool(xp.all(good)):
        rows = np.asarray(good.tolist())
        index = tuple(int(i) for i in np.unravel_index(int(np.argmin(rows)), rows.shape))
        raise ValueError(
            f"{name} must be finite, but {name}[{', '.join(map(str, index))}] is {float(x[index])} "
            f"({int(rows.size - rows.sum())} bad of {rows.size}); look where it was computed"
        )
    return x


def accelerated(kernel):
    """Decorator: NumPy float32/float64 input runs `kernel` ("module:function"), everything else the readable body.

    The choice depends on the first argument's type, dtype and size only. The kernel takes the same arguments and may
    return NotImplemented, as it must for anything irregular: the readable body then does the work or raises the
    error. `f.reference` is the readable body and `f.kernel` the kernel (its first call imports numba).
    """

    module, name = kernel.split(":")

    @functools.cache
    def load():
        return getattr(importlib.import_module(module), name)

    def decorate(reference):
        @functools.wraps(reference)
        def choose(x, *arguments, **options):
            if type(x) is np.ndarray and x.dtype in _FAST:
                result = load()(x, *arguments, **options)
                if result is not NotImplemented:
                    return result
            return reference(x, *arguments, **options)

        choose.reference = reference
        choose.kernel = lambda *arguments, **options: load()(*arguments, **options)
        return choose

    return decorate
