"""The top rung: transformers' own modules, behind the same interface as the exported graphs.

No cache is kept: every call runs the whole sequence again, so a fault in cache handling cannot hide here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from pocketdraft.runtime.drafter_specs import DrafterSpecs, MTPSpec
from pocketdraft.runtime.manifest import Manifest

from .checkpoint import Checkpoint
from .hf_model import load_model, softcapped, text_model


class Sequence:
    """What the calls have fed so far, by slot; `kv` holds what the last call computed from it."""

    def __init__(self) -> None:
        self.rows: dict[int, torch.Tensor] = {}
        self.per_layer: dict[int, torch.Tensor] = {}
        self.kv: DynamicCache | None = None


class TransformersEngine:
    """See `runtime.engine.Engine`. Reads nothing of `mask`: attention is causal over the slots fed so far."""

    takes_trees = False  # for the same reason

    def __init__(self, manifest: Manifest, target: Checkpoint, mtp: Checkpoint | None) -> None:
        """`mtp` is the MTP drafter's checkpoint."""
        # Of the drafters it has MTP's alone.
        self.manifest = manifest.model_copy(update={"drafters": DrafterSpecs(mtp=manifest.drafters.mtp)})
        self.target = load_model(target, torch.float32, "eager")
        self.text = text_model(self.target)
        self.drafter = load_model(mtp, torch.float32, "eager") if mtp else None
        if self.drafter and manifest.drafters.of(MTPSpec).head == "dense":
            self.drafter.config.use_ordered_embeddings = False
        self._graphs = {graph.name: graph for graph in manifest.graphs}

    def new_cache(self) -> Sequence:
        return Sequence()

    def fork(self, cache: Sequence) -> None: ...

    def compact(self, cache: Sequence, sources: Iterable[int], start: int) -> None:
        raise AssertionError("transformers verifies chains only: there is nothing to compact")

    @torch.no_grad()
    def run(
        self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], cache: Sequence | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        feed = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        spec = self._graphs[graph]
        if spec.role == "embed":
            return {"embeddings": self.text.embed_tokens(feed["token_ids"]).numpy()}
        if spec.role == "embed_per_layer":
            return {"embeddings": self.text.get_per_layer_inputs(feed["token_ids"], None).numpy()}
        assert cache is not None
        if spec.role == "draft":
            return self._draft(feed, cache)
        made = self._target(feed, cache)
        return {tensor.name: made[tensor.name] for tensor in spec.outputs if tensor.name in made}

    def read_kv(self, cache: Sequence) -> dict[str, npt.NDArray[np.float32]]:
        """K/V of every owning layer, padded with zeros to the bundle's context length: no rings here."""
        assert cache.kv is not None
        found = {}
        for layer in self.manifest.kv:
            kept = cache.kv.layers[layer.layer]
            room = self.manifest.context_length - kept.keys.shape[2]
            keys, values = (torch.nn.functional.pad(t, (0, 0, 0, room)) for t in (kept.keys, kept.values))
            found[f"kv_cache_k_{layer.layer}"] = keys.numpy()
            found[f"kv_cache_v_{layer.layer}"] = values.transpose(2, 3).numpy()
        return found

    def close(self) -> None: ...

    def _target(self, feed: dict[str, torch.Tensor], sequence: Sequence) -> dict[str, npt.NDArray[Any]]:
        positions = feed["input_pos"].tolist()
        for row, position in enumerate(positions):
            sequence.rows[position] = feed["embeddings"][:, row]
            if "per_layer_embeddings" in feed:
                sequence.per_layer[position] = feed["per_layer_embeddings"][:, row]
        length = positions[-1] + 1
        per_layer = {}
        if sequence.per_layer:
            per_layer["per_layer_inputs"] = torch.stack([sequence.per_layer[i] for i in range(length)], 1)
        # A cache without a configuration keeps whole layers where the model's own would drop what left the window, and
        # has no place for a recurrent layer's state.
        recurrent = "linear_attention" in (getattr(self.text.config, "layer_types", None) or ())
        output = self.text(
            inputs_embeds=torch.stack([sequence.rows[i] for i in range(length)], 1),
            **per_layer,
            past_key_values=DynamicCache(config=self.text.config if recurrent else None),
            use_cache=True,
        )
        sequence.kv = output.past_key_values
        hidden = output.last_hidden_state[:, positions[0] :]
        logits = softcapped(self.target.lm_head(hidden), self.target)
        return {"logits": logits.numpy(), "activations": hidden.numpy()}

    def _draft(self, feed: dict[str, torch.Tensor], sequence: Sequence) -> dict[str, npt.NDArray[Any]]:
        assert sequence.kv is not None
        assert self.drafter is not None
        committed = int(feed["input_pos"][0]) + 1
        spec = self.manifest.drafters.of(MTPSpec)
        # The target's own sliding cache holds window - 1 rows; the assistant's mask would see two more.
        window = self.text.config.sliding_window - 1
        shared = {}
        for kind, layer, rows in (("full", spec.kv_full, committed), ("sliding", spec.kv_sliding, window)):
            kept = sequence.kv.layers[layer]
            first = max(0, committed - rows)
            shared[f"{kind}_attention"] = (
                kept.keys[:, :, first:committed],
                kept.values[:, :, first:committed],
            )
        position = committed if spec.position == "pending" else committed - 1
        output = self.drafter(
            inputs_embeds=feed["activations"],
            position_ids=torch.tensor([[position]]),
            attention_mask=torch.ones(1, committed, dtype=torch.long),
            shared_kv_states=shared,
        )
        return {"logits": output.logits.numpy(), "projected_activations": output.last_hidden_state.numpy()}
