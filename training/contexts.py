"""What the back-off models see: which symbols stand in the context of each field, the most important first.

There are two kinds. PLAIN is the usual n-gram of notes: of a field, the values that the last n - 1 notes have of it, and before
them the onset and the hand that were drawn already. CHOSEN was searched for, field by field, on pieces held out of the piano
data's train split: the symbol that costs the fewest nats first, then the one that adds most to it. Those are what a network could
work out from the same past: the last values of the same hand, the time that a hand still sounds, the position in the bar.

Every symbol is known before the field that it helps to predict: it depends on earlier tokens, and on fields of this token that
are drawn before. In both kinds a pitch is predicted twice, as a pitch and as an interval. Arrays go by token, shape (N,). No
torch here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.music.piece import HIGHEST_PITCH, LOWEST_PITCH, Hand
from service.music.representation import CONTROL, DURATIONS, VOCABULARY, Control, EncodedPiece
from training.kneser_ney import IntArray

MAX_ORDER = 5
KEYS = HIGHEST_PITCH - LOWEST_PITCH + 1
CONTROLS = len(Control) - 1  # START is never drawn
_NONE = -999  # a context symbol that does not exist, such as the note before the first
_LONG = 200  # ticks from which times in contexts are not told apart: beyond two bars of 4/4

Context = dict[str, IntArray]


@dataclass(frozen=True)
class Target:
    """One symbol to predict.

    `symbol` maps tokens (N, F) and their context to 0..size - 1; `context` names the context symbols, the most important first,
    of which a model of order n takes n - 1; `drawn` names those of this very token, which stand before them in a model of any
    order above 1.
    """

    field: str
    size: int
    symbol: Callable[[IntArray, Context], IntArray]
    context: tuple[str, ...]
    tokens: str = "all"  # which tokens have this symbol: all, notes or controls
    drawn: tuple[str, ...] = ()

    def names(self, order: int) -> tuple[str, ...]:
        """Return the context symbols of a model of this order."""
        return (*self.drawn, *self.context[: order - 1]) if order > 1 else ()


@dataclass(frozen=True)
class Contexts:
    """A way to predict every field: the targets, and the function that makes the context symbols they name from a piece."""

    targets: tuple[Target, ...]
    symbols: Callable[[EncodedPiece], Context]


def token_rows(tokens: IntArray, which: str) -> Any:
    """Return the index of all tokens, of the notes, or of the controls."""
    if which == "all":
        return slice(None)
    return (tokens[:, 1] != CONTROL) == (which == "notes")


def _chosen_symbols(piece: EncodedPiece) -> Context:
    shift, hand, pitch, duration, velocity, tempo = piece.tokens.astype(np.int64).T
    numbers = np.arange(len(shift))
    is_note = hand != CONTROL
    times = np.cumsum(shift)
    before = np.concatenate([[0], times[:-1]])  # time of the token before
    last = _latest_before(is_note)  # the last note; -1: none, here and below
    onset = np.maximum.accumulate(np.where(shift > 0, numbers, 0))  # first token of this onset
    in_chord = (shift == 0) & (last >= onset)  # a note of this onset stands already
    hand_last = np.full(len(shift), -1)
    held = {}
    ends = times + DURATIONS[duration]
    for one in Hand:
        latest = _latest_before(is_note & (hand == one))
        hand_last = np.where(hand == one, latest, hand_last)
        held[one] = np.where(latest >= 0, np.clip(ends[latest] - before, -30, _LONG), _NONE)
    hand_second = _at(hand_last, hand_last, none=-1)
    hand_third = _at(hand_last, hand_second, none=-1)
    last_step = _latest_before(shift > 0)
    pedal, last_pedal = _last_pedal(piece)
    pedal_age = np.where(last_pedal >= 0, np.minimum(before - times[last_pedal], _LONG), _LONG)
    onset1 = last[onset]  # last notes of the three onsets before this one
    onset2 = _at(last[onset], onset1, none=-1)
    onset3 = _at(last[onset], onset2, none=-1)
    reference = np.where(hand_last >= 0, _at(pitch, hand_last), np.where(last >= 0, pitch[last], 0))
    return {
        "shift": shift,
        "last_shift": np.concatenate([[_NONE], shift[:-1]]),
        "last_step": _at(shift, last_step),  # last shift that was not 0
        "last_hand": np.concatenate([[_NONE], hand[:-1]]),
        "right_held": held[Hand.RIGHT],  # ticks from the token before to the end of the hand's last note
        "left_held": held[Hand.LEFT],
        "pedal": pedal,
        "pedal_age": pedal * (_LONG + 1) + pedal_age,
        "reference": reference,
        "hand_pitch1": _at(pitch, hand_last),
        "hand_interval1": _at(pitch, hand_last) - _at(pitch, hand_second),
        "hand_interval2": _at(pitch, hand_second) - _at(pitch, hand_third),
        "hand_gap": np.where(hand_last >= 0, np.minimum(times - times[hand_last], _LONG), _NONE),
        "hand_in_chord": hand * 2 + (shift == 0),
        "hand_duration1": _at(duration, hand_last),
        "hand_duration2": _at(duration, hand_second),
        "hand_velocity1": _at(velocity, hand_last),
        "hand_velocity2": _at(velocity, hand_second),
        "last_velocity": _at(velocity, last) * 2 + (shift == 0),
        "chord_pitch": np.where(in_chord, _at(pitch, last), _NONE),
        "chord_interval": np.where(in_chord, _at(pitch, last) - reference, _NONE),
        "chord_duration": np.where(in_chord, _at(duration, last), _NONE),
        "chord_tempo": np.where(in_chord, _at(tempo, last), _NONE),
        "last_tempo": _at(tempo, last),
        "tempo1": _at(tempo, onset1),
        "tempo3": _at(tempo, onset3),
        "bar_place": piece.metres.astype(np.int64) * _LONG + piece.positions,  # MAX_BAR is below _LONG
    }


def _plain_symbols(piece: EncodedPiece) -> Context:
    shift, hand, pitch, duration, velocity, tempo = piece.tokens.astype(np.int64).T
    is_note = hand != CONTROL
    times = np.cumsum(shift)
    last = _latest_before(is_note)
    back = [last]  # the last note, the one before it and so on
    for _ in range(MAX_ORDER - 1):
        back.append(_at(last, back[-1], none=-1))
    gap = np.where(last >= 0, times - times[last], times)  # ticks from the last note to this token
    symbols = {
        "gap": gap,
        "hand": hand,
        "last_hand": np.concatenate([[_NONE], hand[:-1]]),
        "after_control": np.concatenate([[0], ~is_note[:-1]]),
        "pedal": _last_pedal(piece)[0],
        "reference": np.where(last >= 0, pitch[last], 0),
    }
    for k in range(1, MAX_ORDER):
        now, before = back[k - 1], back[k]
        symbols[f"shift{k}"] = _at(gap, now)
        symbols[f"hand{k}"] = _at(hand, now)
        symbols[f"pitch{k}"] = _at(pitch, now)
        symbols[f"interval{k}"] = np.where(before >= 0, _at(pitch, now) - _at(pitch, before), _NONE)
        symbols[f"duration{k}"] = _at(duration, now)
        symbols[f"velocity{k}"] = _at(velocity, now)
        symbols[f"tempo{k}"] = _at(tempo, now)
    return symbols


def _last_pedal(piece: EncodedPiece) -> tuple[IntArray, IntArray]:
    """Return the last pedal token before each token: its `pitch` field, or 0, and its number, or -1."""
    hand, pitch = piece.tokens[:, 1], piece.tokens[:, 2].astype(np.int64)
    last = _latest_before((hand == CONTROL) & np.isin(pitch, (Control.PEDAL_DOWN, Control.PEDAL_UP)))
    return np.where(last >= 0, pitch[last], 0), last


def _latest_before(mask: Any) -> IntArray:
    """Return for each token the number of the last one before it where `mask` holds; -1 if none."""
    numbers = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
    return np.concatenate([[-1], numbers[:-1]])


def _at(values: IntArray, index: IntArray, none: int = _NONE) -> IntArray:
    """Return `values[index]`, and `none` where the index is negative."""
    return np.where(index >= 0, values[index], none)


def _interval(tokens: IntArray, context: Context) -> IntArray:
    """Return the semitones from the reference, modulo the number of keys.

    From any note, each key is one interval and each interval one key, so no probability is lost to intervals that leave the
    piano.
    """
    return (tokens[:, 2] - context["reference"]) % KEYS


def _notes_back(name: str) -> tuple[str, ...]:
    return tuple(f"{name}{k}" for k in range(1, MAX_ORDER))


_CHOSEN_TARGETS = (
    Target("shift", VOCABULARY.shift, lambda t, c: t[:, 0], ("right_held", "left_held", "last_step", "pedal_age")),
    Target("hand", VOCABULARY.hand, lambda t, c: t[:, 1], ("shift", "left_held", "last_hand", "right_held")),
    Target("pitch", CONTROLS, lambda t, c: t[:, 2] - 1, ("pedal", "shift", "last_shift", "last_hand"), "controls"),
    Target(
        "pitch", KEYS, lambda t, c: t[:, 2] - len(Control), ("hand_pitch1", "chord_pitch", "hand_interval1", "hand_gap"), "notes"
    ),
    Target(
        "pitch",
        KEYS,
        _interval,
        ("hand_interval1", "chord_interval", "hand_interval2", "hand_in_chord"),
        "notes",
    ),
    Target(
        "duration",
        VOCABULARY.duration - 1,
        lambda t, c: t[:, 3] - 1,
        ("hand_duration1", "bar_place", "chord_duration", "hand_duration2"),
        "notes",
    ),
    Target(
        "velocity",
        VOCABULARY.velocity - 1,
        lambda t, c: t[:, 4] - 1,
        ("hand_velocity1", "hand_velocity2", "last_velocity", "pedal"),
        "notes",
    ),
    Target(
        "tempo",
        VOCABULARY.tempo - 1,
        lambda t, c: t[:, 5] - 1,
        ("last_tempo", "chord_tempo", "tempo3", "tempo1"),
        "notes",
    ),
)

_PLAIN_TARGETS = (
    Target("shift", VOCABULARY.shift, lambda t, c: t[:, 0], _notes_back("shift"), drawn=("last_hand",)),
    Target("hand", VOCABULARY.hand, lambda t, c: t[:, 1], _notes_back("hand"), drawn=("gap", "after_control")),
    Target("pitch", CONTROLS, lambda t, c: t[:, 2] - 1, (), "controls", drawn=("pedal",)),
    Target("pitch", KEYS, lambda t, c: t[:, 2] - len(Control), _notes_back("pitch"), "notes", drawn=("hand", "gap")),
    Target("pitch", KEYS, _interval, _notes_back("interval"), "notes", drawn=("hand", "gap")),
    Target(
        "duration", VOCABULARY.duration - 1, lambda t, c: t[:, 3] - 1, _notes_back("duration"), "notes", drawn=("hand", "gap")
    ),
    Target(
        "velocity", VOCABULARY.velocity - 1, lambda t, c: t[:, 4] - 1, _notes_back("velocity"), "notes", drawn=("hand", "gap")
    ),
    Target("tempo", VOCABULARY.tempo - 1, lambda t, c: t[:, 5] - 1, _notes_back("tempo"), "notes"),
)

CHOSEN = Contexts(_CHOSEN_TARGETS, _chosen_symbols)
PLAIN = Contexts(_PLAIN_TARGETS, _plain_symbols)
