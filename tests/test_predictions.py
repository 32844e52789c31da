"""Rounds of every drafter, measured in modelled time, against what the cost model says of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from modelled import PROMPTS, opened, with_one
from scripted_drafters import every_drafter

from pocketdraft.runtime.benchmark import Opened, Task, fitted_lengths, measured_profile, survey_all
from pocketdraft.runtime.cost import round_costs
from pocketdraft.runtime.draft_length import drafts_as_tuned
from pocketdraft.runtime.drafters import surveyable
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.figures import predictions
from pocketdraft.runtime.lengths import PLAIN, Way, measure, ways_of
from pocketdraft.runtime.options import start
from pocketdraft.runtime.profile import Profile
from pocketdraft.runtime.results import ALL, Prediction
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.tables import print_choice
from pocketdraft.runtime.tune import choose_for

TASK = Task(PROMPTS, max_tokens=48, threads=1)
KINDS = ["mtp", "dflash", "early_exit", "mtp_heads", "draft_model", None]


def quiet(what: str, done: int, total: int) -> None: ...


def checked(bundle: Opened, drafters: Sequence[str]) -> tuple[Profile, list[Prediction]]:
    """As `bench --check` does it: the profile, and predictions over all prompts."""
    manifest, fitted = bundle.manifest, fitted_lengths(bundle.manifest)
    ways = ways_of(manifest, None, drafters)
    found = measure(bundle.engine, bundle.tokenizer, PROMPTS, ways, TASK.max_tokens, TASK.sampling, quiet)
    profile = found.timings.profile(manifest, 1, fitted, 1e9)
    costs = round_costs(profile, drafters)
    texts = {drafter: survey_all(bundle, TASK, drafter, 4, quiet) for drafter in costs}
    return profile, [one for one in predictions(found, texts, costs, fitted) if one.domain == ALL]


@pytest.mark.parametrize(("verify", "held_out"), [((2, 3, 5), {3}), ((5,), {2, 3})])
def test_what_was_measured_is_what_the_cost_model_predicts_of_every_drafter(monkeypatch, verify, held_out):
    """With one verify graph too: that one draft is measured tells what each takes from what drafting does."""
    bundle = opened(monkeypatch, every_drafter(200, verify))
    drafters = surveyable(bundle.manifest.drafters)
    assert drafters == ["dflash", "dflash_tree", "draft_model", "early_exit", "mtp", "mtp_heads", "prompt_lookup"]
    _, made = checked(bundle, drafters)
    assert {(one.drafter, one.drafts) for one in made if one.held_out} == set(itertools.product(drafters, held_out))
    assert {(one.drafter, one.drafts): one.error for one in made if abs(one.error) > 0.02} == {}


def test_a_drafter_that_leaves_the_caches_alone_is_predicted_as_fast_as_it_is(monkeypatch):
    """The others' rounds find the target's weights cold, and theirs are most of those that its graphs are timed in."""
    profile, made = checked(opened(monkeypatch), ["mtp", "draft_model", "prompt_lookup"])
    assert max(abs(one.error) for one in made) < 0.02
    assert profile.drafters["prompt_lookup"].drafting_s < 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_with_any_one_drafter_or_none_is_tuned_and_starts_so(monkeypatch, kind):
    """On a device that verifies for less than it decodes: even prompts pay that repeat themselves by chance."""
    bundle = opened(monkeypatch, with_one(kind), verify=0.9)
    profile = measured_profile(bundle, TASK, quiet)
    choice = choose_for(bundle, TASK, profile, quiet)
    known = {kind or "prompt_lookup", "prompt_lookup", *(["dflash_tree"] if kind == "dflash" else [])}
    assert {one.drafter for one in choice.candidates} == known
    assert choice.chosen.gain == max(one.gain for one in choice.candidates) > 1.02
    assert f"a round of {choice.chosen.drafter} gives" in choice.reason
    tuned = choice.tuned("here", "")
    drafter, drafts = start(bundle.manifest.model_copy(update={"tuned": tuned}), None, None)
    assert (drafter, drafts) == (choice.chosen.drafter, drafts_as_tuned(tuned))
    session, plain = open_session(bundle.engine, drafter, drafts), open_session(bundle.engine, "none")
    texts = [[t for emitted in one.generate([1, 2, 3], 40) for t in emitted.tokens] for one in (session, plain)]
    assert texts[0] == texts[1]
    assert session.stats.proposed


def test_where_no_drafter_pays_it_is_off_and_the_reason_names_the_best(monkeypatch):
    """Verifying takes several times decoding, whichever graphs do it."""
    bundle = opened(monkeypatch, verify=4.0, exit_verify=6.0)
    choice = choose_for(bundle, TASK, measured_profile(bundle, TASK, quiet), quiet)
    assert (choice.chosen.drafter, choice.chosen.drafts) == ("none", 0)
    best = max(choice.candidates, key=lambda one: one.gain)
    assert best.gain < 1.02
    assert choice.reason.startswith(f"even the best, {best.drafter}, ")


def test_the_table_of_a_choice_has_the_best_of_each_drafter(monkeypatch, capsys):
    bundle = opened(monkeypatch)
    choice = choose_for(bundle, TASK, profile := measured_profile(bundle, TASK, quiet), quiet)
    print_choice("bundle", choice, profile)
    shown = capsys.readouterr().out
    assert len(choice.candidates) > 20
    for drafter in surveyable(bundle.manifest.drafters):
        best = max((one for one in choice.candidates if one.drafter == drafter), key=lambda one: one.gain)
        assert f" {best.name} " in shown


def test_the_cheapest_of_equally_good_drafters_is_chosen_and_a_dear_one_is_not(monkeypatch):
    """The scripted drafters are right at the same places: only what drafting takes tells them apart."""
    bundle = opened(monkeypatch, draft=3.0, exit_draft=3.0, mtp_heads=0.1, model_decode=3.0, dflash_draft=5.0)
    choice = choose_for(bundle, TASK, measured_profile(bundle, TASK, quiet), quiet)
    assert choice.chosen.drafter == "mtp_heads"
    best = {one.drafter: one.gain for one in sorted(choice.candidates, key=lambda one: one.gain)}
    assert best["mtp_heads"] > best["mtp"] > best["draft_model"] > best["early_exit"]


def test_drafters_that_a_profile_does_not_time_are_left_out_and_named(monkeypatch, capsys):
    """As a phone's, which has timed MTP's graphs and no other drafter."""
    bundle = opened(monkeypatch)
    profile = measured_profile(bundle, TASK, quiet).model_copy(update={"drafters": {}})
    choice = choose_for(bundle, TASK, profile, quiet)
    assert {one.drafter for one in choice.candidates} == {"mtp", "prompt_lookup"}
    assert choice.left_out == ("dflash", "dflash_tree", "draft_model", "early_exit", "mtp_heads")
    print_choice("bundle", choice, profile)
    assert f"does not time the rounds of {', '.join(choice.left_out)}" in capsys.readouterr().out


def test_a_profile_of_nothing_that_the_bundle_drafts_with_is_refused(monkeypatch):
    bundle = opened(monkeypatch)
    profile = measured_profile(bundle, TASK, quiet)
    bare = profile.model_copy(update={"graphs": profile.graphs[:1], "drafters": {}})
    with pytest.raises(PocketdraftError, match="does not time the rounds of dflash, dflash_tree, "):
        choose_for(bundle, TASK, bare, quiet)


def test_what_one_way_learns_is_not_told_to_another(monkeypatch):
    """Run side by side or alone, the adaptive length writes a text in the same rounds: in an app it is alone."""
    found = []
    for others in ((), (PLAIN, Way("mtp", 4))):
        bundle, auto = opened(monkeypatch), Way("mtp", "auto")
        ways = [*others, auto]
        runs = measure(bundle.engine, bundle.tokenizer, PROMPTS, ways, TASK.max_tokens, TASK.sampling, quiet).runs
        found.append({domain: by_way[auto].stats.outcomes for domain, by_way in runs.items()})
    assert found[0] == found[1]
