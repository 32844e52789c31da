"""What a bundle says of each drafter that it holds: the part of the manifest that a new drafter adds to."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from .errors import PocketdraftError


class Frozen(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spec(Frozen):
    """Of one kind of drafter. Its graphs have these `roles`, each at least once."""

    roles: ClassVar[tuple[str, ...]]

    @property
    def needed(self) -> tuple[str, ...]:
        """The roles of all graphs that the bundle must have for it."""
        return self.roles


SpecT = TypeVar("SpecT", bound=Spec)


class MTPSpec(Spec):
    """Gemma 4's MTP drafter: which K/V of the target it reads, and what it takes for its position.

    `position` is the convention it was trained with: `pending` is the index p of the token not yet in the
    cache (transformers), `last_cached` is p - 1 (what LiteRT-LM feeds). The graph's `input_pos` is always
    p - 1; a `pending` drafter adds one inside the graph.
    """

    roles = ("draft",)
    head: Literal["dense", "centroid"]
    position: Literal["pending", "last_cached"]
    kv_full: int
    kv_sliding: int


class DFlashSpec(Spec):
    """A block drafter: one pass over the pending token and `block` - 1 times `mask_token`.

    The hidden states after the target layers `taps` (from 0) are the `taps` [1, T, len(taps) * D] of target graphs.
    """

    roles = ("dflash_context", "dflash_draft", "head")
    block: PositiveInt
    mask_token: int
    taps: tuple[int, ...]


class EarlyExitSpec(Spec):
    """The target's first `layers` layers draft, the others verify.

    Where one of the others owns K/V, a graph `exit_fill` makes them for a token that skips it. A token that does not
    leave after `layers` may do so after each of `further`, rising: see `export/steps/early_exit.py`.
    """

    roles = ("exit_draft", "exit_head", "exit_verify")
    layers: PositiveInt
    further: tuple[PositiveInt, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        return (*self.roles, *(("further_exit", "further_head", "further_rest") if self.further else ()))

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """With one exit, what runtimes that know of no other can read."""
        made: dict[str, object] = handler(self)
        if not self.further:
            del made["further"]
        return made


class MTPHeadsSpec(Spec):
    """Native MTP heads, decoder layers of their own with K/V: head i of several drafts the i-th token and a round has
    no more; a single one drafts all."""

    roles = ("mtp_heads", "head")
    heads: PositiveInt


class DraftModelSpec(Spec):
    """A smaller model of the same tokenizer, with K/V and embeddings of its own."""

    roles = ("model_embed", "model_prefill", "model_decode")


class DrafterSpecs(Frozen):
    """By kind; None is one that the bundle does not hold."""

    mtp: MTPSpec | None = None
    dflash: DFlashSpec | None = None
    early_exit: EarlyExitSpec | None = None
    mtp_heads: MTPHeadsSpec | None = None
    draft_model: DraftModelSpec | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that the bundle holds."""
        return tuple(kind for kind in type(self).model_fields if getattr(self, kind) is not None)

    @property
    def default(self) -> str:
        """What drafts unless told otherwise: one that the bundle holds, else what needs no weights."""
        return next(iter(self.kinds), "prompt_lookup")

    def of(self, kind: type[SpecT]) -> SpecT:
        """The one of this kind. Raises PocketdraftError if the bundle does not hold it."""
        for name in type(self).model_fields:
            found = getattr(self, name)
            if isinstance(found, kind):
                return found
        name = next(name for name, field in type(self).model_fields.items() if field.annotation == kind | None)
        held = f"it holds {', '.join(self.kinds)}" if self.kinds else "nor any other that has weights"
        raise PocketdraftError(
            f"The bundle holds no {name} drafter, {held}; export it with the checkpoint of that drafter as well."
        )
