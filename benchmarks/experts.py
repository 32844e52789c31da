"""What one layer's experts cost in LiteRT at 26B-A4B's width, by how their weights are read.

    python benchmarks/experts.py [--tokens 1,5,16] [--rounds 3] [--work build/experts]

`lookup` is what is exported: rows of a table looked up as float32, as many tokens' at a time as `LOOKUP_BYTES` allow,
then multiplied. `at once` looks up all tokens' rows first. `moe op` is litert-torch's custom operator, which LiteRT's
XNNPACK delegate runs expert by expert: it reads an expert once for all tokens that chose it.

Of the 128 experts 32 are there, so that float weights fit a flatbuffer; each token takes eight at random. One thread,
a process a row, rows in turn within each round. Memory is what the first call adds (anonymous pages), beside the
mapped file. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pocketdraft.export import sizes
from pocketdraft.export.models import gemma4_moe
from pocketdraft.export.models.gemma4_moe import Experts, MixtureOfExperts

CONFIG = sizes.configs("26b-a4b")[0]
HIDDEN, MOE = CONFIG.hidden_size, MixtureOfExperts(32, CONFIG.top_k_experts, CONFIG.moe_intermediate_size)
REPEATS = 7
VARIANTS = [("lookup", "int8"), ("lookup", "int4"), ("at once", "int4"), ("moe op", "int8")]


class Operator(nn.Module):
    """The custom operator over the same weights, [rows, E, 1, columns] int8 with a scale a row."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        shapes = experts.checkpoint_shapes
        gates, ups = experts.gate_up_proj.weight.view(shapes["gate_up_proj"]).chunk(2, 1)
        for index, weight in enumerate((gates, ups, experts.down_proj.weight.view(shapes["down_proj"]))):
            scale = weight.abs().amax(-1, keepdim=True) / 127
            levels = torch.round(weight / scale).to(torch.int8)
            self.register_buffer(f"levels{index}", levels.transpose(0, 1)[:, :, None].contiguous())
            self.register_buffer(f"scales{index}", scale.transpose(0, 1)[:, :, None].contiguous())

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        from litert_torch.generative.layers import moe

        tables = [getattr(self, f"levels{index}") for index in range(3)]
        scales = {name: getattr(self, f"scales{i}") for i, name in enumerate(("ff_gate_scale", "ff1_scale"))}
        return moe.moe_experts(  # type: ignore[no-any-return]
            *(x[None], weights[None], chosen[None], *tables, torch.ones(1, 1, 1, MOE.experts)),
            num_experts=MOE.experts,
            num_active_experts=MOE.top,
            model_dim=HIDDEN,
            hidden_dim=MOE.intermediate,
            weight_type="int8",
            linear_scale=self.scales2,
            **scales,
        )[0]


def sample(tokens: int) -> dict[str, Tensor]:
    torch.manual_seed(tokens)
    chosen = torch.stack([torch.randperm(MOE.experts)[: MOE.top] for _ in range(tokens)]).to(torch.int32)
    return {"x": torch.randn(tokens, HIDDEN), "weights": torch.rand(tokens, MOE.top), "chosen": chosen}


def write(kind: str, dtype: str, tokens: int, path: Path) -> None:
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer
    from litert_torch._convert.interface import Converter

    gemma4_moe.LOOKUP_BYTES = 1 << 40 if kind == "at once" else gemma4_moe.LOOKUP_BYTES
    torch.manual_seed(0)
    module: nn.Module = Experts(HIDDEN, MOE).requires_grad_(False)
    for table in module.parameters():
        table.normal_(0.0, table.shape[1] ** -0.5)
    if kind == "moe op":
        module = Operator(module)  # type: ignore[arg-type]
    converter = Converter()
    converter.add_signature("experts", module.eval(), sample_kwargs=sample(tokens))
    converter.convert(strict_export=False).export(str(path))
    if kind != "moe op":
        work = Quantizer(str(path))
        work.add_dynamic_config(
            regex=".*",
            operation_name=TFLOperationName.EMBEDDING_LOOKUP,
            num_bits=int(dtype.removeprefix("int")),
            granularity=QuantGranularity.CHANNELWISE,
        )
        work.quantize().export_model(str(path), overwrite=True)


def measure(tokens: int, path: Path) -> tuple[list[float], int]:
    """Milliseconds a call, and the megabytes that the first one adds."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    run = interpreter.get_signature_runner("experts")
    feed = {name: tensor.numpy() for name, tensor in sample(tokens).items()}
    before = anonymous()
    run(**feed)
    added, times = anonymous() - before, []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(**feed)
        times.append(1e3 * (time.perf_counter() - start))
    return times, added


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) // 1024


def apart(function: Any, *given: Any) -> Any:
    """In a process of its own, so that memory is the row's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,5,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/experts"))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    widths = [int(width) for width in chosen.tokens.split(",")]
    found: dict[tuple[str, str, int], tuple[list[float], int]] = {}
    for _ in range(chosen.rounds):
        for kind, dtype in VARIANTS:
            for tokens in widths:
                path = chosen.work / f"{kind}-{dtype}-{tokens}.tflite".replace(" ", "-")
                if not path.exists():
                    apart(write, kind, dtype, tokens, path)
                times, added = apart(measure, tokens, path)
                found[kind, dtype, tokens] = found.get((kind, dtype, tokens), ([], 0))[0] + times, added
    table = Table("read by", "weights", "tokens", "ms", "least ms", "MB added")
    rows = []
    for (kind, dtype, tokens), (times, added) in found.items():
        rows.append((kind, dtype, tokens, round(statistics.median(times), 1), round(float(np.min(times)), 1), added))
        table.add_row(*(str(cell) for cell in rows[-1]))
    Console().print(table)
    print(json.dumps({"columns": ["read_by", "weights", "tokens", "ms", "least_ms", "mb"], "rows": rows}))


if __name__ == "__main__":
    main()
