"""The large matrix products of the inference graph, in float32 or in int8.

What goes into them is a `Factor`: a float tensor itself, or its quantised form. Quantisation is static: the scale of each factor
is fixed when the graph is built (1/127 for an LSTM's output, which lies in (-1, 1); else from the largest value seen) and its
zero point is 128, or 0 of what is rectified; weights have a scale for each column. So a row's result does not depend on its
neighbours, as it would with scales taken from the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import TensorProto

from training.nodes import Array, Nodes, Value

ZERO_POINT = 128
MAX_WEIGHT = 63  # and not 127: without VNNI a processor adds pairs of products in 16 bits, and would saturate
CONTRIB = "com.microsoft"  # the domain of onnxruntime's own operators


@dataclass(frozen=True)
class Factor:
    """A left factor of a product: a tensor (B, width); if it is quantised, what one step is worth and which one is zero."""

    value: Value
    width: int
    scale: float = 1.0
    zero_point: int = ZERO_POINT


class Products(Protocol):
    """How the large products are computed."""

    state_type: int  # of an LSTM's output as the Scan carries it
    vector_type: int  # of the keys of the memory

    def factor(self, n: Nodes, name: str, value: Value, width: int, out: str = "") -> Factor:
        """Return a float tensor as a factor, which is called `out` if a name is given; `name` says which scale is its own."""
        ...

    def rectified(self, name: str, value: Value, width: int) -> Factor:
        """Return what is more than zero of a float tensor as a factor; no other may stand beside it."""
        ...

    def shares(self, value: Value, width: int) -> Factor:
        """Return a tensor of numbers from 0 to 1 as a factor; no other may stand beside it."""
        ...

    def vectors(self, value: Value, longest: float) -> Value:
        """Return vectors, none longer than so much, as factors of `scalar_products`."""
        ...

    def scalar_products(self, queries: Value, longest: float, keys: Value) -> Value:
        """Return the products of queries (..., 1, N), none longer than so much, with keys (..., N, S) of length 1."""
        ...

    def given(self, value: Value, width: int) -> Factor:
        """Return an LSTM's output, as the Scan carries it, as a factor."""
        ...

    def restored(self, n: Nodes, value: Value, out: str) -> None:
        """Write the float tensor of an LSTM's output as the Scan carries it."""
        ...

    def dense(self, factors: Sequence[Factor], weight: Array, bias: Array) -> Value:
        """Return the product of factors side by side with a weight (sum of widths, N), and a bias (N,) added."""
        ...


class FloatProducts:
    """float32: what PyTorch computes, but for the order of summation."""

    state_type = vector_type = TensorProto.FLOAT

    def __init__(self, n: Nodes) -> None:
        self.n = n

    def factor(self, n: Nodes, name: str, value: Value, width: int, out: str = "") -> Factor:
        """Return the tensor as it is."""
        return Factor(n.op("Identity", value, name=out) if out else value, width)

    def rectified(self, name: str, value: Value, width: int) -> Factor:
        """Return the tensor rectified."""
        return Factor(self.n.op("Relu", value), width)

    def shares(self, value: Value, width: int) -> Factor:
        """Return the tensor as it is."""
        return Factor(value, width)

    def vectors(self, value: Value, longest: float) -> Value:
        """Return the vectors as they are."""
        return value

    def scalar_products(self, queries: Value, longest: float, keys: Value) -> Value:
        """Return the products."""
        return self.n.op("MatMul", queries, keys)

    def given(self, value: Value, width: int) -> Factor:
        """Return the tensor as it is."""
        return Factor(value, width)

    def restored(self, n: Nodes, value: Value, out: str) -> None:
        """Write the tensor as it is."""
        n.op("Identity", value, name=out)

    def dense(self, factors: Sequence[Factor], weight: Array, bias: Array) -> Value:
        """Return the product."""
        return self.n.gemm(_side_by_side(self.n, factors), np.ascontiguousarray(weight), bias)


class Int8Products:
    """uint8 times int8, summed in int32.

    Parameters
    ----------
    n : Nodes
        Of the step.
    ranges : mapping of str to float
        The largest value of each factor that is no LSTM's output, by its name.
    """

    state_type = vector_type = TensorProto.UINT8

    def __init__(self, n: Nodes, ranges: Mapping[str, float]) -> None:
        self.n, self.ranges = n, ranges

    def factor(self, n: Nodes, name: str, value: Value, width: int, out: str = "") -> Factor:
        """Return the tensor in steps of a 127th of its largest value; what is larger is cut off."""
        scale = self.ranges.get(name, 1.0) / 127
        return Factor(n.op("QuantizeLinear", value, *_scale(n, scale), name=out), width, scale)

    def rectified(self, name: str, value: Value, width: int) -> Factor:
        """Return the tensor in steps of a 255th of its largest value: quantised to what has no sign, it is rectified."""
        scale = self.ranges[name] / 255
        return Factor(self.n.op("QuantizeLinear", value, *_scale(self.n, scale, 0)), width, scale, 0)

    def shares(self, value: Value, width: int) -> Factor:
        """Return the tensor in steps of 1/255."""
        return Factor(self.n.op("QuantizeLinear", value, *_scale(self.n, 1 / 255, 0)), width, 1 / 255, 0)

    def vectors(self, value: Value, longest: float) -> Value:
        """Return the vectors in steps of a 127th of their length."""
        return self.n.op("QuantizeLinear", value, *_scale(self.n, longest / 127))

    def scalar_products(self, queries: Value, longest: float, keys: Value) -> Value:
        """Return the products, summed in int32."""
        (query_scale, zero), (key_scale, _) = _scale(self.n, longest / 127), _scale(self.n, 1 / 127)
        return self.n.op("MatMulIntegerToFloat", queries, keys, query_scale, key_scale, zero, zero, domain=CONTRIB)

    def given(self, value: Value, width: int) -> Factor:
        """Return the quantised tensor with its scale."""
        return Factor(value, width, 1 / 127)

    def restored(self, n: Nodes, value: Value, out: str) -> None:
        """Write what the steps are worth; quantised again, it is the same steps."""
        n.op("DequantizeLinear", value, *_scale(n, 1 / 127), name=out)

    def dense(self, factors: Sequence[Factor], weight: Array, bias: Array) -> Value:
        """Return the product; the scales of the factors are folded into the weights."""
        worth = np.repeat([factor.scale for factor in factors], [factor.width for factor in factors])
        rows = worth[:, None] * weight.astype(np.float64)
        scale = np.maximum(np.abs(rows).max(axis=0), 1e-30) / MAX_WEIGHT
        n = self.n
        return n.op(
            "MatMulIntegerToFloat",
            _side_by_side(n, factors),
            n.constant(np.ascontiguousarray(np.round(rows / scale).astype(np.int8))),
            n.constant(np.array(1, np.float32)),
            n.constant(scale.astype(np.float32)),
            n.constant(np.array(factors[0].zero_point, np.uint8)),
            "",
            n.constant(bias.astype(np.float32)),
            domain=CONTRIB,
        )


def _side_by_side(n: Nodes, factors: Sequence[Factor]) -> Value:
    return factors[0].value if len(factors) == 1 else n.op("Concat", *[factor.value for factor in factors], axis=1)


def _scale(n: Nodes, scale: float, zero_point: int = ZERO_POINT) -> tuple[Value, Value]:
    return n.constant(np.array(scale, np.float32)), n.constant(np.array(zero_point, np.uint8))
