"""Mixed precision by measurement: what each weight's rounding alone costs the target, and who gets more bits for it.

The cost is KL from the float target, nats a token, on given texts, with everything but the one weight left float. It
adds up over weights nearly enough to choose by. All of the float model is in memory, and each choice of each weight
reads the texts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pocketdraft.quantize.budget import Option, choose, recipe_of
from pocketdraft.quantize.recipe import Recipe, Rule
from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .families import load_target
from .layerwise import rounded_inputs
from .plan import Progress
from .step import Step, all_weights
from .steps.target import reading_steps
from .stored import load

Weighted = nn.Linear | nn.Embedding
LONGEST, FEWEST = 128, 256  # tokens of a text that are read, and of all texts


class Reader:
    """The target in torch, reading whole texts through the widest verify of `steps`, whose weights are loaded."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._verify = max((step for step in steps if step.spec.role == "verify"), key=lambda step: step.spec.width)
        self._embedders = {step.spec.part: step.module for step in steps if "embedder" in step.spec.part}

    @staticmethod
    def steps_of(target: Checkpoint) -> list[Step]:
        """What it needs of a float target, for texts of `LONGEST` tokens."""
        model, places = load_target(target)
        load(places, model)
        return reading_steps(model, LONGEST)

    @torch.no_grad()
    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """[tokens, V] after each token of all texts, which are no longer than the verify is wide."""
        return torch.cat([self._read(text) for text in texts])

    def _read(self, text: Sequence[int]) -> Tensor:
        feed, ids = self._verify.sample_inputs(), torch.tensor([text], dtype=torch.int32)
        feed["embeddings"] = self._embedders["embedder"](token_ids=ids)["embeddings"]
        if "per_layer_embedder" in self._embedders:
            feed["per_layer_embeddings"] = self._embedders["per_layer_embedder"](token_ids=ids)["embeddings"]
        feed["input_pos"] = torch.arange(len(text), dtype=torch.int32)
        feed["mask"] = (torch.arange(feed["mask"].shape[-1]) <= feed["input_pos"][:, None])[None, None]
        logits: Tensor = self._verify.module(**feed)["logits"]
        return logits[0].log_softmax(-1)


def kl(wanted: Tensor, now: Tensor) -> float:
    """Nats a token, of log-probabilities [tokens, V]."""
    return float((wanted.exp() * (wanted - now)).sum(-1).mean())


@torch.no_grad()
def cost(
    reader: Reader, weights: Mapping[str, Weighted], rule: Rule, texts: Sequence[Sequence[int]], wanted: Tensor
) -> float:
    """KL where these weights alone are quantized by `rule`."""
    kept = {name: module.weight for name, module in weights.items()}
    for module in weights.values():
        rounded = torch.from_numpy(round_trip(module.weight.detach().numpy(), rule))
        module.weight = nn.Parameter(rounded, requires_grad=False)
    try:
        with rounded_inputs(weights):
            return kl(wanted, reader.log_probabilities(texts))
    finally:
        for name, module in weights.items():
            module.weight = kept[name]


def candidates(module: Weighted) -> Iterator[Rule]:
    """What a weight may get: int4 by row, in blocks where they divide its rows, and int8."""
    yield Rule(weights="*", dtype="int4")
    if module.weight.shape[1] % 32 == 0:
        yield Rule(weights="*", dtype="int4", block=32)
    yield Rule(weights="*", dtype="int8")


def mixed(
    target: Checkpoint,
    texts: Sequence[Sequence[int]],
    bits: float,
    otherwise: Recipe,
    progress: Progress = lambda *_: None,
) -> Recipe:
    """The recipe of least cost whose target and embedders take at most `bits` a weight, scales included.

    Other weights get the rules of `otherwise`. Raises PocketdraftError for too little text or too few bits.
    """
    texts = [text[:LONGEST] for text in texts if len(text) > 1]
    count = sum(map(len, texts))
    if count < FEWEST:
        raise PocketdraftError(f"The texts have {count} tokens, {FEWEST} are the least to measure on; give more text.")
    steps = Reader.steps_of(target)
    reader, weights = Reader(steps), all_weights(steps)
    budget = int(bits * sum(module.weight.numel() for module in weights.values()) / 8)
    rules = {name: list(candidates(module)) for name, module in weights.items()}

    def option(name: str, rule: Rule, cost: float = 0.0) -> Option:
        return Option(rule, rule.size_bytes(*weights[name].weight.shape), cost)

    choose({name: [option(name, rule) for rule in own] for name, own in rules.items()}, budget)  # can it be met?
    wanted = reader.log_probabilities(texts)
    options: dict[str, list[Option]] = {}
    for index, (name, module) in enumerate(weights.items()):
        progress("Measuring weights", index, len(weights))
        options[name] = [option(name, rule, cost(reader, {name: module}, rule, texts, wanted)) for rule in rules[name]]
    return recipe_of(f"{bits:g} bits", choose(options, budget), otherwise.rule)
