"""Attention of models that have learned, head by head: MiniLM on English text, small transformers on their tasks.

Recorded in data/attention.json: each head's entropy with what its logits allow, so that its dot stands beside the floor
(norm of a row of logits) and beside the law of random logits (standard deviation of a row).
"""

import json
from functools import cache
from pathlib import Path

import numpy as np

from normkit.attention.laws import causal_entropy
from normkit.checks import pick
from normkit.files import data_path, text

MINILM = {
    "MiniLM": 64,
    "MiniLM 16 tokens": 16,
    "MiniLM 256 tokens": 256,
}  # of each text, the two special ones included
TRAINED = {
    "majority": {"lr": 0.003},
    "majority collapsed": {"lr": 0.03},
    "copy": {"lr": 0.01, "task": "copy", "placement": "pre"},
}
MODELS = (*MINILM, *TRAINED)
QUANTITIES = ("entropy", "floor", "norm", "std", "spectral")
SCHEMA = 1


def head_entropies(name="MiniLM"):
    """Measure a model of MODELS anew: {"tokens", "causal"} and (layers, heads) arrays of QUANTITIES.

    entropy and floor (nats), norm and std of a row of logits around its mean, spectral norm of the logits: see
    `training.measure`; means over queries and texts. MiniLM reads the kit's own sentences one after the other, cut into
    texts of `tokens` tokens without padding; the small transformers (`training.train` with TRAINED's options, float64)
    32 fresh sequences. Needs torch, and for MiniLM the model's package. Raises ValueError for an unknown name.
    """
    from normkit.attention.training import measure

    pick("model", name, MODELS)
    logits, causal = (minilm_logits(MINILM[name]), False) if name in MINILM else _trained_logits(**TRAINED[name])
    layers = [measure(layer) for layer in logits]  # by layer: (texts, heads) each
    found = {what: np.stack([layer[what].mean(0) for layer in layers]) for what in QUANTITIES}
    return {"tokens": logits[0].shape[-1], "causal": causal, **found}


def minilm_batch(tokenizer, tokens):
    """{"input_ids", "attention_mask"}, (texts, tokens) each: all that fits of the kit's sentences, no padding."""
    import torch

    words = [i for sentence in text() for i in tokenizer(sentence, add_special_tokens=False)["input_ids"]]
    inside = tokens - 2
    rows = [words[at : at + inside] for at in range(0, len(words) - inside + 1, inside)]
    ids = torch.tensor([[tokenizer.cls_token_id, *row, tokenizer.sep_token_id] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def minilm_logits(tokens):
    """Logits of each layer, a list of (texts, heads, tokens, tokens), from what its queries and keys give."""
    from normkit.probing import minilm

    model, tokenizer = minilm()
    return bert_logits(model.eval(), minilm_batch(tokenizer, tokens))


def bert_logits(model, batch):
    """q k^T / sqrt(d) of each layer of a BERT encoder in evaluation mode, a list of (texts, heads, tokens, tokens).

    The projections' outputs are caught by hooks, so it does not matter which kernel computes the attention.
    Raises ValueError for a batch with padding, whose keys would have to be left out.
    """
    import torch

    if not batch["attention_mask"].all():
        raise ValueError("the batch has padding: cut its texts to one length")
    heads, caught = model.config.num_attention_heads, {"query": [], "key": []}

    def catch(kind):
        return lambda module, args, out: caught[kind].append(out.unflatten(-1, (heads, -1)).transpose(1, 2))

    attentions = [layer.attention.self for layer in model.encoder.layer]
    hooks = [getattr(a, kind).register_forward_hook(catch(kind)) for a in attentions for kind in caught]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 for q, k in zip(caught["query"], caught["key"], strict=True)]


def _trained_logits(task="majority", **options):
    import torch

    from normkit.attention.training import TASKS, generator, train

    *_, last = train(task=task, every=150, dtype=torch.float64, **options)
    if last["diverged"]:
        raise ValueError(f"the net for {task} diverged at step {last['step']}: lower lr, which is {options['lr']:g}")
    tokens, _ = TASKS[task].draw(generator(0, "real"), 32)
    return last["model"].logits(tokens), TASKS[task].causal


def write_real(path=None):
    """Measure all MODELS (half a minute on one core) and write them, to data/attention.json unless a path is given.

    {"schema", "models": {name: what head_entropies returns}}, numbers with 5 digits. Returns the path.
    """
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(_plain(head_entropies(name)))}" for name in MODELS)
    path = Path(path) if path else data_path() / "attention.json"
    path.write_text(f'{{"schema": {SCHEMA}, "models": {{\n{lines}\n}}}}\n', encoding="utf-8")
    return path


def _plain(found):
    """Arrays as lists of numbers with 5 digits."""
    rounded = np.vectorize(lambda x: float(f"{x:.5g}"))
    return {k: rounded(v).tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


@cache
def _recorded(path=None):
    state = json.loads((path or data_path("attention.json")).read_text(encoding="utf-8"))
    if state.get("schema") != SCHEMA:
        raise ValueError(f"attention.json has schema {state.get('schema')!r}, this normkit reads {SCHEMA}")
    return state["models"]


def load_real(name="MiniLM", path=None):
    """The recorded heads: what `head_entropies` returns, and "share": entropy over that of uniform attention.

    Uniform attention has log(tokens), or behind a causal mask the mean of log t. Raises ValueError for an unknown name.
    """
    found = dict(_recorded(path)[pick("model", name, MODELS)])
    found |= {what: np.array(found[what]) for what in QUANTITIES}
    ceiling = causal_entropy(found["tokens"]) if found["causal"] else np.log(found["tokens"])
    return found | {"share": found["entropy"] / ceiling}
