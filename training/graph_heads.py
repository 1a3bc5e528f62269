"""The heads of the inference graph: the fields of a token drawn one after the other, by softmax, min-p and a random number each.

What each drawn field adds to the heads after it is looked up once, for all of them side by side; `rest` holds those heads.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from service.music.playable import MAX_REPEATS
from service.music.representation import CONTROL, FIELDS, MAX_BAR, VOCABULARY, Control
from training.graph_memory import NEVER, MemoryNodes
from training.model import (
    COPIED_FIELDS,
    HANDS,
    LAST_FIELDS,
    PITCH_CLASS,
    PITCH_CLASSES,
    PROFILE_DECAYS,
    PROFILE_ROLL,
    RELATIVE_FIELDS,
    ModelConfig,
    grammar,
)
from training.nodes import Array, Nodes, Value, transposed
from training.products import Factor, Products

MAX_CONTROLS = 4  # in a row; the data has few longer runs, and a piece must go on
UNPLAYABLE = -1e4  # milder than FORBIDDEN of a request's biases, which win where everything is unplayable
HAND_RULE = np.array([[UNPLAYABLE] + [0] * (HANDS - 1)], np.float32)  # no control, where none may come
PITCH_RULE = np.array([[UNPLAYABLE]], np.float32)
_PROFILE = len(PROFILE_DECAYS) * PITCH_CLASSES
_MASKED = FIELDS[2:]  # fields whose values depend on whether the token is a note
_CONTROLS = len(Control)
assert Control.PEDAL_DOWN // 2 == Control.PEDAL_UP // 2 not in (Control.END // 2, Control.WAIT // 2)  # how `Step` tells them
_KEYS = np.arange(VOCABULARY.pitch, dtype=np.int32)


class Heads:
    """The nodes of one step that draw.

    Attributes
    ----------
    last_pitch : Value
        Of the drawn hand, (B, 1).
    sounding, reach : Value
        `state_sounding` and `state_reach` as they are at the new onset, before the new note.
    """

    def __init__(
        self, n: Nodes, config: ModelConfig, weights: Mapping[str, Array], products: Products, memory: MemoryNodes
    ) -> None:
        self.n, self.config, self.weights, self.products, self.memory = n, config, weights, products, memory

    def draw(self, x: Sequence[Factor], read_indices: Value) -> dict[str, Value]:
        """Draw all fields; return their values, (B, 1) each.

        Parameters
        ----------
        x : sequence of Factor
            The last layer's output.
        read_indices : Value
            Position, metre, and the classes of notes and bars left, (B, 4).
        """
        n, w = self.n, self.weights
        self.drawn: dict[str, Value] = {}
        self.probabilities: list[Value] = []
        heads = self.products.dense(x, transposed(w["to_heads.weight"]), w["to_heads.bias"])
        z, rest = self._next(n.op("Add", heads, n.summed_rows(self._context_tables(), read_indices)), 0)
        shift = self._draw("shift", z, None)
        # The piece ends at its last barline, if it must.
        left = n.op("Max", n.op("Sub", "must_end_at", "in_time"), n.ints(0))
        at_end = n.op("GreaterOrEqual", shift, left)
        self.drawn["shift"] = n.op("Min", shift, left)
        time = n.op("Add", "in_time", self.drawn["shift"], name="out_time")
        position = n.op("Mod", n.op("Add", time, "in_offset"), "in_bar")
        position = n.op("Min", position, n.ints(MAX_BAR - 1), name="out_position")
        of_position = np.concatenate([w[f"head_positions.{name}.weight"] for name in FIELDS[1:]], axis=1)
        added = [self._looked_up(self._table("shift"), self.drawn["shift"]), self._looked_up(of_position, position)]
        z, rest = self._next(n.op("Sum", rest, *added), 1)
        self.drawn["hand"] = n.op("Where", at_end, n.ints(CONTROL), self._draw("hand", z, None, self._hand_rule()))
        rest, masks = self._after_hand(rest)
        z, rest = self._next(rest, 2)
        pitch = self._draw("pitch", z, self.last_pitch, masks["pitch"], self._pitch_rule())
        self.drawn["pitch"] = n.op("Where", at_end, n.ints(Control.END), pitch)
        for i, name in enumerate(FIELDS[3:], start=3):
            rest = n.op("Add", rest, self._looked_up(self._table(FIELDS[i - 1]), self.drawn[FIELDS[i - 1]]))
            z, rest = self._next(rest, i)
            last = {"velocity": self.last_velocity, "tempo": "in_tempo"}.get(name)
            self.drawn[name] = self._draw(name, z, last, masks[name])
        n.op("Concat", *self.drawn.values(), axis=1, name="out_token")
        starts = np.cumsum([0, *VOCABULARY])[:-1].astype(np.int32)
        index = n.op("Add", "out_token", n.constant(starts[None]))
        n.op("GatherElements", n.op("Concat", *self.probabilities, axis=1), index, axis=1, name="out_probability")
        return self.drawn

    def struck_again(self, pitch: Value) -> Value:
        """Return whether a pitch is that of the last note, bool (B, 1)."""
        return self.n.op("Equal", self.n.op("Add", pitch, self.n.ints(NEVER)), "in_struck")

    def _next(self, heads: Value, i: int) -> tuple[Value, Value]:
        """Return the head of field i and those of the fields after it, from all of these side by side."""
        width, after = self.config.head, len(FIELDS) - i - 1
        first, *rest = self.n.split(heads, [width, after * width] if after else [width])
        return first, rest[0] if rest else ""

    def _context_tables(self) -> list[Array]:
        """Return what position, metre, notes and bars left add to all heads: the first two to that of the shift alone."""
        names = ("position", "metre", "notes_left", "bars_left")
        tables = [self.weights[f"head_contexts.{name}.weight"] for name in names]
        width = len(FIELDS) * self.config.head
        return [np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables]

    def _table(self, name: str) -> Array:
        """Return what each value of a drawn field adds to the heads after it, side by side."""
        after = FIELDS[FIELDS.index(name) + 1 :]
        return np.concatenate([self.weights[f"drawn_embeddings.{head}.{name}.weight"] for head in after], axis=1)

    def _looked_up(self, table: Array, index: Value) -> Value:
        """Return rows of a table by an index (B, 1)."""
        return self.n.row(table, self.n.op("Reshape", index, self.n.axes(-1)))

    def _after_hand(self, rest: Value) -> tuple[Value, dict[str, Value]]:
        """Add what the hand and its last note mean for the heads after it; return these, and the masks of the fields."""
        n, width = self.n, self.config.head
        masks = grammar()
        table = np.concatenate([self._table("hand"), *(masks[name] for name in _MASKED)], axis=1)
        sizes = [len(_MASKED) * width, *(getattr(VOCABULARY, name) for name in _MASKED)]
        of_hand, *by_field = n.split(self._looked_up(table, self.drawn["hand"]), sizes)
        columns = n.op("Add", self.drawn["hand"], n.constant((HANDS * np.arange(len(LAST_FIELDS), dtype=np.int32))[None]))
        last = n.op("GatherElements", "in_last", columns, axis=1)
        self.last_pitch, _, self.last_velocity = n.split(last, [1] * len(LAST_FIELDS))
        tables = [self.weights[f"head_lasts.{name}.weight"] for name in _MASKED]
        of_each = n.row_of_each(tables, n.op("Concat", last, "in_tempo", axis=1))
        of_last = n.op("Reshape", of_each, n.axes(-1, len(_MASKED) * width))
        return n.op("Sum", rest, of_hand, of_last), dict(zip(_MASKED, by_field, strict=True))

    def _draw(self, name: str, z: Value, last: Value | None, *added: Value) -> Value:
        """Draw a field from its head (B, D), before it is rectified; `added` are further terms of its logits."""
        n, w = self.n, self.weights
        size, copied = getattr(VOCABULARY, name), name in COPIED_FIELDS
        if copied:
            offers = self.memory.agreeing(name, self.drawn, self.last_pitch if name == "pitch" else None)
            z = self.memory.agreement(name, offers, z)
        parts = {"own": (transposed(w[f"outputs.{name}.weight"]), w[f"outputs.{name}.bias"])}
        if name in RELATIVE_FIELDS:
            parts["relative"] = (transposed(w[f"relative_outputs.{name}.weight"]), w[f"relative_outputs.{name}.bias"])
        if copied:
            parts["scales"] = self.memory.scales(name)
        if name == "pitch":
            kernel = np.concatenate([w["profile_kernel.weight"], w["key_kernel.weight"]])
            parts["kernel"] = (transposed(kernel), np.concatenate([w["profile_kernel.bias"], w["key_kernel.bias"]]))
        weight = np.concatenate([part[0] for part in parts.values()], axis=1)
        bias = np.concatenate([part[1] for part in parts.values()])
        scores = self.products.dense([self.products.rectified(f"head_{name}", z, self.config.head)], weight, bias)
        scores = n.op("Mul", scores, f"inverse_temperature_{name}")
        found = dict(zip(parts, n.split(scores, [len(part[1]) for part in parts.values()]), strict=True))
        terms = [found["own"], "bias_of_pitch" if name == "pitch" else f"bias_{name}", *added]
        if name in RELATIVE_FIELDS:
            index = n.op("Sub", n.constant(np.arange(size - 1, 2 * size - 1, dtype=np.int32)[None]), last or "")
            terms.append(n.op("GatherElements", found["relative"], index, axis=1))
        if name == "pitch":
            terms[0] = self._profile_scores(found["kernel"], terms[0])
        scores = n.op("Sum", *terms)
        likeliest = n.op("ReduceMax", scores, n.axes(1), keepdims=1)
        highest = likeliest
        if copied:
            scores = self.memory.copy(name, scores, offers, found["scales"])
            highest = n.op("ReduceMax", scores, n.axes(1), keepdims=1)
            highest = n.op("Min", highest, n.op("Add", likeliest, f"only_{name}"))
        return self._sample(name, scores, n.op("Add", highest, f"floor_{name}"))

    def _profile_scores(self, kernel: Value, scores: Value) -> Value:
        """Add to the logits of the pitches what the pitch classes heard lately say, weighed by a kernel (B, entries)."""
        n = self.n
        turn = np.eye(_PROFILE, dtype=np.float32)[:, PROFILE_ROLL.ravel()]  # as a product: faster than to gather
        rolled = n.op("MatMul", "in_profile", n.constant(turn))
        rolled = n.op("Concat", n.op("Reshape", rolled, n.axes(-1, PITCH_CLASSES, _PROFILE)), "key_profiles", axis=2)
        weighed = n.op("Mul", rolled, n.op("Unsqueeze", kernel, n.axes(1)))
        by_class = n.op("ReduceSum", weighed, n.axes(2), keepdims=0)
        return n.gemm(by_class, np.eye(PITCH_CLASSES, dtype=np.float32)[:, PITCH_CLASS], scores)

    def _sample(self, name: str, scores: Value, floor: Value) -> Value:
        """Draw from the softmax of scores (B, V), of those not under the floor, by the inverse of the cumulative distribution.

        The first value whose cumulative mass exceeds uniform x total always has mass of its own, so that what has none,
        being forbidden or under the floor, is never drawn.
        """
        n = self.n
        p = n.op("Softmax", scores, axis=1)
        self.probabilities.append(p)
        kept = n.op("Where", n.op("Less", scores, floor), n.constant(np.zeros((1, 1), np.float32)), p)
        cumulative = n.op("CumSum", kept, n.axes(1))
        size = getattr(VOCABULARY, name)
        threshold = n.op("Mul", f"in_uniform_{name}", n.slice(cumulative, size - 1, size))
        below = n.op("Cast", n.op("LessOrEqual", cumulative, threshold), to=TensorProto.INT32)
        value = n.op("ReduceSum", below, n.axes(1), keepdims=1)
        return n.op("Where", f"in_free_{name}", value, f"in_forced_{name}")

    def _hand_rule(self) -> Value:
        """No control within a chord (controls stand before it), and not too many in a row."""
        n = self.n
        was_note = n.op("Greater", n.slice("in_token", 1, 2), n.ints(0))
        self.in_chord = n.op("And", n.op("Equal", self.drawn["shift"], n.ints(0)), was_note)
        no_control = n.op("Or", self.in_chord, n.op("GreaterOrEqual", "in_controls", n.ints(MAX_CONTROLS)))
        return n.op("Where", no_control, "rule_hand", n.constant(np.zeros((1, 1), np.float32)))

    def _pitch_rule(self) -> Value:
        """No key that is down, none out of the hand's reach, none again and again; within a chord upwards; the pedal in turn.

        What is more than zero is forbidden: ticks that a key still sounds, or how far it lies outside of what can be struck.
        """
        n = self.n
        self.sounding = n.op("Max", n.op("Sub", "in_sounding", self.drawn["shift"]), n.ints(0))
        # Within a chord the notes of a hand before this one stay.
        self.reach = n.op("Where", self.in_chord, "in_reach", n.ints(NEVER))
        highest = n.op("GatherElements", self.reach, self.drawn["hand"], axis=1)
        lowest = n.op("Where", self.in_chord, n.slice("in_token", 2, 3), n.ints(0))
        is_control = _KEYS < _CONTROLS
        too_low = n.op("Sub", lowest, n.constant(np.where(is_control, NEVER, _KEYS - 1)[None].astype(np.int32)))
        too_high = n.op("Sub", n.constant(np.where(is_control, -NEVER, _KEYS)[None].astype(np.int32)), highest)
        down, up = (np.where(control == _KEYS, 1, 0)[None].astype(np.int32) for control in (Control.PEDAL_DOWN, Control.PEDAL_UP))
        pedal = n.op("Where", n.op("Equal", "in_pedal", n.ints(Control.PEDAL_DOWN)), n.constant(down), n.constant(up))
        wrong = n.op("Greater", n.op("Max", self.sounding, too_low, too_high, pedal), n.ints(0))
        worn = n.op("GreaterOrEqual", "in_repeats", n.ints(MAX_REPEATS))
        again = n.op("And", worn, self.struck_again(n.constant(_KEYS[None])))
        return n.op("Where", n.op("Or", wrong, again), "rule_pitch", n.constant(np.zeros((1, 1), np.float32)))
