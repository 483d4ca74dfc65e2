"""Logistic regression by gradient descent with large steps, its perceptron limit, and the normalized method.

Tyurin, "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
arXiv 2412.08424. Samples enter as z (n, d), z_i = y_i a_i: theta separates the data when z theta > 0. All methods start
at theta = 0 and end when they separate, which is the task; the loss is only a proxy.
"""

import math
from dataclasses import dataclass

import numpy as np

from normkit.arrays import finite
from normkit.checks import count, positive


@dataclass(frozen=True)
class Descent:
    """One run. `separated` is the number of updates after which all samples were right, None if they never were."""

    theta: np.ndarray  # (d,), the last one
    separated: int | None
    loss: np.ndarray  # (updates + 1,), mean logistic loss, from theta = 0 on


def lr_gd(z, step: float, iterations: int = 1000) -> Descent:
    """LR+GD, theta += step/n sum_i p_i z_i with p_i = 1/(1 + exp(z_i theta)): gradient descent on the logistic loss.

    theta/step tends to `perceptron(z)`'s as step grows (Theorem 3.2), which separates in n R^2/mu^2 updates.
    z: (n, d). Raises ValueError for a z that is no finite matrix, for step <= 0 and iterations < 1.
    """
    positive("step", step)
    return _run(z, lambda z, theta, done: step * _error(z @ theta) @ z / len(z), iterations)


def normalized_lr_gd(z, step: float, iterations: int = 1000) -> Descent:
    """Normalized LR+GD, theta += step sum_i p_i z_i / sum_i p_i: separates in R^2/mu^2 + 2 log(2n-1)/(step mu^2) updates.

    z: (n, d). This is LR+GD with its gradient divided by the mean p_i (section 6, Theorem 6.1). Raises as `lr_gd`.
    """
    positive("step", step)

    def update(z, theta, done):
        logit = -np.logaddexp(0, z @ theta)  # log p_i
        p = np.exp(logit - logit.max())  # the largest is 1, so that the sum cannot vanish
        return step * p @ z / p.sum()

    return _run(z, update, iterations)


def perceptron(z, normalized: bool = False, iterations: int = 1000) -> Descent:
    """The batch perceptron theta += 1/n sum of the misclassified z_i (z_i theta <= 0); its first step has 1/(2n).

    z: (n, d). With `normalized` the sum is divided by the number of misclassified samples, in the first step too, and
    R^2/mu^2 updates suffice in place of n R^2/mu^2 (Theorems 3.3 and 5.3). Raises as `lr_gd`.
    """

    def update(z, theta, done):
        wrong = z @ theta <= 0
        if normalized:
            return wrong @ z / wrong.sum()
        return wrong @ z / len(z) * (1.0 if done else 0.5)

    return _run(z, update, iterations)


def bounds(n: int, radius: float, margin: float, step: float = math.inf) -> tuple[float, float]:
    """Updates that suffice: (LR+GD in the limit of large steps, Normalized LR+GD at `step`).

    n samples, radius R = max ||z_i||, margin mu = max over unit vectors of min_i z_i theta. n R^2/mu^2 and
    R^2/mu^2 + 2 log(2n-1)/(step mu^2). Raises ValueError unless n >= 1 and 0 < margin <= radius and step > 0.
    """
    count("n", n)
    if positive("radius", radius) < positive("margin", margin):
        raise ValueError(f"no margin exceeds the radius: got margin {margin} and radius {radius}")
    if step != math.inf:
        positive("step", step)
    ratio = float(radius / margin) ** 2
    return n * ratio, ratio + 2 * math.log(2 * n - 1) / (step * margin**2)


def margin(z, tolerance: float = 1e-6, iterations: int = 100_000) -> float:
    """mu = max over unit vectors theta of min_i z_i theta, from below and within the relative tolerance.

    It is the distance of the origin from the convex hull of the z_i, found by Frank-Wolfe with away steps; the gap
    between ||x|| and min_i z_i x/||x|| for a point x of the hull encloses it. Raises ValueError if it is not enclosed
    after `iterations` steps: the data cannot be separated, or only with a margin that is tiny beside the radius.
    """
    z = _matrix(z)
    squares = (z * z).sum(1)
    smallest = 1e-24 * squares.max()  # below, x is 0 to rounding
    weights = np.zeros(len(z))
    weights[squares.argmin()] = 1.0
    x = weights @ z
    for _ in range(iterations):
        heights = z @ x
        low, square = heights.min(), x @ x
        if square <= smallest:
            break
        if square - low <= tolerance * square:
            return float(low / math.sqrt(square))
        toward, away = heights.argmin(), np.where(weights > 0, heights, -np.inf).argmax()
        if square - low >= heights[away] - square or weights[away] == 1.0:
            vertex, direction, longest, sign = toward, z[toward] - x, 1.0, 1.0
        else:
            vertex, direction, longest, sign = away, x - z[away], weights[away] / (1 - weights[away]), -1.0
        length = min(longest, -(x @ direction) / (direction @ direction))
        weights *= 1 - sign * length
        weights[vertex] = max(weights[vertex] + sign * length, 0.0)
        x = weights @ z
    raise ValueError(
        f"no margin found (in at most {iterations} steps the hull comes within {math.sqrt(square):.3g} of 0): "
        "the data may not be separable"
    )


def worst_case(n: int, draws: np.random.Generator | None = None, noise: float = 0.0) -> np.ndarray:
    """z (n, 2) on which the batch perceptron needs 0.3 n updates (Theorem 5.1): n-1 times (1/2, 1), once (1/2, -1).

    Radius sqrt(5)/2 and margin 1/2 for every n. `draws` adds N(0, noise^2) to every entry. ValueError for n < 10, as
    in the theorem, and for noise without `draws`.
    """
    count("n", n, 10)
    if positive("noise", noise, zero=True) and draws is None:
        raise ValueError("noise needs draws, a NumPy generator such as normkit.rng.stream(0, 'noise')")
    z = np.tile([0.5, 1.0], (n, 1))
    z[-1] = 0.5, -1.0
    return z + (draws.normal(0, noise, z.shape) if noise else 0.0)


def _run(z, update, iterations):
    z = _matrix(z)
    theta, losses = np.zeros(z.shape[1]), [math.log(2)]
    for done in range(count("iterations", iterations)):
        theta = theta + update(z, theta, done)
        heights = z @ theta
        losses.append(np.logaddexp(0, -heights).mean())
        if (heights > 0).all():
            return Descent(theta, done + 1, np.array(losses))
    return Descent(theta, None, np.array(losses))


def _error(heights):
    return np.exp(-np.logaddexp(0, heights))  # 1/(1 + exp(heights)) without overflow


def _matrix(z):
    z = finite("z", np.asarray(z, dtype=float))
    if z.ndim != 2 or z.size == 0:
        raise ValueError(f"z must be a matrix (samples, features), y_i a_i in its rows, got shape {z.shape}")
    return z
