"""Models and data sets of the Hugging Face hub: only the files that are needed, at a commit that is recorded.

A revision (branch, tag, commit; "main" when none is given) is resolved to a commit first, and every file is taken from
that commit. Files lie in the hub library's own cache (``HF_HOME``), so what another tool fetched is not fetched again,
and a download that was cut off goes on. ``HF_ENDPOINT`` names another server. Without a network (or with
``HF_HUB_OFFLINE``) what the cache has of a revision is used: the commit it was when it was last fetched whole.

The folder of a cached model is named by its commit; `snapshot_of` gives its real name back.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bitloss.errors import BitlossError, FileProblem, UnsupportedError, UsageError
from bitloss.model.checkpoint import INDEX, SETTINGS_FILES, SINGLE, shard_names
from bitloss.model.safetensors import read_json
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_write_text

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"\w[\w./-]{0,200}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Snapshot(NamedTuple):
    """A model of the hub: "owner/name" and commit."""

    id: str
    commit: str

    @property
    def name(self) -> str:
        """The model's name, without its owner."""
        return self.id.partition("/")[2]

    def __str__(self) -> str:
        """As it is recorded: "owner/name@commit"."""
        return f"{self.id}@{self.commit}"


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id: "owner/name"."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def snapshot_of(folder: Path) -> Snapshot | None:
    """Return which model a folder of the hub library's cache holds; None for any other folder."""
    folder = folder.absolute()
    commit, marks, repository = folder.name, folder.parent.name, folder.parent.parent.name
    parts = repository.split("--")
    if marks != "snapshots" or len(parts) != 3 or parts[0] != "models" or not _COMMIT.fullmatch(commit):
        return None
    return Snapshot(f"{parts[1]}/{parts[2]}", commit)


def fetch_model(
    model: str,
    revision: str | None = None,
    *,
    cache: Path | None = None,
    endpoint: str | None = None,
    progress: ProgressCallback = silent,
) -> Path:
    """Fetch the files of a model that a conversion needs; return the folder.

    Args:
        model: "owner/name".
        revision: branch, tag or commit.
        cache: folder of the hub library's cache; its own default when left out.
        endpoint: the hub's address; ``HF_ENDPOINT`` or the public one when left out.
        progress: called per file, in bytes.

    Raises:
        UsageError: no id of the hub.
        FileProblem: the hub cannot be reached, or has no such model or revision, or does not give it to everybody.
        CheckpointError: an index that names files outside the folder.
        UnsupportedError: the model has no safetensors weights.
    """
    if not is_hub_id(model):
        raise UsageError("no id of the hub", where=model, expected="owner/name")
    hub = _Hub(model, "model", cache, endpoint)
    commit, sizes = hub.resolve(revision or "main")
    wanted = [name for name in SETTINGS_FILES if name in sizes]
    weights = [name for name in (INDEX, SINGLE) if name in sizes][:1]
    if "config.json" not in sizes:
        raise UnsupportedError("the repository holds no model in the Hugging Face layout", where=model)
    if not weights:
        raise UnsupportedError(
            "the model has no safetensors weights",
            where=model,
            expected=f"{SINGLE} or {INDEX}",
            found=", ".join(sorted(sizes)[:6]),
        )
    folder = hub.get(weights[0], commit).parent
    if weights[0] == INDEX:
        weights += shard_names(read_json(folder / INDEX), f"{model}/{INDEX}")
    missing = [name for name in weights if name not in sizes]
    if missing:
        raise FileProblem(
            "a weight file of the index is missing", where=f"{model}@{commit}", found=missing[0]
        )
    every = list(dict.fromkeys([*wanted, *weights]))
    done, total = 0, sum(sizes[name] for name in every)
    for name in every:
        progress(Progress(f"fetch {model}", done, total, "bytes"))
        hub.get(name, commit)
        done += sizes[name]
    progress(Progress(f"fetch {model}", total, total, "bytes"))
    _remember(folder, revision or "main")
    return folder


def _remember(folder: Path, revision: str) -> None:
    """Note in the cache which commit a revision is, as the library does when it is asked for one by name.

    The cache's layout: ``refs/REVISION`` beside ``snapshots/COMMIT``.
    """
    if folder.name != revision and _REVISION.fullmatch(revision) and ".." not in revision:
        with suppress(BitlossError):  # only a later run without a network would use it
            atomic_write_text(folder.parents[1] / "refs" / revision, folder.name)


def fetch_dataset_file(
    dataset: str, file: str, *, cache: Path | None = None, endpoint: str | None = None
) -> Path:
    """Fetch one file of a data set, at the newest commit; errors as `fetch_model`'s."""
    return _Hub(dataset, "dataset", cache, endpoint).get(file, None)


class _Hub:
    """The hub library's calls, with its errors in our own words."""

    def __init__(self, repository: str, kind: str, cache: Path | None, endpoint: str | None) -> None:
        self._repository = repository
        self._kind = kind
        self._cache = cache
        self._endpoint = endpoint

    def resolve(self, revision: str) -> tuple[str, dict[str, int]]:
        """Return the commit of a revision and its files with their sizes; from the cache if there is no network."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._endpoint)
        try:
            with self._told(revision):
                info = api.model_info(self._repository, revision=revision, files_metadata=True, timeout=30)
        except FileProblem as problem:
            found = self._cached(revision) if problem.what.startswith("the hub cannot be reached") else None
            if found is None:
                raise
            return found
        files = {str(each.rfilename): int(each.size or 0) for each in info.siblings or ()}
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise FileProblem("the hub names no commit", where=f"{self._repository}@{revision}")
        return info.sha, files

    def get(self, file: str, revision: str | None) -> Path:
        """Fetch a file, or find it in the cache."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        with self._told(revision or "main"):
            return Path(
                hf_hub_download(
                    self._repository,
                    file,
                    repo_type=self._kind,
                    revision=revision,
                    cache_dir=self._cache,
                    endpoint=self._endpoint,
                )
            )

    def _cached(self, revision: str) -> tuple[str, dict[str, int]] | None:
        """Return a whole model of the cache."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self._repository, "config.json", cache_dir=self._cache, revision=revision
        )
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
        return folder.name, {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}

    @contextmanager
    def _told(self, revision: str) -> Iterator[None]:
        from huggingface_hub import errors

        where = f"{self._repository}@{revision}"
        own = "folder" if self._kind == "model" else "file"
        told: tuple[tuple[type[Exception], str, str | None], ...] = (
            (
                errors.GatedRepoError,
                "the hub gives this only to those who asked for it",
                "accept its terms and log in",
            ),
            (
                errors.RepositoryNotFoundError,
                f"the hub has no such {self._kind}",
                "check the spelling of owner/name",
            ),
            (
                errors.RevisionNotFoundError,
                "the hub has no such revision",
                "give a branch, a tag or a commit",
            ),
            (
                errors.LocalEntryNotFoundError,
                "the hub cannot be reached and the file is not in the cache",
                f"check the network or HF_ENDPOINT, or give a {own} of your own",
            ),
            (errors.EntryNotFoundError, "the hub has no such file there", None),
            (errors.HfHubHTTPError, "the hub refused", None),
        )
        # the library tells of each of its retries; how it ended is said here, once
        log = logging.getLogger("huggingface_hub")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise FileProblem(
                "the hub cannot be reached (HF_HUB_OFFLINE is set) and the cache has not all of it",
                where=where,
                mend="unset HF_HUB_OFFLINE, or give a folder",
            ) from None
        except OSError as error:
            for kind, what, mend in told:
                if isinstance(error, kind):
                    raise FileProblem(what, where=where, mend=mend) from None
            if type(error).__module__ == "builtins" and not isinstance(error, ConnectionError | TimeoutError):
                raise FileProblem(f"cannot be fetched ({error.strerror or error})", where=where) from None
            raise _unreachable(where, error) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] in {"httpx", "httpx2", "httpcore", "requests", "urllib3"}:
                raise _unreachable(where, error) from None
            if isinstance(error, ValueError):
                raise FileProblem(f"cannot be fetched ({str(error)[:120]})", where=where) from None
            raise
        finally:
            log.setLevel(level)


def _unreachable(where: str, error: Exception) -> FileProblem:
    return FileProblem(
        f"the hub cannot be reached ({str(error)[:120]})",
        where=where,
        mend="check the network or HF_ENDPOINT, or give a folder",
    )
