"""How attention normalizes: softmax and its entropy, the floor under it, its collapse, and what is done about that.

`entropy` and `softmax_entropy` measure, `laws` has the floor and the random-energy law, `SigmaReparam` holds spectral
norms.
"""

from normkit.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "MultiHeadAttention": "normkit.attention.heads",
        "SigmaReparam": "normkit.attention.reparam",
        "entropy": "normkit.attention.softmax",
        "softmax_entropy": "normkit.attention.softmax",
        **dict.fromkeys(
            (
                "claims",
                "experiment",
                "ghost_steps",
                "ghosts",
                "ghosts_lab",
                "heads",
                "l2",
                "lab",
                "laws",
                "linear",
                "linear_modules",
                "reparam",
                "slab",
                "softmax",
                "streaming",
                "training",
                "training_lab",
                "variants",
            )
        ),
    },
)
