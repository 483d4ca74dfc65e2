"""The rates theme's claims: weights and their reparametrizations, widths and batches, schedules and steps, plasticity."""

from normkit.ledger import Claim
from normkit.rates import claims_hypernetwork, claims_scale, claims_theory, claims_training, claims_weights

_MODULES = (claims_weights, claims_training, claims_scale, claims_theory, claims_hypernetwork)
CLAIMS = tuple(value for module in _MODULES for value in vars(module).values() if isinstance(value, Claim))
