"""Filled flatbuffers against what Google's converter and quantizer make of the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pocketdraft.export.backends import litert
from pocketdraft.export.cache import Cache
from pocketdraft.export.quantized import Quantized, pack
from pocketdraft.export.step import Step, spec
from pocketdraft.export.stored import stored_in
from pocketdraft.export.tflite import fill
from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime.graphs import GraphSpec

FLOAT = Rule(weights="*", dtype="float32")


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(40, 64), nn.Linear(64, 96, bias=False)

    def forward(self, tokens):
        return {"out": self.up(self.table(tokens))}


@pytest.fixture
def filled(tmp_path):
    """`filled(rule)` is the path of the toy's flatbuffer, two signatures with weights quantized by the rule."""
    torch.manual_seed(0)
    toy = Toy()
    weights = {"table": torch.randn(40, 64), "up": torch.randn(96, 64) / 8}
    save_file(weights, tmp_path / "weights.safetensors")
    stored = stored_in(tmp_path / "weights.safetensors")

    def step(width: int) -> Step:
        graph = GraphSpec(
            name=f"run_{width}",
            role="decode",
            part="target",
            width=width,
            inputs=(spec("tokens", "int32", 1, width),),
            outputs=(spec("out", "float32", 1, width, 96),),
        )
        return Step(graph, toy)

    structure = tmp_path / "structure.tflite"
    litert.lower([step(1), step(3)], structure)
    cache = Cache(tmp_path / "cache", 10**9)

    def make(rule: Rule, linear: Rule | None = None) -> Path:
        rules = {"table": rule, "up": linear or rule}
        given = {
            f"weight_{index}": Quantized(f"target.{name}", stored[name], "toy", rules[name], cache)
            for index, name in enumerate(("table", "up"))
        }
        path = tmp_path / "filled.tflite"
        fill(structure.read_bytes(), given, path)
        return path

    return make


def run(path: Path) -> np.ndarray:
    """Both signatures' outputs, one below the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    outputs = []
    for tokens in ([[7]], [[0, 39, 7]]):
        runner = interpreter.get_signature_runner(f"run_{len(tokens[0])}")
        assert list(runner.get_input_details()) == ["tokens"]
        outputs.append(runner(tokens=np.array(tokens, np.int32))["out"][0])
    return np.concatenate(outputs)


@pytest.mark.parametrize(("dtype", "block"), [("int8", 0), ("int4", 0), ("int4", 32)])
def test_quantized_weights_are_those_of_ai_edge_quantizer(filled, tmp_path, dtype, block):
    """Bit by bit, what the runtime computes with them."""
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    theirs = Quantizer(str(filled(FLOAT)))
    bits = {"int8": 8, "int4": 4}[dtype]
    granularity = QuantGranularity[f"BLOCKWISE_{block}" if block else "CHANNELWISE"]
    for operator, own in ((TFLOperationName.FULLY_CONNECTED, granularity), (TFLOperationName.EMBEDDING_LOOKUP, None)):
        theirs.add_dynamic_config(
            regex=".*", operation_name=operator, num_bits=bits, granularity=own or QuantGranularity.CHANNELWISE
        )
    theirs.quantize().export_model(str(tmp_path / "theirs.tflite"), overwrite=True)
    expected = run(tmp_path / "theirs.tflite")
    ours = Rule(weights="*", dtype=dtype, scale="absmax")
    found = run(filled(ours, ours.model_copy(update={"block": block})))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("dtype", "block", "linear_block"), [("int2", 0, 0), ("int2", 32, None), ("int4", 32, 32)])
def test_what_the_runtime_computes_is_what_the_levels_say(filled, dtype, block, linear_block):
    """Types and blocks that ai-edge-quantizer does not write; a linear layer's inputs are int8 at run time."""
    table = Rule(weights="*", dtype=dtype, block=block)
    linear = FLOAT if linear_block is None else Rule(weights="*", dtype=dtype, block=linear_block)
    torch.manual_seed(0)
    Toy()
    weights = [torch.randn(40, 64), torch.randn(96, 64) / 8]
    rows = torch.from_numpy(round_trip(weights[0].numpy(), table))[[7, 0, 39, 7]]
    expected = litert.round_trip_rows(rows) if linear_block is not None else rows
    expected = expected @ torch.from_numpy(round_trip(weights[1].numpy(), linear)).T
    np.testing.assert_allclose(run(filled(table, linear)), expected.numpy(), atol=1e-5)


def test_float_weights_are_those_of_torch(filled):
    toy = Toy()
    torch.manual_seed(0)
    Toy()
    table, up = torch.randn(40, 64), torch.randn(96, 64) / 8
    toy.table.weight, toy.up.weight = nn.Parameter(table), nn.Parameter(up)
    expected = torch.cat([toy(torch.tensor(t))["out"][0] for t in ([[7]], [[0, 39, 7]])]).detach().numpy()
    np.testing.assert_allclose(run(filled(FLOAT)), expected, atol=1e-5)


def test_a_weight_is_stored_once_for_all_signatures(filled):
    size = filled(Rule(weights="*", dtype="int8")).stat().st_size
    assert size < 2 * (40 * 64 + 96 * 64)


def test_levels_are_packed_from_the_lowest_bits_up():
    assert pack(np.array([1, -1, 7, -8], np.int8), 4) == bytes([0xF1, 0x87])
    assert pack(np.array([1, -1, 0, -2], np.int8), 2) == bytes([0b10001101])


# --- operators that are written as others


class Head(nn.Module):
    """As a drafter's centroid head: rows looked up, their products scattered onto zeros."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.tied = nn.Embedding(40, 64), tied

    def forward(self, tokens, x):
        products = nn.functional.linear(x, self.table(tokens[0]))[0]
        out = torch.zeros(40).index_copy(0, tokens[0].to(torch.int64), products)
        return {"out": out + nn.functional.linear(x, self.table.weight)[0] if self.tied else out}


@pytest.fixture(scope="module")
def filled_head(tmp_path_factory):
    """`filled_head(count, dtype)` is the path of the head's flatbuffer for so many tokens."""
    folder, structures = tmp_path_factory.mktemp("heads"), {}
    torch.manual_seed(0)
    save_file({"table": torch.randn(40, 64)}, folder / "weights.safetensors")
    stored = stored_in(folder / "weights.safetensors")["table"]

    def make(count: int, dtype: str, tied: bool = False) -> Path:
        if (count, tied) not in structures:
            structures[count, tied] = folder / f"{count}-{tied}.tflite"
            graph = GraphSpec(
                name="run",
                role="draft",
                part="drafter",
                width=1,
                inputs=(spec("tokens", "int32", 1, count), spec("x", "float32", 1, 64)),
                outputs=(spec("out", "float32", 40),),
            )
            litert.lower([Step(graph, Head(tied))], structures[count, tied])
        weight = Quantized("w", stored, "head", Rule(weights="*", dtype=dtype), Cache(folder / "cache", 10**9))
        fill(structures[count, tied].read_bytes(), {"weight_0": weight}, folder / "filled.tflite")
        return folder / "filled.tflite"

    return make


def operators(path: Path) -> list[str]:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    return [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators]


def scattered(path: Path, tokens: np.ndarray, x: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path)).get_signature_runner("run")(tokens=tokens[None], x=x)["out"]


@pytest.mark.parametrize(
    ("count", "dtype", "looked_up"), [(20, "int8", 0), (20, "int4", 1), (20, "float32", 1), (15, "int8", 1)]
)
def test_many_rows_of_int8_are_gathered_and_come_out_the_same(filled_head, count, dtype, looked_up):
    path = filled_head(count, dtype)
    found = operators(path)
    assert found.count("EMBEDDING_LOOKUP") == looked_up
    assert found.count("GATHER") == 2 * (1 - looked_up)
    assert "STABLEHLO_SCATTER" not in found
    random = np.random.default_rng(1)
    tokens, x = random.permutation(40)[:count].astype(np.int32), random.standard_normal((1, 64)).astype(np.float32)
    torch.manual_seed(0)
    rows = round_trip(torch.randn(40, 64).numpy(), Rule(weights="*", dtype=dtype))[tokens]
    expected = np.zeros(40, np.float32)
    expected[tokens] = (x @ rows.T)[0]
    np.testing.assert_allclose(scattered(path, tokens, x), expected, atol=1e-5)


def test_a_table_that_is_multiplied_with_as_well_is_left_alone(filled_head):
    found = operators(filled_head(20, "int8", tied=True))
    assert "EMBEDDING_LOOKUP" in found
    assert "GATHER" not in found
