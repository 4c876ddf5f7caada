"""Every family goes through the engine: logits made again from hidden states are the engine's own, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.convert.families import FAMILIES
from bitloss.engine.base import EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine
from bitloss.engine.output_layer import OutputLayer, after_the_product
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile

pytestmark = pytest.mark.parity

DATA = Path(__file__).parents[1] / "data"
CHECKPOINTS = sorted([*(DATA / "checkpoints").iterdir(), *(DATA / "families").iterdir()])


def test_every_family_has_a_checkpoint() -> None:
    assert {Checkpoint.open(path).architecture for path in CHECKPOINTS} == {f.architecture for f in FAMILIES}


@pytest.mark.parametrize("kind", SourceType)
@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_logits_made_again_are_the_engines(folder: Path, kind: SourceType, tmp_path: Path) -> None:
    convert(folder, [kind], tmp_path)
    path = source_path(tmp_path, folder.name, kind)
    chunk = np.load(folder / "golden_logits.npz")["tokens"].astype(np.int32)
    with LlamaEngine(path, EngineOptions(threads=2)) as engine:
        hidden, logits = engine.hidden_and_logits(chunk)
        assert len(list(engine.evaluate(chunk[None], Outputs.NOTHING))) > 0
    layer = OutputLayer(path, threads=2)
    again = np.concatenate([layer.logits(hidden[part]).copy() for part in layer.slices(len(hidden))])
    assert np.array_equal(again.view(np.uint32), logits.view(np.uint32))
    layer.close()

    # What follows the product is at work: without it the logits are others.
    after = after_the_product(GgufFile.open(path))
    assert bool(after) == (folder.name in {"gemma2", "granite"})
    layer = OutputLayer(path, threads=2)
    layer._after = ()
    bare = layer.logits(hidden[: layer.rows_per_slice])
    assert np.array_equal(bare, logits[: len(bare)]) == (not after)
