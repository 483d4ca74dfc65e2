"""Labs that show a measured model: the profiles that ship with the kit, or one of the learner's own."""

import json
from dataclasses import dataclass, field
from functools import cache

from normkit.files import data_path
from normkit.lab import Lab
from normkit.profile import Profile


@cache
def stored() -> dict[str, Profile]:
    """The measured profiles that ship with the kit, by name."""
    found = json.loads(data_path("profiles.json").read_text(encoding="utf-8"))
    return {name: Profile.from_dict(p) for name, p in found["profiles"].items()}


@dataclass(frozen=True, eq=False, repr=False)
class RealModelLab(Lab):
    """A lab that may hold a Profile of the learner's own model; it travels with the lab's state."""

    real: Profile | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if not isinstance(self.real, Profile | None):
            raise TypeError(f"real must be a Profile, as normkit.probe(model, batch) returns it; got {type(self.real)}")
        super().__post_init__()

    def state(self):
        return super().state() | ({"real": self.real.to_dict()} if self.real else {})

    @classmethod
    def from_state(cls, state):
        return cls(real=Profile.from_dict(state["real"]) if "real" in state else None)

    def measured(self) -> Profile:
        """The learner's profile, or the stored one of MiniLM."""
        return self.real or stored()["MiniLM"]
