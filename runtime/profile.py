"""A device profile: what each graph of a bundle takes on one device, and what the loop around them adds.

One JSON object, written alike by `pocketdraft profile` and by the Android app; `tests/golden/profile.json` is an
example. All times are in seconds, sizes in bytes. A reader refuses keys that it does not know, and a format version
that is newer. `null` says "not known"; fields with a default may be left out.

    format_version    1
    origin            "measured" on the device named, or "reported" by somebody else
    source            the program and version that took it, or the address or title of the report
    date              of the measurement, "2026-11-26"; "" where not known
    device            name ("Pixel 10 Pro"), soc ("Tensor G5"), os ("Android 16"), cores, memory_bytes
    backend           "litert", "executorch", "onnx"; null in a report about something else
    accelerator       "cpu", "gpu" or "npu": what ran the target's graphs
    runtime_version   of the backend ("2.3.0")
    bundle_sha256     of the bundle's files, see `files_digest`; "" in a report
    threads           for the graphs; 0: left to the backend
    memory_bandwidth  bytes/s of one pass that reads much more than the caches hold, with `threads` threads
    graphs            a list, one entry a graph and context fill:
        name, role, width   as in bundle.json
        filled              slots of K/V that were committed when the graph was timed
        median_s, lower_quartile_s, upper_quartile_s, runs
                            of a call as the loop makes it: inputs copied in, outputs copied out, no warm-up run counted
    host              what rounds take beyond the medians of their graphs
        round_s             every round: acceptance, bookkeeping
        lookup_share        embedding lookups that ran the embedder, of all; the others were remembered rows
        drafting_s, draft_s  as below, but beyond the drafter's graphs: of mtp and prompt_lookup, where `drafters` does
                            not tell; 0 by default
    drafters          by name, what drafting adds to a round, graphs and all; less than 0 if it saves; {} by default
        verify              the role of the graphs that verify its drafts
        drafting_s          a round that drafts at all
        draft_s             each draft, its row of the verify included; of a tree each node
    speeds            a list of decoding speeds, measured in whole generations or reported:
        model, drafter, drafts, batch, temperature
        plain_tokens_per_s, tokens_per_s, ratio
        acceptance_by_position   cumulative: share of rounds that accepted draft k and all before it
        note
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .errors import PocketdraftError, first_fault
from .files import write_whole
from .graphs import Role
from .manifest import Backend, Manifest

FORMAT_VERSION = 1
EMBEDDERS = ("embed", "embed_per_layer")  # roles
VerifyRole = Literal["verify", "exit_verify"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DeviceInfo(_Frozen):
    name: str
    soc: str | None = None
    os: str | None = None
    cores: PositiveInt | None = None
    memory_bytes: PositiveInt | None = None


class GraphTiming(_Frozen):
    """One graph at one context fill."""

    name: str
    role: Role
    width: PositiveInt
    filled: NonNegativeInt
    median_s: PositiveFloat
    lower_quartile_s: PositiveFloat
    upper_quartile_s: PositiveFloat
    runs: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> GraphTiming:
        if not self.lower_quartile_s <= self.median_s <= self.upper_quartile_s:
            raise ValueError(f"the quartiles of {self.name} do not enclose its median")
        return self


class HostTiming(_Frozen):
    """What rounds take beyond the medians of their graphs."""

    round_s: NonNegativeFloat
    draft_s: NonNegativeFloat = 0.0
    drafting_s: NonNegativeFloat = 0.0
    lookup_share: float = Field(default=1.0, ge=0, le=1)


class DraftingTiming(_Frozen):
    """What a drafter adds to a round beyond its verify and what a plain one takes.

    Less than nothing where it leaves the caches alone, as prompt lookup does: the target's graphs are then faster than
    their medians, which are over the rounds of all drafters.
    """

    verify: VerifyRole = "verify"
    drafting_s: float
    draft_s: float


class Speed(_Frozen):
    """Decoding measured as a whole. `ratio` is drafted over plain, for reports that give nothing else."""

    model: str
    drafter: str = "mtp"
    drafts: NonNegativeInt | None = None
    batch: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    plain_tokens_per_s: PositiveFloat | None = None
    tokens_per_s: PositiveFloat | None = None
    ratio: PositiveFloat | None = None
    acceptance_by_position: tuple[float, ...] | None = None
    note: str = ""

    @property
    def gain(self) -> float | None:
        """Drafted over plain, where it is known."""
        if self.ratio is not None or self.tokens_per_s is None or self.plain_tokens_per_s is None:
            return self.ratio
        return self.tokens_per_s / self.plain_tokens_per_s


class Profile(_Frozen):
    """See the module."""

    format_version: int = FORMAT_VERSION
    origin: Literal["measured", "reported"]
    source: str = Field(min_length=1)
    date: str = ""
    device: DeviceInfo
    backend: Backend | None = None
    accelerator: Literal["cpu", "gpu", "npu"] = "cpu"
    runtime_version: str = ""
    bundle_sha256: str = ""
    threads: NonNegativeInt = 0
    memory_bandwidth: PositiveFloat | None = None
    graphs: tuple[GraphTiming, ...] = ()
    host: HostTiming | None = None
    drafters: dict[str, DraftingTiming] = Field(default_factory=dict)
    speeds: tuple[Speed, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Profile:
        if self.origin == "measured" and not (self.backend and self.bundle_sha256 and self.graphs and self.host):
            raise ValueError("a measured profile has a backend, a bundle_sha256, graphs and host")
        if not self.graphs and not self.speeds:
            raise ValueError("it has neither graphs nor speeds")
        return self

    def dump(self) -> str:
        return self.model_dump_json(indent=1) + "\n"


def files_digest(manifest: Manifest) -> str:
    """sha256 of the lines `NAME SHA256\\n`, sorted by name, of the manifest's `files`.

    So it stays the same when `tune` writes its choice into the manifest, and changes with any other byte.
    """
    lines = (f"{name} {manifest.files[name].sha256}\n" for name in sorted(manifest.files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_profile(path: Path) -> Profile:
    """Raises PocketdraftError for a file that is missing, damaged or of a newer format."""
    if not path.is_file():
        raise PocketdraftError(f"There is no profile {path}; take one with `pocketdraft profile BUNDLE`.")
    try:
        profile = Profile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise PocketdraftError(
            f"{path} is no device profile, at {first_fault(error)}; take one with `pocketdraft profile BUNDLE`."
        ) from error
    if profile.format_version != FORMAT_VERSION:
        raise PocketdraftError(
            f"{path} has format version {profile.format_version}, this pocketdraft reads {FORMAT_VERSION}; "
            "take the profile again with the same version of pocketdraft."
        )
    return profile


def write_profile(profile: Profile, path: Path) -> None:
    """Whole or not at all."""
    write_whole(path, profile.dump())


def reported() -> list[Profile]:
    """Public figures, as others reported them; none of them was measured by this project."""
    folder = Path(__file__).parent / "reported"
    return [read_profile(path) for path in sorted(folder.glob("*.json"))]
