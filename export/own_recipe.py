"""The recipe that a checkpoint asks for itself: each weight that is quantized already keeps its precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pocketdraft.quantize.recipe import Recipe, Rule
from pocketdraft.quantize.weights import on_grid

from .packed import Packed
from .pipeline import make_steps, open_files, open_models
from .plan import Plan, Recipes
from .step import Plain, all_weights
from .stored import Stored

NAME = "own"
ROWS = 64  # of a weight, looked at for a grid
# The coarsest first: a grid by rows is one by blocks as well, and int4's is one of int8.
KINDS = (("int2", 0), ("int4", 0), *(("int4", block) for block in (256, 128, 64, 32)), ("int8", 0))


def with_own_recipe(plan: Plan) -> Plan:
    """The plan with its recipes' rules behind those of its checkpoints' own."""
    models = open_models(*open_files(plan))
    modules = all_weights(make_steps(plan, models, Plain())[0])
    weights = {name: models.stored[module.weight] for name, module in modules.items()}
    recipes = {part: own_recipe(weights, plan.recipes.of(part)) for part in ("target", "drafter", "embedder")}
    return replace(plan, recipes=Recipes(**recipes))


def own_recipe(weights: Mapping[str, Stored], otherwise: Recipe) -> Recipe:
    """By the names that recipes use. What is not quantized yet gets the first rule of `otherwise` that matches."""
    own = [rule for name, stored in weights.items() if (rule := _rule(name, stored)) is not None]
    return Recipe(name=NAME, rule=(*own, *otherwise.rule))


def _rule(name: str, stored: Stored) -> Rule | None:
    if isinstance(stored, Packed):
        return Rule.model_validate({"weights": name, "dtype": f"int{stored.bits}", "block": stored.block})
    rows, columns = stored.matrix
    sample = stored.rows_at(range(min(ROWS, rows))).numpy()
    for dtype, block in KINDS:
        rule = Rule.model_validate({"weights": name, "dtype": dtype, "block": block})
        if columns % (block or 1) == 0 and on_grid(sample, rule) == 1:
            return rule
    return None
