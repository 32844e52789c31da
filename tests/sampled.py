"""A model of six tokens whose every text can be enumerated, and how far drawn texts are from its distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from scripted import scripted_manifest
from scripted_drafters import every_drafter

from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Confident, DraftLength, Fixed
from pocketdraft.runtime.drafters import Drafter
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.drafters.prompt_lookup import PromptLookup
from pocketdraft.runtime.graphs import GraphSpec
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target, Verified

TOKENS, STOP, BUDGET = 6, 5, 4
PROMPT = [1, 2, 1, 2]  # prompt lookup finds something at once; most tokens are yet without a penalty
Text = tuple[int, ...]


@cache
def logits(sequence: Text, drafter: bool = False) -> np.ndarray:
    """float32 [6]: the target's after `sequence`, or the drafter's, which are near to them. Some are equal."""
    own = np.random.default_rng([1, *sequence]).normal(size=TOKENS) * 1.5
    if drafter:
        own += np.random.default_rng([2, *sequence]).normal(size=TOKENS)
    return np.round(own * 2).astype(np.float32) / 2


class TableEngine:
    """Looks logits up by the tokens before. A hidden state is the number of the sequence that it has read."""

    def __init__(self) -> None:
        self.manifest = scripted_manifest(16, verify=(2, 3, 4), stop=(STOP,), per_layer=False)
        self._graphs = {graph.name: graph for graph in self.manifest.graphs}
        self._numbers: dict[Text, int] = {}
        self._sequences: list[Text] = []

    def new_cache(self) -> list[int]:
        return [-1] * self.manifest.context_length

    def fork(self, cache: list[int]) -> list[int]:
        return list(cache)

    def run(self, name: str, inputs: Any, cache: Any = None) -> dict[str, Any]:
        graph = self._graphs[name]
        if graph.role == "embed":
            return {"embeddings": inputs["token_ids"].astype(np.float32)[..., None]}
        if graph.role == "draft":
            token, number = (int(value) for value in inputs["activations"][0, 0])
            sequence = (*self._sequences[number], token)
            return {
                "logits": self.logits(sequence, True)[None, None],
                "projected_activations": self._hidden([sequence]),
            }
        return self._target(graph, inputs, cache)

    def logits(self, sequence: Text, drafter: bool = False) -> np.ndarray:
        return logits(sequence, drafter)

    def read_kv(self, cache: Any) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None: ...

    def _target(self, graph: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        start = int(inputs["input_pos"][0])
        cache[start : start + graph.width] = inputs["embeddings"][0, :, 0].astype(int).tolist()
        sequences = [tuple(cache[: start + row + 1]) for row in range(graph.width)]
        if graph.role == "prefill":
            return {"activations": self._hidden(sequences)}
        return {"logits": np.array([[self.logits(s) for s in sequences]]), "activations": self._hidden(sequences)}

    def _hidden(self, sequences: Sequence[Text]) -> np.ndarray:
        for sequence in sequences:
            if sequence not in self._numbers:
                self._numbers[sequence] = len(self._sequences)
                self._sequences.append(sequence)
        return np.array([[[self._numbers[sequence]] for sequence in sequences]], np.float32)


class HeadsEngine(TableEngine):
    """With two native MTP heads, whose states are the numbers of what they have read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.manifest = every_drafter(16, (2, 3, 4), (STOP,), False, heads=2)
        self._graphs = {graph.name: graph for graph in self.manifest.graphs}

    def run(self, name: str, inputs: Any, cache: Any = None) -> dict[str, Any]:
        role = self._graphs[name].role
        if role not in ("head", "mtp_heads"):
            return super().run(name, inputs, cache)
        sequences = [self._sequences[int(number)] for number in inputs["activations"][0, :, 0]]
        if role == "head":
            return {"logits": np.array([[self.logits(sequence, True) for sequence in sequences]])}
        tokens = inputs["embeddings"][0, :, 0].astype(int).tolist()
        return {"projected_activations": self._hidden([(*s, t) for s, t in zip(sequences, tokens, strict=True)])}


class Remembering(Sampling):
    """Does not compute twice what is a function of its arguments: a test asks for few rows, each very often."""

    def probabilities(self, logits, history, processors=()):
        key = (self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, logits.tobytes())
        place = (*key, *history)
        if place not in _remembered:
            _remembered[place] = super().probabilities(logits, history, processors)
        return _remembered[place]


_remembered: dict[Any, np.ndarray] = {}


class Adversary:
    """Drafts where rejection is likely, as many as suits the context; under exact match, knowing what is to come.

    There it proposes the target's own token where that is even, and another where it is odd: were it to have a say,
    odd tokens would be rarer.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def restart(self, prefilled) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        tokens, path, probs = context.tokens, [], []
        for _ in range(min(count, 1 + sum(tokens) % 3)):
            row = logits((*tokens, *path))
            if self._sampler.rejects:
                draft = self._sampler.draft(-row / 2, tokens, path)
                path.append(draft.token)
                probs.append(draft.probs)
            else:
                coming = self._sampler.choose(row, [*tokens, *path])
                path.append(coming if coming % 2 == 0 else (coming + 1) % TOKENS)
        return Proposal.chain(path, probs)

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


Maker = Callable[[Target, Cache, Sampler], Drafter]
DRAFTERS: dict[str, Maker] = {
    "MTP sampled": MTPDrafter,
    "MTP greedy": lambda target, cache, _: MTPDrafter(target, cache, GREEDY),
    "prompt lookup": lambda target, cache, _: PromptLookup(),
    "adversary": lambda target, cache, sampler: Adversary(sampler),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 1.0, "top_k": 3},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.0, "min_p": 0.15},
    "penalty": {"temperature": 1.0, "repetition_penalty": 2.0},
}


def drawn(
    settings: dict[str, Any],
    make: Maker,
    rounds: int,
    rule: str,
    early_stop: Confident | None = None,
    engine: type[TableEngine] = TableEngine,
) -> tuple[Counter[Text], Stats]:
    """Texts by seed, 0 and on, until there were so many rounds. Three drafts a round, where the budget has room."""
    target, stats, found = Target(engine()), Stats(), Counter[Text]()
    draft_length: DraftLength = early_stop or Fixed(3)
    while stats.rounds < rounds:
        sampler = Sampler(Remembering(**settings, seed=found.total()), rule)
        cache = Cache(target.engine.new_cache(), target.context_length)
        session = Session(target, cache, make(target, cache, sampler), draft_length, sampler)
        session.stats = stats
        found[tuple(token for round_ in session.generate(PROMPT, BUDGET) for token in round_.tokens)] += 1
    stats.check()
    return found, stats


def expected(settings: dict[str, Any]) -> dict[Text, float]:
    """Every text that can be drawn with its probability, by plain decoding on paper."""
    sampling = Remembering(**settings)

    def texts(text: Text, probability: float) -> Iterator[tuple[Text, float]]:
        if len(text) == BUDGET or STOP in text:
            yield text, probability
            return
        history = (*PROMPT, *text)
        for token, share in enumerate(sampling.probabilities(logits(history), history)):
            if share > 0:
                yield from texts((*text, token), probability * share)

    return dict(texts((), 1.0))


def distance(found: Counter[Text], wanted: dict[Text, float], part: slice = slice(None)) -> float:
    """How unlikely the texts, or a part of each, are: the chi-square statistic as a standard normal number.

    By Wilson and Hilferty, 1931. What is expected under five times makes one cell.
    """
    if set(found) - set(wanted):
        return float("inf")
    observed, shares = Counter[Text](), Counter[Text]()
    for text, share in wanted.items():
        observed[text[part]] += found[text]
        shares[text[part]] += share
    cells = {text: text if share * found.total() >= 5 else None for text, share in shares.items()}
    table = np.zeros((len(cells), 2))
    rows = {cell: row for row, cell in enumerate(dict.fromkeys(cells.values()))}
    for text, cell in cells.items():
        table[rows[cell]] += observed[text], shares[text] * found.total()
    table = table[: len(rows)]
    chi_square, freedom = ((table[:, 0] - table[:, 1]) ** 2 / table[:, 1]).sum(), len(table) - 1
    spread = 2 / (9 * freedom)
    return float(((chi_square / freedom) ** (1 / 3) - (1 - spread)) / np.sqrt(spread))
