"""Back-off models: Kneser-Ney against sums worked out by hand, probabilities that add up, and no look at what comes later."""

import numpy as np
import pytest

from service.music.piece import NOTE, PEDAL, TEMPO, Piece, TimeSignature, records, sort_notes
from service.music.representation import CONTROL, FIELDS, VOCABULARY, Control, EncodedPiece, encode_piece
from training.baselines import BackoffModel, evaluate_baselines, uniform_log_probs
from training.kneser_ney import KneserNey


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


@pytest.mark.parametrize("order", [1, 3, 5])
def test_every_field_sums_to_one(order: int) -> None:
    model = BackoffModel.fit([random_piece(seed) for seed in range(5)], order)
    piece = random_piece(99)
    kinds = piece.tokens[:, 1]
    for at in (0, int(np.flatnonzero(kinds == CONTROL)[2]), *np.flatnonzero((kinds != CONTROL) & (piece.tokens[:, 0] == 0))[:2]):
        for field in range(len(FIELDS) if kinds[at] != CONTROL else 3):
            total = 0.0
            for value in legal_values(field, piece.tokens[at]):
                tokens = piece.tokens[: at + 1].copy()
                tokens[at, field] = value
                changed = EncodedPiece(tokens, piece.positions[: at + 1], piece.metres[: at + 1], piece.start_position)
                total += np.exp(model.log_probs(changed)[at, field])
            assert total == pytest.approx(1), (at, FIELDS[field])


def test_nothing_that_comes_later_matters() -> None:
    model = BackoffModel.fit([random_piece(seed) for seed in range(3)], order=5)
    piece = random_piece(7)
    whole = model.log_probs(piece)
    for cut in (1, 20, 45):
        part = EncodedPiece(piece.tokens[:cut], piece.positions[:cut], piece.metres[:cut], piece.start_position)
        np.testing.assert_allclose(model.log_probs(part), whole[:cut])
        # Nor do the fields that are drawn after one, though the symbols of a context sit in the same rows.
        for field in range(2, len(FIELDS)):
            tokens = part.tokens.copy()
            tokens[-1, field:] = 1 if tokens[-1, 1] == CONTROL else 9
            changed = EncodedPiece(tokens, part.positions, part.metres, part.start_position)
            np.testing.assert_allclose(model.log_probs(changed)[:, :field], whole[:cut, :field])


def test_uniform_is_the_logarithm_of_the_legal_values() -> None:
    piece = encode_piece(Piece(records(NOTE, [(0, 60, 24, 64, 1)])))
    note, end = -uniform_log_probs(piece)
    np.testing.assert_allclose(np.exp(note), [193, 4, 88, VOCABULARY.duration - 1, 32, VOCABULARY.tempo - 1])
    np.testing.assert_allclose(np.exp(end), [193, 4, 4, 1, 1, 1])


def test_evaluation_counts_all_tokens_over_notes() -> None:
    train = [random_piece(seed) for seed in range(6)]
    result = evaluate_baselines(train, train[:2])
    assert list(result) == ["uniform", "order3", "order5"]
    for score in result.values():
        assert list(score["fields"]) == list(FIELDS)
        assert sum(score["fields"].values()) == pytest.approx(score["nats_per_note"])
    by_hand = -sum(BackoffModel.fit(train, 5).log_probs(piece).sum() for piece in train[:2]) / 120
    assert result["order5"]["nats_per_note"] == pytest.approx(by_hand)
    assert result["order5"]["nats_per_note"] < result["order3"]["nats_per_note"] < result["uniform"]["nats_per_note"]


def test_a_known_tune_is_cheap() -> None:
    scale = [(12 * i, 60 + pitch, 12, 64, 1) for i, pitch in enumerate([0, 2, 4, 5, 7, 5, 4, 2] * 20)]
    piece = encode_piece(Piece(records(NOTE, scale)))
    assert -BackoffModel.fit([piece] * 5, 5).log_probs(piece).sum() / len(scale) < 0.5


def test_refuses_an_order_without_contexts() -> None:
    with pytest.raises(ValueError, match=r"`order` must be in 1\.\.5; got 6"):
        BackoffModel.fit([random_piece(0)], 6)
