"""Special tokens and chat templates of an HF folder, as llama.cpp's converter reads them.

Follows `SpecialVocab` in `gguf-py/gguf/vocab.py` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitloss.errors import CheckpointError
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.safetensors import read_json

if TYPE_CHECKING:
    from bitloss.model.checkpoint import Checkpoint
    from bitloss.model.tokenizer import BpeTokenizer, SpecialRules

SPECIALS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # the key's own spelling
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
}
"""Kind of special token -> the key its id is written under."""


def special_tokens(
    rules: SpecialRules | BpeTokenizer, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, bool]]:
    """Return (kind -> id, kind -> is it added to every text).

    Names come from tokenizer_config.json and count if they are added tokens, else the id comes from
    config.json. What the post-processor puts around a text decides over `add_bos_token` and `add_eos_token`.
    """
    names = {kind: _content(tokenizer_config.get(f"{kind}_token")) for kind in SPECIALS}
    kinds = [kind for kind in SPECIALS if kind != "eot"]
    names["bos"], names["eos"] = names["bos"] or names["cls"], names["eos"] or names["sep"]
    adds: dict[str, bool] = {}
    for step in _post_steps(rules.post_processor):
        if step.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        if step.get("type") == "TemplateProcessing":
            first, last = _around(step.get("single"))
            if first is not None:
                names["bos"] = names["bos"] or first
                adds["bos"] = first in {names["bos"], names["cls"]}
            if last is not None:
                if tokenizer_config and last != names["eos"]:
                    # The model ends a turn with one token and a text with another.
                    kinds.append("eot")
                    names["eot"] = names["eos"]
                names["eos"] = last
                adds["eos"] = True
            if step.get("pair"):
                adds["sep"] = _separates(step["pair"], first, last, {names["sep"], names["eos"]})
    ids: dict[str, int] = {}
    for kind in kinds:
        flag = tokenizer_config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            adds.setdefault(kind, flag)
        name = names[kind]
        number = rules.ids.get(name) if name and tokenizer_config else None
        if number is None:
            number = config.get(f"{kind}_token_id")
        if type(number) is int and number >= 0:
            ids[kind] = number
    return ids, adds


def optional_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder that may be missing."""
    path = checkpoint.folder / name
    return read_json(path) if path.is_file() else {}


def _content(entry: Any) -> str | None:
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _post_steps(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    steps = entry.get("processors", [entry])
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _special(item: Any) -> str | None:
    special = item.get("SpecialToken") if isinstance(item, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return name if isinstance(name, str) else None


def _around(template: Any) -> tuple[str | None, str | None]:
    """Return the special tokens a template puts before and after a text."""
    if not isinstance(template, list) or len(template) < 2:
        return None, None
    return _special(template[0]), _special(template[-1])


def _separates(pair: Any, first: str | None, last: str | None, separators: set[str | None]) -> bool:
    """Whether a template puts a separator between two texts."""
    if not isinstance(pair, list):
        return False
    items: Sequence[Any] = pair
    if items and first is not None and _special(items[0]) == first:
        items = items[1:]
    if items and last is not None and _special(items[-1]) == last:
        items = items[:-1]
    between = [_special(item) for item in items[1:-1]]
    if len(between) == 2 and between[1] in separators - {None}:
        return True
    return bool(between) and last is None and between[0] in separators - {None}


def templates(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, GgufValue]:
    """Return the chat template keys; tokenizer_config.json goes before chat_template.jinja and .json."""
    template = config.get("chat_template")
    path = checkpoint.folder / "chat_template.jinja"
    if template is None and config and path.is_file():
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot be read ({error})", where=path) from None
    if template is None and config:
        template = optional_json(checkpoint, "chat_template.json").get("chat_template")
    named: dict[str, str] = {}
    if isinstance(template, str):
        named["default"] = template
    elif isinstance(template, list):
        for entry in template:
            if (
                isinstance(entry, dict)
                and isinstance(entry.get("template"), str)
                and isinstance(entry.get("name"), str)
            ):
                name = "".join(c if c.isascii() and c.isalnum() else "_" for c in entry["name"])
                named[name] = entry["template"]
    keys = {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): GgufValue(
            GgufType.STRING, text
        )
        for name, text in named.items()
        if name and text
    }
    others = sorted(name for name in named if name != "default")
    if others:
        keys["tokenizer.chat_templates"] = GgufValue(GgufType.ARRAY, others, GgufType.STRING)
    return keys
