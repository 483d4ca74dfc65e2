"""Real models: `probe(model, batch)` gives the profile that the toys give. Needs torch, `minilm` also transformers."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError(
        "probing a model needs torch: pip install 'normkit[torch]', or 'normkit[probe]' for text"
    ) from None

from normkit.probing.core import probe
from normkit.probing.real import minilm, text_batch, write_profiles

__all__ = ["minilm", "probe", "text_batch", "write_profiles"]
