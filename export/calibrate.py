"""Calibration: a target in, the same target with its weights on the grids of a recipe out.

Linear weights of few bits get levels that keep what they give on calibration texts; the exporter reproduces those
levels exactly, and rounds all other weights as ever. How far keys and values reach is written down as well. The
target runs a layer at a time: each sees the error of those before it, and only one layer's weights and moments are
in memory. Drafters are left alone: calibrated in the same way, the embedded one accepted less (2.70 drafts a round
where rounding each weight for itself gave 2.77).
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
from pocketdraft.quantize.weights import Weight, check_blocks, on_grid, restore, round_trip
from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .families import family_of, load_target
from .kv_int8 import HIGHEST
from .layerwise import Moments, Recorder, TextKV, inputs_of, loaded, rounded_inputs
from .plan import Progress, Recipes
from .rewritten import HEAD, Rewritten
from .staging import CALIBRATED, check_out, staged
from .step import all_weights
from .steps.target import reading_steps

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

    wanted: Stream
    now: Stream


def calibrate(
    target: Checkpoint,
    recipes: Recipes,
    texts: Sequence[Sequence[int]],
    out: Path,
    progress: Progress = lambda *_: None,
) -> dict[str, int]:
    """Writes the checkpoint `out`, to be exported with the same recipes.

    `texts` are token ids as a prompt has them. Gives the numbers of tokens and of calibrated weights. Raises
    PocketdraftError for bad input, before any long work.
    """
    check_out(out, single=False, kind=CALIBRATED)
    family_of(target.config)
    pieces = [list(text[i : i + LONGEST]) for text in texts for i in range(0, len(text) - 1, LONGEST)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    count = sum(map(len, pieces))
    if count < FEWEST:
        raise PocketdraftError(
            f"The calibration texts have {count} tokens, {FEWEST} are the least that tell layers apart; give more text."
        )
    with staged(out, kind=CALIBRATED) as folder, torch.no_grad():
        work = Calibration(target, recipes, folder)
        through_target(work, pieces, progress)
        counts = {"tokens": count, "weights": len(work.calibrated_in(*work.names))}
        used = {part: recipes.of(part).model_dump() for part in ("target", "embedder")}
        (folder / CALIBRATED.mark).write_text(json.dumps({**counts, "recipe": used}, indent=1))
    return counts


class Calibration:
    """The target, what its weights are called, and the copy that is written."""

    def __init__(self, checkpoint: Checkpoint, recipes: Recipes, folder: Path) -> None:
        self.target, self.stored = load_target(checkpoint)
        weights = all_weights(reading_steps(self.target, LONGEST))
        self.names: dict[nn.Module, str] = {module: name for name, module in weights.items()}
        self.places = {module: self.stored[module.weight] for module in weights.values()}
        self._rule_for = recipes.rule_for
        for name, module in weights.items():
            check_blocks(name, module.weight.shape[1], self.rule(module))
        head, table = self.target.lm_head, self.target.embed_tokens
        self._untied = head if head.weight is table.weight and self.rule(head).bits <= MOST_BITS else None
        self._attentions = {layer: self.places[attention.k_proj].name for layer, attention in self._owners()}
        added = [name for layer in self._attentions for name in self._kv_names(layer)]
        self._copy = Rewritten(checkpoint, folder, self.places[head] if self._untied else None, added)

    def _owners(self) -> Iterator[tuple[int, Any]]:
        for index, layer in enumerate(self.target.trunk.layers):
            if self.target.geometry.layers[index].owns_kv:
                yield index, layer.self_attn

    def _kv_names(self, layer: int) -> tuple[str, str]:
        base = self._attentions[layer].removesuffix("k_proj.weight")
        return f"{base}k_cache_scale", f"{base}v_cache_scale"

    def note_kv(self, layer: int, texts: Sequence[Text]) -> None:
        """Writes what a level of int8 keys and values is worth, where they reach as far as in these texts."""
        for side, name in enumerate(self._kv_names(layer)):
            reach = max(float(text.now.kv.read(layer)[side].abs().max()) for text in texts)
            self._copy.put(name, torch.tensor([reach / HIGHEST]))

    def rule(self, module: nn.Module) -> Rule:
        return self._rule_for(self.names[module])

    def quantized_in(self, *modules: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
        """The weights there that become quantized, by name."""
        inner = [module for outer in modules for module in outer.modules() if module in self.names]
        return {self.names[module]: module for module in inner if self.rule(module).dtype != "float32"}  # type: ignore[misc]

    def calibrated_in(self, *modules: nn.Module) -> dict[str, nn.Linear]:
        """Of those, the ones that calibration chooses levels for."""
        quantized = self.quantized_in(*modules).items()
        return {n: m for n, m in quantized if isinstance(m, nn.Linear) and self.rule(m).bits <= MOST_BITS}

    def recorder(self, *modules: nn.Module) -> Recorder:
        return Recorder({name for name, m in self.quantized_in(*modules).items() if isinstance(m, nn.Linear)})

    def quantize(self, recorder: Recorder, *modules: nn.Module) -> None:
        """Rounds the weights of these modules, which are loaded; writes the calibrated ones."""
        calibrated = self.calibrated_in(*modules)
        for name, module in self.quantized_in(*modules).items():
            weight, rule = module.weight.numpy(), self._rule_for(name)
            if name in calibrated:
                stored = HEAD if module is self._untied else self.places[module].name
                weight = self._copy.put(stored, torch.from_numpy(fitted(weight, rule, recorder[name]))).numpy()
            module.weight = nn.Parameter(torch.from_numpy(round_trip(weight, rule)), requires_grad=False)

    def through(self, texts: Sequence[Text], run: Callable[[Stream], Tensor], *modules: nn.Module) -> None:
        """Takes both streams of all texts through `run`, which uses these modules and gives the next hidden state."""
        calibrated, recorder = self.calibrated_in(*modules), self.recorder(*modules)
        with loaded(self.stored, *modules):
            for text in texts:
                with inputs_of(calibrated) as wanted:
                    text.wanted.x = run(text.wanted)
                if calibrated:
                    with inputs_of(calibrated) as now, rounded_inputs(self.quantized_in(*modules)):
                        run(text.now)
                    recorder.add(now, wanted)
            self.quantize(recorder, *modules)
            with rounded_inputs(self.quantized_in(*modules)):
                for text in texts:
                    text.now.x = run(text.now)

    def rows(self, table: nn.Embedding, tokens: Sequence[int], exact: bool = False) -> Tensor:
        """Of an embedding table, [1, T, columns], quantized unless they are to be `exact`."""
        unique = sorted(set(tokens))
        rows = self.places[table].rows_at(unique)
        if not exact:
            rows = torch.from_numpy(round_trip(rows.numpy(), self.rule(table)))
        return rows[torch.tensor([unique.index(token) for token in tokens])][None]


def fitted(weight: Weight, rule: Rule, moments: Moments) -> Weight:
    """The weight on the rule's grid that gives most nearly what it gave in the float model."""
    hessian, cross = moments.hessian.numpy(), moments.cross.numpy()
    # A trained grid stays: a weight of quantization-aware training knows best.
    if cross.any() and on_grid(weight, rule) < 0.5:
        weight = compensated(weight, hessian, cross)
    return restore(*gptq(weight, hessian, rule))


def through_target(work: Calibration, pieces: Sequence[list[int]], progress: Progress) -> list[Text]:
    """Calibrates layer by layer; gives each text's hidden states after the final norm."""
    target, geometry = work.target, work.target.geometry
    trunk, count = target.trunk, len(target.trunk.layers)
    texts = [Text(*(_embedded(work, piece, exact) for exact in (True, False))) for piece in pieces]

    def prepare(stream: Stream) -> Tensor:
        tokens = stream.x.shape[1]
        positions, mask = torch.arange(tokens, dtype=torch.int32), torch.ones(tokens, tokens, dtype=torch.bool).tril()
        stream.given = trunk.given(stream.x, stream.per_layer, positions, mask[None, None], stream.kv)
        return stream.x

    work.through(texts, prepare, *trunk.preparing)
    for index, layer in enumerate(trunk.layers):
        progress("Calibrating the target", index, count + 1)
        work.through(texts, lambda s, layer=layer, i=index: layer(s.x, *s.given[i], s.kv), layer)  # type: ignore[misc]
        if geometry.layers[index].owns_kv:
            work.note_kv(index, texts)
        read = {later.reads for later in geometry.layers[index + 1 :]}
        for text in texts:
            text.wanted.kv.keep(read)
            text.now.kv.keep(read)
    progress("Calibrating the target", count, count + 1)
    for text in texts:
        text.wanted.x, text.now.x = trunk.norm(text.wanted.x), trunk.norm(text.now.x)
    recorder = work.recorder(target.lm_head)
    for name in work.calibrated_in(target.lm_head):
        for text in texts:
            recorder.add({name: text.now.x}, {name: text.wanted.x})
        with loaded(work.stored, target.lm_head):
            work.quantize(recorder, target.lm_head)
    return texts


def _embedded(work: Calibration, tokens: list[int], exact: bool) -> Stream:
    target, geometry = work.target, work.target.geometry
    per_layer = None
    if geometry.per_layer:
        rows = work.rows(target.embed_tokens_per_layer, tokens, exact) * math.sqrt(geometry.per_layer)
        per_layer = rows.reshape(1, len(tokens), len(geometry.layers), -1)
    rows = work.rows(target.embed_tokens, tokens, exact) * geometry.embedding_scale
    return Stream(rows, per_layer, TextKV(len(tokens), geometry.recurrent))
