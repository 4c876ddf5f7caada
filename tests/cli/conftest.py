"""What the tests of the command line share: a runner and the smallest inputs that go through every verb."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bitloss.cli import main
from bitloss.engine.base import chunks_of_text
from bitloss.engine.llama import LlamaEngine
from bitloss.imatrix.collect import collect_imatrix
from bitloss.imatrix.file import write_imatrix
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.run.executor import InlineExecutor

SHAPE = RandomShape(
    n_vocab=320, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_ctx_train=256
)
CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process, its steps too."""
    for module in ("verbs", "experiments"):
        monkeypatch.setattr(f"bitloss.cli.{module}.LocalExecutor", InlineExecutor)

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


class Inputs(NamedTuple):
    """Files every verb accepts."""

    folder: Path
    checkpoint: Path
    source: Path
    text: Path
    imatrix: Path


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    source = random_gguf(folder / "tiny-f32.gguf", SHAPE, seed=7, dtype="f32")
    text = folder / "text.txt"
    text.write_text(" ".join(f"the {n} cats sat on {n * n % 97} mats and ate" for n in range(60)) + "\n")
    imatrix = folder / "tiny.imatrix.gguf"
    with LlamaEngine(source) as engine:
        chunks = chunks_of_text(engine, text, n_ctx=32, n_chunks=2)
        write_imatrix(collect_imatrix(engine, chunks, dataset="text.txt"), imatrix)
    return Inputs(folder, CHECKPOINTS / "mistral-odd", source, text, imatrix)


@pytest.fixture
def inputs(_made: Inputs, tmp_path: Path) -> Inputs:
    """Copies, so that a test may damage them."""
    folder = tmp_path / "inputs"
    shutil.copytree(_made.folder, folder)
    checkpoint = folder / "mistral-odd"
    shutil.copytree(_made.checkpoint, checkpoint, ignore=shutil.ignore_patterns("*.npz"))
    return Inputs(folder, checkpoint, *(folder / path.name for path in _made[2:]))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, files with their hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(name="snapshot")
def _snapshot() -> Callable[[Path], dict[str, str]]:
    return snapshot
