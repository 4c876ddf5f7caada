"""Which tokens are drawn together: clusters of tokens, and the texts (strata) the clusters are of.

**Clusters.** Tokens that share a context are correlated, so what counts as an independent draw is a chunk of a long
text, and a document or conversation where the text is made of those: the overlapping windows of a long document are one
cluster. Clusters differ in size. A mean over tokens is then a ratio of two sums over clusters, and with ψ_i the
influence of token i (see ``statistics``), n tokens and G clusters

    se² = G/(G-1) · Σ_g (Σ_{i in g} ψ_i)² / n²

is the ratio estimator's variance by linearization (Liang & Zeger 1986; Cochran, Sampling Techniques, 3rd ed. 1977,
section 9A.1). Tests and intervals are Student's t with G - 1 degrees of freedom.

**Strata.** A figure of several texts together is of these very texts: how far apart they are is no chance. So the
texts are strata, residuals are about each text's own mean, and their variances add up (Cochran, ch. 5):

    se² = Σ_h G_h/(G_h-1) · Σ_{g in h} (Σ_{i in g} (ψ_i - ψ̄_h))² / n²

with ψ̄_h the mean of ψ over the tokens of text h, which has G_h clusters. Its share of the tokens is taken as fixed.
Degrees of freedom are G less the number of texts. One text gives the formula above, bit for bit. Where nearly all of
the variance is that of a text with a handful of clusters, this is too many, and intervals are somewhat short: with 30
chunks of one text and 4 of another whose spread is five times as large, those for 95 % cover 91 %.

**Too few.** Below 9 degrees of freedom (one text: 10 clusters) there is no clustered error, because it would be biased
low (Cameron & Miller 2015, section VI); of several texts, none either where one has a single cluster, from which its
variance cannot be told.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from bitloss.display import many
from bitloss.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitloss.records import Text, TextPart

ChunkIds = npt.NDArray[np.integer]
_Index = npt.NDArray[np.intp]

MIN_CLUSTERS: Final = 10
"""Clusters of one text below which there is no clustered error."""


class Clusters(NamedTuple):
    """How n tokens are drawn.

    Attributes:
        of_token: cluster of each token, 0..total-1, [n].
        total: number of clusters.
        noun: what a cluster is: chunk, document, conversation.
        text_of_token: text of each token, 0..texts-1, [n]; None for one text.
        texts: number of texts.
    """

    of_token: _Index
    total: int
    noun: str = "chunk"
    text_of_token: _Index | None = None
    texts: int = 1

    @classmethod
    def of(cls, ids: ChunkIds, *, texts: ChunkIds | None = None, noun: str = "chunk") -> Self:
        """Number clusters and texts.

        Args:
            ids: integer [n], the cluster of each token; no cluster is of two texts.
            texts: integer [n], the text of each token; None for one text.
            noun: what a cluster is.

        Raises:
            MismatchError: not of one length.
        """
        _, index = np.unique(ids, return_inverse=True)
        total = int(index.max()) + 1 if len(index) else 0
        if texts is None:
            return cls(index, total, noun)
        if texts.shape != ids.shape:
            raise MismatchError("texts do not fit the tokens", expected=ids.shape, found=texts.shape)
        names, text = np.unique(texts, return_inverse=True)
        return cls(index, total, noun, text if len(names) > 1 else None, max(1, len(names)))

    @classmethod
    def fitting(cls, clusters: Clusters | ChunkIds, n: int) -> Clusters:
        """Take clusters as they are, or chunk ids [n] of one text.

        Raises:
            MismatchError: not of n tokens.
        """
        found = clusters.of_token if isinstance(clusters, Clusters) else clusters
        if found.shape != (n,):
            raise MismatchError("chunk ids do not fit the tokens", expected=(n,), found=found.shape)
        return clusters if isinstance(clusters, Clusters) else cls.of(clusters)

    def pick(self, rows: npt.NDArray[np.integer]) -> Clusters:
        """Clusters of some of the tokens."""
        texts = None if self.text_of_token is None else self.text_of_token[rows]
        return Clusters.of(self.of_token[rows], texts=texts, noun=self.noun)

    @property
    def fewest(self) -> int:
        """Clusters of the text that has the fewest."""
        return self.total if self.text_of_token is None else int(self._by_text()[1].min())

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the clustered error."""
        return self.total - self.texts

    @property
    def missing(self) -> str | None:
        """Why there is no clustered error; None where there is one."""
        least = MIN_CLUSTERS - 1 + self.texts
        if self.total < least:
            found = many(self.total, self.noun) + (f" of {self.texts} texts" if self.texts > 1 else "")
            return f"{found}, at least {least} needed"
        if self.fewest < 2:
            return f"a text with a single {self.noun}, at least 2 of each text needed"
        return None

    def error(self, influence: npt.NDArray[np.float64]) -> float:
        """Clustered standard error of a figure with influence ψ [n]; `missing` must be None."""
        n = len(influence)
        if self.text_of_token is None:
            sums = np.bincount(self.of_token, weights=influence, minlength=self.total)
            return math.sqrt(self.total / (self.total - 1) * float(np.sum(sums * sums))) / n
        text = self.text_of_token
        means = np.bincount(text, weights=influence) / np.bincount(text)
        sums = np.bincount(self.of_token, weights=influence - means[text], minlength=self.total)
        text_of_cluster, counts = self._by_text()
        squares = np.bincount(text_of_cluster, weights=sums * sums)
        return math.sqrt(float(np.sum(counts / (counts - 1) * squares))) / n

    def _by_text(self) -> tuple[_Index, _Index]:
        """Text of each cluster [total], and clusters of each text [texts]."""
        assert self.text_of_token is not None
        of_cluster = np.empty(self.total, np.intp)
        of_cluster[self.of_token] = self.text_of_token
        return of_cluster, np.bincount(of_cluster, minlength=self.texts)


def clusters_of_chunks(
    chunk: ChunkIds, *, texts: Sequence[int] = (), documents: Sequence[int] = (), noun: str = "document"
) -> Clusters:
    """Cluster tokens by what their chunks are of.

    Args:
        chunk: integer [n], the chunk of each token, its index among those of all texts.
        texts: number of chunks of each text, in order, where texts are strata.
        documents: number of chunks of each document, in order; empty to cluster by chunk.
        noun: what a document is.

    Raises:
        MismatchError: a chunk is of none of them.
    """
    for each in (texts, documents):
        if each and len(chunk) and not 0 <= int(chunk.min()) <= int(chunk.max()) < sum(each):
            raise MismatchError(
                "chunks that are not of the text",
                expected=f"0 .. {sum(each) - 1}",
                found=f"{chunk.min()} .. {chunk.max()}",
            )
    of_text = np.repeat(np.arange(len(texts)), texts)[chunk] if len(texts) > 1 else None
    if not documents:
        return Clusters.of(chunk, texts=of_text)
    return Clusters.of(np.repeat(np.arange(len(documents)), documents)[chunk], texts=of_text, noun=noun)


def clusters_in(chunk: ChunkIds, text: Text, texts: Sequence[TextPart]) -> Clusters:
    """Cluster the tokens of a run as its results say of its text, and the texts it consists of.

    Args:
        chunk: integer [n], the chunk of each token.
        text: all of the texts.
        texts: each; empty when there is one.

    Raises:
        MismatchError: a chunk is not of the text.
    """
    return clusters_of_chunks(
        chunk,
        texts=[each.chunks for each in texts] if text.stratified else (),
        documents=text.documents.chunks if text.documents else (),
        noun=text.cluster,
    )
