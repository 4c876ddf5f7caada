"""An HF folder as material: everything known before the first byte is written."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from bitloss.convert.dimensions import Dimensions, dimensions, head_keys, setting_keys, settings
from bitloss.convert.families import Family, family_of
from bitloss.convert.material import Block, Target, rows_per_block
from bitloss.convert.plan import Plan, describe_unused, plan_tensors, rope_rows
from bitloss.convert.rope import rope
from bitloss.convert.tables.words import EMBEDDING, OUTPUT
from bitloss.convert.vocab import vocabulary
from bitloss.errors import BitlossError, UnsupportedError
from bitloss.model.checkpoint import INDEX, Checkpoint
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.hub import snapshot_of


class FolderMaterial:
    """See `bitloss.convert.material.Material`.

    Attributes:
        checkpoint: the folder. family: its table. plan: its tensors.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, dims: Dimensions, plan: Plan) -> None:
        """Use `FolderMaterial.of`."""
        self.checkpoint = checkpoint
        self.family = family
        self.plan = plan
        snapshot = snapshot_of(checkpoint.folder)
        self.label = snapshot.name if snapshot else checkpoint.folder.name
        self._dims = dims
        self._rope = rope(family, checkpoint.config, dims.head)
        self._jobs = {job.target: job for job in plan.jobs}
        made = [Target(name, tensor.shape) for name, tensor in self._rope.tensors.items()]
        self.made = len(made)
        self.targets = (*made, *(Target(job.target, job.shape) for job in plan.jobs))
        self.names = tuple(checkpoint.names())
        self.sources = tuple(name for job in plan.jobs for name in job.sources)
        self.ignored = plan.ignored
        self.notes = (
            *describe_unused(family, checkpoint.config),
            *_contradicting_output(checkpoint, family),
            *_contradicting_index(checkpoint),
        )
        self.architecture, self.gguf_architecture = family.architecture, family.gguf
        self.metadata: Mapping[str, GgufValue] = {}

    @classmethod
    def of(cls, folder: Path) -> FolderMaterial:
        """Open and check a folder.

        Raises:
            FileProblem: the folder or a file of it is missing.
            CheckpointError: the checkpoint is damaged or contradicts itself.
            UnsupportedError: an architecture, tokenizer or number format that cannot be converted here.
        """
        checkpoint = Checkpoint.open(folder)
        family = family_of(checkpoint.architecture, folder)
        if checkpoint.config.get("quantization_config"):
            raise UnsupportedError(
                "the checkpoint is already quantized",
                where=checkpoint.folder / "config.json[quantization_config]",
                mend="use the original, unquantized model",
            )
        with _located(folder):
            found = settings(family, checkpoint.config)
            dims = dimensions(family, checkpoint.config, found)
            self = cls(checkpoint, family, dims, plan_tensors(checkpoint, family, dims))
            keys = setting_keys(family, found) | dict(self._rope.keys)
            keys |= head_keys(family, checkpoint.config, dims.head)
            self.metadata = (
                {"general.architecture": GgufValue(GgufType.STRING, family.gguf)}
                | _named_metadata(checkpoint.folder, self.sizes())
                | {f"{family.gguf}.{key}": value for key, value in keys.items()}
                | {"general.quantization_version": GgufValue(GgufType.UINT32, int(gguf.GGML_QUANT_VERSION))}
                | vocabulary(checkpoint, family.vocabulary, dims.words["vocab"])
            )
        return self

    def sizes(self) -> Sizes:
        """Return the numbers of weights."""
        total = sum(target.size for target in self.targets)
        stacks = [job.shape for job in self.plan.jobs if len(job.sources) > 1]
        expert = sum(math.prod(shape[1:]) for shape in stacks)
        return Sizes(total, total - sum(math.prod(shape) for shape in stacks), expert, self._dims.experts)

    def blocks(self, target: Target) -> Iterator[Block]:
        """Yield the rows of a tensor, or of those stacked into it, in the order they are written."""
        job = self._jobs.get(target.name)
        if job is None:
            factors = self._rope.tensors[target.name]
            yield Block(factors[None], np.zeros(1, np.intp), 0.0, f"{self.checkpoint.folder}[{target.name}")
            return
        for name in job.sources:
            data = self.checkpoint.tensor(name)
            data = data.reshape(data.shape[0], -1)
            rows = rope_rows(len(data), job.rope_heads) if job.rope_heads else np.arange(len(data))
            step = rows_per_block(data.shape[1])
            for begin in range(0, len(data), step):
                taken = rows[begin : begin + step]
                source = data[taken] if job.rope_heads else data[begin : begin + step]
                yield Block(source, taken, job.shift, f"{self.checkpoint.folder}[{name}")

    def forget(self, target: Target) -> None:
        """Let go of the pages that a target's tensors were read into."""
        job = self._jobs.get(target.name)
        for name in job.sources if job else ():
            self.checkpoint.forget(name)

    def files(self) -> list[Path]:
        """Return every file of the folder that decides the result."""
        return self.checkpoint.files()


@contextlib.contextmanager
def _located(folder: Path) -> Iterator[None]:
    """Say of which folder a setting is that is found wrong."""
    try:
        yield
    except BitlossError as error:
        if (error.where or "").startswith("config.json"):
            error.rename("config.json", f"{folder}/config.json")
        raise


def _contradicting_index(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say so when the index counts other bytes than the files hold; published ones may, and nothing rests on it."""
    stated, held = checkpoint.stated_bytes, checkpoint.n_bytes
    if stated is None or stated == held:
        return ()
    return (f"{INDEX} says {stated} bytes of tensors, its files hold {held}",)


def _contradicting_output(checkpoint: Checkpoint, family: Family) -> tuple[str, ...]:
    """Say so when config.json ties the output to the embedding and the checkpoint has another one."""
    names = set(checkpoint.names())
    if not checkpoint.config.get("tie_word_embeddings", family.tied) or not {OUTPUT, EMBEDDING} <= names:
        return ()
    output, embedding = checkpoint.tensor(OUTPUT), checkpoint.tensor(EMBEDDING)
    same = output.dtype == embedding.dtype and np.array_equal(output.view(np.uint8), embedding.view(np.uint8))
    for name in (OUTPUT, EMBEDDING):
        checkpoint.forget(name)
    if same:
        return ()
    written = OUTPUT in {rule.source for rule in family.tensors}
    return (
        f"{OUTPUT} is not the embedding, though config.json says tie_word_embeddings: "
        f"{'written, and what llama.cpp computes with' if written else 'left out'}",
    )


class Sizes(NamedTuple):
    """Numbers of weights: in all, outside the experts, of one expert; and the number of experts."""

    total: int
    shared: int
    expert: int
    experts: int


def _named_metadata(folder: Path, sizes: Sizes) -> dict[str, GgufValue]:
    """Return `general_metadata` of a folder under the model's name, which a folder of the hub's cache has not."""
    snapshot = snapshot_of(folder)
    if snapshot is None:
        return general_metadata(folder.resolve(), sizes)
    with tempfile.TemporaryDirectory() as temporary:
        named = Path(temporary) / snapshot.name
        named.symlink_to(folder.absolute(), target_is_directory=True)
        return general_metadata(named, sizes)


def general_metadata(folder: Path, sizes: Sizes) -> dict[str, GgufValue]:
    """Return the `general.*` keys: names, licence and sampling settings found in the folder.

    They are worked out by the `gguf` package, from the model card, config.json and the folder's name. Nothing
    computes with them, so a model card that cannot be parsed only costs them, not the conversion.
    """
    kind = {"general.type": GgufValue(GgufType.STRING, "model")}
    try:
        facts = gguf.Metadata.load(None, folder, None, sizes.total)
        facts.name = facts.name or folder.name
        facts.size_label = facts.size_label or gguf.size_label(*sizes)
        recorder = gguf.GGUFWriter(None, arch="")
        facts.set_gguf_meta_model(recorder)
        found = {key: _recorded(entry) for key, entry in recorder.kv_data[0].items()}
    except Exception:
        return kind | {"general.name": GgufValue(GgufType.STRING, folder.name)}
    return kind | found


def _recorded(entry: Any) -> GgufValue:
    if entry.type != gguf.GGUFValueType.ARRAY:
        return GgufValue(GgufType(int(entry.type)), entry.value)
    item = entry.sub_type or gguf.GGUFValueType.get_type(entry.value[0])
    return GgufValue(GgufType.ARRAY, list(entry.value), GgufType(int(item)))
