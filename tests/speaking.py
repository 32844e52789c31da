"""The real command over the scripted target: `python speaking.py AT run ...`, with Ctrl-C at its call number AT."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from scripted import ScriptedEngine, scripted_manifest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as HFTokenizer

from pocketdraft.runtime import cli, cli_run
from pocketdraft.runtime.chat_template import ChatTemplate
from pocketdraft.runtime.text import Tokenizer

# Twelve tokens, as the script has. A target that says "a" and then "b" is not what the tokenizer makes of "ab".
VOCABULARY = ["<bos>", "<end>", "a", "b", "c", "d", "e", "ab", "cd", "abcd", "<ask>", "<say>"]
SPECIAL = [piece for piece in VOCABULARY if piece.startswith("<")]
BOS, END = 0, 1
TEMPLATE = """{{ bos_token }}
{%- for m in messages %}
{{- '<say>' if m.role == 'assistant' else '<ask>' }}{{ m.content }}<end>
{%- endfor %}
{%- if add_generation_prompt %}<say>{% endif %}"""


def make_tokenizer(folder: Path) -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(VOCABULARY)}
    made = HFTokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "d"), ("ab", "cd")]))
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json", BOS)


def make_template(source: str = TEMPLATE) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>"})


class Interrupted(ScriptedEngine):
    at = 0

    def run(self, graph, inputs, cache=None):
        if len(self.calls) == self.at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return super().run(graph, inputs, cache)


def main() -> None:
    engine = Interrupted(scripted_manifest(100, stop=(END,)))
    engine.at = int(sys.argv.pop(1))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder))
    cli_run.read = lambda bundle: engine.manifest
    cli_run._open = lambda bundle, threads, quiet: (engine, tokenizer)
    cli_run.open_template = lambda bundle, manifest, tokenizer: make_template()
    cli.main()


if __name__ == "__main__":
    main()
