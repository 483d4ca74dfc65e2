"""The probe on Hugging Face models, fused and eager, against what they say of themselves, and on a trained one.

The models are tiny and random, built from their configs without a network.
"""

import copy
import json

import numpy as np
import pytest
import torch

from normkit.files import data_path, text
from normkit.probing import minilm, probe, text_batch, write_profiles
from normkit.profile import Profile

transformers = pytest.importorskip("transformers")
RUNS, TOKENS = 3, 10
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "decoder_start_token_id": 0}
OPT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48}
IMAGES = {"image_size": 16, "patch_size": 4}
SOFTCAP = {"sliding_window": 4, "query_pre_attn_scalar": 8}
FAMILIES = {  # name: (model, its config's values, the blocks that must be found)
    "GPT2": ("GPT2LMHeadModel", GPT2, "transformer.h"),
    "Bert": ("BertModel", SIZES, "encoder.layer"),
    "Llama": ("LlamaForCausalLM", GROUPED, "model.layers"),
    "Qwen3": ("Qwen3ForCausalLM", GROUPED, "model.layers"),
    "Gemma2": ("Gemma2ForCausalLM", GROUPED | SOFTCAP, "model.layers"),
    "GPTNeoX": ("GPTNeoXForCausalLM", SIZES | {"bos_token_id": 1, "eos_token_id": 1}, "gpt_neox.layers"),
    "OPT": ("OPTForCausalLM", OPT | {"word_embed_proj_dim": 32}, "model.decoder.layers"),
    "Mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, "model.layers"),
    "ViT": ("ViTModel", SIZES | IMAGES, "layers"),
    "T5": ("T5ForConditionalGeneration", T5 | {"num_layers": 2}, "encoder.block"),
    "Albert": ("AlbertModel", SIZES | {"embedding_size": 16}, "encoder.albert_layer_groups"),
}
WAYS = [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if (f, a) != ("Gemma2", "sdpa")]  # it caps its logits


def build(family, attention="eager"):
    name, values, label = FAMILIES[family]
    values = {k: v for k, v in values.items() if family != "ViT" or k != "vocab_size"}
    config = getattr(transformers, f"{family}Config")(**values)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():  # larger than at init, so that attention is far from uniform
        parameter.data.mul_(1 if parameter.ndim < 2 else 3)
    return model, label


def batch(family, runs=RUNS):
    noise = torch.Generator().manual_seed(7)
    if family == "ViT":
        return {"pixel_values": torch.randn(runs, 3, 16, 16, generator=noise)}
    ids = torch.randint(3, 60, (runs, TOKENS), generator=noise)
    mask = torch.ones_like(ids)
    mask[1:2, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("family", "attention"), WAYS)
def test_streams_and_entropies_are_what_the_model_reports(family, attention):
    model, label = build(family, attention)
    given = batch(family)
    profile = probe(model, given)
    assert profile.meta["blocks"] == label
    assert profile.meta["notes"] == []
    # The oracle: the eager twin with the same weights, in float64 where the model can (torch's grouped product of the
    # experts can't), asked for its hidden states and attention maps.
    twin = build(family)[0]
    twin.load_state_dict(model.state_dict())
    dtype = torch.float32 if family == "Mixtral" else torch.float64
    twin.to(dtype)
    wide = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    extra = {"labels": given["input_ids"]} if family == "T5" else {}
    with torch.no_grad():
        said = twin(**wide, **extra, output_hidden_states=True, output_attentions=True)
    states = said.encoder_hidden_states if family == "T5" else said.hidden_states
    maps = said.encoder_attentions if family == "T5" else said.attentions
    assert profile.layers == len(maps) == len(states) - 1
    keep = given.get("attention_mask", torch.ones(states[0].shape[:2])).double()
    keep /= keep.sum(-1, keepdim=True)
    norms = [(s.norm(dim=-1) * keep).sum(-1) for s in states]
    variance = [(s.square().mean(-1) * keep).sum(-1) for s in states]
    last = -1 if family not in ("Bert", "Albert") else None  # others report their last stream after the final norm
    np.testing.assert_allclose(profile.variance.T[:last], torch.stack(variance)[:last], rtol=2e-4)  # float32 forward
    np.testing.assert_allclose(profile.norm.T[:last], torch.stack(norms)[:last], rtol=2e-4)
    entropy = [-torch.special.xlogy(p, p).sum(-1) for p in maps]
    per_head = torch.stack([(h * keep[:, None]).sum(-1) for h in entropy])  # (layers, runs, heads)
    np.testing.assert_allclose(profile.entropy.T, per_head.mean(-1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(profile.meta["entropy_heads"], per_head.mean(1), rtol=1e-3, atol=1e-4)
    assert profile.gradient.min() > 0


def test_a_model_without_attention_has_no_entropy():
    config = transformers.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=3, state_size=4)
    profile = probe(transformers.MambaForCausalLM(config), batch("Mamba"))
    assert profile.entropy is None
    assert profile.meta["notes"] == []
    assert profile.layers == 3


def test_layers_of_both_kinds_have_streams_but_no_common_entropy():
    values = GROUPED | {"num_hidden_layers": 4, "attn_layer_offset": 1, "attn_layer_period": 2}
    values = {k: v for k, v in values.items() if k != "head_dim"}
    model = transformers.JambaForCausalLM(transformers.JambaConfig(**values))
    with pytest.warns(UserWarning, match=r"was seen in blocks \[0, 2\], though the model has attention"):
        profile = probe(model, batch("Jamba"))
    assert profile.entropy is None
    assert [heads is None for heads in profile.meta["entropy_heads"]] == [True, False, True, False]


def test_a_language_models_gradient_is_each_sequences_own():
    model, _ = build("GPT2")
    ids = batch("GPT2", runs=1)["input_ids"]
    pair = torch.cat([ids, ids.flip(1)])
    both = probe(model, {"input_ids": pair})
    assert both.meta["loss"] == "labels"
    for run in range(2):
        alone = probe(model, {"input_ids": pair[run : run + 1]})
        np.testing.assert_allclose(both.gradient[run], alone.gradient[0], rtol=1e-4)
    seen = model(input_ids=ids, labels=ids, output_hidden_states=True)
    first = torch.autograd.grad(seen.loss, seen.hidden_states[0])[0]
    np.testing.assert_allclose(both.gradient[0, 0], first.double().square().mean(), rtol=1e-4)


def test_decoders_are_probed_where_they_are_named():
    model, _ = build("T5")
    profile = probe(model, {k: v[:1] for k, v in batch("T5").items()}, blocks="decoder.block")
    assert profile.layers == 2
    assert len(profile.meta["entropy_heads"][0]) == 8  # four heads on itself, four on the encoder


def test_half_precision_and_checkpointing():
    model, _ = build("Llama", "sdpa")
    plain = probe(model, batch("Llama"))
    checkpointed = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    checkpointed()  # transformers 5 has a new name for it
    np.testing.assert_array_equal(probe(model.train(), batch("Llama")).gradient, plain.gradient)
    half = probe(copy.deepcopy(model).to(torch.bfloat16), batch("Llama"))
    np.testing.assert_allclose(half.variance, plain.variance, rtol=0.05)  # 8 bits: 0.4 % a rounding, a few of them
    np.testing.assert_allclose(half.gradient, plain.gradient, rtol=0.5)


def test_wrong_text_batches_name_the_model_and_the_shapes():
    model, _ = build("Bert")
    with pytest.raises(ValueError, match=r"input_ids: int64 tensor \(1, 600\).*BertModel.forward takes \(input_ids"):
        probe(model, {"input_ids": torch.ones(1, 600, dtype=torch.long)})  # longer than its positions
    with pytest.raises(ValueError, match="the batch does not fit"):
        probe(model, {"input_ids": torch.full((1, 4), 1000)})  # not in its vocabulary


@pytest.fixture(scope="module")
def real():
    return minilm()


def stored():
    return json.loads(data_path("profiles.json").read_text(encoding="utf-8"))["profiles"]


def test_text_batch_pads_on_the_right_and_refuses_nothing_to_read(real):
    _, tokenizer = real
    made = text_batch(tokenizer, text()[:3])
    theirs = tokenizer(text()[:3], padding=True, return_tensors="pt")
    assert torch.equal(made["input_ids"], theirs["input_ids"])
    assert torch.equal(made["attention_mask"], theirs["attention_mask"])
    assert text_batch(tokenizer, "one string is one sentence, cut here", max_tokens=4)["input_ids"].shape == (1, 4)
    with pytest.raises(ValueError, match="non-empty list of strings"):
        text_batch(tokenizer, [])
    with pytest.raises(ValueError, match="makes no token of ''"):
        text_batch(lambda sentence: {"input_ids": []}, [""])


def test_the_stored_profile_of_minilm_is_measured_again(real, tmp_path):
    saved = Profile.from_dict(stored()["MiniLM"])
    assert saved.runs == len(text())
    again = probe(real[0], text_batch(real[1], text()))
    for quantity in ("variance", "gradient", "update", "norm", "angle", "entropy"):
        np.testing.assert_allclose(getattr(again, quantity), getattr(saved, quantity), rtol=2e-3, err_msg=quantity)
    path = write_profiles(tmp_path / "profiles.json", trained=False)
    fresh = json.loads(path.read_text(encoding="utf-8"))["profiles"]["MiniLM"]
    np.testing.assert_allclose(fresh["variance"], again.variance, rtol=1e-5)  # six digits
    assert data_path("profiles.json").stat().st_size < 200_000


def test_loading_the_model_is_silent(real, capfd):
    minilm()
    assert capfd.readouterr() == ("", "")
