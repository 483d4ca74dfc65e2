"""Probing real models: `probe(model, batch)` returns the same profile as the toys."""

from normkit.probing.core import probe

__all__ = ["probe"]
