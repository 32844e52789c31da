"""Probabilities against transformers' own processors, and the sentences of what cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.sampling import Sampling, lead

SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
]


def transformers_probabilities(logits: np.ndarray, history: list[int], settings: dict[str, float]) -> np.ndarray:
    """By the processors that `generate` would pick, in its order, in float64."""
    import torch
    from transformers import GenerationConfig, GenerationMixin

    class Model(GenerationMixin):
        config = type("Config", (), {"is_encoder_decoder": False})()

    wanted = {"top_k": 0, "temperature": 1.0} | settings
    config = GenerationConfig(do_sample=True, num_beams=1, **wanted)
    processors = Model()._get_logits_processor(config, input_ids_seq_length=len(history), device="cpu", model_kwargs={})
    scores = processors(torch.tensor([history]), torch.tensor(logits, dtype=torch.float64)[None])
    return scores[0].softmax(-1).numpy()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_probabilities_are_transformers(settings, ties):
    """Ties: logits on a coarse grid, so that the k-th largest and the edge of the nucleus are shared by many.

    How many of equal ones the nucleus takes is transformers'; which of them, its unstable sort leaves to chance.
    """
    rng = np.random.default_rng(5)
    for size in (50, 3000):
        logits = (rng.normal(size=size) * 3).astype(np.float32)
        if ties:
            logits = np.round(logits)
        history = rng.integers(0, size, 40).tolist()
        ours = Sampling(**{"temperature": 1.0} | settings).probabilities(logits, history)
        theirs = transformers_probabilities(logits, history, settings)
        if ties and "top_p" in settings:
            ours, theirs = np.sort(ours), np.sort(theirs)
        assert ((ours > 0) == (theirs > 0)).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(1e-3, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.5, 2),
)
def test_probabilities_sum_to_one_and_never_lose_the_likeliest(logits, temperature, top_k, top_p, min_p, penalty):
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    row, history = np.array(logits, np.float32), [0, len(logits) - 1]
    found = sampling.probabilities(row, history)
    assert found.dtype == np.float64
    assert found.sum() == pytest.approx(1)
    scores = sampling.scores(row, history)
    assert scores[found.argmax()] == pytest.approx(scores.max(), abs=1e-12)


def test_greedy_is_one_hot_and_the_penalty_still_applies():
    logits = np.array([1.0, 3.0, 2.9], np.float32)
    assert Sampling().probabilities(logits, [1]).tolist() == [0, 1, 0]
    assert Sampling(repetition_penalty=1.5).probabilities(logits, [1]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300])
def test_a_temperature_next_to_nothing_is_greedy_and_does_not_overflow(temperature):
    logits = np.array([1.0, 3.0, 2.9], np.float32)
    assert Sampling(temperature).probabilities(logits, []).tolist() == [0, 1, 0]


def test_logits_are_not_changed_in_place():
    logits = np.arange(6, dtype=np.float32)
    Sampling(1.0, 3, 0.8, 0.1, 1.2).probabilities(logits, [1, 5])
    assert logits.tolist() == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9))
def test_the_lead_is_over_the_second_best_and_leaves_the_scores_alone(scores):
    logits = np.array(scores, np.float32)
    best = int(logits.argmax())
    first, *others = sorted(logits.tolist(), reverse=True)
    assert lead(logits, best) == pytest.approx(first - others[0] if others else math.inf)
    assert logits.tolist() == scores


def test_processors_come_after_the_penalty_and_see_the_history():
    seen = []

    def ban_three(logits, history):
        seen.append((logits.tolist(), list(history)))
        return np.where(np.arange(len(logits)) == 3, -np.inf, logits)

    found = Sampling(1.0, top_k=1, repetition_penalty=2.0).probabilities(
        np.array([0, 1, 2, 8], np.float32), [3], (ban_three,)
    )
    assert found.tolist() == [0, 0, 1, 0]
    assert seen == [([0, 1, 2, 4], [3])]


def test_of_equal_tokens_at_the_edge_of_the_nucleus_the_higher_ids_stay():
    assert (Sampling(1.0, top_p=0.55).probabilities(np.zeros(6), []) > 0).tolist() == [False, False, *[True] * 4]


@pytest.mark.parametrize("row", [[-np.inf] * 3, [np.nan, 1, 2], [np.inf, 1, 2]])
def test_logits_that_allow_no_token_are_refused(row):
    with pytest.raises(PocketdraftError, match="no token can be drawn"):
        Sampling(1.0).probabilities(np.array(row, np.float32), [])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": -0.5}, "--temperature is -0.5; give 0, which is greedy, or more."),
        ({"temperature": math.nan}, "--temperature is nan"),
        ({"temperature": math.inf}, "--temperature is inf"),
        ({"top_k": -1}, "--top-k is -1; give 0, which keeps all, or more."),
        ({"top_p": 0.0}, "--top-p is 0.0; give more than 0, and 1 at most."),
        ({"top_p": 1.01}, "--top-p is 1.01"),
        ({"min_p": -0.1}, "--min-p is -0.1; give 0 to 1."),
        ({"min_p": 1.5}, "--min-p is 1.5"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0; give more than 0; 1 is none."),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 1 << 64}, r"below 2\^64"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong, says):
    with pytest.raises(PocketdraftError, match=says):
        Sampling(**wrong)
