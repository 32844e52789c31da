"""build(plans): checkpoint pair -> steps -> a backend's graphs -> bundle."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from pocketdraft.quantize.weights import WeightError, check_blocks
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import GraphSpec, KVSteps, keep_states
from pocketdraft.runtime.manifest import (
    ERRORS_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    FileEntry,
    Manifest,
    Source,
    Sources,
    sha256,
)

from . import litertlm
from .checkpoint import Checkpoint
from .drafting import all_steps, by_kind, describe, load_drafter
from .families import load_target
from .kv_int8 import steps_in
from .kv_layout import KVLayout
from .models.decoder import Target
from .pair import check_pair
from .plan import Plan, Progress
from .quantized import Quantized, Weights
from .staging import check_out, staged
from .step import Operators, Plain, Step, all_weights
from .stored import Places, load
from .template import write_template

VERSIONED = ("pocketdraft", "torch", "transformers")


@dataclass(frozen=True)
class Models:
    """`drafters` are by kind. `stored` tells where the weights lie whose parameters are on the meta device: all the
    large ones.

    `kv_steps` are those of int8 K/V by layer, where the checkpoint says them.
    """

    target: Target
    drafters: Mapping[str, nn.Module]
    stored: Places
    kv_steps: Mapping[int, KVSteps] = field(default_factory=dict)

    def fresh(self) -> Models:
        """Modules that a backend may take apart, over the same parameters."""
        shared = {id(p): p for model in (self.target, *self.drafters.values()) for p in model.parameters()}
        return copy.deepcopy(self, dict(shared))

    def load(self) -> Models:
        """Reads the weights, float32."""
        load(self.stored, self.target, *self.drafters.values())
        return self


def build(plans: Sequence[Plan], progress: Progress = lambda *_: None) -> list[Manifest]:
    """Writes a bundle for each plan, atomically; a `plan.out` that ends in `.litertlm` gets that file alone.

    The plans differ in backend and place only: the weights are read once. Raises PocketdraftError for bad
    input, before any long work.
    """
    plan = plans[0]
    files = open_files(plan)
    check_pair(*files)
    progress("Reading checkpoints", 0, 1)
    models = open_models(*files)
    for one in plans:
        check_out(one.out, single=one.out.suffix == ".litertlm")
        check_rules(one, models)
    weights = quantized_weights(plan, files, models)
    errors = weight_errors(weights, progress)
    manifests = [_bundle(one, files, models, weights, errors, progress) for one in plans]
    plan.cache.trim()
    return manifests


def backend_of(plan: Plan) -> Any:
    """The file of `backends/` with the backend's name: `OPERATORS` by device, `write`, `quantize_steps`, `check_rule`.

    `STREAMS` says that `write` reads the weights it is given a piece at a time; else its steps hold them.
    """
    return importlib.import_module(f".backends.{plan.backend}", __package__)


def open_files(plan: Plan) -> list[Checkpoint]:
    """The target's checkpoint, then the drafters'."""
    adapters = [plan.lora, plan.drafter_lora, *[()] * len(plan.drafters)]
    return [Checkpoint.open(folder, own) for folder, own in zip((plan.target, *plan.drafters), adapters, strict=False)]


def open_models(target: Checkpoint, *drafters: Checkpoint) -> Models:
    """Checks names and shapes of all weights and reads the small ones."""
    model, stored = load_target(target)
    made = {}
    for kind, drafter in by_kind(drafters).items():
        made[kind], more = load_drafter(drafter, model)
        stored |= more
    return Models(model, made, stored, steps_in(target.tensors))


def load_models(target: Checkpoint, *drafters: Checkpoint) -> Models:
    """With all weights, for torch to run."""
    return open_models(target, *drafters).load()


def make_steps(plan: Plan, models: Models, operators: Operators) -> tuple[list[Step], KVLayout]:
    """All graphs, part by part."""
    if models.target.geometry.recurrent:
        _check_recurrent(plan)
    steps = kv_steps_of(plan, models)
    layout = KVLayout.of(models.target.geometry, plan.context, plan.ring_width, steps, max(plan.verify))
    return all_steps(plan, models.target, models.drafters, layout, operators), layout


def _check_recurrent(plan: Plan) -> None:
    """Raises PocketdraftError for what knows no recurrent layers."""
    if plan.device == "gpu":
        raise PocketdraftError(
            "--device is gpu, the target has recurrent layers, whose state no GPU kernel keeps; give --device cpu."
        )
    if plan.out.suffix == ".litertlm":
        raise PocketdraftError(
            f"--out {plan.out} is LiteRT-LM's file, the target has recurrent layers, which LiteRT-LM cannot run; "
            "give a folder, for pocketdraft's own runtimes."
        )


def kv_steps_of(plan: Plan, models: Models) -> Mapping[int, KVSteps] | None:
    """Of each layer that owns K/V; None where they are float32. Raises PocketdraftError for a step that is missing."""
    if plan.kv == "float32":
        return None
    owners = [index for index, layer in enumerate(models.target.geometry.layers) if layer.owns_kv]
    missing = next((index for index in owners if index not in models.kv_steps), None)
    if missing is not None:
        raise PocketdraftError(
            f"--kv is int8, {plan.target} does not say how far keys and values of layer {missing} reach; "
            "run `pocketdraft calibrate` and export what it writes."
        )
    return models.kv_steps


def quantized_weights(plan: Plan, files: Sequence[Checkpoint], models: Models) -> dict[str, Quantized]:
    """Every weight with its rule, nothing done yet."""
    sources = {stored: one.digest_of(stored) for one in files for stored in one.tensors.values()}
    weights = {}
    for name, module in all_weights(make_steps(plan, models, Plain())[0]).items():
        stored, rule = models.stored[module.weight], plan.recipes.rule_for(name)
        weights[name] = Quantized(name, stored, sources[stored], rule, plan.cache)
    return weights


def check_rules(plan: Plan, models: Models) -> None:
    """Raises PocketdraftError for a rule that does not fit a weight, or that the backend has no kernel for."""
    for name, module in all_weights(make_steps(plan, models, Plain())[0]).items():
        rule = plan.recipes.rule_for(name)
        check_blocks(name, module.weight.shape[1], rule)
        backend_of(plan).check_rule(name, module, rule)


def weight_errors(weights: Weights, progress: Progress) -> list[WeightError]:
    """Quantizes what the cache does not have; what that does to each weight, worst first."""
    errors = []
    for index, weight in enumerate(weights.values()):
        progress("Quantizing", index, len(weights))
        if weight.rule.dtype != "float32":
            errors.append(weight.error())
        else:
            weight.open().close()  # read and checked before the long work
    return sorted(errors, key=lambda error: error.sqnr_db)


def _bundle(
    plan: Plan,
    files: Sequence[Checkpoint],
    models: Models,
    weights: Weights,
    errors: list[WeightError],
    progress: Progress,
) -> Manifest:
    target = files[0]
    backend = backend_of(plan)
    with staged(plan.out, litertlm.FILE_NAME if plan.out.suffix == ".litertlm" else None) as folder:
        own = models.fresh() if backend.STREAMS else models.fresh().load()
        steps, layout = make_steps(plan, own, backend.OPERATORS[plan.device])
        specs = tuple(step.spec for step in steps)
        parts = backend.write(plan, steps, weights, target, folder, progress)
        shutil.copyfile(target.tokenizer_file, folder / TOKENIZER_NAME)
        if (template := target.chat_template()) is not None:
            write_template(template, target.tokens(), folder)
        (folder / ERRORS_NAME).write_text(json.dumps([vars(error) for error in errors], indent=1))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            backend=plan.backend,
            device=plan.device,
            context_length=plan.context,
            vocab_size=target.text_config.vocab_size,
            kv=layout.layers,
            graphs=specs,
            parts=parts,
            drafters=describe(plan, models.target, models.drafters),
            tokens=target.tokens(),
            recipe={part: plan.recipes.of(part).model_dump() for part in ("target", "drafter", "embedder")},
            source=sources_of(*files),
            versions={name: metadata.version(name) for name in (*VERSIONED, *backend.VERSIONED)},
            files={path.name: _entry(path) for path in sorted(folder.iterdir())},
            takes_back=takes_back(specs, layout),
        )
        (folder / MANIFEST_NAME).write_text(manifest.dump())
    return manifest


def takes_back(graphs: Sequence[GraphSpec], layout: KVLayout) -> int | None:
    """`Manifest.takes_back`."""
    return layout.back if keep_states(graphs) else None


def sources_of(target: Checkpoint, *drafters: Checkpoint) -> Sources:
    def source(checkpoint: Checkpoint) -> Source:
        return Source(name=checkpoint.name, sha256=checkpoint.sha256())

    return Sources(target=source(target), drafters={kind: source(one) for kind, one in by_kind(drafters).items()})


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256(path), size=path.stat().st_size)
