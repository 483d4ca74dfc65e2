"""The depth theme's claims: those measured at initialization, then those that need a trained or converted model."""

from normkit.depth import claims_init
from normkit.ledger import Claim

CLAIMS = tuple(value for module in (claims_init,) for value in vars(module).values() if isinstance(value, Claim))
