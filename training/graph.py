"""The inference graph: K notes for B rows, sampled inside, built node by node from a trained network's weights.

Built and not traced, because it is another computation than training's: each field is drawn before the next, a state runs along
that keeps the drawn notes playable, and what stays the same through a piece is computed once a run, before the steps. On a
processor a step costs as much by the number of its nodes as by its products, so it is written to need few.

Inputs (K steps, B rows, F fields in `NoteToken` order)
    forced               int32 (K, B, F)   values to take, -1 where one is to be drawn
    uniforms             float (K, B, F)   in [0, 1)
    metre                int32 (K, B, 3)   index of the metre, ticks of a bar, offset: position = (time + offset) mod bar
    inverse_temperature  float (B, F)
    min_p                float (B, F)
    bias_<field>         float (B, V)      added to the logits of the field after the temperature
    conditions           int32 (B, C)      per-piece conditions
    copying              float (B, 1)      factor of the weight of what the memory offers; 1: as the network has learnt it
    left                 int32 (B, 2)      notes of the piece, and the tick of its last barline; -1 where it is not told
    lag_bias             float (B, LAGS)   added to the score of an offer, by the class of its lag
    rules                float (B, 1)      1: keep the notes playable, end at the last barline; 0: the network as it is
    state_<name>         (B, ...)          zeros before the first token, but for `state_position`
Outputs
    tokens               int32 (K, B, F)
    probabilities        float (K, B, F)   of each value taken, after temperature and bias, before min-p
    next_<name>          the state after, but for
    new_keys, new_memory what is to be put before `state_keys` and `state_memory`, (B, ..., K)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.engine.interface import LAGS
from service.music.representation import FIELDS, VOCABULARY, Control
from training.conditions import EXPECTED_PITCH_CLASSES, EXPECTED_TEMPO
from training.data import piece_condition_names
from training.graph_heads import HAND_RULE, PITCH_RULE
from training.graph_memory import BUFFERS, CARRIED, NEVER, close_buffers, memory_state, new_shapes, open_buffers
from training.graph_step import Step
from training.model import PITCH_CLASSES, PROFILE_DECAYS, PROFILE_ROLL, Network
from training.nodes import Nodes, Value
from training.products import CONTRIB, FloatProducts, Int8Products

OPSET = 21
IR_VERSION = 10  # what onnx 1.16 wrote with opset 21, so that onnxruntime from 1.18 on loads it


def build_graph(network: Network, metadata: dict[str, str], ranges: Mapping[str, float] | None = None) -> onnx.ModelProto:
    """Return the inference graph of a network.

    Parameters
    ----------
    network : Network
        On the CPU.
    metadata : dict of str to str
        Written into the file.
    ranges : mapping of str to float, optional
        The largest values of what the large products take (`training.quantize.activation_ranges`): those products are computed
        in int8 then, and in float32 without.

    Returns
    -------
    onnx.ModelProto
        Checked; opset 21; one Scan over the K steps. int8 needs onnxruntime's own operators, on the CPU.
    """
    config = network.config
    weights = {name: tensor.detach().numpy().astype(np.float32) for name, tensor in network.state_dict().items()}
    n = Nodes("step")
    products = FloatProducts(n) if ranges is None else Int8Products(n, ranges)
    step = Step(n, network, weights, products)
    body = step.build()
    outer = Nodes("run", constants=n.constants)
    carried, whole = step.state_shapes(), memory_state(config, products.vector_type)
    _before_the_steps(outer, network, weights, products.vector_type)
    begin = {name: f"begin_{name}" if name in (*_BEGUN, "codes", "match") else f"state_{name}" for name in carried}
    for i in range(config.layers):
        begin[f"h{i}"] = products.factor(outer, f"h{i}", f"state_h{i}", config.hidden, out=f"begin_h{i}").value
    ended = {name: f"next_{name}" for name in carried} | {f"h{i}": f"last_h{i}" for i in range(config.layers)}
    ended |= {name: f"last_{name}" for name in ("codes", "match")}
    scanned = [f"scan_{name}" for name in step.scanned()]
    outer.nodes.append(
        helper.make_node(
            "Scan",
            [*begin.values(), *(f"empty_{name}" for name in BUFFERS), *scanned],
            [*ended.values(), *(f"last_{name}" for name in BUFFERS), "tokens", "probabilities"],
            name="compose",
            body=body,
            num_scan_inputs=len(scanned),
        )
    )
    close_buffers(outer, config)
    for i in range(config.layers):
        products.restored(outer, f"last_h{i}", f"next_h{i}")
    states = {name: spec for name, spec in carried.items() if name not in CARRIED} | whole
    states |= {f"h{i}": (TensorProto.FLOAT, [config.hidden]) for i in range(config.layers)}
    inputs = [_info(name, *spec) for name, spec in _inputs(network).items()]
    inputs += [_info(f"state_{name}", *_rows(spec)) for name, spec in states.items()]
    new = new_shapes(config, products.vector_type)
    outputs = [_info(f"next_{name}", *_rows(spec)) for name, spec in states.items() if f"new_{name}" not in new]
    outputs += [_info(name, *_rows(spec)) for name, spec in new.items()]
    outputs += [
        _info("tokens", TensorProto.INT32, ["K", "B", len(FIELDS)]),
        _info("probabilities", TensorProto.FLOAT, ["K", "B", len(FIELDS)]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in outer.constants.items()]
    graph = helper.make_graph(outer.nodes, "nocturne", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), *([] if ranges is None else [helper.make_opsetid(CONTRIB, 1)])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    model.producer_name = "nocturne"
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


def _inputs(network: Network) -> dict[str, tuple[int, list[Any]]]:
    fields = len(FIELDS)
    inputs: dict[str, tuple[int, list[Any]]] = {
        "forced": (TensorProto.INT32, ["K", "B", fields]),
        "uniforms": (TensorProto.FLOAT, ["K", "B", fields]),
        "metre": (TensorProto.INT32, ["K", "B", 3]),
        "inverse_temperature": (TensorProto.FLOAT, ["B", fields]),
        "min_p": (TensorProto.FLOAT, ["B", fields]),
        "conditions": (TensorProto.INT32, ["B", len(network.condition_embeddings) - 1]),
        "left": (TensorProto.INT32, ["B", 2]),
        "copying": (TensorProto.FLOAT, ["B", 1]),
        "lag_bias": (TensorProto.FLOAT, ["B", LAGS]),
        "rules": (TensorProto.FLOAT, ["B", 1]),
    }
    return inputs | {f"bias_{n}": (TensorProto.FLOAT, ["B", size]) for n, size in VOCABULARY._asdict().items()}


def _rows(spec: tuple[int, list[Any]]) -> tuple[int, list[Any]]:
    return spec[0], ["B", *spec[1]]


def _info(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


_BEGUN = ("tempo", "profile")  # states that begin with what is asked for


def _before_the_steps(n: Nodes, network: Network, weights: Mapping[str, Any], vector_type: int) -> None:
    """Write what every step of a run takes as it is: a value or an input of the Scan each (`scan_<name>`), by its name."""
    shape = n.op("Shape", "forced")
    steps, rows = n.slice(shape, 0, 1, axis=0), n.slice(shape, 1, 2, axis=0)
    open_buffers(n, network.config, vector_type, rows, steps)
    _conditions(n, network, weights)
    free = n.op("Less", "forced", n.ints(0))
    for i, name in enumerate(FIELDS):
        n.slice(free, i, i + 1, axis=2, name=f"scan_free_{name}")
        n.slice("forced", i, i + 1, axis=2, name=f"scan_forced_{name}")
        n.slice("uniforms", i, i + 1, axis=2, name=f"scan_uniform_{name}")
        n.slice("inverse_temperature", i, i + 1, axis=1, name=f"inverse_temperature_{name}")
    for i, name in enumerate(("metre", "bar", "offset")):
        n.slice("metre", i, i + 1, axis=2, name=f"scan_{name}")
    n.op("Sub", "scan_bar", n.ints(1), name="scan_bar_less_one")
    # A value is kept from so many nats under the likeliest one on. Without copies: but at min-p 1 the likeliest is the only one,
    # whatever it owes its place to.
    floor = n.op("Log", n.op("Max", "min_p", n.constant(np.array(1e-30, np.float32))))
    one = n.constant(np.array(1, np.float32))
    only = n.op("Where", n.op("Less", "min_p", one), n.constant(np.array(0, np.float32)), n.constant(np.array(1e12, np.float32)))
    for i, name in enumerate(FIELDS):
        n.slice(floor, i, i + 1, axis=1, name=f"floor_{name}")
        n.slice(only, i, i + 1, axis=1, name=f"only_{name}")
    # How much is left, and the rules.
    n.slice("left", 0, 1, axis=1, name="notes_in_all")
    end = n.slice("left", 1, 2, axis=1, name="end")
    n.op("GreaterOrEqual", "notes_in_all", n.ints(0), name="notes_told")
    told = n.op("GreaterOrEqual", end, n.ints(0), name="end_told")
    must_end = n.op("And", told, n.op("Greater", "rules", n.constant(np.array(0, np.float32))))
    n.op("Where", must_end, end, n.ints(NEVER), name="must_end_at")
    n.op("Mul", "rules", n.constant(HAND_RULE), name="rule_hand")
    n.op("Mul", "rules", n.constant(PITCH_RULE), name="rule_pitch")
    early = np.zeros((1, VOCABULARY.pitch), np.float32)
    early[0, Control.END] = PITCH_RULE[0, 0]
    n.op("Add", "bias_pitch", n.op("Mul", n.flag(must_end), n.constant(early)), name="bias_of_pitch")


def _conditions(n: Nodes, network: Network, weights: Mapping[str, Any]) -> None:
    """Write what the first layer reads of the conditions of the piece, (B, E), the profile of the key asked for, and _BEGUN."""
    total = n.constant(np.zeros((1, network.config.embedding), np.float32))
    for name in piece_condition_names(network.config.conditions):
        embedding = weights[f"condition_embeddings.{name}.weight"]
        if name == "key":
            embedding = embedding + EXPECTED_PITCH_CLASSES.astype(np.float32) @ weights["key_input.weight"].T
        total = n.op("Add", total, n.row(embedding, _condition(n, network, name)))
    n.op("Identity", total, name="piece_embedding")
    rolled = EXPECTED_PITCH_CLASSES[:, PROFILE_ROLL[:, :PITCH_CLASSES]].astype(np.float32)
    n.op("Gather", n.constant(rolled), _condition(n, network, "key"), axis=0, name="key_profiles")  # (B, 12, 12)
    # Before the first note the running values are what is asked for.
    profiles = np.tile(EXPECTED_PITCH_CLASSES, len(PROFILE_DECAYS)).astype(np.float32)
    before = n.op("Equal", "state_notes", n.ints(0))
    for name, condition, table in zip(_BEGUN, ("tempo", "key"), (EXPECTED_TEMPO[:, None], profiles), strict=True):
        if condition in network.config.conditions:
            expected = n.row(table, _condition(n, network, condition))
            n.op("Where", before, expected, f"state_{name}", name=f"begin_{name}")
        else:
            n.op("Identity", f"state_{name}", name=f"begin_{name}")


def _condition(n: Nodes, network: Network, name: str) -> Value:
    """Return the index of a per-piece condition, (B,)."""
    at = piece_condition_names(network.config.conditions).index(name)
    return n.op("Gather", "conditions", n.constant(np.array(at, np.int64)), axis=1)
