"""Claims about linear attention: NaLaFormer's query norm, LINA's two normalizations and gate, SLAB's norms.

Fixed beforehand: 64 tokens of 16 features for the weights; 300 steps of recall; 150 steps on digits in patches.
"""

import time
from functools import cache

import numpy as np

from normkit.ledger import claim
from normkit.rng import stream

NALA = {"paper": "NaLaFormer", "arxiv": "2506.21137"}
LINA = {"paper": "LINA", "arxiv": "2601.22630"}
SLAB = {"paper": "SLAB", "arxiv": "2405.11582"}
TOKENS, FEATURES, STEPS = 64, 16, 150
BAND = (float(np.log(0.9)), float(np.log(1.1)))  # equal, give or take 10 %
WIDTHS = (8, 32)
RECALLS = ((8, 1e-2), (16, 1e-2), (16, 3e-3))
DIGITS = (("simplified", 1e-3), ("simplified", 1e-2), ("softmax", 1e-2))
DIGIT_NAMES = tuple(f"{attention} attention, lr {lr:g}" for attention, lr in DIGITS)


def inputs(seed):
    """Unit queries and N(0, 1) keys and values, (TOKENS, FEATURES) each."""
    q, k, v = stream(seed, "linear inputs").normal(size=(3, TOKENS, FEATURES))
    return q / np.linalg.norm(q, axis=-1, keepdims=True), k, v


def entropy(seed, kind, norm):
    """Mean entropy (nats) of the weights of queries of that norm."""
    from normkit.attention.linear import weights

    q, k, _ = inputs(seed)
    w = weights(norm * q, k, kind)
    return float(-np.sum(w * np.log(np.where(w > 0, w, 1)), axis=-1).mean())


@cache
def recalled(kind, width, lr, seed):
    from normkit.attention.linear_toys import recall

    return recall(kind, width=width, lr=lr, seed=seed)


@cache
def patches(kind, task, width, gate, seed):
    from normkit.attention.linear_toys import train_patches

    return train_patches(kind, task=task, width=width, gate=gate, steps=STEPS, seed=seed)


@cache
def on_digits(norm, attention, lr, seed):
    from normkit.attention.slab import train_digits

    return train_digits(norm, attention=attention, lr=lr, steps=STEPS, seed=seed)


# ---- NaLaFormer -----------------------------------------------------------------------------------------------------


@claim(
    **NALA,
    id="linear-attention-ignores-query-norm",
    statement="Linear attention's normalization cancels the norm of the query: the entropy does not depend on it",
    regimes=("relu", "elu + 1"),
    statistic="log entropy ratio, |q| = 8 over |q| = 0.5",
    direction="within",
    threshold=BAND,
    seeds=20,
    budget_s=1,
)
def ignores_norm(seed):
    return [np.log(entropy(seed, kind, 8) / entropy(seed, kind, 0.5)) for kind in ("relu", "elu")]


@claim(
    **NALA,
    id="nala-entropy-falls-with-query-norm",
    statement="NaLaFormer's feature map restores it: longer queries have a lower entropy",
    regimes=("|q| from 0.25 to 1", "|q| from 1 to 4", "|q| from 4 to 16"),
    statistic="log entropy ratio, long over short queries",
    direction="<",
    threshold=0.0,
    seeds=20,
    budget_s=1,
)
def restores_norm(seed):
    return [np.log(entropy(seed, "nala", 4 * norm) / entropy(seed, "nala", norm)) for norm in (0.25, 1, 4)]


@claim(
    **NALA,
    id="nala-closes-entropy-gap",
    statement="NaLaFormer closes linear attention's entropy gap to softmax attention",
    regimes=("|q| = 1", "|q| = 4", "|q| = 16"),
    statistic="log ratio of the entropy's distances from softmax, NaLaFormer over relu",
    direction="<",
    threshold=0.0,
    seeds=20,
    budget_s=1,
)
def closes_gap(seed):
    def gap(kind, norm):
        return abs(entropy(seed, kind, norm) - entropy(seed, "softmax", norm))

    return [np.log(gap("nala", norm) / gap("relu", norm)) for norm in (1, 4, 16)]


@claim(
    **NALA,
    id="nala-recalls-better",
    statement="Norm-aware linear attention learns better than relu's",
    regimes=tuple(f"recall, width {width}, lr {lr:g}" for width, lr in RECALLS),
    statistic="log loss ratio after 300 steps, NaLaFormer over relu",
    direction="<",
    threshold=0.0,
    seeds=6,
    budget_s=20,
)
def nala_recalls(seed):
    return [np.log(recalled("nala", *s, seed) / recalled("relu", *s, seed)) for s in RECALLS]


# ---- LINA -----------------------------------------------------------------------------------------------------------


@claim(
    **LINA,
    id="only-subtraction-feels-query-norm",
    statement="Division forgets the norm of the query, subtraction does not",
    regimes=("|q| from 1 to 2", "|q| from 8 to 16"),
    statistic="log ratio of the relative change of the outputs, subtraction over division",
    direction=">",
    threshold=0.0,
    seeds=20,
    budget_s=1,
)
def feels_norm(seed):
    from normkit.attention.linear import linear_attention

    q, k, v = inputs(seed)

    def change(kind, norm):
        short, long = (linear_attention(n * q, k, v, kind=kind) for n in (norm, 2 * norm))
        return np.linalg.norm(long - short) / np.linalg.norm(short)

    return [np.log(change("subtraction", norm) / change("division", norm)) for norm in (1, 8)]


@claim(
    **LINA,
    id="subtraction-goes-negative",
    statement="Subtraction gives some keys negative weights",
    regimes=("|q| = 1", "|q| = 4", "|q| = 16"),
    statistic="share of negative weights",
    direction=">",
    threshold=0.0,
    seeds=20,
    budget_s=1,
)
def goes_negative(seed):
    from normkit.attention.linear import weights

    q, k, _ = inputs(seed)
    return [float((weights(norm * q, k, "subtraction") < 0).mean()) for norm in (1, 4, 16)]


@claim(
    **LINA,
    id="division-scales-better-for-generation",
    statement="Division gains more from scale than subtraction does when images are generated",
    regimes=("hidden patches of digits",),
    statistic="log loss ratio, division over subtraction, at width 32 minus at width 8",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=25,
)
def division_scales(seed):
    small, large = (
        np.log(patches("division", "generate", w, False, seed) / patches("subtraction", "generate", w, False, seed))
        for w in WIDTHS
    )
    return large - small


@claim(
    **LINA,
    id="subtraction-good-for-classification",
    statement="Subtraction is effective for image classification: its loss is below division's",
    regimes=tuple(f"digits, width {w}" for w in WIDTHS),
    statistic="log test loss ratio, subtraction over division",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=25,
)
def subtraction_classifies(seed):
    return [
        np.log(patches("subtraction", "classify", w, False, seed) / patches("division", "classify", w, False, seed))
        for w in WIDTHS
    ]


@claim(
    **LINA,
    id="kv-gate-lowers-loss",
    statement="A data-independent gate on keys and values improves division's linear attention",
    regimes=tuple(f"hidden patches, width {w}" for w in WIDTHS),
    statistic="log loss ratio, with the gate over without",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=25,
)
def gate_helps(seed):
    return [
        np.log(patches("division", "generate", w, True, seed) / patches("division", "generate", w, False, seed))
        for w in WIDTHS
    ]


# ---- SLAB -----------------------------------------------------------------------------------------------------------


@claim(
    **SLAB,
    id="prepbn-as-good-as-layernorm",
    statement="A transformer with PRepBN is as accurate as with LayerNorm, to a percentage point",
    regimes=DIGIT_NAMES,
    statistic="test accuracy, PRepBN minus LayerNorm",
    direction=">",
    threshold=-0.01,
    seeds=5,
    budget_s=30,
)
def prepbn_as_good(seed):
    return [on_digits("prepbn", *s, seed).accuracy - on_digits("layernorm", *s, seed).accuracy for s in DIGITS]


@claim(
    **SLAB,
    id="batchnorm-needs-the-progress",
    statement="Replacing LayerNorm by BatchNorm at once gives a worse transformer than PRepBN",
    regimes=DIGIT_NAMES,
    statistic="log test loss ratio, PRepBN over BatchNorm",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=30,
)
def progress_needed(seed):
    return [np.log(on_digits("prepbn", *s, seed).loss / on_digits("batchnorm", *s, seed).loss) for s in DIGITS]


@claim(
    **SLAB,
    id="prepbn-fuses",
    statement="After training PRepBN merges into the linear layers: the same function, to float32 rounding",
    regimes=("simplified attention", "softmax attention"),
    statistic="largest difference of logits, fused against not, over the largest logit",
    direction="<",
    threshold=1e-5,
    seeds=5,
    budget_s=15,
)
def fuses(seed):
    return [fused_difference(attention, seed) for attention in ("simplified", "softmax")]


def fused_difference(attention, seed):
    import torch

    model = on_digits("prepbn", attention, 1e-2, seed).model
    x = torch.from_numpy(stream(seed, "fused inputs").normal(size=(64, 64))).float()
    with torch.no_grad():
        plain, fused = model(x), model.fused()(x)
    return ((plain - fused).abs().max() / plain.abs().max()).item()


@claim(
    **SLAB,
    id="fused-norms-are-faster",
    statement="With its norms merged a transformer is faster than with LayerNorm",
    regimes=("1 image", "64 images"),
    statistic="log ratio of the shortest of 20 times, merged over LayerNorm, simplified attention",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=5,
)
def fused_faster(seed):
    import torch

    models = (
        on_digits("prepbn", "simplified", 1e-2, seed).model.fused(),
        on_digits("layernorm", "simplified", 1e-2, seed).model,
    )
    ratios = []
    for images in (1, 64):
        x = torch.from_numpy(stream(seed, "timed inputs").normal(size=(images, 64))).float()
        merged, layernorm = shortest(models, x)
        ratios.append(float(np.log(merged / layernorm)))
    return ratios


def shortest(models, x, times=20):
    """Shortest time of each model on x; they take turns, so that both meet the same machine."""
    import torch

    found = np.full((times, len(models)), np.inf)
    with torch.no_grad():
        for row in found:
            for i, model in enumerate(models):
                start = time.perf_counter()
                model(x)
                row[i] = time.perf_counter() - start
    return found.min(0)
