"""Models and texts of the hub, by the command line: fetched, converted, used again without a network, refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.hubserver import NEW, OLD, Hub

from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint

pytestmark = pytest.mark.e2e


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    running = Hub()
    running.put(random_checkpoint(tmp_path / "tiny-model", CheckpointOptions(shards=2)), "owner/tiny-model")
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def run(tmp_path: Path, hub: Hub) -> Run:
    """Run a command in a process of its own: the hub's library reads its settings when it is imported."""

    def run(*arguments: object, **settings: str) -> Done:
        own = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "c"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "bitloss", *map(str, arguments)],
            env=os.environ | own | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def test_a_model_is_fetched_and_found_again_without_a_network(tmp_path: Path, hub: Hub, run: Run) -> None:
    out = tmp_path / "out"
    done = run("convert", "owner/tiny-model", "--to", "f16", "-o", out, "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{out / 'tiny-model-f16.gguf'}\n"
    record = json.loads((out / "conversion.json").read_text())
    assert record["hub"] == f"owner/tiny-model@{NEW}"
    assert record["proof"]["tokens"]["tokens"] > 1000
    older = run("convert", "owner/tiny-model", "--revision", "v1", "--to", "bf16", "-o", out, "--json", "-q")
    assert json.loads(older.out)["hub"] == f"owner/tiny-model@{OLD}"

    asked = len(hub.asked)
    offline = run("convert", "owner/tiny-model", "-o", out, "-q", HF_HUB_OFFLINE="1")
    assert (offline.code, offline.err) == (0, "")
    assert len(hub.asked) == asked
    code, _, line = run("convert", "owner/other", "-o", out, "-q", HF_HUB_OFFLINE="1")
    assert (code, line) == (
        1,
        "bitloss: owner/other@main: the hub cannot be reached (HF_HUB_OFFLINE is set) and the cache has not all of "
        "it. Unset HF_HUB_OFFLINE, or give a folder\n",
    )


def test_what_the_hub_does_not_give_is_told_in_one_line(tmp_path: Path, run: Run) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for arguments, endpoint, message in (
        (("owner/none",), None, "owner/none@main: the hub has no such model"),
        (("owner/tiny-model", "--revision", "v9"), None, "owner/tiny-model@v9: the hub has no such revision"),
        (("owner/tiny-model",), nowhere, "owner/tiny-model@main: the hub cannot be reached"),
        (("./owner/tiny-model",), None, "./owner/tiny-model: no such model"),
    ):
        settings = {} if endpoint is None else {"HF_ENDPOINT": endpoint}
        code, out, line = run("convert", *arguments, "-o", tmp_path / "out", "-q", **settings)
        assert (code, out, line.count("\n")) == (1, "", 1)
        assert line.startswith(f"bitloss: {message}")
        assert not (tmp_path / "out").exists()
    code, _, line = run("run", "owner/tiny-model", "--text", "wikitext-2", "-q", "--out", tmp_path / "out")
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith("bitloss: Salesforce/wikitext@main: the hub has no such dataset")
    assert not (tmp_path / "out").exists()
