"""Which checkpoint tensors become which GGUF tensor: all accounted for, none twice, shapes checked, nothing guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitloss.convert.tables.words import OUTPUT
from bitloss.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from bitloss.convert.dimensions import Dimensions
    from bitloss.convert.families import Family, TensorRule
    from bitloss.model.checkpoint import Checkpoint

# Tables some checkpoints carry that are computed from the settings.
_COMPUTED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_FLOATS = {"F32", "F16", "BF16"}
_NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.)")


@dataclass(frozen=True, slots=True)
class Job:
    """A GGUF tensor to write.

    Attributes:
        sources: names in the checkpoint; several are stacked in this order.
        target: its name in the GGUF file.
        shape: NumPy order.
        rope_heads: heads whose rows are reordered, 0 for none.
        shift: added to every value.
    """

    sources: tuple[str, ...]
    target: str
    shape: tuple[int, ...]
    rope_heads: int = 0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion does.

    Attributes:
        jobs: tensors in the order written.
        ignored: checkpoint tensors left out: computed from the settings, or copies of the embedding.
    """

    jobs: tuple[Job, ...]
    ignored: tuple[str, ...]


class _Seat:
    """A rule, met under a name: its layer and expert."""

    def __init__(self, rule: TensorRule, numbers: list[int]) -> None:
        self.rule = rule
        self.layer = numbers[0] if numbers else None
        self.expert = numbers[1] if len(numbers) > 1 else None
        self.target = rule.target if self.layer is None else rule.target.format(self.layer)


def plan_tensors(checkpoint: Checkpoint, family: Family, dims: Dimensions) -> Plan:
    """Give every checkpoint tensor its place.

    The order is that of the checkpoint's names. The stacks of a layer's experts come where its last expert is, in the
    order of the family's table, as llama.cpp's converter writes them.

    Raises:
        CheckpointError: a tensor is unknown, missing, or of another shape than the settings say.
        UnsupportedError: a tensor that is not F32, F16 or BF16.
    """
    rules = {rule.source: rule for rule in family.tensors}
    stacked = [rule for rule in family.tensors if rule.stacked]
    jobs: list[Job] = []
    ignored: list[str] = []
    waiting: dict[int, dict[tuple[str, int], str]] = {}
    for name in checkpoint.names():
        if name.endswith(_COMPUTED) or (name == OUTPUT and OUTPUT not in rules):
            ignored.append(name)
            continue
        seat = _seat(checkpoint, name, family, rules, dims)
        _check(checkpoint, name, dims.resolve(seat.rule.shape))
        if seat.expert is None or seat.layer is None:
            heads = {None: 0, "q": dims.n_head, "k": dims.n_head_kv}[seat.rule.rope]
            shape = dims.resolve(seat.rule.shape)
            jobs.append(Job((name,), seat.target, shape, heads, seat.rule.shift))
            continue
        experts = waiting.setdefault(seat.layer, {})
        experts[seat.rule.source, seat.expert] = name
        if len(experts) == len(stacked) * dims.experts:
            jobs += _stacks(stacked, waiting.pop(seat.layer), seat.layer, dims)
    _refuse_missing(checkpoint, family, dims, set(checkpoint.names()))
    assert not waiting
    return Plan(tuple(jobs), tuple(ignored))


def rope_rows(n_rows: int, n_head: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the order in which rows of a query or key matrix are written.

    HF turns element i of a head with element i + d/2, ggml's `llama` graph neighbouring elements 2i and 2i + 1; so
    the two halves of each head are interleaved.
    """
    return np.arange(n_rows).reshape(n_head, 2, n_rows // n_head // 2).swapaxes(1, 2).reshape(-1)


def _seat(
    checkpoint: Checkpoint, name: str, family: Family, rules: Mapping[str, TensorRule], dims: Dimensions
) -> _Seat:
    numbers = [int(number) for number in _NUMBER.findall(name)]
    rule = rules.get(_NUMBER.sub("{}", name))
    limits = (dims.layers, dims.experts)
    if rule is None or any(number >= limit for number, limit in zip(numbers, limits, strict=False)):
        experts = f" and {dims.experts} experts" if dims.experts else ""
        raise CheckpointError(
            "tensor with no place in the architecture",
            where=f"{checkpoint.folder}[{name}]",
            expected=f"a tensor of {family.architecture} with {dims.layers} layers{experts}",
        )
    return _Seat(rule, numbers)


def _stacks(
    rules: list[TensorRule], names: Mapping[tuple[str, int], str], layer: int, dims: Dimensions
) -> Iterator[Job]:
    for rule in rules:
        sources = tuple(names[rule.source, expert] for expert in range(dims.experts))
        yield Job(sources, rule.target.format(layer), (dims.experts, *dims.resolve(rule.shape)))


def _check(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    info = checkpoint.info(name)
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


def _refuse_missing(checkpoint: Checkpoint, family: Family, dims: Dimensions, found: set[str]) -> None:
    tied = bool(checkpoint.config.get("tie_word_embeddings", family.tied))
    if dims.layers > len(found):
        raise CheckpointError(
            "more layers than tensors",
            where=f"{checkpoint.folder}/config.json[num_hidden_layers]",
            expected=f"at most {len(found)}",
            found=dims.layers,
        )
    missing = [name for name in _required(family, dims, tied=tied) if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"missing tensor{more}", where=checkpoint.folder, expected=missing[0])


def _required(family: Family, dims: Dimensions, *, tied: bool) -> Iterator[str]:
    for rule in family.tensors:
        if not rule.required or (tied and rule.source == OUTPUT):
            continue
        if "{}" not in rule.source:
            yield rule.source
            continue
        for layer in range(dims.layers):
            experts = range(dims.experts if rule.stacked else 1)
            yield from (rule.source.format(layer, expert) for expert in experts)


def describe_unused(family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each setting of config.json that the GGUF file cannot carry."""
    return tuple(
        f"{name} = {config[name]} is not carried over: {meaning}"
        for name, meaning in family.unused.items()
        if config.get(name) is not None
    )
