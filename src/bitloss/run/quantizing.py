"""Candidates, those of one source in one pass over it.

Crossed, every source is quantized with the importance matrix of every other as well: the pass encodes once what several
matrices give alike (types that take no notice of one), and each of them otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitloss.model.gguf_split import whole_stem
from bitloss.run.stepping import Quantization, Stepper
from bitloss.run.steps import QuantizeStep
from bitloss.spec import ExperimentSpec
from bitloss.store import StepRecord


class Source(NamedTuple):
    """A full-precision GGUF of the model.

    Attributes:
        name: its short name in the run (``f32``).
        file: where it is.
        sha256: of the file.
        tensors_sha256: `GgufFile.tensors_sha256`; None where the file would have to be read for it.
    """

    name: str
    file: Path
    sha256: str
    tensors_sha256: str | None = None


class CandidateFile(NamedTuple):
    """A quantized file, made and hashed.

    Attributes:
        name: ``<TYPE>/<weights>``, with ``+<imatrix source>`` where that is another.
        type: quantization type.
        source: where the weights come from.
        imatrix_from: name of the source the importance matrix was computed with; None without one.
        file: where it is.
        made: what `bitloss.quantize` said of it.
        sha256: of the file.
    """

    name: str
    type: str
    source: Source
    imatrix_from: str | None
    file: Path
    made: dict[str, Any]
    sha256: str


def make_candidates(
    spec: ExperimentSpec,
    folder: Path,
    steps: Stepper,
    sources: Mapping[str, Source],
    imatrices: Mapping[str, StepRecord],
) -> list[CandidateFile]:
    """Make the candidates of an experiment, or find them made.

    Args:
        spec: the experiment.
        folder: of the run.
        steps: does and keeps them.
        sources: by name.
        imatrices: importance matrices by the name of their source; empty without.

    Returns:
        Every type of every source, in the order of the types; crossed ones after those of their type.

    Raises:
        BitlossError: a pass failed; those before it are kept.
    """
    recipes = [_Recipe(kind, source, source.name) for kind in spec.quants for source in sources.values()]
    if spec.cross:
        crossed = itertools.permutations(sources.values(), 2)
        recipes += [_Recipe(kind, weights, other.name) for weights, other in crossed for kind in spec.quants]
        order = {kind: at for at, kind in enumerate(spec.quants)}
        recipes.sort(key=lambda recipe: order[recipe.kind])
    todo = [_quantization(spec, folder, recipe, imatrices.get(recipe.matrix)) for recipe in recipes]
    candidates = []
    for recipe, each, record in zip(recipes, todo, quantize_in_passes(steps, todo), strict=True):
        assert isinstance(record.result, dict)
        candidates.append(
            CandidateFile(
                name=recipe.name,
                type=recipe.kind,
                source=recipe.source,
                imatrix_from=recipe.matrix if recipe.matrix in imatrices else None,
                file=each.step.out,
                made=record.result,
                sha256=record.outputs[0].sha256,
            )
        )
    return candidates


class _Recipe(NamedTuple):
    """A type, the source of its weights, and the name of the source of its importance matrix."""

    kind: str
    source: Source
    matrix: str

    @property
    def _crossed(self) -> str:
        return "" if self.matrix == self.source.name else f"+{self.matrix}"

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.source.name}{self._crossed}"

    @property
    def file(self) -> str:
        return f"{whole_stem(self.source.file)}-{self.kind}{self._crossed}.gguf"

    @property
    def route(self) -> str | None:
        """Crossed files belong to no route: no one publishes them."""
        return None if self._crossed else self.source.name


def _quantization(
    spec: ExperimentSpec, folder: Path, recipe: _Recipe, imatrix: StepRecord | None
) -> Quantization:
    source = recipe.source
    step = QuantizeStep(
        source=source.file,
        source_sha256=source.sha256,
        type=recipe.kind,
        imatrix=folder / imatrix.outputs[0].path if imatrix else None,
        imatrix_sha256=imatrix.outputs[0].sha256 if imatrix else None,
        tensor_types=tuple((each.pattern, each.type) for each in spec.tensor_types),
        output_tensor_type=spec.output_tensor_type,
        token_embedding_type=spec.token_embedding_type,
        pure=spec.pure,
        encoder=spec.encoder,
        threads=spec.engine.threads,
        errors=spec.errors,
        out=folder / "candidates" / recipe.file,
    )
    return Quantization(step, f"quantize {recipe.name}", recipe.route)


def quantize_in_passes(steps: Stepper, todo: Sequence[Quantization]) -> list[StepRecord]:
    """Make candidates, or find them made; returns their records in order.

    What a run that was stopped has left to do of a source is done in one pass.

    Raises:
        BitlossError: a pass failed; those before it are kept.
    """
    records = {each.step.out: steps.found(each.step, [each.step.out]) for each in todo}
    for source in dict.fromkeys(each.step.source for each in todo):
        own = [each for each in todo if each.step.source == source]
        for each in own:
            if (record := records[each.step.out]) is not None:
                steps.reuse(each, record)
        missing = [each for each in own if records[each.step.out] is None]
        if missing:
            label = (
                missing[0].label
                if len(missing) == 1
                else f"quantize {len(missing)} files/{whole_stem(missing[0].step.source)}"
            )
            records |= dict(zip(_outs(missing), steps.quantize(missing, label), strict=True))
    return [record for each in todo if (record := records[each.step.out]) is not None]


def _outs(todo: Sequence[Quantization]) -> list[Path]:
    return [each.step.out for each in todo]
