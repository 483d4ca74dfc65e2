"""Packages whose names are imported at their first use, so that `import normkit` stays light."""

import importlib
import sys


def attach(package: str, names: dict[str, str | None]):
    """(__getattr__, __dir__, __all__) for a package: names maps each public name to its module, None to a submodule."""
    public = sorted(names)

    def get(name):
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(public)}")
        home = names[name]
        module = importlib.import_module(home or f"{package}.{name}")
        value = getattr(module, name) if home else module
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: public, public
