"""The recorded heads: in range, MiniLM's logits against its own attention, and what a new measurement finds."""

import json
import math

import numpy as np
import pytest

from normkit.attention import real

ROUNDING = 5e-5  # of a number with 5 digits that begins with 1


def uniform(heads):
    tokens = heads["tokens"]
    return np.mean([math.log(t) for t in range(1, tokens + 1)]) if heads["causal"] else math.log(tokens)


@pytest.mark.parametrize("name", real.MODELS)
def test_recorded_heads_are_in_range(name):
    heads = real.load_real(name)
    shape = (6, 12) if name in real.MINILM else (3, 2)
    assert {heads[what].shape for what in (*real.QUANTITIES, "share")} == {shape}
    assert heads["tokens"] == real.MINILM.get(name, 32)
    assert heads["causal"] == (name == "copy")
    top = uniform(heads)
    assert (heads["entropy"] >= heads["floor"] * (1 - ROUNDING) - ROUNDING).all()
    assert (heads["entropy"] <= top * (1 + ROUNDING)).all()
    assert heads["share"] == pytest.approx(heads["entropy"] / top)
    assert (heads["floor"] >= 0).all()
    # rows have mean norms below sqrt(T) times the matrix's; the mean of norms of T entries is sqrt(T) std
    assert (heads["norm"] <= heads["spectral"] * math.sqrt(heads["tokens"])).all()
    if not heads["causal"]:
        assert heads["std"] == pytest.approx(heads["norm"] / math.sqrt(heads["tokens"]), rel=2.1 * ROUNDING)


def test_longer_texts_have_more_entropy():
    means = [real.load_real(name)["entropy"].mean() for name in ("MiniLM 16 tokens", "MiniLM", "MiniLM 256 tokens")]
    assert means == sorted(means)
    assert [real.MINILM[name] for name in real.MINILM] == [64, 16, 256]


def test_default_is_minilm_and_a_caller_cannot_change_the_record():
    heads = real.load_real()
    assert heads["tokens"] == 64
    kept = heads["entropy"].copy()
    heads["entropy"][:] = 0
    heads["tokens"] = 3
    again = real.load_real("MiniLM")
    assert np.array_equal(again["entropy"], kept) and again["tokens"] == 64


def test_unknown_names_and_schemas_are_errors(tmp_path):
    for function in (real.load_real, real.head_entropies):
        with pytest.raises(ValueError, match=r"unknown model 'minilm'.*choose from MiniLM, MiniLM 16 tokens"):
            function("minilm")
    path = tmp_path / "attention.json"
    path.write_text('{"schema": 0, "models": {}}')
    with pytest.raises(ValueError, match="schema 0"):
        real.load_real(path=path)


@pytest.mark.parametrize("name", ["majority", "copy"])
def test_training_again_finds_the_record(name):
    """Float64: rounding of 1e-16 grows on the way, to far less than a thousandth at these rates."""
    pytest.importorskip("torch")
    found, recorded = real.head_entropies(name), real.load_real(name)
    for what in real.QUANTITIES:
        assert found[what] == pytest.approx(recorded[what], rel=1e-3)


def test_written_file_is_read_back(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(real, "MODELS", ("copy", "majority"))
    monkeypatch.setattr(real, "TRAINED", {name: {**real.TRAINED[name], "steps": 3} for name in real.MODELS})
    path = real.write_real(tmp_path / "attention.json")
    assert set(json.loads(path.read_text())["models"]) == {"copy", "majority"}
    for name in real.MODELS:
        found, stored = real.head_entropies(name), real.load_real(name, path=path)
        assert stored["tokens"] == found["tokens"] and stored["causal"] == found["causal"]
        for what in real.QUANTITIES:
            assert stored[what] == pytest.approx(found[what], rel=5e-5)
        assert not np.allclose(stored["entropy"], real.load_real(name)["entropy"], rtol=1e-2)  # untrained as yet


def test_a_net_that_diverges_is_not_recorded(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(real, "TRAINED", {"majority": {"lr": 1e300, "placement": "none", "steps": 9}})
    with pytest.raises(ValueError, match=r"the net for majority diverged at step \d: lower lr, which is 1e\+300"):
        real.head_entropies("majority")


# ---- MiniLM ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from normkit import probing

    try:
        return probing.minilm()
    except ImportError as missing:
        pytest.skip(str(missing))


def test_texts_are_the_sentences_one_after_the_other(minilm):
    from normkit.files import text

    _, tokenizer = minilm
    batch = real.minilm_batch(tokenizer, 16)
    ids = batch["input_ids"]
    assert batch["attention_mask"].shape == ids.shape == (len(ids), 16) and batch["attention_mask"].all()
    assert (ids[:, 0] == tokenizer.cls_token_id).all() and (ids[:, -1] == tokenizer.sep_token_id).all()
    words = tokenizer.decode(ids[:, 1:-1].flatten())
    wanted = tokenizer.decode(tokenizer(" ".join(text()), add_special_tokens=False)["input_ids"])
    assert wanted.startswith(words)
    assert len(wanted) - len(words) < 14 * 12  # less than one text is left over


def test_logits_are_those_of_the_models_own_attention(minilm):
    """softmax(logits) is what the eager model returns; the entropies are those that the probe sees."""
    import torch

    from normkit.attention.training import measure
    from normkit.probing import probe

    model, tokenizer = minilm
    batch = {name: rows[:3] for name, rows in real.minilm_batch(tokenizer, 16).items()}
    logits = real.bert_logits(model.eval(), batch)
    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            own = model(**batch, output_attentions=True).attentions
        eager = real.bert_logits(model, batch)
    finally:
        model.set_attn_implementation(kernel)
    assert len(own) == len(logits) == 6
    for z, again, attention in zip(logits, eager, own, strict=True):
        assert z.shape == (3, 12, 16, 16)
        torch.testing.assert_close(z.softmax(-1), attention, rtol=1e-3, atol=1e-5)  # float32, the kernels differ
        torch.testing.assert_close(z, again, rtol=1e-3, atol=1e-3)
    seen = np.array(probe(model, batch).meta["entropy_heads"])
    assert np.array([measure(z)["entropy"].mean(0) for z in logits]) == pytest.approx(seen, rel=1e-4, abs=1e-5)


def test_hooks_are_gone_and_padding_is_an_error(minilm):
    model, tokenizer = minilm
    batch = real.minilm_batch(tokenizer, 16)
    real.bert_logits(model, {name: rows[:1] for name, rows in batch.items()})
    assert not any(m._forward_hooks for layer in model.encoder.layer for m in layer.attention.self.children())
    padded = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].clone()}
    padded["attention_mask"][1, 3:] = 0
    with pytest.raises(ValueError, match="padding"):
        real.bert_logits(model, padded)


@pytest.mark.parametrize("name", ["MiniLM 16 tokens", "MiniLM"])
def test_measuring_minilm_again_finds_the_record(minilm, name):
    """Float32 on another machine sums in another order: 1e-6 of a logit of 100, through six layers."""
    found, recorded = real.head_entropies(name), real.load_real(name)
    for what in real.QUANTITIES:
        assert found[what] == pytest.approx(recorded[what], rel=1e-3, abs=1e-4)
