"""The memory of the inference graph: the last tokens and the keys of what came before them, pointed at and copied from.

During a run of K steps the memory of before the run stays as it is, outside the Scan, and what is new collects in a buffer of K
slots beside it: to move the whole memory at every step would cost more than to read it. S = K + M slots are there to be pointed
at, the latest first: most of the best offers are there, and the k best of many are found sooner where they come first. The run
gives the new slots alone (`new_keys`, `new_memory`): whoever holds the state puts them before it, and keeps the first M.

State (besides that of `training.graph`)
    keys     float (B, P, key, M)      of each slot; uint8 in the int8 graph
    memory   int32 (B, SLOT + 2, M)    the fields of each slot, the onset before its note, and its number less NEVER; 0 if empty
    codes    int32 (B, M)              of the last M notes, the latest last: shift and interval, 0 before the first
    match    int32 (B, M)              how many of the last notes equal those a distance before, times BARS; column M - distance
    onset    int32 (B, 1)              of the last note
    notes    int32 (B, 1)              how many there are
    struck   int32 (B, 1)              pitch of the last note
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from service.engine.interface import LAGS
from service.music.representation import MAX_SHIFT, VOCABULARY
from training.memory import BAR_TICKS, INTERVAL_OFFSET, LAG_CLASS, LONGEST_MATCH, MATCH_CLASS, MATCHES, MAX_LAG_BARS, SLOT_FIELDS
from training.model import AGREEMENT_FLOOR, SLOT_SIZES, UNIT_FLOOR, UNREACHABLE, ModelConfig
from training.nodes import Array, Nodes, Value, transposed
from training.products import Factor, Products

_ROWS = len(SLOT_FIELDS) + 2  # of `memory`
CARRIED = ("codes", "match", "onset", "notes", "struck")  # states of the Scan
BUFFERS = ("new_keys", "new_memory")  # what is new in this run

# How an offer's score is found by its class, without the class being computed: by the length of its match, 0 to LONGEST_MATCH and
# one more that no slot reaches, and by how many bars ago it was, 0 to MAX_LAG_BARS and one more for no whole number of bars.
# The columns of the network's scores of each class are laid out once for each of these.
_LENGTHS = np.array([*MATCH_CLASS, 0])
_BARS = np.array([*LAG_CLASS, 0])
BARS = len(_BARS)
NEVER = 2**30  # ticks or notes, more than any piece has, and far from where int32 overflows


def memory_state(config: ModelConfig, vector_type: int) -> dict[str, tuple[int, list[int]]]:
    """Return type and shape, without rows, of each part of the state."""
    integer, slots = TensorProto.INT32, config.memory
    return {
        "keys": (vector_type, [config.pointers, config.key, slots]),
        "memory": (integer, [_ROWS, slots]),
        "codes": (integer, [slots]),
        "match": (integer, [slots]),
        "onset": (integer, [1]),
        "notes": (integer, [1]),
        "struck": (integer, [1]),
    }


def new_shapes(config: ModelConfig, vector_type: int) -> dict[str, tuple[int, list[Any]]]:
    """Return type and shape, without rows, of what a run gives of the memory."""
    return {
        "new_keys": (vector_type, [config.pointers, config.key, "K"]),
        "new_memory": (TensorProto.INT32, [_ROWS, "K"]),
    }


def buffer_shapes(config: ModelConfig, vector_type: int) -> dict[str, tuple[int, list[Any]]]:
    """Return type and shape, without rows, of the buffers of the Scan, in which it is collected."""
    return {
        "new_keys": (vector_type, ["VECTORS"]),  # P * key * K
        "new_memory": (TensorProto.INT32, [_ROWS, "K"]),
    }


def open_buffers(n: Nodes, config: ModelConfig, vector_type: int, rows: Value, steps: Value) -> None:
    """Write the nodes before the Scan: empty buffers, which slots each step sees and writes, and room for what is no note.

    `rows` and `steps` are int64 (1,). An empty slot finds its match in a column of its own, the last one, which no class fits.
    """
    width = config.pointers * config.key
    sizes = {"new_keys": n.op("Mul", steps, n.axes(width)), "new_memory": n.op("Concat", n.axes(_ROWS), steps, axis=0)}
    for name, (kind, _) in buffer_shapes(config, vector_type).items():
        zero = n.constant(np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)))
        n.op("Expand", zero, n.op("Concat", rows, sizes[name], axis=0), name=f"empty_{name}")
    zeros = n.op("Expand", n.ints(0), n.op("Concat", rows, n.axes(1), axis=0), name="no_code")
    n.op("Concat", "state_codes", zeros, axis=1, name="begin_codes")
    n.op("Concat", "state_match", n.op("Add", zeros, n.ints(-NEVER)), axis=1, name="begin_match")
    count = n.op("Cast", n.op("Squeeze", steps, n.axes(0)), to=TensorProto.INT32)
    numbers = n.op("Range", n.ints_scalar(0), count, n.ints_scalar(1))
    by_step = n.op("Unsqueeze", numbers, n.axes(1))
    place = n.op("Sub", n.op("Sub", count, n.ints_scalar(1)), by_step)  # the first step writes the last slot
    n.op("Equal", place, numbers, name="scan_written")  # (K, K)
    column = n.op("Add", n.op("Mul", n.constant(np.arange(width, dtype=np.int32)[None]), count), place)  # (K, P * key)
    shape = n.op("Concat", steps, rows, n.axes(width), axis=0)
    n.op("Expand", n.op("Unsqueeze", column, n.axes(1)), shape, name="scan_column")
    total = n.op("Add", count, n.ints_scalar(config.memory))
    slots = n.op("Range", n.ints_scalar(0), total, n.ints_scalar(1))
    # Slots further back than M tokens, which are here only because a run began with all M, do not count.
    passed = n.op("GreaterOrEqual", n.op("Add", slots, by_step), total)
    n.op("Where", passed, n.ints(-NEVER), n.ints(0), name="scan_passed")  # (K, S)
    size = n.op("Unsqueeze", n.op("Cast", total, to=TensorProto.INT64), n.axes(0))
    n.op("Mul", n.constant(np.arange(len(SLOT_FIELDS))[None, :, None]), size, name="field_starts")
    width = sum(SLOT_SIZES.values())
    zero = n.constant(np.zeros(1, np.float32))
    n.op("Expand", zero, n.op("Concat", rows, n.axes(config.pointers * width), axis=0), name="nothing_read")
    bars = n.op("Gather", "lag_bias", n.axes(*_BARS), axis=1)
    n.op("Unsqueeze", bars, n.axes(1, 2), name="bars_bias")  # (B, 1, 1, BARS)
    # What is in no known metre comes back after no whole number of bars, but for what is at the same onset.
    ticks = n.row(np.where(BAR_TICKS > 0, BAR_TICKS, NEVER).astype(np.int32), n.slice("metre", 0, 1, axis=2))
    n.op("Unsqueeze", ticks, n.axes(3), name="scan_lag_bar")  # (K, B, 1, 1)


def close_buffers(n: Nodes, config: ModelConfig) -> None:
    """Write the nodes after the Scan: the new keys as they lie in the state; the notes without the column beside them."""
    n.op("Reshape", "last_new_keys", n.axes(0, config.pointers, config.key, -1), name="new_keys")
    n.op("Identity", "last_new_memory", name="new_memory")
    for name in ("codes", "match"):
        n.op("Slice", f"last_{name}", n.axes(0), n.axes(config.memory), n.axes(1), name=f"next_{name}")


class MemoryNodes:
    """The nodes of one step that read the memory, and those that write it."""

    def __init__(self, n: Nodes, config: ModelConfig, weights: dict[str, Array], products: Products) -> None:
        self.n, self.config, self.weights, self.products = n, config, weights, products

    def matched(self) -> Value:
        """Return the length of the longest match, (B, 1); its row of MATCH_CLASS is its class."""
        longest = self.n.op("ReduceMax", "in_match", self.n.axes(1), keepdims=1)
        return self.n.op("Div", longest, self.n.ints(BARS))

    def point(self, x: Factor) -> Value:
        """Choose the offers by the first layer's output; return what is read of them, (B, P * read)."""
        n, pointers, size = self.n, self.config.pointers, self.config.key
        weight, bias = self._projections()
        product = self.products.dense([x], weight, bias)
        vectors, lengths, bars, nothing = n.split(
            product, [2 * pointers * size, pointers * len(_LENGTHS) + pointers, pointers * BARS, pointers]
        )
        self.key, query = self._unit(vectors)
        near = n.op("Reshape", "in_new_keys", n.axes(0, pointers, size, -1))
        near_and_far = [self.products.scalar_products(query, self._sharpest, keys) for keys in (near, "state_keys")]
        scores = n.op("Reshape", n.op("Concat", *near_and_far, axis=3), n.axes(0, pointers, -1))
        self.slots = n.op("Concat", "in_new_memory", "state_memory", axis=2)  # (B, rows, S)
        scores = n.op("Add", scores, self._class_scores(lengths, bars))  # (B, P, S)
        best, chosen = n.top(scores, self.config.offers)
        self.weight = self._weigh(best, n.op("Unsqueeze", nothing, n.axes(2)))
        index = n.op("Add", n.op("Reshape", chosen, n.axes(0, 1, -1)), "field_starts")
        index = n.op("Reshape", index, n.axes(0, -1))
        found = n.op("GatherElements", n.op("Reshape", self.slots, n.axes(0, -1)), index, axis=1)  # (B, fields * P * k)
        values = n.split(found, [pointers * self.config.offers] * len(SLOT_FIELDS))
        self.values = dict(zip(SLOT_FIELDS, values, strict=True))
        self.elapsed = n.op("Sub", "in_time", "in_onset")
        self.shift = n.op("Sub", self.values["shift"], self.elapsed)
        return self._read(found)

    def agreeing(self, name: str, drawn: dict[str, Value], last_pitch: Value | None) -> Value:
        """Return the weights of the offers that agree with the fields drawn before one, (B, P * k)."""
        n = self.n
        none = n.constant(np.zeros((1, 1), np.float32))
        if name == "shift":
            self.in_time = n.op("Where", n.op("Less", self.shift, n.ints(0)), none, self.weight)
            return self.in_time
        if name == "hand":
            self.at_once = n.op("Where", n.op("Equal", self.shift, drawn["shift"]), self.in_time, none)
            return self.at_once
        if name == "pitch":
            assert last_pitch is not None
            self.same_hand = n.op("Equal", self.values["hand"], drawn["hand"])
            self.transposed = n.op("Add", self.values["interval"], n.op("Sub", last_pitch, n.ints(INTERVAL_OFFSET)))
            return n.op("Where", self.same_hand, self.at_once, none)
        if name == "duration":
            same = n.op("Equal", self.values["pitch"], drawn["pitch"])
            same = n.op("Or", same, n.op("Equal", self.transposed, drawn["pitch"]))
            self.same_note = n.op("Where", n.op("And", self.same_hand, same), self.weight, none)
        return self.same_note

    def agreement(self, name: str, weights: Value, z: Value) -> Value:
        """Return a head (B, D), to which is added what it knows of the agreeing offers."""
        table = np.repeat(transposed(self.weights[f"agreement.{name}.weight"]), self.config.offers, axis=0)
        return self.n.gemm(weights, table, z)

    def scales(self, name: str) -> tuple[Array, Array]:
        """Return weight (D, columns) and bias of how much a head lets each offer count, one set of P * k columns a proposal."""
        w = self.weights
        weight, bias = w[f"copy_scales.{name}.weight"], w[f"copy_scales.{name}.bias"]
        return transposed(np.repeat(weight, self.config.offers, axis=0)), np.repeat(bias, self.config.offers)

    def copy(self, name: str, scores: Value, weights: Value, scales: Value) -> Value:
        """Return the logits of a field (B, V), raised at the values that the offers propose."""
        n, offers = self.n, self.config.offers
        # Of every offer the sum of its pointer's, and a floor.
        sums = np.kron(np.eye(self.config.pointers), np.ones((offers, offers))).astype(np.float32)
        share = n.op("Div", weights, n.gemm(weights, sums, np.full(len(sums), AGREEMENT_FLOOR, np.float32)))
        # A shift that is over has no weight: any index will do.
        proposals = [n.op("Max", self.shift, n.ints(0)) if name == "shift" else self.values[name]]
        if name == "pitch":
            proposals.append(self.transposed)
        for i, (value, scale) in enumerate(zip(proposals, n.split(scales, [len(sums)] * len(proposals)), strict=True)):
            raised = n.op("Mul", share, scale)
            if i == 1:  # what lies outside the vocabulary is offered to nobody
                inside = n.op("Clip", value, n.ints_scalar(0), n.ints_scalar(VOCABULARY.pitch - 1))
                raised = n.op("Where", n.op("Equal", inside, value), raised, n.constant(np.zeros((1, 1), np.float32)))
                value = inside
            scores = n.op("ScatterElements", scores, value, raised, axis=1, reduction="add")
        return scores

    def advance(self, drawn: dict[str, Value], note: Value, own_last: Value) -> None:
        """Write the new token into the buffer, and count it if it is a note: bool (B, 1)."""
        n, memory = self.n, self.config.memory
        shift = n.op("Min", n.op("Sub", "out_time", "in_onset"), n.ints(MAX_SHIFT))
        interval = n.op("Add", n.op("Sub", drawn["pitch"], own_last), n.ints(INTERVAL_OFFSET))
        number = n.op("Sub", "in_notes", n.ints(NEVER))
        fields = [shift, drawn["hand"], drawn["pitch"], interval, drawn["duration"], drawn["velocity"], "in_onset", number]
        slot = n.op("Where", note, n.op("Concat", *fields, axis=1), n.ints(0))
        n.op("Where", "in_written", n.op("Unsqueeze", slot, n.axes(2)), "in_new_memory", name="out_new_memory")
        # To scatter is cheaper than to choose at every place.
        n.op("ScatterElements", "in_new_keys", "in_column", self.key, axis=1, name="out_new_keys")
        # `struck` is 0 before the first note, and lies NEVER above a pitch after it: so the first note's code is one of its own.
        code = n.op("Sub", drawn["pitch"], "in_struck")
        code = n.op("Add", n.op("Mul", shift, n.ints(2 * INTERVAL_OFFSET)), code)
        # Beside the notes a last column that equals nothing: what an empty slot finds there, no length of match reaches.
        beside = np.zeros((1, memory + 1), np.int32)
        beside[0, memory] = -NEVER
        longer = n.op("Min", n.op("Add", "in_match", n.ints(BARS)), n.ints(BARS * LONGEST_MATCH))
        longer = n.op("Where", n.op("Equal", "in_codes", code), longer, n.constant(beside))
        n.op("Where", note, longer, "in_match", name="out_match")
        moved = n.op("Concat", n.slice("in_codes", 1, memory), code, "no_code", axis=1)
        n.op("Where", note, moved, "in_codes", name="out_codes")
        n.op("Where", note, "out_time", "in_onset", name="out_onset")
        n.op("Add", "in_notes", n.op("Min", drawn["hand"], n.ints(1)), name="out_notes")
        n.op("Where", note, n.op("Add", drawn["pitch"], n.ints(NEVER)), "in_struck", name="out_struck")

    def _projections(self) -> tuple[Array, Array]:
        """Return weight (H, columns) and bias of keys, queries, scores by length and by bars of each pointer, and of nothing."""
        w, pointers = self.weights, self.config.pointers
        of_class = w["class_scores.weight"].reshape(pointers, MATCHES + LAGS, -1)
        of_class_bias = w["class_scores.bias"].reshape(pointers, MATCHES + LAGS)
        no_weight = np.zeros((pointers, 1, of_class.shape[2]), np.float32)
        no_bias = np.full((pointers, 1), UNREACHABLE, np.float32)
        weights = [
            w["key.weight"],
            w["query.weight"],
            np.concatenate([of_class[:, _LENGTHS], no_weight], axis=1).reshape(-1, of_class.shape[2]),
            of_class[:, MATCHES + _BARS].reshape(-1, of_class.shape[2]),
            w["nothing.weight"],
        ]
        biases = [
            w["key.bias"],
            w["query.bias"],
            np.concatenate([of_class_bias[:, _LENGTHS], no_bias], axis=1).ravel(),
            of_class_bias[:, MATCHES + _BARS].ravel(),
            w["nothing.bias"],
        ]
        return transposed(np.concatenate(weights)), np.concatenate(biases)

    def _unit(self, vectors: Value) -> tuple[Value, Value]:
        """Return keys (B, P * key) as unit vectors, and queries (B, P, 1, key) by their sharpness."""
        n, pointers, size = self.n, self.config.pointers, self.config.key
        vectors = n.op("Reshape", vectors, n.axes(0, 2 * pointers, size))
        square = n.op("ReduceSumSquare", vectors, n.axes(2), keepdims=1)
        length = n.op("Sqrt", n.op("Add", square, n.constant(np.array(UNIT_FLOOR, np.float32))))
        wanted = np.concatenate([np.ones(pointers), self.weights["sharpness"]]).astype(np.float32)
        vectors = n.op("Mul", vectors, n.op("Div", n.constant(wanted[:, None]), length))
        keys, queries = n.split(vectors, [pointers, pointers])
        keys, queries = self.products.vectors(keys, 1.0), self.products.vectors(queries, self._sharpest)
        return n.op("Reshape", keys, n.axes(0, -1)), n.op("Unsqueeze", queries, n.axes(2))

    @property
    def _sharpest(self) -> float:
        """Return the length of the longest query."""
        return float(np.abs(self.weights["sharpness"]).max())

    def _weigh(self, best: Value, nothing: Value) -> Value:
        """Return the weights of the offers, (B, P * k), from their scores (B, P, k) and that of nothing (B, P, 1)."""
        n, count = self.n, self.config.offers
        mass, nothing = n.split(n.op("Softmax", n.op("Concat", best, nothing, axis=2), axis=2), [count, 1], axis=2)
        mass = n.op("Sub", mass, n.slice(mass, count - 1, count, axis=2))
        total = n.op("Add", n.op("ReduceSum", mass, n.axes(2), keepdims=1), nothing)
        return n.op("Mul", n.op("Reshape", n.op("Div", mass, total), n.axes(0, -1)), "copying")

    def _class_scores(self, lengths: Value, bars: Value) -> Value:
        """Return the score of each slot for each pointer by its class, (B, P, S)."""
        n, pointers, lengths_count = self.n, self.config.pointers, len(_LENGTHS) + 1
        of_length = n.op("Reshape", lengths, n.axes(0, pointers, lengths_count, 1))
        of_bars = n.op("Add", n.op("Reshape", bars, n.axes(0, pointers, 1, BARS)), "bars_bias")
        by_class = n.op("Reshape", n.op("Add", of_length, of_bars), n.axes(0, pointers, lengths_count * BARS))
        onset_before, number = (n.slice(self.slots, i, i + 1) for i in (_ROWS - 2, _ROWS - 1))  # (B, 1, S)
        # Of a note that is d notes ago the column is M - d; of an empty slot, whose number is 0, the one beside them. Slots that
        # have passed may find anything.
        last = n.op("Unsqueeze", n.op("Sub", n.ints(NEVER + self.config.memory), "in_notes"), n.axes(2))
        column = n.op("Clip", n.op("Add", number, last), n.ints_scalar(0), n.ints_scalar(self.config.memory))
        match = n.op("GatherElements", n.op("Unsqueeze", "in_match", n.axes(1)), column, axis=2)
        lag = n.op("Sub", n.op("Unsqueeze", "in_onset", n.axes(2)), onset_before)
        bars_ago = n.op("Div", lag, "in_lag_bar")
        whole = n.op("Equal", n.op("Mul", bars_ago, "in_lag_bar"), lag)
        bars_ago = n.op("Where", whole, n.op("Min", bars_ago, n.ints(MAX_LAG_BARS)), n.ints(BARS - 1))
        index = n.op("Add", n.op("Add", match, "in_passed"), bars_ago)
        index = n.op("Max", index, n.ints(-1))  # the last class: no slot reaches it
        return n.op("GatherElements", by_class, n.op("Expand", index, n.axes(1, pointers, 1)), axis=2)

    def _read(self, found: Value) -> Value:
        """Return the sum of the embeddings of all fields of what was found, by its weights, (B, P * read)."""
        n, pointers, offers = self.n, self.config.pointers, self.config.offers
        width = sum(SLOT_SIZES.values())
        starts = np.cumsum([0, *SLOT_SIZES.values()])[:-1]
        columns = starts[:, None, None] + width * np.arange(pointers)[None, :, None] + np.zeros((1, 1, offers), int)
        index = n.op("Add", found, n.constant(columns.reshape(1, -1).astype(np.int32)))
        weights = n.op("Concat", *[self.weight] * len(SLOT_FIELDS), axis=1)
        dense = n.op("ScatterElements", "nothing_read", index, weights, axis=1, reduction="add")
        shares = self.products.shares(n.op("Reshape", dense, n.axes(-1, width)), width)
        embedding = transposed(self.weights["slot_embedding.weight"])
        read = self.products.dense([shares], embedding, np.zeros(embedding.shape[1], np.float32))
        return n.op("Reshape", read, n.axes(-1, pointers * self.config.read))
