"""Two small tasks on which kinds of linear attention are compared: recall of one pair of many, and digits from patches."""

import math

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.attention.linear_toys needs torch; pip install 'normkit[torch]'") from error
from torch import nn
from torch.nn import functional as F

from normkit.attention.linear import KINDS, weights
from normkit.attention.linear_modules import LinearAttention
from normkit.checks import count, pick, positive
from normkit.files import standardized_digits
from normkit.rng import generator, stream

__all__ = ["TASKS", "PatchModel", "recall", "train_patches"]

TASKS = ("generate", "classify")
SYMBOLS, PAIRS, VALUES, BATCH, TRAINING = 32, 16, 16, 64, 1200


def recall(kind="relu", *, width=16, lr=1e-2, steps=300, seed=0) -> float:
    """Loss (nats; chance log 16 = 2.77) of recalling the value that came with a symbol, 16 pairs before it.

    One head: q and k are learned vectors of the symbols, v of the values, (width,) each; the answer is read linearly
    from `weights`(q, k, kind) v. Adam, constant lr, fresh batches of 64; the loss is that of the last tenth of the steps.
    kind: one of KINDS or "softmax". Same seed, same vectors and batches. Raises ValueError for arguments out of range.
    """
    pick("kind", kind, (*KINDS, "softmax"))
    positive("lr", lr)
    shapes = ((SYMBOLS, count("width", width)), (SYMBOLS, width), (VALUES, width), (width, VALUES))
    draws, batches, losses = generator(seed, "recall weights"), generator(seed, "recall batches"), []
    asked, keys, values, head = (torch.randn(s, generator=draws) for s in shapes)
    head /= math.sqrt(width)
    learned = [p.requires_grad_() for p in (asked, keys, values, head)]
    adam = torch.optim.Adam(learned, lr=lr)
    for _ in range(count("steps", steps)):
        symbols = torch.rand(BATCH, SYMBOLS, generator=batches).argsort(-1)[:, :PAIRS]
        answers = torch.randint(VALUES, (BATCH, PAIRS), generator=batches)
        picked = torch.randint(PAIRS, (BATCH, 1), generator=batches)
        out = weights(asked[symbols.gather(1, picked)], keys[symbols], kind) @ values[answers]
        loss = F.cross_entropy(out[:, 0] @ head, answers.gather(1, picked)[:, 0])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return sum(losses[-max(1, steps // 10) :]) / max(1, steps // 10)


class PatchModel(nn.Module):
    """Pre-LayerNorm transformer on 16 patches of 2 x 2 pixels, two blocks of LinearAttention and a GELU MLP.

    (batch, 16, 4) and hidden, booleans (batch, 16) or None, to (batch, 16, out). A hidden patch shows its place only.
    """

    def __init__(self, kind, width, heads, out, gate):
        super().__init__()
        tokens = 16
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, out)
        self.position, self.unknown = nn.Parameter(torch.zeros(tokens, width)), nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList()
        for _ in range(2):
            attention = LinearAttention(width, heads, kind, gate_tokens=tokens if gate else None)
            mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.blocks.append(nn.ModuleList([nn.LayerNorm(width), attention, nn.LayerNorm(width), mlp]))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches, hidden=None):
        x = self.embed(patches)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.unknown, x)
        x = x + self.position
        for norm1, attention, norm2, mlp in self.blocks:
            x = x + attention(norm1(x))
            x = x + mlp(norm2(x))
        return self.head(self.norm(x))


def _draw(model, seed):
    draws = generator(seed, "patch weights")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in ("position", "unknown"):
                p.normal_(0, 0.5, generator=draws)
            elif p.ndim > 1 and "gate" not in name:
                p.normal_(0, p.shape[-1] ** -0.5, generator=draws)
            elif name.endswith("bias"):
                p.zero_()


def train_patches(kind="division", *, task="generate", width=32, gate=False, lr=3e-3, steps=200, seed=0) -> float:
    """Held-out loss of a PatchModel (two heads) on 597 digits after training on 1200.

    generate: half of the patches, at random, are hidden and their pixels wanted, as in masked autoregression: mean square
    error over the pixels' variance. classify: the digit from the mean over tokens, nats. gate: with LINA's KV gate.
    Adam, constant lr, batches of 64. Same seed, same weights, batches and hidden patches, whatever the kind and the gate.
    Raises ValueError for unknown names, counts out of range and a loss that is not finite.
    """
    pick("task", task, TASKS)
    positive("lr", lr)
    model = PatchModel(kind, width, 2, 4 if task == "generate" else 10, gate)
    _draw(model, seed)
    images, labels = standardized_digits("digits split")
    x = torch.tensor(images).float()
    x = x.unflatten(-1, (4, 2, 4, 2)).transpose(-3, -2).flatten(-2).flatten(-3, -2)
    y = torch.tensor(labels)

    def loss_of(rows, masks):
        if task == "classify":
            return F.cross_entropy(model(x[rows]).mean(1), y[rows])
        hidden = torch.rand(len(rows), 16, generator=masks).argsort(-1) < 8
        return F.mse_loss(model(x[rows], hidden)[hidden], x[rows][hidden])

    adam, masks = torch.optim.Adam(model.parameters(), lr=lr), generator(seed, "patch masks")
    for picks in stream(seed, "patch batches").integers(TRAINING, size=(count("steps", steps), BATCH)):
        adam.zero_grad()
        loss_of(torch.from_numpy(picks), masks).backward()
        adam.step()
    with torch.no_grad():
        loss = loss_of(torch.arange(TRAINING, len(x)), generator(seed, "patch test masks")).item()
    if not math.isfinite(loss):
        raise ValueError(f"{kind} attention diverged (lr {lr:g}, seed {seed}): lower lr")
    return loss
