"""Chat templates render as in transformers, and what they mark has a place in the text."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_kd.data.chat.rendering import render
from tests.data.chats import MARKED, PLAIN, chats

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"é": "<a>"}}}]
TEMPLATES = {
    "plain": PLAIN,
    "marked": "a" + MARKED,
    "tools, as JSON": "{{ tools | tojson }} {{ tools | tojson(indent=2) }} {{ messages[0] | tojson }}",
    "a loop that ends": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "the date": "{{ strftime_now('%Y') }} {{ bos_token }}",
    "blocks on lines of their own": "{% if true %}\n  a\n{%- endif %}\n  {% set x = 1 %}\n{{ x }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_renders_as_in_transformers(template: str) -> None:
    for messages in chats(20):
        given: dict[str, Any] = {"tools": TOOLS, "add_generation_prompt": True, "bos_token": "<s>"}
        marked = "{% generation" in template
        texts, spans = render_jinja_template(
            conversations=[messages], chat_template=template, return_assistant_tokens_mask=marked, **given
        )
        assert render(template, messages=messages, documents=None, **given) == (texts[0], spans[0] if marked else [])


def test_what_begins_the_text_is_marked() -> None:
    assert render("{% generation %}ab{% endgeneration %}c") == ("abc", [(0, 2)])


@pytest.mark.parametrize(
    "template",
    [
        "a{% set x %}b{% generation %}c{% endgeneration %}{% endset %}{{ x }}",
        "a{% macro f() %}b{% generation %}c{% endgeneration %}{% endmacro %}{{ f() }}",
    ],
)
def test_a_mark_whose_place_is_unknown_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match=r"macro, a set block"):
        render(template)


@pytest.mark.parametrize("template", ["{{ raise_exception('no robots') }}", "{{ ''.__class__.__mro__ }}", "{% if %}"])
def test_a_template_may_refuse_and_reaches_nothing(template: str) -> None:
    with pytest.raises(TemplateError):
        render(template)
