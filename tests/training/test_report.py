"""The musical report: each figure by hand on tiny music, a rag of the music21 corpus, and the whole with the shipped model."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from service.music.keys import KEY_NAMES
from service.music.piece import NOTE, TEMPO, Hand, Piece, Records, TimeSignature, records, sort_notes
from service.music.representation import decode_tokens, encode_piece
from tests.training.conftest import make_piece
from training.data import Dataset, InvalidDataset, PieceInfo, condition_values, load_dataset, save_dataset
from training.import_music import dataset_sources
from training.report import control, failures, form, originality, overlap, similarity, statistics
from training.report.asking import check_control
from training.report.compose import Composed, Wish, default_wish, make_sequence, unknown_wishes
from training.report.excerpts import excerpts_of, parse_metre, take_excerpts
from training.report.make import PICTURES, REPORT, make_report, to_json
from training.report.markdown import report_section
from training.report.materials import Materials
from training.report.metre import METRES, MetreClassifier, metre_name

SHIPPED = sorted((Path(__file__).parents[2] / "exported").glob("*.onnx"))
COMMON = TimeSignature(0, 4, 4)
MAJOR = (0, 2, 4, 5, 7, 9, 11, 12)


def line(pitches: list[int], step: int = 12, duration: int | None = None, velocity: int = 64) -> Records:
    """Return notes of the right hand at equal distances."""
    return records(NOTE, [(i * step, p, duration or step, velocity, Hand.RIGHT) for i, p in enumerate(pitches)])


def piece(notes: Records, metre: TimeSignature = COMMON, **more: object) -> Piece:
    return Piece(notes, time_signatures=(metre,), **more)  # type: ignore[arg-type]


class TestExcerpts:
    @pytest.mark.parametrize("seed", range(6))  # 3/4, 4/4 and 6/8, with and without pick-up
    def test_each_begins_with_a_bar_and_has_the_notes_of_its_piece(self, seed: int) -> None:
        whole = make_piece(seed, bars=40)
        found = excerpts_of(encode_piece(whole), 50)
        assert len(found) >= 3
        heard = decode_tokens(encode_piece(whole).tokens)
        bar = whole.time_signatures[0].bar_ticks
        place = 0
        for number, excerpt in enumerate(found):
            assert len(excerpt.notes) == 50
            assert excerpt.time_signatures[0][1:] == whole.time_signatures[0][1:]
            assert excerpt.pickup == (whole.pickup if number == 0 else 0)
            # found again in the piece, after the one before, by the same pitches in the same order
            while (heard.notes["pitch"][place : place + 50] != excerpt.notes["pitch"]).any():
                place += 1
            moved = heard.notes["time"][place] - excerpt.notes["time"][0]
            assert (heard.notes["time"][place : place + 50] - moved == excerpt.notes["time"]).all()
            assert number == 0 or (moved - whole.pickup) % bar == 0
            assert (excerpt.tempo_at(excerpt.notes["time"]) == heard.tempo_at(excerpt.notes["time"] + moved)).all()
            place += 50

    def test_none_reaches_over_a_change_of_metre(self) -> None:
        notes = line([60 + i % 12 for i in range(64)])  # eight notes a bar of 4/4
        changing = encode_piece(Piece(notes, time_signatures=(COMMON, TimeSignature(384, 3, 4))))
        assert [metre_name(p) for p in excerpts_of(changing, 32)] == ["4/4", "3/4"]
        assert excerpts_of(changing, 33) == []

    def test_first_one_of_each_piece_then_a_second(self, dataset: Dataset) -> None:
        taken = take_excerpts(dataset, 20, 15)
        assert len({excerpt.source for excerpt in taken[:12]}) == 12
        assert len(taken) == 15

    def test_too_short_a_piece_is_said_to_be(self, dataset: Dataset) -> None:
        with pytest.raises(InvalidDataset, match="no piece has 5000 notes"):
            take_excerpts(dataset, 5000, 1)


METADATA: Mapping[str, object] = MappingProxyType(
    {
        "conditions": {"metre": ["other", "4/4", "3/4"], "rendition": ["unknown", "score", "performed"]},
        "defaults": {"time_signature": "3/4", "rendition": "performed", "composer": "Ana"},
    }
)


class TestWishes:
    def test_defaults_are_those_that_the_model_knows(self) -> None:
        assert default_wish(METADATA, 7, 64) == Wish(7, 64, "3/4", {"rendition": "performed"})

    def test_what_a_model_does_not_know_is_left_out_and_said(self) -> None:
        wish = Wish(1, 10, "3/4", {"rendition": "score", "key": "C major", "composer": "Ana"})
        sequence = make_sequence(wish, METADATA)
        assert sequence.conditions == {"metre": 2, "rendition": 1}
        assert sequence.bar_ticks == 72
        assert unknown_wishes([wish, Wish(2, 10, conditions={"rendition": "sung"})], METADATA) == [
            "composer",
            "key",
            "rendition=sung",
        ]


class TestStatistics:
    def test_metrics_of_a_scale(self) -> None:
        figures = statistics.metrics(piece(line([60 + step for step in MAJOR])))
        assert figures["pitch_range"] == 12
        assert figures["n_pitches_used"] == 8
        assert figures["polyphony"] == 1
        assert figures["scale_consistency"] == 1
        assert figures["pitch_class_entropy"] == pytest.approx(6 / 8 * 3 + 2 / 8 * 2)  # six classes of 1/8, C of 2/8
        assert figures["notes_per_quarter"] == 2

    def test_groove_counts_from_the_barline(self) -> None:
        # a quarter note as pick-up, then whole notes: from the barline the full bars are alike, but not from tick 0
        notes = records(NOTE, [(0, 60, 24, 64, 1), *((24 + 96 * i, 60, 90, 64, 1) for i in range(4))])
        whole = statistics.metrics(piece(notes, pickup=24))
        # five bars: the first has an onset at 72 only, the others at 0 only: two places of 96 differ, once in four
        assert whole["groove_consistency"] == pytest.approx(1 - 2 / (96 * 4))

    def test_histograms(self) -> None:
        shares = statistics.histograms(piece(line([60, 64, 60, 100], step=24, velocity=71)))
        assert all(share.sum() == pytest.approx(1) for share in shares.values())
        assert np.flatnonzero(shares["interval"]).tolist() == [20, 28, 48]  # -4, +4, and +40 counted as +24
        assert shares["velocity"][8] == 1
        assert (shares["shift"] > 0).sum() == 1

    def test_length_classes_tell_note_values_apart(self) -> None:
        values = [3, 4, 6, 8, 12, 16, 18, 24, 36, 48, 72, 96, 192]  # 32nd ... whole note and double whole note
        classes = np.searchsorted(statistics.LENGTH_EDGES, values).tolist()
        apart = [c for v, c in zip(values, classes, strict=True) if v in (3, 6, 12, 24, 48, 96, 192)]
        assert apart == sorted(set(apart))
        assert classes[values.index(8)] != classes[values.index(12)]

    def test_shared_mass(self) -> None:
        assert statistics.shared_mass(np.array([[0.5, 0.5, 0.0]]), np.array([[0.0, 0.5, 0.5]])) == 0.5


class TestOverlap:
    def test_distances(self) -> None:
        values = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        assert sorted(overlap.distances_within(values, np.array([0, 1, 2]))) == pytest.approx([1, np.sqrt(18), 5])
        assert overlap.distances_within(values, np.array([0, 0, 2])) == pytest.approx([1, np.sqrt(18)])
        assert overlap.distances_between(values[:1], values[1:]) == pytest.approx([5, 1])

    def test_alike_and_apart(self) -> None:
        rng = np.random.default_rng(0)
        one, same, far = rng.normal(10, 1, 3000), rng.normal(10, 1, 3000), rng.normal(30, 1, 3000)
        assert overlap.overlap(one, same).area > 0.95
        assert overlap.overlap(one, same).divergence < 0.05
        assert overlap.overlap(one, far).area < 0.01
        assert overlap.overlap(one, far).divergence > 5

    def test_two_normal_densities_a_standard_deviation_apart(self) -> None:
        # OA is 2 Φ(-1/2) = 0.617, KLD 1/2; the kernels widen both a little
        rng = np.random.default_rng(1)
        result = overlap.overlap(rng.normal(0, 1, 4000), rng.normal(1, 1, 4000))
        assert result.area == pytest.approx(0.617, abs=0.04)
        assert result.divergence == pytest.approx(0.5, abs=0.1)

    def test_without_spread_or_values(self) -> None:
        assert overlap.overlap(np.zeros(5), np.zeros(5)) == (1, 0)
        assert overlap.overlap(np.zeros(5), np.arange(5.0)) == (0, float("inf"))
        assert np.isnan(overlap.overlap(np.zeros(0), np.zeros(5)).area)

    def test_music_of_the_same_kind_reaches_the_ceiling_and_other_music_does_not(self) -> None:
        rng = np.random.default_rng(2)
        sources = np.repeat(np.arange(60), 2)
        real = {"x": rng.normal(0, 1, (120, 1))}
        same = overlap.compare(real, {"x": rng.normal(0, 1, (120, 1))}, sources, ["x"])
        other = overlap.compare(real, {"x": rng.normal(4, 1, (120, 1))}, sources, ["x"])
        assert overlap.headline(same)["ratio"] > 0.95
        assert overlap.headline(other)["ratio"] < 0.5
        assert other["x"]["ceiling_area"] == same["x"]["ceiling_area"]
        assert same["x"]["spread"] == pytest.approx(1, abs=0.15)


class TestOriginality:
    def test_a_run_is_found_in_another_key_and_with_other_durations(self) -> None:
        rng = np.random.default_rng(0)
        corpus = [line(rng.integers(30, 90, 400).tolist()) for _ in range(3)]
        mine = line(rng.integers(30, 90, 60).tolist())
        mine["pitch"][20:36] = corpus[1]["pitch"][100:116] + 5
        mine["duration"] = 7
        (run,) = originality.longest_runs([mine], corpus)
        assert run.steps == 15
        assert (run.start, run.piece) == (20, 1)
        assert run.kinds == len(set(np.diff(corpus[1]["pitch"][100:116]).tolist()))

    def test_no_run_reaches_over_two_pieces(self) -> None:
        first, second = line([60, 61, 63]), line([66, 70, 75])
        (run,) = originality.longest_runs([line([60, 61, 63, 66, 70, 75])], [first, second])
        assert run.steps == 2

    def test_rhythm_counts(self) -> None:
        tune = [60, 67, 62, 71, 64]
        assert originality.longest_runs([line(tune, step=12)], [line(tune, step=6)]) == [originality.NO_RUN]
        assert originality.longest_runs([line(tune)], [line(tune)])[0].steps == 4

    @pytest.mark.parametrize("seed", range(5))
    def test_as_a_plain_search_finds_it(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        corpus = [line(rng.integers(60, 63, rng.integers(2, 40)).tolist()) for _ in range(5)]
        passages = [line(rng.integers(60, 63, rng.integers(1, 30)).tolist()) for _ in range(6)]
        texts = [np.diff(notes["pitch"]).tolist() for notes in corpus]

        def longest(notes: Records) -> int:
            mine = np.diff(notes["pitch"]).tolist()
            return max(
                (
                    j - i
                    for i in range(len(mine))
                    for j in range(i + 1, len(mine) + 1)
                    if any(_within(mine[i:j], t) for t in texts)
                ),
                default=0,
            )

        assert [run.steps for run in originality.longest_runs(passages, corpus)] == [longest(notes) for notes in passages]

    def test_summary_names_the_worst_case(self) -> None:
        runs = [originality.Run(steps, 0, steps % 2, 1) for steps in range(1, 21)]
        figures = originality.summarise([originality.Run(30, 0, 1, 2), *runs], runs, ["a", "b"])
        assert figures["composed"]["longest"] == 30
        assert figures["composed"]["piece"] == "b"
        assert figures["real"]["p95"] == pytest.approx(19.05)
        assert figures["above"] == pytest.approx(2 / 21)


def _within(part: list[int], text: list[int]) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


class TestForm:
    def test_figures_that_return(self) -> None:
        tune = [60, 64, 62, 67, 65]  # four steps: one figure
        twice = line([*tune, *(pitch + 3 for pitch in tune)])
        assert form.returning_figures(twice) == pytest.approx(1 / 6)  # of six figures the last one is the first again
        assert form.returning_figures(line([60, 61, 63, 66, 70, 75, 81])) == 0
        assert np.isnan(form.returning_figures(line([60, 61])))

    @pytest.mark.parametrize(("between", "returned"), [(4, 1), (124, 1), (125, 0)])
    def test_only_within_128_notes(self, between: int, returned: int) -> None:
        rng = np.random.default_rng(0)
        filler = rng.permutation(np.arange(1, between + 1))  # shifts that never come twice
        steps = [
            *[(200, 5), (201, -3), (202, 7), (203, -9)],
            *((int(s), 0) for s in filler),
            *[(200, 5), (201, -3), (202, 7), (203, -9)],
        ]
        notes = np.zeros(len(steps) + 1, NOTE)
        notes["time"][1:] = np.cumsum([shift for shift, _ in steps])
        notes["pitch"] = 60 + np.cumsum([0, *(interval for _, interval in steps)])
        assert form.returning_figures(notes) * (len(steps) - 3) == pytest.approx(returned)

    def test_off_beat_counts_from_the_barline(self) -> None:
        notes = records(NOTE, [(time, 60, 3, 64, 1) for time in (0, 3, 6, 8)])
        assert form.off_beat(piece(notes)) == 0.5
        assert form.off_beat(piece(notes, pickup=3)) == 0.75  # the barline is at tick 3

    def test_restruck(self) -> None:
        notes = [(0, 60, 24, 64, 1), (12, 60, 6, 64, 1), (20, 60, 6, 64, 2), (24, 60, 6, 64, 1), (26, 60, 6, 64, 1)]
        # 12 and 20 fall into the first note; 24 begins as it ends, but the one from 20 sounds to 26; 26 strikes that from 24
        assert form.restruck(records(NOTE, notes)) == pytest.approx(4 / 5)
        assert form.restruck(records(NOTE, [(0, 60, 24, 64, 1), (0, 60, 12, 64, 2), (24, 60, 6, 64, 1)])) == 0

    def test_clarity_of_a_scale(self) -> None:
        assert form.form(piece(line([60 + step for step in MAJOR])))["clarity"] > 0.8


class TestSimilarity:
    def test_bars_in_turn(self) -> None:
        bars = [[60, 64, 67, 72], [62, 65, 69, 74]]  # nothing in common
        notes = line([pitch for bar in range(12) for pitch in bars[bar % 2]], step=24)
        matrix = similarity.self_similarity(piece(notes))
        assert matrix.shape == (12, 12)
        assert matrix[0, :3] == pytest.approx([1, 0, 1])
        curve, counts = similarity.lag_curve([piece(notes)], lags=10)
        assert curve[:4] == pytest.approx([0, 1, 0, 1])
        assert counts == [1] * 8 + [0] * 2  # 8 lags of 12 bars

    def test_the_octave_and_the_pickup_do_not_matter(self) -> None:
        notes = line([67, *[60, 64, 67, 72], *[72, 76, 79, 84]], step=24)
        matrix = similarity.self_similarity(piece(notes, pickup=24))
        assert matrix.shape == (3, 3)
        assert matrix[1, 2] == pytest.approx(1)

    def test_phrases_are_peaks(self) -> None:
        curve = np.full(32, 0.25)
        assert similarity.phrase_peak(curve) == pytest.approx(0)
        curve[[3, 7, 11, 15]] += 0.1
        assert similarity.phrase_peak(curve) == pytest.approx(0.1)


class TestFailures:
    def test_music_without_faults(self) -> None:
        assert not any(failures.faults(piece(line([60 + step for step in MAJOR] * 4))).values())

    @pytest.mark.parametrize(
        ("fault", "notes"),
        [
            ("repeated", line([60] * 9)),
            ("silence", records(NOTE, [(0, 60, 24, 64, 1), (24 + 193, 62, 24, 64, 1)])),
            ("crowded", records(NOTE, [(i, 40 + i, 99, 64, 1) for i in range(11)])),
            ("stretched", records(NOTE, [(0, 40, 24, 64, 2), (0, 65, 24, 64, 2)])),
            ("edge", line([60] * 3 + [26, 28] * 8)),
        ],
    )
    def test_each_fault_alone(self, fault: str, notes: Records) -> None:
        assert [name for name, found in failures.faults(piece(notes)).items() if found] == [fault]

    @pytest.mark.parametrize(
        "notes",
        [
            line([60] * 8),
            records(NOTE, [(0, 60, 24, 64, 1), (24 + 192, 62, 24, 64, 1)]),
            records(NOTE, [(0, 50, 300, 64, 1), (24, 60, 24, 64, 1), (250, 62, 24, 64, 1)]),  # something sounds throughout
            records(NOTE, [(i, 40 + i, 10, 64, 1) for i in range(30)]),  # ten at once
            records(NOTE, [(0, 40, 24, 64, 2), (0, 65, 24, 64, 1)]),  # two hands
        ],
    )
    def test_just_no_fault(self, notes: Records) -> None:
        assert not any(failures.faults(piece(notes)).values())

    def test_counts(self) -> None:
        good, bad = piece(line([60 + step for step in MAJOR] * 4)), piece(line([60] * 20))
        table = failures.count_faults([good, bad, piece(line([60]))], chances_of_end=[0.9, 0.2, 0.5])
        assert (table["repeated"]["count"], table["repeated"]["of"]) == (1, 2)
        assert (table["endless"]["count"], table["endless"]["of"]) == (1, 3)
        assert "endless" not in failures.count_faults([good])

    def test_interval(self) -> None:
        assert failures.interval(0, 1000) == pytest.approx((0, 0.0038), abs=1e-4)  # Wilson: z² / (n + z²)
        assert failures.interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


class TestControl:
    @pytest.mark.parametrize(
        ("asked", "found", "relation"),
        [
            ("C major", "C major", "same"),
            ("C major", "A minor", "relative"),
            ("A minor", "C major", "relative"),
            ("C major", "C minor", "parallel"),
            ("C major", "G major", "fifth"),
            ("D minor", "G minor", "fifth"),
            ("C major", "D major", "other"),
            ("C major", "E minor", "other"),
        ],
    )
    def test_relations_of_keys(self, asked: str, found: str, relation: str) -> None:
        assert control.key_relation(KEY_NAMES.index(asked), KEY_NAMES.index(found)) == relation

    def test_keys_of_scales(self) -> None:
        scales = [piece(line([60 + tonic + step for step in (*MAJOR, 0, 4, 7, 0)])) for tonic in range(12)]
        judged = control.judge_keys(scales, range(12))
        assert judged["share"] == 1
        assert judged["minor"]["of"] == 0
        assert control.judge_keys(scales, [(key + 7) % 12 for key in range(12)])["relations"]["fifth"] == 1

    def test_tempos(self) -> None:
        steady = Piece(line([60] * 8, step=24), records(TEMPO, [(0, 100.0)]))
        # four quarter notes at 60 and four at 120 take six seconds: 80 a minute
        uneven = Piece(line([60] * 8, step=24), records(TEMPO, [(0, 60.0), (96, 120.0)]))
        assert control.mean_tempo(steady) == pytest.approx(100)
        assert control.mean_tempo(uneven) == pytest.approx(80)
        judged = control.judge_tempos([steady, uneven, uneven], [92.0, 100.0, 80.0])
        assert judged["share"] == pytest.approx(2 / 3)
        assert control.tempo_class(steady, ["60", "95", "106", "240"]) == "95"

    def test_metres_of_dances(self) -> None:
        def dance(seed: int, metre: TimeSignature, beat: int) -> Piece:
            rng = np.random.default_rng(seed)
            rows = []
            for bar in range(12):
                start, beats = bar * metre.bar_ticks, metre.bar_ticks // beat
                rows.append((start, 40, beat * 2, 64, Hand.LEFT))
                rows += [(start + i * beat, 52, beat, 64, Hand.LEFT) for i in range(1, beats)]
                rows += [
                    (start + int(t) * 12, 72, 12, 64, Hand.RIGHT) for t in np.flatnonzero(rng.random(metre.bar_ticks // 12) < 0.6)
                ]
            return Piece(sort_notes(records(NOTE, rows)), time_signatures=(metre,))

        kinds = [(TimeSignature(0, 3, 4), 24), (COMMON, 24), (TimeSignature(0, 6, 8), 36)]
        classifier = MetreClassifier.fit([dance(seed, *kind) for seed in range(20) for kind in kinds])
        unheard = [dance(seed, *kind) for seed in range(100, 110) for kind in kinds]
        judged = control.judge_metres(unheard, [metre_name(p) for p in unheard], classifier)
        assert judged["share"] > 0.9
        assert judged["balanced"] == pytest.approx(judged["share"])
        assert {metre for row in judged["found"].values() for metre in row} <= set(METRES) - {"2/4", "3/8"}  # never heard


class Obedient(Materials):
    """Composes scales in the key, the metre and the tempo asked for."""

    def compose(self, series: str, wishes: list[Wish]) -> list[Composed]:
        return [Composed(self._compose(wish), True) for wish in wishes]

    def _compose(self, wish: Wish) -> Piece:
        tonic, minor = divmod(KEY_NAMES.index(wish.conditions.get("key", "C major")), 12)[::-1]
        scale = [60 + tonic + step for step in ((0, 2, 3, 5, 7, 8, 11, 12, 0, 3, 7, 0) if minor else (*MAJOR, 0, 4, 7, 0))]
        tempos = records(TEMPO, [(0, float(wish.conditions.get("tempo", "120")))])
        return Piece(line(scale * 4), tempos, time_signatures=(parse_metre(wish.metre),))


def test_control_of_a_model_that_obeys(long_data: Path) -> None:
    valid, train = (load_dataset(long_data).select(split) for split in ("valid", "train"))
    conditions = {"metre": list(METRES), "key": ["unknown", *KEY_NAMES], "tempo": ["unknown", "60", "90", "120"]}
    report = check_control(Obedient(Path(), {"conditions": conditions}, train, valid, 1, lambda what, done, total: None), 24)
    assert report["key"]["composed"]["share"] == 1
    assert report["tempo"]["composed"]["share"] == 1
    assert report["tempo"]["real"]["of"] == report["key"]["real"]["of"]
    assert sum(sum(row.values()) for row in report["metre"]["composed"]["found"].values()) == 24


def test_what_a_model_does_not_know_is_not_checked(long_data: Path) -> None:
    valid, train = (load_dataset(long_data).select(split) for split in ("valid", "train"))
    materials = Obedient(Path(), {"conditions": {"metre": list(METRES)}}, train, valid, 1, lambda what, done, total: None)
    report = check_control(materials, 5)
    assert report["key"] is None
    assert report["tempo"] is None


def test_json_has_no_numbers_that_are_none() -> None:
    assert to_json({"a": float("nan"), "b": [np.float64(1) / 3, float("inf")], "c": 2, 64: "x"}) == {
        "a": None,
        "b": [0.333333, None],
        "c": 2,
        "64": "x",
    }


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a training file whose pieces are long enough for every part of the report."""
    infos = [PieceInfo(f"tune {i}", "valid" if i % 2 else "train", "Ana", ("score", "performed")[i % 2]) for i in range(12)]
    pieces = tuple(encode_piece(make_piece(i, bars=140)) for i in range(12))
    path = tmp_path_factory.mktemp("long") / "tunes.npz"
    save_dataset(path, Dataset(pieces, tuple(infos), condition_values(infos)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("model", SHIPPED, ids=lambda path: path.stem)
def test_report_of_the_shipped_model(model: Path, long_data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    report = make_report(model, long_data, tmp_path, 12, 5, 5, progress=lambda what, done, total: told.append(what))
    assert json.loads((tmp_path / REPORT).read_text()) == report
    for name in PICTURES:
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 150_000
    assert "composing: comparison" in told
    assert 0 < report["statistics"]["headline"]["ratio"] < 2
    assert report["failures"]["64"]["composed"]["endless"]["of"] == 5
    text = report_section(report)
    for heading in ("Statistics", "Originality", "Form", "Faults", "Control"):
        assert f"### {heading}" in text
    assert all(name in text for name in PICTURES)
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert rows
    assert "None" not in text


def test_real_music_keeps_to_its_material() -> None:
    """A piano rag of the music21 corpus comes back to its figures; the same notes in another order hardly do."""
    sources = {source.name: source for source in dataset_sources("music21:joplin")}
    whole = sources["joplin/maple_leaf_rag.mxl"].read()
    (excerpt, *_) = excerpts_of(encode_piece(whole), 400)
    shuffled = excerpt.notes.copy()
    shuffled["pitch"] = np.random.default_rng(0).permutation(shuffled["pitch"])
    figures = form.form(excerpt)
    assert figures["returning_figures"] > 0.1 > form.returning_figures(shuffled)
    assert figures["restruck"] < 0.02
    assert statistics.metrics(excerpt)["scale_consistency"] > 0.7
    curve, _ = similarity.lag_curve([whole if len(whole.time_signatures) == 1 else excerpt])
    assert similarity.phrase_peak(curve) > 0
