"""The exported graph for a device that captures its work as one graph: no loop, fixed shapes, the whole state from run to run.

A CUDA graph can hold neither a Scan nor a shape that changes. So the steps are written out one after the other, rows and steps
are numbers, and what the host does between two runs on the CPU is done inside: rows that begin a piece are cleared, and what is
new in the memory is put before it. Needs the onnx package, which the service needs for nothing else.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MEMORY = ("keys", "memory")  # states of which a run gives the new part alone, (B, ..., K)
FRESH = "fresh"  # bool (B, 1): rows that begin a piece in this run
POSITIONS = "positions"  # int32 (B, 1): where in its bar tick 0 of a fresh row lies


def unroll(model: onnx.ModelProto, rows: int, steps: int) -> onnx.ModelProto:
    """Return the graph for so many rows and steps, without a Scan.

    Parameters
    ----------
    model : onnx.ModelProto
        As `training export` wrote it, float32.
    rows, steps : int
        B and K, of which the result knows no others.

    Returns
    -------
    onnx.ModelProto
        Two inputs more, FRESH and POSITIONS; `next_<name>` for every state.
    """
    graph = model.graph
    scan = next(node for node in graph.node if node.op_type == "Scan")
    at = list(graph.node).index(scan)
    clear = _clear_fresh(graph)
    written, results = _written_out(scan, steps)
    moved = [_put_before(name, graph) for name in _MEMORY]
    nodes = [*clear.nodes, *map(clear.renamed, graph.node[:at]), *map(clear.renamed, written), *map(clear.renamed, results)]
    nodes += map(clear.renamed, [*graph.node[at + 1 :], *(node for nodes, _ in moved for node in nodes)])
    shapes = {"B": rows, "K": steps}
    inputs = [_fixed(value, shapes) for value in graph.input]
    inputs += [helper.make_tensor_value_info(FRESH, TensorProto.BOOL, [rows, 1])]
    inputs += [helper.make_tensor_value_info(POSITIONS, TensorProto.INT32, [rows, 1])]
    names = {f"new_{name}" for name in _MEMORY}
    outputs = [_fixed(value, shapes) for value in graph.output if value.name not in names]
    outputs += [_next(value, rows) for value in graph.input if value.name in {f"state_{name}" for name in _MEMORY}]
    constants = [*graph.initializer, *clear.constants, *(slots for _, slots in moved)]
    constants += [_number("zero", 0), _number("last_axis", -1)]
    unrolled = helper.make_model(
        helper.make_graph(nodes, graph.name, inputs, outputs, constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    helper.set_model_props(unrolled, {entry.key: entry.value for entry in model.metadata_props})
    return unrolled


class _Clear:
    """Nodes that clear the states of fresh rows, and new names for these."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names: dict[str, str] = {}

    def renamed(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Return a node that reads the cleared states."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            copy.input[i] = self.names.get(name, name)
        return copy


def _clear_fresh(graph: onnx.GraphProto) -> _Clear:
    clear = _Clear()
    for value in graph.input:
        if not value.name.startswith("state_"):
            continue
        kind, axes = value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim)
        fresh, begun = f"{value.name}_fresh", f"{value.name}_begun"
        clear.constants.append(helper.make_tensor(f"{fresh}_shape", TensorProto.INT64, [axes], [-1] + [1] * (axes - 1)))
        clear.nodes.append(helper.make_node("Reshape", [FRESH, f"{fresh}_shape"], [fresh]))
        start = POSITIONS
        if value.name != "state_position":
            start = f"{value.name}_zero"
            clear.constants.append(helper.make_tensor(start, kind, [], [0]))
        clear.nodes.append(helper.make_node("Where", [fresh, start, value.name], [begun]))
        clear.names[value.name] = begun
    return clear


def _written_out(scan: onnx.NodeProto, steps: int) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Return the steps of a Scan one after the other, and the nodes that give its outputs."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in scan.attribute}
    body, scanned = attributes["body"], attributes["num_scan_inputs"]
    states = len(scan.input) - scanned
    nodes: list[onnx.NodeProto] = []
    for source in scan.input[states:]:
        parts = [f"{source}_{k}" for k in range(steps)]
        nodes.append(helper.make_node("Split", [source], [f"{part}_of_one" for part in parts], axis=0, num_outputs=steps))
        nodes += [helper.make_node("Squeeze", [f"{part}_of_one", "zero"], [part]) for part in parts]
    carried = list(scan.input[:states])
    collected: list[list[str]] = [[] for _ in body.output[states:]]
    inputs = [value.name for value in body.input]
    for k in range(steps):
        names = dict(zip(inputs, [*carried, *(f"{source}_{k}" for source in scan.input[states:])], strict=True))
        for node in body.node:
            names |= {output: f"step_{k}_{output}" for output in node.output}
        for node in body.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"step_{k}_{node.name}"
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names[name] for name in node.output]
            nodes.append(copy)
        outputs = [names[value.name] for value in body.output]
        carried = outputs[:states]
        for parts, name in zip(collected, outputs[states:], strict=True):
            parts.append(name)
    results = [helper.make_node("Identity", [last], [name]) for last, name in zip(carried, scan.output[:states], strict=True)]
    for parts, name in zip(collected, scan.output[states:], strict=True):
        results += [helper.make_node("Unsqueeze", [part, "zero"], [f"{part}_of_one"]) for part in parts]
        results.append(helper.make_node("Concat", [f"{part}_of_one" for part in parts], [name], axis=0))
    return nodes, results


def _put_before(name: str, graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], onnx.TensorProto]:
    """Return the nodes that put what is new before a memory and keep its first slots, and how many these are."""
    shape = next(value for value in graph.input if value.name == f"state_{name}").type.tensor_type.shape.dim
    both, slots = f"{name}_new_and_old", f"{name}_slots"
    nodes = [
        helper.make_node("Concat", [f"new_{name}", f"state_{name}"], [both], axis=len(shape) - 1),
        helper.make_node("Slice", [both, "zero", slots, "last_axis"], [f"next_{name}"]),
    ]
    return nodes, _number(slots, shape[-1].dim_value)


def _number(name: str, value: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value], np.int64), name)


def _fixed(value: onnx.ValueInfoProto, shapes: dict[str, int]) -> onnx.ValueInfoProto:
    kind, shape = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
    return helper.make_tensor_value_info(value.name, kind, [d.dim_value or shapes[d.dim_param] for d in shape])


def _next(value: onnx.ValueInfoProto, rows: int) -> onnx.ValueInfoProto:
    fixed = _fixed(value, {"B": rows})
    fixed.name = value.name.replace("state_", "next_", 1)
    return fixed
