"""What the network remembers of a piece and is told of it, each against a plain reading of what it is to mean."""

from collections.abc import Iterator

import numpy as np
import pytest

from service.engine.interface import LAGS
from service.music.representation import (
    CONTROL,
    FIELDS,
    MAX_SHIFT,
    TEMPOS,
    TIME_SIGNATURES,
    VOCABULARY,
    Control,
    EncodedPiece,
    count_notes,
    encode_piece,
)
from tests.training.conftest import make_piece
from training.batches import Augmentation, PreparedPiece, WindowStream, make_batch, prepare_piece
from training.conditions import (
    BARS_LEFT_CLASS,
    EXPECTED_PITCH_CLASSES,
    EXPECTED_TEMPO,
    KEYS,
    NOTES_LEFT_CLASS,
    OPENING,
    TEMPO_CLASSES,
    bars_left,
    key_and_tempo,
    notes_left,
    tempo_class,
)
from training.data import Dataset, PieceInfo, condition_values, piece_condition_names
from training.memory import BAR_TICKS, EMPTY, LAG_CLASS, LONGEST_MATCH, MATCH_CLASS, MAX_LAG_BARS, memory_columns
from training.model import running_values

COMMON, WALTZ = TIME_SIGNATURES.index("4/4"), TIME_SIGNATURES.index("3/4")
END = (CONTROL, Control.END, 0, 0, 0)
NOTE = (1, 60, 24, 15, 70)  # hand, pitch, duration, velocity, tempo


def random_tokens(seed: int, count: int, controls: float) -> np.ndarray:
    """Return a passage of 25 notes again and again, each time three semitones higher, with controls in between."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((count, len(FIELDS)), np.int32)
    tokens[:, 0] = rng.choice([0, 12, 24, MAX_SHIFT], count, p=[0.3, 0.4, 0.28, 0.02])
    tokens[:, 1] = rng.integers(1, VOCABULARY.hand, count)
    tokens[:, 2] = rng.choice([40, 42, 47], count)
    tokens[:, 3:] = rng.integers(1, 20, (count, 3))
    tokens = tokens[np.arange(count) % 25]
    tokens[:, 2] += 3 * (np.arange(count) // 25)
    here = rng.random(count) < controls
    tokens[here, 1:] = [CONTROL, Control.WAIT, 0, 0, 0]
    tokens[-1] = (24, *END)
    return tokens


def run_length(pairs: list[tuple[int, int] | None], a: int, b: int) -> int:
    """Return how many pairs back from note `a` equal those back from note `b`; the first note has none."""
    length = 0
    while a >= 0 and b >= 0 and pairs[a] is not None and pairs[a] == pairs[b]:
        a, b, length = a - 1, b - 1, length + 1
    return length


def lag_class(ticks: int, bar: int) -> int:
    if ticks == 0:
        return int(LAG_CLASS[0])
    return int(LAG_CLASS[min(ticks // bar, MAX_LAG_BARS)]) if bar and ticks % bar == 0 else 0


@pytest.mark.parametrize("memory", [1, 7, 30, 100])
@pytest.mark.parametrize("controls", [0.0, 0.05, 0.4])
def test_columns_equal_a_plain_reading(memory, controls) -> None:
    tokens = random_tokens(memory, 70, controls)
    metres = np.repeat([COMMON, 0, WALTZ], [30, 10, 30]).astype(np.int32)
    columns = memory_columns(tokens, metres, running_values(tokens).last[:, :, 0], memory)
    times = np.cumsum(tokens[:, 0])
    notes = [i for i, token in enumerate(tokens) if token[1] != CONTROL]
    onsets = [int(times[i]) for i in notes]
    shifts = [min(MAX_SHIFT, now - before) for now, before in zip(onsets, [0, *onsets], strict=False)]
    pitches = tokens[notes, 2].tolist()
    pairs = [None, *((shifts[n], pitches[n] - pitches[n - 1]) for n in range(1, len(notes)))]
    for t in range(len(tokens)):
        last = sum(i < t for i in notes) - 1
        for column, i in enumerate(range(t - memory, t)):
            expected = EMPTY
            if i in notes:
                offer = notes.index(i)
                match = MATCH_CLASS[min(run_length(pairs, last, offer - 1), LONGEST_MATCH)]
                onset_before = onsets[offer - 1] if offer else 0
                expected = match * LAGS + lag_class(onsets[last] - onset_before, BAR_TICKS[metres[t]])
            assert columns.classes[t, column] == expected
        runs = [run_length(pairs, last, offer - 1) for offer in range(max(0, last + 1 - memory), last + 1)]
        assert columns.matched[t] == MATCH_CLASS[min(max(runs, default=0), LONGEST_MATCH)]
        assert columns.elapsed[t] == (times[t - 1] if t else 0) - (onsets[last] if last >= 0 else 0)
    assert len(np.unique(columns.classes)) > (10 if memory > 25 else 2)
    assert not columns.slots[[i for i in range(len(tokens)) if i not in notes]].any()
    assert columns.slots[notes, 0].tolist() == shifts
    of_hand: dict[int, int] = {}
    for slot, token in zip(columns.slots[notes], tokens[notes], strict=True):
        _, hand, pitch, duration, velocity, _ = token.tolist()
        assert slot[1:].tolist() == [hand, pitch, pitch - of_hand.get(hand, 0) + 128, duration, velocity]
        of_hand[hand] = pitch


def test_a_window_has_the_memory_of_each_of_its_tokens() -> None:
    piece, memory, steps = prepare_piece(encode_piece(make_piece(3)), 12), 12, 20
    for offset in (0, 5, 40):
        batch = make_batch([(piece, offset)], steps, np.zeros((1, 4), np.int32))
        for step in range(steps):
            seen = np.full(memory + steps, EMPTY)
            seen[step : step + memory] = piece.classes[offset + step]
            assert (batch.classes[0, step].numpy() == seen).all()
        for slot in range(memory + steps):
            token = offset - memory + slot
            expected = piece.slots[token] if token >= 0 else np.zeros_like(piece.slots[0])
            assert (batch.slots[0, slot].numpy() == expected).all()


def piece_of(rows: list[tuple[int, ...]], positions: list[int], metres: list[int], start: int = 0) -> EncodedPiece:
    return EncodedPiece(*(np.array(a, np.int32) for a in (rows, positions, metres)), start)


def classes(table: np.ndarray, counts: list[int]) -> list[int]:
    return [int(table[count]) for count in counts]


def test_what_is_left_of_a_piece_that_ends_on_a_barline() -> None:
    rows = [(0, *NOTE), (48, *NOTE), (0, CONTROL, Control.PEDAL_DOWN, 0, 0, 0), (48, *NOTE), (144, *NOTE), (48, *END)]
    piece = piece_of(rows, [0, 48, 48, 0, 48, 0], [COMMON] * 6)  # ticks 0, 48, 48, 96, 240, 288: three bars
    assert notes_left(piece.tokens).tolist() == classes(NOTES_LEFT_CLASS, [4, 3, 2, 2, 1, 0])
    assert bars_left(piece).tolist() == classes(BARS_LEFT_CLASS, [3, 3, 3, 3, 2, 1])


def test_bars_left_of_a_piece_with_a_pick_up_that_ends_within_a_bar() -> None:
    rows = [(0, *NOTE), (24, *NOTE), (96, *NOTE), (100, *NOTE), (50, *END)]
    piece = piece_of(rows, [72, 0, 0, 4, 54], [COMMON] * 5, start=72)  # barlines at ticks 24, 120, 216, 312
    assert bars_left(piece).tolist() == classes(BARS_LEFT_CLASS, [4, 4, 3, 2, 1])


def test_bars_left_across_a_change_of_metre() -> None:
    rows = [(0, *NOTE), (96, *NOTE), (72, *NOTE), (72, *NOTE), (30, *END)]
    piece = piece_of(rows, [0, 0, 0, 0, 30], [COMMON, WALTZ, WALTZ, WALTZ, WALTZ])  # barlines at ticks 0, 96, 168, 240, 312
    assert bars_left(piece).tolist() == classes(BARS_LEFT_CLASS, [4, 4, 3, 2, 1])


def test_more_than_the_last_class_is_the_last_class() -> None:
    piece = piece_of([(96, *NOTE)] * 3000, [0] * 3000, [COMMON] * 3000)
    for left, table in ((notes_left(piece.tokens), NOTES_LEFT_CLASS), (bars_left(piece), BARS_LEFT_CLASS)):
        assert (left[:900] == table[-1]).all()
        assert (np.diff(left) <= 0).all()


def plays(pieces: list[EncodedPiece], how: Augmentation, count: int) -> Iterator[tuple[EncodedPiece, PreparedPiece, dict]]:
    """Yield of each play its piece, what is played, and its conditions by name."""
    infos = []
    for i, piece in enumerate(pieces):
        key, tempo = key_and_tempo(piece.tokens)
        infos.append(PieceInfo(f"piece{i}", "train", key=KEYS[1 + key], tempo=TEMPO_CLASSES[tempo_class(tempo)]))
    dataset = Dataset(tuple(pieces), tuple(infos), condition_values(infos))
    stream, names = WindowStream(dataset, 1, 500, 4, how, seed=3), piece_condition_names(dataset.conditions)
    for _ in range(count):
        play = stream._rows[0][0]
        prepared, conditions = stream._prepare(play)
        batch, keep = stream.next()
        assert not keep[0]
        assert (batch.target[: len(prepared), 0].numpy() == prepared.target).all()
        assert (batch.conditions[0].numpy() == conditions).all()
        yield dataset.pieces[play.piece], prepared, {name: conditions[i] for i, name in enumerate(names)}


def test_key_and_tempo_that_are_told_move_with_the_piece() -> None:
    assert all(count_notes(encode_piece(make_piece(i)).tokens) < OPENING for i in range(6))
    seen = set()
    pieces = [encode_piece(make_piece(i)) for i in range(6)]
    for piece, played, told in plays(pieces, Augmentation(endings=0.0, hide=0.0, misheard=0.0), 60):
        notes = piece.tokens[:, 1] != CONTROL
        moved = (played.target - piece.tokens)[notes]
        assert (moved == moved[0]).all()
        _, _, up, _, _, faster = moved[0].tolist()
        mode, tonic = divmod(key_and_tempo(piece.tokens)[0], 12)
        assert KEYS[told["key"]] == KEYS[1 + mode * 12 + (tonic + up) % 12]
        qpm = TEMPOS[int(np.median(piece.tokens[notes, FIELDS.index("tempo")])) + faster]
        assert abs(np.log2(float(TEMPO_CLASSES[told["tempo"]]) / qpm)) < 1 / 12 + 0.01  # half a class of a sixth of an octave
        seen.add((up, faster))
    assert len(seen) > 20


def test_an_ending_begins_at_a_bar_and_is_told_how_much_is_left() -> None:
    pieces = [encode_piece(make_piece(i, bars=30)) for i in range(6)]
    lengths, told = [], []
    for piece, played, _ in plays(pieces, Augmentation(endings=1.0, tell_notes=0.3, tell_bars=0.3, misheard=0.0), 100):
        start = len(piece.tokens) - len(played)
        notes = int((played.target[:, 1] != CONTROL).sum())
        assert start > 0
        assert (played.position[0], played.target_position[0], played.target[0, 0]) == (0, 0, 0)
        assert (played.target[1:, 0] == piece.tokens[start + 1 :, 0]).all()
        assert (played.target_position == piece.positions[start:]).all()
        assert played.target[0, 1] != CONTROL
        assert not played.classes[0][: played.classes.shape[1] - 1].tolist().count(0)  # nothing is remembered of before
        assert not played.before[0].any()
        if played.notes_left.any():
            assert played.notes_left[0] == NOTES_LEFT_CLASS[notes]
        if played.bars_left.any():
            bar = BAR_TICKS[piece.metres[start]]
            assert played.bars_left[0] == BARS_LEFT_CLASS[-(-played.target[:, 0].sum() // bar)]
        lengths.append(notes)
        told.append((bool(played.notes_left.any()), bool(played.bars_left.any())))
    assert (False, False) not in told
    assert len(set(told)) == 3
    assert min(lengths) < 30
    assert max(lengths) > 60


def test_an_ending_is_told_its_own_key_and_tempo() -> None:
    differing = 0
    pieces = [encode_piece(make_piece(i, bars=40)) for i in range(6)]
    for piece, played, told in plays(
        pieces, Augmentation(transpose=0, tempo=0, velocity=0, endings=1.0, hide=0.0, misheard=0.0), 60
    ):
        key, tempo = key_and_tempo(played.target.astype(np.int32))
        assert (told["key"], told["tempo"]) == (1 + key, tempo_class(tempo))
        differing += (key, tempo) != key_and_tempo(piece.tokens)
    assert differing > 10


def test_conditions_are_hidden_each_by_itself() -> None:
    pieces = [encode_piece(make_piece(i)) for i in range(3)]
    hidden = []
    for _, played, told in plays(pieces, Augmentation(endings=0.0, hide=0.5), 200):
        hidden.append((not told["key"], not told["tempo"]))
        assert played.tempo[0] == EXPECTED_TEMPO[told["tempo"]]
        assert played.profile[0] == pytest.approx(np.tile(EXPECTED_PITCH_CLASSES[told["key"]], 2))
    assert all(30 < hidden.count(both) < 70 for both in ((False, False), (False, True), (True, False), (True, True)))


def test_a_whole_piece_is_told_in_the_share_of_its_plays_that_was_asked_for() -> None:
    pieces = [encode_piece(make_piece(i)) for i in range(3)]
    never = [p for _, p, _ in plays(pieces, Augmentation(endings=0.0, tell_notes=0.0, tell_bars=0.0), 20)]
    assert not any(p.notes_left.any() or p.bars_left.any() for p in never)
    notes = [p for _, p, _ in plays(pieces, Augmentation(endings=0.0, tell_notes=1.0, tell_bars=0.0), 20)]
    assert all(p.notes_left.all() and not p.bars_left.any() for p in notes)
    half = [p for _, p, _ in plays(pieces, Augmentation(endings=0.0, tell_notes=0.5, tell_bars=0.5), 200)]
    for column in ("notes_left", "bars_left"):
        assert 70 < sum(bool(vars(p)[column].any()) for p in half) < 130
