"""Write what `transformers` makes of conversations: the outside witness of chat templates.

    python training/make_chat_golden.py src/bitloss/assets/demo-model tests/data/chat_golden.json

For every template (written here, in the shapes that are common) and conversation: the rendered text, or the template's
refusal; and for the bundled model's own template, and one with generation blocks, the tokens and the assistant's mask.
The day is set to the one bitloss uses.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# the system message goes into the last user's turn, so that a conversation's beginning is rendered otherwise
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content']|trim + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}
"""

# reasoning is kept in the last turn only
THINKING = """{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# blocks on lines of their own, indented: what trim_blocks and lstrip_blocks are about; loop controls; tools
BLOCKS = """{{ bos_token }}
{% if tools %}
[TOOLS] {{ tools | tojson }} [/TOOLS]
{% endif %}
{% for message in messages %}
  {% if message.role == 'system' %}
    {% continue %}
  {% endif %}
  {% if loop.index > 6 %}
    {% break %}
  {% endif %}
  <{{ message.role }}>
{{ message.content }}
  </{{ message.role }}>
{% endfor %}
"""

GENERATION = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'assistant' %}
{% generation %}
{{ message['content'] + eos_token }}
{% endgeneration %}
{% else %}
[INST]{{ message['content'] }}[/INST]
{% endif %}
{% endfor %}"""

TEMPLATES = {
    "chatml": CHATML,
    "llama-3": LLAMA3,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "blocks": BLOCKS,
    "generation": GENERATION,
}


def _talk(*said: str) -> list[dict[str, Any]]:
    """Messages ``role: content``."""
    return [dict(zip(("role", "content"), each.split(": ", 1), strict=True)) for each in said]


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "short": {"messages": _talk("user: Who comes there?", "assistant: A friend.")},
    "system": {
        "messages": _talk(
            "system: Be brief.",
            "user: Who comes there?",
            "assistant: A friend.",
            "user: Then come in, and tell me what you saw.",
            "assistant: I saw the house, the garden and the open door.",
        )
    },
    "white space": {
        "messages": _talk("user:  Well? ", "assistant:   He said:\n\n  no.\n", "user: Oh.", "assistant: Yes ")
    },
    "characters": {
        "messages": _talk("user: Größe & <b>ß</b> \u4f60\u597d?", 'assistant: "Ça va" \U0001f642 {{ x }}')
    },
    "reasoning": {
        "messages": _talk(
            "user: One?",
            "assistant: <think>\nIt is one.\n</think>\n\nOne.",
            "user: Two?",
            "assistant: <think>\nIt is two.\n</think>\n\nTwo.",
        )
    },
    "same words": {"messages": _talk("user: no", "assistant: no", "user: no no", "assistant: no no no")},
    "out of turn": {"messages": _talk("user: One.", "user: Two.", "assistant: Three.")},
    "tools": {
        "messages": _talk("user: Look it up.", "assistant: I have."),
        "tools": [
            {"type": "function", "function": {"name": "look_up", "description": "Sieht \u00fcber <alles>"}}
        ],
    },
}


class _Day(datetime.datetime):
    """The day `strftime_now` tells."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Day:
        return cls(2024, 7, 26, tzinfo=tz)


def make(model: Path) -> dict[str, Any]:
    """Return the document."""
    chat_template_utils.datetime = _Day
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(model / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    own = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    cases: list[dict[str, Any]] = []
    for name, template in (*TEMPLATES.items(), ("demo", own)):
        for title, talk in CONVERSATIONS.items():
            case: dict[str, Any] = {"template": name, "conversation": title}
            tokenizer.chat_template = template
            messages, tools = talk["messages"], talk.get("tools")
            try:
                case["text"] = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
            except jinja2.TemplateError as error:
                case["refused"] = str(error)
            if name in ("demo", "generation") and "text" in case:
                told = tokenizer.apply_chat_template(
                    messages, tools=tools, return_dict=True, return_assistant_tokens_mask=name == "generation"
                )
                case["tokens"] = list(told["input_ids"])
                if name == "generation":
                    case["mask"] = list(told["assistant_masks"])
            cases.append(case)
    return {
        "templates": {**TEMPLATES, "demo": own},
        "special": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "conversations": CONVERSATIONS,
        "cases": cases,
    }


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write golden renderings of chat templates.")
    parser.add_argument("model", type=Path, help="the bundled model")
    parser.add_argument("out", type=Path, help="the .json file to write")
    args = parser.parse_args()
    args.out.write_text(json.dumps(make(args.model), ensure_ascii=True, indent=1) + "\n")


if __name__ == "__main__":
    main()
