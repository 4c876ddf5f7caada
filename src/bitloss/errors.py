"""Every error bitloss raises on purpose, in one tree.

    BitlossError                 exit code 1: one line that says what, where, expected, found, what to do
    ├── UsageError               exit code 2: the command itself cannot be carried out as asked
    ├── FileProblem              a file or folder is missing, unreadable, or in the way
    │   └── DiskFull             the disk ran out while writing; nothing half-written is left
    ├── FormatError              a file breaks its format's rules
    │   ├── CheckpointError      HF folder: config.json, safetensors, tokenizer
    │   ├── GgufError            GGUF model files
    │   ├── ImatrixError         importance matrices (GGUF and legacy .dat)
    │   ├── BaseError            stored bases
    │   └── RecordError          results.json, step records, Parquet of tokens
    ├── UnsupportedError         understood, but not something bitloss (or the engine) can do
    ├── MismatchError            two things that must belong together do not (vocabulary, base, text)
    ├── TextError                the text does not give enough tokens
    ├── RunFolderError           the output folder belongs to another experiment or is in use
    └── EngineError              llama.cpp failed
        ├── EngineLayoutError    a struct read directly is not laid out as expected
        └── EngineCrash          the child process died (signal, abort, out of memory)

The command line prints ``str(error)`` and exits with ``exit_code``; no traceback without ``--debug``.
"""

from __future__ import annotations

from typing import ClassVar, Self


class BitlossError(Exception):
    """Base of the tree.

    Args:
        what: the fault in a few words, lower case, no full stop.
        where: the file, tensor, key or option concerned.
        expected: what a good input has there.
        found: what this one has.
        mend: what the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        mend: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.mend = mend
        super().__init__(self._line())

    def _line(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected is not None and self.found is not None:
            parts.append(f": expected {self.expected}, found {self.found}")
        elif self.expected is not None:
            parts.append(f": expected {self.expected}")
        elif self.found is not None:
            parts.append(f": found {self.found}")
        line = "".join(parts)
        if self.mend:
            line = f"{line}. {self.mend[:1].upper()}{self.mend[1:]}"
        # One line, whatever a hostile file put into a name.
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)

    def amended(self, mend: str) -> Self:
        """Return the same error with other advice."""
        return type(self)(self.what, where=self.where, expected=self.expected, found=self.found, mend=mend)

    def rename(self, old: str, new: str) -> None:
        """Call something by another name: a file that is written beside its place by that of its place."""
        for field in ("what", "where", "expected", "found", "mend"):
            text = getattr(self, field)
            if text is not None:
                setattr(self, field, text.replace(old, new))
        self.args = (self._line(),)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a child process (exceptions with keywords do not by default)."""
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.found, self.mend))


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def unreadable(error: OSError | ValueError, *, where: object, what: str, mend: str) -> FileProblem:
    """Say that a file could not be opened or read.

    Args:
        error: what the system said; a ValueError is a path with a null character.
        where: the file.
        what: the kind of file that was wanted, without an article ("GGUF file").
        mend: which file to give, or how one is made.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileProblem(f"no such {what}", where=where, mend=mend)
    if isinstance(error, IsADirectoryError):
        return FileProblem(f"a folder, not {_article(what)} {what}", where=where, mend=mend)
    reason = error.strerror if isinstance(error, OSError) else None
    return FileProblem(
        f"{what} that cannot be read ({reason or error})",
        where=where,
        mend=mend if isinstance(error, ValueError) else "see who may read it, or copy it to another place",
    )


def cut_off(
    kind: type[FormatError], *, where: object, inside: str, expected: int, found: int, least: bool = False
) -> FormatError:
    """Say that a file is shorter than its own header tells: a copy or a download that was not finished.

    Args:
        kind: the error of its format.
        where: the file, with the place in it.
        inside: what it ends inside of.
        expected: bytes a whole file has, or has at least.
        found: bytes this one has.
        least: whether a whole file may be longer than `expected`.
    """
    return kind(
        f"the file is cut off: it ends inside {inside}",
        where=where,
        expected=f"{'at least ' if least else ''}{expected} bytes",
        found=f"{found} bytes",
        mend="copy or fetch it again",
    )


def _rebuild(
    kind: type[BitlossError],
    what: str,
    where: str | None,
    expected: str | None,
    found: str | None,
    mend: str | None,
) -> BitlossError:
    return kind(what, where=where, expected=expected, found=found, mend=mend)


class UsageError(BitlossError):
    """The command cannot be carried out as asked."""

    exit_code: ClassVar[int] = 2


class FileProblem(BitlossError):
    """A file or folder is missing, unreadable, or in the way."""


class DiskFull(FileProblem):
    """The disk ran out while writing."""


class FormatError(BitlossError):
    """A file breaks its format's rules."""


class CheckpointError(FormatError):
    """An HF folder breaks its format: config.json, safetensors, tokenizer."""


class GgufError(FormatError):
    """A GGUF model file breaks its format."""


class ImatrixError(FormatError):
    """An importance matrix breaks its format."""


class BaseError(FormatError):
    """A stored base breaks its format."""


class RecordError(FormatError):
    """A record bitloss wrote earlier (results.json, step record, Parquet) is damaged or of another schema."""


class UnsupportedError(BitlossError):
    """Understood, but not something bitloss or the engine can do."""


class MismatchError(BitlossError):
    """Two things that must belong together do not."""


class TextError(BitlossError):
    """The text does not give enough tokens."""


class RunFolderError(BitlossError):
    """The output folder belongs to another experiment or is in use."""


class EngineError(BitlossError):
    """llama.cpp failed."""


class EngineLayoutError(EngineError):
    """A struct that is read directly is not laid out as expected."""


class EngineCrash(EngineError):
    """The child process died (signal, abort, out of memory)."""
