"""A Hugging Face model from a folder, or from a package that ships one: nothing is downloaded."""

import importlib.util
import json
from pathlib import Path


def model_folder(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or the one inside the installed package of that name.

    Raises ValueError when there is no folder with a config.json, or more than one.
    """
    if Path(source).is_dir():
        root = Path(source)
    else:
        name = str(source).replace("-", "_")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{str(source)!r} is neither a folder nor an installed package; models are not downloaded")
        root = Path(spec.submodule_search_locations[0])
    # a sentence-transformers folder has a config.json for each of its parts; a model's says its type
    found = [c.parent for c in sorted(root.rglob("config.json")) if "model_type" in json.loads(c.read_text("utf-8"))]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise ValueError(f"{root} must hold one Hugging Face model (a config.json with a model_type); found {listed}")
    return found[0]


def load(source: str | Path):
    """(model in eval mode, tokenizer) of a folder or package. Raises ValueError as `model_folder` does."""
    import transformers

    folder = model_folder(source)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return kind.from_pretrained(folder, local_files_only=True).eval(), tokenizer
