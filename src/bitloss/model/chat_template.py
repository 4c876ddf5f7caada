"""A model's own chat template: conversations rendered, the assistant's part located.

**Rendering** is that of transformers' ``apply_chat_template``: Jinja in a sandbox, ``trim_blocks`` and
``lstrip_blocks``, loop controls, ``tojson`` without escapes, ``raise_exception``, no generation prompt. Two things
differ: ``strftime_now`` gives a fixed day (`TODAY`), so that tokens do not depend on when they were made, and what a
template can ask for is bounded where it can be (size of the text, of a product).

**The assistant's part** is what a template encloses in ``{% generation %}``; in templates without it, the content of
every assistant's message. That is found by rendering once more with marks (characters that are none) around each
content, inside its white space: taken out again they must leave the same text. Where a template drops the beginning of
a content (reasoning of earlier turns), the part begins where the messages before, rendered with a generation prompt,
end. A template that does neither is refused.

Source: ``chat_template_utils.py`` of transformers 5.23 (behaviour, checked against its output in the tests).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, NamedTuple, cast

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser

from bitloss.errors import TextError, UnsupportedError
from bitloss.model.conversations import ASSISTANT, MARKS, Conversation, Message
from bitloss.model.gguf import GgufFile

TODAY: Final = date(2024, 7, 26)
"""What `strftime_now` tells: the day Llama 3's template falls back to."""
_OPEN, _CLOSE = MARKS
_MOST_CHARACTERS: Final = 1 << 26


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: as the template writes it.
        spans: the assistant's parts, [first, last) in characters.
        by_template: whether the template itself marks them (then they are all there is to score).
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    by_template: bool


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Texts a template may put in; empty where the vocabulary has none.

    Attributes:
        bos_token: beginning of a text. eos_token: its end. unk_token, pad_token: as they say.
    """

    bos_token: str = ""
    eos_token: str = ""
    unk_token: str = ""
    pad_token: str = ""


class ChatTemplate:
    """A model's chat template.

    Args:
        source: in Jinja.
        special: texts of the special tokens.
        where: names the model in messages.

    Raises:
        UnsupportedError: it does not compile.
    """

    def __init__(self, source: str, special: SpecialTokens, *, where: str) -> None:
        self.where = where
        self._special = {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := getattr(special, name))
        }
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": TODAY.strftime}
        if _OPEN in source or _CLOSE in source:
            raise UnsupportedError("chat template with a noncharacter (U+FDD0, U+FDD1)", where=where)
        try:
            self._template = environment.from_string(source)
            written = environment.parse(source).find_all(nodes.TemplateData)
            self.marks_itself = any(node.data == _OPEN for node in written)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise UnsupportedError(
                "the chat template does not compile", where=where, found=_first_line(error)
            ) from error

    @classmethod
    def of(cls, file: GgufFile) -> ChatTemplate:
        """The template of a GGUF file (``tokenizer.chat_template``).

        Raises:
            UnsupportedError: the file has none, or it does not compile.
        """
        source = file.value("tokenizer.chat_template", None)
        if not isinstance(source, str) or not source.strip():
            raise UnsupportedError(
                "the model has no chat template",
                where=file.path,
                expected="tokenizer.chat_template in its metadata",
                mend="leave out --chat-template, or convert the model again from a folder that has one",
            )
        tokens = file.value("tokenizer.ggml.tokens", [])
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        texts = {}
        for name, key in names.items():
            number = file.value(f"tokenizer.ggml.{key}_token_id", None)
            if isinstance(number, int) and 0 <= number < len(tokens):
                texts[name] = str(tokens[number])
        return cls(source, SpecialTokens(**texts), where=file.path.name)

    def text(self, conversation: Conversation, *, generation_prompt: bool = False) -> str:
        """Render a conversation, without the marks of the template.

        Raises:
            TextError: the template refuses it (its own message is in ours), or fails.
        """
        shown = self._render(conversation, conversation.messages, generation_prompt=generation_prompt)
        return _without_marks(shown)

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation and locate what the assistant says; definitions in the module docstring.

        Raises:
            TextError: the template refuses the conversation, or fails.
            UnsupportedError: the assistant's part cannot be located.
        """
        shown = self._render(conversation, conversation.messages)
        if self.marks_itself:
            if not _alternates(shown):
                raise self._lost(conversation, "its generation blocks lie within one another")
            return Rendered(_without_marks(shown), tuple(_spans(shown)), by_template=True)
        whole = range(len(conversation.messages))
        marked = self._render(conversation, _marked(conversation, whole))
        self._check_same(marked, shown, conversation)
        said = [i for i in whole if _speaks(conversation.messages[i])]
        if _alternates(marked) and marked.count(_OPEN) == len(said):
            found = dict(zip(said, _spans(marked), strict=True))
        else:
            each = {i: self._one_by_one(conversation, i, shown) for i in said}
            found = {i: span for i, span in each.items() if span is not None}
        spans = (_widened(shown, span, conversation.messages[i]) for i, span in found.items())
        return Rendered(shown, tuple(spans), by_template=False)

    def _render(
        self, conversation: Conversation, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> str:
        try:
            pieces = self._template.generate(
                messages=[dict(message) for message in messages],
                tools=conversation.tools,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._special,
            )
            return _bounded(pieces)
        except _Refused as refusal:
            raise TextError(
                "the model's chat template refuses the conversation",
                where=conversation.where,
                found=_first_line(refusal),
                mend="change or leave out that conversation: the model was made for others",
            ) from refusal
        except Exception as error:  # a template is a program: it can fail in any way
            raise TextError(
                f"the chat template of {self.where} fails",
                where=conversation.where,
                found=_first_line(error),
                mend="change or leave out that conversation, or measure plain text without --chat-template",
            ) from error

    def _check_same(self, marked: str, shown: str, conversation: Conversation) -> None:
        if _without_marks(marked) != shown:
            raise self._lost(conversation, "it changes what the assistant says")

    def _one_by_one(self, conversation: Conversation, index: int, shown: str) -> tuple[int, int] | None:
        """Where one message stands in the text; None when the template leaves it out."""
        marked = self._render(conversation, _marked(conversation, (index,)))
        self._check_same(marked, shown, conversation)
        opens, closes = marked.count(_OPEN), marked.count(_CLOSE)
        if (opens, closes) == (0, 0):
            return None
        if (opens, closes) == (1, 1) and _alternates(marked):
            return _spans(marked)[0]
        if (opens, closes) == (0, 1):
            before = self._render(conversation, conversation.messages[:index], generation_prompt=True)
            end = marked.index(_CLOSE)
            if shown.startswith(before) and len(before) <= end:
                return len(before), end
        raise self._lost(conversation, "it takes apart what the assistant says")

    def _lost(self, conversation: Conversation, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"the assistant's part cannot be located in what the chat template of {self.where} writes: {why}",
            where=conversation.where,
            mend="give the template {% generation %} blocks, or measure without --chat-template",
        )


class _Refused(jinja2.TemplateError):
    """The template called ``raise_exception``."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}``: what is between them is marked."""

    tags = {"generation"}  # noqa: RUF012 - so declared by Jinja

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """See `jinja2.ext.Extension.parse`; a block of its own, so that what is set in it is not seen outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opens, closes = (
            nodes.Output([nodes.TemplateData(mark, lineno=line)], lineno=line) for mark in (_OPEN, _CLOSE)
        )
        return nodes.Scope([opens, *body, closes], lineno=line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox; a product or power that would be huge is refused as well."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """See `jinja2.sandbox.SandboxedEnvironment.call_binop`."""
        if operator == "**" or any(
            isinstance(a, str | bytes | list | tuple) and isinstance(b, int) and len(a) * b > _MOST_CHARACTERS
            for a, b in ((left, right), (right, left))
        ):
            raise SecurityError(f"refused: {operator}")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON as transformers' filter does (Jinja's own escapes HTML)."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _bounded(pieces: Iterable[str]) -> str:
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > _MOST_CHARACTERS:
            raise jinja2.TemplateRuntimeError(f"writes more than {_MOST_CHARACTERS} characters")
        kept.append(piece)
    return "".join(kept)


def _speaks(message: Message) -> bool:
    return message["role"] == ASSISTANT and bool((message["content"] or "").strip())


def _marked(conversation: Conversation, which: Iterable[int]) -> list[Message]:
    """The messages, marks around the content of those of the assistant among ``which``, inside its white space."""
    messages = list(conversation.messages)
    for i in which:
        if _speaks(messages[i]):
            content = cast("str", messages[i]["content"])
            said = content.strip()
            before, after = content.split(said, 1)
            messages[i] = {**messages[i], "content": f"{before}{_OPEN}{said}{_CLOSE}{after}"}
    return messages


def _without_marks(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def _alternates(text: str) -> bool:
    """Whether marks open and close in turn."""
    marks = [character for character in text if character in (_OPEN, _CLOSE)]
    return marks == [_OPEN, _CLOSE] * (len(marks) // 2)


def _spans(marked: str) -> list[tuple[int, int]]:
    """Places of the marked parts, in characters of the text without marks."""
    places = [at - i for i, at in enumerate(at for at, each in enumerate(marked) if each in (_OPEN, _CLOSE))]
    return list(zip(places[::2], places[1::2], strict=True))


def _widened(shown: str, span: tuple[int, int], message: Message) -> tuple[int, int]:
    """A part with the white space its content begins and ends with, where the template has kept that."""
    content, (first, last) = cast("str", message["content"]), span
    before = content[: len(content) - len(content.lstrip())]
    after = content[len(content.rstrip()) :]
    if shown.endswith(before, 0, first):
        first -= len(before)
    if shown.startswith(after, last):
        last += len(after)
    return first, last
