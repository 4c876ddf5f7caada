"""A source with a weight that is NaN is refused by what would be computed from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.cli.test_bad_input import refused

from bitloss.model.gguf import GgufFile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 2)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("blk.0.attn_q.weight", "blk.0.attn_output.weight: activations are not finite"),
        ("blk.0.ffn_down.weight", "logits are not finite"),  # no input of a layer's weight comes after it
        ("output.weight", "logits are not finite"),
    ],
)
def test_one_weight_is_enough(cli: Cli, inputs: Inputs, tmp_path: Path, tensor: str, named: str) -> None:
    info = GgufFile.open(inputs.source).tensors[tensor]
    with inputs.source.open("r+b") as file:
        file.seek(info.offset + 8)
        file.write(np.float32(np.nan).tobytes())
    text = ("--text", inputs.text, *TINY, "-q")
    out = tmp_path / "out"
    for verb in ("base", "imatrix"):
        done = cli(verb, inputs.source, *text, "-o", out)
        refused(done, 1, "not finite", "`bitloss audit` finds it")
        assert named in done.err if verb == "imatrix" else "logits are not finite" in done.err
        assert not out.exists()
    done = cli("measure", inputs.source, "--base", inputs.source, *text, "-o", out)
    refused(done, 1, "logits are not finite: found 16 of 16 tokens")
    assert not (out / "base").exists()
