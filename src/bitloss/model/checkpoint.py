"""A model as Hugging Face folders hold it: config.json, safetensors weights, tokenizer files.

Weights are one `model.safetensors` or shards listed by `model.safetensors.index.json`; they are checked when
opened and mapped, never loaded whole. Pickled weights (`pytorch_model.bin`, `*.pt`, `*.pth`) are refused by
name and never opened, since loading a pickle can run any code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from bitloss.errors import CheckpointError, FileProblem, UnsupportedError
from bitloss.model.safetensors import SafetensorsFile, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Files beside the weights that decide what a conversion writes.
SETTINGS_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
)


class TensorFacts(NamedTuple):
    """What a checkpoint says of a tensor.

    Attributes:
        dtype: safetensors' name of the type ("BF16").
        shape: NumPy order.
    """

    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """An open HF folder.

    Attributes:
        folder: the folder.
        config: config.json.
        weight_files: the safetensors files, sorted by name.
        n_bytes: of all tensors.
        stated_bytes: the same as the index states it, if it does.
    """

    def __init__(self, folder: Path, config: dict[str, Any], parts: Sequence[SafetensorsFile]) -> None:
        """Use `Checkpoint.open`."""
        self.folder = folder
        self.stated_bytes: int | None = None
        self.n_bytes = sum(tensor.n_bytes for part in parts for tensor in part.tensors.values())
        self.config = config
        self.weight_files = [part.path for part in parts]
        self._part_of = {name: part for part in parts for name in part.tensors}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open and check a folder; weights are mapped, not read.

        Raises:
            FileProblem: the folder, config.json or a shard is missing or unreadable.
            CheckpointError: a file breaks its format, or index and shards disagree.
            UnsupportedError: only pickled weights, Mistral's own layout, an adapter, or an unknown dtype.
        """
        if not folder.is_dir():
            raise FileProblem(
                "no such folder", where=folder, expected="a folder with config.json and safetensors weights"
            )
        if not (folder / "config.json").is_file():
            if (folder / "params.json").is_file():
                raise UnsupportedError(
                    "Mistral's own layout (params.json)",
                    where=folder,
                    mend="use the folder with config.json of the same model",
                )
            if (folder / "adapter_config.json").is_file():
                raise UnsupportedError(
                    "an adapter (LoRA), not a model", where=folder, mend="merge it into its base model first"
                )
            raise FileProblem(
                "no config.json in the folder",
                where=folder,
                expected="a Hugging Face model folder",
                mend="give a folder with config.json, safetensors weights and tokenizer files, or a GGUF file",
            )
        config = read_json(folder / "config.json")
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX)
            self = cls(folder, config, _indexed(folder, index))
            facts = index.get("metadata")
            stated = facts.get("total_size") if isinstance(facts, dict) else None
            if type(stated) is int and 0 <= stated < 1 << 63:
                self.stated_bytes = stated
            return self
        return cls(folder, config, [SafetensorsFile.open(path) for path in _unindexed(folder)])

    @property
    def architecture(self) -> str:
        """The class that config.json names ("MistralForCausalLM")."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise CheckpointError(
                "cannot tell the architecture",
                where=self.folder / "config.json[architectures]",
                expected="one name",
                found=str(names)[:80],
            )
        return names[0]

    def names(self) -> list[str]:
        """Names of all tensors: by file, then by name."""
        return list(self._part_of)

    def info(self, name: str) -> TensorFacts:
        """Return a tensor's dtype and shape; `CheckpointError` if there is none of that name."""
        stored = self._part(name).tensors[name]
        return TensorFacts(stored.dtype, stored.shape)

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """Return a read-only view of a tensor's data, mapped from disk; bfloat16 as `ml_dtypes.bfloat16`."""
        return self._part(name).tensor(name)

    def forget(self, name: str, n_bytes: int | None = None) -> None:
        """Tell the system that a tensor's pages (of its first bytes only) are not needed any more."""
        self._part(name).forget(name, n_bytes)

    def files(self) -> list[Path]:
        """Every file that decides what a conversion writes, sorted by name."""
        extra = [self.folder / INDEX, *(self.folder / name for name in SETTINGS_FILES)]
        return sorted([*self.weight_files, *(path for path in extra if path.is_file())])

    def _part(self, name: str) -> SafetensorsFile:
        try:
            return self._part_of[name]
        except KeyError:
            raise CheckpointError("no such tensor", where=f"{self.folder}[{name}]") from None


def shard_names(index: Mapping[str, Any], where: object) -> list[str]:
    """Return the weight files that a parsed index names, sorted.

    Raises:
        CheckpointError: it names none, or something else than plain safetensors files.
    """
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError("no weight_map", where=where)
    for file in listed.values():
        # A name with a folder in it could lead anywhere on the disk.
        if not isinstance(file, str) or re.fullmatch(r"[\w][\w. -]*\.safetensors", file) is None:
            raise CheckpointError(
                "the index names no plain safetensors file", where=where, found=repr(file)[:80]
            )
    return sorted(set(listed.values()))


def _indexed(folder: Path, index: Mapping[str, Any]) -> list[SafetensorsFile]:
    """Open the shards the index names; refuse other names than plain ones and any disagreement."""
    shard_names(index, folder / INDEX)
    listed = index["weight_map"]
    missing = sorted(file for file in set(listed.values()) if not (folder / file).is_file())
    if missing:
        raise FileProblem(
            f"{len(missing)} weight file(s) of the index are missing",
            where=folder,
            found=", ".join(missing[:3]),
        )
    parts = [SafetensorsFile.open(folder / file) for file in sorted(set(listed.values()))]
    stored = {(name, part.path.name) for part in parts for name in part.tensors}
    for name, file in sorted(set(listed.items()) ^ stored):
        what = (
            "tensor of the index is not in its file"
            if (name, file) not in stored
            else "tensor is not in the index"
        )
        raise CheckpointError(what, where=f"{folder / file}[{name}]")
    return parts


def _unindexed(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    names = sorted(path.name for path in folder.iterdir())
    if any(_SHARD.fullmatch(name) for name in names):
        raise FileProblem("the index of the weight files is missing", where=folder / INDEX)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise UnsupportedError(
            "only pickled weights, which can run any code when loaded",
            where=folder / pickles[0],
            mend="save the model as safetensors first",
        )
    if any(name.startswith("consolidated") and name.endswith(".safetensors") for name in names):
        raise UnsupportedError(
            "Mistral's own layout (consolidated.safetensors)",
            where=folder,
            mend="use model.safetensors of the same model",
        )
    raise FileProblem("no weights in the folder", where=folder, expected=f"{SINGLE} or {INDEX}")
