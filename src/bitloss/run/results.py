"""From what the steps left to ``results.json``: figures, comparisons, findings."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitloss.display import visible
from bitloss.divergence.clusters import Clusters
from bitloss.divergence.comparison import Pair, compare_all, table_pairs
from bitloss.divergence.measure import TokenTable, read_tokens
from bitloss.divergence.statistics import summarize
from bitloss.divergence.stopping import chunk_order, compare_all_anytime, same_files, table_size
from bitloss.errors import RecordError
from bitloss.explain.findings import findings
from bitloss.model.gguf import GgufValue
from bitloss.model.gguf_split import open_model
from bitloss.records import (
    Audit,
    Base,
    Calibration,
    Candidate,
    Comparison,
    Cost,
    Cross,
    Importance,
    KeyDifference,
    Metrics,
    Model,
    NoiseFloor,
    Results,
    Sensitivity,
    Source,
    Stopping,
    TensorError,
    Text,
)
from bitloss.run.machine import this_llama_cpp, this_machine
from bitloss.run.noise import NOISE_SEED
from bitloss.run.texts import TextRecords


class MeasuredFile(NamedTuple):
    """A candidate with its per-token results.

    Attributes:
        name: as in the table.
        type: quantization type.
        weights_from: source of the weights, or None when not known.
        imatrix_from: source of the importance matrix, or None.
        file: name of the file.
        bytes: its size.
        bits_per_weight: of its tensors.
        sha256: of the file.
        tensors_sha256: of its tensors.
        tokens: Parquet of per-token metrics (shared by candidates with equal tensors).
        path: where the file is, to look into its metadata; None where that is not wanted.
        tensor_errors: how far its tensors are from the source's; empty where that was not asked for.
        importance: what its importance matrix leaves open; None without one, or when not known.
    """

    name: str
    type: str
    weights_from: str | None
    imatrix_from: str | None
    file: str
    bytes: int
    bits_per_weight: float
    sha256: str
    tensors_sha256: str
    tokens: Path
    path: Path | None = None
    tensor_errors: tuple[TensorError, ...] = ()
    importance: Importance | None = None


class Setting(NamedTuple):
    """What the candidates have in common.

    Attributes:
        model: the model the user named.
        texts: the evaluation text, or texts.
        calibration: the calibration text, or None.
        base: what candidates are measured against.
        sources: the full-precision files of the run.
        n_gpu_layers: layers kept on the GPU.
        commands: commands that repeat the run.
        stopping: the rule measuring stopped by; None when the whole text was to be measured.
    """

    model: Model
    texts: TextRecords
    calibration: Calibration | None
    base: Base
    sources: tuple[Source, ...]
    n_gpu_layers: int
    commands: tuple[str, ...]
    stopping: Stopping | None = None


class Why(NamedTuple):
    """What was looked into beside the measurements.

    Attributes:
        audit: what the model's weights would lose; of its tensors the counts, not the exponents.
        cross: what makes routes differ.
        sensitivity: groups of tensors raised one at a time; made when the comparisons are.
        pairs: what to compare; every pair of the table when None.
    """

    audit: Audit | None = None
    cross: Cross | None = None
    sensitivity: Callable[[Results, Mapping[str, TokenTable], Clusters], Sensitivity] | None = None
    pairs: tuple[Pair, ...] | None = None


NOTHING_ELSE = Why()


def assemble(
    setting: Setting,
    files: Sequence[MeasuredFile],
    *,
    noise: tuple[str, Path] | None,
    costs: Sequence[Cost],
    why: Why = NOTHING_ELSE,
) -> Results:
    """Summarize, compare and explain.

    Args:
        setting: what the candidates have in common.
        files: candidates in the order of the table.
        noise: how the noise floor was made, and its per-token results.
        costs: of every step.
        why: what was looked into beside.

    Raises:
        RecordError: a file of per-token results is damaged, or not of this text.
    """
    tables = {path: _read(path, setting.texts.text) for path in {file.tokens for file in files}}
    texts = setting.texts
    figures = {path: _metrics(table, texts.clusters(table.chunk)) for path, table in tables.items()}
    by_text = {path: _by_text(table, texts) for path, table in tables.items()}
    candidates = _candidates(files, figures, by_text)
    floor = None
    if noise is not None:
        floor = _noise_floor(*noise, texts)
    results = Results(
        bitloss=importlib.metadata.version("bitloss"),
        llama_cpp=this_llama_cpp(),
        machine=this_machine(n_gpu_layers=setting.n_gpu_layers),
        model=setting.model,
        text=setting.texts.text,
        texts=setting.texts.parts,
        calibration=setting.calibration,
        base=setting.base,
        sources=setting.sources,
        stopping=setting.stopping,
        noise_floor=floor,
        candidates=tuple(candidates),
        comparisons=tuple(
            _comparisons(files, tables, why.pairs, texts, anytime=setting.stopping is not None)
        ),
        audit=_without_exponents(why.audit),
        cross=why.cross,
        findings=(),
        costs=tuple(costs),
        commands=setting.commands,
    )
    if why.sensitivity is not None:
        named = {file.name: tables[file.tokens] for file in files}
        told = why.sensitivity(results, named, texts.clusters(tables[files[0].tokens].chunk))
        results = results.model_copy(update={"sensitivity": told})
    return results.model_copy(update={"findings": findings(results)})


def _noise_floor(how: str, path: Path, texts: TextRecords) -> NoiseFloor:
    table, _ = read_tokens(path)
    few, whole = len(np.unique(table.chunk)), texts.text.chunks
    clusters = texts.clusters(table.chunk)
    if few < whole:
        how = f"{how}, on {few:,} of its {whole:,} chunks drawn at random"
        # drawn from all texts together, so these are no strata
        drawn = texts.text.model_copy(update={"stratified": False})
        clusters = TextRecords(drawn).clusters(chunk_order(whole, NOISE_SEED)[table.chunk])
    return NoiseFloor(how=how, metrics=_metrics(table, clusters))


def _without_exponents(audit: Audit | None) -> Audit | None:
    """Leave the histograms of single tensors out: there may be hundreds, and the model's is kept."""
    if audit is None:
        return None
    bare = {"exponents": (), "lowest_exponent": None}
    tensors = tuple(
        each.model_copy(update={"weights": each.weights.model_copy(update=bare)}) if each.weights else each
        for each in audit.tensors
    )
    return audit.model_copy(update={"tensors": tensors})


def _read(path: Path, text: Text) -> TokenTable:
    table, _ = read_tokens(path)
    if len(table) != text.scored_tokens:
        raise RecordError(
            "per-token results of another text",
            where=path,
            expected=f"{text.scored_tokens} tokens",
            found=len(table),
            mend="measure the candidate again",
        )
    return table


def _metrics(table: TokenTable, clusters: Clusters) -> Metrics:
    return dict(summarize(table.metrics, clusters))


def _by_text(table: TokenTable, texts: TextRecords) -> tuple[Metrics, ...]:
    parts = [table.of_chunks(place.start, place.stop) for place in texts.chunks]
    return tuple(_metrics(part, texts.clusters(part.chunk)) for part in parts)


def _candidates(
    files: Sequence[MeasuredFile],
    figures: Mapping[Path, Metrics],
    by_text: Mapping[Path, tuple[Metrics, ...]],
) -> list[Candidate]:
    first: dict[tuple[str, Path], MeasuredFile] = {}
    made = []
    for file in files:
        # equal tensors under other hyperparameters are measured apart, and are not called identical
        twin = first.setdefault((file.tensors_sha256, file.tokens), file)
        made.append(
            Candidate(
                name=file.name,
                type=file.type,
                weights_from=file.weights_from,
                imatrix_from=file.imatrix_from,
                file=file.file,
                bytes=file.bytes,
                bits_per_weight=file.bits_per_weight,
                sha256=file.sha256,
                tensors_sha256=file.tensors_sha256,
                identical_to=None if twin is file else twin.name,
                keys_differ=None if twin is file else _keys_differ(file, twin),
                metrics=figures[file.tokens],
                by_text=by_text[file.tokens],
                tokens=file.tokens.name,
                tensor_errors=file.tensor_errors,
                importance=file.importance,
            )
        )
    return made


def _pairs(files: Sequence[MeasuredFile], measured_as: Mapping[str, Path]) -> tuple[Pair, ...]:
    """Every pair of the table but those of twins one of which was only made to be crossed."""
    crossed = {file.name for file in files if file.imatrix_from not in {None, file.weights_from}}
    return tuple(
        pair
        for pair in table_pairs(measured_as)
        if measured_as[pair.a] != measured_as[pair.b] or not crossed & {pair.a, pair.b}
    )


_SHORT_VALUE = 60
"""Characters up to which a metadata value is kept where two files differ in it."""


def _keys_differ(file: MeasuredFile, twin: MeasuredFile) -> tuple[KeyDifference, ...] | None:
    """Metadata keys whose bytes differ, in the order of the file, then those only the twin has."""
    if file.path is None or twin.path is None:
        return None
    own, other = open_model(file.path), open_model(twin.path)
    found = []
    for key in dict.fromkeys([*own.metadata, *other.metadata]):
        mine = own.key_bytes(key) if key in own.metadata else b""
        theirs = other.key_bytes(key) if key in other.metadata else b""
        if mine != theirs:
            value, twin_value = _short(own.metadata.get(key)), _short(other.metadata.get(key))
            long = (mine and value is None) or (theirs and twin_value is None)
            found.append(
                KeyDifference(
                    key=key,
                    bytes=len(mine),
                    twin_bytes=len(theirs),
                    value=None if long else value,
                    twin_value=None if long else twin_value,
                )
            )
    return tuple(found)


def _short(entry: GgufValue | None) -> str | None:
    """A scalar or short text as a person reads it; None for arrays and long texts."""
    if entry is None or entry.item_type is not None:
        return None
    shown = visible(str(entry.value), _SHORT_VALUE + 1)
    return shown if len(shown) <= _SHORT_VALUE else None


def _comparisons(
    files: Sequence[MeasuredFile],
    tables: Mapping[Path, TokenTable],
    wanted: tuple[Pair, ...] | None,
    texts: TextRecords,
    *,
    anytime: bool,
) -> list[Comparison]:
    """Compare the pairs of the table, Holm-adjusted over all of them; valid at any time if asked for."""
    tokens = {file.name: tables[file.tokens].metrics for file in files}
    measured_as = {file.name: file.tokens for file in files}
    pairs = _pairs(files, measured_as) if wanted is None else wanted
    if not pairs:
        return []
    chunks: NDArray[np.int32] = tables[files[0].tokens].chunk
    if anytime:
        family = table_size(pairs, same_files(pairs, measured_as))
        rows = compare_all_anytime(tokens, pairs, chunks, family=family)
    else:
        rows = compare_all(tokens, pairs, texts.clusters(chunks))
    return [
        Comparison(
            a=pair.a,
            b=pair.b,
            metric=metric.value,
            difference=row.difference,
            ci95=row.ci95,
            p_value=row.p_value,
            p_holm=row.p_holm,
            verdict=row.verdict,
            reason=row.reason,
        )
        for (pair, metric), row in rows.items()
    ]
