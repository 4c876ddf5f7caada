"""What is known about each architecture: one table of data each, a file per kin.

To add one that llama.cpp's converter maps the same way, add a `Family` to a file here and to `FAMILIES`, and a tiny
checkpoint to training/family_configs.py; nothing else changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitloss.convert.tables import gemma, llama, olmo, phi, qwen
from bitloss.convert.tables.words import Family, Hyperparameter, TensorRule, VocabularyRules
from bitloss.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FAMILIES", "Family", "Hyperparameter", "TensorRule", "VocabularyRules", "family_of"]

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *qwen.FAMILIES,
    *gemma.FAMILIES,
    *phi.FAMILIES,
    *olmo.FAMILIES,
)


def family_of(architecture: str, folder: Path | None = None) -> Family:
    """Return the table of an architecture.

    Args:
        architecture: the class that config.json names.
        folder: of the model, for the message.

    Raises:
        UnsupportedError: there is none.
    """
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    raise UnsupportedError(
        "architecture that cannot be converted here",
        where=f"{folder / 'config.json' if folder else 'config.json'}[architectures]",
        expected="one of " + ", ".join(family.architecture for family in FAMILIES),
        found=architecture,
        mend="let llama.cpp's converter make a GGUF (bitloss convert --converter convert_hf_to_gguf.py) and give "
        "that in place of the folder",
    )
