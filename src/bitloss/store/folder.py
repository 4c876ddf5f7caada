"""The run folder: one experiment, one process at a time, steps found again by their content keys.

Layout, as far as this module knows it::

    run.json             whose run this is: schema, key of the experiment, its settings; binds from the first step on
    steps/<kind>-<first 16 digits of the key>.json
    events.jsonl         one JSON object per line, appended
    .bitloss.lock        pid of the holder
    spec.toml            the experiment, where a specification says what it is

A folder made by the command that holds it is gone again where that ends in an error of ours before a step was
finished, unless anything else has come into it (`bitloss.store.fresh`).

A step record counts only while its outputs exist with the recorded size. The lock is ``flock``'s, so it dies
with its holder (a child made by fork shares it; one made by spawn does not).
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import time
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from bitloss.errors import BitlossError, FileProblem, RecordError, RunFolderError
from bitloss.progress import ProgressCallback, silent
from bitloss.store.atomic import (
    atomic_write_text,
    clean_partials,
    explained,
    file_problem,
    is_at,
    make_folder,
)
from bitloss.store.fresh import LOCK, missing_folders, remove_bare, remove_empty
from bitloss.store.keys import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_POLL_SECONDS = 0.05
_MARKER = "run.json"
_RESULTS = "results.json"


def _relative(path: str) -> str:
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise ValueError("must be a relative path inside the run folder")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StepOutput(_Record):
    """One file a step left in the run folder."""

    path: Annotated[str, AfterValidator(_relative)]
    """Where it is, relative to the run folder, with forward slashes."""
    bytes: Annotated[int, Field(ge=0)]
    """Its size."""
    sha256: Sha256
    """The SHA-256 of its content."""


class StepRecord(_Record):
    """A finished step: what it was made from (`key`), what it left, what it found out and what it took."""

    schema_: Annotated[Literal["bitloss/step@1"], Field(alias="schema")] = "bitloss/step@1"
    """Name and version of this record's form."""
    kind: _Kind
    """Which step: ``convert``, ``imatrix``, ``quantize``, ``base``, ``measure``, ..."""
    key: Sha256
    """:func:`~bitloss.store.content_key` of everything that goes into it."""
    outputs: tuple[StepOutput, ...]
    """The files it wrote."""
    result: JsonValue
    """What it found out, in the step's own form."""
    seconds: Annotated[float, Field(ge=0)]
    """How long it took, by the wall clock."""
    started: AwareDatetime
    """When it began."""


class _Marker(_Record):
    schema_: Annotated[Literal["bitloss/run@1"], Field(alias="schema")] = "bitloss/run@1"
    spec_key: Sha256
    settings: dict[str, JsonValue]

    def write(self, path: Path) -> None:
        atomic_write_text(path, self.model_dump_json(by_alias=True, indent=2) + "\n")


class RunFolder:
    """One experiment's folder, held by this process until :meth:`close` (or the end of a ``with`` block).

    Attributes:
        path: the folder.
        made: folders that were not there before: this one, then those above it; empty where it was.
    """

    def __init__(self, path: Path, lock: int, made: tuple[Path, ...] = ()) -> None:
        self.path = path
        self.made = made
        self._lock: int | None = lock

    @classmethod
    def open(
        cls, path: Path, spec_key: str, settings: Mapping[str, JsonValue], *, timeout: float = 0.0
    ) -> Self:
        """Make a run folder, or take up the one that is there.

        Args:
            path: the folder; made when missing.
            spec_key: key of the experiment.
            settings: what the experiment was asked to do; kept in ``run.json``, compared when keys differ.
            timeout: seconds to wait for another process that works there.

        Raises:
            RunFolderError: the folder holds something else (nothing is touched), another experiment (the
                settings that differ are named) with work that was finished, or another process is at work there
                (its pid is named).
            RecordError: ``run.json`` is damaged or was written by a newer bitloss.
            FileProblem: the folder cannot be made or written.
        """
        with explained(path):
            if path.is_dir() and (names := set(os.listdir(path))) and not names & {_MARKER, LOCK}:
                raise RunFolderError(
                    "the folder is not empty and is no run of bitloss",
                    where=path,
                    found=", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else ""),
                    mend="choose another folder with --out",
                )
        made = missing_folders(path)
        try:
            lock = _take_lock(path / LOCK, timeout)
        except BitlossError:
            remove_empty(made)
            raise
        folder = cls(path, lock, made)
        try:
            folder._claim(_Marker(spec_key=spec_key, settings=dict(settings)))
            for place in (path, *(entry for entry in path.iterdir() if entry.is_dir())):
                clean_partials(place)
        except BaseException as error:
            folder.__exit__(type(error), error, None)
            raise
        return folder

    def _claim(self, mine: _Marker) -> None:
        """Write ``run.json``, or make sure that the one there is of this experiment.

        One that was left before anything was finished binds nobody: the command may have been corrected since.
        """
        marker = self.path / _MARKER
        if not marker.exists():
            mine.write(marker)
            return
        try:
            with explained(marker):
                theirs = _Marker.model_validate_json(marker.read_bytes())
        except ValidationError as error:
            raise RecordError(
                "this is no run.json that this version of bitloss reads",
                where=marker,
                found=error.errors()[0]["msg"],
                mend="choose another folder with --out",
            ) from error
        if theirs.spec_key == mine.spec_key:
            return
        if self._has_work():
            raise RunFolderError(
                "the folder holds a run of another experiment",
                where=self.path,
                found=describe_difference(theirs.settings, mine.settings),
                mend="choose another folder with --out",
            )
        mine.write(marker)

    def _has_work(self) -> bool:
        """Whether a step was finished here, or results are kept."""
        return (self.path / _RESULTS).exists() or any((self.path / "steps").glob("*.json"))

    def close(self) -> None:
        """Let the next process in. Twice is harmless."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BitlossError):
            remove_bare(self.made)
        self.close()

    # ------------------------------------------------------------------------------------------- steps

    def outputs(
        self,
        paths: Sequence[Path],
        progress: ProgressCallback = silent,
        known: Mapping[Path, str] | None = None,
    ) -> tuple[StepOutput, ...]:
        """Describe the files a step wrote; a folder stands for all files in it, sorted.

        Args:
            paths: the files and folders.
            progress: told about the hashing.
            known: file -> SHA-256, of files hashed while they were written: they are not read once more.

        Raises:
            FileProblem: one of them is missing or lies outside the run folder.
        """
        found = []
        for path in paths:
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                try:
                    relative = file.resolve().relative_to(self.path.resolve()).as_posix()
                except ValueError as error:
                    raise FileProblem("the output lies outside the run folder", where=file) from error
                digest = (known or {}).get(file) or sha256_file(file, progress)
                with explained(file):
                    n_bytes = file.stat().st_size
                found.append(StepOutput(path=relative, bytes=n_bytes, sha256=digest))
        return tuple(found)

    def find(
        self, key: str, *, verify: bool = False, progress: ProgressCallback = silent
    ) -> StepRecord | None:
        """Look for a finished step.

        Args:
            key: the step's key.
            verify: hash the outputs again as well (their sizes are always compared).
            progress: told about the hashing.

        Returns:
            Its record, or None when the step has to be run: never done, record damaged, or an output missing
            or changed. The last two leave a line in ``events.jsonl``.
        """
        for path in sorted((self.path / "steps").glob(f"*-{key[:16]}.json")):
            try:
                record = StepRecord.model_validate_json(path.read_bytes())
            except (ValidationError, OSError):
                self.event("record-unreadable", step=path.stem)
                continue
            if record.key != key:
                continue
            changed = [o.path for o in record.outputs if not self._holds(o, verify, progress)]
            if not changed:
                return record
            self.event("output-changed", step=path.stem, outputs=list(changed))
        return None

    def _holds(self, output: StepOutput, verify: bool, progress: ProgressCallback) -> bool:
        file = self.path / output.path
        if not file.is_file() or file.stat().st_size != output.bytes:
            return False
        return not verify or sha256_file(file, progress) == output.sha256

    def save(self, record: StepRecord) -> Path:
        """Keep the record of a finished step; returns its file. Raises as :func:`atomic_path`.

        Older records of the files it wrote are removed: what they describe is no longer there, and sizes may agree.
        """
        path = self.path / "steps" / f"{record.kind}-{record.key[:16]}.json"
        mine = {output.path for output in record.outputs}
        for other in (self.path / "steps").glob("*.json"):
            try:
                theirs = StepRecord.model_validate_json(other.read_bytes())
            except (ValidationError, OSError):
                continue
            if theirs.key != record.key and mine & {output.path for output in theirs.outputs}:
                with explained(other):
                    other.unlink(missing_ok=True)
        atomic_write_text(path, record.model_dump_json(by_alias=True, indent=2) + "\n")
        return path

    def event(self, event: str, *, step: str | None = None, **fields: JsonValue) -> None:
        """Append a line to ``events.jsonl``: the time (UTC), the event, the step, and what else is given.

        Raises:
            FileProblem: the line could not be written.
        """
        line = {"time": datetime.now(UTC).isoformat(), "event": event, "step": step, **fields}
        path = self.path / "events.jsonl"
        with explained(path), path.open("ab+") as file:
            # A line that a crash cut short must not swallow this one.
            torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(line, allow_nan=False).encode() + b"\n")


def _take_lock(path: Path, timeout: float) -> int:
    """Lock the run folder; returns the descriptor that holds the lock."""
    deadline = time.monotonic() + timeout
    descriptor = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(descriptor, path):
                    break
                stale, descriptor = (
                    descriptor,
                    _open_lock(path),
                )  # its holder has removed the folder meanwhile
                os.close(stale)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
                    raise RunFolderError(
                        "another process is at work in this run folder",
                        where=path.parent,
                        found=f"process {holder}" if holder else "a process without a name",
                        mend="wait for it to finish, or choose another folder with --out",
                    ) from error
                time.sleep(_POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise file_problem(error, path) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_lock(path: Path) -> int:
    make_folder(path.parent)
    with explained(path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


_HASH = re.compile(r'"[0-9a-f]{64}"')
_CONTENTS = {
    "base.tokens": "the base's tokens (its text, or how many chunks of it, or their length)",
    "base.tensors": "the base's tensors (it was made from another model)",
    "base.model": "the base's model",
    "base.kld": "the base's file",
}
"""What settings that are hashes stand for."""


def describe_difference(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> str:
    """Say which settings of two experiments differ: ``ctx 512 (now 1024), quants ["Q8_0"] (now unset)``."""
    flat_old, flat_new = dict(_flat(old)), dict(_flat(new))
    names = sorted(n for n in {*flat_old, *flat_new} if flat_old.get(n) != flat_new.get(n))
    if flat_old and flat_new and not flat_old.keys() & flat_new.keys():
        return "settings of another command"
    shown = [
        f"{_CONTENTS.get(n, n)} of other content"
        if _HASH.fullmatch(flat_old.get(n, "")) and _HASH.fullmatch(flat_new.get(n, ""))
        else f"{n} {flat_old.get(n, 'unset')} (now {flat_new.get(n, 'unset')})"
        for n in names[:6]
    ]
    if len(names) > 6:
        shown.append(f"{len(names) - 6} more")
    return ", ".join(shown) or "the same settings on other content"


def _flat(settings: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value)
