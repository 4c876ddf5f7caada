"""Models and texts given by name instead of path: fetched before anything else is done."""

from __future__ import annotations

from pathlib import Path

from bitloss.cli.show import Screen
from bitloss.errors import FileProblem, UsageError
from bitloss.model.hub import fetch_model, is_hub_id
from bitloss.model.wikitext import NAME, wikitext


def given_model(model: str, revision: str | None, *, quiet: bool) -> Path:
    """Return the folder or file of a model; one of the hub is fetched.

    Raises:
        FileProblem: there is no such file or folder, or the hub does not give it.
        UsageError: a revision of something that is not on the hub.
    """
    path = Path(model)
    if path.exists():
        if revision is not None:
            raise UsageError("only models of the hub have revisions", where="--revision", found=revision)
        return path
    if not is_hub_id(model):
        raise FileProblem(
            "no such model",
            where=model,
            mend="give an HF folder (config.json, safetensors, tokenizer), a GGUF file, or a hub id (owner/name)",
        )
    with Screen(quiet=quiet) as screen:
        return fetch_model(model, revision, progress=screen.stage)


def given_text(text: Path) -> Path:
    """Return the path of a text; `wikitext-2` is fetched, unless a file of that name is there."""
    return wikitext() if text.name == NAME and not text.exists() else text


def given_file(path: Path, what: str) -> Path:
    """An existing file, as an absolute path (child processes may run elsewhere).

    Raises:
        FileProblem: there is none.
    """
    if not path.is_file():
        article = "an" if what[0] in "aeiou" else "a"
        raise FileProblem(
            f"a folder, not {article} {what}" if path.is_dir() else f"no such {what}",
            where=path,
            mend=f"give the path of {article} {what}",
        )
    from bitloss.model.gguf_split import absolute

    return absolute(path)


def gguf_precision(path: Path) -> str:
    """Precision of a GGUF file that is a source (``f32``, ``f16``, ``bf16``).

    Raises:
        GgufError: it is no GGUF file.
    """
    from bitloss.model.gguf_split import open_model
    from bitloss.model.source import precision

    return precision(open_model(path))
