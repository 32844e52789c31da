"""Records rounds of this runtime for whoever ports it: `python -m golden.record`, in `tests/`, writes the files here.

`sessions.json` holds whole generations on a scripted engine: every graph call with what was fed and what came back, and
every round with what it gave. `verdicts.json` holds single decisions on random logits, `trees.json` best trees of
random distributions, `texts.json` what tokenizers make of texts. `test_golden.py` holds this runtime to them; the
Android demo's `core` replays them.

A mask is written as the number of slots that each row sees, which must be the first ones, or those from `mask_from` on.
A row that sees others as well, as in a tree, is a list: the number, then those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.cases import CASES, WARM, Case
from golden.graphs import manifest_of
from scripted import VOCABULARY, RecurrentEngine, RingEngine, ScriptedEngine
from scripted_drafters import EveryDrafter
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.runtime import clock
from pocketdraft.runtime.accept import accept
from pocketdraft.runtime.draft_length import Scheduled
from pocketdraft.runtime.engine import Delegating
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.sampler import Rule, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer
from pocketdraft.runtime.tree import best_tree

FOLDER = Path(__file__).parent
CAPACITY = 24
Json = dict[str, Any]


class Recorder(Delegating):
    """A scripted engine's calls, its one-hot logits blurred by a function of themselves: so there is what to sample.

    `unsure` puts a second token beside a drafter's, as likely but for the blur. `seconds` have passed: by each call a
    512th for each of its tokens."""

    def __init__(self, engine: ScriptedEngine, unsure: bool = False) -> None:
        super().__init__(engine)
        self.calls: list[Json] = []
        self._unsure, self.seconds = unsure, 0.0

    def run(self, graph: str, inputs: Any, cache: Any = None) -> dict[str, Any]:
        outputs = super().run(graph, inputs, cache)
        (spec,) = (one for one in self.manifest.graphs if one.name == graph)
        self.seconds += spec.width / 512
        if self._unsure and spec.role in ("draft", "head"):
            right = outputs["logits"] > 0
            outputs["logits"] = np.where(right | np.roll(right, -1, -1), np.float32(3), np.float32(0))
        if "logits" in outputs:
            outputs["logits"] = outputs["logits"] + self._blur(graph, outputs["logits"].shape)
        if "activations" in outputs:
            outputs["activations"] = outputs["activations"][..., :1]  # a ring's hidden states say nothing
        if "taps" in outputs:
            outputs["taps"] = np.concatenate([outputs["taps"], -outputs["taps"]], -1)  # not to be taken for the others
        outputs = {tensor.name: outputs[tensor.name] for tensor in spec.outputs}
        self.calls.append({"graph": graph, "inputs": _flat(inputs), "outputs": _flat(outputs)})
        return outputs

    def compact(self, cache: Any, sources: Sequence[int], start: int) -> None:
        super().compact(cache, sources, start)
        self.calls.append({"compact": list(sources), "start": start})

    def _blur(self, graph: str, shape: tuple[int, ...]) -> Any:
        digest = hashlib.blake2b(f"{graph}{len(self.calls)}".encode(), digest_size=8).digest()
        steps = np.random.default_rng(int.from_bytes(digest, "big")).integers(0, 900, shape)
        return (steps / 1024).astype(np.float32)  # exact in JSON, and below the scripted token's 1


def sessions() -> list[Json]:
    return [_session(case) for case in CASES]


def verdicts() -> list[Json]:
    """Random logits, chains and trees, under all rules."""
    found, generator = [], np.random.default_rng(11)
    samplings = (Sampling(), WARM, Sampling(1.5, 5, 0.8, 0.02, 1.3, 2**64 - 1), Sampling(repetition_penalty=1.4))
    for number in range(80):
        rule: Rule = "rejection" if number % 3 == 0 else "exact"
        sampler = Sampler(samplings[number % len(samplings)], rule)
        drafts, tokens = number % 5, generator.integers(0, VOCABULARY, 1 + number % 7).tolist()
        logits = (generator.integers(-3000, 3000, (1 + drafts, VOCABULARY)) / 1024).astype(np.float32)
        # Likely ones, so that some are accepted.
        nodes = [int(logits[max(0, row)].argsort()[-1 - number % 2]) for row in range(drafts)]
        chain = rule == "rejection" or number % 2
        parents = (
            list(range(-1, drafts - 1)) if chain else [int(generator.integers(-1, node)) for node in range(drafts)]
        )
        probs: list[Any] = [None] * drafts
        if sampler.rejects and number % 2:
            probs = [_drawn_from(generator, token) for token in nodes]
        verdict = accept(logits, Proposal(tuple(nodes), tuple(parents), tuple(probs)), tokens, sampler)
        found.append(
            _sampler(sampler)
            | {
                "tokens": tokens,
                "logits": logits.tolist(),
                "proposal": {
                    "tokens": nodes,
                    "parents": parents,
                    "probs": [None if q is None else q.tolist() for q in probs],
                },
                "accepted": list(verdict.accepted),
                "next_token": verdict.next_token,
                "rows": list(verdict.rows),
            }
        )
    return found


def trees() -> list[Json]:
    """Distributions with and without equals, and with what cannot happen; budgets from none to more than there is."""
    found, generator = [], np.random.default_rng(13)
    for number in range(20):
        budget = (0, 1, 3, 7, 40)[number % 5]
        # Equals are so at one depth, or as products of the same two: whatever the last bits of a logarithm are.
        marginals = generator.integers(0, 3, (2, 6)) / 8
        if number % 2:
            marginals = generator.integers(0, 64, (1 + number % 4, 8)) ** 3 / (1 << 20)
        tree = best_tree(marginals, budget)
        one = {"marginals": marginals.tolist(), "budget": budget}
        found.append(one | {"tokens": list(tree.tokens), "parents": list(tree.parents)})
    return found


TEXTS = (
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    'En el principio — "¿qué?" — crió Dios los cielos y la tierra: año 1909, 12345 días.',
    "it's we'll  two  spaces\t\ttabs\r\n\r\n trailing   ",
    "日本語 👩‍👩‍👧 é \u00a0nbsp ½ ٣",
    "<bos><|turn>user\nhello<turn|>\n  <eos>x",
    " ",
)


def texts() -> list[Json]:
    """By tokenizer: its file, and what it makes of the texts, whole and as a stream."""
    gemma = HFTokenizer(
        models.BPE(
            vocab=_vocabulary(),
            merges=[("▁", "h"), ("l", "o"), ("e", "l"), ("▁h", "el"), ("▁hel", "lo")],
            byte_fallback=True,
        )
    )
    gemma.normalizer = normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    gemma.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    gemma.add_special_tokens(["<bos>", "<eos>"])
    own = HFTokenizer.from_file(str(TARGET_DIR / "tokenizer.json"))
    return [_tokenized("embedded", own, False), _tokenized("byte fallback", gemma, True)]


def write() -> None:
    for name, made in (("sessions", sessions()), ("verdicts", verdicts()), ("trees", trees()), ("texts", texts())):
        lines = ",\n".join(json.dumps(one, separators=(",", ":"), ensure_ascii=True) for one in made)
        (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def _session(case: Case) -> Json:
    with pytest.MonkeyPatch.context() as patch:
        return _recorded(case, patch)


def _recorded(case: Case, patch: pytest.MonkeyPatch) -> Json:
    manifest = manifest_of(case.drafter, CAPACITY, case.stop, case.per_layer, case.heads, case.verify)
    scripted = RingEngine(manifest) if case.ring else ScriptedEngine(manifest)
    if case.recurrent:
        scripted = RecurrentEngine(manifest, back=case.recurrent)
    if manifest.drafters.kinds != ("mtp",):
        scripted = EveryDrafter(manifest, known_from=case.late)
    scripted.wrong_half, scripted.takes_trees = not case.unsure, case.takes_trees
    engine = Recorder(scripted, case.unsure)
    patch.setitem(clock._NOW, "wall", lambda: engine.seconds)
    target = Target(engine)
    cache = target.new_cache()
    target.prefill(cache, case.turns[0].prompt[: case.late])
    sampler = Sampler(case.sampling, case.rule)
    drafts = Scheduled(case.schedule) if case.schedule else case.drafts
    session, rounds = open_session(engine, case.drafter, drafts, target, sampler, cache), []
    for turn in case.turns:
        prompt = session.rewind(turn.prompt) if turn.rewind else turn.prompt
        if turn.rewind and isinstance(scripted, EveryDrafter):
            scripted.join = cache.length - 1
        rounds += [emitted._asdict() for emitted in session.generate(prompt, turn.budget)]
    stats = session.stats.to_json()
    del stats["seconds"]
    return _sampler(sampler) | {
        "name": case.name,
        "manifest": json.loads(engine.manifest.model_dump_json()),
        "drafter": case.drafter,
        "drafts": case.drafts,
        "schedule": asdict(case.schedule) if case.schedule else None,
        "late": case.late,
        "takes_trees": case.takes_trees,
        "turns": [asdict(turn) for turn in case.turns],
        "calls": engine.calls,
        "rounds": rounds,
        "stats": stats,
    }


def _sampler(sampler: Sampler) -> Json:
    return {"sampling": asdict(sampler.sampling), "rule": sampler.rule}


def _flat(arrays: Any) -> Json:
    found = {}
    for name, array in arrays.items():
        if name == "mask":
            first = int(array[0, 0, 0].argmax())
            found[name] = [_seen(row, first) for row in array[0, 0]]
            found |= {"mask_from": first} if first else {}
        else:
            found[name] = np.asarray(array).ravel().tolist()
    return found


def _seen(row: Any, first: int) -> int | list[int]:
    count = int(row[first:].argmin()) if not row[first:].all() else len(row) - first
    others = np.flatnonzero(row)[count:].tolist()
    assert not row[:first].any()
    return [count, *others] if others else count


def _drawn_from(generator: np.random.Generator, token: int) -> Any:
    q = generator.integers(0, 100, VOCABULARY).astype(np.float64)
    q[token] += 1
    return q / q.sum()


def _vocabulary() -> dict[str, int]:
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁helo wrdx.,", "▁h", "lo", "el", "▁hel", "▁hello"]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def _tokenized(name: str, tokenizer: HFTokenizer, whole_file: bool) -> Json:
    """The embedded pair's file is in the repository, another's is given whole."""
    path = FOLDER / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    ours = Tokenizer(path, None)
    path.unlink()
    cases = []
    for text in (*TEXTS, "hello world, hello 👋."):
        tokens = ours.encode_rendered(text)
        stream = ours.stream()
        pieces = [stream.feed([token]) for token in tokens]
        cases.append(
            {
                "text": text,
                "tokens": tokens,
                "decoded": ours.decode(tokens),
                "spelled": ours.decode(tokens, special=True),
                "pieces": [*pieces, stream.finish()],
            }
        )
    # A character that is cut, and bytes that are none.
    cut = ours.encode_rendered("👋 é")
    broken = [cut[:1], cut[:2], cut[1:], [*cut[:1], *cut]]
    decoded = [{"tokens": tokens, "decoded": ours.decode(tokens)} for tokens in broken if tokens]
    return {
        "name": name,
        "tokenizer": json.loads(tokenizer.to_str()) if whole_file else None,
        "texts": cases,
        "broken": decoded,
    }


if __name__ == "__main__":
    write()
