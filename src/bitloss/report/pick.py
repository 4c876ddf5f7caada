"""Which file of a run suits a memory budget.

What a file takes is `bitloss.engine.memory.engine_bytes`: its weights, the cache of keys and values for the context
asked for (F16), and the buffers of a micro-batch; an estimate. Everything but the weights is the same for all files of
a model, so any one of them that is still there tells it. Where none is, weights alone are counted: of a file whose
weights fit it is then not known whether it does, and nothing says that it does.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bitloss.display import decimal, size
from bitloss.engine.base import EngineOptions
from bitloss.engine.memory import engine_bytes
from bitloss.errors import FileProblem, FormatError, UnsupportedError, UsageError
from bitloss.explain.routes import routes_only
from bitloss.model.gguf import GgufFile
from bitloss.records import Candidate, Results, Verdict
from bitloss.report.tables import Table
from bitloss.report.uncertainty import usual_error

CONTEXT = 8192
"""What room is made for when nobody says, where the model was made for as much."""
_MICRO_BATCH = 512
_ALIKE = {Verdict.TIE, Verdict.IDENTICAL}


class Shape(NamedTuple):
    """What a model takes beside its weights.

    Attributes:
        besides: bytes of cache and buffers.
        told_by: the file that told.
        n_ctx: context it was told for.
    """

    besides: int
    told_by: str
    n_ctx: int


class Pick(NamedTuple):
    """The answer.

    Attributes:
        budget: bytes there are.
        n_ctx: context to make room for.
        besides: bytes of cache and buffers; None where no file could tell.
        best: the file to take; None when none fits.
        lowest: the file with the lowest mean KLD among those that fit; another than `best` when they are tied.
        tied: names of files that fit and are no different from `lowest`.
        fits: every file with what it takes, and whether that fits (its weights, where `besides` is None), smallest
            divergence first.
        left_out: names of files without a mean KLD, which have no place in the order.
    """

    budget: int
    n_ctx: int
    besides: int | None
    best: Candidate | None
    lowest: Candidate | None
    tied: tuple[str, ...]
    fits: tuple[tuple[Candidate, int, bool], ...]
    left_out: tuple[str, ...] = ()

    def surely_fits(self) -> tuple[bool | None, ...]:
        """Whether each of `fits` does; None where its weights do and the size of its cache is not known."""
        return tuple((None if fits and self.besides is None else fits) for _, _, fits in self.fits)

    def same_tensors(self) -> tuple[str, ...]:
        """Those of `tied` that hold the tensors of `best`: no tie of the text's, they cannot differ on any."""
        if self.best is None:
            return ()
        held = {c.name: c.identical_to or c.name for c, _, _ in self.fits}
        same = held[self.best.name]
        return tuple(name for name in self.tied if name != self.best.name and held[name] == same)

    def words(self) -> str:
        """The answer in a few sentences."""
        if not self.fits:
            why = self._left_out() if self.left_out else " This run has no candidates yet."
            return f"Nothing to pick from.{why}"
        room = f"{size(self.budget)} and a context of {self.n_ctx} tokens"
        if self.best is None or self.lowest is None:
            least = min(taken for _, taken, _ in self.fits)
            takes = (
                "the smallest takes about" if self.besides is not None else "the smallest file alone takes"
            )
            too_much = f"{size(least)}, {size(least - self.budget)} too much"
            return f"No file fits into {room}: {takes} {too_much}.{self._left_out()}"
        said = "" if self.besides is not None else "By weights alone, "
        said += f"{'for' if said else 'For'} {room}: {self.best.name} "
        said += f"({self.best.file}, {size(self.best.bytes)}), mean KLD {_kld(self.best)}."
        same = self.same_tensors()
        others = [name for name in self.tied if name != self.best.name and name not in same]
        if same:
            said += f" With the same tensors: {', '.join(same)}."
        if others:
            said += f" Tied with it on this text: {', '.join(others)}."
        if self.best.name != self.lowest.name:
            said += f" {self.lowest.name} has the lowest mean KLD, {_kld(self.lowest)}, but is no better beyond chance."
        return said + self._caveat() + self._left_out()

    def _caveat(self) -> str:
        if self.besides is not None:
            return ""
        return (
            " Whether it fits with its cache is not known: no GGUF file of this run is in its folder or where its "
            "command had it, to tell how large that is. Leave room for it, or give a file with --model."
        )

    def _left_out(self) -> str:
        if not self.left_out:
            return ""
        return f" Left out, having no mean KLD: {', '.join(self.left_out)}."

    def table(self) -> Table:
        """Every file with what it takes."""
        words = {True: "yes", False: "no", None: "not known (weights do)"}
        rows = tuple(
            (c.name, c.file, size(c.bytes), size(taken), _kld(c), words[fits])
            for (c, taken, _), fits in zip(self.fits, self.surely_fits(), strict=True)
        )
        takes = "Takes about" if self.besides is not None else "Takes more than"
        return Table(("Name", "File", "Size", takes, "Mean KLD", "Fits"), rows, right=frozenset({2, 3, 4}))


def _kld(c: Candidate) -> str:
    figure = c.metrics.get("kld_mean")
    return "n/a" if figure is None or figure.value is None else decimal(figure.value, usual_error(figure))


def shape_of(files: Iterable[Path], n_ctx: int, *, or_longest: bool = False) -> Shape | None:
    """What a model takes beside its weights, told by the first of `files` that can be read; None when none can.

    Args:
        files: of the model.
        n_ctx: context to make room for.
        or_longest: take the longest context the model was made for where that is shorter.

    Raises:
        UsageError: the context is longer than the model was made for.
    """
    for path in files:
        if not path.is_file():
            continue
        try:
            file = GgufFile.open(path)
        except (FormatError, UnsupportedError, FileProblem):
            continue
        longest = file.value(f"{file.architecture}.context_length", None)
        if or_longest and isinstance(longest, int):
            n_ctx = max(2, min(n_ctx, longest))
        elif isinstance(longest, int) and n_ctx > longest:
            raise UsageError(
                "context longer than the model was made for",
                where="--ctx",
                expected=f"at most {longest}",
                found=n_ctx,
            )
        # batch and micro-batch no longer than the context: one sequence, as a person runs it
        batch = max(2, min(_MICRO_BATCH, n_ctx))
        options = EngineOptions(batch=batch, ubatch=batch)
        return Shape(engine_bytes(file, options, n_ctx=n_ctx) - file.size, path.name, n_ctx)
    return None


def files_of(results: Results, folder: Path) -> list[Path]:
    """Where files of the model may lie: in a run's folder, or where its command found them."""
    names = [("candidates", c.file) for c in results.candidates]
    names += [("sources", s.file) for s in results.sources] + [("sources", results.base.file)]
    inside = [folder / sub / name for sub, name in names]
    # finished files were measured where they lay: the command tells where, if it is still so
    given = [Path(word) for command in results.commands for word in _words(command) if word.endswith(".gguf")]
    known = {name for _, name in names}
    return inside + [path for path in given if path.name in known]


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return []


def pick(results: Results, *, budget: int, n_ctx: int, besides: int | None) -> Pick:
    """Choose the file with the lowest mean KLD that fits; among those no different from it, the smallest.

    Args:
        results: of a run.
        budget: bytes there are.
        n_ctx: context to make room for.
        besides: bytes of cache and buffers; None when not known.
    """
    results = routes_only(results)
    known = [c for c in results.candidates if _value(c) is not None]
    left_out = tuple(c.name for c in results.candidates if _value(c) is None)
    known.sort(key=lambda c: (_value(c) or 0.0, c.bytes))
    fits = tuple((c, c.bytes + (besides or 0), c.bytes + (besides or 0) <= budget) for c in known)
    inside = [c for c, _, ok in fits if ok]
    if not inside:
        return Pick(budget, n_ctx, besides, None, None, (), fits, left_out)
    lowest = inside[0]
    alike = _alike(results, lowest.name)
    tied = [c for c in inside if c.name == lowest.name or c.name in alike]
    order = [c.name for c in results.candidates]
    best = min(tied, key=lambda c: (c.bytes, order.index(c.name)))
    return Pick(budget, n_ctx, besides, best, lowest, tuple(c.name for c in tied), fits, left_out)


def _value(c: Candidate) -> float | None:
    figure = c.metrics.get("kld_mean")
    return None if figure is None else figure.value


def _alike(results: Results, name: str) -> set[str]:
    """Files whose mean KLD the comparisons do not tell apart from this one's."""
    first = results.candidate(name).identical_to or name
    found = {c.name for c in results.candidates if (c.identical_to or c.name) == first}
    for row in results.comparisons:
        if row.metric == "kld_mean" and row.verdict in _ALIKE and name in (row.a, row.b):
            found.add(row.b if row.a == name else row.a)
    return found
