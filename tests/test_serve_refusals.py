"""What `pocketdraft serve` refuses: always one sentence, as OpenAI has its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from served import MESSAGES, NAME, Served, serving

from pocketdraft.runtime.serve.app import Limits


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    shared.engine.pause_s = 0.0
    assert shared.finishes()
    return shared


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": "hot"}, 'The field temperature is "hot": input should be a valid number.'),
        ({"temperature": -1}, "The field temperature is -1: input should be greater than or equal to 0."),
        ({"n": 0}, "The field n is 0: "),
        ({"n": 1000}, "The field n is 1000: input should be less than or equal to 8."),
        ({"max_tokens": 1.5}, "The field max_tokens is 1.5: "),
        ({"max_tokens": 10**6}, "max_tokens is 1000000, an output here has 300 at most; ask for less."),
        ({"prompt": 3}, "The field prompt is 3: "),
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": []}, "The prompt is empty"),
        ({"prompt": [5000]}, "The prompt holds token 5000, the bundle's vocabulary has 2048"),
        ({"prompt": [3] * 600}, "The prompt makes 600 tokens, the bundle's context holds 512"),
        ({"stop": ["a"] * 5}, "The field stop is "),
        ({"stop": ""}, "The field stop is "),
        ({"best_of": 3}, "The field best_of is not known here, and might change the output; leave it out."),
        ({"presence_penalty": 1}, "The field presence_penalty is 1: "),
        ({"logit_bias": {"a": 1}}, "logit_bias names 'a', tokens are numbers"),
        ({"logit_bias": {"1": 101}}, "logit_bias of 1 is 101.0; give -100 to 100."),
        ({"logit_bias": {"9999": 1}}, "The logit bias names token 9999, the vocabulary has 2048"),
        ({"response_format": {"type": "yaml"}}, "The field response_format is "),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strnig"}}}},
            "The json-schema cannot be used: Invalid type: strnig.",
        ),
        ({"logprobs": 50}, "The field logprobs is 50: "),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_one_sentence(served, fields, says, stream):
    answer = served.asked(**fields, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(says)
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "The body is no JSON"),
        (b"[1]", "The body is a JSON list; send an object."),
        (b"\xff", "The body is no JSON"),
        (b"[" * 100_000, "The body is no JSON (recursion limit exceeded"),
        (b'{"temperature": NaN}', "The body is no JSON"),
        (b"{}", "The field model is missing; give it."),
        (b'{"model": "scripted", "messages": []}', "The field messages is []: "),
        (b'{"model": "scripted", "messages": [{"role": "user"}]}', "The field messages.0.content is missing"),
        (b'{"model": "scripted", "messages": [{"role": "x", "content": "a"}]}', 'The field messages.0.role is "x": '),
        (b'{"model": "scripted", "messages": [{"role": "user", "content": 3}]}', "The field messages.0.content is 3: "),
        (b'{"model": "scripted", "tools": [], "messages": []}', "The field messages is []: "),
    ],
)
def test_a_bad_body_is_one_sentence(served, body, says):
    answer = served.post("/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(says)


def test_another_model_is_not_found(served):
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt' here; there is 'scripted'"):
        served.client.completions.create(model="gpt", prompt="a")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(chunked):
    with serving(Limits(body_bytes=1000)) as served:
        body = json.dumps({"model": NAME, "prompt": "a" * 2000}).encode()
        content = iter([body[:500], body[500:]]) if chunked else body
        answer = served.post(content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert (
            answer.json()["error"]["message"] == "The body has more than 1000 bytes, which is the most here; send less."
        )
        assert served.asked().status_code == 200


def test_a_web_page_cannot_send_requests_by_itself():
    """Neither as a form, which a browser sends to anyone, nor by a name that it had resolved to this machine."""
    with serving(Limits(hosts=frozenset({"127.0.0.1"}))) as served:
        assert served.post(content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        assert served.post(json={}, headers={"Host": "example.org"}).status_code == 403
        assert httpx.get(f"{served.url}/models", headers={"Host": "example.org"}).status_code == 403
        assert served.asked().status_code == 200


def test_a_bundle_without_a_template_takes_no_messages():
    with serving(template=False) as served:
        with pytest.raises(openai.BadRequestError, match="The bundle has no chat template"):
            served.client.chat.completions.create(model=NAME, messages=MESSAGES)
        assert served.asked().status_code == 200


def test_a_fault_of_the_server_s_own_is_a_sentence_and_the_next_request_is_served(served, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(served.engine, "logits", fail)
    for stream in (False, True):
        answer = served.asked(stream=stream)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "The server failed (ZeroDivisionError); this is a fault of its own."
    monkeypatch.undo()
    assert served.asked().status_code == 200


def test_an_error_in_the_middle_of_a_stream_is_told_in_it(served, monkeypatch):
    original = served.engine.logits

    def fail_later(sequence, drafter=False):
        if len(sequence) > 30:
            raise ZeroDivisionError
        return original(sequence, drafter)

    monkeypatch.setattr(served.engine, "logits", fail_later)
    with pytest.raises(openai.APIError, match=r"The server failed \(ZeroDivisionError\)"):
        list(served.client.completions.create(model=NAME, prompt="a", max_tokens=100, temperature=0, stream=True))


def test_unknown_paths_and_methods_are_openai_s_errors(served):
    answers = [httpx.get(served.url + "/foo"), httpx.get(served.url + "/completions")]
    assert [answer.status_code for answer in answers] == [404, 405]
    assert all(answer.json()["error"]["message"].endswith(".") for answer in answers)
