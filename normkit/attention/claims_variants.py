"""Claims about Affine-Scaled attention and about PPGT's attention and norm. Trainings are shared by the claims on them.

The samples import torch when they run: a list of claims is made without it.
"""

import math
from functools import cache

import numpy as np

from normkit.attention.l2 import FORMS, l2_logits, squared_distance_logits
from normkit.attention.variants import affine_scaled, attention_logits, linear_clip, sink_softmax, weight_entropy
from normkit.ledger import claim
from normkit.rng import stream

AFFINE = {"arxiv": "2602.23057", "paper": "Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention"}
PPGT = {"arxiv": "2504.12588", "paper": "Plain Transformers Can be Powerful Graph Learners"}

# ---- Affine-Scaled attention ----------------------------------------------------------------------------------------

SETTINGS = (("copy", 3e-3), ("copy", 1e-2), ("majority", 3e-3))  # task and Adam's learning rate; copy is causal
STEPS, TOKENS, LAYERS, LONG = 150, 16, 2, 256
OTHERS = ("plain", "sink")
BY_SETTING = tuple(f"{task}, lr {lr:g}" for task, lr in SETTINGS)
BY_OTHER = tuple(f"{name}, vs {other}" for name in BY_SETTING for other in OTHERS)


@cache
def trained(variant, task, lr, seed):
    """(losses (steps,), gradient norms (steps,), each layer's weights (layers, batch, heads, T, T) on new data)."""
    import torch
    from torch.nn import functional as F

    from normkit.attention.training import TASKS, Net, generator

    net = Net(task, "pre", variant, tokens=TOKENS, layers=LAYERS, width=32, heads=2, seed=seed)
    adam = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    batches, losses, norms, weights = generator(seed, "claims", "batches", task), [], [], []
    for _ in range(STEPS):
        tokens, targets = TASKS[task].draw(batches, TOKENS)
        loss = F.cross_entropy(net(tokens).flatten(0, 1), targets.flatten())
        adam.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in net.parameters()]).item())
        adam.step()
    for block in net.eval().blocks:
        block.attention.weights.register_forward_hook(lambda _module, _input, output: weights.append(output.numpy()))
    with torch.no_grad():
        net(TASKS[task].draw(batches, TOKENS)[0])
    return np.array(losses), np.array(norms), np.array(weights)


def last_loss(variant, task, lr, seed):
    return trained(variant, task, lr, seed)[0][-STEPS // 10 :].mean()


def mean_entropy(variant, task, lr, seed):
    return weight_entropy(trained(variant, task, lr, seed)[2], how="absolute").mean()


def gradient_variation(variant, task, lr, seed):
    """Standard deviation over mean of the gradient's norm in the first third (in the paper: the first 500 of 9000)."""
    norms = trained(variant, task, lr, seed)[1][: STEPS // 3]
    return norms.std() / norms.mean()


@claim(
    **AFFINE,
    id="affine-mass-adapts-to-query",
    statement="The total weight that a query gives varies more over queries than with a learned sink",
    regimes=(
        f"{LONG} tokens, random heads",
        f"{LONG} tokens, random heads, causal",
        *(f"trained, {name}" for name in BY_SETTING),
    ),
    statistic="standard deviation over queries of the sum of weights, mean of the heads: Affine-Scaled minus sink",
    direction=">",
    threshold=0.0,
    seeds=5,
    budget_s=40,
)
def mass_adapts(seed):
    draws = stream(seed, "affine", "heads")
    q, k = draws.standard_normal((2, 8, LONG, 16))
    alpha, mask = linear_clip(draws.standard_normal((8, LONG))), np.tri(LONG, dtype=bool)

    def spread(weights):
        return weights.sum(-1).mean(-2).std()

    random = []
    for seen in None, mask:
        logits = attention_logits(q, k, seen)
        affine = affine_scaled(sink_softmax(logits, -math.inf), alpha, alpha.mean(-1, keepdims=True), seen)
        random.append(spread(affine) - spread(sink_softmax(logits, 0.0)))
    sums = [[spread(trained(v, task, lr, seed)[2]) for v in ("affine", "sink")] for task, lr in SETTINGS]
    return random + [a - s for a, s in sums]


@claim(
    **AFFINE,
    id="affine-higher-entropy",
    statement="Trained with Affine-Scaled attention, heads have more entropy than with softmax and than with a sink",
    regimes=BY_OTHER,
    statistic="entropy of |w| / sum |w| after 150 steps, mean of 2 layers (nats): Affine-Scaled minus the other",
    direction=">",
    threshold=0.0,
    seeds=5,
    budget_s=40,
)
def affine_entropy(seed):
    return [mean_entropy("affine", *s, seed) - mean_entropy(other, *s, seed) for s in SETTINGS for other in OTHERS]


@claim(
    **AFFINE,
    id="affine-lower-loss",
    statement="Affine-Scaled attention trains to a lower loss than softmax and than a sink",
    regimes=BY_OTHER,
    statistic="log ratio of the loss over the last 15 of 150 steps, Affine-Scaled over the other",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=40,
)
def affine_loss(seed):
    return [np.log(last_loss("affine", *s, seed) / last_loss(other, *s, seed)) for s in SETTINGS for other in OTHERS]


@claim(
    **AFFINE,
    id="affine-steadier-gradients",
    statement="Early in training the gradient's norm varies less with Affine-Scaled attention than with softmax",
    regimes=BY_SETTING,
    statistic="log ratio of std/mean of the gradient's norm over the first 50 steps, Affine-Scaled over plain",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=40,
)
def affine_gradients(seed):
    return [np.log(gradient_variation("affine", *s, seed) / gradient_variation("plain", *s, seed)) for s in SETTINGS]


# ---- PPGT: attention ------------------------------------------------------------------------------------------------

DIMENSIONS = (4, 64)
BY_FORM = tuple(f"{'formula' if form == 'paper' else 'released code'}, d = {d}" for form in FORMS for d in DIMENSIONS)


def cloud(seed, d, queries=256, keys=16):
    """q (queries, d) and k (keys, d): random directions; entries of variance 1 times log-normal lengths."""
    draws = stream(seed, "cloud", d)
    q, k = draws.standard_normal((queries, d)), draws.standard_normal((keys, d))
    return q, k * np.exp(0.5 * draws.standard_normal((keys, 1)))


@claim(
    **PPGT,
    id="sl2-is-squared-distance",
    statement="Simplified L2 attention weighs keys by the squared distance between query and key, as full L2 attention does",
    regimes=BY_FORM,
    statistic="slope of log weight on -||q - k||^2 / (2 sqrt d), over the keys of a query, mean of 256 queries",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=20,
    budget_s=2,
)
def sl2_is_distance(seed):
    found = []
    for form in FORMS:
        for d in DIMENSIONS:
            q, k = cloud(seed, d)
            x, y = squared_distance_logits(q, k), l2_logits(q, k, form=form)  # log weights, up to a number for each row
            x = x - x.mean(-1, keepdims=True)
            found.append(((x * y).sum(-1) / (x**2).sum(-1)).mean())
    return found


@claim(
    **PPGT,
    id="sl2-attends-to-the-nearest",
    statement="Simplified L2 attention gives the nearest key the most weight more often than the dot product does",
    regimes=BY_FORM,
    statistic="share of queries whose heaviest key is the nearest, simplified L2 minus dot product",
    direction=">",
    threshold=0.0,
    seeds=20,
    budget_s=2,
)
def sl2_nearest(seed):
    found = []
    for form in FORMS:
        for d in DIMENSIONS:
            q, k = cloud(seed, d)
            nearest = squared_distance_logits(q, k).argmax(-1)
            hits = [(z.argmax(-1) == nearest).mean() for z in (l2_logits(q, k, form=form), attention_logits(q, k))]
            found.append(hits[0] - hits[1])
    return found


@claim(
    **PPGT,
    id="dot-product-favors-long-keys",
    statement="With dot-product attention long keys win whatever their direction; with simplified L2 they do not",
    regimes=tuple(f"{name}, d = {d}" for name in ("dot product", "minus simplified L2") for d in DIMENSIONS),
    statistic="share of queries whose heaviest key is among the longest quarter: above 1/4, and above that of L2",
    direction=">",
    threshold=0.0,
    seeds=20,
    budget_s=2,
)
def long_keys(seed):
    def share(logits, k):
        longest = np.argsort((k**2).sum(-1))[-len(k) // 4 :]
        return np.isin(logits.argmax(-1), longest).mean()

    clouds = [cloud(seed, d) for d in DIMENSIONS]
    dot, near = ([share(f(q, k), k) for q, k in clouds] for f in (attention_logits, l2_logits))
    return [s - 0.25 for s in dot] + [s - n for s, n in zip(dot, near, strict=True)]


# ---- PPGT: trained on points and on multisets -----------------------------------------------------------------------

RATES, TOY_STEPS, BATCH, POINTS, TYPES, FEATURES = (3e-3, 1e-2), 300, 64, 16, 4, 16


def points(draws, shape):
    """Tokens (batch, points, 4) and answers (batch,): the mark, -1 or 1, of the point nearest to the last one.

    A token is a place in the plane, its mark and whether it is the last; the last one's mark is hidden. Places are
    Gaussian ("plane") or on the unit circle ("circle"), where all lengths are equal.
    """
    place = draws.standard_normal((BATCH, POINTS, 2))
    place = place / np.linalg.norm(place, axis=-1, keepdims=True) if shape == "circle" else place
    mark = np.where(draws.random((BATCH, POINTS)) < 0.5, -1.0, 1.0)
    last = np.arange(POINTS) == POINTS - 1
    nearest = ((place[:, :-1] - place[:, -1:]) ** 2).sum(-1).argmin(-1)
    tokens = np.concatenate([place, (mark * ~last)[..., None], np.broadcast_to(last[:, None], (BATCH, POINTS, 1))], -1)
    return tokens.astype("f4"), mark[np.arange(BATCH), nearest].astype("f4")


def multisets(draws, embedding, bias):
    """Tokens (batch, features), each a sum of a multiset's elements, and log of the number of elements, at least 1.

    So is a node's neighborhood read: {a, b} and {a, a, b, b} have one direction. With `bias` a constant is added.
    """
    counts = draws.poisson(draws.uniform(0.2, 2.0, (BATCH, 1)), (BATCH, TYPES))
    counts[:, 0] += counts.sum(-1) == 0
    return (counts @ embedding + bias).astype("f4"), np.log(counts.sum(-1)).astype("f4")


def fit(model, answer, batch, lr):
    """Mean square error of answer(x) over the last tenth of the steps of Adam on fresh batches (x, wanted)."""
    import torch

    adam = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    losses = []
    for _ in range(TOY_STEPS):
        x, wanted = map(torch.from_numpy, batch())
        loss = (answer(x) - wanted).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return np.mean(losses[-TOY_STEPS // 10 :])


def layer(fan_in, fan_out, weights):
    from torch import nn

    made = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
    nn.init.zeros_(made.bias)
    nn.init.normal_(made.weight, std=fan_in**-0.5, generator=weights)
    return made


def search_loss(variant, shape, lr, seed):
    """Error of one attention head of width 16 between linear maps that reads the last token: find the nearest point."""
    from torch import nn

    from normkit.attention.heads import MultiHeadAttention
    from normkit.attention.training import generator

    weights, draws = generator(seed, "points", "weights"), stream(seed, "points", shape)
    attention = MultiHeadAttention(FEATURES, 1, variant=variant, generator=weights)
    model = nn.Sequential(layer(4, FEATURES, weights), attention, layer(FEATURES, 1, weights))

    return fit(model, lambda x: model(x)[:, -1, 0], lambda: points(draws, shape), lr)


def cardinality_loss(norm, constant, lr, seed):
    """Error of a norm and an MLP that are asked for a multiset's log cardinality."""
    from torch import nn

    from normkit.attention.heads import AdaRMSNorm
    from normkit.attention.training import generator

    weights, draws = generator(seed, "multisets", "weights"), stream(seed, "multisets")
    *embedding, bias = draws.standard_normal((TYPES + 1, FEATURES)) / np.sqrt(FEATURES)
    first = AdaRMSNorm(FEATURES) if norm == "ada" else nn.RMSNorm(FEATURES, eps=1e-6)
    model = nn.Sequential(first, layer(FEATURES, 32, weights), nn.GELU(), layer(32, 1, weights))
    return fit(model, lambda x: model(x)[:, 0], lambda: multisets(draws, np.array(embedding), bias * constant), lr)


@claim(
    **PPGT,
    id="sl2-finds-the-nearest-trained",
    statement="Simplified L2 attention trains to a lower loss than the dot product where nearness is what counts",
    regimes=tuple(f"{shape}, lr {lr:g}" for shape in ("plane", "circle") for lr in RATES),
    statistic="log ratio of the mean square error of naming the nearest point's mark, simplified L2 over dot product",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=30,
)
def sl2_trained(seed):
    regimes = [(shape, lr) for shape in ("plane", "circle") for lr in RATES]
    return [np.log(search_loss("l2", *r, seed) / search_loss("plain", *r, seed)) for r in regimes]


@claim(
    **PPGT,
    id="adarmsn-keeps-magnitude",
    statement="AdaRMSN keeps the magnitude that RMSNorm loses: a net behind it can tell how many elements a sum has",
    regimes=tuple(f"{name}, lr {lr:g}" for name in ("sums", "sums and a constant") for lr in RATES),
    statistic="log ratio of the mean square error of log cardinality, norm and MLP: AdaRMSN over RMSNorm",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=30,
)
def adarmsn_magnitude(seed):
    return [
        np.log(cardinality_loss("ada", constant, lr, seed) / cardinality_loss("rms", constant, lr, seed))
        for constant in (False, True)
        for lr in RATES
    ]
