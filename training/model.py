"""The network: an LSTM over notes with a small sequential head, the fields of a note drawn one after the other.

What the network reads at each step are the token before, the position in the bar, and the conditions of the piece. Beside the
usual logits over absolute values, pitch, velocity and tempo have logits over differences: to the last note of the same hand, and
to the running tempo. An interval means the same in every key, and "the tempo stays" is one parameter.

Between the first LSTM layer and the others a memory of the last notes is read (`training.memory`): a few pointers choose among
them by what the first layer makes of the past, by how well the passage before each of them matches the last notes, and by how
many bars ago it was. What they point at is read by the layers above, and offered to the heads as values to copy.

Shape letters: T steps, B rows, F fields, C conditions, H width of the LSTM, D width of the head, V vocabulary, M slots of memory,
P pointers, k offers. Time-major.
The grammar (which values can follow in a token) is part of the network: impossible values have probability zero.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor, nn

from service.engine.interface import LAGS
from service.music.representation import (
    CONTROL,
    DURATIONS,
    FIELDS,
    MAX_BAR,
    MAX_SHIFT,
    PITCH_OFFSET,
    REPRESENTATION_VERSION,
    VOCABULARY,
    Control,
    TokenArray,
)
from training.conditions import BARS_LEFT_CLASSES, EXPECTED_PITCH_CLASSES, EXPECTED_TEMPO, NOTES_LEFT_CLASSES
from training.lstm import LSTMLayer
from training.memory import INTERVAL_OFFSET, MATCHES, SLOT_FIELDS
from training.options import option

HANDS = VOCABULARY.hand
LAST_FIELDS = ("pitch", "duration", "velocity")  # remembered of the last note of each hand
RELATIVE_FIELDS = ("pitch", "velocity", "tempo")  # those with logits over differences too
# Share of a pitch-class profile that is left after another note: one remembers about ten notes (the chord), one fifty (the key).
PROFILE_DECAYS = (0.9, 0.98)
PITCH_CLASSES = 12
MAX_HELD = MAX_SHIFT  # ticks that a hand still sounds, as the network reads them, at most
IMPOSSIBLE = -1e9  # finite, so that no softmax becomes NaN
COPIED_FIELDS = FIELDS[:5]  # those that a slot of the memory offers; the tempo goes on by itself
SLOT_SIZES = dict(zip(SLOT_FIELDS, (*VOCABULARY[:3], 2 * INTERVAL_OFFSET, *VOCABULARY[3:5]), strict=True))
AGREEMENT_FLOOR = 0.05  # mass of the offers that agree with what is drawn, below which they count for less


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a network."""

    layers: int = option(2, "LSTM layers")
    hidden: int = option(512, "width H of the LSTM")
    embedding: int = option(256, "width of the sum of embeddings that the first layer reads")
    head: int = option(192, "width D of the head of each field")
    memory: int = option(512, "tokens M that the network can point back to")
    pointers: int = option(2, "places P in the memory that it points to at a time")
    key: int = option(32, "width of the keys of the memory")
    offers: int = option(16, "slots k of the memory, the best ones, that a pointer weighs")
    read: int = option(96, "width of what a pointer hands to the layers above")
    dropout: float = option(0.2, "share of the LSTM's inputs and outputs set to zero in training")
    offer_dropout: float = option(0.3, "share of the rows and windows in which offers count for less, or nothing, in training")
    # The values of each condition, index 0 being "not given"; `metre` first.
    conditions: Mapping[str, list[str]] = field(default_factory=dict)
    representation_version: int = REPRESENTATION_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)


class Batch(NamedTuple):
    """A window of several pieces, time-major but for the memory's, int64 where nothing else is said.

    What the network may read before it draws token t is in row t of all but `target` and `target_position`.
    """

    before: Tensor  # (T, B, F) the token before
    position: Tensor  # (T, B) ticks since the barline at the token before
    metre: Tensor  # (T, B) index of the metre
    tempo: Tensor  # (T, B) tempo index of the last note, 0 at the start
    last: Tensor  # (T, B, hands, LAST_FIELDS) indices of the last note of each value of `hand`, 0 at the start
    held: Tensor  # (T, B, hands) ticks that each hand still sounds from the token before on, 0..MAX_HELD
    profile: Tensor  # (T, B, PROFILE_DECAYS * PITCH_CLASSES) float32: how much of each pitch class was heard lately
    elapsed: Tensor  # (T, B) ticks since the onset of the last note, at the token before
    matched: Tensor  # (T, B) class of the longest match in memory
    slots: Tensor  # (B, M + T, SLOT_FIELDS) int16: the M tokens before the window and those in it
    classes: Tensor  # (B, T, M + T) uint8: of each slot as an offer for each token; EMPTY outside the M tokens before it
    conditions: Tensor  # (B, C) per-piece conditions
    notes_left: Tensor  # (T, B) class of the notes left, 0: not told
    bars_left: Tensor  # (T, B) class of the bars left, 0: not told
    target: Tensor  # (T, B, F) the token to draw
    target_position: Tensor  # (T, B) ticks since the barline at it
    mask: Tensor  # (T, B) bool, False where a row has run out of tokens

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class State(NamedTuple):
    """What the network carries from window to window, float32."""

    h: Tensor  # (L, B, H)
    c: Tensor  # (L, B, H)
    keys: Tensor  # (B, M, P * key): of the slots before the window

    def rows(self, keep: Tensor) -> "State":
        """Return the state with the rows where `keep` (B,) is False set to zero."""
        return State(self.h * keep[None, :, None], self.c * keep[None, :, None], self.keys * keep[:, None, None])


class Offers(NamedTuple):
    """What the pointers point at: k slots each, P * k in all, (T, B, P * k)."""

    weights: Tensor  # float, those of a pointer sum to at most 1; the rest is "nothing"
    values: dict[str, Tensor]  # by SLOT_FIELDS, int64


class Network(nn.Module):
    """Predicts each field of the next token from the tokens before and the fields already drawn."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, head = config.embedding, config.head
        self.field_embeddings = nn.ModuleDict({name: nn.Embedding(size, width) for name, size in VOCABULARY._asdict().items()})
        self.position_embedding = nn.Embedding(MAX_BAR, width)
        self.tempo_embedding = nn.Embedding(VOCABULARY.tempo, width)
        hands = [str(hand) for hand in range(1, HANDS)]
        self.last_pitch_embeddings = nn.ModuleDict({hand: nn.Embedding(VOCABULARY.pitch, width) for hand in hands})
        self.held_embeddings = nn.ModuleDict({hand: nn.Embedding(MAX_HELD + 1, width) for hand in hands})
        profile = len(PROFILE_DECAYS) * PITCH_CLASSES
        self.profile_input = nn.Linear(profile, width, bias=False)
        self.condition_embeddings = nn.ModuleDict({n: nn.Embedding(len(v), width) for n, v in config.conditions.items()})
        self.matched_embedding = nn.Embedding(MATCHES, width)
        self.notes_left_embedding = nn.Embedding(NOTES_LEFT_CLASSES, width)
        self.bars_left_embedding = nn.Embedding(BARS_LEFT_CLASSES, width)
        read = config.pointers * config.read
        widths = [width, config.hidden + read, *[config.hidden] * (config.layers - 2)]
        self.layers = nn.ModuleList(LSTMLayer(width, config.hidden) for width in widths[: config.layers])
        self.query = nn.Linear(config.hidden, config.pointers * config.key)
        self.key = nn.Linear(config.hidden, config.pointers * config.key)
        # Keys and queries are unit vectors: without that, their products grew until a pointer never doubted.
        self.sharpness = nn.Parameter(torch.full((config.pointers,), 4.0))
        self.class_scores = nn.Linear(config.hidden, config.pointers * (MATCHES + LAGS))
        self.nothing = nn.Linear(config.hidden, config.pointers)  # the score of pointing at nothing
        self.slot_embedding = nn.Linear(sum(SLOT_SIZES.values()), config.read, bias=False)  # of one-hot fields, side by side
        self.to_heads = nn.Linear(config.hidden, len(FIELDS) * head)
        # What the heads see beside the LSTM's output: how much is left, and for the shift the position that it leads away from.
        self.head_contexts = nn.ModuleDict(
            {
                "notes_left": nn.Embedding(NOTES_LEFT_CLASSES, len(FIELDS) * head),
                "bars_left": nn.Embedding(BARS_LEFT_CLASSES, len(FIELDS) * head),
                "position": nn.Embedding(MAX_BAR, head),
                "metre": nn.Embedding(len(config.conditions["metre"]), head),
            }
        )
        # What a field knows of those drawn before it: drawn_embeddings["duration"]["pitch"] and so on.
        self.drawn_embeddings = nn.ModuleDict(
            {
                name: nn.ModuleDict({drawn: nn.Embedding(getattr(VOCABULARY, drawn), head) for drawn in FIELDS[:i]})
                for i, name in enumerate(FIELDS)
            }
        )
        self.head_positions = nn.ModuleDict({name: nn.Embedding(MAX_BAR, head) for name in FIELDS[1:]})
        self.head_lasts = nn.ModuleDict({n: nn.Embedding(getattr(VOCABULARY, n), head) for n in (*LAST_FIELDS, "tempo")})
        self.outputs = nn.ModuleDict({name: nn.Linear(head, size) for name, size in VOCABULARY._asdict().items()})
        self.relative_outputs = nn.ModuleDict(
            {name: nn.Linear(head, 2 * getattr(VOCABULARY, name) - 1) for name in RELATIVE_FIELDS}
        )
        self.profile_kernel = nn.Linear(head, profile)
        # How much the head of a field lets each pointer's offers count; the pitch has two: the same pitch, the same interval.
        self.copy_scales = nn.ModuleDict(
            {name: nn.Linear(head, config.pointers * (2 if name == "pitch" else 1)) for name in COPIED_FIELDS}
        )
        self.agreement = nn.ModuleDict({name: nn.Linear(config.pointers, head, bias=False) for name in COPIED_FIELDS})
        # The key that was asked for, as a profile that does not fade.
        self.key_input = nn.Linear(PITCH_CLASSES, width, bias=False)
        self.key_kernel = nn.Linear(head, PITCH_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)
        for layer in (self.profile_input, self.profile_kernel, self.key_input, self.key_kernel, self.head_contexts):
            for parameter in layer.parameters():  # begin without effect, also when added to a trained network
                nn.init.zeros_(parameter)
        self._start_memory()
        for name, table in grammar().items():
            self.register_buffer(f"grammar_{name}", torch.from_numpy(table), persistent=False)
        self.register_buffer("key_profiles", torch.from_numpy(EXPECTED_PITCH_CLASSES.astype(np.float32)), persistent=False)

    @torch.no_grad()
    def _start_memory(self) -> None:
        """Let the pointers begin with what is known of repeats: long matches are good ones, and whole bars."""
        for scale in self.copy_scales.values():
            cast(nn.Linear, scale).bias.fill_(2.0)
        bias = self.class_scores.bias.view(self.config.pointers, MATCHES + LAGS)
        bias[:, :MATCHES] = torch.linspace(0, 6, MATCHES)
        bias[:, MATCHES:] = torch.tensor([0.0, 0.0, *[1.0] * (LAGS - 2)])
        self.nothing.bias.fill_(4.0)

    def initial_state(self, rows: int) -> State:
        """Return the state before the first token of `rows` pieces."""
        device, config = self.to_heads.weight.device, self.config
        zeros = torch.zeros(len(self.layers), rows, config.hidden, device=device)
        return State(zeros, zeros.clone(), torch.zeros(rows, config.memory, config.pointers * config.key, device=device))

    def forward(self, batch: Batch, state: State, product: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], State]:
        """Return the logits of every field, each given the fields before it in the target, and the state after.

        Parameters
        ----------
        batch : Batch
        state : State
        product : torch.dtype
            Type of the factors of the LSTM's matrix products on the CPU.

        Returns
        -------
        logits : dict of str to Tensor
            For each field, float32, shape (T, B, V_field).
        state : State
        """
        drop = nn.functional.dropout
        hs, cs = [], []
        x = self.embed(batch)
        for i, (layer, h, c) in enumerate(zip(self.layers, state.h, state.c, strict=True)):
            x, h, c = layer(drop(x, self.config.dropout, self.training), h, c, product)
            hs.append(h)
            cs.append(c)
            if i == 0:
                offers, keys = self.point(x, batch, state.keys)
                x = torch.cat([x, self.read(offers)], dim=-1)
        x = drop(x, self.config.dropout, self.training)
        return self.heads(x, batch, offers), State(torch.stack(hs), torch.stack(cs), keys)

    def point(self, x: Tensor, batch: Batch, keys: Tensor) -> tuple[Offers, Tensor]:
        """Let the pointers choose among the slots of the memory.

        The k slots of the highest scores are weighed by a softmax against "nothing", from each of which the weight of the last
        one is taken off: a slot's weight is zero where it takes or loses its place among the k, so that nothing jumps there.

        Parameters
        ----------
        x : Tensor
            The first layer's output, (T, B, H).
        batch : Batch
        keys : Tensor
            Of the M slots before the window, (B, M, P * key).

        Returns
        -------
        offers : Offers
        keys : Tensor
            Of the last M slots.
        """
        pointers, count = self.config.pointers, self.config.offers
        x = x.transpose(0, 1)
        rows, steps, _ = x.shape
        own = _unit(self.key(x).float().unflatten(-1, (pointers, -1))).flatten(-2)
        keys = torch.cat([keys, own], dim=1)  # (B, M + T, P * key)
        slots = keys.shape[1]
        by_pointer = keys.view(rows, slots, pointers, -1).transpose(1, 2)  # (B, P, M + T, key)
        queries = _unit(self.query(x).float().unflatten(-1, (pointers, -1))) * self.sharpness[:, None]
        queries = queries.transpose(1, 2)  # (B, P, T, key)
        of_match, of_lag = self.class_scores(x).float().view(rows, steps, pointers, -1).split([MATCHES, LAGS], dim=-1)
        of_class = (of_match[..., None] + of_lag[..., None, :]).flatten(-2)
        of_class = nn.functional.pad(of_class, (0, 1), value=UNREACHABLE).transpose(1, 2)  # (B, P, T, CLASSES + 1)
        classes = batch.classes.long()[:, None].expand(-1, pointers, -1, -1)
        with torch.no_grad():
            scores = (queries @ by_pointer.transpose(-1, -2)).float() + of_class.gather(-1, classes)
            chosen = scores.topk(count, dim=-1).indices  # (B, P, T, k), the best first
        at = chosen.flatten(2)
        near = by_pointer.gather(2, at[..., None].expand(-1, -1, -1, by_pointer.shape[-1]))
        near = near.view(rows, pointers, steps, count, -1)
        best = (near * queries[..., None, :]).sum(-1) + of_class.gather(-1, classes.gather(-1, chosen))
        nothing = self.nothing(x).float().transpose(1, 2)[..., None]  # (B, P, T, 1)
        top = torch.maximum(best[..., :1], nothing).detach()
        mass = (best - top).exp() - (best[..., -1:] - top).exp()
        weights = mass / (mass.sum(-1, keepdim=True) + (nothing - top).exp())
        if self.training and self.config.offer_dropout:
            # So that the network can also do without: it must not forget how to go on by itself.
            kept = torch.rand(rows, device=x.device) / self.config.offer_dropout
            weights = weights * torch.where(kept < 0.5, 0.0, kept.clamp(max=1.0))[:, None, None, None]
        indices = at.flatten(1)[..., None].expand(-1, -1, len(SLOT_FIELDS))
        values = batch.slots.gather(1, indices).view(rows, pointers, steps, count, -1).long()
        weights, values = (t.movedim(2, 0).flatten(2, 3) for t in (weights, values))  # (T, B, P * k, ...)
        return Offers(weights, dict(zip(SLOT_FIELDS, values.unbind(-1), strict=True))), keys[:, -self.config.memory :].detach()

    def read(self, offers: Offers) -> Tensor:
        """Return what the layers above read of the offers, (T, B, P * read)."""
        steps, rows, _ = offers.weights.shape
        starts = np.cumsum([0, *SLOT_SIZES.values()])[:-1]
        index = torch.stack([offers.values[name] + int(at) for name, at in zip(SLOT_SIZES, starts, strict=True)], dim=-1)
        shape = (steps, rows, self.config.pointers, -1)
        weights = offers.weights[..., None].expand(index.shape).reshape(shape)
        dense = weights.new_zeros(steps, rows, self.config.pointers, int(sum(SLOT_SIZES.values())))
        read: Tensor = self.slot_embedding(dense.scatter_add(-1, index.reshape(shape), weights)).float()
        return read.flatten(-2)

    def embed(self, batch: Batch) -> Tensor:
        """Return what the first layer reads, shape (T, B, E)."""
        x: Tensor = self.position_embedding(batch.position) + self.tempo_embedding(batch.tempo)
        x = x + self.profile_input(batch.profile)
        for i, name in enumerate(FIELDS):
            x = x + self.field_embeddings[name](batch.before[..., i])
        for hand, embedding in self.last_pitch_embeddings.items():
            x = x + embedding(batch.last[..., int(hand), 0])
        for hand, embedding in self.held_embeddings.items():
            x = x + embedding(batch.held[..., int(hand)])
        x = x + self.condition_embeddings["metre"](batch.metre) + self.matched_embedding(batch.matched)
        x = x + self.notes_left_embedding(batch.notes_left) + self.bars_left_embedding(batch.bars_left)
        conditions = batch.conditions
        for i, name in enumerate(n for n in self.condition_embeddings if n != "metre"):
            x = x + self.condition_embeddings[name](conditions[:, i])
        x = x + self.key_input(self._key_profile(conditions))
        return x

    def _key_profile(self, conditions: Tensor) -> Tensor:
        """Return the profile of the key asked for, (B, 12): zeros where it is not told."""
        names = [name for name in self.condition_embeddings if name != "metre"]
        if "key" not in names:
            return conditions.new_zeros(len(conditions), PITCH_CLASSES, dtype=torch.float32)
        return self.get_buffer("key_profiles")[conditions[:, names.index("key")]]

    def heads(self, x: Tensor, batch: Batch, offers: Offers) -> dict[str, Tensor]:
        """Return the logits of every field from the LSTM's outputs (T, B, H) and what the memory offers."""
        z = self.to_heads(x)
        for name in ("notes_left", "bars_left"):
            z = z + self.head_contexts[name](getattr(batch, name))
        starts = dict(zip(FIELDS, z.chunk(len(FIELDS), dim=-1), strict=True))
        for name in ("position", "metre"):
            starts["shift"] = starts["shift"] + self.head_contexts[name](getattr(batch, name))
        drawn = dict(zip(FIELDS, batch.target.unbind(-1), strict=True))
        of_hand = drawn["hand"][..., None, None].expand(*drawn["hand"].shape, 1, len(LAST_FIELDS))
        last = dict(zip(LAST_FIELDS, batch.last.gather(-2, of_hand)[..., 0, :].unbind(-1), strict=True))
        last["tempo"] = batch.tempo
        agreeing = self._agreeing(offers, batch, drawn, last["pitch"])
        logits = {}
        for name in FIELDS:
            z = starts[name]
            for before, embedding in cast(nn.ModuleDict, self.drawn_embeddings[name]).items():
                z = z + embedding(drawn[before])
            if name in self.head_positions:
                z = z + self.head_positions[name](batch.target_position)
            if name in last:
                z = z + self.head_lasts[name](last[name])
            if name in COPIED_FIELDS:
                weights = agreeing[name]
                z = z + self.agreement[name](self._by_pointer(weights).sum(-1))
            z = torch.relu(z)
            scores = self.outputs[name](z).float()
            if name in COPIED_FIELDS:
                scores = self._copy(name, scores, z, weights, offers, batch, last["pitch"])
            if name in RELATIVE_FIELDS:
                size = getattr(VOCABULARY, name)
                index = torch.arange(size, device=x.device) - last[name][..., None] + size - 1
                scores = scores + self.relative_outputs[name](z).float().gather(-1, index)
            if name == "pitch":
                scores = scores + self.profile_scores(z, batch.profile, self._key_profile(batch.conditions))
            if name != "shift":
                scores = scores + self.get_buffer(f"grammar_{name}")[drawn["hand"]]
            logits[name] = scores
        return logits

    def _by_pointer(self, offers: Tensor) -> Tensor:
        return offers.view(*offers.shape[:-1], self.config.pointers, -1)

    def _agreeing(self, offers: Offers, batch: Batch, drawn: dict[str, Tensor], last_pitch: Tensor) -> dict[str, Tensor]:
        """Return for each field the weights of the offers that agree with the fields drawn before it, (T, B, P * k)."""
        values = offers.values
        shift = values["shift"] - batch.elapsed[..., None]
        same_hand = values["hand"] == drawn["hand"][..., None]
        pitch = drawn["pitch"][..., None]
        same_pitch = (values["pitch"] == pitch) | (values["interval"] - INTERVAL_OFFSET + last_pitch[..., None] == pitch)
        in_time = offers.weights * (shift >= 0)
        at_once = in_time * (shift == drawn["shift"][..., None])
        same_note = offers.weights * (same_hand & same_pitch)
        return {"shift": in_time, "hand": at_once, "pitch": at_once * same_hand, "duration": same_note, "velocity": same_note}

    def _copy(
        self, name: str, scores: Tensor, z: Tensor, weights: Tensor, offers: Offers, batch: Batch, last_pitch: Tensor
    ) -> Tensor:
        """Return the logits of a field, raised at the values that the offers propose."""
        by_pointer = self._by_pointer(weights)
        share = by_pointer / (by_pointer.sum(-1, keepdim=True) + AGREEMENT_FLOOR)
        scales = self.copy_scales[name](z).float().unflatten(-1, (-1, self.config.pointers))
        proposals = [offers.values[name]]
        if name == "shift":
            proposals = [offers.values["shift"] - batch.elapsed[..., None]]
        if name == "pitch":
            proposals.append(offers.values["interval"] - INTERVAL_OFFSET + last_pitch[..., None])
        for i, value in enumerate(proposals):
            raised = (share * scales[..., i, :, None]).flatten(-2)
            inside = (value >= 0) & (value < scores.shape[-1])
            scores = scores.scatter_add(-1, torch.where(inside, value, 0), raised * inside)
        return scores

    def profile_scores(self, z: Tensor, profile: Tensor, key: Tensor) -> Tensor:
        """Return what the pitch classes heard lately, and those of the key asked for, add to the pitches, (T, B, V_pitch).

        Every pitch class weighs the profile by its distance to each other one, in a circle of twelve, with weights that the head
        chooses: the same in every key.
        """
        roll = torch.from_numpy(PROFILE_ROLL).to(profile.device)
        by_class = (profile.float()[..., roll] * self.profile_kernel(z).float()[..., None, :]).sum(-1)  # of (T, B, 12, 24)
        by_class = by_class + (key[:, roll[:, :PITCH_CLASSES]] * self.key_kernel(z).float()[..., None, :]).sum(-1)
        scores: Tensor = by_class[..., torch.from_numpy(PITCH_CLASS).to(profile.device)]
        return scores


# The pitch class of each index of the pitch field. Those of the controls mean nothing: a constant added to all of them.
PITCH_CLASS = (np.arange(VOCABULARY.pitch) + PITCH_OFFSET) % PITCH_CLASSES
# Row j, column k of each profile: the pitch class k above j.
PROFILE_ROLL = np.concatenate(
    [
        (np.arange(PITCH_CLASSES)[:, None] + np.arange(PITCH_CLASSES)) % PITCH_CLASSES + i * PITCH_CLASSES
        for i in range(len(PROFILE_DECAYS))
    ],
    axis=1,
)


def profile_steps() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how a note changes the profile: the factor of each entry, and what each pitch index adds, (V_pitch, entries).

    A profile of any long past sums to PITCH_CLASSES, so that its entries are about 1.
    """
    decays = np.repeat(np.array(PROFILE_DECAYS), PITCH_CLASSES)
    one_hot = np.eye(PITCH_CLASSES)[PITCH_CLASS]
    added = np.concatenate([one_hot * (1 - decay) * PITCH_CLASSES for decay in PROFILE_DECAYS], axis=1)
    return decays.astype(np.float32), added.astype(np.float32)


def grammar() -> dict[str, NDArray[np.float32]]:
    """Return for each field but `shift` what is added to its logits given the hand, shape (hands, V_field).

    A control (hand 0) has a control in the pitch field, never START, and 0 in the fields after it; a note has neither.
    The table of `hand` itself is all zeros.
    """
    tables = {name: np.zeros((HANDS, getattr(VOCABULARY, name)), np.float32) for name in FIELDS[1:]}
    tables["pitch"][CONTROL, len(Control) :] = IMPOSSIBLE
    tables["pitch"][CONTROL, Control.START] = IMPOSSIBLE
    tables["pitch"][CONTROL + 1 :, : len(Control)] = IMPOSSIBLE
    for name in FIELDS[3:]:
        tables[name][CONTROL, 1:] = IMPOSSIBLE
        tables[name][CONTROL + 1 :, 0] = IMPOSSIBLE
    return tables


def field_nats(logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Return the nats of each field of each token, shape (T, B), 0 where the mask is False; in the order of FIELDS."""
    nats = {}
    for i, name in enumerate(FIELDS):
        loss = nn.functional.cross_entropy(logits[name].flatten(0, 1), batch.target[..., i].flatten(), reduction="none")
        nats[name] = loss.view(batch.mask.shape) * batch.mask
    return nats


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1 along the last axis."""
    return vectors / (vectors.square().sum(-1, keepdim=True) + UNIT_FLOOR).sqrt()


UNIT_FLOOR = 1e-6  # added to the squared length of what becomes a unit vector
UNREACHABLE = -1e4  # the score of an empty slot


class RunningValues(NamedTuple):
    """What can be worked out of a piece before each of its N tokens, int64 but for the profile."""

    tempo: NDArray[np.int64]  # (N,)
    last: NDArray[np.int64]  # (N, hands, LAST_FIELDS)
    held: NDArray[np.int64]  # (N, hands)
    profile: NDArray[np.float32]  # (N, PROFILE_DECAYS * PITCH_CLASSES)


def running_values(tokens: TokenArray) -> RunningValues:
    """Return the running values of tokens (N, F), as `Batch` describes them."""
    hands, tempos = tokens[:, FIELDS.index("hand")], tokens[:, FIELDS.index("tempo")]
    columns = [FIELDS.index(name) for name in LAST_FIELDS]
    times = np.cumsum(tokens[:, 0], dtype=np.int64)
    ends = times + DURATIONS[tokens[:, FIELDS.index("duration")]]
    last = np.zeros((len(tokens), HANDS, len(LAST_FIELDS)), np.int64)
    held = np.zeros((len(tokens), HANDS), np.int64)
    for hand in range(1, HANDS):
        of_hand = hands == hand
        for i, column in enumerate(columns):
            last[:, hand, i] = _last_before(tokens[:, column], of_hand)
        latest_end = np.maximum.accumulate(np.where(of_hand, ends, 0))
        held[1:, hand] = (latest_end - times)[:-1].clip(0, MAX_HELD)
    return RunningValues(_last_before(tempos, hands != CONTROL), last, held, _profiles(tokens))


def expect(running: RunningValues, tokens: TokenArray, key: int, tempo: int) -> RunningValues:
    """Return running values of tokens (N, F) as if key and tempo, as indices of their conditions, had been heard before them.

    So what is asked for is there from the first note on, in a form that the network knows from music itself.
    """
    is_note = tokens[:, FIELDS.index("hand")] != CONTROL
    before = np.cumsum(is_note) - is_note
    decays, _ = profile_steps()
    left = decays ** before[:, None] * np.tile(EXPECTED_PITCH_CLASSES[key], len(PROFILE_DECAYS))
    tempos = np.where(before == 0, EXPECTED_TEMPO[tempo], running.tempo)
    return running._replace(tempo=tempos.astype(np.int64), profile=(running.profile + left).astype(np.float32))


def _profiles(tokens: TokenArray) -> NDArray[np.float32]:
    """Return the pitch-class profiles before each token, shape (N, PROFILE_DECAYS * PITCH_CLASSES)."""
    notes = tokens[:, FIELDS.index("hand")] != CONTROL
    decays, added = profile_steps()
    impulses = added[tokens[notes, FIELDS.index("pitch")]]
    heard = [
        lfilter([1.0], [1.0, -decays[i * PITCH_CLASSES]], part, axis=0)  # y[n] = decay y[n - 1] + x[n]
        for i, part in enumerate(np.split(impulses, len(PROFILE_DECAYS), axis=1))
    ]
    after = np.concatenate([np.zeros((1, len(decays))), np.concatenate(heard, axis=1)])
    before: NDArray[np.float32] = after[np.cumsum(notes) - notes].astype(np.float32)
    return before


def _last_before(values: NDArray[np.int32], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each index the value at the last chosen index before it, 0 if there is none."""
    latest = np.maximum.accumulate(np.where(chosen, np.arange(len(values)), -1))
    before = np.concatenate([[-1], latest[:-1]])
    return np.where(before >= 0, values[before], 0).astype(np.int64)
