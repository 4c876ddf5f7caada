"""What a command printed, and the smallest measurement."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.cli.conftest import Done

TINY = ("--ctx", 32, "--chunks", 3)


def document(done: Done) -> Any:
    """The one JSON document of a command that went well."""
    assert done.code == 0, done.err
    return json.loads(done.out)


def lines(done: Done) -> list[str]:
    """What a command that went well printed."""
    assert done.code == 0, done.err
    return done.out.splitlines()
