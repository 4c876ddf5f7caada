"""The numbers of config.json: read, checked against each other and against what llama.cpp's graph takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitloss.errors import CheckpointError, UnsupportedError
from bitloss.model.gguf import GgufType, GgufValue

if TYPE_CHECKING:
    from bitloss.convert.families import Family

_MOST = 1 << 31
_MOST_EXPERTS = 512  # LLAMA_MAX_EXPERTS


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The numbers that shapes are made of.

    Attributes:
        words: name used in the tables -> number: vocab, embd, ff, head, q, kv, experts, ff_expert, ...
        layers: blocks. n_head: query heads. n_head_kv: key/value heads. head: width of a head.
        experts: experts per layer, 0 for none.
    """

    words: Mapping[str, int]
    layers: int
    n_head: int
    n_head_kv: int
    head: int
    experts: int

    def resolve(self, shape: tuple[str, ...]) -> tuple[int, ...]:
        """Return a rule's shape in numbers."""
        return tuple(self.words[word] for word in shape)


def settings(family: Family, config: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the family's settings by their names in config.json, checked, defaults put in.

    Raises:
        CheckpointError: a required setting is missing, or a value makes no sense.
        UnsupportedError: a setting that llama.cpp's graph of the family does not follow.
    """
    for need in family.needs:
        if not need.agrees(config):
            raise UnsupportedError(
                f"a setting llama.cpp's {family.gguf} graph does not follow ({need.why})",
                where=f"config.json[{need.config}]",
                found=str(config.get(need.config))[:60],
            )
    found: dict[str, int | float] = {}
    value: Any
    for hyper in family.hyperparameters:
        if hyper.config in found:
            continue
        value = config.get(hyper.config)
        if value is None and hyper.also is not None:
            value = config.get(hyper.also)
        if hyper.optional and value in (None, 0):
            continue
        if value is None:
            value = found[hyper.default] if isinstance(hyper.default, str) else hyper.default
        kinds = (int,) if hyper.kind == "int" else (int, float)
        least = 0 if hyper.zero else 1e-30
        if value is None or type(value) not in kinds or not least <= value < _MOST:
            raise CheckpointError(
                "bad or missing setting",
                where=f"config.json[{hyper.config}]",
                expected=f"{'0 or ' if hyper.zero else ''}a positive {'whole ' if hyper.kind == 'int' else ''}number",
                found="nothing" if value is None else repr(value)[:40],
                mend="fetch the model's settings again",
            )
        found[hyper.config] = value
    return found


def setting_keys(family: Family, found: Mapping[str, int | float]) -> dict[str, GgufValue]:
    """Return the GGUF keys, without the architecture, that carry the settings."""
    kinds = {"int": GgufType.UINT32, "float": GgufType.FLOAT32}
    return {
        hyper.key: GgufValue(kinds[hyper.kind], found[hyper.config])
        for hyper in family.hyperparameters
        if hyper.key and hyper.config in found
    }


def head_keys(family: Family, config: Mapping[str, Any], head: int) -> dict[str, GgufValue]:
    """Return the keys of a head's width, where the family writes them."""
    given = config.get("head_dim") is not None
    if family.head_keys == "never" or (family.head_keys == "given" and not given):
        return {}
    width = GgufValue(GgufType.UINT32, head)
    return {"attention.key_length": width, "attention.value_length": width}


def dimensions(family: Family, config: Mapping[str, Any], found: Mapping[str, int | float]) -> Dimensions:
    """Return the dimensions of a model from its config.json and checked `settings`.

    Raises:
        CheckpointError: heads that do not fit the width or each other, or more experts used than there are.
    """
    number = {name: int(value) for name, value in found.items()}
    n_head, n_head_kv = number["num_attention_heads"], number["num_key_value_heads"]
    width = number["hidden_size"]
    head = _head_width(family, config, width, n_head)
    if n_head % n_head_kv:
        raise CheckpointError(
            "heads do not share key/value heads evenly",
            where="config.json[num_key_value_heads]",
            expected=f"a divisor of {n_head}",
            found=n_head_kv,
        )
    experts = number.get("num_local_experts", number.get("num_experts", 0))
    used = number.get("num_experts_per_tok", 0)
    if experts > _MOST_EXPERTS or used > experts:
        raise CheckpointError(
            "bad number of experts",
            where="config.json[num_experts_per_tok]",
            expected=f"at most {min(experts, _MOST_EXPERTS)}",
            found=max(used, experts) if experts > _MOST_EXPERTS else used,
        )
    q, kv, ff = n_head * head, n_head_kv * head, number["intermediate_size"]
    words = {"vocab": number["vocab_size"], "embd": width, "ff": ff, "2ff": 2 * ff, "head": head, "one": 1}
    words |= {"q": q, "kv": kv, "q+2kv": q + 2 * kv, "experts": experts}
    words |= {
        "ff_expert": number.get("moe_intermediate_size", 0),
        "ff_shared": number.get("shared_expert_intermediate_size", 0),
    }
    return Dimensions(words, number["num_hidden_layers"], n_head, n_head_kv, head, experts)


def _head_width(family: Family, config: Mapping[str, Any], width: int, n_head: int) -> int:
    head = config.get("head_dim")
    if head is None:
        head = family.head_default
    if head is None:
        if width % n_head:
            raise CheckpointError(
                "hidden_size is no multiple of the heads",
                where="config.json",
                expected=f"x {n_head}",
                found=width,
            )
        head = width // n_head
    if type(head) is not int or not 0 < head < 1 << 16 or head % 2:
        raise CheckpointError(
            "bad head width",
            where="config.json[head_dim]",
            expected="a positive even number",
            found=repr(head)[:40],
        )
    return head
