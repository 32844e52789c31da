"""What `pocketdraft bench` writes and `report` reads: one JSON object, with every figure and how it came about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .clock import Clock
from .errors import PocketdraftError, first_fault
from .files import write_whole
from .profile import DeviceInfo, Profile
from .stats import RoundPart

FORMAT_VERSION = 1
ALL = "all"  # the name of all domains together


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Frozen):
    """A ratio and its 95 % confidence interval, by resampling prompts (bootstrap)."""

    value: float
    low: float
    high: float


class Point(_Frozen):
    """One way to decode, over one domain's prompts; `drafts` is their number in a round, or "auto" or "tuned".

    `tokens_per_s` is over the time of the rounds, without prefill; with `batch` rows it is that of all together.
    `ratio` is drafted over plain speed, prompt by prompt. `seconds` are by part of the rounds.
    """

    domain: str
    drafter: str
    drafts: int | Literal["auto", "tuned"]
    batch: int = 1
    tokens_per_s: float
    ratio: Interval | None = None
    accepted_per_round: float = 0.0
    acceptance: tuple[float, ...] = ()
    conditional_acceptance: tuple[float, ...] = ()
    rounds: int = 0
    tokens: int = 0
    seconds: dict[RoundPart, float] = Field(default_factory=dict)


class FirstToken(_Frozen):
    """Seconds to the first token. Cold: the bundle opened, its files verified, and the first prompt run by an engine
    that never ran before. Warm: the median over the other prompts."""

    cold_s: float
    opened_s: float
    warm_s: float


class Read(_Frozen):
    """Bytes that must be read from memory, and the tokens/s that the measured bandwidth allows if all of them are.

    Of plain decoding: the target's weights and committed K/V for each token. `whole_program` says that the backend
    keeps all weights in one program, whose size is then an upper bound.
    """

    target_bytes: int
    drafter_bytes: int
    kv_bytes: int
    bandwidth: float
    limit_tokens_per_s: float
    whole_program: bool = False


class Prediction(_Frozen):
    """The cost model against measurement, in tokens/s, medians over texts. `error` is that of a text, as a share of
    what was measured: the median over texts too. `held_out`: nothing of this point's runs was used to fit."""

    domain: str
    drafter: str
    drafts: int | Literal["auto", "tuned"]
    held_out: bool
    predicted: float
    measured: float
    error: float


class Parity(_Frozen):
    max_error: float
    argmax_agreement: float
    kl: float


class Results(_Frozen):
    """One bundle on one machine with one way of sampling."""

    format_version: int = FORMAT_VERSION
    kind: Literal["bench"] = "bench"
    date: str
    bundle: str
    bundle_bytes: int
    backend: str
    recipe: str
    device: DeviceInfo
    threads: int
    clock: Clock = "wall"
    temperature: float
    max_tokens: int
    prompts: dict[str, int]
    licences: tuple[str, ...] = ()
    identical: bool | None
    points: tuple[Point, ...]
    first_token: FirstToken | None = None
    peak_memory_bytes: int | None = None
    read: Read | None = None
    predictions: tuple[Prediction, ...] = ()
    parity: Parity | None = None
    profile: Profile | None = None

    @property
    def domains(self) -> list[str]:
        return list(self.prompts)

    @property
    def drafters(self) -> list[str]:
        """Those that were measured, in their order."""
        return list(dict.fromkeys(point.drafter for point in self.points if point.drafter != "none"))

    @property
    def best(self) -> Point:
        """Of all drafters and lengths, over all prompts; plain decoding where nothing was drafted."""
        drafted = [point for drafter in self.drafters for point in self.of(ALL, drafter) if point.ratio]
        return max(drafted, key=lambda point: point.ratio.value if point.ratio else 0.0, default=self.of(ALL)[0])

    def of(self, domain: str, drafter: str | None = None, batch: int = 1) -> list[Point]:
        """Fixed lengths of a drafter, the first unless one is named: plain decoding first, shortest first."""
        drafter = drafter or next(iter(self.drafters), "none")
        found = [
            point
            for point in self.points
            if (point.domain, point.batch) == (domain, batch)
            and isinstance(point.drafts, int)
            and point.drafter in (drafter, "none")
        ]
        return sorted(found, key=lambda point: int(point.drafts))

    def dump(self) -> str:
        return self.model_dump_json(indent=1) + "\n"


class Imported(_Frozen):
    """A decoding speed that another program measured."""

    tool: str
    model: str
    what: str
    batch: int = 1
    drafts: int | None = None
    tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    first_token_s: float | None = None
    accepted_per_round: float | None = None
    acceptance: tuple[float, ...] = ()


class Imports(_Frozen):
    """What `pocketdraft import` makes of other programs' output."""

    format_version: int = FORMAT_VERSION
    kind: Literal["imports"] = "imports"
    source: str
    rows: tuple[Imported, ...]

    def dump(self) -> str:
        return self.model_dump_json(indent=1) + "\n"


class DrafterRecipe(_Frozen):
    """A drafter's recipe and the best that it can do: `gain` is over plain decoding, and less than 1 where it is better
    left off. `tokens_per_s` are those of drafting."""

    recipe: str
    drafter_bytes: int
    gain: float
    tokens_per_s: float
    drafts: str
    tokens_per_round: float


class Precisions(_Frozen):
    """What `tune --recipes` found: the same target, its drafter in several recipes, the same output."""

    format_version: int = FORMAT_VERSION
    kind: Literal["precisions"] = "precisions"
    date: str
    bundle: str
    backend: str
    device: DeviceInfo
    best: str
    recipes: tuple[DrafterRecipe, ...]

    def dump(self) -> str:
        return self.model_dump_json(indent=1) + "\n"


Written: TypeAlias = Results | Imports | Precisions


def read_results(path: Path) -> Written | Profile:
    """Results of a bench or of `tune --recipes`, an import, or a device profile. Raises PocketdraftError for others."""
    if not path.is_file():
        raise PocketdraftError(f"There is no file {path}; write one with `pocketdraft bench BUNDLE --out {path.name}`.")
    kinds: dict[str | None, type[Written] | type[Profile]] = {
        "bench": Results,
        "imports": Imports,
        "precisions": Precisions,
        None: Profile,
    }
    try:
        content = json.loads(path.read_bytes())
        kind = content.get("kind") if isinstance(content, dict) else ""
        if kind not in kinds:
            raise PocketdraftError(f"{path} is no result, its kind is {kind!r}; give what `bench --out` wrote.")
        return kinds[kind].model_validate(content)
    except (ValueError, ValidationError) as error:
        at = f"at {first_fault(error)}" if isinstance(error, ValidationError) else f"({error})"
        raise PocketdraftError(f"{path} is no result of a bench, {at}; run `pocketdraft bench` again.") from error


def write_results(found: Written, path: Path) -> None:
    """Whole or not at all."""
    write_whole(path, found.dump())
