"""build(plan): checkpoint pair -> steps -> lowered -> quantized -> bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from itertools import groupby
from pathlib import Path

from pocketdraft.quantize.weights import WeightError, error_of
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import (
    ERRORS_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Source,
    Tokens,
    sha256,
)

from . import litertlm
from .backends import litert
from .checkpoint import Checkpoint
from .kv_layout import KVLayout
from .models.gemma4 import Geometry, load_target
from .models.gemma4_assistant import load_drafter
from .pair import check_pair
from .plan import Plan
from .staging import require_space, staged
from .step import Operators, Step, all_weights
from .steps.mtp import Head, drafter_spec, mtp_step
from .steps.target import embedder_steps, target_steps

# (what is being done, done so far, in all)
Progress = Callable[[str, int, int], None]
VERSIONED = ("pocketdraft", "torch", "transformers", "litert-torch", "ai-edge-quantizer", "litert-lm-builder")


def build(plan: Plan, progress: Progress = lambda *_: None) -> Manifest:
    """Writes the bundle `plan.out` atomically, or its `.litertlm` alone if that is what `out` names.

    Raises PocketdraftError for bad input, before any long work.
    """
    target_files, drafter_files = Checkpoint.open(plan.target), Checkpoint.open(plan.drafter)
    check_pair(target_files, drafter_files)
    head_of(plan, drafter_files)
    only = litertlm.FILE_NAME if plan.out.suffix == ".litertlm" else None
    with staged(plan.out, only) as folder:
        scratch = folder / "lowering"
        scratch.mkdir()
        progress("Reading weights", 0, 1)
        steps, layout = make_steps(plan, target_files, drafter_files, litert.LiteRTOperators())
        errors = weight_errors(plan, steps)
        require_space(folder, 8 * sum(module.weight.numel() for module in all_weights(steps).values()))
        parts = {}
        grouped = [(part, list(group)) for part, group in groupby(steps, key=lambda step: step.spec.part)]
        for index, (part, group) in enumerate(grouped):
            progress(f"Lowering and quantizing the {part.replace('_', ' ')}", index, len(grouped))
            float_file, parts[part] = scratch / f"{part}.float.tflite", scratch / f"{part}.tflite"
            litert.lower(group, float_file)
            litert.quantize(group, plan.recipes.of(part), float_file, parts[part])
            float_file.unlink()
        progress("Packing", len(grouped), len(grouped))
        tokens = read_tokens(target_files)
        shutil.copyfile(target_files.tokenizer_file, folder / "tokenizer.json")
        chat = litertlm.ChatFile(
            tokenizer=target_files.tokenizer_file,
            tokens=tokens,
            # LiteRT-LM verifies at full width whatever is left: keep room for a whole verify.
            max_tokens=plan.context - plan.verify[0],
            chat_template=_chat_template(target_files),
        )
        located = litertlm.pack(parts, chat, folder / litertlm.FILE_NAME)
        shutil.rmtree(scratch)
        (folder / ERRORS_NAME).write_text(json.dumps([vars(error) for error in errors], indent=1))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            backend=plan.backend,
            context_length=plan.context,
            vocab_size=target_files.text_config.vocab_size,
            kv=layout.layers,
            graphs=tuple(step.spec for step in steps),
            parts=located,
            drafter=drafter_spec(geometry_of(target_files), head_of(plan, drafter_files), plan.position),
            tokens=tokens,
            recipe={part: plan.recipes.of(part).model_dump() for part in ("target", "drafter", "embedder")},
            source=_source(target_files, drafter_files),
            versions={name: metadata.version(name) for name in VERSIONED},
            files={path.name: _entry(path) for path in sorted(folder.iterdir())},
        )
        (folder / MANIFEST_NAME).write_text(manifest.dump())
    return manifest


def geometry_of(target: Checkpoint) -> Geometry:
    return Geometry.from_config(target.text_config)


def make_steps(
    plan: Plan, target_files: Checkpoint, drafter_files: Checkpoint, operators: Operators
) -> tuple[list[Step], KVLayout]:
    """All graphs of the pair, part by part."""
    target = load_target(target_files)
    drafter = load_drafter(drafter_files, target.geometry)
    layout = KVLayout.of(target.geometry, plan.context)
    head = head_of(plan, drafter_files)
    return [
        *target_steps(target, layout, plan.prefill, plan.verify, operators),
        mtp_step(drafter, target.geometry, layout, head, plan.position, operators),
        *embedder_steps(target),
    ], layout


def head_of(plan: Plan, drafter: Checkpoint) -> Head:
    """Raises PocketdraftError if a centroid head is asked for where the checkpoint has none."""
    centroids = drafter.config.use_ordered_embeddings
    if plan.head == "centroid" and not centroids:
        raise PocketdraftError(
            f"The drafter {drafter.folder} has a dense head only, --head asks for centroid; leave --head out."
        )
    if plan.head != "auto":
        return plan.head
    return "centroid" if centroids else "dense"


def read_tokens(target: Checkpoint) -> Tokens:
    """Stop tokens are those of generation_config.json where there is one, else config.json's eos."""
    eos, bos = target.text_config.eos_token_id, target.text_config.bos_token_id
    path = target.folder / "generation_config.json"
    if path.is_file():
        generation = json.loads(path.read_text())
        eos, bos = generation.get("eos_token_id", eos), generation.get("bos_token_id", bos)
    stop = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return Tokens(bos=bos, stop=tuple(stop))


def weight_errors(plan: Plan, steps: list[Step]) -> list[WeightError]:
    """What quantization does to each weight, worst first."""
    errors = []
    for name, module in all_weights(steps).items():
        rule = plan.recipes.of(name.partition(".")[0]).rule_for(name)
        if rule.dtype != "float32":
            errors.append(error_of(name, module.weight.detach().numpy(), rule))
    return sorted(errors, key=lambda error: error.sqnr_db)


def _chat_template(target: Checkpoint) -> str | None:
    path = target.folder / "chat_template.jinja"
    return path.read_text() if path.is_file() else None


def _source(target: Checkpoint, drafter: Checkpoint) -> Source:
    return Source(
        target=target.folder.resolve().name,
        target_sha256=target.sha256(),
        drafter=drafter.folder.resolve().name,
        drafter_sha256=drafter.sha256(),
    )


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256(path), size=path.stat().st_size)
