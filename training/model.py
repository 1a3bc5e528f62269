"""The network: an LSTM over notes with a small sequential head, the fields of a note drawn one after the other.

What the network reads at each step are the token before, the position in the bar, and the conditions of the piece. Beside the
usual logits over absolute values, pitch, velocity and tempo have logits over differences: to the last note of the same hand, and
to the running tempo. An interval means the same in every key, and "the tempo stays" is one parameter.

Shape letters: T steps, B rows, F fields, C conditions, H width of the LSTM, D width of the head, V vocabulary. Time-major.
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
from training.lstm import LSTMLayer
from training.options import option

HANDS = VOCABULARY.hand
LAST_FIELDS = ("pitch", "duration", "velocity")  # remembered of the last note of each hand
RELATIVE_FIELDS = ("pitch", "velocity", "tempo")  # those with logits over differences too
# Share of a pitch-class profile that is left after another note: one remembers about ten notes (the chord), one fifty (the key).
PROFILE_DECAYS = (0.9, 0.98)
PITCH_CLASSES = 12
MAX_HELD = MAX_SHIFT  # ticks that a hand still sounds, as the network reads them, at most
IMPOSSIBLE = -1e9  # finite, so that no softmax becomes NaN


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a network."""

    layers: int = option(2, "LSTM layers")
    hidden: int = option(512, "width H of the LSTM")
    embedding: int = option(256, "width of the sum of embeddings that the first layer reads")
    head: int = option(192, "width D of the head of each field")
    dropout: float = option(0.15, "share of the LSTM's inputs and outputs set to zero in training")
    condition_dropout: float = option(0.25, "share of the pieces whose composer or rendition is hidden in training")
    # The values of each condition, index 0 being "not given"; `metre` first.
    conditions: Mapping[str, list[str]] = field(default_factory=dict)
    representation_version: int = REPRESENTATION_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)


class Batch(NamedTuple):
    """A window of several pieces, time-major, int64 but for `profile` and `mask`.

    What the network may read before it draws token t is in row t of all but `target` and `target_position`.
    """

    before: Tensor  # (T, B, F) the token before
    position: Tensor  # (T, B) ticks since the barline at the token before
    metre: Tensor  # (T, B) index of the metre
    tempo: Tensor  # (T, B) tempo index of the last note, 0 at the start
    last: Tensor  # (T, B, hands, LAST_FIELDS) indices of the last note of each value of `hand`, 0 at the start
    held: Tensor  # (T, B, hands) ticks that each hand still sounds from the token before on, 0..MAX_HELD
    profile: Tensor  # (T, B, PROFILE_DECAYS * PITCH_CLASSES) float32: how much of each pitch class was heard lately
    conditions: Tensor  # (B, C) per-piece conditions
    target: Tensor  # (T, B, F) the token to draw
    target_position: Tensor  # (T, B) ticks since the barline at it
    mask: Tensor  # (T, B) bool, False where a row has run out of tokens

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class State(NamedTuple):
    """What an LSTM carries from token to token, float32, shape (L, B, H) each."""

    h: Tensor
    c: Tensor

    def rows(self, keep: Tensor) -> "State":
        """Return the state with the rows where `keep` (B,) is False set to zero."""
        return State(self.h * keep[None, :, None], self.c * keep[None, :, None])


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
        self.layers = nn.ModuleList(LSTMLayer(width if i == 0 else config.hidden, config.hidden) for i in range(config.layers))
        self.to_heads = nn.Linear(config.hidden, len(FIELDS) * head)
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
        for layer in (self.profile_input, self.profile_kernel):  # begin without effect, also when added to a trained network
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)
        for name, table in grammar().items():
            self.register_buffer(f"grammar_{name}", torch.from_numpy(table), persistent=False)

    def initial_state(self, rows: int) -> State:
        """Return the state before the first token of `rows` pieces."""
        zeros = torch.zeros(len(self.layers), rows, self.config.hidden, device=self.to_heads.weight.device)
        return State(zeros, zeros.clone())

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
        x = self.embed(batch)
        hs, cs = [], []
        drop = nn.functional.dropout
        for layer, h, c in zip(self.layers, state.h, state.c, strict=True):
            x, h, c = layer(drop(x, self.config.dropout, self.training), h, c, product)
            hs.append(h)
            cs.append(c)
        return self.heads(drop(x, self.config.dropout, self.training), batch), State(torch.stack(hs), torch.stack(cs))

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
        x = x + self.condition_embeddings["metre"](batch.metre)
        conditions = batch.conditions
        if self.training and self.config.condition_dropout:
            conditions = conditions * (torch.rand(conditions.shape, device=conditions.device) >= self.config.condition_dropout)
        for i, name in enumerate(n for n in self.condition_embeddings if n != "metre"):
            x = x + self.condition_embeddings[name](conditions[:, i])
        return x

    def heads(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the logits of every field from the LSTM's outputs (T, B, H)."""
        starts = dict(zip(FIELDS, self.to_heads(x).chunk(len(FIELDS), dim=-1), strict=True))
        drawn = dict(zip(FIELDS, batch.target.unbind(-1), strict=True))
        of_hand = drawn["hand"][..., None, None].expand(*drawn["hand"].shape, 1, len(LAST_FIELDS))
        last = dict(zip(LAST_FIELDS, batch.last.gather(-2, of_hand)[..., 0, :].unbind(-1), strict=True))
        last["tempo"] = batch.tempo
        logits = {}
        for name in FIELDS:
            z = starts[name]
            for before, embedding in cast(nn.ModuleDict, self.drawn_embeddings[name]).items():
                z = z + embedding(drawn[before])
            if name in self.head_positions:
                z = z + self.head_positions[name](batch.target_position)
            if name in last:
                z = z + self.head_lasts[name](last[name])
            z = torch.relu(z)
            scores = self.outputs[name](z).float()
            if name in RELATIVE_FIELDS:
                size = getattr(VOCABULARY, name)
                index = torch.arange(size, device=x.device) - last[name][..., None] + size - 1
                scores = scores + self.relative_outputs[name](z).float().gather(-1, index)
            if name == "pitch":
                scores = scores + self.profile_scores(z, batch.profile)
            if name != "shift":
                scores = scores + self.get_buffer(f"grammar_{name}")[drawn["hand"]]
            logits[name] = scores
        return logits

    def profile_scores(self, z: Tensor, profile: Tensor) -> Tensor:
        """Return what the pitch classes heard lately add to the logits of the pitches, shape (T, B, V_pitch).

        Every pitch class weighs the profile by its distance to each other one, in a circle of twelve, with weights that the head
        chooses: the same in every key.
        """
        rolled = profile.float()[..., torch.from_numpy(PROFILE_ROLL).to(profile.device)]  # (T, B, 12, 24)
        by_class = (rolled * self.profile_kernel(z).float()[..., None, :]).sum(-1)
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
