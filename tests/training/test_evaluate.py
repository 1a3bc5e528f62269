"""Figures of an evaluation: sums over parts and measures by hand, intervals that repeat, and a section that shows them."""

import json

import numpy as np
import pytest

from service.music.representation import FIELDS, Control, count_notes
from tests.training.test_baselines import refrain
from training.baselines import uniform_log_probs
from training.breakdown import MEASURES, PARTS, Breakdown, figure
from training.data import Dataset
from training.evaluate import evaluate
from training.fit import FitConfig, fit
from training.repetition import repeated
from training.score import Score
from training.scores_section import scores_section


@pytest.fixture(scope="module")
def music(dataset: Dataset) -> Dataset:
    """The tunes, and in place of four of them some that repeat themselves."""
    return Dataset((*dataset.pieces[:8], *(refrain(seed) for seed in range(4))), dataset.infos, dataset.conditions)


@pytest.fixture(scope="module")
def score(music: Dataset) -> Score:
    rng = np.random.default_rng(0)
    return Score.of(music.pieces, [rng.random(piece.tokens.shape) for piece in music.pieces])


def test_a_score_sums_its_tokens(music, score) -> None:
    assert score.nats.shape == (12, len(FIELDS))
    assert score.notes.tolist() == [count_notes(piece.tokens) for piece in music.pieces]
    assert score.nats_per_note == pytest.approx(sum(t.sum() for t in score.tokens) / score.notes.sum())
    assert sum(score.fields.values()) == pytest.approx(score.nats_per_note)


def test_parts_and_measures_by_hand(music, score) -> None:
    nats = dict.fromkeys([(m, p) for m in MEASURES for p in ("novel", "repeated")], 0.0)
    notes = {"novel": 0, "repeated": 0}
    shifts = 0.0
    for piece, tokens in zip(music.pieces, score.tokens, strict=True):
        again = repeated(piece.tokens)
        for token, costs, known in zip(piece.tokens, tokens, again, strict=True):
            part = "repeated" if known else "novel"
            pedal = token[1] == 0 and token[2] in (Control.PEDAL_DOWN, Control.PEDAL_UP)
            nats["everything", part] += costs.sum()
            nats["without_tempo_and_pedal", part] += costs[0] if pedal else costs[:5].sum()
            notes[part] += int(token[1] > 0)
            shifts += costs[0] * pedal
    breakdown = Breakdown(music)
    figures = breakdown.figures(score)
    assert notes["repeated"] > 10
    assert breakdown.repeated_share == notes["repeated"] / sum(notes.values())
    for (measure, part), total in nats.items():
        assert figures[measure][part]["value"] == pytest.approx(total / notes[part], abs=1e-5)
        fields = figures[measure]["fields"][part]
        assert sum(f["value"] for f in fields.values()) == pytest.approx(total / notes[part], abs=1e-4)
        assert ("tempo" in fields) == (measure == "everything")
    assert figures["everything"]["all"]["value"] == pytest.approx(score.nats_per_note, abs=1e-5)
    assert figures["without_tempo_and_pedal"]["pedal_shifts"]["value"] == pytest.approx(shifts / sum(notes.values()), abs=1e-5)
    assert figures["bits_per_second"]["value"] == pytest.approx(score.nats.sum() / np.log(2) / (12 * 30), abs=1e-5)


def test_groups(music, score) -> None:
    breakdown = Breakdown(music)
    composers = breakdown.groups("composer")
    assert composers == {"Ana": [0, 1, 2, 3, 4, 6, 7, 8, 9, 10], "Ben": [5, 11]}
    assert breakdown.describe(composers)["Ben"] == {"pieces": 2, "notes": int(score.notes[[5, 11]].sum())}
    figures = breakdown.figures_of(score, composers)["Ben"]["everything"]
    assert figures["all"]["value"] == pytest.approx(score.nats[[5, 11]].sum() / score.notes[[5, 11]].sum(), abs=1e-5)


def test_ratios_are_of_the_same_pieces(music, score) -> None:
    uniform = Score.of(music.pieces, [-uniform_log_probs(piece) for piece in music.pieces])
    half = Score.of(music.pieces, [tokens / 2 for tokens in uniform.tokens])
    ratios = Breakdown(music).ratios(half, uniform)
    for measure in MEASURES:
        for part in PARTS:
            assert ratios[measure][part] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_intervals_repeat_and_cover() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(50, 500, 200)
    amounts = counts * rng.normal(4.0, 0.5, 200)
    first = figure(amounts, counts)
    assert first == figure(amounts, counts)
    assert first is not None
    # The means of 200 pieces of unequal lengths spread by about 0.5 / sqrt(200) times a bit more: 0.04.
    assert first["low"] == pytest.approx(first["value"] - 1.96 * 0.04, abs=0.02)
    assert first["high"] == pytest.approx(first["value"] + 1.96 * 0.04, abs=0.02)


def test_intervals_of_little() -> None:
    assert figure(np.array([3.0]), np.array([2])) == {"value": 1.5, "low": None, "high": None}
    assert figure(np.array([0.0, 0.0]), np.array([0, 0])) is None
    assert figure(np.array([4.0, 0.0]), np.array([2, 0])) == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_evaluation_of_a_tiny_network(dataset, data_file, small, tmp_path) -> None:
    fit(dataset, tmp_path, small, FitConfig(steps=2, rows=4, window=32, warmup=1, evaluate_every=2))
    result = evaluate(tmp_path, data_file, "valid", baselines=data_file)
    assert json.loads(json.dumps(result)) == result
    scores = result["scores"]
    assert scores["models"]["model"]["everything"]["all"]["value"] == pytest.approx(result["nats_per_note"], abs=1e-5)
    assert list(scores["packs"]) == ["tunes"]
    assert scores["composers"] == {name: scores["composers"][name] for name in ("Ana", "Ben")}
    assert set(scores["ratios"]) == set(scores["models"]) - {"model"}
    assert {"order5", "order5+match", "plain5", "plain5+match"} < set(scores["ratios"])
    ratio = scores["ratios"]["plain5"]["everything"]["novel"]["value"]
    ours, theirs = (scores["models"][name]["everything"]["novel"]["value"] for name in ("model", "plain5"))
    assert ratio == pytest.approx(ours / theirs, abs=1e-4)
    section = scores_section(result)
    for shown in ("**this model**", "Kneser-Ney, order 5, plain, with match", "By composer, ", "| Ben | 1 |"):
        assert shown in section
    assert f"{ratio:.3f}" in section
    widths = [{line.count("|") for line in block.splitlines()} for block in section.split("\n\n") if block.startswith("|")]
    assert len(widths) == 5
    assert all(len(width) == 1 for width in widths)
    without = scores_section(evaluate(tmp_path, data_file, "valid"))
    assert "Kneser-Ney" not in without
