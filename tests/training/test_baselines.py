"""Back-off models: Kneser-Ney against sums worked out by hand, probabilities that add up, and no look at what comes later."""

import numpy as np
import pytest

from service.music.piece import NOTE, PEDAL, TEMPO, Piece, TimeSignature, records, sort_notes
from service.music.representation import CONTROL, FIELDS, VOCABULARY, Control, EncodedPiece, encode_piece
from training.baselines import KINDS, BackoffModel, score_baselines, uniform_log_probs
from training.kneser_ney import KneserNey
from training.match_model import MatchModel
from training.repetition import find_matches, repeated


def column(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def random_piece(seed: int, count: int = 60) -> EncodedPiece:
    """Chords of both hands, pedal and a changing tempo: every kind of token."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 300, count) * 6)
    columns = (times, rng.integers(40, 80, count), rng.integers(1, 48, count), rng.integers(1, 128, count))
    notes = records(NOTE, zip(*columns, rng.integers(1, 4, count), strict=True))
    pedals = records(PEDAL, [(96 * i, i % 2 == 0) for i in range(8)])
    tempos = records(TEMPO, [(48 * i, 80.0 + 5 * (i % 3)) for i in range(20)])
    return encode_piece(Piece(sort_notes(notes), tempos, pedals, (TimeSignature(0, 3, 4),), pickup=24))


def test_kneser_ney_by_hand() -> None:
    # Context a=0 is followed by x=0 twice and y=1 once, context b=1 by x=0 and z=2 once each; w=3 is never seen.
    model = KneserNey([column(0, 0, 0, 1, 1)], column(0, 0, 1, 0, 2), vocabulary=4)

    # Two contexts precede x, one y, one z: continuation counts 2, 1, 1, discount 2 / (2 + 2 * 1) = 0.5, three discounts kept.
    lower = np.array([1.5 / 4, 0.5 / 4, 0.5 / 4, 0]) + 3 * 0.5 / 4 * 0.25
    # Counts after a are 2, 1; over both contexts three are 1 and one is 2: discount 3 / (3 + 2 * 1) = 0.6.
    after_a = np.array([1.4 / 3, 0.4 / 3, 0, 0]) + 2 * 0.6 / 3 * lower

    every = np.arange(4)
    np.testing.assert_allclose(model.probabilities([np.full(4, 0)], every), after_a)
    np.testing.assert_allclose(model.probabilities([np.full(4, 7)], every), lower)  # an unknown context backs off whole


def test_modified_discounts_by_hand() -> None:
    # Four symbols seen once, two twice, one three times, one four times: n1..n4 = 4, 2, 1, 1, and Y = 4 / (4 + 2 * 2) = 0.5.
    counts = [1, 1, 1, 1, 2, 2, 3, 4]
    model = KneserNey([], np.repeat(np.arange(8), counts), vocabulary=10)

    # D1 = 1 - 2 Y n2/n1 = 0.5, D2 = 2 - 3 Y n3/n2 = 1.25, D3+ = 3 - 4 Y n4/n3 = 1; in all 4 * 0.5 + 2 * 1.25 + 2 * 1 = 6.5 of 15.
    discounted = np.array([0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 2, 3, 0, 0]) / 15
    np.testing.assert_allclose(model.probabilities([], np.arange(10)), discounted + 6.5 / 15 / 10)


def test_kneser_ney_sums_to_one_in_every_context() -> None:
    rng = np.random.default_rng(0)
    symbols = rng.geometric(0.3, 500).clip(1, 12) - 1
    contexts = [rng.integers(0, n, 500) for n in (3, 4, 5)]
    model = KneserNey(contexts, symbols, vocabulary=12)
    for example in range(20):
        probabilities = model.probabilities([np.full(12, c[example]) for c in contexts], np.arange(12))
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1)


def legal_values(field: int, token: np.ndarray) -> np.ndarray:
    """The values that a field may take, given the fields before it."""
    if FIELDS[field] == "pitch":
        return np.arange(1, len(Control)) if token[1] == CONTROL else np.arange(len(Control), VOCABULARY.pitch)
    return np.arange(0 if FIELDS[field] in ("shift", "hand") else 1, VOCABULARY[field])


def refrain(seed: int) -> EncodedPiece:
    """A tune with its pedal that returns three times, each time higher and once with another rhythm."""
    rng = np.random.default_rng(seed)
    tune = [(int(step), int(pitch)) for step, pitch in zip(rng.choice([6, 12], 24), rng.integers(50, 70, 24), strict=True)]
    notes, pedals, time = [], [], 0
    for turn in range(4):
        pedals += [(time, True), (time + 40, False)]
        for i, (step, pitch) in enumerate(tune):
            notes.append((time, pitch + turn, step, 64 + turn, 1 + i % 2))
            time += step + 3 * (turn == 2 and i == 10)
    return encode_piece(Piece(sort_notes(records(NOTE, notes)), pedals=records(PEDAL, pedals)))


class WithMatch:
    """A back-off model with the match feature, as if it were one model."""

    def __init__(self, pieces: list[EncodedPiece], order: int, kind: str) -> None:
        self._model = BackoffModel.fit(pieces[1:], order, KINDS[kind])
        self._matches = MatchModel.fit(pieces[:1], [self._model.log_probs(pieces[0])])

    def log_probs(self, piece: EncodedPiece) -> np.ndarray:
        return self._matches.mix(self._model.log_probs(piece), piece)


def fit(kind: str, order: int, match: bool, pieces: list[EncodedPiece]) -> BackoffModel | WithMatch:
    return WithMatch(pieces, order, kind) if match else BackoffModel.fit(pieces, order, KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "order", "match"),
    [
        *((kind, order, False) for kind in KINDS for order in (1, 3, 5)),
        ("order", 5, True),
        ("plain", 3, True),
    ],
)
def test_every_field_sums_to_one(kind: str, order: int, match: bool) -> None:
    make = refrain if match else random_piece
    model = fit(kind, order, match, [make(seed) for seed in range(5)])
    piece = make(99)
    kinds = piece.tokens[:, 1]
    chosen = [0, int(np.flatnonzero(kinds == CONTROL)[2])]
    if match:
        chosen += [int(i) for i in np.flatnonzero(repeated(piece.tokens))[::20]]  # among them controls and the END
        chosen.append(len(piece.tokens) - 1)
    else:
        chosen += [int(i) for i in np.flatnonzero((kinds != CONTROL) & (piece.tokens[:, 0] == 0))[:2]]
    for at in chosen:
        for field in range(len(FIELDS) if kinds[at] != CONTROL else 3):
            total = 0.0
            for value in legal_values(field, piece.tokens[at]):
                tokens = piece.tokens[: at + 1].copy()
                tokens[at, field] = value
                changed = EncodedPiece(tokens, piece.positions[: at + 1], piece.metres[: at + 1], piece.start_position)
                total += np.exp(model.log_probs(changed)[at, field])
            assert total == pytest.approx(1), (at, FIELDS[field])


@pytest.mark.parametrize("match", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_that_comes_later_matters(kind: str, match: bool) -> None:
    make = refrain if match else random_piece
    model = fit(kind, 5, match, [make(seed) for seed in range(3)])
    piece = make(7)
    whole = model.log_probs(piece)
    for cut in (1, 20, 45, 60):
        part = EncodedPiece(piece.tokens[:cut], piece.positions[:cut], piece.metres[:cut], piece.start_position)
        np.testing.assert_allclose(model.log_probs(part), whole[:cut])
        # Nor do the fields that are drawn after one, though the symbols of a context sit in the same rows.
        for field in range(2, len(FIELDS)):
            tokens = part.tokens.copy()
            tokens[-1, field:] = 1 if tokens[-1, 1] == CONTROL else 9
            changed = EncodedPiece(tokens, part.positions, part.metres, part.start_position)
            np.testing.assert_allclose(model.log_probs(changed)[:, :field], whole[:cut, :field])


def test_a_match_is_trusted_as_far_as_it_was_right() -> None:
    pieces = [refrain(seed) for seed in range(20)]
    even = [
        uniform_log_probs(piece) for piece in pieces
    ]  # says next to nothing itself: what matches get is how often they are right
    model = MatchModel.fit(pieces, even)
    piece = pieces[3]
    matches = find_matches(piece.tokens)
    mixed = np.exp(model.mix(even[3], piece))
    sure = (matches.length >= 8) & (matches.values == piece.tokens[:, :5]).all(axis=1)
    assert sure.sum() > 30
    assert mixed[sure, 2].min() > 0.9  # the transposed pitch
    assert (mixed[matches.length == 0] == np.exp(even[3])[matches.length == 0]).all()
    np.testing.assert_allclose(mixed[:, 5], np.exp(even[3])[:, 5])  # a match does not know the tempo
    # By hand: of all pitches whose shift and hand were foretold by a match of 8 notes, the share that was right, nearly.
    right, all_of_them = 1, 2
    for one in pieces:
        m = find_matches(one.tokens)
        kind = (
            (m.length == 8) & (m.values[:, :2] == one.tokens[:, :2]).all(axis=1) & (m.values[:, 2] >= 0) & (one.tokens[:, 1] > 0)
        )
        right += int((m.values[kind, 2] == one.tokens[kind, 2]).sum())
        all_of_them += int(kind.sum())
    kind = sure & (matches.length == 8) & (piece.tokens[:, 1] > 0)
    np.testing.assert_allclose(mixed[kind, 2], right / all_of_them, atol=0.01)


def test_uniform_is_the_logarithm_of_the_legal_values() -> None:
    piece = encode_piece(Piece(records(NOTE, [(0, 60, 24, 64, 1)])))
    note, end = -uniform_log_probs(piece)
    np.testing.assert_allclose(np.exp(note), [193, 4, 88, VOCABULARY.duration - 1, 32, VOCABULARY.tempo - 1])
    np.testing.assert_allclose(np.exp(end), [193, 4, 4, 1, 1, 1])


def test_scores_count_all_tokens_over_notes() -> None:
    train = [random_piece(seed) for seed in range(6)]
    scores = dict(score_baselines(train, train[:2]))
    names = ["uniform"] + [f"{kind}{order}{match}" for kind in ("order", "plain") for order in (3, 5) for match in ("", "+match")]
    assert list(scores) == names
    for score in scores.values():
        assert list(score.fields) == list(FIELDS)
        assert sum(score.fields.values()) == pytest.approx(score.nats_per_note)
    by_hand = -sum(BackoffModel.fit(train, 5).log_probs(piece).sum() for piece in train[:2]) / 120
    assert scores["order5"].nats_per_note == pytest.approx(by_hand)
    assert scores["order5"].nats_per_note < scores["order3"].nats_per_note < scores["uniform"].nats_per_note


def test_the_match_feature_helps_where_a_tune_returns() -> None:
    scores = dict(score_baselines([refrain(seed) for seed in range(16)], [refrain(99)]))
    for name in ("order3", "order5", "plain3", "plain5"):
        assert scores[name + "+match"].nats_per_note < scores[name].nats_per_note - 1


def test_a_known_tune_is_cheap() -> None:
    scale = [(12 * i, 60 + pitch, 12, 64, 1) for i, pitch in enumerate([0, 2, 4, 5, 7, 5, 4, 2] * 20)]
    piece = encode_piece(Piece(records(NOTE, scale)))
    assert -BackoffModel.fit([piece] * 5, 5).log_probs(piece).sum() / len(scale) < 0.5


def test_refuses_an_order_without_contexts() -> None:
    with pytest.raises(ValueError, match=r"`order` must be in 1\.\.5; got 6"):
        BackoffModel.fit([random_piece(0)], 6)
