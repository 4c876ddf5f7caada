"""The estimate of a model's memory beside the peak of a process that runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitloss.engine.base import EngineOptions
from bitloss.engine.memory import available_bytes, engine_bytes
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf

OPTIONS = EngineOptions(threads=1, ubatch=256, batch=512)
SHAPES = {
    "vocabulary": RandomShape(
        n_layer=1, n_embd=256, n_ff=512, n_vocab=40_000, n_head=4, n_head_kv=2, head_dim=64
    ),
    "wide": RandomShape(n_layer=1, n_embd=4096, n_ff=64, n_vocab=2048, n_head=4, n_head_kv=2, head_dim=64),
    "cache": RandomShape(
        n_layer=12, n_embd=256, n_ff=256, n_vocab=2048, n_head=8, n_head_kv=8, head_dim=128, n_ctx_train=4096
    ),
}
_PROBE = """
import sys
from pathlib import Path
import numpy as np
from bitloss.engine.base import EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine
from bitloss.run.child import peak_bytes

before = peak_bytes()
with LlamaEngine(Path(sys.argv[1]), EngineOptions(threads=1, ubatch=256, batch=512)) as engine:
    chunks = np.random.default_rng(0).integers(3, 2000, (2, int(sys.argv[2]))).astype(np.int32)
    for rows in engine.evaluate(chunks[: int(sys.argv[3])], Outputs.LOGITS):
        rows.values.sum()
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak in /proc")
@pytest.mark.parametrize(("name", "n_ctx"), [("vocabulary", 256), ("wide", 256), ("cache", 2048)])
def test_the_estimate_is_near_the_measured_peak(name: str, n_ctx: int, tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", SHAPES[name])
    estimate = engine_bytes(GgufFile.open(path), OPTIONS, n_ctx=n_ctx)
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path), str(n_ctx), str(OPTIONS.side_by_side(n_ctx))],
        stdout=subprocess.PIPE,
        check=True,
    )
    measured = int(done.stdout)
    assert 0.8 * measured <= estimate <= 1.6 * measured, (measured, estimate)


def test_more_context_and_more_chunks_side_by_side_take_more(tmp_path: Path) -> None:
    file = GgufFile.open(random_gguf(tmp_path / "m.gguf", SHAPES["cache"]))
    short, long = (engine_bytes(file, EngineOptions(batch=512, ubatch=512), n_ctx=n) for n in (512, 4096))
    side = engine_bytes(file, EngineOptions(batch=2048, ubatch=512), n_ctx=512)
    cell = 12 * 8 * (128 + 128) * 2
    assert long - short == 3584 * (cell + 8 * 512 * 4)
    assert side - short == 3 * 512 * (cell + 8 * 512 * 4)


def test_what_is_available_is_below_what_there_is() -> None:
    total = (
        int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        if Path("/proc/meminfo").exists()
        else 1 << 60
    )
    assert 0 < available_bytes() <= total
