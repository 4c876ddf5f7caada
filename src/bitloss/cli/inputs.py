"""Models and texts given by name instead of path: fetched before anything else is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitloss.cli.show import Screen, warn
from bitloss.errors import FileProblem, GgufError, UsageError
from bitloss.model.hub import fetch_model, is_hub_id
from bitloss.model.wikitext import NAME, wikitext
from bitloss.store.atomic import explained

_A_BASE = (
    "give a folder made by `bitloss base`, a GGUF file of full precision with --text, or a FILE.kld of "
    "llama-perplexity"
)


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


def check_base(base: Path, text: Sequence[Path] | None) -> None:
    """Refuse what cannot be a base at all: no such path, a file of another kind, a GGUF file without a text.

    Raises:
        FileProblem, GgufError: it is none.
        UsageError: a GGUF file, and no text to compute it on.
    """
    from bitloss.divergence.kldfile import is_kld
    from bitloss.model.gguf_header import MAGIC

    if not base.exists():
        raise FileProblem("no such file or folder", where=base, mend=_A_BASE)
    if base.is_dir() or is_kld(base):
        return
    with explained(base), base.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise GgufError(
                "no base: neither a GGUF file, nor a .kld, nor a folder", where=base, mend=_A_BASE
            )
    if not text:
        raise UsageError("a GGUF file as the base needs a text", where="--base", mend="give --text FILE")


def given_base_model(path: Path, *, quiet: bool) -> Path:
    """The GGUF file a base shall be made of (`given_file`); tells if it is quantized itself, unless `quiet`."""
    from bitloss.model.gguf_split import open_model
    from bitloss.model.source import FULL_PRECISION, refuse_matrix, weights_type

    path = given_file(path, "GGUF file")
    refuse_matrix(file := open_model(path))
    if not quiet and (kind := weights_type(file)) not in FULL_PRECISION:
        warn(
            f"{path.name} is quantized itself ({kind}): divergences will be from it, not from the model of full "
            "precision"
        )
    return path


def say_bundled(calibration: Path | None, text: Sequence[Path] | None, *, quiet: bool) -> None:
    """Say, unless `quiet`, which texts a run takes because none were given, and how to give others."""
    taken = {}
    if not text:
        taken["--text"] = "evaluation.txt (an English novel) is measured on"
    if calibration is None:
        taken["--calibration"] = "importance matrices are made from calibration.txt (English novels)"
    if taken:
        with Screen(quiet=quiet) as screen:
            screen.say(
                f"bundled texts are used: {', '.join(taken.values())}; texts near the model's use are better: give "
                f"{' and '.join(f'{option} FILE' for option in taken)}"
            )


def gguf_precision(path: Path) -> str:
    """Precision of a GGUF file that is a source (``f32``, ``f16``, ``bf16``).

    Raises:
        GgufError: it is no GGUF file.
    """
    from bitloss.model.gguf_split import open_model
    from bitloss.model.source import precision

    return precision(open_model(path))
