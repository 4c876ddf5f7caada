"""What is known about each architecture: one table of data each, a file per kin.

To add one that llama.cpp's converter maps the same way, add a `Family` to a file here and to `FAMILIES`, and a tiny
checkpoint to training/family_configs.py; nothing else changes.
"""

from __future__ import annotations

from bitloss.convert.tables import gemma, llama, olmo, phi, qwen
from bitloss.convert.tables.words import Family, Hyperparameter, TensorRule, VocabularyRules
from bitloss.errors import UnsupportedError

__all__ = ["FAMILIES", "Family", "Hyperparameter", "TensorRule", "VocabularyRules", "family_of"]

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *qwen.FAMILIES,
    *gemma.FAMILIES,
    *phi.FAMILIES,
    *olmo.FAMILIES,
)


def family_of(architecture: str) -> Family:
    """Return the table of an architecture.

    Raises:
        UnsupportedError: there is none.
    """
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    raise UnsupportedError(
        "architecture that cannot be converted here",
        where=architecture,
        expected=", ".join(family.architecture for family in FAMILIES),
        mend="run llama.cpp's convert_hf_to_gguf.py through --converter, or give a GGUF it made",
    )
