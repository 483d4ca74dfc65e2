"""What probe(weights=True) says of each weight, against autograd and against scaling by hand."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import normkit
from normkit.probing import minilm, probe, text_batch
from normkit.probing.weights import RUNS


class Block(nn.Module):
    """Pre-LN attention with query-key norm on a fused matrix, and an MLP with batch norm of its rows."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.before, self.between = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.qk = nn.LayerNorm(width // heads, elementwise_affine=False)
        self.up, self.rows, self.down = nn.Linear(width, 24), nn.BatchNorm1d(24), nn.Linear(24, width)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.before(x)).chunk(3, -1))
        x = x + self.out(functional.scaled_dot_product_attention(self.qk(q), self.qk(k), v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.rows(self.up(self.between(x)).transpose(1, 2)).transpose(1, 2)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(30, 16), nn.Linear(16, 16)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 30)

    def forward(self, ids):
        x = functional.layer_norm(self.mix(self.tokens(ids)), (16,))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def built():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Model()
    return model, torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(1))


def squares(output):
    return output.square().sum()


EXPECTED = {  # on paper: norm(W e + b) stays when b doubles with W, and when it doubles with the embedding e
    "tokens.weight": "joint",  # the stream starts from that norm, so that what writes to it later cannot scale alone
    "mix.weight": "joint",
    "head.weight": "",
    **{f"blocks.{i}.{name}.weight": kind for i in range(2) for name, kind in [("qkv", "blocks"), ("out", ""), ("up", "rows"), ("down", "")]},
}  # fmt: skip


def test_each_weight_has_its_length_its_gradient_and_its_invariance():
    model, ids = built()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    profile = probe(model, ids, loss=squares, weights=True)
    records = {record["name"]: record for record in profile.weights}
    assert {name: record["invariant"] for name, record in records.items()} == EXPECTED
    assert list(records) == [n for n, p in model.named_parameters() if p.ndim >= 2]
    model.eval()
    squares(model(ids)).backward()
    for name, record in records.items():
        w = dict(model.named_parameters())[name]
        assert record["shape"] == list(w.shape)
        assert record["norm"] == pytest.approx(w.norm().item(), rel=1e-5)  # float32 sums
        assert record["gradient"] == pytest.approx(w.grad.norm().item(), rel=1e-4)
        cosine = (w * w.grad).sum() / (w.norm() * w.grad.norm())
        assert record["radial"] == pytest.approx(cosine.item(), abs=1e-5)
        assert record["block"] == (int(name.split(".")[1]) if name.startswith("blocks.") else None)
    assert records["mix.weight"]["with"] == records["tokens.weight"]["with"] == ["mix.bias"]
    assert abs(records["head.weight"]["radial"]) > 0.01
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_what_is_not_asked_for_is_not_there_and_what_is_asked_for_changes_nothing_else():
    model, ids = built()
    without, with_weights = probe(model, ids), probe(model, ids, weights=True)
    assert without.weights is None and "weights" not in without.to_dict() and "weights" not in repr(without)
    assert {k: v for k, v in with_weights.to_dict().items() if k != "weights"} == without.to_dict()
    assert "weights of 11 tensors" in repr(with_weights)
    again = normkit.Profile.from_dict(json.loads(json.dumps(with_weights.to_dict())))
    assert again.weights == with_weights.weights
    assert probe(model, ids, lr=0.1, weights=True).meta["parameter_update"] == pytest.approx(
        probe(model, ids, lr=0.1).meta["parameter_update"]
    )


def test_frozen_weights_have_a_length_but_no_gradient():
    model, ids = built()
    model.blocks[0].requires_grad_(False)
    records = {r["name"]: r for r in probe(model, ids, weights=True).weights}
    frozen = records["blocks.0.qkv.weight"]
    assert frozen["gradient"] is None and frozen["radial"] is None and frozen["invariant"] == "blocks"
    assert not model.blocks[0].qkv.weight.requires_grad
    # The cotangent stands at the last block's output, on which the head has no influence.
    assert records["head.weight"]["gradient"] is None and records["blocks.1.qkv.weight"]["gradient"] > 0


def test_gpt2_of_random_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    torch.random.set_rng_state(torch_state)
    ids = torch.randint(60, (RUNS + 2, 8), generator=torch.Generator().manual_seed(4))
    records = {
        r["name"]: r for r in probe(model, {"input_ids": ids}, loss=lambda o: o[0].square().sum(), weights=True).weights
    }
    writers = {
        "wte.weight",
        "wpe.weight",
        *(f"h.{i}.{part}.c_proj.weight" for i in range(2) for part in ("attn", "mlp")),
    }
    assert {name for name, record in records.items() if record["invariant"] == "joint"} == writers
    assert writers <= {"wte.weight", *records["wte.weight"]["with"]}
    assert {r["invariant"] for r in records.values()} == {"", "joint"}
    assert [records[f"h.{i}.mlp.c_fc.weight"]["block"] for i in range(2)] == [0, 1]


def test_the_trained_minilm():
    model, tokenizer = minilm()
    batch = text_batch(tokenizer, ["Short.", "A few words more."])
    records = {r["name"]: r for r in probe(model, batch, weights=True).weights}
    # Post-LN: the three embeddings add up to what the first norm takes; everything else shares its stream with a skip.
    embeddings = [n for n in records if n.startswith("embeddings.")]
    assert len(embeddings) == 3
    assert {n for n, r in records.items() if r["invariant"]} == set(embeddings)
    first = records[embeddings[0]]
    assert first["invariant"] == "joint" and first["with"] == embeddings[1:] and first["block"] is None
    assert {r["block"] for r in records.values()} == {None, *range(6)}
    assert all(r["norm"] > 0 for r in records.values())
    # Euler: together, the gradient does not point along them (their dot products cancel; eps is 1e-12).
    dots = [r["radial"] * r["norm"] * r["gradient"] for r in (records[n] for n in embeddings)]
    assert abs(sum(dots)) < 1e-3 * max(map(abs, dots))
