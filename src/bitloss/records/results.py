"""The form of ``results.json``, schema ``bitloss/results@1``: everything a run found out.

Units: nats for negative log-likelihoods and divergences; fractions (0..1) for Δp, same top, overlaps and
correlations, so a Δp that llama-perplexity prints as -0.256 % is -0.00256; bytes; seconds. Reports convert;
records do not.

A record is refused, never repaired: unknown keys, numbers that are not finite, a missing value without a
reason, a comparison of candidates that are not there. What changes the meaning of a key changes the number
after ``@``. The JSON Schema (``docs/reference/results.schema.json``) is generated from these classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from bitloss.records.audit import Audit
from bitloss.records.cross import Cross
from bitloss.records.importance import Importance
from bitloss.records.parts import (
    BareName,
    Confidence,
    Count,
    FiniteJson,
    MetricName,
    Metrics,
    NonEmpty,
    Outcome,
    Record,
    Sha256,
    Verdict,
)
from bitloss.records.sensitivity import Sensitivity
from bitloss.records.texts import Calibration, Text, TextPart

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA: Literal["bitloss/results@1"] = "bitloss/results@1"


class LlamaCpp(Record):
    """The engine that did the arithmetic."""

    version: str
    """Version of the Python package that carries it."""
    commit: str
    """Commit of llama.cpp."""
    build_flags: tuple[str, ...]
    """What llama.cpp says of its build and of the instructions it uses."""


class Machine(Record):
    """Where it ran."""

    cpu: str
    """Model name of the processor."""
    cores: int = Field(ge=1)
    """Cores the process could use."""
    memory_bytes: Count
    """Main memory."""
    os: str
    """Operating system and its version."""
    python: str
    """Version of Python."""
    backend: str
    """Which backend of the engine computed: ``CPU``, ``CUDA``, ..."""
    accelerator: str | None = None
    """Model name of the accelerator; null when none was used."""


class Model(Record):
    """The model the user named. Where it lay on the disk is not recorded."""

    name: BareName
    """Name of its folder or file."""
    architecture: str
    """Architecture, as its own config names it."""
    parameters: Count
    """Number of weights."""
    dtype: str
    """Type the weights are stored in, e.g. ``BF16``."""
    sha256: Sha256 | None
    """Hash of its content; null when only a file of its log-probabilities was given."""


class Base(Record):
    """The model that candidates are measured against."""

    name: str
    """Its name in this run, e.g. ``f32``."""
    file: BareName
    """Name of its file."""
    bytes: Count
    """Size of that file."""
    sha256: Sha256
    """Hash of that file."""
    stored_bytes: Count
    """Size of what was stored of its evaluation (hidden states, or a file of log-probabilities)."""
    limits: str | None = None
    """What this base cannot tell, in words; null when it is the engine's logits themselves."""
    forced: tuple[NonEmpty, ...] = ()
    """Differences between what it was made from and what was asked for, accepted with ``--force``."""


class Source(Record):
    """A full-precision file that candidates were quantized from."""

    name: str
    """Its name in this run, e.g. ``f16``."""
    file: BareName
    """Name of its file."""
    bytes: Count
    """Size of that file."""
    sha256: Sha256
    """Hash of that file."""


class NoiseFloor(Record):
    """How far the base is from itself when the engine only adds in another order."""

    how: NonEmpty
    """What was changed for the second evaluation."""
    metrics: Metrics
    """The second evaluation measured like a candidate."""


class KeyDifference(Record):
    """A metadata key in which two files differ."""

    key: str
    """The key."""
    bytes: Count
    """What key, type and value take in this file; 0 where it is missing."""
    twin_bytes: Count
    """The same in the other."""
    value: str | None = None
    """The value in this file, where both are short; null where it is missing or either is long."""
    twin_value: str | None = None
    """The same in the other."""


class TensorError(Record):
    """How far a quantized tensor is from the source's, as shares of the source's root mean square."""

    name: str
    """Its name."""
    type: NonEmpty
    """Its type in the file."""
    rms: float | None = Field(ge=0)
    """sqrt(sum (decoded - source)^2 / sum source^2); null for a tensor of zeros."""
    rms_weighted: float | None = Field(ge=0)
    """The same with every square times the importance of its column; null without an importance matrix."""


class Candidate(Record):
    """A file that was measured."""

    name: NonEmpty
    """``<TYPE>/<weights>``, with ``+<imatrix source>`` where the imatrix comes from elsewhere."""
    type: NonEmpty
    """Quantization type, as llama.cpp names it."""
    weights_from: str | None
    """Source whose weights were quantized, e.g. ``f16``; null when not known."""
    imatrix_from: str | None
    """Source whose activations made the importance matrix; null without one, or when not known."""
    file: BareName
    """Name of the file."""
    bytes: Count
    """Size of the file."""
    bits_per_weight: float = Field(gt=0)
    """8 x bytes of all tensors / number of all their elements."""
    sha256: Sha256
    """Hash of the file."""
    tensors_sha256: Sha256
    """Hash of the tensors alone: names, types, shapes, data, sorted by name; no metadata, no file order."""
    identical_to: str | None = None
    """An earlier candidate with the same `tensors_sha256`: measured once, its metrics are repeated here."""
    keys_differ: tuple[KeyDifference, ...] | None = None
    """Metadata keys in which it differs from `identical_to`; null without a twin, or when not looked at."""
    metrics: Metrics
    """What was measured."""
    by_text: tuple[Metrics, ...] = ()
    """The same for each of `texts`, in their order; empty when there is one text."""
    tokens: BareName | None = None
    """Name of its file of per-token results in ``tokens/``; null when not known."""
    importance: Importance | None = None
    """What its importance matrix leaves open; null without one, or when not known."""
    tensor_errors: tuple[TensorError, ...] = ()
    """Of its quantized tensors, in the order of the file; empty where they were not asked for."""


class Comparison(Record):
    """Two candidates on the same tokens, paired."""

    a: str
    """Name of the first candidate."""
    b: str
    """Name of the second candidate."""
    metric: MetricName
    """What is compared."""
    difference: float | None
    """Mean over tokens of (a - b), in the metric's unit."""
    ci95: tuple[float, float] | None
    """95 % confidence interval of the difference, clustered by chunk, or document."""
    p_value: float | None = Field(ge=0, le=1)
    """Two-sided p-value of no difference."""
    p_holm: float | None = Field(ge=0, le=1)
    """The p-value after Holm's correction over the whole table."""
    verdict: Verdict | None
    """What that says of `a` against `b`; null when it cannot be tested."""
    reason: NonEmpty | None = None
    """Why something here is null."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reason is None and (self.verdict is None or self.difference is None):
            raise ValueError("a difference or verdict of null needs a reason")
        if self.verdict in {Verdict.BETTER, Verdict.WORSE} and self.p_holm is None:
            raise ValueError("better and worse need a p-value")
        if self.ci95 is not None and self.ci95[0] > self.ci95[1]:
            raise ValueError("ci95 must be ordered")
        return self


class Settled(Record):
    """What was settled about two candidates by mean KLD, before or when measuring stopped."""

    a: str
    """Name of the first candidate."""
    b: str
    """Name of the second candidate."""
    outcome: Outcome
    """What is settled of `a`."""
    chunks: int | None = Field(ge=0)
    """Chunks that settled it; 0 for equal tensors, null where it is open or undefined."""
    low: float | None
    """Lower bound of the difference a - b in nats after all chunks, at the level split over the table; null without."""
    high: float | None
    """Upper bound, likewise."""


class Known(Record):
    """How well one candidate's mean KLD is known."""

    candidate: str
    """Name of the candidate."""
    low: float | None
    """Lower bound of its mean KLD, at the level split over the candidates; null without."""
    high: float | None
    """Upper bound, likewise."""
    relative: float | None = Field(ge=0)
    """Half the width over the mean; null without."""


class Stopping(Record):
    """The rule measuring stopped by. Bounds and verdicts hold although one looked after every block."""

    rule: Literal["decided", "precise"]
    """``decided``: every pair settled; ``precise``: every mean KLD known well enough."""
    met: bool
    """Whether the rule was met; false when the text came to its end first, or something cannot be compared."""
    alpha: float = Field(gt=0, lt=1)
    """Chance that any of its statements is wrong."""
    margin: float | None
    """Difference of mean KLD, as a share of it, below which candidates are equivalent; null without."""
    precision: float | None
    """Half-width over the mean that was asked for; null without."""
    seed: int = Field(ge=0)
    """Seed of the random order the chunks were taken in."""
    chunks_available: int = Field(ge=1)
    """Chunks of the text; `text.chunks` of them were measured."""
    settled: tuple[Settled, ...] = ()
    """Every pair, with ``decided``."""
    known: tuple[Known, ...] = ()
    """Every candidate, with ``precise``."""


class Finding(Record):
    """Something the run shows, in words, with the numbers it rests on."""

    id: Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,63}$")]
    """Which kind of finding, e.g. ``identical-tensors``."""
    title: NonEmpty
    """The finding in one line."""
    text: NonEmpty
    """The finding in a few sentences."""
    evidence: dict[str, FiniteJson] = Field(min_length=1)
    """The numbers and names it rests on."""
    confidence: Confidence
    """How well it is founded."""
    question: int | None = Field(default=None, ge=1, le=5)
    """Which of the five questions (`bitloss.explain.questions`) it answers; null for what answers none of them."""
    rows: tuple[NonEmpty, ...] = ()
    """Where its numbers stand: names of candidates, and sections of the report as ``#comparisons``."""


class Cost(Record):
    """What one step took."""

    step: NonEmpty
    """The step, e.g. ``quantize Q8_0/f16``."""
    kind: NonEmpty
    """Its kind: ``convert``, ``imatrix``, ``quantize``, ``base``, ``measure``, ..."""
    route: str | None = None
    """The source it was done for, e.g. ``f16``; null when several share it."""
    seconds: float = Field(ge=0)
    """Wall-clock time it took when it was run."""
    bytes: Count
    """Size of what it left on the disk."""
    reused: bool
    """True when an earlier run had done it, so that this one did not have to."""


class Results(Record):
    """Everything a run found out."""

    schema_: Literal["bitloss/results@1"] = Field(default=SCHEMA, alias="schema")
    """Name and version of this form."""
    bitloss: NonEmpty
    """Version of bitloss."""
    llama_cpp: LlamaCpp
    """The engine."""
    machine: Machine
    """The machine."""
    model: Model
    """The model."""
    text: Text
    """The text it was measured on."""
    texts: tuple[TextPart, ...] = ()
    """The texts it consists of; empty when there is one."""
    calibration: Calibration | None
    """The text of the importance matrices; null when none was made."""
    base: Base
    """What the candidates were measured against."""
    sources: tuple[Source, ...] = ()
    """The full-precision files of this run; empty when finished files were measured."""
    stopping: Stopping | None = None
    """Why measuring stopped where it did; null when the whole text was to be measured."""
    noise_floor: NoiseFloor | None
    """Arithmetic noise of the engine; null when it was not measured."""
    candidates: tuple[Candidate, ...]
    """The files measured."""
    comparisons: tuple[Comparison, ...]
    """Candidates against each other."""
    audit: Audit | None
    """Counts over the model's weights (what a cast would lose); null when none was made."""
    cross: Cross | None = None
    """Weights of one source with the importance matrix of another; null when they were not crossed."""
    sensitivity: Sensitivity | None = None
    """Groups of tensors raised one at a time; null when that was not measured."""
    findings: tuple[Finding, ...]
    """What it all says."""
    costs: tuple[Cost, ...]
    """Time and disk of each step."""
    commands: tuple[str, ...] = ()
    """Commands that repeat the run."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        names = [c.name for c in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError("two candidates have the same name")
        for index, candidate in enumerate(self.candidates):
            twin = candidate.identical_to
            if twin is None:
                continue
            if twin not in names[:index]:
                raise ValueError(f"identical_to of {candidate.name!r} names no earlier candidate")
            if self.candidates[names.index(twin)].tensors_sha256 != candidate.tensors_sha256:
                raise ValueError(f"{candidate.name!r} is not identical to {twin!r}: their tensors differ")
        for candidate in self.candidates:
            if len(candidate.by_text) not in {0, len(self.texts)}:
                raise ValueError(f"by_text of {candidate.name!r} has not a figure for each text")
        self.text.check_parts(self.texts)
        stopping = self.stopping
        for known in stopping.known if stopping else ():
            if known.candidate not in names:
                raise ValueError(f"stopping names {known.candidate!r}, which is no candidate")
        for name in self._compared():
            if name not in names:
                raise ValueError(f"a comparison names {name!r}, which is no candidate")
        return self

    def _compared(self) -> Iterator[str]:
        """Names of all candidates that something is said of."""
        for pair in self.comparisons:
            yield from (pair.a, pair.b)
        for settled in self.stopping.settled if self.stopping else ():
            yield from (settled.a, settled.b)
        for crossed in self.cross.attributions if self.cross else ():
            yield from (crossed.file_a, crossed.file_b, crossed.weights_of_b, crossed.imatrix_of_b)
        if self.sensitivity:
            yield self.sensitivity.plain
            yield from (raised.candidate for raised in self.sensitivity.groups)

    def candidate(self, name: str) -> Candidate:
        """Return the candidate of that name; KeyError when there is none."""
        return {candidate.name: candidate for candidate in self.candidates}[name]
