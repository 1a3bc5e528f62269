"""One step of the inference graph, the body of its Scan: one token for every row.

Three parts, one after the other: the LSTM reads the token before and the running values; the fields are drawn, each by its head
(`training.graph_heads`); and the running values go on to the new token.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from service.music.playable import MAX_STRETCH
from service.music.representation import DURATIONS, FIELDS, VOCABULARY, Control
from training.conditions import BARS_LEFT_CLASS, MAX_BARS_LEFT, MAX_NOTES_LEFT, NOTES_LEFT_CLASS
from training.graph_heads import Heads
from training.graph_memory import CARRIED, MemoryNodes, buffer_shapes, memory_state
from training.memory import MATCH_CLASS
from training.model import HANDS, LAST_FIELDS, MAX_HELD, PITCH_CLASSES, PROFILE_DECAYS, Network, profile_steps
from training.nodes import Array, Nodes, Value
from training.products import Factor, Products

_HANDS_ROW = np.array([-1, *range(1, HANDS)], np.int32)  # hand 0 has no last note: no hand equals -1


class Step:
    """The body of the Scan.

    Parameters
    ----------
    n : Nodes
        Where the nodes go; the constants stay there, for the outer graph to hold.
    network : Network
    weights : mapping of str to float32 array
        Of the network.
    products : Products
        How its large products are computed.
    """

    def __init__(self, n: Nodes, network: Network, weights: dict[str, Array], products: Products) -> None:
        self.n, self.config, self.weights, self.products = n, network.config, weights, products
        self.memory = MemoryNodes(n, network.config, weights, products)

    def state_shapes(self) -> dict[str, tuple[int, list[int]]]:
        """Return type and shape, without rows, of each part of the state that the Scan carries."""
        config, integer = self.config, TensorProto.INT32
        shapes: dict[str, tuple[int, list[int]]] = {}
        for i in range(config.layers):
            shapes |= {f"h{i}": (self.products.state_type, [config.hidden]), f"c{i}": (TensorProto.FLOAT, [config.hidden])}
        shapes |= {
            "token": (integer, [len(FIELDS)]),
            "time": (integer, [1]),
            "position": (integer, [1]),
            "tempo": (integer, [1]),
            "last": (integer, [len(LAST_FIELDS) * HANDS]),  # of each field in turn, the last value of each hand
            "held": (integer, [HANDS]),  # ticks until each hand is silent
            "profile": (TensorProto.FLOAT, [len(PROFILE_DECAYS) * PITCH_CLASSES]),
            "sounding": (integer, [VOCABULARY.pitch]),  # ticks until each key is released
            "pedal": (integer, [1]),  # the last control that moved it, 0 before the first
            "controls": (integer, [1]),  # control tokens in a row
            "repeats": (integer, [1]),  # notes in a row of the last pitch
            "reach": (integer, [HANDS]),  # highest pitch that each hand can strike beside what it has struck at this onset
        }
        kept = {name: spec for name, spec in memory_state(config, self.products.vector_type).items() if name in CARRIED}
        for name in ("codes", "match"):  # and a column that belongs to no note
            kept[name] = (integer, [config.memory + 1])
        return shapes | kept

    def scanned(self) -> dict[str, tuple[int, list[Any]]]:
        """Return type and shape of each input that has a part for every step."""
        integer = TensorProto.INT32
        each: dict[str, tuple[int, list[Any]]] = {}
        for name in FIELDS:
            each |= {
                f"free_{name}": (TensorProto.BOOL, ["B", 1]),
                f"forced_{name}": (integer, ["B", 1]),
                f"uniform_{name}": (TensorProto.FLOAT, ["B", 1]),
            }
        each |= {name: (integer, ["B", 1]) for name in ("metre", "bar", "bar_less_one", "offset")}
        return each | {
            "lag_bar": (integer, ["B", 1, 1]),
            "column": (integer, ["B", self.config.pointers * self.config.key]),
            "written": (TensorProto.BOOL, ["K"]),
            "passed": (integer, ["S"]),
        }

    def build(self) -> Any:
        """Return the body as a graph."""
        n = self.n
        x = self._lstm()
        heads = Heads(n, self.config, self.weights, self.products, self.memory)
        drawn = heads.draw(x, self.read_indices)
        self._advance(drawn, heads)
        carried = self.state_shapes() | buffer_shapes(self.config, self.products.vector_type)
        inputs = [_info(f"in_{name}", kind, ["B", *shape]) for name, (kind, shape) in carried.items()]
        inputs += [_info(f"in_{name}", kind, shape) for name, (kind, shape) in self.scanned().items()]
        # The token is an output twice, as state and as result: the names of outputs must differ.
        n.op("Identity", "out_token", name="out_next_token")
        names = {name: "out_next_token" if name == "token" else f"out_{name}" for name in carried}
        outputs = [_info(names[name], kind, ["B", *shape]) for name, (kind, shape) in carried.items()]
        outputs += [
            _info("out_token", TensorProto.INT32, ["B", len(FIELDS)]),
            _info("out_probability", TensorProto.FLOAT, ["B", len(FIELDS)]),
        ]
        return helper.make_graph(n.nodes, "one_note", inputs, outputs)

    def _lstm(self) -> list[Factor]:
        """Return the last layer's output as a factor."""
        n, w, config = self.n, self.weights, self.config
        # One row a value, all tables in one. What the heads read too comes last.
        hands = range(1, HANDS)
        nothing = np.zeros((1, config.embedding), np.float32)  # of hand 0, which has no last note
        tables = [w[f"field_embeddings.{name}.weight"] for name in FIELDS]
        tables += [w["tempo_embedding.weight"], w["matched_embedding.weight"][MATCH_CLASS]]
        for name in ("last_pitch_embeddings", "held_embeddings"):
            tables += [nothing, *(w[f"{name}.{hand}.weight"] for hand in hands)]
        tables += [w["position_embedding.weight"], w["condition_embeddings.metre.weight"]]
        tables += [w["notes_left_embedding.weight"], w["bars_left_embedding.weight"]]
        held = n.op("Min", "in_held", n.constant(np.array([0, *[MAX_HELD] * (HANDS - 1)], np.int32)))
        last_pitch = n.slice("in_last", 0, HANDS)
        self.read_indices = n.op("Concat", "in_position", "in_metre", self._notes_left(), self._bars_left(), axis=1)
        indices = n.op("Concat", "in_token", "in_tempo", self.memory.matched(), last_pitch, held, self.read_indices, axis=1)
        profile = np.ascontiguousarray(w["profile_input.weight"].T)
        x = n.gemm("in_profile", profile, n.op("Add", n.summed_rows(tables, indices), "piece_embedding"))
        factors = [self.products.factor(n, "x", x, config.embedding)]
        for i in range(config.layers):
            own = self.products.given(f"in_h{i}", config.hidden)
            weight = np.concatenate([w[f"layers.{i}.weight_x"], w[f"layers.{i}.weight_h"]], axis=1).T
            factors = [self._cell(i, self.products.dense([*factors, own], weight, w[f"layers.{i}.bias"]))]
            if i == 0:
                read = self.memory.point(factors[0])
                factors.append(self.products.factor(n, "read", read, config.pointers * config.read))
        # A network of one layer hands its memory to nobody.
        return factors[:1]

    def _cell(self, layer: int, gates: Value) -> Factor:
        n, hidden = self.n, self.config.hidden
        sigmoids, candidate = n.split(gates, [3 * hidden, hidden])
        i, f, o = n.split(n.op("Sigmoid", sigmoids), [hidden] * 3)
        cell = n.op("Mul", i, n.op("Tanh", candidate))
        cell = n.op("Add", n.op("Mul", f, f"in_c{layer}"), cell, name=f"out_c{layer}")
        return self.products.factor(n, f"h{layer}", n.op("Mul", o, n.op("Tanh", cell)), hidden, out=f"out_h{layer}")

    def _notes_left(self) -> Value:
        """Return the class of the notes left, (B, 1): 0 if not told."""
        n = self.n
        count = n.op("Clip", n.op("Sub", "notes_in_all", "in_notes"), n.ints_scalar(0), n.ints_scalar(MAX_NOTES_LEFT))
        return n.op("Where", "notes_told", n.row(NOTES_LEFT_CLASS.astype(np.int32), count), n.ints(0))

    def _bars_left(self) -> Value:
        """Return the class of the bars left, (B, 1): 0 if not told."""
        n = self.n
        ticks = n.op("Max", n.op("Sub", "end", "in_time"), n.ints(0))
        bars = n.op("Min", n.op("Div", n.op("Add", ticks, "in_bar_less_one"), "in_bar"), n.ints(MAX_BARS_LEFT))
        return n.op("Where", "end_told", n.row(BARS_LEFT_CLASS.astype(np.int32), bars), n.ints(0))

    def _advance(self, drawn: Mapping[str, Value], heads: Heads) -> None:
        """Compute the state after the new token."""
        n = self.n
        hand, pitch = drawn["hand"], drawn["pitch"]
        note = n.op("Greater", hand, n.ints(0))
        self.memory.advance(dict(drawn), note, heads.last_pitch)
        n.op("Where", note, drawn["tempo"], "in_tempo", name="out_tempo")
        n.op("Where", note, n.ints(0), n.op("Add", "in_controls", n.ints(1)), name="out_controls")
        played = n.op("Equal", n.constant(np.tile(_HANDS_ROW, len(LAST_FIELDS))[None]), hand)
        of_field = np.repeat([FIELDS.index(name) for name in LAST_FIELDS], HANDS)
        values = n.op("Gather", "out_token", n.axes(*of_field), axis=1)
        n.op("Where", played, values, "in_last", name="out_last")
        ticks = n.row(DURATIONS.astype(np.int32), drawn["duration"])  # 0 of a control
        held = n.op("Max", n.op("Sub", "in_held", drawn["shift"]), n.ints(0))
        n.op("ScatterElements", held, hand, ticks, axis=1, reduction="max", name="out_held")
        n.op("ScatterElements", heads.sounding, pitch, ticks, axis=1, reduction="max", name="out_sounding")
        reached = n.op("Add", pitch, n.ints(MAX_STRETCH))  # a chord goes upwards: its first note decides
        n.op("ScatterElements", heads.reach, hand, reached, axis=1, reduction="min", name="out_reach")
        decays, added = profile_steps()
        heard = n.op("Reshape", n.row(added, pitch), n.axes(-1, len(decays)))
        heard = n.op("Add", n.op("Mul", "in_profile", n.constant(decays[None])), heard)
        n.op("Where", note, heard, "in_profile", name="out_profile")
        again = n.op("Where", heads.struck_again(pitch), n.op("Add", "in_repeats", n.ints(1)), n.ints(1))
        n.op("Where", note, again, "in_repeats", name="out_repeats")
        # A note's pitch field is never that of a control; of these, the two that move the pedal are 2 and 3.
        moves = n.op("Equal", n.op("Div", pitch, n.ints(2)), n.ints(Control.PEDAL_DOWN // 2))
        n.op("Where", moves, pitch, "in_pedal", name="out_pedal")


def _info(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)
