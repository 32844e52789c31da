"""`pocketdraft serve` behind the real OpenAI client: what it gives, and when it stops working."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from served import LONGEST, MESSAGES, NAME, Served, serving

from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.serve.app import Limits
from pocketdraft.runtime.session import open_session

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["file", "folder"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "entry", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    shared.engine.pause_s = 0.0
    assert shared.finishes()
    return shared


# --- what it gives


def test_the_text_is_the_session_s_own(served):
    completion = served.client.completions.create(
        model=NAME, prompt="import", max_tokens=40, temperature=0.9, top_p=0.8, seed=5
    )
    prompt = served.tokenizer.encode("import")
    sampler = Sampler(Sampling(0.9, top_p=0.8, seed=5), "rejection")
    session = open_session(served.engine, "mtp", 4, sampler=sampler)
    tokens = [token for round_ in session.generate(prompt, 40) for token in round_.tokens]
    (choice,) = completion.choices
    assert choice.text == served.tokenizer.decode(tokens)
    assert choice.finish_reason == "length"
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 40, len(prompt) + 40)


def test_a_stream_s_pieces_are_the_whole_text(served):
    asked = {"model": NAME, "prompt": "import", "max_tokens": 60, "seed": 3, "stop": ["zz"]}
    whole = served.client.completions.create(**asked)
    chunks = list(served.client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert len(chunks) > 5
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_streams(served):
    asked = {"model": NAME, "messages": MESSAGES, "max_completion_tokens": 30, "seed": 3}
    message = served.client.chat.completions.create(**asked).choices[0].message
    assert message.role == "assistant"
    chunks = list(served.client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_messages_go_through_the_template(served):
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "something."}]
    chat = served.client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": parts}], max_tokens=20, seed=1
    )
    ids = served.tokenizer.encode_rendered("user: Say something.\n")
    completion = served.client.completions.create(model=NAME, prompt=ids, max_tokens=20, seed=1)
    assert chat.choices[0].message.content == completion.choices[0].text
    assert chat.usage.prompt_tokens == len(ids)


def test_the_same_seed_gives_the_same_choices_and_they_differ_from_each_other(served):
    def texts(n: int, **more: object) -> list[str]:
        asked = served.client.completions.create(model=NAME, prompt="a", max_tokens=20, n=n, **more)
        assert [choice.index for choice in asked.choices] == list(range(n))
        return [choice.text for choice in asked.choices]

    first = texts(2, seed=4)
    assert first == texts(2, seed=4)
    assert first[0] != first[1]
    assert texts(1, seed=4) == first[:1]
    assert texts(1) != texts(1)
    streamed = ["", ""]
    for chunk in served.client.completions.create(model=NAME, prompt="a", max_tokens=20, n=2, seed=4, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == first


def test_choices_share_one_prefill(served, monkeypatch):
    run, ran = served.engine.run, []
    monkeypatch.setattr(served.engine, "run", lambda name, *given: (ran.append(name), run(name, *given))[1])

    def prefills(n: int) -> int:
        ran.clear()
        served.client.completions.create(model=NAME, prompt="a b " * 20, max_tokens=3, n=n)
        return sum("prefill" in name for name in ran)

    assert prefills(4) == prefills(1) > 0


def test_a_stop_string_is_not_written_and_what_follows_neither(served):
    asked = {"model": NAME, "prompt": "a", "max_tokens": 60, "seed": 2}
    whole = served.client.completions.create(**asked).choices[0].text
    stop = whole[20:23]
    cut = served.client.completions.create(**asked, stop=["never to be found", stop])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 60
    streamed = served.client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.choices[0].text


@pytest.mark.parametrize("seed", range(5))
def test_a_json_schema_gives_valid_json(served, seed):
    """The scripted logits are noise: nothing but the schema makes this JSON."""
    asked = {"model": NAME, "messages": MESSAGES, "seed": seed, "response_format": SCHEMA_FORMAT}
    chat = served.client.chat.completions.create(**asked)
    assert chat.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(chat.choices[0].message.content), SCHEMA)
    chunks = served.client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat.choices[0].message.content


def test_json_object_gives_an_object(served):
    chat = served.client.chat.completions.create(
        model=NAME, messages=MESSAGES, temperature=0, max_tokens=40, response_format={"type": "json_object"}
    )
    assert chat.choices[0].message.content.startswith("{")


def test_logprobs_are_the_distribution_that_was_drawn_from(served):
    asked = {"model": NAME, "max_tokens": 12, "seed": 8, "temperature": 0.7, "logit_bias": {"70": -100, "71": 3}}
    completion = served.client.completions.create(prompt="a", logprobs=3, **asked).choices[0]
    prompt = served.tokenizer.encode("a")
    tokens = served.tokenizer.encode_rendered(completion.text)
    found = completion.logprobs
    assert "".join(found.tokens) == completion.text
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(12)]
    history = prompt
    scores = served.engine.logits(tuple(history)).astype(np.float64)
    scores[70], scores[71] = -np.inf, scores[71] + 3
    wanted = Sampling(0.7).probabilities(scores, history)
    assert np.exp(list(found.top_logprobs[0].values())) == pytest.approx(sorted(wanted)[::-1][:3])
    assert tokens
    chat = served.client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **asked).choices[0]
    content = chat.logprobs.content
    assert len(content) == 12
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in content)
    streamed = served.client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **asked
    )
    told = [one for chunk in streamed if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.logprob for one in told] == [one.logprob for one in content]


def test_a_bias_bans(served):
    free = served.client.completions.create(model=NAME, prompt="a", max_tokens=1, temperature=0)
    (first,) = served.tokenizer.encode_rendered(free.choices[0].text)
    banned = served.client.completions.create(
        model=NAME, prompt="a", max_tokens=1, temperature=0, logit_bias={str(first): -100}
    )
    assert banned.choices[0].text != free.choices[0].text


def test_the_models_are_listed(served):
    assert [model.id for model in served.client.models.list()] == [NAME]
    assert served.client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt'"):
        served.client.models.retrieve("gpt")


def test_requests_take_turns(served):
    """A short one that comes later is done while a long one runs."""
    served.engine.pause_s = 0.002
    with ThreadPoolExecutor() as pool:
        long = pool.submit(served.asked, max_tokens=200, temperature=0)
        while not served.turns.unfinished:
            time.sleep(0.01)
        assert served.asked(max_tokens=2).status_code == 200
        assert not long.done()
        assert long.result().status_code == 200


# --- when it stops


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_cancels_the_work(served, stream):
    asked = {"model": NAME, "prompt": "a", "max_tokens": LONGEST, "temperature": 0}  # a drawn text may stop before
    served.engine.pause_s = 0.005
    if stream:
        chunks = served.client.completions.create(**asked, stream=True)
        next(iter(chunks))
        chunks.close()
    else:
        served.engine.gate.clear()  # it cannot be done before the client gives up, however slow that is
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/completions", json=asked, timeout=0.2)
        served.engine.gate.set()
    assert served.finishes(within_s=1)
    runs = served.engine.runs
    time.sleep(0.05)
    assert served.engine.runs == runs


def test_too_many_requests_are_told_when_to_come_again():
    with serving(Limits(at_once=1, waiting=1)) as served, ThreadPoolExecutor() as pool:
        served.engine.gate.clear()
        first = [pool.submit(served.asked) for _ in range(2)]
        while served.turns.unfinished < 2:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as refused:
            served.client.completions.create(model=NAME, prompt="a")
        assert int(refused.value.response.headers["Retry-After"]) > 0
        served.engine.gate.set()
        assert [one.result().status_code for one in first] == [200, 200]
        assert served.asked().status_code == 200


def test_one_that_hangs_up_while_it_waits_gives_its_place_away():
    with serving(Limits(at_once=1, waiting=1)) as served, ThreadPoolExecutor() as pool:
        served.engine.gate.clear()
        first = pool.submit(served.asked)
        while served.turns.unfinished < 1:
            time.sleep(0.01)
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}/completions", json={"model": NAME, "prompt": "a"}, timeout=0.2)
            while served.turns.unfinished > 1:
                time.sleep(0.01)
        served.engine.gate.set()
        assert first.result().status_code == 200


# --- the command


COMMAND = [str(Path(sys.executable).with_name("pocketdraft")), "serve"]


def test_the_openai_client_streams_from_the_command(make_bundle):
    bundle = make_bundle("shared", "f32")
    command = [*COMMAND, str(bundle), "--port", "0", "--quiet", "--name", "small"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.endswith("/v1 serves small; Ctrl-C ends it.\n")
            client = openai.OpenAI(base_url=line.split()[0], api_key="none", max_retries=0)
            assert [model.id for model in client.models.list()] == ["small"]
            asked = {"model": "small", "prompt": "import", "max_tokens": 16, "temperature": 0}
            whole = client.completions.create(**asked).choices[0].text
            assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == whole
        finally:
            process.send_signal(2)
            _, said = process.communicate(timeout=20)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--host is 0.0.0.0, which other machines reach, and nobody is asked for a key;"),
        (["--port", "-1"], "--port is -1; give at least 0."),
        (["--port", "99999"], "Cannot listen on 127.0.0.1 port 99999"),
        (["--drafts", "x"], "--drafts is x; give a number"),
        (["--port", "0"], "is no bundle: it has no bundle.json"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, options, says):
    done = subprocess.run([*COMMAND, str(tmp_path), "--quiet", *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert says in sentence


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, str(tmp_path), "--port", port], capture_output=True, text=True, timeout=60)
    assert f"Cannot listen on 127.0.0.1 port {port}" in done.stderr.splitlines()[-1]
