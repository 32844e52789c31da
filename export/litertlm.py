"""Packs flatbuffers, tokenizer and metadata into a `.litertlm`, the file that Google's LiteRT-LM opens."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketdraft.runtime.manifest import Part, Tokens

FILE_NAME = "model.litertlm"


@dataclass(frozen=True)
class ChatFile:
    """What LiteRT-LM must know beside the graphs. `max_tokens` counts prompt and output together."""

    tokenizer: Path
    tokens: Tokens
    max_tokens: int
    chat_template: str | None


def pack(parts: Mapping[str, Path], chat: ChatFile, out: Path) -> dict[str, Part]:
    """Writes `out` and returns where each part lies in it. Parts that LiteRT-LM has no name for stay beside it, in
    files of their own."""
    from litert_lm_builder import litertlm_builder as builder
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

    kinds = {
        "target": builder.TfLiteModelType.PREFILL_DECODE,
        "embedder": builder.TfLiteModelType.EMBEDDER,
        "per_layer_embedder": builder.TfLiteModelType.PER_LAYER_EMBEDDER,
        "drafter": builder.TfLiteModelType.MTP_DRAFTER,
    }
    metadata = llm_metadata_pb2.LlmMetadata()
    if chat.tokens.bos is not None:
        metadata.start_token.token_ids.ids.append(chat.tokens.bos)
    for stop in chat.tokens.stop:
        metadata.stop_tokens.add().token_ids.ids.append(stop)
    metadata.max_num_tokens = chat.max_tokens
    generic = llm_model_type_pb2.GenericModel()
    metadata.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(generic_model=generic))
    if chat.chat_template:
        metadata.jinja_prompt_template = chat.chat_template

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        metadata_file = Path(scratch) / "metadata.pb"
        metadata_file.write_bytes(metadata.SerializeToString())
        work = builder.LitertLmFileBuilder()
        work.add_system_metadata(builder.Metadata(key="Authors", value="pocketdraft", dtype=builder.DType.STRING))
        work.add_llm_metadata(str(metadata_file))
        work.add_hf_tokenizer(str(chat.tokenizer))
        for name, kind in kinds.items():
            if name in parts:
                work.add_tflite_model(str(parts[name]), kind)
        with out.open("wb") as stream:
            work.build(stream)
    located = _locate(out, {kind.value: name for name, kind in kinds.items()})
    for name in parts.keys() - kinds.keys():
        beside = parts[name].rename(out.with_name(parts[name].name))
        located[name] = Part(file=beside.name, offset=0, size=beside.stat().st_size)
    return located


def _locate(path: Path, names: Mapping[str, str]) -> dict[str, Part]:
    """Reads the header back: part name by model type."""
    from litert_lm_builder import litertlm_peek as peek

    header = peek.read_litertlm_header(str(path), io.StringIO())
    sections = header.SectionMetadata()
    found = {}
    for index in range(sections.ObjectsLength()):
        section = sections.Objects(index)
        kind = peek.get_model_type(section)
        if kind and kind.lower() in names:
            size = section.EndOffset() - section.BeginOffset()
            found[names[kind.lower()]] = Part(file=path.name, offset=section.BeginOffset(), size=size)
    return found
