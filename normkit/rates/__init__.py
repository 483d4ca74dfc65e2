"""What normalization does to the step: scale-invariant weights, effective learning rates, Normalize-and-Project.

`spherical_walk` simulates a scale-invariant weight, `laws` has the closed forms, `NormalizeAndProject` holds the norms
of any torch model.
"""

from normkit.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AdamP": "normkit.rates.optimizers",
        "Group": "normkit.rates.groups",
        "MuonPP": "normkit.rates.muon",
        "NormalizeAndProject": "normkit.rates.nap",
        "SGDP": "normkit.rates.optimizers",
        "copied_schedule": "normkit.rates.training",
        "effective_lr": "normkit.rates.elr",
        "equilibrium_grid": "normkit.rates.experiment",
        "insert_norms": "normkit.rates.insertion",
        "scale_invariant_groups": "normkit.rates.groups",
        "spherical_walk": "normkit.rates.experiment",
        **dict.fromkeys(
            (
                "claims",
                "elr",
                "experiment",
                "groups",
                "hypernetwork",
                "lab",
                "laws",
                "longer",
                "muon",
                "nap",
                "optimizers",
                "perceptron",
                "plasticity",
                "plasticity_lab",
                "projection",
                "schedules",
                "spectral",
                "training",
                "training_lab",
                "weights",
                "weights_lab",
                "width",
            )
        ),
    },
)
