"""What a run leaves on disk: atomic writes, content keys, the run folder with its lock and step records."""

from bitloss.store.atomic import (
    atomic_dir,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    clean_partials,
)
from bitloss.store.folder import RunFolder, StepOutput, StepRecord, describe_difference
from bitloss.store.keys import content_key, sha256_file

__all__ = [
    "RunFolder",
    "StepOutput",
    "StepRecord",
    "atomic_dir",
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_text",
    "clean_partials",
    "content_key",
    "describe_difference",
    "sha256_file",
]
