"""The four training texts and the tokenizer, all from installable packages with free licences.

    code   CPython's standard library                       PSF-2.0         comes with Python
    en     King James Bible                                 public domain   apt-get install bible-kjv
    es     Reina-Valera 1909                                public domain   apt-get install diatheke sword-text-sparv
    json   AWS service models, their documentation removed  Apache-2.0      pip download --no-deps botocore==1.44.5

One document in twenty is held out of training, for validation and the benchmark's prompts.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .configs import VOCABULARY

DOMAINS = ("code", "en", "es", "json")
LICENCES = {"code": "PSF-2.0", "en": "public domain", "es": "public domain", "json": "Apache-2.0"}
SOURCES = {
    "code": "CPython standard library",
    "en": "King James Bible",
    "es": "Reina-Valera 1909",
    "json": "botocore 1.44.5 service models",
}
TRAINING_CHARS = {"code": 3_000_000, "en": 1_500_000, "es": 1_500_000, "json": 1_800_000}
SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
EOS, BOS = 1, 2
NOT_PROSE = re.compile(
    r"(^|/)(test|tests|idlelib|lib2to3|encodings|turtledemo|pydoc_data|ensurepip|config-|_sysconfig)"
)
SERVICES = (
    "s3|ec2|sqs|sns|iam|lambda|dynamodb|rds|ecs|eks|kms|logs|ssm|glue|athena|batch|route53|acm|sts|events|kinesis"
)
# GPT-2's split with numbers in groups of three.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Corpus:
    """Documents by domain."""

    training: dict[str, list[str]]
    held_out: dict[str, list[str]]


def build_corpus(botocore_wheel: Path) -> Corpus:
    documents = {"code": _code(), "en": _en(), "es": _es(), "json": _json(botocore_wheel)}
    shuffle = random.Random(0)
    training: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    for domain, texts in documents.items():
        shuffle.shuffle(texts)
        count = max(20, len(texts) // 20)
        held_out[domain], training[domain], size = texts[:count], [], 0
        for text in texts[count:]:
            if size > TRAINING_CHARS[domain]:
                break
            training[domain].append(text)
            size += len(text)
    return Corpus(training, held_out)


def train_tokenizer(corpus: Corpus) -> Tokenizer:
    """Byte-level BPE: any text can be encoded, and a token may end inside a character."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text for texts in corpus.training.values() for text in texts], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """uint16, every document between <bos> and <eos>."""
    ids: list[int] = []
    for text in texts:
        ids += [BOS, *tokenizer.encode(text).ids, EOS]
    return np.array(ids, dtype=np.uint16)


def _code() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" not in name and not NOT_PROSE.search(name):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if 400 < len(text) < 120_000:
                texts.append(text)
    return texts


def _en() -> list[str]:
    """A chapter a document: its name, then a verse a line."""
    raw = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, check=True).stdout.decode("latin-1")
    chapters: dict[str, list[str]] = {}
    for line in raw.splitlines():
        match = re.match(r"^(.+?)(\d+):(\d+) (.*)$", line.strip())
        if match:
            book, chapter, verse, text = match.groups()
            chapters.setdefault(f"{book.strip()} {chapter}", []).append(f"{verse} {text}")
    return [f"{head}\n" + "\n".join(verses) for head, verses in chapters.items()]


def _es() -> list[str]:
    command = ["diatheke", "-b", "spaRV1909eb", "-k", "Gen 1:1-Rev 22:21"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")
    chapters: dict[str, list[str]] = {}
    for line in raw.splitlines():
        match = re.match(r"^(.*?) (\d+):(\d+): (.*)$", line.strip())
        if match:
            book, chapter, verse, text = match.groups()
            text = re.sub(r"<[^>]*>", "", text).strip()
            chapters.setdefault(f"{book} {chapter}", []).append(f"{verse} {text}")
    return [f"{head}\n" + "\n".join(verses) for head, verses in chapters.items()]


def _json(wheel: Path) -> list[str]:
    archive = zipfile.ZipFile(wheel)
    wanted = re.compile(rf"data/({SERVICES})/[^/]*/service-2\.json\.gz$")
    texts = []
    for name in sorted(filter(wanted.search, archive.namelist())):
        model: Any = _without_documentation(json.loads(gzip.decompress(archive.read(name))))
        for section in ("operations", "shapes"):
            items = list(model[section].items())
            for start in range(0, len(items), 12):
                texts.append(json.dumps({section: dict(items[start : start + 12])}, indent=2))
    return texts


def _without_documentation(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_documentation(v) for k, v in value.items() if not k.startswith("documentation")}
    if isinstance(value, list):
        return [_without_documentation(v) for v in value]
    return value
