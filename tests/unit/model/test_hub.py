"""The hub, as a server on this machine that speaks its API."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.hubserver import NEW, OLD, Hub

from bitloss.convert.convert import SourceType, convert
from bitloss.errors import (
    BitlossError,
    CheckpointError,
    FileProblem,
    FormatError,
    UnsupportedError,
    UsageError,
)
from bitloss.model import wikitext
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.hub import Snapshot, fetch_dataset_file, fetch_model, is_hub_id, snapshot_of
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint, write_json
from bitloss.progress import Progress


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def model(tmp_path: Path, hub: Hub) -> Path:
    folder = random_checkpoint(tmp_path / "tiny-model", CheckpointOptions(shards=2))
    (folder / "consolidated.safetensors").write_bytes(b"not wanted")
    (folder / "original").mkdir()
    (folder / "original" / "weights.pth").write_bytes(b"not wanted")
    hub.put(folder, "owner/tiny-model")
    return folder


def test_only_what_is_needed_comes_from_the_commit_of_the_revision(
    tmp_path: Path, hub: Hub, model: Path
) -> None:
    seen: list[Progress] = []
    folder = fetch_model(
        "owner/tiny-model", cache=tmp_path / "cache", endpoint=hub.address, progress=seen.append
    )
    assert snapshot_of(folder) == Snapshot("owner/tiny-model", NEW)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all(f"/resolve/{NEW}/" in each for each in hub.asked if "/resolve/" in each)
    assert seen[-1].done == seen[-1].total == sum(path.stat().st_size for path in folder.iterdir())
    fetched = len([each for each in hub.asked if each.startswith("GET /owner")])
    fetch_model("owner/tiny-model", cache=tmp_path / "cache", endpoint=hub.address)
    assert len([each for each in hub.asked if each.startswith("GET /owner")]) == fetched  # nothing twice

    older = fetch_model("owner/tiny-model", "v1", cache=tmp_path / "cache", endpoint=hub.address)
    assert snapshot_of(older) == Snapshot("owner/tiny-model", OLD)


def test_a_fetched_model_converts_as_the_folder_does(tmp_path: Path, hub: Hub, model: Path) -> None:
    folder = fetch_model("owner/tiny-model", cache=tmp_path / "cache", endpoint=hub.address)
    one = convert(model, list(SourceType), tmp_path / "a")
    other = convert(folder, list(SourceType), tmp_path / "b")
    assert other.outputs == one.outputs
    assert (one.hub, other.hub) == (None, f"owner/tiny-model@{NEW}")
    assert other.model == "tiny-model"


def test_a_download_that_was_cut_off_goes_on(tmp_path: Path, hub: Hub, model: Path) -> None:
    # The library writes pieces of 10 MB; a file that ends within the first is begun anew.
    big = bytes(range(256)) * (24 << 12)
    hub.repositories["model", "owner/tiny-model"][NEW]["README.md"] = big
    hub.cut["README.md"] = 21 << 20
    for _ in range(3):  # the library itself tries again, or leaves it to the next call
        with contextlib.suppress(FileProblem):
            folder = fetch_model("owner/tiny-model", cache=tmp_path / "cache", endpoint=hub.address)
            break
    assert (folder / "README.md").read_bytes() == big
    assert [int(each.split()[-1]) >= 10_000_000 for each in hub.ranges] == [True]


def test_without_a_network_what_is_in_the_cache_is_used(tmp_path: Path, hub: Hub, model: Path) -> None:
    first = fetch_model("owner/tiny-model", cache=tmp_path / "cache", endpoint=hub.address)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for revision in (NEW, None, "main"):  # what the revision was is remembered
        again = fetch_model("owner/tiny-model", revision, cache=tmp_path / "cache", endpoint=nowhere)
        assert again == first
    assert Checkpoint.open(again).names()
    with pytest.raises(FileProblem, match=r"owner/tiny-model@v1: the hub cannot be reached"):
        fetch_model("owner/tiny-model", "v1", cache=tmp_path / "cache", endpoint=nowhere)
    with pytest.raises(FileProblem, match=r"owner/other@main: the hub cannot be reached.*HF_ENDPOINT"):
        fetch_model("owner/other", cache=tmp_path / "cache", endpoint=nowhere)


def test_without_a_network_the_library_tells_of_no_retries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    level = logging.getLogger("huggingface_hub").level
    words = (
        r"o/d@main: the hub cannot be reached.*Check the network or HF_ENDPOINT, or give a file of your own"
    )
    with pytest.raises(FileProblem, match=words):
        fetch_dataset_file("o/d", "f.parquet", cache=tmp_path, endpoint=nowhere)
    assert caplog.records == []
    assert logging.getLogger("huggingface_hub").level == level


def test_what_the_hub_has_not_is_told_in_one_line(tmp_path: Path, hub: Hub, model: Path) -> None:
    def refused(name: str, revision: str | None, kind: type[BitlossError], message: str) -> None:
        with pytest.raises(kind, match=message) as caught:
            fetch_model(name, revision, cache=tmp_path / "cache", endpoint=hub.address)
        assert "\n" not in str(caught.value)

    refused("owner/none", None, FileProblem, r"owner/none@main: the hub has no such model.*spelling")
    refused("owner/tiny-model", "v9", FileProblem, r"owner/tiny-model@v9: the hub has no such revision")
    refused("../../etc", None, UsageError, "expected owner/name")
    hub.gated = True
    refused("owner/tiny-model", None, FileProblem, "only to those who asked")
    hub.gated = False

    files = hub.repositories["model", "owner/tiny-model"][NEW]
    index = json.loads(files["model.safetensors.index.json"])
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../../outside.safetensors"
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    refused("owner/tiny-model", None, CheckpointError, "no plain safetensors file.*outside")
    index["weight_map"][name] = "model-00003-of-00003.safetensors"
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    shutil.rmtree(tmp_path / "cache")
    refused("owner/tiny-model", None, FileProblem, r"weight file of the index is missing: found model-00003")
    for weights in [each for each in files if each.endswith((".safetensors", ".index.json"))]:
        del files[weights]
    refused("owner/tiny-model", None, UnsupportedError, "no safetensors weights: expected model.safetensors")
    del files["config.json"]
    refused("owner/tiny-model", None, UnsupportedError, "no model in the Hugging Face layout")


def test_ids_and_folders() -> None:
    assert is_hub_id("mistralai/Mistral-7B-v0.3")
    for text in ("a", "a/b/c", "./a/b", "../b", "a/..", "/abs/path", "a b/c", "a/", "a--b/c"):
        assert not is_hub_id(text), text
    cached = Path("x/models--a--b/snapshots")
    assert snapshot_of(cached / NEW) == Snapshot("a/b", NEW)
    assert snapshot_of(cached / "main") is None
    assert snapshot_of(Path("models")) is None


LINES = [" \n", " = A Title = \n", " \n", " Some text , with words . \n", " \n", " Unicode – é 中 \n"]


@pytest.fixture
def dataset(tmp_path: Path, hub: Hub) -> str:
    """The data set in miniature; returns the hash of its text."""
    path = tmp_path / "set" / wikitext.FILE
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["" if line == " \n" else line for line in LINES]}), path)
    hub.put(tmp_path / "set", wikitext.DATASET, "dataset")
    return hashlib.sha256("".join(LINES).encode()).hexdigest()


def test_wikitext_is_rebuilt_checked_and_kept(tmp_path: Path, hub: Hub, dataset: str) -> None:
    path = wikitext.wikitext(cache=tmp_path / "kept", endpoint=hub.address, sha256=dataset)
    assert path.read_bytes() == "".join(LINES).encode()
    asked = len(hub.asked)
    assert wikitext.wikitext(cache=tmp_path / "kept", endpoint=hub.address, sha256=dataset) == path
    assert len(hub.asked) == asked
    path.write_bytes(b"damaged")
    again = wikitext.wikitext(cache=tmp_path / "kept", endpoint=hub.address, sha256=dataset)
    assert again.read_bytes() == "".join(LINES).encode()


def test_another_data_set_is_refused(tmp_path: Path, hub: Hub, dataset: str) -> None:
    with pytest.raises(FormatError, match=f"not what it was: expected {wikitext.SHA256}, found {dataset}"):
        wikitext.wikitext(cache=tmp_path / "kept", endpoint=hub.address)
    assert not list((tmp_path / "kept").glob("*.raw"))
    files = hub.repositories["dataset", wikitext.DATASET][NEW]
    files[wikitext.FILE] = b"no parquet"
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(FormatError, match="no data set of texts"):
        wikitext.wikitext(cache=tmp_path / "kept", endpoint=hub.address, sha256=dataset)
    write_json(tmp_path / "t", {})
    with pytest.raises(FormatError, match="no data set of texts"):
        wikitext.rebuilt(tmp_path / "t")
