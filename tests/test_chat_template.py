"""Chat templates: what transformers renders from the same file, and one sentence where a template refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from scripted import scripted_manifest
from transformers import PreTrainedTokenizerFast

from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.runtime.chat_template import ChatTemplate, open_template
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import CHAT_TEMPLATE_NAME, FileEntry, Tokens
from pocketdraft.runtime.text import Tokenizer

CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Grüß dich!\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "More."},
]
# What real templates use: blocks on lines of their own, a namespace, loop controls, filters, the sandbox's dict.
ELABORATE = """{{ bos_token }}
{%- set state = namespace(first=true) -%}
{%- for message in messages %}
    {%- if message['role'] == 'system' -%}
        {{ message | tojson }}
        {%- continue -%}
    {%- endif %}
    {% if loop.index0 > 0 %}
    {{ message.get('role') | upper }}: {{ message['content'] | trim }}{{ eos_token }}
    {% endif %}
    {%- set state.first = false -%}
{%- endfor -%}
{% if add_generation_prompt %}
>{% endif %}"""


def with_template(source: str, folder: Path):
    """The manifest, and transformers' tokenizer, of a folder that has this template."""
    (folder / CHAT_TEMPLATE_NAME).write_text(source, encoding="utf-8")
    shutil.copy(TARGET_DIR / "tokenizer.json", folder)
    manifest = scripted_manifest().model_copy(
        update={
            "tokens": Tokens(bos=2, stop=(1, 5)),
            "files": {CHAT_TEMPLATE_NAME: FileEntry(sha256="", size=len(source))},
        }
    )
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<bos>", eos_token="<eos>"
    )
    theirs.chat_template = source
    return manifest, theirs


@pytest.mark.parametrize("source", [(TARGET_DIR / CHAT_TEMPLATE_NAME).read_text(), ELABORATE], ids=["embedded", "rich"])
@pytest.mark.parametrize("answer", [True, False])
def test_text_and_tokens_are_those_of_transformers(source, answer, tmp_path):
    manifest, theirs = with_template(source, tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", bos=2)
    text = open_template(tmp_path, manifest, tokenizer).render(CHAT, answer)
    assert text == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=answer)
    found = tokenizer.encode_rendered(text)
    assert found == theirs.apply_chat_template(CHAT, add_generation_prompt=answer)["input_ids"]
    assert found.count(2) == 1, "the token that begins a text is there twice"


def test_a_bundle_without_a_template_says_what_to_do_instead(tmp_path):
    manifest, _ = with_template("", tmp_path)
    bare = manifest.model_copy(update={"files": {}})
    with pytest.raises(PocketdraftError, match=r"has no chat_template.jinja.*`pocketdraft run`"):
        open_template(tmp_path, bare, Tokenizer(tmp_path / "tokenizer.json", bos=2))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "does not take these messages: Roles must alternate."),
        ("{{ messages[0]['content'] + 1 }}", "does not take these messages"),
        ("{{ messages.append(1) }}", "does not take these messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does not take these messages"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", "does not take these messages"),
    ],
)
def test_a_template_that_refuses_breaks_or_breaks_out_is_one_sentence(source, words):
    with pytest.raises(PocketdraftError, match=words):
        ChatTemplate(source, {}).render(CHAT)


def test_a_template_that_is_none_is_told_with_its_line():
    with pytest.raises(PocketdraftError, match="no Jinja template: line 2"):
        ChatTemplate("a\n{% if %}", {})


def test_export_puts_the_checkpoint_s_template_into_every_bundle(make_pair, tmp_path, monkeypatch):
    """The template alone: lowering is left out."""
    from pocketdraft.export import pipeline
    from pocketdraft.export.backends import onnx
    from pocketdraft.export.plan import Plan, Recipes
    from pocketdraft.quantize.recipe import load
    from pocketdraft.runtime.manifest import Part

    def write(plan, steps, weights, target, folder, progress):
        (folder / "target.bin").write_bytes(b"0")
        return {step.spec.part: Part(file="target.bin", offset=0, size=1) for step in steps}

    monkeypatch.setattr(onnx, "write", write)
    pair, one = make_pair("shared"), load("f32")
    target = tmp_path / "target"
    shutil.copytree(pair.target, target)
    (target / CHAT_TEMPLATE_NAME).write_text(ELABORATE, encoding="utf-8")
    for source, out in ((pair.target, tmp_path / "without"), (target, tmp_path / "with")):
        pipeline.build([Plan(source, (pair.drafter,), out, Recipes(one, one, one), "onnx", context=32, prefill=(8,))])
    assert not (tmp_path / "without" / CHAT_TEMPLATE_NAME).exists()
    assert (tmp_path / "with" / CHAT_TEMPLATE_NAME).read_text() == ELABORATE
    entry = json.loads((tmp_path / "with" / "bundle.json").read_text())["files"][CHAT_TEMPLATE_NAME]
    assert entry["sha256"] == hashlib.sha256(ELABORATE.encode()).hexdigest()
