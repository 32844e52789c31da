"""Operators of a converted graph that LiteRT runs slowly, written as others that give the same numbers.

Measured in ai-edge-litert 2.3.0, one thread, 256 rows of 256 (4,096 of 256): looking rows up in an int8 table takes
125 us (1.9 ns a weight), gathering, casting and scaling them 15 us; STABLEHLO_SCATTER takes 30 us (470), SCATTER_ND a
tenth. Both are in a drafter's centroid head at each draft, and a mixture's experts are looked up in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

FEWEST = 16  # rows looked up at a time, below which there is nothing to gain
LARGEST = 1 << 31  # weights of a table: GATHER counts in 32 bits

Operator = schema.BuiltinOperator
VERSIONS = {Operator.GATHER: 2, Operator.CAST: 1, Operator.MUL: 1, Operator.SCATTER_ND: 1}


class Rewriter:
    """Changes operators of one model in place. `add(bytes)` makes a buffer and gives its number."""

    def __init__(self, model: Any, add: Callable[[bytes], int]) -> None:
        self._model, self._add = model, add
        self._codes = {code.builtinCode: index for index, code in enumerate(model.operatorCodes)}
        self._scales: dict[int, int] = {}  # by a table's buffer, that of its scales

    def int8_lookups(self, scales: dict[int, np.ndarray]) -> None:
        """Of tables that are looked up and nothing else. `scales` are by the number of a table's buffer, [rows]."""
        for graph in self._model.subgraphs:
            tables = {index: t for index, t in enumerate(graph.tensors) if t.buffer in scales}
            slow = {int(op.inputs[1]) for op in graph.operators if self._is_slow(graph, op, tables)}
            slow -= {int(i) for op in graph.operators if not self._is_slow(graph, op, tables) for i in op.inputs}
            factors = {}
            for table in slow:
                factors[table] = self._factors(graph, tables[table], scales[tables[table].buffer])
                tables[table].quantization = None
            graph.operators = [new for op in graph.operators for new in self._gathered(graph, op, factors)]

    def scatters(self, is_zero: Callable[[int], bool]) -> None:
        """Of numbers to distinct places onto zeros, in one dimension: `is_zero` is asked by number of a buffer."""
        for graph in self._model.subgraphs:
            for op in graph.operators:
                if self._kind(op) != Operator.STABLEHLO_SCATTER:
                    continue
                onto, indices, updates = (int(i) for i in op.inputs)
                shape = np.array(graph.tensors[onto].shape, np.int32)
                if len(shape) != 1 or not is_zero(graph.tensors[onto].buffer):
                    continue
                sizes = _tensor("scattered_shape", schema.TensorType.INT32, [1], self._add(shape.tobytes()))
                op.inputs = np.array([indices, updates, _put(graph, sizes)], np.int32)
                op.opcodeIndex = self._code(Operator.SCATTER_ND)
                op.builtinOptions, op.builtinOptionsType = (
                    schema.ScatterNdOptionsT(),
                    schema.BuiltinOptions.ScatterNdOptions,
                )
                op.builtinOptions2, op.builtinOptions2Type = None, schema.BuiltinOptions2.NONE

    def _kind(self, op: Any) -> int:
        return int(self._model.operatorCodes[op.opcodeIndex].builtinCode)

    def _is_slow(self, graph: Any, op: Any, tables: dict[int, Any]) -> bool:
        if self._kind(op) != Operator.EMBEDDING_LOOKUP or int(op.inputs[1]) not in tables:
            return False
        table, rows = tables[int(op.inputs[1])], int(graph.tensors[int(op.outputs[0])].shape[0])
        weights = int(np.prod(table.shape, dtype=np.int64))
        return table.type == schema.TensorType.INT8 and rows >= FEWEST and weights < LARGEST  # type: ignore[no-any-return]

    def _factors(self, graph: Any, table: Any, scales: np.ndarray) -> int:
        """The tensor [rows, 1] of a table's scales."""
        if table.buffer not in self._scales:
            self._scales[table.buffer] = self._add(scales.astype(np.float32).tobytes())
        name = table.name.decode() + "_scales"
        return _put(graph, _tensor(name, schema.TensorType.FLOAT32, [len(scales), 1], self._scales[table.buffer]))

    def _gathered(self, graph: Any, op: Any, factors: dict[int, int]) -> Iterator[Any]:
        """The operator, or what stands for a lookup in one of the tables that `factors` are of."""
        if self._kind(op) != Operator.EMBEDDING_LOOKUP or int(op.inputs[1]) not in factors:
            yield op
            return
        ids, table, out = int(op.inputs[0]), int(op.inputs[1]), int(op.outputs[0])
        name, shape = graph.tensors[out].name.decode(), [int(n) for n in graph.tensors[out].shape]
        levels = _put(graph, _tensor(f"{name}/levels", schema.TensorType.INT8, shape))
        floats = _put(graph, _tensor(f"{name}/floats", schema.TensorType.FLOAT32, shape))
        steps = _put(graph, _tensor(f"{name}/steps", schema.TensorType.FLOAT32, [shape[0], 1]))
        rows, cast, times = schema.GatherOptionsT(), schema.CastOptionsT(), schema.MulOptionsT()
        cast.inDataType, cast.outDataType = schema.TensorType.INT8, schema.TensorType.FLOAT32
        kinds = schema.BuiltinOptions
        yield self._operator(Operator.GATHER, [table, ids], levels, rows, kinds.GatherOptions)
        yield self._operator(Operator.CAST, [levels], floats, cast, kinds.CastOptions)
        yield self._operator(Operator.GATHER, [factors[table], ids], steps, rows, kinds.GatherOptions)
        yield self._operator(Operator.MUL, [floats, steps], out, times, kinds.MulOptions)

    def _operator(self, kind: int, inputs: list[int], output: int, options: Any, options_type: int) -> Any:
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = (
            self._code(kind),
            np.array(inputs, np.int32),
            np.array([output], np.int32),
        )
        op.builtinOptions, op.builtinOptionsType = options, options_type
        return op

    def _code(self, kind: int) -> int:
        if kind not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), VERSIONS[kind]
            self._model.operatorCodes.append(code)
            self._codes[kind] = len(self._model.operatorCodes) - 1
        return self._codes[kind]


def _tensor(name: str, kind: int, shape: list[int], buffer: int = 0) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = name.encode(), kind, buffer
    tensor.shape, tensor.hasRank = np.array(shape, np.int32), True
    return tensor


def _put(graph: Any, tensor: Any) -> int:
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
