"""ExecuTorch's lowering leaves out what changes nothing, and only that."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.dialects._ops import ops
from executorch.exir.pass_base import ExportPass, _ExportPassBase
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ExportedProgram, exported_program
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.traceback import NodeSource

from pocketdraft.export import lowering
from pocketdraft.export.backends.executorch import undelegated

pytestmark = pytest.mark.slow

CONFIG = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)


class Mixed(nn.Module):
    """Of any number of rows: products that XNNPACK takes and one that it does not, of weights that are looked up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.table = nn.Linear(8, 8), nn.Embedding(16, 8)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        x = torch.softmax(self.linear(x).unsqueeze(0).transpose(1, 2), 1).transpose(1, 2)
        return nn.functional.linear(torch.bmm(x, x.transpose(1, 2)) @ x, self.table(rows))


@pytest.fixture(scope="module")
def traced() -> Any:
    def trace() -> ExportedProgram:
        shapes = ({0: Dim("rows", min=2, max=32)}, {})
        inputs = torch.randn(4, 8), torch.arange(3)
        return torch.export.export(Mixed().eval(), inputs, dynamic_shapes=shapes, strict=False)

    return trace


def test_the_program_is_the_librarys_byte_for_byte(traced):
    plain = to_edge_transform_and_lower({"m": traced()}, partitioner=[XnnpackPartitioner()], compile_config=CONFIG)
    expected = plain.to_executorch().buffer
    with lowering.without_idle_work():
        found = lowering.delegate({"m": traced()}).to_executorch().buffer
    assert found == expected


def test_a_product_that_xnnpack_does_not_take_is_decomposed_still(traced):
    with lowering.without_idle_work():
        outside = undelegated(lowering.delegate({"m": traced()}).exported_program("m"))
    assert outside.get("mm", 0) + outside.get("addmm", 0) == 1
    assert "linear" not in outside


def test_a_graph_is_decomposed_once_and_traced_where_a_pass_changes_it(traced, monkeypatch):
    """A version of the library that goes around what is put aside shows here."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            return inner(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    program = torch.export.export(nn.Softmax(-1), (torch.randn(4, 8),), strict=False)
    count(exported_program, "_decompose_exported_program")
    count(_ExportPassBase, "call_submodule")
    with lowering.without_idle_work():
        lowering.delegate({"m": program})
    assert dict(counts) == {"_decompose_exported_program": 1, "call_submodule": 8}


def test_a_module_is_compiled_when_it_is_called_as_its_graph_is_then():
    x = torch.randn(2, 3, 4)
    with lowering.without_idle_work():
        module = torch.export.export(Turned(), (x,), strict=False).module()
        assert not module.code
        scaled = next(node for node in module.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
        scaled.args = (scaled.args[0], 3.0)
        module.recompile()
        assert torch.equal(module(x), x.transpose(0, 1) * 3.0)
        assert module.code
        left = torch.export.export(Turned(), (x,), strict=False).module()
    assert torch.equal(left(x), x.transpose(0, 1) * 2.0)


class Other(ExportPass):
    """Each operator of the first kind as one of the second, of other arguments."""

    def __init__(self, kind: Any, other: Any, *arguments: Any) -> None:
        super().__init__()
        self.kind, self.other, self.arguments = kind, other, arguments

    def call_operator(self, operator: Any, arguments: Any, named: Any, meta: Any) -> Any:
        if operator is self.kind:
            operator, arguments = self.other, (arguments[0], *self.arguments)
        return super().call_operator(operator, arguments, named, meta)


class Written(ExportPass):
    """The same, but written into the graph."""

    def __init__(self, kind: Any, other: Any, *arguments: Any) -> None:
        super().__init__()
        self.kind, self.other, self.arguments = kind, other, arguments

    def call(self, module: GraphModule) -> PassResult:
        for node in module.graph.nodes:
            if node.target is self.kind:
                node.target, node.args = self.other, (node.args[0], *self.arguments)
        module.recompile()
        return PassResult(super().call(module).graph_module, True)


PERMUTE = ops.edge.aten.permute_copy.default


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1) * 2.0


@pytest.mark.parametrize("kind", [Other, Written])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((PERMUTE, PERMUTE, [2, 1, 0]), (4, 3, 2)),  # the same operator, another argument
        ((PERMUTE, ops.edge.aten.view_copy.default, [4, 6, 1]), (4, 6, 1)),
    ],
)
def test_what_a_pass_changes_is_evaluated_anew_and_all_that_follows(kind, change, expected):
    program = torch.export.export(Turned(), (torch.randn(2, 3, 4),), strict=False)
    module = to_edge_transform_and_lower(program, compile_config=CONFIG).exported_program().graph_module
    with lowering.without_idle_work():
        for _ in range(2):  # then all is known
            module = ExportPass()(module).graph_module
        assert shape_of_output(module) == (3, 2, 4)
        module = ExportPass()(kind(*change)(module).graph_module).graph_module
    assert shape_of_output(module) == expected


def shape_of_output(module: GraphModule) -> tuple[int, ...]:
    (made,) = module.graph.output_node().args[0]
    return tuple(made.meta["val"].shape)


def test_of_equal_operators_none_is_given_anothers_value():
    known, mode = lowering.Known(), FakeTensorMode()
    one, other = (mode.from_tensor(torch.zeros(rows, 3)) for rows in (2, 4))
    first = known.evaluate(None, torch.neg, (one,), {})
    assert known.evaluate(first, torch.neg, (one,), {}) is first
    assert known.evaluate(first, torch.neg, (other,), {}).shape == (4, 3)
    assert known.evaluate(None, torch.neg, (one,), {}) is not first
    whole = mode.from_tensor(torch.zeros(3, dtype=torch.int64))
    more = known.evaluate(None, torch.add, (whole, 1), {})
    assert known.evaluate(more, torch.add, (whole, 1.0), {}).dtype == torch.float32
    assert known.evaluate(more, torch.sub, (whole, 1), {}) is not more


def test_the_library_is_its_own_again_even_after_a_failure():
    before = _ExportPassBase.call, _ExportPassBase._fx, GraphModule.recompile
    with pytest.raises(KeyError), lowering.without_idle_work():
        assert _ExportPassBase.call is not before[0]
        raise KeyError
    assert (_ExportPassBase.call, _ExportPassBase._fx, GraphModule.recompile) == before
    source = NodeSource(None)
    assert copy.deepcopy(source) is not source
