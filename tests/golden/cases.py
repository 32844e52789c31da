"""The sessions that `record.py` records."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pocketdraft.runtime.sampler import Rule
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.schedule import Schedule

GREEDY = Sampling()


@dataclass(frozen=True)
class Turn:
    """`rewind` says that `prompt` is the whole conversation, which shares a beginning with the last one."""

    prompt: tuple[int, ...]
    budget: int
    rewind: bool = False


@dataclass(frozen=True)
class Case:
    name: str
    turns: tuple[Turn, ...]
    drafter: str = "mtp"
    drafts: int = 4
    stop: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    rule: Rule = "exact"
    ring: bool = False
    recurrent: int = 0  # a layer that takes back so many tokens
    schedule: Schedule | None = None
    per_layer: bool = True
    late: int = 0  # so many tokens of the prompt are in the cache before the drafter sees any
    heads: int = 1  # native MTP heads
    verify: tuple[int, ...] | None = None  # widths, other than its engine's usual ones
    unsure: bool = False  # the drafter: its two best are the right token and another one, in either order
    takes_trees: bool = True  # the engine


PROMPT = (3, 1, 4, 1, 5, 9)
WARM = Sampling(temperature=0.8, seed=7)
SCHEDULE = Schedule(tuple((tenth + 9) / 20 for tenth in range(11)), (0.9, 0.42, 0.21, 0.1))
STRICT = replace(SCHEDULE, least=(0.9, 0.6, 0.5, 0.4))


def of_drafter(drafter: str, heads: int = 1) -> tuple[Case, ...]:
    """Of one with graphs of its own: prompts of several calls, ways back to what is known already and to more, a stop
    token inside an accepted block, going on from there to the context's edge, and each rule."""
    turns = (
        Turn((*PROMPT, 3, 1, 4, 1, 5), 4),
        Turn(PROMPT[:3], 2, rewind=True),
        Turn((*PROMPT, 2, 6), 20, rewind=True),
        Turn((7, 7), 20),
    )
    hot, name = Sampling(temperature=3.0, seed=5), drafter if heads == 1 else f"{drafter}, {heads} of them"
    stopped = Case(f"{name}, exact match, stopped by confidence", (Turn(PROMPT, 7),), drafter, 4, (), hot)
    return (
        Case(name, turns, drafter, stop=(7,), heads=heads),
        replace(stopped, schedule=SCHEDULE, heads=heads),
        Case(
            f"{name}, rejection", (Turn((*PROMPT, *PROMPT, *PROMPT), 7),), drafter, 4, (), hot, "rejection", heads=heads
        ),
    )


def of_trees(drafter: str) -> tuple[Case, ...]:
    """Of a drafter of trees: few and many nodes in wide graphs, sampled too, and what an engine without trees gets."""
    prompt = (8, 4, 0, 5, 0, 6)  # found by search: what mtp_tree learns of misses shows in its trees
    turns = (Turn(prompt, 7), Turn((*prompt, 2, 6), 16, rewind=True))
    six = Case(f"{drafter}, six nodes", turns, drafter, 6, per_layer=False, verify=(2, 7), unsure=True)
    one = replace(six, turns=(Turn(PROMPT, 9),))
    return (
        six,
        replace(one, name=f"{drafter}, three nodes", drafts=3),
        replace(one, name=f"{drafter}, exact match", sampling=Sampling(temperature=0.2, top_k=4, seed=8)),
        replace(six, name=f"{drafter}, no trees", turns=turns[:1], takes_trees=False),
    )


# Found by search: what was right of which source decides, and by time, what rounds took lately.
HYBRID = Case("hybrid", (Turn((3, 0, 2, 1, 2, 1), 14),), "hybrid", per_layer=False, unsure=True)
CASES = (
    Case("greedy", (Turn(PROMPT, 12),)),
    Case("plain", (Turn(PROMPT, 12),), drafter="none"),
    Case("prompt lookup", (Turn((*PROMPT, *PROMPT), 8),), drafter="prompt_lookup"),
    Case("one draft", (Turn(PROMPT, 12),), drafts=1),
    Case("a prompt of one token", (Turn((2,), 5),)),
    Case("budget inside an accepted block", (Turn(PROMPT, 7),), drafts=2),
    Case("stop token inside an accepted block", (Turn(PROMPT, 12),), stop=(5, 8)),
    Case("the context's edge", (Turn((*PROMPT, *PROMPT, *PROMPT), 40),)),
    Case("a second turn", (Turn(PROMPT, 4), Turn((7, 7), 5))),
    Case("a conversation that shares its beginning", (Turn(PROMPT, 5), Turn((3, 1, 4, 2, 6), 5, rewind=True))),
    Case("a conversation that is known already", (Turn(PROMPT, 5), Turn((3, 1, 4), 5, rewind=True))),
    Case(
        "a ring that still holds what is gone back to",
        (Turn((*PROMPT, *PROMPT), 4), Turn((*PROMPT, 3, 1, 4, 1, 5, 2), 4, rewind=True)),
        drafter="prompt_lookup",
        ring=True,
    ),
    Case(
        "a ring that has lost it",
        (Turn((*PROMPT, *PROMPT), 6), Turn((*PROMPT, 2), 4, rewind=True)),
        drafter="none",
        ring=True,
    ),
    Case(
        "a recurrent layer that takes two tokens back, and little padding",
        (Turn(PROMPT, 4), Turn((*PROMPT, 3, 1), 4, rewind=True), Turn((7, 7), 4)),
        drafts=1,
        recurrent=2,
        verify=(2,),
    ),
    Case(
        "a recurrent layer that cannot take so much back",
        (Turn((*PROMPT, *PROMPT), 9), Turn((*PROMPT, 2), 4, rewind=True)),
        drafter="prompt_lookup",
        recurrent=5,
    ),
    Case("a recurrent layer takes no trees", (Turn(PROMPT, 7),), "mtp_tree", 6, recurrent=5, verify=(2, 5)),
    Case("exact match", (Turn(PROMPT, 12),), sampling=WARM),
    Case("rejection", (Turn(PROMPT, 14),), sampling=Sampling(temperature=2.5, seed=5), rule="rejection"),
    Case(
        "rejection of drafts that were not drawn",
        (Turn((*PROMPT, *PROMPT), 8),),
        "prompt_lookup",
        4,
        (),
        WARM,
        "rejection",
    ),
    Case("top-k, top-p, min-p", (Turn(PROMPT, 12),), sampling=Sampling(1.3, 6, 0.9, 0.05, 1.0, 3)),
    Case("stopped by confidence", (Turn(PROMPT, 16),), schedule=SCHEDULE),
    Case("a greedy penalty", (Turn(PROMPT, 12),), sampling=Sampling(repetition_penalty=1.7)),
    *(case for drafter in ("dflash", "early_exit", "mtp_heads", "draft_model") for case in of_drafter(drafter)),
    Case("dflash that comes late", (Turn(PROMPT, 5),), "dflash", late=3),
    Case("mtp_heads that come late", (Turn(PROMPT, 5),), "mtp_heads", late=3),
    Case("early_exit without per-layer embeddings", (Turn(PROMPT, 5),), "early_exit", per_layer=False),
    *of_drafter("mtp_heads", 3),
    *(case for drafter in ("dflash_tree", "mtp_tree") for case in of_trees(drafter)),
    replace(of_trees("mtp_tree")[1], name="mtp_tree, stopped by confidence", schedule=STRICT, verify=(7,)),
    replace(of_trees("mtp_tree")[0], name="mtp_tree, a greedy penalty", sampling=Sampling(repetition_penalty=1.7)),
    HYBRID,
    replace(HYBRID, name="hybrid, by time", turns=(Turn((0, 1, 3, 3, 0, 0, 0), 14),), schedule=SCHEDULE),
)
