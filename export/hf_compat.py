"""The one place that mends transformers 5.23.0. `tests/test_hf_compat.py` fails once it can go."""

from __future__ import annotations

from transformers import Gemma4TextConfig, Gemma4UnifiedTextConfig
from transformers.models.gemma4 import modeling_gemma4

_ORIGINAL_MODES = {config: config.kv_sharing_modes for config in (Gemma4TextConfig, Gemma4UnifiedTextConfig)}
_original_slice = modeling_gemma4.Gemma4TextModel._maybe_slice_kv_shared_inputs


def patch_transformers() -> None:
    """Lets two kinds of Gemma 4 be built. May be called any number of times.

    5.23.0's `kv_sharing_modes`, of `Gemma4TextConfig` and of 12B's `Gemma4UnifiedTextConfig`, raises where every
    layer is shared, which is what an assistant is, and marks no layer as "store" where none is shared, so that
    dense targets (12B, 31B) hand their drafter no K/V.
    """
    for config in _ORIGINAL_MODES:
        config.kv_sharing_modes = property(_kv_sharing_modes)


def patch_for_training() -> None:
    """Lets an assistant run many queries at once: 5.23.0 slices its absent per-layer inputs. As often as one likes."""

    def keep_all(self, hidden, per_layer, rope, masks, *rest, **named):  # type: ignore[no-untyped-def]
        if per_layer is None:
            return hidden, per_layer, rope, masks
        return _original_slice(self, hidden, per_layer, rope, masks, *rest, **named)

    modeling_gemma4.Gemma4TextModel._maybe_slice_kv_shared_inputs = keep_all


def _kv_sharing_modes(config: Gemma4TextConfig | Gemma4UnifiedTextConfig) -> list[str | None]:
    kinds = config.layer_types or []
    first_shared = len(kinds) - (config.num_kv_shared_layers or 0)
    modes: list[str | None] = [None if index < first_shared else "reuse" for index in range(len(kinds))]
    for kind in set(kinds[:first_shared]):
        modes[max(i for i in range(first_shared) if kinds[i] == kind)] = "store"
    return modes
