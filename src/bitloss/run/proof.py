"""The part of a conversion's proof that needs the engine: tokens and logits of the files, before they are put in place.

Runs in the process of the step (a child process), so that a crash of llama.cpp fails the step and leaves nothing.
What is proven without the engine (accounting, stored bytes) is `bitloss.convert.writing` and `bitloss.convert.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitloss.convert.record import EngineProof, Proof, TokenProof
from bitloss.engine.base import EngineOptions
from bitloss.engine.llama import LlamaEngine, engine_version
from bitloss.errors import CheckpointError, EngineError
from bitloss.model.gguf_split import open_model
from bitloss.model.prooftext import KNOWN_DIFFERENCES, NORMALIZED, PROOF_TEXTS
from bitloss.model.witness import Witness, witness_of
from bitloss.progress import Progress, ProgressCallback

# Computed by each file: the cost is theirs, about 0.1 s a token and GB of F32, the weights are all met by few.
_TOKENS = 4


def prove(model: Path, files: Mapping[str, Path], progress: ProgressCallback) -> Proof:
    """Check that llama.cpp loads each file, splits texts as the model's tokenizer does, and computes finite logits.

    Args:
        model: HF folder the files were made from; anything else has no tokenizer to compare with.
        files: name -> where the file is; of a split one the first part.
        progress: called per file.

    Raises:
        CheckpointError: texts are split otherwise; the first difference is shown.
        EngineError: llama.cpp cannot load a file, or its logits are not finite.
    """
    witness = witness_of(model) if model.is_dir() else None
    tokens: TokenProof | None = None
    computed = []
    for number, (name, path) in enumerate(files.items()):
        progress(Progress("prove", number, len(files), "files"))
        with LlamaEngine(path, EngineOptions(threads=0, ubatch=_TOKENS)) as engine:
            if witness is not None and tokens is None:
                tokens = compare_tokens(
                    engine, witness, open_model(path).text("tokenizer.ggml.pre", "default")
                )
            computed.append(_computed(engine, name))
    progress(Progress("prove", len(files), len(files), "files"))
    return Proof(tensors=None, tokens=tokens, engine=tuple(computed), llama_cpp=str(engine_version()))


def compare_tokens(engine: LlamaEngine, witness: Witness, pre: str) -> TokenProof:
    """Compare the tokens of `PROOF_TEXTS` by the engine's vocabulary and by the model's own tokenizer.

    Args:
        engine: with the vocabulary.
        witness: the model's own tokenizer.
        pre: llama.cpp's name of the splitting rule.

    Raises:
        CheckpointError: they differ for no reason known by name.
    """
    known: list[str] = []
    count = 0
    for part, text in PROOF_TEXTS.items():
        told = witness.encode(text)
        found = _plain(engine, text)
        count += len(told)
        if found == told:
            continue
        reason = KNOWN_DIFFERENCES.get(pre, {}).get(part)
        if reason is None and witness.normalizes and part in NORMALIZED:
            reason = "the model's tokenizer normalises Unicode, llama.cpp does not"
        if reason is None:
            raise _different(part, engine, told, found)
        known.append(f"{part}: {reason}")
    return TokenProof(
        witness=witness.name, texts=len(PROOF_TEXTS), tokens=count, known_differences=tuple(known)
    )


def _plain(engine: LlamaEngine, text: str) -> list[int]:
    """Ids without what the vocabulary puts around a text."""
    ids: list[int] = engine.tokenize(text).tolist()
    facts = engine.facts
    if facts.add_bos and ids[:1] == [facts.bos]:
        ids = ids[1:]
    return ids[:-1] if facts.add_eos else ids


def _different(part: str, engine: LlamaEngine, told: list[int], found: list[int]) -> CheckpointError:
    pairs = zip(told, found, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(told), len(found)))
    before = b"".join(engine.token_text(number) for number in found[max(0, at - 4) : at])
    return CheckpointError(
        f"llama.cpp splits the text {part!r} otherwise than the model's own tokenizer",
        where=f"token {at}, after {before.decode('utf-8', 'replace')!r}",
        expected=told[at : at + 6],
        found=found[at : at + 6],
        mend="the vocabulary is not one llama.cpp can run as it is; --no-proof writes the files all the same",
    )


def _computed(engine: LlamaEngine, name: str) -> EngineProof:
    ids = engine.tokenize(" ".join(PROOF_TEXTS.values()))
    logits = engine.logits(ids[: min(_TOKENS, engine.facts.n_ctx_train)])
    if not np.isfinite(logits).all():
        raise EngineError(
            "the engine's logits are not finite",
            where=name,
            expected=f"{logits.size} finite numbers",
            found=f"{int((~np.isfinite(logits)).sum())} that are not",
            mend="write BF16 or F32 instead of F16; --no-proof writes the files all the same",
        )
    return EngineProof(file=name, logits=logits.size, spread=float(logits.std(dtype=np.float64)))
