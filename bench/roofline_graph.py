"""What one step of an exported model consists of: its matrix products, with their real shapes, and how many other nodes.

Read from the graph as onnxruntime optimises it, and from one profiled run, which knows the shapes. Of a product the left factor
is what a row brings along; the right one is what has to be read for it: weights, or the keys of the row's memory.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Kinds of products, and which of their inputs is the right factor. Those of int8 that an exporter may write stand here too.
RIGHT = {
    "MatMul": 1,
    "FusedMatMul": 1,
    "Gemm": 1,
    "FusedGemm": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
}
_TYPES = {"float": np.float32, "uint8": np.uint8, "int8": np.int8}
_KERNEL = "_kernel_time"
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Product:
    """One matrix product of a step.

    Attributes
    ----------
    multiply_adds : int
        Of all rows.
    right : str
        Name of the right factor.
    right_bytes : int
    int8 : bool
    constant : bool
        Whether the right factor is a weight; else each row brings its own.
    """

    multiply_adds: int
    right: str
    right_bytes: int
    int8: bool
    constant: bool


@dataclass(frozen=True)
class Step:
    """One step of a model for so many rows.

    Attributes
    ----------
    products : list of Product
    nodes : int
        All nodes, products among them.
    alone : onnx.ModelProto
        A graph of the products and nothing else, as many times one after the other as `steps` is long.
    feeds : dict of str to array
        What it takes.
    """

    products: list[Product]
    nodes: int
    alone: onnx.ModelProto
    feeds: dict[str, NDArray[Any]]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, each counted once."""
        return sum({product.right: product.right_bytes for product in self.products if product.constant}.values())

    @property
    def key_bytes(self) -> int:
        """Bytes of the right factors that the rows bring along."""
        return sum(product.right_bytes for product in self.products if not product.constant)

    def multiply_adds(self, int8: bool) -> int:
        """Return the multiply-adds of all products of a kind."""
        return sum(product.multiply_adds for product in self.products if product.int8 == int8)


def read_step(path: Path, feeds: Feeds, steps: int) -> Step:
    """Read what a step consists of.

    Parameters
    ----------
    path : Path
        The .onnx file.
    feeds : mapping of str to array
        The inputs of one run of `steps` steps; their rows are the rows of the result.
    steps : int
    """
    model, shapes = _optimise(path, feeds)
    body = next(a.g for node in model.graph.node if node.op_type == "Scan" for a in node.attribute if a.name == "body")
    constants = {tensor.name: tensor for tensor in (*model.graph.initializer, *body.initializer)}
    nodes = [node for node in body.node if node.op_type in RIGHT]
    products, given = [], {}
    for node in nodes:
        inputs, outputs = shapes[node.name]
        name = node.input[RIGHT[node.op_type]]
        constant = name in constants
        right = numpy_helper.to_array(constants[name]) if constant else np.empty(inputs[1].shape, inputs[1].dtype)
        count = int(np.prod(outputs[0].shape)) * inputs[0].shape[-1]
        products.append(Product(count, name, right.nbytes, right.dtype.itemsize == 1, constant))
        # The profile leaves out weights that were laid out anew. What is no constant is the left factor, a right one that the
        # rows bring along, and what a Gemm adds, which comes last.
        for i, value in enumerate(node.input):
            if value and value not in constants:
                given[value] = inputs[i if i < 2 else -1]
    return Step(products, len(body.node), _products_alone(model, nodes, constants, given), _draw(given, steps))


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: Any


def _optimise(path: Path, feeds: Feeds) -> tuple[onnx.ModelProto, dict[str, tuple[list[_Tensor], list[_Tensor]]]]:
    """Return the graph as onnxruntime optimises it, and of each node the inputs and outputs that a run of it saw."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
        model = onnx.load(options.optimized_model_filepath)
    kernels = {event["name"].removesuffix(_KERNEL): event["args"] for event in events if event["name"].endswith(_KERNEL)}
    seen = {}
    for name, said in kernels.items():
        if said["op_name"] in RIGHT:
            seen[name] = (_tensors(said["input_type_shape"]), _tensors(said["output_type_shape"]))
    return model, seen


def _tensors(said: list[dict[str, list[int]]]) -> list[_Tensor]:
    return [_Tensor(tuple(shape), _TYPES[kind]) for one in said for kind, shape in one.items()]


def _products_alone(
    model: onnx.ModelProto, nodes: list[Any], constants: Mapping[str, Any], given: Mapping[str, _Tensor]
) -> onnx.ModelProto:
    """Return a Scan whose body is the products; run it without optimisation, which might drop what nobody takes."""
    kept = [constants[name] for name in dict.fromkeys(value for node in nodes for value in node.input) if name in constants]
    products = []
    for i, node in enumerate(nodes):  # under other names: what one product makes may be what another takes, and is given here
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.output[:] = [f"product_{i}"]
        products.append(product)
    one = helper.make_tensor_value_info("one", TensorProto.FLOAT, [1])
    counted = helper.make_tensor_value_info("counted", TensorProto.FLOAT, [1])
    body = helper.make_graph([*products, helper.make_node("Identity", ["one"], ["counted"])], "products", [one], [counted])
    scan = helper.make_node("Scan", ["steps"], ["ended"], body=body, num_scan_inputs=1)
    inputs = [helper.make_tensor_value_info("steps", TensorProto.FLOAT, ["K", 1])]
    for name, tensor in given.items():
        inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape))
    outputs = [helper.make_tensor_value_info("ended", TensorProto.FLOAT, ["K", 1])]
    graph = helper.make_graph([scan], "alone", inputs, outputs, kept)
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _draw(given: Mapping[str, _Tensor], steps: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {"steps": np.zeros((steps, 1), np.float32)}
    for name, tensor in given.items():
        if tensor.dtype == np.float32:
            feeds[name] = rng.standard_normal(tensor.shape, np.float32)
        else:
            feeds[name] = rng.integers(0, 127, tensor.shape).astype(tensor.dtype)
    return feeds


def session_options(optimise: bool = True) -> Any:
    """Return the options of a session on one thread, as `OnnxModel` has them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def open_session(model: onnx.ModelProto, optimise: bool = True) -> Any:
    """Return a session on one thread with a model made in memory."""
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options(optimise), providers=["CPUExecutionProvider"])
