"""Claims about learning, in 300 steps fixed beforehand: plain nets on the UCI digits, shared blocks, removed norms."""

from functools import cache

import numpy as np

from normkit.depth.activations import ACTIVATIONS
from normkit.depth.claims_init import ELU, SNN
from normkit.files import standardized_digits
from normkit.ledger import claim
from normkit.rng import stream

REMOVAL = {"paper": "LayerNorm removal", "arxiv": "2507.02559"}
WIDENET = {"paper": "WideNet", "arxiv": "2107.11817"}
RATE, STEPS, BATCH, TRAINING = 3e-3, 300, 64, 1200


@cache
def images():
    """Standardized training and test images and their labels, as torch tensors."""
    import torch

    images, labels = standardized_digits("digits split")
    x, y = torch.tensor(images).float(), torch.tensor(labels)
    return x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:]


def matrices(seed, *shape, gain=1.0):
    """Weights N(0, gain / fan_in) that learn; the last two axes are fan_in and fan_out."""
    import torch

    w = stream(seed, "digits weights", *shape).normal(0, np.sqrt(gain / shape[-2]), shape)
    return torch.tensor(w, dtype=torch.float32, requires_grad=True)


def fit(forward, weights, seed, steps=STEPS):
    """Train in place, Adam at 3e-3 on batches of 64; (mean training loss over all steps, test loss at the end), cross-entropy in nats."""
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
    from normkit.depth.sharing import train_sharing

    def loss(arm, layers):
        return train_sharing(arm, seed=seed, steps=300, layers=layers).loss

    return [np.log(loss("shared_individual_norms", n) / loss("shared", n)) for n in (4, 8)]


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
    from normkit.depth.removal import remove_and_finetune

    found = remove_and_finetune(seed=seed, layers=6, steps=300, finetune=100)
    return found.finetuned - found.vanilla_finetuned
