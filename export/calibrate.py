"""Calibration: a checkpoint pair in, the same pair with its weights on the grids of a recipe out.

Linear weights of few bits get levels that keep what they give on calibration texts; the exporter reproduces those
levels exactly, and rounds all other weights as ever. How far keys and values reach is written down as well. The
target runs a layer at a time: each sees the error of those before it, and only one layer's weights and moments are
in memory. The drafter then runs on the target so made, at each place of each text, and on its own projected states:
what the loop feeds it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketdraft.quantize.gptq import compensated, gptq
from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import Weight, on_grid, restore, round_trip
from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .kv_int8 import HIGHEST
from .layerwise import Moments, Recorder, TextKV, inputs_of, loaded, rounded_inputs
from .models.gemma4_assistant import CentroidHead
from .pair import check_pair
from .pipeline import make_steps, open_models
from .plan import Plan, Progress
from .rewritten import HEAD, Rewritten
from .staging import CALIBRATED, check_out, staged
from .step import Plain, all_weights

DEPTHS = 4  # drafts in a row that the drafter is calibrated on
EVERY = 4  # of so many places of a text, one is drafted from: about as often as a loop does
LONGEST = 256  # tokens of a text that run in one call
FEWEST = 1024  # tokens of all texts
MOST_BITS = 4  # of a weight that gains from calibration


@dataclass
class Stream:
    """A text on its way through the target: hidden state [1, T, D], K/V, and what each layer takes besides."""

    x: Tensor
    per_layer: Tensor | None
    kv: TextKV
    given: list[Any] = field(default_factory=list)


@dataclass
class Text:
    """`wanted` is what the float model makes of it, `now` what the quantized one does."""

    tokens: list[int]
    wanted: Stream
    now: Stream


def calibrate(plan: Plan, texts: Sequence[Sequence[int]], progress: Progress = lambda *_: None) -> dict[str, int]:
    """Writes `plan.out/target` and `plan.out/drafter`, checkpoints to export with the plan's recipes.

    `texts` are token ids as a prompt has them. Gives the numbers of tokens and of calibrated weights. Raises
    PocketdraftError for bad input, before any long work.
    """
    check_out(plan.out, single=False, kind=CALIBRATED)
    files = Checkpoint.open(plan.target, plan.lora), Checkpoint.open(plan.drafter, plan.drafter_lora)
    check_pair(*files)
    pieces = [list(text[i : i + LONGEST]) for text in texts for i in range(0, len(text) - 1, LONGEST)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    count = sum(map(len, pieces))
    if count < FEWEST:
        raise PocketdraftError(
            f"The calibration texts have {count} tokens, {FEWEST} are the least that tell layers apart; give more text."
        )
    with staged(plan.out, kind=CALIBRATED) as folder, torch.no_grad():
        work = Calibration(plan, files, folder)
        through_drafter(work, through_target(work, pieces, progress), progress)
        counts = {"tokens": count, "weights": len(work.calibrated_in(*work.modules))}
        recipes = {part: plan.recipes.of(part).model_dump() for part in work.parts}
        (folder / CALIBRATED.mark).write_text(json.dumps({**counts, "recipe": recipes}, indent=1))
    return counts


class Calibration:
    """The pair, what its weights are called, and the two copies that are written."""

    parts = ("target", "drafter", "embedder")

    def __init__(self, plan: Plan, files: tuple[Checkpoint, Checkpoint], folder: Path) -> None:
        self.models = open_models(*files)
        steps, _ = make_steps(plan, self.models, Plain())
        self.draft_step: Any = next(step.module for step in steps if step.spec.role == "draft")
        self.modules = list(all_weights(steps).values())
        self.names: dict[nn.Module, str] = {module: name for name, module in all_weights(steps).items()}
        self.places = {module: self.models.stored[module.weight] for module in self.modules}
        self._rule_for = plan.recipes.rule_for
        head, table = self.models.target.lm_head, self.models.target.embed_tokens
        self._untied = head if head.weight is table.weight and self.rule(head).bits <= MOST_BITS else None
        self._attentions = {layer: self.places[attention.k_proj].name for layer, attention in self._owners()}
        kv_names = [name for layer in self._attentions for name in self._kv_names(layer)]
        self._copies = {
            "target": Rewritten(files[0], folder / "target", self.places[head] if self._untied else None, kv_names),
            "drafter": Rewritten(files[1], folder / "drafter"),
        }

    def _owners(self) -> Iterator[tuple[int, Any]]:
        for index, layer in enumerate(self.models.target.trunk.layers):
            if self.models.target.geometry.layers[index].owns_kv:
                yield index, layer.self_attn

    def _kv_names(self, layer: int) -> tuple[str, str]:
        base = self._attentions[layer].removesuffix("k_proj.weight")
        return f"{base}k_cache_scale", f"{base}v_cache_scale"

    def note_kv(self, layer: int, texts: Sequence[Text]) -> None:
        """Writes what a level of int8 keys and values is worth, where they reach as far as in these texts."""
        for side, name in enumerate(self._kv_names(layer)):
            reach = max(float(text.now.kv.read(layer)[side].abs().max()) for text in texts)
            self._copies["target"].put(name, torch.tensor([reach / HIGHEST]))

    def rule(self, module: nn.Module) -> Rule:
        return self._rule_for(self.names[module])

    def quantized_in(self, *modules: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
        """The weights there that become quantized, by name."""
        inner = [module for outer in modules for module in outer.modules() if module in self.names]
        return {self.names[module]: module for module in inner if self.rule(module).dtype != "float32"}  # type: ignore[misc]

    def calibrated_in(self, *modules: nn.Module) -> dict[str, nn.Module]:
        """By name of a weight, the module whose input it is multiplied with."""
        inner = [module for outer in modules for module in outer.modules()]
        found: dict[str, nn.Module] = {self.names[m]: m for m in inner if isinstance(m, nn.Linear) and m in self.names}
        found |= {self.names[m.rows]: m for m in inner if isinstance(m, CentroidHead) and m.rows in self.names}
        quantized = self.quantized_in(*modules)
        return {name: m for name, m in found.items() if name in quantized and self._rule_for(name).bits <= MOST_BITS}

    def recorder(self, *modules: nn.Module) -> Recorder:
        return Recorder({name for name, m in self.quantized_in(*modules).items() if isinstance(m, nn.Linear)})

    def quantize(self, recorder: Recorder, *modules: nn.Module) -> None:
        """Rounds the weights of these modules, which are loaded; writes the calibrated ones."""
        calibrated = self.calibrated_in(*modules)
        for name, module in self.quantized_in(*modules).items():
            weight, rule = module.weight.numpy(), self._rule_for(name)
            if name in calibrated:
                stored = HEAD if module is self._untied else self.places[module].name
                copy = self._copies[name.partition(".")[0]]
                weight = copy.put(stored, torch.from_numpy(fitted(weight, rule, recorder[name]))).numpy()
            module.weight = nn.Parameter(torch.from_numpy(round_trip(weight, rule)), requires_grad=False)

    def through(self, texts: Sequence[Text], run: Callable[[Stream], Tensor], *modules: nn.Module) -> None:
        """Takes both streams of all texts through `run`, which uses these modules and gives the next hidden state."""
        calibrated, recorder = self.calibrated_in(*modules), self.recorder(*modules)
        with loaded(self.models.stored, *modules):
            for text in texts:
                with inputs_of(calibrated) as wanted:
                    text.wanted.x, before = run(text.wanted), text.wanted.x
                if calibrated:
                    with inputs_of(calibrated) as now, rounded_inputs(self.quantized_in(*modules)):
                        run(text.now)
                    recorder.add(now, wanted)
                del before
            self.quantize(recorder, *modules)
            with rounded_inputs(self.quantized_in(*modules)):
                for text in texts:
                    text.now.x = run(text.now)

    def rows(self, table: nn.Embedding, tokens: Sequence[int], exact: bool = False) -> Tensor:
        """Scaled embeddings [1, T, D], quantized unless they are to be `exact`."""
        unique = sorted(set(tokens))
        rows = self.places[table].rows_at(unique)
        if not exact:
            rows = torch.from_numpy(round_trip(rows.numpy(), self.rule(table)))
        return rows[torch.tensor([unique.index(token) for token in tokens])][None] * math.sqrt(rows.shape[1])


def fitted(weight: Weight, rule: Rule, moments: Moments) -> Weight:
    """The weight on the rule's grid that gives most nearly what it gave in the float model."""
    hessian, cross = moments.hessian.numpy(), moments.cross.numpy()
    # A trained grid stays: a weight of quantization-aware training knows best.
    if cross.any() and on_grid(weight, rule) < 0.5:
        weight = compensated(weight, hessian, cross)
    return restore(*gptq(weight, hessian, rule))


def through_target(work: Calibration, pieces: Sequence[list[int]], progress: Progress) -> list[Text]:
    """Calibrates the target; gives each text's hidden states after the final norm, and the K/V that a drafter reads."""
    target, geometry = work.models.target, work.models.target.geometry
    trunk, count = target.trunk, len(target.trunk.layers)
    texts = [Text(piece, *(_embedded(work, piece, exact) for exact in (True, False))) for piece in pieces]

    def prepare(stream: Stream) -> Tensor:
        tokens = stream.x.shape[1]
        positions, mask = torch.arange(tokens, dtype=torch.int32), torch.ones(tokens, tokens, dtype=torch.bool).tril()
        stream.given = trunk.given(stream.x, stream.per_layer, positions, mask[None, None], stream.kv)
        return stream.x

    work.through(texts, prepare, *([trunk.per_layer_model_projection] if geometry.per_layer else []))
    for index, layer in enumerate(trunk.layers):
        progress("Calibrating the target", index, count + 1)
        work.through(texts, lambda s, layer=layer, i=index: layer(s.x, *s.given[i], s.kv), layer)  # type: ignore[misc]
        if geometry.layers[index].owns_kv:
            work.note_kv(index, texts)
        read = {later.reads for later in geometry.layers[index + 1 :]}
        for text in texts:
            text.wanted.kv.keep(read)
            text.now.kv.keep(read | {geometry.last_owner(kind) for kind in {layer.kind for layer in geometry.layers}})
    progress("Calibrating the target", count, count + 1)
    for text in texts:
        text.wanted.x, text.now.x = trunk.norm(text.wanted.x), trunk.norm(text.now.x)
    recorder = work.recorder(target.lm_head)
    for name in work.calibrated_in(target.lm_head):
        for text in texts:
            recorder.add({name: text.now.x}, {name: text.wanted.x})
        with loaded(work.models.stored, target.lm_head):
            work.quantize(recorder, target.lm_head)
    return texts


def _embedded(work: Calibration, tokens: list[int], exact: bool) -> Stream:
    target = work.models.target
    per_layer = None
    if target.geometry.per_layer:
        rows = work.rows(target.embed_tokens_per_layer, tokens, exact) / math.sqrt(len(target.geometry.layers))
        per_layer = rows.reshape(1, len(tokens), len(target.geometry.layers), -1)
    return Stream(work.rows(target.embed_tokens, tokens, exact), per_layer, TextKV(len(tokens)))


def through_drafter(work: Calibration, texts: Sequence[Text], progress: Progress) -> None:
    """Calibrates the drafter on what a round of drafts feeds it, from places all over the texts."""
    step = work.draft_step
    stages = [[step.pre_projection], *([layer] for layer in step.trunk.layers), [step.post_projection, step.head]]
    in_head = work.calibrated_in(step.head)
    with loaded(work.models.stored, work.models.drafter):
        for index, stage in enumerate(stages):
            progress("Calibrating the drafter", index, len(stages))
            calibrated, recorder = work.calibrated_in(*stage), work.recorder(*stage)
            heard = {name: module for name, module in calibrated.items() if name not in in_head}
            done = [module for earlier in stages[: index + 1] for module in earlier]
            for first, text in enumerate(texts if calibrated else ()):
                with inputs_of(heard) as now, rounded_inputs(work.quantized_in(*done)):
                    for state in _drafts(work, text, first % EVERY):
                        inputs = now | {name: state for name in calibrated if name in in_head}
                        recorder.add(inputs, inputs)
            work.quantize(recorder, *stage)


def _drafts(work: Calibration, text: Text, first: int) -> Iterator[Tensor]:
    """Drafts from every few places of a text; gives the drafter's hidden states [1, places, D], draft by draft."""
    step, chosen = work.draft_step, range(first, len(text.tokens) - 1, EVERY)
    if not chosen:
        return
    places = torch.tensor(chosen, dtype=torch.int32)
    mask = (torch.arange(len(text.tokens)) <= places[:, None])[None, None]
    hidden, tokens = text.now.x[:, places], [text.tokens[place + 1] for place in chosen]
    for _ in range(DEPTHS):
        activations = torch.cat([work.rows(work.models.target.embed_tokens, tokens), hidden], -1)
        state = step.trunk(step.pre_projection(activations), None, places + step.offset, mask, text.now.kv)
        hidden = step.post_projection(state)
        tokens = [int(step.head(state[:, i : i + 1]).argmax()) for i in range(len(places))]
        yield state
