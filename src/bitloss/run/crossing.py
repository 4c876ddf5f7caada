"""What a run that crosses weights and importance matrices says of them: blocks, KLD, and the matrices themselves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bitloss.display import many
from bitloss.divergence.factorial import Cells, attribute
from bitloss.divergence.measure import TokenTable, read_tokens
from bitloss.explain.crossed import nothing_differs
from bitloss.imatrix.file import read_imatrix
from bitloss.imatrix.likeness import likeness
from bitloss.records.cross import (
    Attribution,
    Blocks,
    Cross,
    CrossedTensor,
    ImatrixHalves,
    ImatrixPair,
    Likeness,
)
from bitloss.run.quantizing import CandidateFile
from bitloss.run.stepping import Stepper
from bitloss.run.steps import BlocksStep
from bitloss.run.texts import TextRecords
from bitloss.store import StepRecord


class Square(NamedTuple):
    """The four files of two routes to one type: weights' source first, importance matrix's source second."""

    aa: CandidateFile
    ba: CandidateFile
    ab: CandidateFile
    bb: CandidateFile


class Compared(NamedTuple):
    """A square, and the blocks and values in which its files differ."""

    square: Square
    blocks: Blocks
    values: Blocks
    tensors: tuple[CrossedTensor, ...]


def squares(candidates: Sequence[CandidateFile]) -> list[Square]:
    """Every pair of sources of every type whose four files are there, in the order of the table."""
    cells = {(each.type, each.source.name, each.imatrix_from): each for each in candidates}
    sources = list(dict.fromkeys(each.source.name for each in candidates))
    found = []
    for kind in dict.fromkeys(each.type for each in candidates):
        for a, b in itertools.combinations(sources, 2):
            four = [cells.get((kind, w, i)) for i in (a, b) for w in (a, b)]
            if all(four):
                found.append(Square(*(each for each in four if each is not None)))
    return found


def compare_squares(candidates: Sequence[CandidateFile], folder: Path, steps: Stepper) -> list[Compared]:
    """Count differing blocks of every square; files with equal tensors are not looked into.

    Raises:
        BitlossError: a file cannot be read.
    """
    compared = []
    for square in squares(candidates):
        hashes = [str(each.made["tensors_sha256"]) for each in square]
        if len(set(hashes)) == 1:
            compared.append(Compared(square, *nothing_differs(square.aa.file)))
            continue
        a, b = square.aa.source.name, square.bb.source.name
        step = BlocksStep(
            files=(square.aa.file, square.ba.file, square.ab.file, square.bb.file),
            tensors_sha256=(hashes[0], hashes[1], hashes[2], hashes[3]),
            out=folder / "cross" / f"{square.aa.type}-{a}-{b}.json",
        )
        told = steps.do(step, f"blocks {square.aa.type}, {a} and {b}", None, [step.out]).result
        assert isinstance(told, dict)
        tensors = told["tensors"]
        assert isinstance(tensors, list)
        compared.append(
            Compared(
                square,
                Blocks.model_validate(told["blocks"]),
                Blocks.model_validate(told["values"]),
                tuple(CrossedTensor.model_validate(each) for each in tensors),
            )
        )
    return compared


def cross_record(
    compared: Sequence[Compared],
    tokens: Mapping[str, Path],
    imatrices: Mapping[str, StepRecord],
    folder: Path,
    texts: TextRecords,
) -> Cross:
    """Put together what was found.

    Args:
        compared: every square.
        tokens: tensors_sha256 -> Parquet of per-token metrics.
        imatrices: records of the importance matrices, by the name of their source.
        folder: of the run.
        texts: they were measured on.

    Raises:
        ImatrixError, RecordError: a file is damaged.
    """
    tables: dict[Path, TokenTable] = {}

    def table(candidate: CandidateFile) -> TokenTable:
        path = tokens[candidate.made["tensors_sha256"]]
        if path not in tables:
            tables[path] = read_tokens(path)[0]
        return tables[path]

    attributions = []
    for each in compared:
        square = each.square
        cells = Cells(*(table(cell).metrics.kld for cell in square))
        attributions.append(
            Attribution(
                type=square.aa.type,
                a=square.aa.source.name,
                b=square.bb.source.name,
                file_a=square.aa.name,
                file_b=square.bb.name,
                weights_of_b=square.ba.name,
                imatrix_of_b=square.ab.name,
                blocks=each.blocks,
                values=each.values,
                tensors=each.tensors,
                kld=attribute(cells, texts.clusters(table(square.aa).chunk)),
            )
        )
    return Cross(
        attributions=tuple(attributions),
        imatrices=imatrix_pairs(
            {name: folder / record.outputs[0].path for name, record in imatrices.items()}
        ),
        halves=tuple(_halves(name, record) for name, record in imatrices.items()),
    )


def imatrix_pairs(files: Mapping[str, Path]) -> tuple[ImatrixPair, ...]:
    """Compare every pair of importance matrices.

    Raises:
        ImatrixError: a file is damaged.
        MismatchError: they are of different models.
    """
    read = {name: read_imatrix(path) for name, path in files.items()}
    return tuple(
        ImatrixPair(a=a, b=b, likeness=likeness(read[a], read[b])) for a, b in itertools.combinations(read, 2)
    )


def _halves(name: str, record: StepRecord) -> ImatrixHalves:
    result = record.result if isinstance(record.result, dict) else {}
    told = result.get("halves", ...)
    if isinstance(told, dict):
        return ImatrixHalves(source=name, likeness=Likeness.model_validate(told))
    return ImatrixHalves(
        source=name,
        likeness=None,
        reason="the matrix is from a version that did not keep halves"
        if told is ...
        else f"{_count(result.get('chunks'))} of calibration text: too few to be halved (chunks computed side by side "
        "are not taken apart, and each half has to reach every weight)",
    )


def _count(chunks: object) -> str:
    return many(chunks, "chunk") if isinstance(chunks, int) else "few chunks"
