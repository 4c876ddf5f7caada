"""Conversations in both common forms are read; what is no conversation is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitloss.errors import FormatError, TextError
from bitloss.model.conversations import read_conversations

WHERE = Path("talk.jsonl")


def test_both_forms_are_read() -> None:
    lines = [
        {"messages": [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "assistant", "value": "b"}],
            "tools": [1],
        },
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "ipython", "content": ""},
            ]
        },
    ]
    found = read_conversations("\n\n".join(map(json.dumps, lines)), WHERE)
    assert [[m["role"] for m in each.messages] for each in found] == [
        ["user", "assistant"],
        ["user", "assistant"],
        ["system", "assistant"],
        ["assistant", "ipython"],
    ]
    assert found[0].messages[0]["name"] == "x"
    assert [m["content"] for m in found[1].messages] == ["a", "b"]
    assert found[2].tools == [1]
    assert found[3].messages[0]["content"] is None
    assert [each.where for each in found] == [f"talk.jsonl, line {n}" for n in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", 'line 2: no JSON: expected one conversation a line: {"messages": '),
        ("[" * 100_000, "line 2: no JSON"),
        ("[]", ", found a list. Put every conversation on a line of its own"),
        ('{"text": "a"}', "line 2: no conversation"),
        ('{"messages": {}}', "line 2: no conversation"),
        ('{"messages": []}', "line 2: conversation without a message"),
        ('{"messages": ["a"]}', "line 2, message 1: no message"),
        ('{"messages": [{"content": "a"}]}', "message 1: role: message of nobody"),
        (
            '{"messages": [{"role": "user"}]}',
            'message 1: message without content: expected "content". Give every message the form',
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
            "content that is no text: expected a text (null only beside tool_calls), found a list",
        ),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
        ('{"messages": [{"role": "user", "content": "\\ufdd0"}]}', "noncharacter"),
        ('{"conversations": [{"from": "bing", "value": "a"}]}', "message 1: from: message of nobody"),
    ],
)
def test_what_is_no_conversation_is_named(line: str, told: str) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}]}'
    with pytest.raises(FormatError) as caught:
        read_conversations(f"{good}\n{line}\n{good}", WHERE)
    assert told in str(caught.value)


def test_a_file_without_any() -> None:
    with pytest.raises(TextError, match=r"talk\.jsonl: no conversation"):
        read_conversations(" \n\n", WHERE)


def test_what_to_do_about_lines_that_are_no_conversations() -> None:
    cases: list[tuple[object, str, str]] = [
        ({"txt": "a"}, "found the key txt", "leave out --chat-template"),
        ({"a": 1, "b": 2}, "found the keys a, b", "leave out --chat-template"),
        ({"messages": []}, "without a message", "Leave out that line"),
        ({"messages": [3]}, "no message", "Give every message the form"),
        ({"messages": [{"role": "user"}]}, "message 1: message without content", "Give every message the form"),
        ({"messages": [{"role": "user", "content": None}]}, "found null", "Give every message the form"),
        ({"messages": [{"content": "a"}]}, "message of nobody", "Give every message the form"),
    ]  # fmt: skip
    for value, fault, mend in cases:
        with pytest.raises(FormatError) as caught:
            read_conversations(json.dumps(value), WHERE)
        assert fault in str(caught.value)
        assert mend in str(caught.value)
