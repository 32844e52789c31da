"""Manifests of the scripted engines with the shapes of their tensors, as a port needs them: see `record.py`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal

from scripted import VOCABULARY, scripted_manifest
from scripted_drafters import every_drafter

from pocketdraft.runtime.drafter_specs import DrafterSpecs
from pocketdraft.runtime.graphs import GraphSpec, TensorSpec
from pocketdraft.runtime.manifest import Manifest

TARGET = ("prefill", "decode", "verify", "head", "embed", "embed_per_layer")
TAPS = 2  # wide, other than hidden states
# What a target's graphs give for a drafter, on top.
WANTED = {"dflash": ("taps",), "mtp_heads": ("activations",)}


def manifest_of(
    drafter: str, capacity: int, stop: Sequence[int], per_layer: bool, heads: int, verify: tuple[int, ...] | None
) -> Manifest:
    """With the graphs of one drafter, else MTP's. The target's do not give what it does not want."""
    kind = getattr(importlib.import_module(f"pocketdraft.runtime.drafters.{drafter}"), "KIND", "mtp")
    made = scripted_manifest(capacity, verify or (2, 3, 5), stop=tuple(stop), per_layer=per_layer)
    if kind != "mtp":
        made = every_drafter(capacity, verify or (5,), stop=tuple(stop), per_layer=per_layer, heads=heads)
        spec = getattr(made.drafters, kind)
        graphs = tuple(graph for graph in made.graphs if graph.role in (*TARGET, *spec.roles))
        parts = {name: part for name, part in made.parts.items() if name in {graph.part for graph in graphs}}
        update = {"graphs": graphs, "parts": parts, "drafters": DrafterSpecs(**{kind: spec})}
        made = made.model_copy(update=update)
    graphs = tuple(_with_tensors(graph, capacity, per_layer, WANTED.get(kind, ())) for graph in made.graphs)
    files = made.files | {"tokenizer.json": made.files["model.litertlm"]}
    return made.model_copy(update={"graphs": graphs, "files": files})


def _with_tensors(graph: GraphSpec, capacity: int, per_layer: bool, wanted: Sequence[str]) -> GraphSpec:
    width, role = graph.width, graph.role
    shapes = {
        "embeddings": (1, width, 1),
        "per_layer_embeddings": (1, width, 1, 1),
        "activations": (1, width, 2 if role == "draft" else 1),
        "projected_activations": (1, width, 1),
        "exit_states": (1, width, 1),
        "taps": (1, width, TAPS),
        "logits": (1, width, VOCABULARY),
        "input_pos": (width,),
        "mask": (1, 1, width, capacity),
        "token_ids": (1, 1),
    }
    if role == "embed_per_layer":
        shapes["embeddings"] = (1, 1, 1, 1)
    place = ("input_pos", "mask")
    embedded = ("embeddings", "per_layer_embeddings") if per_layer else ("embeddings",)
    inputs: dict[str, tuple[str, ...]] = {
        "draft": ("activations", *place),
        "dflash_context": ("taps", "input_pos"),
        "dflash_draft": ("embeddings", *place),
        "head": ("activations",),
        "mtp_heads": ("embeddings", "activations", *place),
        "exit_head": ("exit_states",),
        "exit_verify": (*(embedded if per_layer else ()), "exit_states", *place),
        "model_prefill": ("embeddings", *place),
        "model_decode": ("embeddings", *place),
        **dict.fromkeys(("embed", "embed_per_layer", "model_embed"), ("token_ids",)),
    }
    outputs: dict[str, tuple[str, ...]] = {
        "prefill": tuple(wanted),
        "draft": ("logits", "projected_activations"),
        "dflash_context": (),
        "dflash_draft": ("activations",),
        "head": ("logits",),
        "mtp_heads": ("projected_activations",),
        "exit_draft": ("exit_states",),
        "exit_head": ("logits",),
        "model_prefill": (),
        **dict.fromkeys(("embed", "embed_per_layer", "model_embed"), ("embeddings",)),
    }
    of_target = tuple(dict.fromkeys(("logits", "activations", *wanted)))
    given = [_tensor(name, shapes) for name in inputs.get(role, (*embedded, *place))]
    return graph.model_copy(
        update={
            "inputs": (*given, *(graph.inputs if graph.head else ())),
            "outputs": tuple(_tensor(name, shapes) for name in outputs.get(role, of_target)),
        }
    )


def _tensor(name: str, shapes: dict[str, tuple[int, ...]]) -> TensorSpec:
    dtypes: dict[str, Literal["int32", "bool"]] = {"input_pos": "int32", "token_ids": "int32", "mask": "bool"}
    return TensorSpec(name=name, dtype=dtypes.get(name, "float32"), shape=shapes[name])
