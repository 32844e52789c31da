"""Mixed precision under a budget of bytes: who gets more bits is who loses most without them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketdraft.runtime.errors import PocketdraftError

from .recipe import Recipe, Rule


@dataclass(frozen=True)
class Option:
    """A rule that a weight may get: its size, and what it costs in quality, in any unit that adds up over weights."""

    rule: Rule
    size_bytes: int
    cost: float


def choose(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, Option]:
    """One option for each weight, of least cost in all, together no larger than the budget.

    Greedy by cost saved per byte, over each weight's convex hull of options: no worse than the best choice by more
    than one weight's upgrade. Raises PocketdraftError if the smallest options together are larger than the budget.
    """
    hulls = {name: _hull(own) for name, own in options.items()}
    chosen = dict.fromkeys(hulls, 0)
    left = budget_bytes - sum(hull[0].size_bytes for hull in hulls.values())
    if left < 0:
        raise PocketdraftError(
            f"The budget is {budget_bytes / 1e6:.2f} MB, the smallest precision that the rules allow takes "
            f"{(budget_bytes - left) / 1e6:.2f} MB; give more bits a weight."
        )
    upgrades: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        hull, index = hulls[name], chosen[name]
        if index + 1 < len(hull):
            heapq.heappush(upgrades, (_slope(hull[index], hull[index + 1]), name))

    for name in hulls:
        offer(name)
    while upgrades:
        _, name = heapq.heappop(upgrades)
        hull, index = hulls[name], chosen[name]
        extra = hull[index + 1].size_bytes - hull[index].size_bytes
        if extra <= left:
            left -= extra
            chosen[name] = index + 1
            offer(name)
    return {name: hull[chosen[name]] for name, hull in hulls.items()}


def recipe_of(name: str, chosen: Mapping[str, Option]) -> Recipe:
    """An ordinary recipe: a rule for each weight."""
    rules = (option.rule.model_copy(update={"weights": weight}) for weight, option in chosen.items())
    return Recipe(name=name, rule=tuple(rules))


def _slope(smaller: Option, larger: Option) -> float:
    """Change of cost a byte: the more negative, the better."""
    return (larger.cost - smaller.cost) / (larger.size_bytes - smaller.size_bytes)


def _hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of cost over size: each a better buy than any mixture of its neighbours."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda one: (one.size_bytes, one.cost)):
        if hull and (option.cost >= hull[-1].cost or option.size_bytes == hull[-1].size_bytes):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull
