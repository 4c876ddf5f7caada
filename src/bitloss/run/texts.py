"""What the results say of the texts, from a base's header and the count of windows shared with the calibration text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitloss.divergence.basefile import TextPart as BaseText
from bitloss.divergence.clusters import ChunkIds, Clusters, clusters_in
from bitloss.model.documents import DocumentCounts
from bitloss.model.text import scored_positions
from bitloss.records import Documents, Overlap, Text, TextPart


class TextRecords(NamedTuple):
    """The texts of a run.

    Attributes:
        text: all of them together.
        parts: each; empty when there is one.
        chunks: indices of the chunks of each of the parts.
    """

    text: Text
    parts: tuple[TextPart, ...] = ()
    chunks: tuple[range, ...] = ()

    def clusters(self, chunk: ChunkIds) -> Clusters:
        """How tokens are drawn, of whose chunks the indices are given, [n]."""
        return clusters_in(chunk, self.text, self.parts)


def text_records(
    header: Mapping[str, Any],
    which: NDArray[np.int64] | None = None,
    overlap: Mapping[str, Any] | None = None,
) -> TextRecords:
    """Describe the texts.

    Args:
        header: of the base (`bitloss.divergence.basefile.BaseHeader` as JSON), of all chunks.
        which: indices of the chunks that were measured; None for all.
        overlap: what `bitloss.run.steps.OverlapStep` found; None without a calibration text.
    """
    texts = [BaseText.model_validate(each) for each in header.get("texts", ())]
    n_ctx, n_chunks = int(header["n_ctx"]), int(header["n_chunks"])
    measured = n_chunks if which is None else len(which)
    scored = header.get("scored_tokens")
    split = header.get("documents")
    text = Text(
        name=header["text"],
        sha256=header["text_sha256"],
        tokens_sha256=header["tokens_sha256"],
        n_ctx=n_ctx,
        chunks=measured,
        scored_tokens=measured * len(scored_positions(n_ctx)) if scored is None else scored,
        add_bos=header["add_bos"],
        documents=_documents(split, texts),
        overlap=_overlap(overlap, slice(None)),
        # chunks drawn at random from all texts are draws from them together
        stratified=len(texts) > 1 and which is None,
    )
    if len(texts) < 2:
        return TextRecords(text)
    ends = np.cumsum([each.chunks for each in texts])
    places = tuple(range(int(end) - each.chunks, int(end)) for each, end in zip(texts, ends, strict=True))
    parts = []
    for i, (each, place) in enumerate(zip(texts, places, strict=True)):
        n = (
            len(place)
            if which is None
            else int(np.count_nonzero((which >= place.start) & (which < place.stop)))
        )
        parts.append(
            TextPart(
                name=each.name,
                sha256=each.sha256,
                tokens_sha256=each.tokens_sha256,
                chunks=n,
                scored_tokens=n * len(scored_positions(n_ctx)) if scored is None else each.scored_tokens,
                documents=_documents(split, [each]),
                overlap=_overlap(overlap, slice(i, i + 1)),
            )
        )
    return TextRecords(text, tuple(parts), places)


def _documents(split: str | None, texts: list[BaseText]) -> Documents | None:
    counts = [each.documents for each in texts if each.documents is not None]
    if split is None or not counts:
        return None
    total = DocumentCounts(*map(sum, zip(*counts, strict=True)))
    known = all(each.document_chunks is not None for each in texts)
    return Documents(
        split=split,
        scored=total.documents,
        cut=total.cut,
        unscored=total.unscored,
        unused=total.unused,
        chunks=tuple(n for each in texts for n in each.document_chunks or ()) if known else (),
    )


def _overlap(found: Mapping[str, Any] | None, which: slice) -> Overlap | None:
    if found is None:
        return None
    texts = found["texts"][which]
    windows, shared = (sum(each[key] for each in texts) for key in ("windows", "shared"))
    return Overlap(
        window=found["window"], windows=windows, shared=shared, share=shared / windows if windows else 0.0
    )
