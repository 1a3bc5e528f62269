"""The inference graph: K notes for B rows, sampled inside, built node by node from a trained network's weights.

Built and not traced, because it is another computation than training's: the first layer's product with the embeddings is folded
into look-up tables, each field is drawn before the next, and a state runs along that keeps the drawn notes playable (`_Rules`).

Inputs (K steps, B rows, F fields in `NoteToken` order)
    forced               int32 (K, B, F)   values to take, -1 where one is to be drawn
    uniforms             float (K, B, F)   in [0, 1)
    metre                int32 (K, B, 3)   index of the metre, ticks of a bar, offset: position = (time + offset) mod bar
    inverse_temperature  float (B, F)
    min_p                float (B, F)
    bias_<field>         float (B, V)      added to the logits of the field after the temperature
    conditions           int32 (B, C)      per-piece conditions
    rules                float (B, 1)      1: keep the notes playable; 0: the network's own distribution
    state_<name>         (B, ...)          zeros before the first token, but for `state_position`
Outputs
    tokens               int32 (K, B, F)
    probabilities        float (K, B, F)   of each value taken, after temperature and bias, before min-p
    next_<name>          the state after
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH
from service.music.representation import DURATIONS, FIELDS, MAX_BAR, VOCABULARY, Control
from training.model import (
    HANDS,
    LAST_FIELDS,
    MAX_HELD,
    PITCH_CLASS,
    PITCH_CLASSES,
    PROFILE_DECAYS,
    PROFILE_ROLL,
    RELATIVE_FIELDS,
    Network,
    grammar,
    profile_steps,
)

OPSET = 21
IR_VERSION = 10  # what onnx 1.16 wrote with opset 21, so that onnxruntime from 1.18 on loads it
KEYS = HIGHEST_PITCH - LOWEST_PITCH + 1
CONTROLS = len(Control)
MAX_CONTROLS = 4  # in a row; the data has few longer runs, and a piece must go on
UNPLAYABLE = -1e4  # milder than FORBIDDEN of a request's biases, which win where everything is unplayable

Value = str  # the name of a tensor in the graph
Array = NDArray[Any]


@dataclass
class _Nodes:
    """A growing list of nodes and constants; `op` returns the name of what a node makes."""

    prefix: str
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    _shared: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    def op(self, kind: str, *inputs: Value, name: str = "", **attributes: Any) -> Value:
        output = name or f"{self.prefix}_{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{self.prefix}_node_{len(self.nodes)}_{kind}", **attributes)
        )
        return output

    def split(self, value: Value, parts: int, axis: int) -> list[Value]:
        outputs = [f"{self.prefix}_split_{len(self.nodes)}_{i}" for i in range(parts)]
        self.nodes.append(
            helper.make_node(
                "Split", [value], outputs, name=f"{self.prefix}_node_{len(self.nodes)}_Split", axis=axis, num_outputs=parts
            )
        )
        return outputs

    def constant(self, array: Array, name: str = "") -> Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = name or f"constant_{len(self.constants)}"
            self.constants[self._shared[key]] = array
        return self._shared[key]

    def ints(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int32))

    def axes(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64))

    def slice(self, value: Value, start: int, stop: int, axis: int = 1) -> Value:
        return self.op("Slice", value, self.axes(start), self.axes(stop), self.axes(axis))

    def flag(self, condition: Value) -> Value:
        """Return a bool tensor as float."""
        return self.op("Cast", condition, to=TensorProto.FLOAT)


def build_graph(network: Network, metadata: dict[str, str]) -> onnx.ModelProto:
    """Return the inference graph of a network.

    Parameters
    ----------
    network : Network
        On the CPU.
    metadata : dict of str to str
        Written into the file.

    Returns
    -------
    onnx.ModelProto
        Checked; opset 21; one Scan over the K steps.
    """
    weights = {name: tensor.detach().numpy().astype(np.float32) for name, tensor in network.state_dict().items()}
    step = _Step(network, weights)
    body = step.build()
    outer = _Nodes("run", constants=step.n.constants)
    states = step.state_shapes(network)
    piece_gates = _condition_gates(outer, network, weights)
    outer.op("Identity", piece_gates, name="piece_gates")
    scan_outputs = [f"next_{name}" for name in states] + ["tokens", "probabilities"]
    outer.nodes.append(
        helper.make_node(
            "Scan",
            [f"state_{name}" for name in states] + ["forced", "uniforms", "metre"],
            scan_outputs,
            name="compose",
            body=body,
            num_scan_inputs=3,
        )
    )
    inputs = [_info(name, *spec) for name, spec in _inputs(network).items()]
    inputs += [_info(f"state_{name}", kind, ["B", *shape]) for name, (kind, shape) in states.items()]
    outputs = [_info(f"next_{name}", kind, ["B", *shape]) for name, (kind, shape) in states.items()]
    outputs += [
        _info("tokens", TensorProto.INT32, ["K", "B", len(FIELDS)]),
        _info("probabilities", TensorProto.FLOAT, ["K", "B", len(FIELDS)]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in outer.constants.items()]
    graph = helper.make_graph(outer.nodes, "nocturne", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
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
        "rules": (TensorProto.FLOAT, ["B", 1]),
    }
    return inputs | {f"bias_{n}": (TensorProto.FLOAT, ["B", size]) for n, size in VOCABULARY._asdict().items()}


def _info(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _condition_gates(n: _Nodes, network: Network, weights: dict[str, Array]) -> Value:
    """Return the first layer's bias and what the conditions of the piece add to it, (B, 4H): once a run, not once a note."""
    names = [name for name in network.condition_embeddings if name != "metre"]
    gates = n.constant(weights["layers.0.bias"][None])
    for i, name in enumerate(names):
        table = n.constant(weights[f"condition_embeddings.{name}.weight"] @ weights["layers.0.weight_x"].T)
        index = n.op("Gather", "conditions", n.constant(np.array(i, np.int64)), axis=1)
        gates = n.op("Add", gates, n.op("Gather", table, index, axis=0))
    return gates


class _Step:
    """The body of the Scan: one token for every row."""

    def __init__(self, network: Network, weights: dict[str, Array]) -> None:
        self.n = _Nodes("step")
        self.layers = len(network.layers)
        self.network, self.weights = network, weights

    def state_shapes(self, network: Network) -> dict[str, tuple[int, list[int]]]:
        """Return type and shape, without rows, of each part of the state."""
        hidden = network.config.hidden
        shapes: dict[str, tuple[int, list[int]]] = {}
        for i in range(self.layers):
            shapes |= {f"h{i}": (TensorProto.FLOAT, [hidden]), f"c{i}": (TensorProto.FLOAT, [hidden])}
        integer = TensorProto.INT32
        return shapes | {
            "token": (integer, [len(FIELDS)]),
            "time": (integer, [1]),
            "position": (integer, [1]),
            "tempo": (integer, [1]),
            **{f"last_{name}": (integer, [HANDS]) for name in LAST_FIELDS},
            "held": (integer, [HANDS]),  # ticks until each hand is silent
            "profile": (TensorProto.FLOAT, [len(PROFILE_DECAYS) * PITCH_CLASSES]),
            "sounding": (integer, [KEYS]),  # ticks until each key is released
            "pedal": (integer, [1]),  # 1 while down
            "controls": (integer, [1]),  # control tokens in a row
        }

    def build(self) -> Any:
        """Return the body as a graph; its constants stay in `self.n.constants`, for the outer graph to hold."""
        n = self.n
        states = self.state_shapes(self.network)
        x = self._lstm()
        drawn, probabilities = self._draw(x)
        tokens = [drawn[name] for name in FIELDS]
        self._advance(drawn, tokens)
        n.op("Concat", *tokens, axis=1, name="out_token")
        n.op("Concat", *[probabilities[name] for name in FIELDS], axis=1, name="out_probability")
        inputs = [_info(f"in_{name}", kind, ["B", *shape]) for name, (kind, shape) in states.items()]
        inputs += [
            _info("in_forced", TensorProto.INT32, ["B", len(FIELDS)]),
            _info("in_uniform", TensorProto.FLOAT, ["B", len(FIELDS)]),
            _info("in_metre", TensorProto.INT32, ["B", 3]),
        ]
        outputs = [_info(f"out_{name}", kind, ["B", *shape]) for name, (kind, shape) in states.items() if name != "token"]
        names = list(states)
        outputs.insert(names.index("token"), _info("out_next_token", TensorProto.INT32, ["B", len(FIELDS)]))
        outputs += [
            _info("out_token", TensorProto.INT32, ["B", len(FIELDS)]),
            _info("out_probability", TensorProto.FLOAT, ["B", len(FIELDS)]),
        ]
        n.op("Identity", "out_token", name="out_next_token")
        return helper.make_graph(n.nodes, "one_note", inputs, outputs)

    def _lstm(self) -> Value:
        """Return the last layer's output (B, H)."""
        n, w = self.n, self.weights
        # The first layer's product with each embedding, one row a value, all tables in one.
        embeddings = [w[f"field_embeddings.{name}.weight"] for name in FIELDS]
        embeddings += [w["position_embedding.weight"], w["tempo_embedding.weight"], w["condition_embeddings.metre.weight"]]
        for name in ("last_pitch_embeddings", "held_embeddings"):
            embeddings += [w[f"{name}.{hand}.weight"] for hand in range(1, HANDS)]
        table = n.constant(np.concatenate(embeddings) @ w["layers.0.weight_x"].T, "first_layer_table")
        starts = np.cumsum([0] + [len(e) for e in embeddings[:-1]]).astype(np.int32)
        self.metre_index, self.bar, self.offset = (n.slice("in_metre", i, i + 1) for i in range(3))
        hands = [n.slice("in_last_pitch", 1, HANDS), n.op("Min", n.slice("in_held", 1, HANDS), n.ints(MAX_HELD))]
        values = n.op("Concat", "in_token", "in_position", "in_tempo", self.metre_index, *hands, axis=1)
        rows = n.op("Gather", table, n.op("Add", values, n.constant(starts[None])), axis=0)
        gates = n.op("Add", n.op("ReduceSum", rows, n.axes(1), keepdims=0), "piece_gates")
        profile = n.constant(_transposed(w["layers.0.weight_x"] @ w["profile_input.weight"]))
        gates = n.op("Add", gates, n.op("MatMul", "in_profile", profile))
        gates = n.op("Add", gates, n.op("MatMul", "in_h0", n.constant(_transposed(w["layers.0.weight_h"]), "layer_0")))
        x = self._cell(0, gates)
        for i in range(1, self.layers):
            both = np.concatenate([w[f"layers.{i}.weight_x"], w[f"layers.{i}.weight_h"]], axis=1)
            product = n.op("MatMul", n.op("Concat", x, f"in_h{i}", axis=1), n.constant(_transposed(both), f"layer_{i}"))
            x = self._cell(i, n.op("Add", product, n.constant(w[f"layers.{i}.bias"])))
        return x

    def _cell(self, layer: int, gates: Value) -> Value:
        n, hidden = self.n, self.network.config.hidden
        sigmoids = n.op("Sigmoid", n.slice(gates, 0, 3 * hidden))
        candidate = n.op("Tanh", n.slice(gates, 3 * hidden, 4 * hidden))
        i, f, o = n.split(sigmoids, 3, axis=1)
        cell = n.op("Add", n.op("Mul", f, f"in_c{layer}"), n.op("Mul", i, candidate), name=f"out_c{layer}")
        return n.op("Mul", o, n.op("Tanh", cell), name=f"out_h{layer}")

    def _draw(self, x: Value) -> tuple[dict[str, Value], dict[str, Value]]:
        """Draw all fields; return their values and probabilities, each (B, 1)."""
        n, w = self.n, self.weights
        heads = n.op("MatMul", x, n.constant(_transposed(w["to_heads.weight"]), "to_heads"))
        starts = n.split(n.op("Add", heads, n.constant(w["to_heads.bias"])), len(FIELDS), axis=1)
        masks = grammar()
        drawn: dict[str, Value] = {}
        probabilities: dict[str, Value] = {}
        for i, name in enumerate(FIELDS):
            z, last = starts[i], self._last(name, drawn)
            if drawn:
                z = n.op("Add", z, self._drawn_context(name, drawn, last))
            z = n.op("Relu", z)
            scores = self._scores(name, z, last)
            if name == "pitch":
                scores = n.op("Add", scores, self._profile_scores(z))
            if name not in ("shift", "hand"):
                mask = n.op("Gather", n.constant(masks[name]), n.op("Squeeze", drawn["hand"], n.axes(1)), axis=0)
                scores = n.op("Add", scores, mask)
            scores = n.op("Mul", scores, n.slice("inverse_temperature", i, i + 1))
            scores = n.op("Add", scores, f"bias_{name}")
            if name in ("hand", "pitch"):
                unplayable = self._unplayable_hands(drawn) if name == "hand" else self._unplayable_pitches(drawn)
                scores = n.op("Add", scores, n.op("Mul", unplayable, "rules"))
            drawn[name], probabilities[name] = self._sample(scores, i)
            if name == "shift":
                self.now = n.op("Add", "in_time", drawn["shift"], name="out_time")
                position = n.op("Mod", n.op("Add", self.now, self.offset), self.bar)
                n.op("Min", position, n.ints(MAX_BAR - 1), name="out_position")
        return drawn, probabilities

    def _last(self, name: str, drawn: dict[str, Value]) -> Value | None:
        """Return what the network knows as the last value of a field, (B, 1): of the drawn hand, or the running tempo."""
        if name == "tempo":
            return "in_tempo"
        return self.n.op("GatherElements", f"in_last_{name}", drawn["hand"], axis=1) if name in LAST_FIELDS else None

    def _drawn_context(self, name: str, drawn: dict[str, Value], last: Value | None) -> Value:
        """Return what the fields drawn, the position of the new note and the last value add to a head, (B, D)."""
        n, w = self.n, self.weights
        tables = [w[f"drawn_embeddings.{name}.{before}.weight"] for before in drawn] + [w[f"head_positions.{name}.weight"]]
        values = [*drawn.values(), "out_position"]
        if last is not None:
            tables.append(w[f"head_lasts.{name}.weight"])
            values.append(last)
        starts = np.cumsum([0] + [len(t) for t in tables[:-1]]).astype(np.int32)
        index = n.op("Add", n.op("Concat", *values, axis=1), n.constant(starts[None]))
        rows = n.op("Gather", n.constant(np.concatenate(tables)), index, axis=0)
        return n.op("ReduceSum", rows, n.axes(1), keepdims=0)

    def _scores(self, name: str, z: Value, last: Value | None) -> Value:
        """Return the logits of a field (B, V): over its values, and over differences where it has those."""
        n, w = self.n, self.weights
        weight, bias = w[f"outputs.{name}.weight"], w[f"outputs.{name}.bias"]
        if name not in RELATIVE_FIELDS or last is None:
            return n.op("Add", n.op("MatMul", z, n.constant(_transposed(weight))), n.constant(bias))
        size = getattr(VOCABULARY, name)
        weight = np.concatenate([weight, w[f"relative_outputs.{name}.weight"]])
        bias = np.concatenate([bias, w[f"relative_outputs.{name}.bias"]])
        both = n.op("Add", n.op("MatMul", z, n.constant(_transposed(weight))), n.constant(bias))
        index = n.op("Sub", n.constant(np.arange(2 * size - 1, 3 * size - 1, dtype=np.int32)[None]), last)
        return n.op("Add", n.slice(both, 0, size), n.op("GatherElements", both, index, axis=1))

    def _profile_scores(self, z: Value) -> Value:
        """Return what the pitch classes heard lately add to the logits of the pitches, (B, V)."""
        n, w = self.n, self.weights
        kernel = n.op("MatMul", z, n.constant(_transposed(w["profile_kernel.weight"])))
        kernel = n.op("Unsqueeze", n.op("Add", kernel, n.constant(w["profile_kernel.bias"])), n.axes(1))
        rolled = n.op("Gather", "in_profile", n.constant(PROFILE_ROLL), axis=1)  # (B, 12, entries)
        by_class = n.op("ReduceSum", n.op("Mul", rolled, kernel), n.axes(2), keepdims=0)
        return n.op("Gather", by_class, n.constant(PITCH_CLASS), axis=1)

    def _sample(self, scores: Value, i: int) -> tuple[Value, Value]:
        """Draw from the softmax of scores (B, V) by min-p and the inverse of the cumulative distribution.

        The first value whose cumulative mass exceeds uniform x total always has mass of its own, so that what has none,
        being forbidden or under min-p, is never drawn.
        """
        n = self.n
        p = n.op("Softmax", scores, axis=1)
        floor = n.op("Mul", n.op("ReduceMax", p, n.axes(1), keepdims=1), n.slice("min_p", i, i + 1))
        kept = n.op("Where", n.op("Less", p, floor), n.constant(np.zeros((1, 1), np.float32)), p)
        cumulative = n.op("CumSum", kept, n.axes(1))
        threshold = n.op("Mul", n.slice("in_uniform", i, i + 1), n.slice(cumulative, -1, 2**31 - 1))
        below = n.op("Cast", n.op("LessOrEqual", cumulative, threshold), to=TensorProto.INT32)
        value = n.op("ReduceSum", below, n.axes(1), keepdims=1)
        forced = n.slice("in_forced", i, i + 1)
        value = n.op("Where", n.op("Less", forced, n.ints(0)), value, forced)
        return value, n.op("GatherElements", p, value, axis=1)

    def _after_note(self, drawn: dict[str, Value]) -> Value:
        """Return whether the new token stands at the onset of a note that is already there, bool (B, 1)."""
        n = self.n
        was_note = n.op("Greater", n.slice("in_token", 1, 2), n.ints(0))
        return n.op("And", n.op("Equal", drawn["shift"], n.ints(0)), was_note)

    def _unplayable_hands(self, drawn: dict[str, Value]) -> Value:
        """No control within a chord (controls stand before it), and not too many in a row."""
        n = self.n
        self.in_chord = self._after_note(drawn)
        no_control = n.op("Or", self.in_chord, n.op("GreaterOrEqual", "in_controls", n.ints(MAX_CONTROLS)))
        row = np.zeros((1, HANDS), np.float32)
        row[0, 0] = UNPLAYABLE
        return n.op("Mul", n.flag(no_control), n.constant(row))

    def _unplayable_pitches(self, drawn: dict[str, Value]) -> Value:
        """No key that is down; within a chord upwards only; the pedal down and up in turn."""
        n = self.n
        left = n.op("Max", n.op("Sub", "in_sounding", drawn["shift"]), n.ints(0))
        self.sounding = left
        keys = n.constant(np.arange(CONTROLS, CONTROLS + KEYS, dtype=np.int32)[None])
        not_above = n.op("And", self.in_chord, n.op("LessOrEqual", keys, n.slice("in_token", 2, 3)))
        blocked = n.flag(n.op("Or", n.op("Greater", left, n.ints(0)), not_above))
        blocked = n.op("Mul", blocked, n.constant(np.array([[UNPLAYABLE]], np.float32)))
        down_column, up_column = np.zeros((2, 1, CONTROLS), np.float32)
        down_column[0, Control.PEDAL_DOWN] = up_column[0, Control.PEDAL_UP] = UNPLAYABLE
        pedal = n.op("Greater", "in_pedal", n.ints(0))
        return n.op("Concat", n.op("Where", pedal, n.constant(down_column), n.constant(up_column)), blocked, axis=1)

    def _advance(self, drawn: dict[str, Value], tokens: list[Value]) -> None:
        """Compute the state after the new token."""
        n = self.n
        hand, pitch = drawn["hand"], drawn["pitch"]
        note = n.op("Greater", hand, n.ints(0))
        n.op("Where", note, drawn["tempo"], "in_tempo", name="out_tempo")
        n.op("Where", note, n.ints(0), n.op("Add", "in_controls", n.ints(1)), name="out_controls")
        # Hand 0 has no last note: its column of the comparison is -1, which no hand equals.
        hands = n.constant(np.array([[-1, *range(1, HANDS)]], np.int32))
        played = n.op("Equal", hands, hand)
        for name in LAST_FIELDS:
            n.op("Where", played, drawn[name], f"in_last_{name}", name=f"out_last_{name}")
        ticks = n.op("Gather", n.constant(DURATIONS.astype(np.int32)), drawn["duration"], axis=0)
        held = n.op("Max", n.op("Sub", "in_held", drawn["shift"]), n.ints(0))
        n.op("Where", played, n.op("Max", held, ticks), held, name="out_held")
        decays, added = profile_steps()
        heard = n.op("Gather", n.constant(added), n.op("Squeeze", pitch, n.axes(1)), axis=0)
        heard = n.op("Add", n.op("Mul", "in_profile", n.constant(decays[None])), heard)
        n.op("Where", note, heard, "in_profile", name="out_profile")
        keys = n.constant(np.arange(CONTROLS, CONTROLS + KEYS, dtype=np.int32)[None])
        struck = n.op("Equal", keys, pitch)
        n.op("Where", struck, n.op("Max", ticks, self.sounding), self.sounding, name="out_sounding")
        # A control's pitch field tells the pedal; a note's never equals it.
        down, up = (n.op("Equal", pitch, n.ints(control)) for control in (Control.PEDAL_DOWN, Control.PEDAL_UP))
        pedal = n.op("Where", up, n.ints(0), "in_pedal")
        n.op("Where", down, n.ints(1), pedal, name="out_pedal")


def _transposed(weight: Array) -> Array:
    return np.ascontiguousarray(weight.T)
