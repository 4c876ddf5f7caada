"""How a run was made, in words: what was scored, what to keep in mind of its base, versions, machine, hashes.

One source for the page, the Markdown report and the card.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitloss.display import many, size
from bitloss.records import Model, Results, Text


def scored(results: Results) -> str:
    """Which tokens of a chunk are scored."""
    documents = results.text.documents
    if documents is None:
        return "second half scored"
    if documents.split == "conversations":
        return "the assistant's tokens scored"
    return "every token but the first scored"


def opening(results: Results) -> str:
    """What was measured against what, on what, in a sentence."""
    text = results.text
    files, chunks = many(len(results.candidates), "file"), many(text.chunks, "chunk")
    if not results.candidates:
        return (
            f"No candidates yet: nothing was measured against {results.base.name} on {text.name} "
            f"({chunks} of {text.n_ctx}, {scored(results)})."
        )
    return (
        f"{files} measured against {results.base.name} on {text.scored_tokens:,} tokens of {text.name} "
        f"({chunks} of {text.n_ctx}, {scored(results)})."
    )


def reservations(results: Results) -> tuple[str, ...]:
    """What to keep in mind of the base, said at the top of a report."""
    base, said = results.base, []
    if base.forced:
        said.append(
            "The base was made from something else than what was measured (accepted with --force): "
            f"{'; '.join(base.forced)}."
        )
    if base.limits:
        said.append(f"What this base cannot tell: {base.limits}.")
    return tuple(said)


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
    if (documents := results.text.documents) is not None:
        yield (
            "Documents",
            f"{documents.split}: {documents.scored} scored ({documents.cut} of them longer than a chunk, cut into "
            f"overlapping windows), {documents.unscored} with nothing to score, {documents.unused} not used",
        )
    if (calibration := results.calibration) is not None:
        yield (
            "Calibration",
            f"{calibration.name}, {calibration.chunks} chunks of {calibration.n_ctx}, sha256 {calibration.sha256}",
        )
    if (overlap := results.text.overlap) is not None:
        yield (
            "Overlap",
            f"{overlap.shared:,} of {overlap.windows:,} windows of {overlap.window} tokens of the text occur in the "
            "calibration text",
        )
    base = results.base
    yield (
        "Base",
        f"{base.file}, {size(base.bytes)}, sha256 {base.sha256}; its evaluation takes {size(base.stored_bytes)}",
    )


def _model(model: Model) -> str:
    if model.sha256 is None:
        return f"not known; the files measured are {model.architecture} of {model.parameters:,} weights"
    return f"{model.name}, {model.architecture}, {model.parameters:,} weights in {model.dtype}, sha256 {model.sha256}"


def _text(text: Text) -> str:
    known = (
        f"sha256 {text.sha256}"
        if text.sha256
        else f"which holds its tokens alone, their sha256 {text.tokens_sha256}"
    )
    return f"{text.name}, {known}, BOS {'at the start of each chunk' if text.add_bos else 'not added'}"
