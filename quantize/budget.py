"""Mixed precision under a budget of bytes: who gets more bits is who loses most without them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketdraft.runtime.errors import PocketdraftError

from .recipe import Recipe, Rule

UNITS = 1 << 16


@dataclass(frozen=True)
class Option:
    """A rule that a weight may get: its size, and what it costs in quality, in any unit that adds up over weights."""

    rule: Rule
    size_bytes: int
    cost: float


def choose(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, Option]:
    """One option for each weight, of least cost in all, together no larger than the budget.

    A knapsack filled weight by weight: the least cost for every size up to what the smallest options leave, in at most
    `UNITS` steps, to which sizes are rounded up. Raises PocketdraftError if the smallest options are larger together.
    """
    smallest = {name: min(option.size_bytes for option in own) for name, own in options.items()}
    spare = budget_bytes - sum(smallest.values())
    if spare < 0:
        raise PocketdraftError(
            f"The budget is {budget_bytes / 1e6:.2f} MB, the smallest precision that the rules allow takes "
            f"{(budget_bytes - spare) / 1e6:.2f} MB; give more bits a weight."
        )
    unit = max(1, math.ceil(spare / UNITS))
    left = spare // unit
    extra = {name: [math.ceil((o.size_bytes - smallest[name]) / unit) for o in own] for name, own in options.items()}
    least, taken = np.zeros(left + 1), {}
    for name, own in options.items():
        costs = np.full((len(own), left + 1), np.inf)
        for cost, option, units in zip(costs, own, extra[name], strict=True):
            cost[units:] = least[: max(0, left + 1 - units)] + option.cost
        taken[name], least = costs.argmin(0), costs.min(0)
    chosen: dict[str, Option] = {}
    for name in reversed(list(options)):
        index = int(taken[name][left])
        chosen[name] = options[name][index]
        left -= extra[name][index]
    return {name: chosen[name] for name in options}


def recipe_of(name: str, chosen: Mapping[str, Option], otherwise: Sequence[Rule] = ()) -> Recipe:
    """An ordinary recipe: a rule for each weight, then those of all others."""
    rules = (option.rule.model_copy(update={"weights": weight}) for weight, option in chosen.items())
    return Recipe(name=name, rule=(*rules, *otherwise))
