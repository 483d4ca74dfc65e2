"""The entropy of fused attention against the probabilities themselves, in float64."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normkit.probing.attention import EntropyRecorder, attention_entropy, logits_entropy

RUNS, HEADS, QUERIES, KEYS, WIDTH = 2, 4, 7, 9, 8


def qk(queries=QUERIES, keys=KEYS, key_heads=HEADS, dtype=torch.float64, scale=1.0):
    noise = torch.Generator().manual_seed(1)
    query = scale * torch.randn(RUNS, HEADS, queries, WIDTH, generator=noise, dtype=torch.float64)
    key = torch.randn(RUNS, key_heads, keys, WIDTH, generator=noise, dtype=torch.float64)
    return query.to(dtype), key.to(dtype)


def naive(query, key, bias=0.0, scale=WIDTH**-0.5):
    """-sum p log p of the whole map in float64, 0 log 0 = 0."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    p = torch.softmax(query.double() @ key.mT * scale + bias, -1)
    return -torch.special.xlogy(p, p).sum(-1)


def causal_bias(queries, keys):
    return torch.full((queries, keys), -math.inf, dtype=torch.float64).triu(1)


def test_entropy_knows_its_extremes():
    keys = 16
    rows = torch.zeros(3, keys, dtype=torch.float64)
    rows[1, 0] = 1e6  # all weight on one key
    rows[2, 5:] = -math.inf  # uniform on five keys
    torch.testing.assert_close(
        logits_entropy(rows), torch.tensor([math.log(16), 0.0, math.log(5)], dtype=torch.float64)
    )


def test_one_against_the_rest_attains_the_bound_of_zhai_et_al():
    keys, sigma = 16, 4.0  # card value of the bound: 1.018040 (arXiv 2303.06296, theorem 3.1)
    row = torch.full((keys,), -sigma * math.sqrt((keys - 1) / keys) / (keys - 1), dtype=torch.float64)
    row[0] = sigma * math.sqrt((keys - 1) / keys)
    beta = math.exp(-sigma * math.sqrt(keys / (keys - 1)))
    bound = math.log1p((keys - 1) * beta) + sigma * math.sqrt(keys * (keys - 1)) * beta / (1 + (keys - 1) * beta)
    assert logits_entropy(row).item() == pytest.approx(bound, abs=1e-12) == pytest.approx(1.018040, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunks_change_nothing(chunk):
    query, key = qk()
    torch.testing.assert_close(attention_entropy(query, key, chunk=chunk), naive(query, key), rtol=1e-12, atol=1e-12)


def test_causal_and_masks_and_scale():
    query, key = qk(keys=QUERIES)
    bias = causal_bias(QUERIES, QUERIES)
    torch.testing.assert_close(attention_entropy(query, key, causal=True, chunk=2), naive(query, key, bias))
    keep = torch.ones(RUNS, 1, 1, QUERIES, dtype=torch.bool)
    keep[1, ..., 4:] = False  # a padding mask: one row for all queries
    added = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -math.inf)
    torch.testing.assert_close(attention_entropy(query, key, mask=keep, chunk=2), naive(query, key, added))
    torch.testing.assert_close(attention_entropy(query, key, mask=added, chunk=2), naive(query, key, added))
    torch.testing.assert_close(
        attention_entropy(query, key, mask=bias.expand(RUNS, 1, -1, -1), chunk=2), naive(query, key, bias)
    )
    torch.testing.assert_close(attention_entropy(query, key, scale=2.0, chunk=2), naive(query, key, scale=2.0))


def test_grouped_queries_share_keys():
    query, key = qk(key_heads=2)
    torch.testing.assert_close(attention_entropy(query, key), naive(query, key), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_sharp_attention_does_not_cancel_in_float32(scale):
    # lse - E[z] of uncentered logits loses |z| 2^-24, here up to 1e-2; centered, only the logits' own rounding is left,
    # about d |z| 2^-24, and where |z| is large the entropy is flat in it.
    query, key = qk(dtype=torch.float32, scale=scale)
    torch.testing.assert_close(attention_entropy(query, key), naive(query, key).float(), rtol=2e-3, atol=1e-3)


def test_a_query_without_keys_is_nan_and_not_zero():
    assert logits_entropy(torch.full((4,), -math.inf)).isnan()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation inside makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if torch.is_tensor(t))])
        return out


def test_no_map_of_all_queries_is_ever_held():
    query, key = torch.randn(1, 4, 512, 8), torch.randn(1, 4, 512, 8)
    with Largest() as largest:
        attention_entropy(query, key, causal=True, chunk=16)
    assert largest.numel <= 4 * 16 * 512


def recorded(run, accepts=lambda logits: True):
    seen = []
    with EntropyRecorder(seen.append, accepts, chunk=2):
        run()
    return seen


def test_fused_eager_and_multihead_attention_are_all_seen():
    query, key = qk(keys=QUERIES, dtype=torch.float32)
    want = naive(query, key, causal_bias(QUERIES, QUERIES)).float()
    fused = recorded(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key, is_causal=True))
    logits = (query @ key.mT * WIDTH**-0.5 + causal_bias(QUERIES, QUERIES)).float()
    ways = [
        lambda: torch.softmax(logits, -1),
        lambda: logits.softmax(dim=-1),
        lambda: torch.nn.functional.softmax(logits, dim=3, dtype=torch.float32),
        lambda: torch.nn.Softmax(dim=-1)(logits),
    ]
    for seen in (fused, *map(recorded, ways)):
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], want, rtol=1e-5, atol=1e-5)
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(3, 5, 16)
    _, weights = attention(x, x, x, average_attn_weights=False)
    want = -torch.special.xlogy(weights, weights).sum(-1)
    for need in (True, False):
        (seen,) = recorded(lambda need=need: attention(x, x, x, need_weights=need))
        torch.testing.assert_close(seen.reshape(3, 2, 5), want, rtol=1e-5, atol=1e-5)


def test_other_softmaxes_are_left_alone():
    query, key = qk(dtype=torch.float32)
    assert recorded(lambda: torch.softmax(query, dim=1)) == []  # not over keys
    assert recorded(lambda: torch.softmax(query[0, 0], dim=-1)) == []  # a table, such as a router's
    assert recorded(lambda: torch.softmax(query, dim=-1), accepts=lambda logits: False) == []
    fused = torch.nn.functional.scaled_dot_product_attention
    assert recorded(lambda: fused(query, key, key), accepts=lambda logits: False) == []
    assert torch.equal(torch.softmax(query, -1), query.softmax(-1))  # and nothing stays behind
