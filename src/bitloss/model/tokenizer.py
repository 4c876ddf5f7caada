"""The facts of a byte-level BPE tokenizer.json that a GGUF vocabulary is made of.

llama.cpp has every splitting rule ("pre-tokenizer") built in under a name; a GGUF file only says the name.
Here it is recognised from the rule itself, so a fine-tune with a changed vocabulary keeps it. (llama.cpp's
converter tokenizes a test text and looks its hash up, and refuses any vocabulary it has not seen.)

llama.cpp's rules are its own rewriting of the originals. "tekken" differs from Mistral's: combining marks do
not count as part of a word, and only ASCII capitals start a new one. Texts in Devanagari, Thai or with
decomposed accents are therefore tokenized otherwise than Mistral's library does, from any GGUF file of such a
model.

Left out: SentencePiece is read from `tokenizer.model` (`sentencepiece.py`) or, without that file, from its
tokenizer.json by `fallback.py`. WordPiece and Unigram are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitloss.errors import CheckpointError, UnsupportedError
from bitloss.model.safetensors import read_json

if TYPE_CHECKING:
    from pathlib import Path

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# Splitting steps as `_steps` writes them -> llama.cpp's name. To add one: the steps of its tokenizer.json,
# and a line in the parity test, which tokenizes with llama.cpp under that name and compares.
PRE_TOKENIZERS: Mapping[tuple[str, ...], str] = {
    (
        f"split {_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "bytes",
    ): "tekken",
    (f"split {_CONTRACTIONS}" + r"|\p{N}{1,3}" + _REST, "bytes"): "dbrx",
    (f"split {_CONTRACTIONS}" + r"|\p{N}" + _REST, "bytes"): "qwen2",
    ("bytes by GPT-2's rule",): "gpt-2",
    ("single digits", "bytes by GPT-2's rule"): "smollm",
}


# In llama.cpp a name also says whether a word that is a token is taken whole (`ignore_merges`): name in the table
# above -> name of the same rule with that. Under a name of the other manner words would be split otherwise.
WHOLE_WORDS: Mapping[str, str] = {"tekken": "tekken", "dbrx": "llama-bpe"}
_ALWAYS_WHOLE = frozenset({"tekken"})


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched before the text is split.

    Attributes:
        content: its text. special: a control token. normalized: matched in normalized text.
    """

    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True, slots=True)
class BpeTokenizer:
    """A byte-level BPE vocabulary.

    Attributes:
        pre: llama.cpp's name of the splitting rule.
        tokens: id -> text in byte symbols, added tokens included as they are written.
        added: id -> added token.
        merges: "left right", best first.
        post_processor: tokenizer.json's entry of that name, or an empty mapping.
        ids: text of an added token -> id.
    """

    pre: str
    tokens: Mapping[int, str]
    added: Mapping[int, AddedToken]
    merges: tuple[str, ...]
    post_processor: Mapping[str, Any]
    ids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SpecialRules:
    """What a tokenizer.json says about special tokens, whatever kind of vocabulary it has.

    Attributes:
        post_processor: its entry of that name, or an empty mapping.
        ids: text of an added token -> id.
        added: id -> added token.
    """

    post_processor: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[int, AddedToken]


def read_special_rules(folder: Path) -> SpecialRules:
    """Read the special tokens of `tokenizer.json`; without that file there are none.

    Raises:
        FileProblem: the file is unreadable.
        CheckpointError: it breaks its format.
    """
    path = folder / "tokenizer.json"
    data = read_json(path) if path.is_file() else {}
    return special_rules(data, added_tokens(path, data.get("added_tokens")))


def read_tokenizer(folder: Path) -> BpeTokenizer:
    """Read `tokenizer.json` of an HF folder.

    Raises:
        FileProblem: the file is missing or unreadable.
        CheckpointError: it breaks its format.
        UnsupportedError: no byte-level BPE, or a splitting rule llama.cpp's name of which is not known.
    """
    path = folder / "tokenizer.json"
    data = read_json(path)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        found = model.get("type") if isinstance(model, dict) else model
        raise UnsupportedError(
            "kind of tokenizer that cannot be converted here",
            where=path,
            expected="BPE",
            found=str(found)[:40],
        )
    if model.get("byte_fallback"):
        raise UnsupportedError(
            "SentencePiece vocabulary (byte_fallback) without its tokenizer.model",
            where=path,
            expected="byte-level BPE for this architecture",
            mend="put the model's tokenizer.model beside it",
        )
    decoder = data.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise UnsupportedError("BPE that is not byte-level", where=path, found=str(decoder)[:80])
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedError(f"BPE with {key}", where=path, found=str(model[key])[:40])
    added = added_tokens(path, data.get("added_tokens"))
    rules = special_rules(data, added)
    return BpeTokenizer(
        pre=recognise(data, path),
        tokens=tokens_of(path, model.get("vocab"), added),
        added=added,
        merges=merges_of(path, model.get("merges")),
        post_processor=rules.post_processor,
        ids=rules.ids,
    )


def recognise(data: Mapping[str, Any], where: object) -> str:
    """Return llama.cpp's name of the splitting rule in a parsed tokenizer.json.

    Raises:
        UnsupportedError: the rule is not in `PRE_TOKENIZERS`; the message shows it.
    """
    normalizer = data.get("normalizer")
    # NFC is left to the text, as llama.cpp does for the vocabularies that ask for it.
    if normalizer is not None and not (isinstance(normalizer, dict) and normalizer.get("type") == "NFC"):
        raise UnsupportedError(
            "normalizer that llama.cpp does not have", where=where, found=str(normalizer)[:200]
        )
    steps = tuple(_steps(data.get("pre_tokenizer")))
    if steps not in PRE_TOKENIZERS:
        raise UnsupportedError(
            "splitting rule (pre-tokenizer) whose llama.cpp name is not known",
            where=where,
            found=" ; ".join(steps)[:1500],
            mend="run llama.cpp's convert_hf_to_gguf.py through --converter",
        )
    name = PRE_TOKENIZERS[steps]
    model = data.get("model")
    whole_words = isinstance(model, dict) and model.get("ignore_merges") is True
    if name in _ALWAYS_WHOLE if not whole_words else name not in WHOLE_WORDS:
        raise UnsupportedError(
            f"the rule of llama.cpp's {name} with ignore_merges {str(whole_words).lower()}, which has no name there",
            where=where,
        )
    return WHOLE_WORDS[name] if whole_words else name


def byte_symbols() -> list[str]:
    """Return the character by which byte-level BPE writes each byte 0..255 (GPT-2's table).

    Printable Latin-1 bytes stand for themselves, the others for the characters from U+0100 on, in order.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def written(added: AddedToken) -> str:
    """Return an added token's text as it comes out of encoding and decoding it.

    llama.cpp matches added tokens in the raw text, so those matched un-normalized are written in the form
    they decode to, as its converter does: a text made of byte symbols only is taken for bytes.
    """
    numbers = [_BYTES.get(c) for c in added.content]
    if added.normalized or None in numbers:
        return added.content
    return bytes(number for number in numbers if number is not None).decode("utf-8", errors="replace")


def _steps(entry: Any) -> list[str]:
    """Write a pre_tokenizer entry as a list of words, one per step."""
    if not isinstance(entry, dict):
        return ["none"]
    kind = entry.get("type")
    if kind == "Sequence" and isinstance(entry.get("pretokenizers"), list):
        return [step for each in entry["pretokenizers"] for step in _steps(each)]
    pattern = entry.get("pattern")
    # To keep what the pattern matches, or to split at it, is the same where the pattern matches every character.
    manner = [entry.get("behavior"), bool(entry.get("invert"))]
    if kind == "Split" and isinstance(pattern, dict) and manner in (["Isolated", False], ["Removed", True]):
        return [f"split {pattern.get('Regex')}"]
    if kind == "Digits":
        return ["single digits" if entry.get("individual_digits") else "digits"]
    if kind == "ByteLevel" and not entry.get("add_prefix_space"):
        # Missing means true, in the tokenizers library.
        return ["bytes by GPT-2's rule" if entry.get("use_regex", True) else "bytes"]
    return [str(entry)]


_BYTES = {symbol: number for number, symbol in enumerate(byte_symbols())}


def special_rules(data: Mapping[str, Any], added: Mapping[int, AddedToken]) -> SpecialRules:
    """Return what a parsed tokenizer.json says about special tokens."""
    post = data.get("post_processor")
    return SpecialRules(
        post_processor=post if isinstance(post, dict) else {},
        added=added,
        ids={added[number].content: number for number in sorted(added, reverse=True)},
    )


def added_tokens(path: Path, listed: Any) -> dict[int, AddedToken]:
    """Return id -> added token of a tokenizer.json's `added_tokens`; `CheckpointError` if one is bad."""
    added: dict[int, AddedToken] = {}
    for entry in _list(path, "added_tokens", listed):
        number, content = (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if type(number) is not int or not isinstance(content, str) or number < 0 or number in added:
            raise CheckpointError("bad or repeated added token", where=path, found=str(entry)[:80])
        added[number] = AddedToken(content, bool(entry.get("special")), bool(entry.get("normalized")))
    return dict(sorted(added.items()))


def tokens_of(path: Path, vocab: Any, added: Mapping[int, AddedToken]) -> dict[int, str]:
    """Return id -> text of a vocabulary and the tokens added to it; `CheckpointError` if they contradict."""
    tokens: dict[int, str] = {}
    if not isinstance(vocab, dict):
        raise CheckpointError("no vocabulary", where=f"{path}[model.vocab]")
    following = len(vocab)
    for number, token in added.items():
        if token.content not in vocab:
            # The tokenizers library numbers these itself, whatever the file says.
            if number != following:
                raise CheckpointError(
                    "added token with a number it would not be given",
                    where=f"{path}[{token.content}]",
                    expected=following,
                    found=number,
                )
            following += 1
    for text, number in [*vocab.items(), *((token.content, number) for number, token in added.items())]:
        if type(number) is not int or number < 0 or tokens.setdefault(number, text) != text:
            raise CheckpointError(
                "bad or repeated token id", where=f"{path}[model.vocab]", found=f"{number} for {text!r}"[:80]
            )
    return tokens


def merges_of(path: Path, listed: Any, separator: str = " ") -> tuple[str, ...]:
    """Return merges as "left right"; both of tokenizer.json's forms are read.

    A space inside a part would be taken for the separator; byte symbols write it as U+0120.
    """
    merges: list[str] = []
    for entry in _list(path, "model.merges", listed):
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            merges.append(separator.join(part.replace(separator, "Ġ") for part in entry))
        elif isinstance(entry, str) and " " in entry:
            merges.append(entry.replace(" ", separator))
        else:
            raise CheckpointError("bad merge", where=f"{path}[model.merges]", found=str(entry)[:80])
    return tuple(merges)


def _list(path: Path, key: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise CheckpointError("not a JSON list", where=f"{path}[{key}]", found=str(value)[:60])
    return value
