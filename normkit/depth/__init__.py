"""What happens to a signal on its way through a deep residual stack, and what the placement of the norm changes.

`residual_profile` measures real nets, `exact_profile` samples their law, `laws` has the closed forms.
"""

from normkit.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "PLACEMENTS": "normkit.depth.placement",
        "exact_profile": "normkit.depth.exact",
        "residual_profile": "normkit.depth.experiment",
        **dict.fromkeys(
            (
                "activations",
                "claims",
                "equivalence",
                "expansion",
                "lab",
                "laws",
                "nuclear",
                "placement",
                "profile_lab",
                "removal",
                "sharing",
                "sinks",
                "training",
                "training_lab",
                "transformer",
            )
        ),
    },
)
