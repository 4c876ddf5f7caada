"""How a run was made, as rows of words: versions, machine, files with their hashes."""

from __future__ import annotations

from collections.abc import Iterator

from bitloss.display import size
from bitloss.records import Model, Results, Text


def made_rows(results: Results) -> tuple[tuple[str, str], ...]:
    """What and which, for a list."""
    return tuple(_rows(results))


def _rows(results: Results) -> Iterator[tuple[str, str]]:
    llama, machine = results.llama_cpp, results.machine
    yield "bitloss", results.bitloss
    yield (
        "llama.cpp",
        f"commit {llama.commit}, in llama-cpp-python {llama.version}; {', '.join(llama.build_flags)}",
    )
    accelerator = f", {machine.accelerator}" if machine.accelerator else ""
    yield (
        "Machine",
        f"{machine.cpu}, {machine.cores} cores, {size(machine.memory_bytes)} of memory{accelerator}, backend "
        f"{machine.backend}",
    )
    yield "System", f"{machine.os}, Python {machine.python}"
    yield "Model", _model(results.model)
    yield "Text", _text(results.text)
    if (calibration := results.calibration) is not None:
        yield (
            "Calibration",
            f"{calibration.name}, {calibration.chunks} chunks of {calibration.n_ctx}, sha256 {calibration.sha256}",
        )
    base = results.base
    yield (
        "Base",
        f"{base.file}, {size(base.bytes)}, sha256 {base.sha256}; its evaluation takes {size(base.stored_bytes)}",
    )
    if base.limits:
        yield "What this base cannot tell", base.limits


def _model(model: Model) -> str:
    if model.sha256 is None:
        return f"not known; the files measured are {model.architecture} of {model.parameters} weights"
    return f"{model.name}, {model.architecture}, {model.parameters} weights in {model.dtype}, sha256 {model.sha256}"


def _text(text: Text) -> str:
    known = (
        f"sha256 {text.sha256}"
        if text.sha256
        else f"which holds its tokens alone, their sha256 {text.tokens_sha256}"
    )
    return f"{text.name}, {known}, BOS {'at the start of each chunk' if text.add_bos else 'not added'}"
