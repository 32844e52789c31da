"""Recipes: which weight gets which precision. What, never how a backend packs it.

A recipe is a TOML file of ordered rules; the first one that matches a weight's name decides, and a weight
that none matches stays float. Names are `part.path`, such as `target.layers.3.mlp.down_proj`,
`drafter.lm_head`, `embedder.embed_tokens`. The files in `recipes/` are the built-in ones.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pocketdraft.runtime.errors import PocketdraftError

BUILT_IN = Path(__file__).parent / "recipes"


class Rule(BaseModel):
    """`weights` is a shell pattern. `block` is the number of input channels that share a scale, 0 for all.

    `scale` says how scales are chosen where a weight lies on no grid of its own: "mse" clips where that lowers the
    squared error (int4 and int2), "absmax" never clips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: str
    dtype: Literal["float32", "int8", "int4", "int2"]
    block: Literal[0, 32, 64, 128, 256] = 0
    scale: Literal["mse", "absmax"] = "mse"

    @property
    def bits(self) -> int:
        return {"float32": 32, "int8": 8, "int4": 4, "int2": 2}[self.dtype]

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest level. Without int8's -128: older Arm kernels add two products in 16 bits."""
        half = 1 << (self.bits - 1)
        return (1 - half if self.bits == 8 else -half), half - 1

    def size_bytes(self, rows: int, columns: int) -> int:
        """Of a weight of this shape: levels, and a float32 scale a row or a 16-bit one a block."""
        if self.dtype == "float32":
            return 4 * rows * columns
        scales = 2 * columns // self.block if self.block else 4
        return rows * (columns * self.bits // 8 + scales)


FLOAT = Rule(weights="*", dtype="float32")


class Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rule: tuple[Rule, ...]

    def rule_for(self, weight: str) -> Rule:
        """The first rule that matches, else float."""
        return next((rule for rule in self.rule if fnmatchcase(weight, rule.weights)), FLOAT)

    def to_toml(self) -> str:
        """What `load` reads."""
        tables = (rule.model_dump(exclude_defaults=True) for rule in self.rule)
        lines = ("".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()) for table in tables)
        return "\n".join(f"[[rule]]\n{line}" for line in lines)


def load(name: str) -> Recipe:
    """A built-in recipe by name, or one's own by the path of a .toml file. Raises PocketdraftError."""
    path = Path(name) if name.endswith(".toml") else BUILT_IN / f"{name}.toml"
    if not path.is_file():
        known = names()
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(known)} or the path of a .toml file."
        raise PocketdraftError(f"There is no recipe {name!r}; {mend}")
    try:
        return Recipe(name=path.stem, **tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise PocketdraftError(f"Recipe {path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise PocketdraftError(f"Recipe {path} is wrong at {where}: {first['msg']}.") from error


def names() -> list[str]:
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))
