"""How a native MTP head learns: what of a batch counts, and that what was learned opens as a drafter of its target."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad
from transformers import LlamaConfig, LlamaForCausalLM

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.distil import teach
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.heads import accepted, head_config, head_loss, new_head, own_head, save_head, untrained
from pocketdraft.export.pair import check_pair
from pocketdraft.export.pipeline import load_models
from pocketdraft.export.smollm2_head import BEGINNINGS, HELD_OUT, frequent, read, train, write
from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.export.written import Text
from pocketdraft.runtime.errors import PocketdraftError

VOCABULARY, LENGTH, DEPTH = 96, 24, 3


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def head(target):
    torch.manual_seed(1)
    return new_head(head_config(target.config))


def tokens(texts: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (texts, LENGTH), generator=torch.Generator().manual_seed(2))


def test_rows_that_are_left_out_count_for_nothing(target, head):
    teacher, rows = teach(target, tokens(2)), torch.arange(LENGTH - DEPTH)
    whole = head_loss(head, teacher, 1, rows)
    halves = [head_loss(head, teacher, 1, half) for half in (rows[::3], rows[1::3], rows[2::3])]
    torch.testing.assert_close(whole, sum(halves) / 3)
    torch.testing.assert_close(head_loss(head, teacher, DEPTH), head_loss(head, teacher, DEPTH, rows))


def test_what_lies_beyond_a_text_s_end_counts_for_nothing(target, head):
    short = tokens(1)[:, :12]
    rows = torch.arange(LENGTH - DEPTH)
    expected = head_loss(head, teach(target, short), 1)
    for filler in (0, 7):
        padded = teach(target, pad(short, (0, LENGTH - 12), value=filler))
        torch.testing.assert_close(head_loss(head, padded, 1, rows, torch.tensor([12])), expected)


def test_learning_lowers_the_loss(target, head):
    teacher = teach(target, tokens(4))
    torch.manual_seed(3)
    learner = new_head(head_config(target.config))
    before = head_loss(learner, teacher, DEPTH).item()
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    for _ in range(20):
        head_loss(learner, teacher, DEPTH, torch.arange(0, LENGTH - DEPTH, 2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert head_loss(learner, teacher, DEPTH).item() < before - 0.2


def test_what_it_learns_from_stays_where_the_target_is(target):
    """On a GPU, that is: here whatever is made elsewhere than with the teacher's tokens holds no numbers."""
    teacher, rows, drafted = teach(target, tokens(2)), torch.tensor([0, 3, 7]), torch.arange(0, VOCABULARY, 2)
    learner = untrained(head_config(target.config), target)
    with torch.device("meta"):
        losses = head_loss(learner, teacher, DEPTH), head_loss(learner, teacher, DEPTH, rows)
        found = accepted(learner, teacher, 2, drafted), own_head(target, drafted)["mtp.token_rows"]
    assert all(one.device.type == "cpu" for one in (*losses, *found))


def test_it_is_trained_for_as_long_as_it_is_told(target):
    texts = [Text(row, 4, 20) for row in tokens(6)] + [Text(tokens(1)[0, :9], 4, 20)]
    started = time.monotonic()
    head = train(target, texts, 2, started + 1.0)
    assert 1.0 <= time.monotonic() - started < 10.0
    teacher = teach(target, tokens(6))
    before = untrained(head_config(target.config), target)
    assert head_loss(head, teacher, DEPTH) < head_loss(before, teacher, DEPTH) - 0.2


def save(target: LlamaForCausalLM, folder: Path) -> None:
    target.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((TARGET_DIR / "tokenizer.json").read_bytes())


def test_a_saved_head_is_a_drafter_of_its_target_and_of_no_other(target, head, tmp_path):
    save(target, tmp_path / "target")
    save_head(head, head_config(target.config), tmp_path / "head")
    check_pair(Checkpoint.open(tmp_path / "target"), Checkpoint.open(tmp_path / "head"))
    with pytest.raises(PocketdraftError, match="hidden size"):
        check_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(tmp_path / "head"))


def test_a_head_of_its_own_drafts_the_best_of_its_tokens(target, head, tmp_path):
    """In the target's order; the tokens that it has no row for come after all of them, and alike."""
    drafted = torch.tensor([3, 5, 8, 40, 41, 95])
    save(target, tmp_path / "target")
    save_head(head, head_config(target.config), tmp_path / "head", own_head(target, drafted))
    loaded = load_models(Checkpoint.open(tmp_path / "target")).target
    model, _ = load_drafter(Checkpoint.open(tmp_path / "head"), loaded)
    model.load_state_dict({"lm_head.weight": target.lm_head.weight[drafted]}, strict=False, assign=True)
    state = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(4))
    wanted, found = target.lm_head(state)[0, 0], model.logits(state)[0, 0]
    torch.testing.assert_close(found[drafted], wanted[drafted])
    others = [token for token in range(VOCABULARY) if token not in drafted]
    assert set(found[others].tolist()) == {found[drafted].min().item() - 1}


def test_its_acceptance_is_that_of_the_tokens_that_it_has(target, head):
    teacher = teach(target, tokens(2))
    every = accepted(head, teacher, 2, torch.arange(VOCABULARY))
    assert every.equal(accepted(head, teacher, 2))
    text = set(teacher.tokens.flatten().tolist())
    never = torch.tensor([token for token in range(VOCABULARY) if token not in text])
    assert accepted(head, teacher, 2, never).sum() == 0


class Writing:
    """Stands for a target that writes: every second question ends, and is answered with token 9."""

    stop = (1,)

    def __init__(self) -> None:
        self.asked: list[tuple[float, int]] = []  # temperature, different prompts

    def write(self, prompts: list[list[int]], temperature: float, until: float) -> list[Text]:
        self.asked.append((temperature, len(set(map(tuple, prompts)))))
        first = 9 if temperature == 0 else 5
        ends = [1 if temperature == 0 or index % 2 else 7 for index in range(len(prompts))]
        made = [torch.tensor([*prompt, first, 7, end]) for prompt, end in zip(prompts, ends, strict=True)]
        return [Text(text, len(prompt), 128) for text, prompt in zip(made, prompts, strict=True)]


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]


def test_a_target_answers_its_own_whole_questions_and_what_it_wrote_is_kept(tmp_path):
    writing, kept = Writing(), tmp_path / "head.texts"
    texts = write(writing, Letters(), 32, time.monotonic() + 0.2, kept)
    assert set(writing.asked[::2]) == {(0.8, len(BEGINNINGS) + 1)}
    assert {temperature for temperature, _ in writing.asked[1::2]} == {0.0}
    assert len(texts) > HELD_OUT
    assert all(text.tokens[text.prompt :].tolist() == [9, 7, 1] for text in texts)

    def same(found: list[Text]) -> bool:
        rows = [(text.tokens.tolist(), text.prompt, text.budget) for text in found]
        return rows == [(text.tokens.tolist(), text.prompt, text.budget) for text in texts]

    assert same(read(kept))
    assert same(write(Writing(), Letters(), 32, 0.0, kept))
    more = write(Writing(), Letters(), 32, time.monotonic() + 0.1, kept)
    assert len(more) > len(texts)
    assert same(more[: len(texts)])


def test_too_little_time_to_write_is_said(tmp_path):
    with pytest.raises(PocketdraftError, match=f"the first {HELD_OUT} are held out .* give more minutes"):
        write(Writing(), Letters(), 32, 0.0, tmp_path / "head.texts")
    assert not list(tmp_path.iterdir())


def test_the_tokens_to_draft_are_those_that_come_most():
    text = Text(torch.tensor([4, 4, 4, 8, 8, 2, 9, 9, 9, 9]), 0, 10)
    assert frequent([text], VOCABULARY, 3).tolist() == [4, 8, 9]
