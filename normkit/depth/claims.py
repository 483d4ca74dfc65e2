"""The depth theme's claims: at initialization, about given models, about small nets that learn, about transformers."""

from normkit.depth import claims_digits, claims_init, claims_models, claims_trained
from normkit.ledger import Claim

_MODULES = (claims_init, claims_models, claims_digits, claims_trained)
CLAIMS = tuple(value for module in _MODULES for value in vars(module).values() if isinstance(value, Claim))
