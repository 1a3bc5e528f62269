"""The memory of the inference graph: the last tokens and the keys of what came before them, pointed at and copied from.

During a run of K steps the memory of before the run stays as it is, outside the Scan, and what is new collects in a buffer of K
slots beside it: to move the whole memory at every step would cost more than to read it. After the run both are joined, and the
last M slots kept.

State (besides that of `training.graph`)
    keys     float (B, P, key, M)      of each slot
    memory   int32 (B, SLOT + 2, M)    the fields of each slot (hand 0: empty), the onset before its note, the note's number
    codes    int32 (B, M)              of the last M notes, the latest last (`training.memory.note_codes`)
    match    int32 (B, M)              how many of the last notes equal those a distance before; column M - distance
    onset    int32 (B, 1)              of the last note
    notes    int32 (B, 1)              how many there are
    struck   int32 (B, 1)              pitch of the last note
"""

from typing import Any

import numpy as np
from onnx import TensorProto

from service.engine.interface import LAGS
from service.music.representation import MAX_SHIFT, VOCABULARY
from training.memory import (
    BAR_TICKS,
    EMPTY,
    INTERVAL_OFFSET,
    LAG_CLASS,
    LONGEST_MATCH,
    MATCH_CLASS,
    MATCHES,
    MAX_LAG_BARS,
    SLOT_FIELDS,
)
from training.model import AGREEMENT_FLOOR, SLOT_SIZES, UNIT_FLOOR, UNREACHABLE, ModelConfig
from training.nodes import Array, Nodes, Value, transposed

_ONSET_BEFORE, _NUMBER = len(SLOT_FIELDS), len(SLOT_FIELDS) + 1  # rows of `memory` after the slot's fields
_ROWS = len(SLOT_FIELDS) + 2
CARRIED = ("codes", "match", "onset", "notes", "struck")  # states of the Scan
BUFFERS = ("new_keys", "new_memory")  # what is new in this run


def memory_state(config: ModelConfig) -> dict[str, tuple[int, list[int]]]:
    """Return type and shape, without rows, of each part of the state."""
    integer, slots = TensorProto.INT32, config.memory
    return {
        "keys": (TensorProto.FLOAT, [config.pointers, config.key, slots]),
        "memory": (integer, [_ROWS, slots]),
        "codes": (integer, [slots]),
        "match": (integer, [slots]),
        "onset": (integer, [1]),
        "notes": (integer, [1]),
        "struck": (integer, [1]),
    }


def buffer_shapes(config: ModelConfig) -> dict[str, tuple[int, list[Any]]]:
    """Return type and shape, without rows, of the buffers of the Scan."""
    return {
        "new_keys": (TensorProto.FLOAT, [config.pointers, config.key, "K"]),
        "new_memory": (TensorProto.INT32, [_ROWS, "K"]),
    }


def open_buffers(n: Nodes, config: ModelConfig) -> None:
    """Write the nodes before the Scan: empty buffers, and the numbers of the steps, "steps" (K,)."""
    shape = n.op("Shape", "forced")
    steps, rows = n.slice(shape, 0, 1, axis=0), n.slice(shape, 1, 2, axis=0)
    count = n.op("Cast", n.op("Squeeze", steps, n.axes(0)), to=TensorProto.INT32)
    n.op("Range", n.constant(np.array(0, np.int32)), count, n.constant(np.array(1, np.int32)), name="steps")
    for name, (kind, sizes) in buffer_shapes(config).items():
        zero = n.constant(np.zeros(1, np.float32 if kind == TensorProto.FLOAT else np.int32))
        n.op("Expand", zero, n.op("Concat", rows, n.axes(*sizes[:-1]), steps, axis=0), name=f"empty_{name}")


def close_buffers(n: Nodes, config: ModelConfig) -> None:
    """Write the nodes after the Scan: the last M slots of memory and buffer."""
    for name, axis in (("keys", 3), ("memory", 2)):
        both = n.op("Concat", f"state_{name}", f"last_new_{name}", axis=axis)
        n.op("Slice", both, n.axes(-config.memory), n.axes(2**31 - 1), n.axes(axis), name=f"next_{name}")


class MemoryNodes:
    """The nodes of one step that read the memory, and those that write it."""

    def __init__(self, n: Nodes, config: ModelConfig, weights: dict[str, Array]) -> None:
        self.n, self.config, self.weights = n, config, weights

    def matched(self) -> Value:
        """Return the class of the longest match, (B, 1)."""
        n = self.n
        longest = n.op("ReduceMax", "in_match", n.axes(1), keepdims=1)
        return n.op("Gather", n.constant(MATCH_CLASS.astype(np.int32)), n.op("Min", longest, n.ints(LONGEST_MATCH)), axis=0)

    def point(self, x: Value, metre_index: Value) -> Value:
        """Choose the offers by the first layer's output (B, H); return what the layers above read, (B, P * read)."""
        n, config = self.n, self.config
        self.key = n.op("Unsqueeze", self._unit(self._linear("key", x)), n.axes(3))  # (B, P, key, 1), of this step's slot
        sharpness = n.constant(self.weights["sharpness"][:, None])
        query = n.op("Unsqueeze", n.op("Mul", self._unit(self._linear("query", x)), sharpness), n.axes(2))  # (B, P, 1, key)
        near = n.op("MatMul", query, "in_new_keys")
        scores = n.op("Squeeze", n.op("Concat", n.op("MatMul", query, "state_keys"), near, axis=3), n.axes(2))  # (B, P, S)
        self.slots = n.op("Concat", "state_memory", "in_new_memory", axis=2)  # (B, rows, S)
        of_class = self._class_scores(x)
        classes = self._classes(metre_index)  # (B, 1, S)
        many = n.op("Expand", classes, n.axes(1, config.pointers, 1))
        scores = n.op("Add", scores, n.op("GatherElements", of_class, many, axis=2))
        best, chosen = n.top(scores, config.offers)
        nothing = n.op("Unsqueeze", self._linear("nothing", x), n.axes(2))
        top = n.op("Max", n.slice(best, 0, 1, axis=2), nothing)
        mass = n.op("Exp", n.op("Sub", best, top))
        mass = n.op("Sub", mass, n.slice(mass, -1, 2**31 - 1, axis=2))
        total = n.op("Add", n.op("ReduceSum", mass, n.axes(2), keepdims=1), n.op("Exp", n.op("Sub", nothing, top)))
        self.offered = n.op("Mul", n.op("Div", mass, total), n.op("Unsqueeze", "copying", n.axes(2)))  # (B, P, k)
        index = n.op("Reshape", chosen, n.axes(0, 1, -1))
        found = n.op("GatherElements", self.slots, n.op("Expand", index, n.axes(1, _ROWS, 1)), axis=2)  # (B, rows, P * k)
        self.values = {name: n.op("Squeeze", n.slice(found, i, i + 1), n.axes(1)) for i, name in enumerate(SLOT_FIELDS)}
        self.weight = n.op("Reshape", self.offered, n.axes(0, -1))  # (B, P * k)
        self.elapsed = n.op("Sub", "in_time", "in_onset")
        self.shift = n.op("Sub", self.values["shift"], self.elapsed)
        return self._read()

    def agreeing(self, name: str, drawn: dict[str, Value], last_pitch: Value | None) -> Value:
        """Return the weights of the offers that agree with the fields drawn before one, (B, P * k)."""
        n = self.n
        if name == "shift":
            self.in_time = n.op("Mul", self.weight, n.flag(n.op("GreaterOrEqual", self.shift, n.ints(0))))
            return self.in_time
        if name == "hand":
            self.at_once = n.op("Mul", self.in_time, n.flag(n.op("Equal", self.shift, drawn["shift"])))
            return self.at_once
        if name == "pitch":
            assert last_pitch is not None
            self.same_hand = n.flag(n.op("Equal", self.values["hand"], drawn["hand"]))
            interval = n.op("Sub", self.values["interval"], n.ints(INTERVAL_OFFSET))
            self.transposed = n.op("Add", interval, last_pitch)
            return n.op("Mul", self.at_once, self.same_hand)
        if name == "duration":
            same = n.op("Equal", self.values["pitch"], drawn["pitch"])
            same = n.op("Or", same, n.op("Equal", self.transposed, drawn["pitch"]))
            self.same_note = n.op("Mul", self.weight, n.op("Mul", self.same_hand, n.flag(same)))
        return self.same_note

    def agreement(self, name: str, weights: Value) -> Value:
        """Return what a head knows of the agreeing offers, (B, D)."""
        n = self.n
        mass = n.op("ReduceSum", self._by_pointer(weights), n.axes(2), keepdims=0)
        return n.op("MatMul", mass, n.constant(transposed(self.weights[f"agreement.{name}.weight"])))

    def copy(self, name: str, scores: Value, z: Value, weights: Value, factor: Value) -> Value:
        """Return the logits of a field (B, V), raised at the values that the offers propose."""
        n, pointers = self.n, self.config.pointers
        by_pointer = self._by_pointer(weights)
        floor = n.constant(np.array(AGREEMENT_FLOOR, np.float32))
        share = n.op("Div", by_pointer, n.op("Add", n.op("ReduceSum", by_pointer, n.axes(2), keepdims=1), floor))
        scales = n.op("Mul", self._linear(f"copy_scales.{name}", z), factor)
        proposals = [self.shift if name == "shift" else self.values[name]]
        if name == "pitch":
            proposals.append(self.transposed)
        for i, value in enumerate(proposals):
            scale = n.op("Unsqueeze", n.slice(scales, i * pointers, (i + 1) * pointers), n.axes(2))
            raised = n.op("Reshape", n.op("Mul", share, scale), n.axes(0, -1))
            size = getattr(VOCABULARY, name)
            if name in ("shift", "pitch"):  # what lies outside the vocabulary is offered to nobody
                inside = n.op("And", n.op("GreaterOrEqual", value, n.ints(0)), n.op("Less", value, n.ints(size)))
                raised = n.op("Mul", raised, n.flag(inside))
                value = n.op("Where", inside, value, n.ints(0))
            scores = n.op("ScatterElements", scores, value, raised, axis=1, reduction="add")
        return scores

    def advance(self, drawn: dict[str, Value], note: Value, own_last: Value) -> None:
        """Write the new token into the buffer, and count it if it is a note: bool (B, 1)."""
        n, memory = self.n, self.config.memory
        shift = n.op("Min", n.op("Sub", "out_time", "in_onset"), n.ints(MAX_SHIFT))
        interval = n.op("Add", n.op("Sub", drawn["pitch"], own_last), n.ints(INTERVAL_OFFSET))
        fields = [shift, drawn["hand"], drawn["pitch"], interval, drawn["duration"], drawn["velocity"], "in_onset", "in_notes"]
        slot = n.op("Where", note, n.op("Concat", *fields, axis=1), n.ints(0))
        here = n.op("Equal", "steps", "in_step")  # (K,)
        n.op("Where", here, n.op("Unsqueeze", slot, n.axes(2)), "in_new_memory", name="out_new_memory")
        n.op("Where", here, self.key, "in_new_keys", name="out_new_keys")
        base = n.constant(np.array([2 * INTERVAL_OFFSET], np.int32))
        step = n.op("Sub", drawn["pitch"], "in_struck")
        code = n.op("Add", n.op("Mul", shift, base), n.op("Add", step, n.ints(1 + INTERVAL_OFFSET)))
        code = n.op("Where", n.op("Greater", "in_notes", n.ints(0)), code, n.ints(0))
        equal = n.op("And", n.op("Equal", "in_codes", code), n.op("Greater", "in_codes", n.ints(0)))
        longer = n.op("Where", equal, n.op("Add", "in_match", n.ints(1)), n.ints(0))
        n.op("Where", note, n.op("Min", longer, n.ints(LONGEST_MATCH)), "in_match", name="out_match")
        moved = n.op("Concat", n.slice("in_codes", 1, memory), code, axis=1)
        n.op("Where", note, moved, "in_codes", name="out_codes")
        n.op("Where", note, "out_time", "in_onset", name="out_onset")
        n.op("Where", note, n.op("Add", "in_notes", n.ints(1)), "in_notes", name="out_notes")
        n.op("Where", note, drawn["pitch"], "in_struck", name="out_struck")

    def _linear(self, name: str, x: Value) -> Value:
        n, w = self.n, self.weights
        product = n.op("MatMul", x, n.constant(transposed(w[f"{name}.weight"])))
        return n.op("Add", product, n.constant(w[f"{name}.bias"]))

    def _unit(self, value: Value) -> Value:
        """Return P unit vectors, (B, P, key)."""
        n = self.n
        vectors = self._split(value, self.config.key)
        square = n.op("ReduceSumSquare", vectors, n.axes(2), keepdims=1)
        return n.op("Div", vectors, n.op("Sqrt", n.op("Add", square, n.constant(np.array(UNIT_FLOOR, np.float32)))))

    def _split(self, value: Value, *sizes: int) -> Value:
        return self.n.op("Reshape", value, self.n.axes(0, self.config.pointers, *sizes))

    def _by_pointer(self, offers: Value) -> Value:
        return self._split(offers, self.config.offers)

    def _class_scores(self, x: Value) -> Value:
        """Return the score of each class for each pointer, (B, P, CLASSES + 1)."""
        n, pointers = self.n, self.config.pointers
        scores = self._split(self._linear("class_scores", x), MATCHES + LAGS)
        of_match = n.op("Unsqueeze", n.slice(scores, 0, MATCHES, axis=2), n.axes(3))
        of_lag = n.op("Add", n.slice(scores, MATCHES, MATCHES + LAGS, axis=2), n.op("Unsqueeze", "lag_bias", n.axes(1)))
        of_lag = n.op("Unsqueeze", of_lag, n.axes(2))
        both = n.op("Reshape", n.op("Add", of_match, of_lag), n.axes(0, pointers, MATCHES * LAGS))
        return n.op("Pad", both, n.axes(0, 0, 0, 0, 0, 1), n.constant(np.array(UNREACHABLE, np.float32)))

    def _classes(self, metre_index: Value) -> Value:
        """Return the class of each slot as an offer for the next token, (B, 1, S)."""
        n, memory = self.n, self.config.memory
        hand, onset_before, number = (n.slice(self.slots, i, i + 1) for i in (SLOT_FIELDS.index("hand"), _ONSET_BEFORE, _NUMBER))
        distance = n.op("Sub", n.op("Unsqueeze", "in_notes", n.axes(2)), number)  # in notes; 1 is the last one
        # An empty slot may have any distance; what it then finds does not count.
        column = n.op("Clip", n.op("Sub", n.ints(memory), distance), n.ints_scalar(0), n.ints_scalar(memory - 1))
        match = n.op("GatherElements", n.op("Unsqueeze", "in_match", n.axes(1)), column, axis=2)
        match_class = n.op("Gather", n.constant(MATCH_CLASS.astype(np.int32) * LAGS), match, axis=0)
        lag = n.op("Sub", n.op("Unsqueeze", "in_onset", n.axes(2)), onset_before)
        bar = n.op("Unsqueeze", n.op("Gather", n.constant(np.maximum(BAR_TICKS, 1)), metre_index, axis=0), n.axes(2))
        known = n.op("Unsqueeze", n.op("Gather", n.constant(np.minimum(BAR_TICKS, 1)), metre_index, axis=0), n.axes(2))
        bars = n.op("Mul", n.op("Div", lag, bar), known)
        whole = n.op("Equal", n.op("Mul", bars, bar), lag)
        lag_class = n.op("Gather", n.constant(LAG_CLASS.astype(np.int32)), n.op("Min", bars, n.ints(MAX_LAG_BARS)), axis=0)
        classes = n.op("Add", match_class, n.op("Where", whole, lag_class, n.ints(0)))
        # Slots further back than M tokens, which are here only because a run began with all M, do not count.
        slot = n.op("Range", n.ints_scalar(0), n.op("Cast", n.length(self.slots, 2), to=TensorProto.INT32), n.ints_scalar(1))
        filled = n.op("And", n.op("Greater", hand, n.ints(0)), n.op("GreaterOrEqual", slot, "in_step"))
        return n.op("Where", filled, classes, n.ints(EMPTY))

    def _read(self) -> Value:
        n, config = self.n, self.config
        starts = np.cumsum([0, *SLOT_SIZES.values()])
        index = [
            n.op("Add", self._by_pointer(self.values[name]), n.ints(int(at)))
            for name, at in zip(SLOT_SIZES, starts, strict=False)
        ]
        many = n.op("Concat", *[self.offered] * len(index), axis=2)
        rows = n.op("Shape", self.offered, start=0, end=2)  # rows and pointers
        shape = n.op("Concat", rows, n.axes(int(starts[-1])), axis=0)
        zeros = n.op("Expand", n.constant(np.zeros(1, np.float32)), shape)
        dense = n.op("ScatterElements", zeros, n.op("Concat", *index, axis=2), many, axis=2, reduction="add")
        read = n.op("MatMul", dense, n.constant(transposed(self.weights["slot_embedding.weight"]), "slot_embedding"))
        return n.op("Reshape", read, n.axes(0, config.pointers * config.read))
