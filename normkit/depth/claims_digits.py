"""Claims about learning, on the UCI digits: small nets, Adam at 3e-3, 300 steps of 64 images, all fixed beforehand."""

from functools import cache

import numpy as np

from normkit.depth.activations import ACTIVATIONS
from normkit.depth.claims_init import ELU, SNN
from normkit.depth.placement import residual_step
from normkit.files import digits
from normkit.layers import layer_norm
from normkit.ledger import claim
from normkit.rng import stream

REMOVAL = {"paper": "LayerNorm removal", "arxiv": "2507.02559"}
WIDENET = {"paper": "WideNet", "arxiv": "2107.11817"}
RATE, STEPS, BATCH, TRAINING = 3e-3, 300, 64, 1200


@cache
def images():
    """Standardized training and test images and their labels, as torch tensors."""
    import torch

    x, y = digits()
    order = stream(0, "digits split").permutation(len(x))
    x, y = torch.from_numpy((x[order] - x.mean()) / x.std()).float(), torch.from_numpy(y[order])
    return x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:]


def matrices(seed, *shape, gain=1.0):
    """Weights N(0, gain / fan_in) that learn; the last two axes are fan_in and fan_out."""
    import torch

    w = stream(seed, "digits weights", *shape).normal(0, np.sqrt(gain / shape[-2]), shape)
    return torch.tensor(w, dtype=torch.float32, requires_grad=True)


def fit(forward, weights, seed, steps=STEPS):
    """Train in place; (mean training loss over all steps, test loss at the end), cross-entropy in nats."""
    import torch

    x, y, test_x, test_y = images()
    adam, losses = torch.optim.Adam(weights, lr=RATE), []
    for picks in stream(seed, "digits batches", steps).integers(TRAINING, size=(steps, BATCH)):
        loss = torch.nn.functional.cross_entropy(forward(x[picks]), y[picks])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    with torch.no_grad():
        return np.mean(losses), torch.nn.functional.cross_entropy(forward(test_x), test_y).item()


@cache
def plain(activation, gain, layers, seed):
    """Losses of a plain net of width 64 with that activation and weight gain."""
    phi = ACTIVATIONS[activation][0]
    hidden, last = matrices(seed, layers, 64, 64, gain=gain), matrices(seed, 64, 10)

    def forward(x):
        for w in hidden:
            x = phi(x @ w)
        return x @ last

    return fit(forward, [hidden, last], seed)


@claim(
    **ELU,
    id="elu-learns-faster",
    statement="Deep nets learn faster with ELU than with ReLU",
    regimes=("6 layers", "12 layers"),
    statistic="log ratio of the training loss averaged over 300 steps, ELU over ReLU",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=30,
)
def elu_faster(seed):
    return [np.log(plain("elu", 1.0, n, seed)[0] / plain("relu", 2.0, n, seed)[0]) for n in (6, 12)]


@claim(
    **SNN,
    id="selu-lower-test-loss",
    statement="Self-normalizing nets generalize better than ReLU nets without normalization",
    regimes=("6 layers", "12 layers"),
    statistic="log test loss ratio after 300 steps, SELU over ReLU",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=30,
)
def selu_better(seed):
    return [np.log(plain("selu", 1.0, n, seed)[1] / plain("relu", 2.0, n, seed)[1]) for n in (6, 12)]


def shared_block(layers, norms, seed):
    """Test loss of one Pre-LN MLP block applied `layers` times, with `norms` LayerNorms, 1 or layers."""
    import torch

    first, w1, w2, last = (matrices(seed, *shape) for shape in ((64, 32), (32, 64), (64, 32), (32, 10)))
    gains, biases = (torch.full((norms, 32), v, requires_grad=True) for v in (1.0, 0.0))

    def forward(x):
        x = x @ first
        for layer in range(layers):
            k = layer % norms
            x = residual_step(
                x,
                lambda h: torch.relu(h @ w1) @ w2,
                "pre",
                layer,
                layers,
                lambda h, k=k: layer_norm(h, gains[k], biases[k]),
            )
        return layer_norm(x) @ last

    return fit(forward, [first, w1, w2, last, gains, biases], seed)[1]


@claim(
    **WIDENET,
    id="individual-norms-help-shared-blocks",
    statement="When blocks share weights, a LayerNorm for each depth gives a lower loss than a shared one",
    regimes=("4 layers", "8 layers"),
    statistic="log test loss ratio after 300 steps, individual over shared LayerNorm",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=40,
)
def individual_norms(seed):
    return [np.log(shared_block(n, n, seed) / shared_block(n, 1, seed)) for n in (4, 8)]


def removal_gap(seed, layers=6, tuning=100):
    """Test loss with every LayerNorm's deviation frozen at its mean, minus with LayerNorm, after equal fine-tuning."""
    import torch

    start = [matrices(seed, *shape) for shape in ((64, 32), (layers, 32, 64), (layers, 64, 32), (32, 10))]

    def forward(x, weights, norms):
        first, w1, w2, last = weights
        x = x @ first
        for k in range(layers):
            x = residual_step(x, lambda h, k=k: torch.relu(h @ w1[k]) @ w2[k], "pre", k, layers, norms[k])
        return norms[layers](x) @ last

    def frozen(deviation):
        return lambda x: (x - x.mean(-1, keepdim=True)) / deviation

    seen = [[] for _ in range(layers + 1)]

    def watched(k):
        return lambda x: seen[k].append(x.std(-1, correction=0).mean().item()) or layer_norm(x)

    fit(lambda x: forward(x, start, [layer_norm] * (layers + 1)), start, seed)
    with torch.no_grad():
        forward(images()[0], start, [watched(k) for k in range(layers + 1)])
    losses = []
    for norms in ([frozen(s[0]) for s in seen], [layer_norm] * (layers + 1)):
        weights = [w.detach().clone().requires_grad_() for w in start]
        losses.append(fit(lambda x, w=weights, n=norms: forward(x, w, n), weights, seed, steps=tuning)[1])
    return losses[0] - losses[1]


@claim(
    **REMOVAL,
    id="layernorm-removable",
    statement="Fine-tuning can remove all LayerNorms of a trained net, at a cost below 0.07 nats (GPT-2 small's)",
    regimes=("6 residual MLP blocks",),
    statistic="test loss without LayerNorm minus with it, after 100 steps of fine-tuning each",
    direction="<",
    threshold=0.07,
    seeds=8,
    budget_s=30,
)
def removable(seed):
    return removal_gap(seed)
