from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.quantize.budget import Option, choose, recipe_of
from pocketdraft.quantize.recipe import Rule
from pocketdraft.runtime.errors import PocketdraftError

INT4, INT8 = Rule(weights="*", dtype="int4", block=32), Rule(weights="*", dtype="int8")
OPTIONS = st.lists(
    st.builds(Option, st.sampled_from([INT4, INT8]), st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=4
)


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 200))
def test_the_choice_fits_and_is_the_best(lists, spare):
    options = {str(index): own for index, own in enumerate(lists)}
    budget = sum(min(o.size_bytes for o in own) for own in lists) + spare
    chosen = choose(options, budget)
    assert sum(option.size_bytes for option in chosen.values()) <= budget
    fitting = [mix for mix in itertools.product(*lists) if sum(o.size_bytes for o in mix) <= budget]
    best = min(sum(o.cost for o in mix) for mix in fitting)
    assert sum(option.cost for option in chosen.values()) == pytest.approx(best)


def test_sizes_beyond_the_steps_are_rounded_up_and_still_fit():
    sizes = [(40_000_003 + i, 79_999_999 + 7 * i) for i in range(20)]
    options = {str(i): [Option(INT4, a, 5.0 + i), Option(INT8, b, 0.1)] for i, (a, b) in enumerate(sizes)}
    budget = sum(a for a, _ in sizes) + 10 * 40_000_000 + 400
    chosen = choose(options, budget)
    assert sum(option.size_bytes for option in chosen.values()) <= budget
    assert [name for name, option in chosen.items() if option.rule is INT8] == [str(i) for i in range(11, 20)]


def test_the_bytes_go_where_they_save_most():
    options = {
        "robust": [Option(INT4, 50, 0.1), Option(INT8, 100, 0.05)],
        "fragile": [Option(INT4, 50, 5.0), Option(INT8, 100, 0.2)],
    }
    chosen = choose(options, 150)
    assert (chosen["robust"].rule, chosen["fragile"].rule) == (INT4, INT8)
    recipe = recipe_of("small", chosen)
    assert recipe.rule_for("fragile").dtype == "int8"
    assert recipe.rule_for("robust").block == 32
    assert recipe.rule_for("other").dtype == "float32"


def test_more_bytes_that_cost_quality_are_not_taken():
    assert choose({"w": [Option(INT4, 50, 0.1), Option(INT8, 100, 0.2)]}, 1000)["w"].rule == INT4


def test_a_budget_below_the_smallest_is_refused_with_both_sizes():
    with pytest.raises(PocketdraftError, match=r"budget is 1\.00 MB.* takes 2\.00 MB"):
        choose({"w": [Option(INT4, 2_000_000, 0.1)]}, 1_000_000)
