"""What a person should know of a conversion that was made, beside its files; conversion.json has all of it."""

from __future__ import annotations

from typing import Any


def remarks(record: dict[str, Any]) -> list[str]:
    """Return a line for each cast that changed something, each note, and what was proven.

    Args:
        record: a `bitloss.convert.record.Conversion` as JSON.
    """
    lines = [_cast(record, output) for output in record["outputs"] if (output["casts"] or {}).get("changed")]
    lines += [f"note: {note}" for note in record["notes"]]
    if record["proof"] is not None:
        return [*lines, _proof(record["proof"])]
    compared = all(output["casts"] for output in record["outputs"])  # another converter's files have none
    return [
        *lines,
        f"{'compared with the model, but' if compared else 'not compared,'} not proven (--no-proof)",
    ]


def _cast(record: dict[str, Any], output: dict[str, Any]) -> str:
    casts = output["casts"]
    parts = [
        f"the cast to {output['type'].upper()} changed {casts['changed']:,} of {record['weights']:,} weights"
    ]
    for key, word in (("zeroed", "0"), ("overflowed", "infinite")):
        if casts[key]:
            parts.append(f"{casts[key]:,} became {word}")
    return ", ".join(parts)


def _proof(proof: dict[str, Any]) -> str:
    tensors, tokens = proof["tensors"], proof["tokens"]
    parts = [f"{tensors['used']} tensors accounted for and compared"] if tensors else ["tensors not compared"]
    if tokens:
        parts.append(f"{tokens['texts']} texts of {tokens['tokens']:,} tokens split alike")
        if tokens["known_differences"]:
            parts[-1] += f" ({len(tokens['known_differences'])} of them not, for a known reason)"
    else:
        parts.append("no tokenizer to compare with")
    parts.append(f"finite logits from llama.cpp {proof['llama_cpp']}")
    return f"proven: {', '.join(parts)}"
