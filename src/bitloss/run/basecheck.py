"""Whether a stored base fits what is measured against it: another model, text, n_ctx or engine, each by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import llama_cpp

from bitloss.divergence.basefile import BaseHeader
from bitloss.divergence.basewrite import arithmetic
from bitloss.engine.base import EngineOptions
from bitloss.engine.llama import engine_version
from bitloss.errors import MismatchError
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model
from bitloss.run.steps import engine_options
from bitloss.spec import EngineSpec
from bitloss.store import sha256_file

_SHAPE = ("embedding_length", "block_count")


class Wanted(NamedTuple):
    """What was asked for beside a base that is there already; None where nothing was said.

    Attributes:
        texts: the files of the text.
        n_ctx: tokens in a chunk.
        documents: how the texts are split.
        engine: how candidates will be computed.
    """

    texts: Sequence[Path] = ()
    n_ctx: int | None = None
    documents: str | None = None
    engine: EngineSpec | None = None


def check_base(
    header: BaseHeader | None,
    model: Path,
    candidates: Mapping[Path, GgufFile],
    wanted: Wanted,
    *,
    where: Path,
    force: bool,
) -> tuple[str, ...]:
    """Refuse a base made from something else than what is measured.

    Args:
        header: of the base; None when it is only about to be made.
        model: the base's GGUF file.
        candidates: what is to be measured.
        wanted: what was asked for.
        where: the base's folder.
        force: accept the differences, and return them.

    Returns:
        The differences, each in words; empty when all is the same.

    Raises:
        MismatchError: there are some, and ``force`` is not given.
    """
    settings = _settings(header, wanted) if header else ()
    found = (*settings, *model_differences(open_model(model), candidates))
    if found and not force:
        raise MismatchError(
            "the base was made from something else than what is measured",
            where=where,
            found="; ".join(found),
            mend="make a base that fits with `bitloss base`, or accept the difference with --force",
        )
    return found


def _settings(header: BaseHeader, wanted: Wanted) -> list[str]:
    found = []
    if header.engine != engine_version():
        found.append(f"engine build: base by {header.engine}, candidates by {engine_version()}")
    if wanted.n_ctx is not None and wanted.n_ctx != header.n_ctx:
        found.append(f"n_ctx: base {header.n_ctx}, asked for {wanted.n_ctx}")
    if wanted.documents is not None and wanted.documents != header.documents:
        found.append(f"documents: base {header.documents or 'none'}, asked for {wanted.documents}")
    if wanted.engine is not None:
        asked = _as_computed(arithmetic(engine_options(wanted.engine)), header.n_ctx)
        for name, theirs in _as_computed(header.options, header.n_ctx).items():
            if theirs != asked[name]:
                found.append(f"{name}: base {theirs}, asked for {asked[name]}")
    texts = [text.sha256 for text in header.texts] or [header.text_sha256]
    if wanted.texts and [sha256_file(path) for path in wanted.texts] != texts:
        found.append(f"text: base {header.text}, asked for {' + '.join(path.name for path in wanted.texts)}")
    return found


def _as_computed(options: Mapping[str, str | int], n_ctx: int) -> dict[str, str | int]:
    """What of a base's engine settings decides how numbers are rounded, by the names of the options."""
    batch, ubatch = int(options["batch"]), int(options["ubatch"])
    together = EngineOptions(batch=batch, ubatch=ubatch).side_by_side(n_ctx)
    return {
        "--flash-attn": options["flash_attn"],
        "--ubatch-size": ubatch,
        "--batch-size (chunks side by side)": together,
        "--gpu-layers": options["n_gpu_layers"] if llama_cpp.llama_supports_gpu_offload() else 0,
    }


def model_differences(base: GgufFile, candidates: Mapping[Path, GgufFile]) -> list[str]:
    """Say which candidates are no versions of the base's model: another architecture, width or number of layers."""
    found = []
    for path, file in candidates.items():
        pairs = [("architecture", base.architecture, file.architecture)]
        if base.architecture == file.architecture:
            keys = [(name, f"{base.architecture}.{name}") for name in _SHAPE]
            pairs += [(name, base.value(key, None), file.value(key, None)) for name, key in keys]
        found += [
            f"model: {name} of the base {theirs}, of {path.name} {mine}"
            for name, theirs, mine in pairs
            if theirs != mine
        ]
    return found
