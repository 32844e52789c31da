"""Ways of decoding, side by side."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

from scripted import ScriptedEngine, scripted_manifest

from pocketdraft.runtime import lengths
from pocketdraft.runtime.lengths import PLAIN, Way
from pocketdraft.runtime.prompts import Prompt
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.timing import TimedEngine


def test_no_way_has_its_graphs_warmed_by_the_same_other_one_each_time(monkeypatch):
    ways, order = [PLAIN, Way("mtp", 2), Way("mtp", 4), Way("mtp", "auto")], []
    monkeypatch.setattr(lengths, "_run", lambda session, prompt, budget, way, *into: order.append(way))
    engine, tokenizer = TimedEngine(ScriptedEngine(scripted_manifest(200))), SimpleNamespace(encode=lambda text: [1, 2])
    prompts = [Prompt(domain="code", text=str(number)) for number in range(40)]
    lengths.measure(engine, tokenizer, prompts, ways, 8, Sampling(), lambda *progress: None)
    turns = [order[start : start + len(ways)] for start in range(0, len(order), len(ways))]
    assert all(set(turn) == set(ways) for turn in turns)
    followed = Counter(pair for turn in turns for pair in pairwise(turn))
    assert len(followed) == len(ways) * (len(ways) - 1)
    assert max(followed.values()) < len(prompts) / 2
