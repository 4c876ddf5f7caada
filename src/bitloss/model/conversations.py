"""Conversations, read from JSON lines.

A line is ``{"messages": [{"role": ..., "content": ...}, ...]}`` or ``{"conversations": [{"from": ..., "value": ...},
...]}`` (human, gpt); further keys of a message, and ``tools`` beside the messages, go to the chat template as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bitloss.display import json_kind, visible
from bitloss.errors import FormatError, TextError
from bitloss.model.documents import checked_text, json_lines

ASSISTANT: Final = "assistant"
MARKS: Final = "\ufdd0\ufdd1"
"""Noncharacters, never part of a text and no white space; `bitloss.model.chat_template` puts them around parts."""
_ROLES: Final = {
    "human": "user",
    "gpt": ASSISTANT,
    **{role: role for role in ("system", "user", ASSISTANT, "tool")},
}

Message = Mapping[str, Any]


class Conversation(NamedTuple):
    """One line of a file of conversations.

    Attributes:
        messages: each with ``role`` and ``content``.
        tools: what stands under ``tools``, or None.
        where: file and line, for messages.
    """

    messages: tuple[Message, ...]
    tools: Any
    where: str


_A_LINE: Final = 'one conversation a line: {"messages": [{"role": ..., "content": ...}, ...]}'
_MEND_MESSAGE: Final = 'give every message the form {"role": "user", "content": "..."}'
_MEND: Final = "put every conversation on a line of its own, or leave out --chat-template for a plain text"


def read_conversations(text: str, where: Path) -> list[Conversation]:
    """Read a file of conversations.

    Raises:
        FormatError: a line is no conversation; it is named.
        TextError: there is none.
    """
    lines = json_lines(text, where, expected=_A_LINE, mend=_MEND)
    found = [_conversation(value, f"{where}, line {number}") for number, value in lines]
    if not found:
        raise TextError("no conversation", where=where, expected='lines of {"messages": [...]}')
    return found


def _conversation(value: dict[str, Any], where: str) -> Conversation:
    if isinstance(listed := value.get("messages"), list):
        keys = "role", "content"
    elif isinstance(listed := value.get("conversations"), list):
        keys = "from", "value"
    else:
        raise FormatError(
            "no conversation",
            where=where,
            expected='{"messages": [{"role": ..., "content": ...}, ...]}',
            found=f"the {'keys' if len(value) > 1 else 'key'} {visible(', '.join(list(value)[:4]))}"
            if value
            else "{}",
            mend="bring the file into that form, or leave out --chat-template for a plain text",
        )
    if not listed:
        raise FormatError("conversation without a message", where=where, mend="leave out that line")
    messages = tuple(_message(each, keys, f"{where}, message {i}") for i, each in enumerate(listed, 1))
    return Conversation(messages, value.get("tools"), where)


def _message(value: Any, keys: tuple[str, str], where: str) -> Message:
    role_key, content_key = keys
    if not isinstance(value, dict):
        raise FormatError(
            "no message", where=where, expected="a JSON object", found=json_kind(value), mend=_MEND_MESSAGE
        )
    role, content = value.get(role_key), value.get(content_key)
    if not isinstance(role, str) or (role_key == "from" and role not in _ROLES):
        raise FormatError(
            "message of nobody",
            where=f"{where}: {role_key}",
            expected=", ".join(_ROLES),
            found=str(role)[:40] if role_key in value else "no such key",
            mend=_MEND_MESSAGE,
        )
    if content_key not in value and "tool_calls" not in value:
        raise FormatError(
            "message without content", where=where, expected=f'"{content_key}"', mend=_MEND_MESSAGE
        )
    if not isinstance(content, str) and not (content is None and "tool_calls" in value):
        raise FormatError(
            "content that is no text",
            where=f"{where}: {content_key}",
            expected="a text (null only beside tool_calls)",
            found=json_kind(content),
            mend=_MEND_MESSAGE,
        )
    if content is not None:
        checked_text(content, where=where)
        if any(mark in content for mark in MARKS):
            raise FormatError("content with a noncharacter (U+FDD0, U+FDD1)", where=where)
    others = {key: each for key, each in value.items() if key not in keys}
    return {**others, "role": _ROLES.get(role, role), "content": content}
