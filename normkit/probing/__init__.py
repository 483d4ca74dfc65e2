"""Real models: `probe(model, batch)` gives the profile that the toys give. Needs torch, `minilm` also transformers."""

from normkit.probing.core import probe
from normkit.probing.real import main, minilm, text_batch, write_profiles

__all__ = ["main", "minilm", "probe", "text_batch", "write_profiles"]
