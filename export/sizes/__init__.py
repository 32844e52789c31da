"""The public configurations of Gemma 4 and of its assistants (MTP drafters), text part only. No weights.

Values are those of the config.json published with each `google/gemma-4-*-it` and `-it-assistant`, as quoted in public
sources: transformers 5.23.0 (names, defaults, the unified kind), ExecuTorch's `examples/models/gemma4_31b` and
litert-torch's and vLLM's tests. GGUF metadata of converted weights confirms depths, widths, heads and windows.

| size | target | drafter |
| --- | --- | --- |
| e2b | config quoted in full; GGUF | config quoted in full |
| e4b | all that shapes it quoted; GGUF | all widths, heads and centroids quoted |
| 12b | config quoted in full (`gemma4_unified`) | all widths and heads quoted (`gemma4_unified_assistant`) |
| 26b-a4b | config quoted in full, number of experts by GGUF and tensor shapes | GGUF metadata |
| 31b | config quoted in full | all widths and heads quoted |

Derived: 31B's drafter's `sliding_window` (its target's), and everywhere the values that shape nothing here
(`initializer_range`, a drafter's `use_bidirectional_attention`). Parameters in billions, counted from these files and
as published; the published totals of E2B and E4B count image and sound towers too.

| size | counted | without per-layer embeddings | read for a token | published | drafter | published |
| --- | --- | --- | --- | --- | --- | --- |
| e2b | 4.63 | 2.28 | 2.28 | 5.1, 2.3 effective | 0.078 | 0.078 |
| e4b | 7.46 | 4.64 | 4.64 | 8, 4.5 effective | 0.079 | 0.079 |
| 12b | 11.91 | 11.91 | 11.91 | 11.9 | 0.423 | 0.4 |
| 26b-a4b | 25.23 | 25.23 | 3.82 | 25.2, 3.8 active | 0.420 | 0.4 |
| 31b | 30.70 | 30.70 | 30.70 | 30.7 | 0.470 | 0.5 |
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from transformers import (
    CONFIG_MAPPING,
    Gemma4AssistantConfig,
    Gemma4TextConfig,
    Gemma4UnifiedAssistantConfig,
    Gemma4UnifiedTextConfig,
)

from pocketdraft.runtime.errors import PocketdraftError

from ..hf_compat import patch_transformers

HERE = Path(__file__).parent
FULL = "full_attention"

TextConfig: TypeAlias = Gemma4TextConfig | Gemma4UnifiedTextConfig
AssistantConfig: TypeAlias = Gemma4AssistantConfig | Gemma4UnifiedAssistantConfig
Pair: TypeAlias = tuple[TextConfig, AssistantConfig]


def names() -> list[str]:
    """By the number of parameters."""
    return sorted((path.parent.name for path in HERE.glob("*/target.json")), key=_order)


def _order(name: str) -> tuple[int, str]:
    digits = name.removeprefix("e").partition("b")[0]
    return int(digits), name


def configs(name: str) -> Pair:
    """Target and drafter of a size; those of 12B are of the unified kind. Raises PocketdraftError for another name."""
    patch_transformers()
    if name not in names():
        within = [size for size in names() if size.partition("-")[0] in name.lower()]  # "gemma-4-31B-it"
        near = within or difflib.get_close_matches(name.lower(), names(), n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(names())}."
        raise PocketdraftError(f"There is no size {name!r} of Gemma 4; {mend}")
    return _config(name, "target"), _config(name, "drafter")


def _config(name: str, part: str) -> Any:
    raw = json.loads((HERE / name / f"{part}.json").read_text())
    return CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def resized(config: TextConfig, changes: Mapping[str, Any]) -> TextConfig:
    """The configuration with some values changed, by the names of the JSON files.

    `Gemma4TextConfig` keeps what full layers have of their own by layer number, which no other depth could keep.
    """
    full = config.per_layer_config[FULL]
    own = {"global_head_dim": full.head_dim}
    if config.attention_k_eq_v:
        own["num_global_key_value_heads"] = full.num_key_value_heads
    raw = {name: value for name, value in config.to_dict().items() if name != "per_layer_config"}
    return type(config).from_dict(raw | own | dict(changes))


def with_text(drafter: AssistantConfig, changes: Mapping[str, Any], text: Mapping[str, Any]) -> AssistantConfig:
    """A drafter's configuration with some values changed, of its own and of its text model's."""
    changed = {"text_config": resized(drafter.text_config, text).to_dict()}
    return type(drafter).from_dict(drafter.to_dict() | dict(changes) | changed)
