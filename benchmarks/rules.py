"""Which rule accepts more, on the same drafts: what the default of `runtime/sampler.py` rests on.

    python benchmarks/rules.py BUNDLE [--per-domain 16] [--max-tokens 96]

For each draft that the target looked at, p and q after the processors give the probability that a rule accepts it:
rejection, the sum of min(p, q); exact match with q drawn by the target's noise, the sum over x of
1 / sum over y of max(p_y / p_x, q_y / q_x); a greedy draft, p of q's argmax, by either rule. The text is the target's,
whose drafts were accepted by exact match. Then what each rule really accepted, four drafts a round, each in its own
text. The first table is Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime import terminal
from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Fixed
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.noise import Probabilities
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.proposal import NOTHING, Proposal
from pocketdraft.runtime.sampler import GREEDY, Rule, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target, Verified
from pocketdraft.runtime.text import Tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "T=0.6, top-p 0.9": {"temperature": 0.6, "top_p": 0.9},
    "T=0.7": {"temperature": 0.7},
    "T=1": {"temperature": 1.0},
    "T=1, top-k 64, top-p 0.95": {"temperature": 1.0, "top_k": 64, "top_p": 0.95},
    "T=1, min-p 0.1": {"temperature": 1.0, "min_p": 0.1},
    "T=1.5": {"temperature": 1.5},
}


def coupled(p: Probabilities, q: Probabilities) -> float:
    """P(one Gumbel noise draws the same token from both). The larger term is p's where p_y / q_y exceeds p_x / q_x."""
    both = np.flatnonzero((p > 0) & (q > 0))
    order = both[np.argsort(p[both] / q[both])]
    only_p, only_q = p[q == 0].sum(), q[p == 0].sum()
    above = only_p + p[order].sum() - p[order].cumsum()
    below = only_q + q[order].cumsum()
    return float((1 / (above / p[order] + below / q[order])).sum())


class Watching(MTPDrafter):
    """Notes the chances of each draft that the target looked at: by rejection, exact match, and as a greedy one."""

    chances: list[tuple[float, float, float]]

    def propose(self, context: Context, count: int) -> Proposal:
        self._proposal = super().propose(context, count) if count else NOTHING
        self._tokens = list(context.tokens)
        return self._proposal

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        super().observe(verdict, verified)
        for row, q in zip(verdict.rows, self._proposal.probs, strict=False):
            assert q is not None
            p = self._sampler.probabilities(verified.logits[row], [*self._tokens, *self._proposal.tokens[:row]])
            self.chances.append((float(np.minimum(p, q).sum()), coupled(p, q), float(p[q.argmax()])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--per-domain", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=96)
    chosen = parser.parse_args()
    terminal.silence_native_code()
    engine = open_engine(chosen.bundle, 1)
    tokenizer = Tokenizer(chosen.bundle / "tokenizer.json", engine.manifest.tokens.bos)
    prompts = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, chosen.per_domain)]
    target = Target(engine)

    def accepted(settings: dict[str, Any], rule: Rule, greedy_drafts: bool) -> tuple[Stats, list[Any]]:
        stats, chances = Stats(), list[Any]()
        for seed, prompt in enumerate(prompts):
            sampler = Sampler(Sampling(**settings, seed=seed), rule)
            cache = Cache(engine.new_cache(), target.context_length)
            drafter = (MTPDrafter if greedy_drafts else Watching)(target, cache, GREEDY if greedy_drafts else sampler)
            if isinstance(drafter, Watching):
                drafter.chances = chances
            session = Session(target, cache, drafter, Fixed(4), sampler)
            session.stats = stats
            for _ in session.generate(prompt, chosen.max_tokens):
                pass
        return stats, chances

    print(
        "| settings | drafts | rejection | exact | greedy draft | accepted a round: rejection | exact | greedy drafts |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    found = {}
    for name, settings in SETTINGS.items():
        exact, chances = accepted(settings, "exact", False)
        rejection, _ = accepted(settings, "rejection", False)
        greedy, _ = accepted(settings, "exact", True)
        shares = np.mean(chances, 0)
        rounds = [stats.accepted_per_round for stats in (rejection, exact, greedy)]
        cells = [f"{value:.3f}" for value in shares] + [f"{value:.2f}" for value in rounds]
        print(f"| {name} | {len(chances)} | {' | '.join(cells)} |", flush=True)
        keys = ("rejection", "exact", "greedy_draft", "rejection_a_round", "exact_a_round", "greedy_a_round")
        found[name] = dict(zip(keys, [round(float(value), 4) for value in (*shares, *rounds)], strict=True))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
