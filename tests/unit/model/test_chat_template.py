"""Chat templates render as transformers renders them; the assistant's part is found, or the template is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitloss.errors import BitlossError, TextError, UnsupportedError
from bitloss.model.chat_template import ChatTemplate, Rendered, SpecialTokens
from bitloss.model.chat_tokens import assistant_tokens, place_tokens
from bitloss.model.conversations import Conversation, read_conversations

GOLDEN = Path(__file__).parents[2] / "data" / "chat_golden.json"  # made by training/make_chat_golden.py


@cache
def _golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(GOLDEN.read_text())
    return document


def _conversation(value: dict[str, Any]) -> Conversation:
    (conversation,) = read_conversations(json.dumps(value), Path("talk.jsonl"))
    return conversation


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, SpecialTokens(**_golden()["special"]), where="m.gguf")


def _said(rendered: Rendered) -> list[str]:
    return [rendered.text[first:last] for first, last in rendered.spans]


@pytest.mark.parametrize(
    "case", _golden()["cases"], ids=lambda case: f"{case['template']}, {case['conversation']}"
)
def test_rendering_is_that_of_transformers(case: dict[str, Any]) -> None:
    template = _template(_golden()["templates"][case["template"]])
    conversation = _conversation(_golden()["conversations"][case["conversation"]])
    if "refused" in case:
        with pytest.raises(TextError) as caught:
            template.render(conversation)
        assert case["refused"] in str(caught.value)
        assert "talk.jsonl, line 1" in str(caught.value)
        return
    assert template.text(conversation) == case["text"]
    rendered = template.render(conversation)
    assert rendered.text == case["text"]
    said = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
    assert len(rendered.spans) == len(said)
    for found, content in zip(_said(rendered), said, strict=True):
        if rendered.by_template:
            assert found == content + "</s>\n"
        elif (case["template"], content) == ("thinking", said[0]) and "</think>" in content:
            assert found == "One."
        else:
            assert found in (content, content.strip())


def test_the_cases_cover_every_way_of_finding_the_assistant() -> None:
    cases = _golden()["cases"]
    assert len(cases) == 7 * 8
    assert sum("refused" in case for case in cases) == 2
    assert {case["template"] for case in cases} == set(_golden()["templates"])


def test_a_generation_prompt_is_asked_for_only_when_it_is() -> None:
    conversation = _conversation({"messages": [{"role": "user", "content": "Well?"}]})
    template = _template(_golden()["templates"]["chatml"])
    assert template.text(conversation, generation_prompt=True).endswith("<|im_start|>assistant\n")
    assert template.render(conversation).spans == ()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", "changes what the assistant says"),
        ("{% for m in messages %}{{ m.content | reverse }}{% endfor %}", "takes apart"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "takes apart"),
        ("{% for m in messages %}{{ m.content[2:] }}{% endfor %}", "changes what the assistant says"),
    ],
)
def test_templates_that_hide_the_assistants_part_are_refused(source: str, why: str | None) -> None:
    conversation = _conversation(
        {"messages": [{"role": "user", "content": "abcd"}, {"role": "assistant", "content": "efgh"}]}
    )
    template = _template(source)
    if why is None:
        assert _said(template.render(conversation)) == ["EFGH"]
        return
    with pytest.raises(UnsupportedError, match=why) as caught:
        template.render(conversation)
    assert "talk.jsonl, line 1" in str(caught.value)


def test_a_message_that_the_template_leaves_out_has_no_part() -> None:
    source = "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    conversation = _conversation({"messages": [{"role": role, "content": said} for role, said in talk]})
    assert _said(_template(source).render(conversation)) == ["d"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ messages | nosuchfilter }}",
        "{% generation %}",
        "\ufdd0{{ messages }}",
    ],
)
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(UnsupportedError, match=r"m\.gguf: (the )?chat template"):
        _template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ none.nothing() }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ range(10000000) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | tojson(indent='x', nosuch=1) }}",
        "{% for i in range(90000) %}{{ 'x' * 1000000 }}{% endfor %}",
        "{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}",
    ],
)
def test_a_hostile_template_fails_in_one_line(source: str) -> None:
    conversation = _conversation({"messages": [{"role": "assistant", "content": "yes"}]})
    with pytest.raises(BitlossError) as caught:
        _template(source).render(conversation)
    assert "m.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokens_are_placed_in_the_text() -> None:
    text = "<s>[INST] é ü[/INST] Ja,  so</s>\n<s>"
    # as SentencePiece spells: a space before each stretch of text, white space beside control tokens swallowed
    pieces = [
        b"<s>",
        b"[INST]",
        b" ",
        b" \xc3",
        b"\xa9 \xc3\xbc",
        b"[/INST]",
        b" Ja",
        b",",
        b"  so",
        b"</s>",
        b"<s>",
    ]
    control = np.array([p in (b"<s>", b"</s>", b"[INST]", b"[/INST]") for p in pieces])
    places = place_tokens(text, pieces, control, where="w")
    data = text.encode()
    spelled = [data[first:last] for first, last in places]
    assert spelled == [
        *(
            b"<s>",
            b"[INST]",
            b" ",
            b"\xc3",
            b"\xa9 \xc3\xbc",
            b"[/INST]",
            b" Ja",
            b",",
            b"  so",
            b"</s>",
            b"<s>",
        )
    ]
    start = text.index("Ja")
    rendered = Rendered(text, ((start, start + len("Ja,  so")),), by_template=False)
    ends = np.array([piece == b"</s>" for piece in pieces])
    assert list(np.flatnonzero(assistant_tokens(rendered, places, ends))) == [6, 7, 8, 9]
    by_template = rendered._replace(by_template=True)
    assert list(np.flatnonzero(assistant_tokens(by_template, places, ends))) == [6, 7, 8]
    elsewhere = rendered._replace(spans=((start, start + 2),))  # what ends the turn is not next to it
    assert list(np.flatnonzero(assistant_tokens(elsewhere, places, ends))) == [6]


@pytest.mark.parametrize(
    "pieces", [[b"ab"], [b"ab", b"d"], [b"ab", b"c", b"d"], [b"a", b"c"], [b"x"], [], [b"  ab", b"c"]]
)
def test_tokens_that_do_not_spell_the_text_are_refused(pieces: list[bytes]) -> None:
    with pytest.raises(UnsupportedError, match="do not spell"):
        place_tokens("abc", pieces, np.zeros(len(pieces), np.bool_), where="talk.jsonl, line 3")
