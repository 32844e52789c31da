"""What a client may ask, after OpenAI's API. A field that is not known is refused, as it might change the output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from ..errors import PocketdraftError

MOST_CHOICES, MOST_STOPS, MOST_TOP_LOGPROBS, MOST_BIASED = 8, 4, 20, 1024
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Zero = Annotated[float, Field(ge=0, le=0)]  # fields of OpenAI's that are taken only where they are off


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: Any = None


class Schema(_Part):
    name: str = ""
    description: str = ""
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = True


class TextFormat(_Part):
    type: Literal["text"]


class ObjectFormat(_Part):
    type: Literal["json_object"]


class SchemaFormat(_Part):
    type: Literal["json_schema"]
    json_schema: Schema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Request(_Part):
    """Both endpoints'. `top_k`, `min_p` and `repetition_penalty` are not OpenAI's; their names are transformers'."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] = Field(default_factory=list)
    logit_bias: Annotated[dict[str, float], Field(max_length=MOST_BIASED)] = Field(default_factory=dict)
    response_format: ResponseFormat = TextFormat(type="text")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # These do not change the output.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def top(self) -> int | None:
        """How many likely tokens to tell beside each one's own log-probability; None tells nothing."""
        raise NotImplementedError


class CompletionRequest(Request):
    prompt: str | list[int]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None

    @property
    def top(self) -> int | None:
        return self.logprobs


class TextPart(_Part):
    type: Literal["text"]
    text: str


class Message(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({} if self.name is None else {"name": self.name})


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] = 0

    @property
    def top(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


AnyRequest = TypeVar("AnyRequest", bound=Request)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Raises PocketdraftError: the first field that is wrong, and why. A null is a field left out."""
    try:
        found = from_json(body, allow_inf_nan=False)  # Python's own overflows the stack where the limit is raised
    except ValueError as error:
        raise PocketdraftError(f"The body is no JSON ({error}); send an object.") from error
    if not isinstance(found, dict):
        raise PocketdraftError(f"The body is a JSON {type(found).__name__}; send an object.")
    body_fields = {name: value for name, value in found.items() if value is not None}
    try:
        return kind.model_validate(body_fields)
    except ValidationError as error:
        raise PocketdraftError(_sentence(error, body_fields)) from error


def _sentence(error: ValidationError, body: Any) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = _name(first["loc"], body)
    if first["type"] == "extra_forbidden":
        return f"The field {name} is not known here, and might change the output; leave it out."
    if first["type"] == "missing":
        missing = first["loc"][-1]
        return f"The field {name + '.' if name else ''}{missing} is missing; give it."
    said = json.dumps(first["input"], default=str)
    return f"The field {name} is {said if len(said) <= 80 else said[:77] + '...'}: {_lower(first['msg'])}."


def _name(place: Sequence[int | str], body: Any) -> str:
    """Of the field in the body: pydantic's place also names the alternatives of a union, which no client knows."""
    steps = []
    for step in place:
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            steps.append(str(step))
            body = body[step]
    return ".".join(steps)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
