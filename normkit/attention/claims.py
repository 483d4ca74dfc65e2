"""The attention theme's claims: softmax, collapse in training, variants of attention, linear attention, step sizes."""

from normkit.attention import claims_ghosts, claims_linear, claims_softmax, claims_training, claims_variants
from normkit.ledger import Claim

_MODULES = (claims_training, claims_softmax, claims_variants, claims_linear, claims_ghosts)
CLAIMS = tuple(value for module in _MODULES for value in vars(module).values() if isinstance(value, Claim))
