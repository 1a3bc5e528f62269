"""Nodes and constants of an ONNX graph, written one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

Value = str  # the name of a tensor in the graph
Array = NDArray[Any]


@dataclass
class Nodes:
    """A growing list of nodes and constants; `op` returns the name of what a node makes."""

    prefix: str
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    _shared: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    def op(self, kind: str, *inputs: Value, name: str = "", **attributes: Any) -> Value:
        """Add a node with one output and return its name: `name`, or one made up."""
        output = name or f"{self.prefix}_{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{self.prefix}_node_{len(self.nodes)}_{kind}", **attributes)
        )
        return output

    def split(self, value: Value, sizes: Sequence[int], axis: int = 1) -> list[Value]:
        """Return the parts of a tensor along an axis, by their sizes; of one part the tensor itself."""
        if len(sizes) == 1:
            return [value]
        outputs = [f"{self.prefix}_split_{len(self.nodes)}_{i}" for i in range(len(sizes))]
        name = f"{self.prefix}_node_{len(self.nodes)}_Split"
        self.nodes.append(helper.make_node("Split", [value, self.axes(*sizes)], outputs, name=name, axis=axis))
        return outputs

    def gemm(self, x: Value, weight: Array, addend: Array | Value) -> Value:
        """Return x @ weight + addend, (rows, columns); the addend is a constant (columns,) or a tensor (rows, columns)."""
        return self.op("Gemm", x, self.constant(weight), addend if isinstance(addend, str) else self.constant(addend))

    def row(self, table: Array, index: Value) -> Value:
        """Return rows of a table by an index, (rows,)."""
        return self.op("Gather", self.constant(table), index, axis=0)

    def row_of_each(self, tables: Sequence[Array], indices: Value) -> Value:
        """Return one row from each of the tables, all as wide, by indices (rows, tables): (rows, tables, width)."""
        starts = np.cumsum([0] + [len(table) for table in tables[:-1]]).astype(np.int32)
        return self.row(np.concatenate(tables), self.op("Add", indices, self.constant(starts[None])))

    def summed_rows(self, tables: Sequence[Array], indices: Value) -> Value:
        """Return the sum of one row from each of the tables, (rows, width)."""
        return self.op("ReduceSum", self.row_of_each(tables, indices), self.axes(1), keepdims=0)

    def constant(self, array: Array) -> Value:
        """Return the name of a constant; equal ones share it."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = f"constant_{len(self.constants)}"
            self.constants[self._shared[key]] = array
        return self._shared[key]

    def ints(self, *values: int) -> Value:
        """Return whole numbers as a tensor, int32 like the tokens."""
        return self.constant(np.array(values, np.int32))

    def axes(self, *values: int) -> Value:
        """Return axes, bounds or sizes, which ONNX wants as int64."""
        return self.constant(np.array(values, np.int64))

    def slice(self, value: Value, start: int, stop: int, axis: int = 1, name: str = "") -> Value:
        """Return a part of a tensor along an axis; the axis stays."""
        return self.op("Slice", value, self.axes(start), self.axes(stop), self.axes(axis), name=name)

    def ints_scalar(self, value: int) -> Value:
        """Return a whole number without axes, int32."""
        return self.constant(np.array(value, np.int32))

    def top(self, value: Value, count: int) -> tuple[Value, Value]:
        """Return the largest values along the last axis, the largest first, and where they stand (int64)."""
        outputs = [f"{self.prefix}_top_{len(self.nodes)}_{part}" for part in ("values", "indices")]
        name = f"{self.prefix}_node_{len(self.nodes)}_TopK"
        self.nodes.append(helper.make_node("TopK", [value, self.axes(count)], outputs, name=name, axis=-1, largest=1, sorted=1))
        return outputs[0], outputs[1]

    def flag(self, condition: Value) -> Value:
        """Return a bool tensor as float."""
        return self.op("Cast", condition, to=TensorProto.FLOAT)


def transposed(weight: Array) -> Array:
    """Return the factor on the right of a product with the rows of a batch on the left."""
    return np.ascontiguousarray(weight.T)
