"""`wiki.test.raw` of WikiText-2, which llama.cpp's users measure on, rebuilt from the hub's data set.

The data set (Salesforce/wikitext, wikitext-2-raw-v1, CC BY-SA 3.0) holds one row per line; the lines of one space
between paragraphs are empty rows there. Putting the spaces back gives the published file byte for byte, which is
checked by its hash. It is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bitloss.errors import FormatError, UnsupportedError
from bitloss.model.hub import fetch_dataset_file
from bitloss.store import atomic_write_bytes

NAME = "wikitext-2"
DATASET, FILE = "Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet"
SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
_MOST = 64 << 20


def wikitext(*, cache: Path | None = None, endpoint: str | None = None, sha256: str = SHA256) -> Path:
    """Return `wiki.test.raw`, fetched and rebuilt when it is not in the cache.

    Args:
        cache: folder to keep it in; ``$XDG_CACHE_HOME/bitloss`` or ``~/.cache/bitloss`` when left out.
        endpoint: the hub's address, as for `bitloss.model.hub.fetch_model`.
        sha256: of the file wanted.

    Raises:
        FileProblem: the hub cannot be reached, or the cache cannot be written.
        FormatError: the data set is not what it was.
    """
    kept = (cache or _cache()) / f"wiki.test.{sha256[:12]}.raw"
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == sha256:
        return kept
    hub_cache = None if cache is None else cache / "hub"
    text = rebuilt(fetch_dataset_file(DATASET, FILE, cache=hub_cache, endpoint=endpoint))
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise FormatError(
            "the data set is not what it was", where=f"{DATASET}/{FILE}", expected=sha256, found=found
        )
    atomic_write_bytes(kept, text)
    return kept


def rebuilt(parquet: Path) -> bytes:
    """Return the text of a Parquet file of the data set, line ends and lines of one space put back.

    Raises:
        FormatError: no Parquet file with a column of texts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if parquet.stat().st_size > _MOST:
            raise UnsupportedError("too large for this data set", where=parquet)
        rows = pq.read_table(parquet, columns=["text"]).column("text").to_pylist()
        return "".join(row or " \n" for row in rows).encode()
    except (pa.ArrowException, KeyError, TypeError, OSError) as error:
        raise FormatError(f"no data set of texts ({str(error)[:120]})", where=parquet) from None


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bitloss"
