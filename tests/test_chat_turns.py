"""Templates as plain strings: exact where they can be, absent where they cannot."""

from __future__ import annotations

import pytest
from speaking import make_template
from test_chat_template import ELABORATE

from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.runtime.chat_template import ChatTemplate
from pocketdraft.runtime.chat_turns import chat_turns
from pocketdraft.runtime.manifest import CHAT_TEMPLATE_NAME

EMBEDDED = (TARGET_DIR / CHAT_TEMPLATE_NAME).read_text()
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}
NO_SYSTEM = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}
<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}
<assistant>{% endif %}"""


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_the_strings_give_what_the_template_gives(turns, system):
    template = ChatTemplate(EMBEDDED, SPECIAL)
    said = [f"text {number}" for number in range(2 * turns - 1)]
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    found = chat_turns(template)
    assert found.render(said, system) == template.render(messages)
    assert "<bos>" in found.opening


def test_a_template_without_system_messages_has_no_strings_for_one():
    found = chat_turns(ChatTemplate(NO_SYSTEM, SPECIAL))
    assert found is not None
    assert found.system is None


@pytest.mark.parametrize(
    "source",
    [
        ELABORATE,  # the first message is left out
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",  # not always the same between
        "{% for m in messages %}{{ m.content | upper }} {% endfor %}",  # the texts are changed
        "{{ messages[-1].content }}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_does_more_has_none(source):
    assert chat_turns(ChatTemplate(source, SPECIAL)) is None


def test_the_scripted_template_has_strings():
    assert chat_turns(make_template()).answer == "<end><say>"
