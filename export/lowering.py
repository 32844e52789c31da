"""ExecuTorch's lowering to XNNPACK, without the work that changes nothing; the library spends half of its time on that.

executorch 1.5.1 decomposes a graph up to three times, once for each way to spare an operator. A dozen of its passes
over each delegated part find nothing to do there, and yet trace the part anew. And each trace evaluates each operator,
copies what its node was ever made from, and compiles a module that nobody calls. None of that is in the program that
comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.graph_module import contains_any_call_fn_target_op
from executorch.exir.pass_base import ExportPass, _ExportPassBase
from executorch.exir.program._program import _default_decomposition_table
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.traceback import NodeSource
from torch.utils._pytree import tree_flatten, tree_leaves

LITERALS = (int, float, bool, str, torch.dtype)


def delegate(programs: dict[str, ExportedProgram]) -> Any:
    """The edge programs by method, what XNNPACK takes of them delegated to it."""
    return to_edge_transform_and_lower(
        {name: decompose(program) for name, program in programs.items()},
        partitioner={name: [Partitioner()] for name in programs},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )


class Partitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's, that says so where it takes every operator it wants left whole: they are then spared more simply."""

    def ops_to_not_decompose(self, program: ExportedProgram) -> tuple[list[Any], Callable[[Node], bool] | None]:
        whole, takes = super().ops_to_not_decompose(program)
        nodes = [node for node in program.graph.nodes if node.op == "call_function" and node.target in whole]
        return whole, None if all(map(takes, nodes)) else takes


class Decomposed(ExportedProgram):
    """What `decompose` made: functional, and without operators that its table has something for."""

    def run_decompositions(self, table: Any = None, *arguments: Any, **named: Any) -> ExportedProgram:
        if table is not None and not contains_any_call_fn_target_op(self.graph_module, table.keys() - _table().keys()):
            return self
        return super().run_decompositions(table, *arguments, **named)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Into ExecuTorch's core operators and those that XNNPACK wants left whole."""
    made = program.run_decompositions(_table())
    made.__class__ = Decomposed
    return made


def _table() -> Any:
    table = _default_decomposition_table()
    for operator in XnnpackPartitioner().ops_to_not_decompose(None)[0]:
        table.pop(operator, None)
    return table


@contextmanager
def without_idle_work() -> Iterator[None]:
    """Passes trace a graph anew only where they have changed it, and evaluate only operators that they have changed.

    What a node was made from is shared, not copied; a module is compiled when it is called.
    """
    trace, emit, compiled = _ExportPassBase.call, _ExportPassBase._fx, GraphModule.recompile
    traced, known = WeakKeyDictionary[GraphModule, list[Any]](), Known()

    def call(self: ExportPass, module: GraphModule) -> PassResult:
        if _only_traces(type(self)) and module in traced and _same_nodes(traced[module], _nodes(module)):
            return PassResult(module, False)
        result = trace(self, module)
        traced[result.graph_module] = _nodes(result.graph_module)
        return result

    def fx(self: ExportPass, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        self.interpreter.call_function = partial(known.evaluate, meta.data.get("val"))
        return emit(self, kind, target, args, kwargs, meta)

    def recompile(self: GraphModule) -> None:
        def forward(module: GraphModule, *args: Any, **kwargs: Any) -> Any:
            compiled(module)
            return type(module).forward(module, *args, **kwargs)

        type(self).forward = forward  # each module is of a class of its own
        self._code = ""  # which is printed
        if isinstance(self.graph._codegen, _PyTreeCodeGen):
            self._in_spec, self._out_spec = self.graph._codegen.pytree_info[1:]

    _ExportPassBase.call, _ExportPassBase._fx = call, fx
    GraphModule.recompile = recompile  # type: ignore[method-assign, assignment]
    NodeSource.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]  # no one changes it once it is made
    try:
        yield
    finally:
        _ExportPassBase.call, _ExportPassBase._fx = trace, emit
        GraphModule.recompile = compiled  # type: ignore[method-assign]
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]


class Known:
    """Values by identity, each with the operator and the very arguments that it was evaluated from.

    A value is fake tensors and symbolic sizes; all are held, so that no identity passes to another.
    """

    def __init__(self) -> None:
        self._origins: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def evaluate(self, before: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`target(*args, **kwargs)`, or `before`, the value that the node had, if it is that."""
        arguments = tree_flatten((args, kwargs))
        origin = self._origins.get(_identity(before))
        if origin is not None and origin[1] is target and _same_arguments(origin[2], arguments):
            return before
        value = target(*args, **kwargs)
        if identity := _identity(value):
            self._origins[identity] = value, target, arguments
        return value


def _identity(value: Any) -> tuple[int, ...]:
    """Empty for what is not known by identity."""
    leaves = tree_leaves(value)
    return tuple(map(id, leaves)) if all(isinstance(leaf, FakeTensor | torch.SymInt) for leaf in leaves) else ()


def _same_arguments(one: tuple[list[Any], Any], other: tuple[list[Any], Any]) -> bool:
    return one[1] == other[1] and all(
        a is b or (type(a) is type(b) and isinstance(a, LITERALS) and a == b)
        for a, b in zip(one[0], other[0], strict=True)
    )


def _only_traces(kind: type) -> bool:
    """Whether a pass has but a `call` of its own: what ExportPass then traces is the graph as it is."""
    own = {name for base in kind.__mro__[: kind.__mro__.index(ExportPass)] for name in vars(base)}
    return not any(hasattr(ExportPass, name) and not name.startswith("__") for name in own - {"call", "_abc_impl"})


def _nodes(module: GraphModule) -> list[Any]:
    """All that a trace goes by: operators, what is known of their values, arguments."""
    return [(node.target, node.meta.get("val"), node.format_node()) for node in module.graph.nodes]


def _same_nodes(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(one, other, strict=True)
    )
