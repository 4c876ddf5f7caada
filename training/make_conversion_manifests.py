"""Record what llama.cpp's own converter makes of the test checkpoints, as hashes: tests/data/manifests.

    python training/make_conversion_manifests.py LLAMA.CPP/convert_hf_to_gguf.py tests/data/manifests \
        tekken=tests/data/checkpoints/mistral-odd llama-bpe=tests/data/checkpoints/llama-tied \
        default=tests/data/checkpoints/llama-spm

Needs torch, transformers and sentencepiece, as the converter does. Each checkpoint comes with the name of its
splitting rule: the converter recognises vocabularies by a hash of a tokenized text and knows only published
ones, so that one function of it is answered from here. Everything else is the converter's work, read back
with its own gguf-py.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

TYPES = ("f32", "f16", "bf16")
LONGEST_SHOWN = 8


def value_manifest(field: Any) -> dict[str, Any]:
    """Return type and value of a metadata field; long arrays as length and hash of their compact JSON."""
    value = field.contents()
    kinds = [kind.name for kind in field.types]
    entry: dict[str, Any] = {"type": kinds[0]}
    if kinds[0] == "ARRAY":
        entry["item_type"] = kinds[1]
        if len(value) > LONGEST_SHOWN:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            return entry | {"length": len(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return entry | {"value": value}


def manifest(file: Path, reader: Any) -> dict[str, Any]:
    """Return a GGUF file's metadata and tensors as data."""
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return {
        "bytes": file.stat().st_size,
        "metadata": {name: value_manifest(field) for name, field in fields.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.tensor_type.name,
                "shape": [int(n) for n in tensor.shape],
                "sha256": hashlib.sha256(tensor.data.tobytes()).hexdigest(),
            }
            for tensor in reader.tensors
        ],
    }


def convert(converter: Path, folder: Path, kind: str, pre: str, out: Path) -> None:
    """Run the converter in this process, with the splitting rule's name given."""
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: pre
    sys.argv = [str(converter), str(folder), "--outtype", kind, "--outfile", str(out)]
    runpy.run_path(str(converter), run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("converter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="PRE=FOLDER")
    given = parser.parse_args()
    converter = given.converter.resolve()
    sys.path[:0] = [str(converter.parent), str(converter.parent / "gguf-py")]
    gguf = importlib.import_module("gguf")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for model in given.models:
            pre, _, folder = model.partition("=")
            for kind in TYPES:
                name = f"{Path(folder).resolve().name}-{kind}"
                file = Path(temporary) / f"{name}.gguf"
                convert(converter, Path(folder), kind, pre, file)
                facts = {"converter_sha256": hashlib.sha256(converter.read_bytes()).hexdigest()}
                text = json.dumps(facts | manifest(file, gguf.GGUFReader(file)), indent=1, ensure_ascii=False)
                (given.out / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
