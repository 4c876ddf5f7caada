"""Which checkpoint tensor becomes which GGUF tensor: all accounted for, shapes checked, nothing guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitloss.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bitloss.convert.families import Dimensions, Family, TensorRule
    from bitloss.model.checkpoint import Checkpoint

# Tables some checkpoints carry that are computed from the settings.
_COMPUTED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_FLOATS = {"F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True)
class Job:
    """A tensor to convert.

    Attributes:
        source: its name in the checkpoint.
        target: its name in the GGUF file.
        shape: NumPy order.
        rope_heads: heads whose rows are reordered, 0 for none.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    rope_heads: int

    @property
    def always_f32(self) -> bool:
        """Whether it is F32 in every file: vectors and norms (llama.cpp's rule)."""
        return (
            len(self.shape) <= 1
            or self.target.endswith("_norm.weight")
            or not self.target.endswith(".weight")
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion does.

    Attributes:
        jobs: tensors in the order written.
        ignored: checkpoint tensors left out because they are computed from the settings.
    """

    jobs: tuple[Job, ...]
    ignored: tuple[str, ...]


def plan_tensors(checkpoint: Checkpoint, family: Family, dims: Dimensions) -> Plan:
    """Give every checkpoint tensor its place.

    Raises:
        CheckpointError: a tensor is unknown, missing, or of another shape than the settings say.
        UnsupportedError: a tensor that is not F32, F16 or BF16.
    """
    rules = {rule.source: rule for rule in family.tensors}
    jobs: list[Job] = []
    ignored: list[str] = []
    for name in checkpoint.names():
        if name.endswith(_COMPUTED):
            ignored.append(name)
            continue
        pattern, layer = _split_layer(name)
        rule = rules.get(pattern)
        if rule is None or (layer is not None and layer >= dims.layers):
            raise CheckpointError(
                "tensor with no place in the architecture",
                where=f"{checkpoint.folder}[{name}]",
                expected=f"a tensor of {family.architecture} with {dims.layers} layers",
            )
        jobs.append(_job(checkpoint, name, rule, layer, dims))
    _refuse_missing(checkpoint, family, dims, {job.source for job in jobs})
    return Plan(tuple(jobs), tuple(ignored))


def rope_rows(n_rows: int, n_head: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the order in which rows of a query or key matrix are written.

    HF turns element i of a head with element i + d/2, ggml neighbouring elements 2i and 2i + 1; so the two
    halves of each head are interleaved.
    """
    return np.arange(n_rows).reshape(n_head, 2, n_rows // n_head // 2).swapaxes(1, 2).reshape(-1)


def _split_layer(name: str) -> tuple[str, int | None]:
    """Split "model.layers.12.x" into ("model.layers.{}.x", 12)."""
    match = re.search(r"\.(0|[1-9]\d{0,5})\.", name)
    if match is None:
        return name, None
    return f"{name[: match.start()]}.{{}}.{name[match.end() :]}", int(match[1])


def _job(checkpoint: Checkpoint, name: str, rule: TensorRule, layer: int | None, dims: Dimensions) -> Job:
    info = checkpoint.info(name)
    shape = dims.resolve(rule.shape)
    if info.shape != shape:
        raise CheckpointError(
            "shape that does not fit config.json",
            where=f"{checkpoint.folder}[{name}]",
            expected=list(shape),
            found=list(info.shape),
        )
    if info.dtype not in _FLOATS:
        raise UnsupportedError(
            "weights that are not full precision",
            where=f"{checkpoint.folder}[{name}]",
            expected="F32, F16 or BF16",
            found=info.dtype,
            mend="use the original, unquantized model",
        )
    heads = {None: 0, "q": dims.n_head, "k": dims.n_head_kv}[rule.rope]
    target = rule.target if layer is None else rule.target.format(layer)
    return Job(name, target, shape, heads)


def _refuse_missing(checkpoint: Checkpoint, family: Family, dims: Dimensions, found: set[str]) -> None:
    tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    if dims.layers > len(found):
        raise CheckpointError(
            "more layers than tensors",
            where=f"{checkpoint.folder}/config.json[num_hidden_layers]",
            expected=f"at most {len(found)}",
            found=dims.layers,
        )
    missing = [name for name in _required(family, dims.layers, tied=tied) if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"missing tensor{more}", where=checkpoint.folder, expected=missing[0])


def _required(family: Family, n_layers: int, *, tied: bool) -> Sequence[str]:
    rules = [rule for rule in family.tensors if rule.required and not (tied and rule.source == family.output)]
    return [
        name
        for rule in rules
        for name in (
            [rule.source.format(i) for i in range(n_layers)] if "{}" in rule.source else [rule.source]
        )
    ]


def describe_unused(family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each setting of config.json that the GGUF file cannot carry."""
    return tuple(
        f"{name} = {config[name]} is not carried over: {meaning}"
        for name, meaning in family.unused.items()
        if config.get(name) is not None
    )
