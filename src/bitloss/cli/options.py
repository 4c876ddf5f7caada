"""Options several verbs share, under llama.cpp's names."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from bitloss.display import visible
from bitloss.engine.base import FlashAttention, SplitMode
from bitloss.errors import UsageError
from bitloss.run.steps import engine_options
from bitloss.spec import EngineSpec


class Rule(StrEnum):
    """What `--stop-when` takes."""

    DECIDED = "decided"
    PRECISE = "precise"


class EncoderName(StrEnum):
    """What `--encoder` takes."""

    BITLOSS = "bitloss"
    LLAMA_CPP = "llama.cpp"


Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output; progress on standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there, whatever they are.")]
Ctx = Annotated[int, typer.Option("--ctx", "-c", min=8, help="Tokens in a chunk; the second half is scored.")]
Chunks = Annotated[int | None, typer.Option("--chunks", min=1, help="Chunks at most. [default: all]")]
GgufChunks = Annotated[
    int | None,
    typer.Option(
        "--chunks",
        min=1,
        help="Chunks of each text at most, where --base is a GGUF file; a base that is stored is measured as a whole. "
        "[default: all]",
    ),
]
SourceChunks = Annotated[
    int | None,
    typer.Option("--chunks", min=1, help="Chunks of each text at most, without a --base. [default: all]"),
]
Documents = Annotated[
    str | None,
    typer.Option(
        "--documents",
        help="Split the text into documents, whose borders no chunk crosses: blank-line, file, jsonl or line=TEXT.",
    ),
]
ChatTemplate = Annotated[
    bool,
    typer.Option(
        "--chat-template",
        help="The text is JSON lines of conversations: render them with the model's own template, score the assistant.",
    ),
]

Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a model of the hub. [default: main]"),
]

StopWhen = Annotated[
    Rule | None,
    typer.Option(
        "--stop-when",
        help="Stop before the text is at its end: decided, once every pair of candidates is told apart or equivalent "
        "(--margin); precise, once every mean KLD is known to within --precision.",
    ),
]
Margin = Annotated[
    str | None,
    typer.Option("--margin", help="With decided: mean KLD that differs by less is equivalent, e.g. 5%."),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Stop once every mean KLD is known to within this, e.g. 2%."),
]

R = TypeVar("R")

_ENGINE: dict[str, tuple[Any, Any]] = {
    "gpu_layers": (
        Annotated[
            int,
            typer.Option(
                "--gpu-layers",
                "-ngl",
                min=-1,
                help="Layers kept on the GPU; -1 for all.",
                rich_help_panel="Engine",
            ),
        ],
        0,
    ),
    "flash_attn": (
        Annotated[
            FlashAttention,
            typer.Option("--flash-attn", "-fa", help="Flash attention.", rich_help_panel="Engine"),
        ],
        FlashAttention.AUTO,
    ),
    "split_mode": (
        Annotated[
            SplitMode,
            typer.Option(
                "--split-mode", "-sm", help="How to spread over several GPUs.", rich_help_panel="Engine"
            ),
        ],
        SplitMode.LAYER,
    ),
    "tensor_split": (
        Annotated[
            str,
            typer.Option(
                "--tensor-split", "-ts", help="Share of each GPU, e.g. 3,1.", rich_help_panel="Engine"
            ),
        ],
        "",
    ),
    "threads": (
        Annotated[
            int,
            typer.Option(
                "--threads", "-t", min=0, help="CPU threads; 0 takes all.", rich_help_panel="Engine"
            ),
        ],
        0,
    ),
    "batch_size": (
        Annotated[
            int, typer.Option("--batch-size", "-b", min=2, help="Tokens per call.", rich_help_panel="Engine")
        ],
        2048,
    ),
    "ubatch_size": (
        Annotated[
            int,
            typer.Option(
                "--ubatch-size", "-ub", min=2, help="Tokens computed at a time.", rich_help_panel="Engine"
            ),
        ],
        512,
    ),
    "max_memory": (
        Annotated[
            str | None,
            typer.Option(
                "--max-memory",
                help="Memory for candidates measured in one pass, e.g. 8GiB. [default: 4/5 of what is free]",
                show_default=False,
                rich_help_panel="Engine",
            ),
        ],
        None,
    ),
}
_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


def with_engine(verb: Callable[..., R]) -> Callable[..., R]:
    """Give a verb that takes ``engine: EngineSpec`` the engine's flags instead."""
    signature = inspect.signature(verb, eval_str=True)

    @functools.wraps(verb)
    def wrapped(**arguments: Any) -> R:
        engine = _settings({name: arguments.pop(name) for name in _ENGINE})
        done = verb(**arguments, engine=engine)
        _warn_without_gpu(engine)  # afterwards: a mistake gets one line, its own
        return done

    kept = [p for p in signature.parameters.values() if p.name != "engine"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _ENGINE.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept] + added
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters} | {
        "return": signature.return_annotation
    }
    return wrapped


def _warn_without_gpu(engine: EngineSpec) -> None:
    """Say what llama.cpp says in its log alone: without a GPU backend layers stay where they are."""
    if engine.n_gpu_layers:
        import llama_cpp  # a third of a second, only needed here

        if not llama_cpp.llama_supports_gpu_offload():
            sys.stderr.write(
                "bitloss: --gpu-layers has no effect: this llama.cpp is built without a GPU backend\n"
            )


def _settings(flags: dict[str, Any]) -> EngineSpec:
    settings = EngineSpec(
        n_gpu_layers=flags["gpu_layers"],
        flash_attn=flags["flash_attn"],
        split_mode=flags["split_mode"],
        tensor_split=_shares(flags["tensor_split"]),
        threads=flags["threads"],
        batch=flags["batch_size"],
        ubatch=flags["ubatch_size"],
        max_memory=None if flags["max_memory"] is None else size(flags["max_memory"], "--max-memory"),
    )
    engine_options(settings)  # checks the values
    return settings


def size(text: str, option: str) -> int:
    """A number of bytes: ``8GiB``, ``500M``, ``1.5 GB``.

    Raises:
        UsageError: no such number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    value = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if not 1 <= value < 2**63:
        raise UsageError(
            "not a size" if not match else "a size of nothing" if value < 1 else "larger than any memory",
            where=option,
            expected="a size like 8GiB or 500MB",
            found=visible(text, 40),
        )
    return int(value)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        shares = (math.nan,)
    if not all(0 <= share < math.inf for share in shares) or (shares and not any(shares)):
        raise UsageError(
            "not a list of shares", where="--tensor-split", expected="numbers like 3,1", found=text
        )
    return shares


def stop_rule(when: Rule | None, margin: str | None, precision: str | None) -> dict[str, Any] | None:
    """The table ``[stop]`` of an experiment from its flags; None when the whole text is to be measured.

    Raises:
        UsageError: no shares, or flags that do not go together.
    """
    if when is None and precision is None:
        if margin is not None:
            raise UsageError("nothing to stop by", where="--margin", mend="add --stop-when decided")
        return None
    rule = when or Rule.PRECISE
    if rule is Rule.PRECISE and precision is None:
        raise UsageError(
            "precise needs a precision", where="--stop-when", mend="add one, e.g. --precision 2%"
        )
    if rule is Rule.PRECISE and margin is not None:
        raise UsageError("a margin belongs to decided, not to precise", where="--margin", mend="leave it out")
    if rule is Rule.DECIDED and precision is not None:
        raise UsageError(
            "a precision belongs to precise, not to decided", where="--precision", mend="leave it out"
        )
    values = {
        "when": rule.value,
        "margin": _share(margin, "--margin"),
        "precision": _share(precision, "--precision"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _share(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100.0 if number != text.strip() else 1.0)
    except ValueError:
        share = math.nan
    if not 0.0 < share < 1.0:
        raise UsageError("not a share", where=option, expected="a share such as 5% or 0.05", found=text)
    return share


def listed(text: str, option: str) -> tuple[str, ...]:
    """A comma-separated list, none empty, none twice.

    Raises:
        UsageError: the list is empty or names something twice.
    """
    items = tuple(part.strip() for part in text.split(",") if part.strip())
    if not items:
        raise UsageError("empty list", where=option, expected="names separated by commas")
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise UsageError("named twice", where=option, found=", ".join(twice))
    return items
