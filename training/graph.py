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
    copying              float (B, 1)      factor of the weight of what the memory offers; 1: as the network has learnt it
    left                 int32 (B, 2)      notes of the piece, and the tick of its last barline; -1 where it is not told
    lag_bias             float (B, LAGS)   added to the score of an offer, by the class of its lag
    rules                float (B, 1)      1: keep the notes playable, end at the last barline; 0: the network as it is
    state_<name>         (B, ...)          zeros before the first token, but for `state_position`
Outputs
    tokens               int32 (K, B, F)
    probabilities        float (K, B, F)   of each value taken, after temperature and bias, before min-p
    next_<name>          the state after
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.engine.interface import LAGS
from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH
from service.music.playable import MAX_REPEATS, MAX_STRETCH
from service.music.representation import CONTROL, DURATIONS, FIELDS, MAX_BAR, VOCABULARY, Control
from training.conditions import (
    BARS_LEFT_CLASS,
    EXPECTED_PITCH_CLASSES,
    EXPECTED_TEMPO,
    MAX_BARS_LEFT,
    MAX_NOTES_LEFT,
    NOTES_LEFT_CLASS,
)
from training.data import piece_condition_names
from training.graph_memory import BUFFERS, CARRIED, MemoryNodes, buffer_shapes, close_buffers, memory_state, open_buffers
from training.model import (
    COPIED_FIELDS,
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
from training.nodes import Array, Nodes, Value, transposed

OPSET = 21
IR_VERSION = 10  # what onnx 1.16 wrote with opset 21, so that onnxruntime from 1.18 on loads it
KEYS = HIGHEST_PITCH - LOWEST_PITCH + 1
CONTROLS = len(Control)
MAX_CONTROLS = 4  # in a row; the data has few longer runs, and a piece must go on
UNPLAYABLE = -1e4  # milder than FORBIDDEN of a request's biases, which win where everything is unplayable


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
    outer = Nodes("run", constants=step.n.constants)
    config = network.config
    carried, whole = step.state_shapes(network), memory_state(config)
    states = carried | whole
    piece_gates = _condition_gates(outer, network, weights)
    outer.op("Identity", piece_gates, name="piece_gates")
    outer.op("Identity", _key_profiles(outer, network), name="key_profiles")
    open_buffers(outer, config)
    outer.nodes.append(
        helper.make_node(
            "Scan",
            [
                *(f"state_{name}" for name in carried),
                *(f"empty_{name}" for name in BUFFERS),
                "forced",
                "uniforms",
                "metre",
                "steps",
            ],
            [*(f"next_{name}" for name in carried), *(f"last_{name}" for name in BUFFERS), "tokens", "probabilities"],
            name="compose",
            body=body,
            num_scan_inputs=4,
        )
    )
    close_buffers(outer, config)
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
        "left": (TensorProto.INT32, ["B", 2]),
        "copying": (TensorProto.FLOAT, ["B", 1]),
        "lag_bias": (TensorProto.FLOAT, ["B", LAGS]),
        "rules": (TensorProto.FLOAT, ["B", 1]),
    }
    return inputs | {f"bias_{n}": (TensorProto.FLOAT, ["B", size]) for n, size in VOCABULARY._asdict().items()}


def _info(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _condition_gates(n: Nodes, network: Network, weights: dict[str, Array]) -> Value:
    """Return the first layer's bias and what the conditions of the piece add to it, (B, 4H): once a run, not once a note."""
    gates = n.constant(weights["layers.0.bias"][None])
    for name in piece_condition_names(network.config.conditions):
        embedding = weights[f"condition_embeddings.{name}.weight"]
        if name == "key":
            embedding = embedding + EXPECTED_PITCH_CLASSES.astype(np.float32) @ weights["key_input.weight"].T
        table = n.constant(embedding @ weights["layers.0.weight_x"].T)
        gates = n.op("Add", gates, n.op("Gather", table, _condition(n, network, name), axis=0))
    return gates


def _condition(n: Nodes, network: Network, name: str) -> Value:
    """Return the index of a per-piece condition, (B,)."""
    at = piece_condition_names(network.config.conditions).index(name)
    return n.op("Gather", "conditions", n.constant(np.array(at, np.int64)), axis=1)


def _key_profiles(n: Nodes, network: Network) -> Value:
    """Return the profile of the key asked for from each pitch class on, (B, 12, 12)."""
    rolled = EXPECTED_PITCH_CLASSES[:, PROFILE_ROLL[:, :PITCH_CLASSES]].astype(np.float32)
    return n.op("Gather", n.constant(rolled), _condition(n, network, "key"), axis=0)


class _Step:
    """The body of the Scan: one token for every row."""

    def __init__(self, network: Network, weights: dict[str, Array]) -> None:
        self.n = Nodes("step")
        self.layers = len(network.layers)
        self.network, self.weights = network, weights
        self.memory = MemoryNodes(self.n, network.config, weights)

    def state_shapes(self, network: Network) -> dict[str, tuple[int, list[int]]]:
        """Return type and shape, without rows, of each part of the state that the Scan carries."""
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
            "repeats": (integer, [1]),  # notes in a row of the last pitch
            "lowest": (integer, [HANDS]),  # pitch of each hand's first note at the last onset, 0 if it has none there
            **{name: spec for name, spec in memory_state(network.config).items() if name in CARRIED},
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
        carried = states | buffer_shapes(self.network.config)
        inputs = [_info(f"in_{name}", kind, ["B", *shape]) for name, (kind, shape) in carried.items()]
        inputs += [
            _info("in_forced", TensorProto.INT32, ["B", len(FIELDS)]),
            _info("in_uniform", TensorProto.FLOAT, ["B", len(FIELDS)]),
            _info("in_metre", TensorProto.INT32, ["B", 3]),
            _info("in_step", TensorProto.INT32, []),
        ]
        # The token is an output twice, as state and as result: the names of outputs must differ.
        names = {name: "out_next_token" if name == "token" else f"out_{name}" for name in carried}
        outputs = [_info(names[name], kind, ["B", *shape]) for name, (kind, shape) in carried.items()]
        outputs += [
            _info("out_token", TensorProto.INT32, ["B", len(FIELDS)]),
            _info("out_probability", TensorProto.FLOAT, ["B", len(FIELDS)]),
        ]
        n.op("Identity", "out_token", name="out_next_token")
        return helper.make_graph(n.nodes, "one_note", inputs, outputs)

    def _expected(self, state: Value, condition: str, table: Array) -> Value:
        """Return a running value; before the first note, what a condition lets expect."""
        n = self.n
        if condition not in self.network.config.conditions:
            return state
        expected = n.op("Gather", n.constant(table), _condition(n, self.network, condition), axis=0)
        return n.op("Where", n.op("Equal", "in_notes", n.ints(0)), expected, state)

    def _lstm(self) -> Value:
        """Return the last layer's output (B, H)."""
        n, w = self.n, self.weights
        self.tempo = self._expected("in_tempo", "tempo", EXPECTED_TEMPO[:, None])
        profiles = np.tile(EXPECTED_PITCH_CLASSES, len(PROFILE_DECAYS)).astype(np.float32)
        self.profile = self._expected("in_profile", "key", profiles)
        # The first layer's product with each embedding, one row a value, all tables in one.
        embeddings = [w[f"field_embeddings.{name}.weight"] for name in FIELDS]
        embeddings += [w["position_embedding.weight"], w["tempo_embedding.weight"], w["condition_embeddings.metre.weight"]]
        for name in ("last_pitch_embeddings", "held_embeddings"):
            embeddings += [w[f"{name}.{hand}.weight"] for hand in range(1, HANDS)]
        embeddings += [w[f"{name}_embedding.weight"] for name in ("matched", "notes_left", "bars_left")]
        table = n.constant(np.concatenate(embeddings) @ w["layers.0.weight_x"].T, "first_layer_table")
        starts = np.cumsum([0] + [len(e) for e in embeddings[:-1]]).astype(np.int32)
        self.metre_index, self.bar, self.offset = (n.slice("in_metre", i, i + 1) for i in range(3))
        hands = [n.slice("in_last_pitch", 1, HANDS), n.op("Min", n.slice("in_held", 1, HANDS), n.ints(MAX_HELD))]
        own = ["in_token", "in_position", self.tempo, self.metre_index, *hands]
        self.notes_left, self.bars_left = self._notes_left(), self._bars_left()
        values = n.op("Concat", *own, self.memory.matched(), self.notes_left, self.bars_left, axis=1)
        rows = n.op("Gather", table, n.op("Add", values, n.constant(starts[None])), axis=0)
        gates = n.op("Add", n.op("ReduceSum", rows, n.axes(1), keepdims=0), "piece_gates")
        profile = n.constant(transposed(w["layers.0.weight_x"] @ w["profile_input.weight"]))
        gates = n.op("Add", gates, n.op("MatMul", self.profile, profile))
        gates = n.op("Add", gates, n.op("MatMul", "in_h0", n.constant(transposed(w["layers.0.weight_h"]), "layer_0")))
        x = self._cell(0, gates)
        x = n.op("Concat", x, self.memory.point(x, self.metre_index), axis=1)
        for i in range(1, self.layers):
            both = np.concatenate([w[f"layers.{i}.weight_x"], w[f"layers.{i}.weight_h"]], axis=1)
            product = n.op("MatMul", n.op("Concat", x, f"in_h{i}", axis=1), n.constant(transposed(both), f"layer_{i}"))
            x = self._cell(i, n.op("Add", product, n.constant(w[f"layers.{i}.bias"])))
        return x

    def _notes_left(self) -> Value:
        """Return the class of the notes left, (B, 1): 0 if not told."""
        n = self.n
        told = n.slice("left", 0, 1)
        count = n.op("Max", n.op("Min", n.op("Sub", told, "in_notes"), n.ints(MAX_NOTES_LEFT)), n.ints(0))
        by_count = n.op("Gather", n.constant(NOTES_LEFT_CLASS.astype(np.int32)), count, axis=0)
        return n.op("Where", n.op("Less", told, n.ints(0)), n.ints(0), by_count)

    def _bars_left(self) -> Value:
        """Return the class of the bars left, (B, 1): 0 if not told."""
        n = self.n
        self.end = n.slice("left", 1, 2)
        ticks = n.op("Max", n.op("Sub", self.end, "in_time"), n.ints(0))
        bars = n.op("Div", n.op("Add", ticks, n.op("Sub", self.bar, n.ints(1))), self.bar)
        by_count = n.op("Gather", n.constant(BARS_LEFT_CLASS.astype(np.int32)), n.op("Min", bars, n.ints(MAX_BARS_LEFT)), axis=0)
        return n.op("Where", n.op("Less", self.end, n.ints(0)), n.ints(0), by_count)

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
        heads = n.op("MatMul", x, n.constant(transposed(w["to_heads.weight"]), "to_heads"))
        starts = n.split(n.op("Add", heads, self._head_context()), len(FIELDS), axis=1)
        masks = grammar()
        self.zero = n.constant(np.zeros((1, 1), np.float32))
        drawn: dict[str, Value] = {}
        probabilities: dict[str, Value] = {}
        for i, name in enumerate(FIELDS):
            z, last = starts[i], self._last(name, drawn)
            if drawn:
                z = n.op("Add", z, self._drawn_context(name, drawn, last))
            if name in COPIED_FIELDS:
                offers = self.memory.agreeing(name, drawn, last)
                z = n.op("Add", z, self.memory.agreement(name, offers))
            z = n.op("Relu", z)
            scores = self._scores(name, z, last)
            if name == "pitch":
                scores = n.op("Add", scores, self._profile_scores(z))
            if name not in ("shift", "hand"):
                mask = n.op("Gather", n.constant(masks[name]), n.op("Squeeze", drawn["hand"], n.axes(1)), axis=0)
                scores = n.op("Add", scores, mask)
            inverse_temperature = n.slice("inverse_temperature", i, i + 1)
            scores = n.op("Add", n.op("Mul", scores, inverse_temperature), f"bias_{name}")
            if name in ("hand", "pitch"):
                unplayable = self._unplayable_hands(drawn) if name == "hand" else self._unplayable_pitches(drawn)
                scores = n.op("Add", scores, n.op("Mul", unplayable, "rules"))
            likeliest = n.op("ReduceMax", scores, n.axes(1), keepdims=1)
            if name in COPIED_FIELDS:
                scores = self.memory.copy(name, scores, z, offers, inverse_temperature)
            drawn[name], probabilities[name] = self._sample(scores, likeliest, i)
            if name in ("shift", "hand", "pitch"):
                drawn[name] = self._end_in_time(name, drawn[name])
            if name == "shift":
                self.now = n.op("Add", "in_time", drawn["shift"], name="out_time")
                position = n.op("Mod", n.op("Add", self.now, self.offset), self.bar)
                n.op("Min", position, n.ints(MAX_BAR - 1), name="out_position")
        return drawn, probabilities

    def _head_context(self) -> Value:
        """Return what the heads see beside the LSTM's output, their bias included, (B, F * D)."""
        n, w = self.n, self.weights
        values = {
            "notes_left": self.notes_left,
            "bars_left": self.bars_left,
            "position": "in_position",
            "metre": self.metre_index,
        }
        tables = [w[f"head_contexts.{name}.weight"] for name in values]
        width = len(FIELDS) * self.network.config.head
        table = np.concatenate([np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in tables])  # the shift's head is the first
        starts = np.cumsum([0] + [len(t) for t in tables[:-1]]).astype(np.int32)
        index = n.op("Add", n.op("Concat", *values.values(), axis=1), n.constant(starts[None]))
        rows = n.op("ReduceSum", n.op("Gather", n.constant(table), index, axis=0), n.axes(1), keepdims=0)
        return n.op("Add", rows, n.constant(w["to_heads.bias"]))

    def _last(self, name: str, drawn: dict[str, Value]) -> Value | None:
        """Return what the network knows as the last value of a field, (B, 1): of the drawn hand, or the running tempo."""
        if name == "tempo":
            return self.tempo
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
            return n.op("Add", n.op("MatMul", z, n.constant(transposed(weight))), n.constant(bias))
        size = getattr(VOCABULARY, name)
        weight = np.concatenate([weight, w[f"relative_outputs.{name}.weight"]])
        bias = np.concatenate([bias, w[f"relative_outputs.{name}.bias"]])
        both = n.op("Add", n.op("MatMul", z, n.constant(transposed(weight))), n.constant(bias))
        index = n.op("Sub", n.constant(np.arange(2 * size - 1, 3 * size - 1, dtype=np.int32)[None]), last)
        return n.op("Add", n.slice(both, 0, size), n.op("GatherElements", both, index, axis=1))

    def _profile_scores(self, z: Value) -> Value:
        """Return what the pitch classes heard lately add to the logits of the pitches, (B, V)."""
        n, w = self.n, self.weights
        kernel = n.op("MatMul", z, n.constant(transposed(np.concatenate([w["profile_kernel.weight"], w["key_kernel.weight"]]))))
        bias = np.concatenate([w["profile_kernel.bias"], w["key_kernel.bias"]])
        kernel = n.op("Unsqueeze", n.op("Add", kernel, n.constant(bias)), n.axes(1))
        rolled = n.op("Gather", self.profile, n.constant(PROFILE_ROLL), axis=1)
        rolled = n.op("Concat", rolled, "key_profiles", axis=2)  # (B, 12, entries and those of the key)
        by_class = n.op("ReduceSum", n.op("Mul", rolled, kernel), n.axes(2), keepdims=0)
        return n.op("Gather", by_class, n.constant(PITCH_CLASS), axis=1)

    def _sample(self, scores: Value, likeliest: Value, i: int) -> tuple[Value, Value]:
        """Draw from the softmax of scores (B, V) by min-p and the inverse of the cumulative distribution.

        The first value whose cumulative mass exceeds uniform x total always has mass of its own, so that what has none,
        being forbidden or under min-p, is never drawn.
        """
        n = self.n
        p = n.op("Softmax", scores, axis=1)
        # Without copies the likeliest value would have so much of the probability of the likeliest of all. At min-p 1 it is the
        # latter that counts: one value is kept, whatever it owes its place to.
        one, min_p = n.constant(np.array(1, np.float32)), n.slice("min_p", i, i + 1)
        share = n.op("Exp", n.op("Sub", likeliest, n.op("ReduceMax", scores, n.axes(1), keepdims=1)))
        share = n.op("Where", n.op("Less", min_p, one), n.op("Min", share, one), one)
        floor = n.op("Mul", n.op("ReduceMax", p, n.axes(1), keepdims=1), n.op("Mul", min_p, share))
        kept = n.op("Where", n.op("Less", p, floor), n.constant(np.zeros((1, 1), np.float32)), p)
        cumulative = n.op("CumSum", kept, n.axes(1))
        threshold = n.op("Mul", n.slice("in_uniform", i, i + 1), n.slice(cumulative, -1, 2**31 - 1))
        below = n.op("Cast", n.op("LessOrEqual", cumulative, threshold), to=TensorProto.INT32)
        value = n.op("ReduceSum", below, n.axes(1), keepdims=1)
        forced = n.slice("in_forced", i, i + 1)
        value = n.op("Where", n.op("Less", forced, n.ints(0)), value, forced)
        return value, n.op("GatherElements", p, value, axis=1)

    def _end_in_time(self, name: str, value: Value) -> Value:
        """Return a drawn value, or what ends the piece at its last barline where the rules hold and that is told."""
        n = self.n
        if name == "shift":
            self.must_end = n.op("And", n.op("GreaterOrEqual", self.end, n.ints(0)), n.op("Greater", "rules", self.zero))
            left = n.op("Max", n.op("Sub", self.end, "in_time"), n.ints(0))
            self.at_end = n.op("And", self.must_end, n.op("GreaterOrEqual", value, left))
            return n.op("Where", self.at_end, left, value)
        return n.op("Where", self.at_end, n.ints(CONTROL if name == "hand" else Control.END), value)

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
        """No key that is down, none out of the hand's reach, none again and again; within a chord upwards; the pedal in turn."""
        n = self.n
        left = n.op("Max", n.op("Sub", "in_sounding", drawn["shift"]), n.ints(0))
        self.sounding = left
        keys = n.constant(np.arange(CONTROLS, CONTROLS + KEYS, dtype=np.int32)[None])
        not_above = n.op("And", self.in_chord, n.op("LessOrEqual", keys, n.slice("in_token", 2, 3)))
        # Within a chord the notes of a hand before this one stay; `lowest` is 0 for a hand that has none.
        self.chord_lowest = n.op("Where", self.in_chord, "in_lowest", n.ints(0))
        lowest = n.op("GatherElements", self.chord_lowest, drawn["hand"], axis=1)
        far = n.op("And", n.op("Greater", lowest, n.ints(0)), n.op("Greater", keys, n.op("Add", lowest, n.ints(MAX_STRETCH))))
        worn = n.op("And", n.op("GreaterOrEqual", "in_repeats", n.ints(MAX_REPEATS)), n.op("Equal", keys, "in_struck"))
        wrong = n.op("Or", n.op("Or", far, worn), n.op("Or", n.op("Greater", left, n.ints(0)), not_above))
        blocked = n.flag(wrong)
        blocked = n.op("Mul", blocked, n.constant(np.array([[UNPLAYABLE]], np.float32)))
        down_column, up_column, end_column = np.zeros((3, 1, CONTROLS), np.float32)
        down_column[0, Control.PEDAL_DOWN] = up_column[0, Control.PEDAL_UP] = UNPLAYABLE
        end_column[0, Control.END] = UNPLAYABLE  # not before the last barline
        pedal = n.op("Greater", "in_pedal", n.ints(0))
        controls = n.op("Where", pedal, n.constant(down_column), n.constant(up_column))
        controls = n.op("Add", controls, n.op("Mul", n.flag(self.must_end), n.constant(end_column)))
        return n.op("Concat", controls, blocked, axis=1)

    def _advance(self, drawn: dict[str, Value], tokens: list[Value]) -> None:
        """Compute the state after the new token."""
        n = self.n
        hand, pitch = drawn["hand"], drawn["pitch"]
        note = n.op("Greater", hand, n.ints(0))
        self.memory.advance(drawn, note, n.op("GatherElements", "in_last_pitch", hand, axis=1))
        n.op("Where", note, drawn["tempo"], self.tempo, name="out_tempo")
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
        heard = n.op("Add", n.op("Mul", self.profile, n.constant(decays[None])), heard)
        n.op("Where", note, heard, self.profile, name="out_profile")
        keys = n.constant(np.arange(CONTROLS, CONTROLS + KEYS, dtype=np.int32)[None])
        struck = n.op("Equal", keys, pitch)
        n.op("Where", struck, n.op("Max", ticks, self.sounding), self.sounding, name="out_sounding")
        again = n.op("Where", n.op("Equal", pitch, "in_struck"), n.op("Add", "in_repeats", n.ints(1)), n.ints(1))
        n.op("Where", note, again, "in_repeats", name="out_repeats")
        first = n.op("And", played, n.op("Equal", self.chord_lowest, n.ints(0)))
        n.op("Where", first, pitch, self.chord_lowest, name="out_lowest")
        # A control's pitch field tells the pedal; a note's never equals it.
        down, up = (n.op("Equal", pitch, n.ints(control)) for control in (Control.PEDAL_DOWN, Control.PEDAL_UP))
        pedal = n.op("Where", up, n.ints(0), "in_pedal")
        n.op("Where", down, n.ints(1), pedal, name="out_pedal")
