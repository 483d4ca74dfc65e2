"""Where the norm and the scales of a residual block go: every placement is defined here, once.

One block is one sublayer f (its "branch"). Layers are counted l = 1..L in the formulas, 0..L-1 in the code.

none               x + f(x)
pre                x + f(N(x))                      Xiong et al. 2002.04745
post               N(x + f(x))                      Vaswani et al. 1706.03762
peri               x + N(f(N(x)))                   Kim et al. 2502.02732
mix                post for l <= floor(a L), then pre; a = 1/4      Li et al. 2412.13795
layernorm_scaling  x + f(N(x) / sqrt(l))            Sun et al. 2502.05795
deepnorm           N(alpha x + f(x)), alpha = (2L)^(1/4); matrices of f that carry the value (both of an MLP,
                   W_V and W_O of attention) start times beta = (8L)^(-1/4)    Wang et al. 2203.00555
scaled_sqrt_l      x + f(x) / sqrt(L)               Dherin and Munn 2510.03470
scaled_l           x + f(x) / L                     the same
skipinit           x + s f(x), s a learnable scalar that starts at 0            De and Smith 2002.10444
fixup              x + s f(x), s starts at 1; the last matrix of f starts at 0, the other m-1 times L^(-1/(2m-2))
                   and f adds a learnable scalar before each matrix and activation   Zhang et al. 1901.09321

The DeepNorm paper counts N layers of two sublayers each. Here a layer is one sublayer, and N = L, the number of blocks.
"""

import math
from dataclasses import dataclass

from normkit.checks import count, pick

PLACEMENTS = (
    "none",
    "pre",
    "post",
    "peri",
    "mix",
    "layernorm_scaling",
    "deepnorm",
    "scaled_sqrt_l",
    "scaled_l",
    "skipinit",
    "fixup",
)
_SHORT = {"lns": "layernorm_scaling"}


@dataclass(frozen=True)
class Rule:
    """One block: r = skip x + branch_scale y, y = f(input_scale x); with norms on f's input, on f's output, on r."""

    norm_input: bool = False
    norm_output: bool = False
    norm_sum: bool = False
    skip: float = 1.0
    input_scale: float = 1.0
    branch_scale: float = 1.0  # its value at initialization; skipinit and fixup train it


def check(placement: str, layers: int = 1) -> str:
    """The placement's name as in PLACEMENTS; upper case, '-' for '_' and 'lns' are understood.

    Raises ValueError for an unknown placement or fewer than one layer, TypeError for layers that are not an integer.
    """
    name = str(placement).strip().lower().replace("-", "_").replace(" ", "_")
    name = _SHORT.get(name, name)
    pick("placement", name, PLACEMENTS)
    count("layers", layers)
    return name


def rule(placement: str, layer: int, layers: int, *, mix: float = 0.25) -> Rule:
    """Norms and scales of block `layer` (0-based) of `layers`. Raises ValueError for impossible arguments."""
    placement = check(placement, layers)
    if not 0 <= layer < layers:
        raise ValueError(f"layer must be in 0..{layers - 1} for {layers} layers, got {layer}")
    if not 0.0 <= mix <= 1.0:
        raise ValueError(f"mix is the share of post-norm blocks and must be in 0..1, got {mix}")
    if placement == "mix":
        placement = "post" if layer < math.floor(mix * layers) else "pre"
    match placement:
        case "pre":
            return Rule(norm_input=True)
        case "post":
            return Rule(norm_sum=True)
        case "peri":
            return Rule(norm_input=True, norm_output=True)
        case "layernorm_scaling":
            return Rule(norm_input=True, input_scale=(layer + 1) ** -0.5)
        case "deepnorm":
            return Rule(norm_sum=True, skip=(2 * layers) ** 0.25)
        case "scaled_sqrt_l":
            return Rule(branch_scale=layers**-0.5)
        case "scaled_l":
            return Rule(branch_scale=1 / layers)
        case "skipinit":
            return Rule(branch_scale=0.0)
    return Rule()  # none; fixup differs from it in the weights only


def weight_scales(placement: str, layers: int, matrices: int) -> tuple[float, ...]:
    """What each of a branch's `matrices`, first to last, is multiplied by after its usual initialization.

    In attention these are W_V and W_O (matrices=2); W_Q and W_K stay as they are.
    Raises ValueError for an unknown placement, layers < 1 or matrices < 1.
    """
    placement = check(placement, layers)
    count("matrices", matrices)
    if placement == "deepnorm":
        return ((8 * layers) ** -0.25,) * matrices
    if placement == "fixup":
        return (layers ** (-1 / max(2 * matrices - 2, 1)),) * (matrices - 1) + (0.0,)
    return (1.0,) * matrices


def residual_step(x, branch, placement, layer, layers, norm, *, mix=0.25, output_norm=None, scale=None):
    """x_{l+1} from x_l, for any arrays with +, * (NumPy, torch, ...); x: (..., width).

    branch, norm: callables of one array. `output_norm` is peri's second norm where it has weights of its own, `scale`
    the trained value of the branch's scalar (skipinit, fixup); None means its value at initialization.
    Raises ValueError as `rule` does.
    """
    here = rule(placement, layer, layers, mix=mix)
    h = norm(x) if here.norm_input else x
    y = branch(h if here.input_scale == 1.0 else h * here.input_scale)
    if here.norm_output:
        y = (output_norm or norm)(y)
    scale = here.branch_scale if scale is None else scale
    x = (x if here.skip == 1.0 else here.skip * x) + (y if isinstance(scale, float) and scale == 1.0 else scale * y)
    return norm(x) if here.norm_sum else x
