"""What a request asks for, as the graph's inputs; and the messages that carry it to the engine."""

from concurrent.futures import Future

import numpy as np
import pytest

from service.engine.process import _Pending, _sequence_message, read_sequence
from service.engine.sampling import FORBIDDEN, MAX_SEED, NOT_TOLD, SamplingParams, Sequence, UniformStream, biases, is_end
from service.engine.wire import pack, unpack
from service.music.representation import FIELDS, VOCABULARY, Control, count_notes


def test_random_numbers_are_those_of_ever() -> None:
    # Written down: the same request must give the same bytes with the next version of numpy, too.
    expected = [0.8201981, 0.18924558, 0.86766076, 0.39458144, 0.36812842, 0.43444622]
    assert UniformStream(42).draw(1)[0] == pytest.approx(expected, abs=1e-7)


def test_random_numbers_do_not_depend_on_how_many_are_drawn_at_a_time() -> None:
    whole, parts = UniformStream(7), UniformStream(7)
    assert (whole.draw(20) == np.concatenate([parts.draw(n) for n in (1, 3, 16)])).all()
    assert (whole.draw(1000) < 1).all()


def test_seeds_differ_up_to_the_largest() -> None:
    first = {UniformStream(seed).draw(1).tobytes() for seed in (0, 1, 2**32, MAX_SEED - 1, MAX_SEED)}
    assert len(first) == 5


def test_greedy_keeps_the_likeliest_only() -> None:
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=1e-9, min_p=0)):
        assert (params.min_ps() == 1).all()
        assert (params.inverse_temperatures() == 1).all()


def test_temperature_and_min_p_reach_every_field() -> None:
    params = SamplingParams(temperature=0.5, min_p=0.1)
    assert (params.inverse_temperatures() == 2).all()
    min_p = dict(zip(FIELDS, params.min_ps().tolist(), strict=True))
    assert min_p["pitch"] == pytest.approx(0.1)
    assert min_p["shift"] == pytest.approx(0.03)
    assert min_p["hand"] == pytest.approx(0.01)
    assert np.isfinite(SamplingParams(temperature=0.001).inverse_temperatures()).all()


def test_biases_forbid_what_must_not_be_drawn() -> None:
    by_field = biases()
    assert {name: len(bias) for name, bias in by_field.items()} == VOCABULARY._asdict()
    assert {Control(i).name for i in np.flatnonzero(by_field["pitch"] == FORBIDDEN)} == {"WAIT", "END"}
    assert np.flatnonzero(by_field["hand"]).tolist() == [3]


def test_the_model_is_told_the_length_of_the_whole_piece_or_its_last_barline_or_nothing() -> None:
    forced = np.array([[0, 1, 50, 1, 1, 1], [0, 0, Control.PEDAL_UP, 0, 0, 0]], np.int32)
    assert Sequence(1, 9, forced, tell_length=True).left().tolist() == [10, NOT_TOLD]
    assert Sequence(1, 9, forced, end_time=384).left().tolist() == [NOT_TOLD, 384]
    assert Sequence(1, 9, forced).left().tolist() == [NOT_TOLD, NOT_TOLD]


def test_a_sequence_travels_whole() -> None:
    forced = np.arange(12, dtype=np.int32).reshape(2, 6)
    sent = Sequence(
        5, 9, forced, SamplingParams(0.5, 0.2), {"metre": 2, "key": 3}, 72, 24, tell_length=True, end_time=720, model="m"
    )
    assert all(value != Sequence(1, 2).__dict__[name] for name, value in vars(sent).items() if name != "forced"), "no defaults"
    message = _sequence_message(1, _Pending(sent, float("inf"), Future()))
    got = read_sequence(unpack(pack(message)))
    assert {name: value for name, value in vars(got).items() if name != "forced"} == {
        name: value for name, value in vars(sent).items() if name != "forced"
    }
    assert got.forced.tolist() == forced.tolist()


def test_counting_and_ends() -> None:
    tokens = np.array([[0, 1, 50, 1, 1, 1], [0, 0, Control.PEDAL_UP, 0, 0, 0], [5, 0, Control.END, 0, 0, 0]], np.int32)
    assert count_notes(tokens) == 1
    assert is_end(tokens).tolist() == [False, False, True]


def test_messages_keep_arrays_and_plain_values() -> None:
    message = {
        "kind": "sequence",
        "left_s": 1.5,
        "none": None,
        "nested": {"a": [1, 2]},
        "forced": np.arange(12, dtype=np.int32).reshape(2, 6),
        "empty": np.empty((0, 6), np.int32),
        "uniforms": np.linspace(0, 1, 3, dtype=np.float32),
    }
    back = unpack(pack(message))
    assert set(back) == set(message)
    for name, value in message.items():
        if isinstance(value, np.ndarray):
            assert back[name].dtype == value.dtype
            assert back[name].shape == value.shape
            assert (back[name] == value).all()
        else:
            assert back[name] == value


def test_sequences_are_not_shared() -> None:
    assert Sequence(1, 2).forced.shape == (0, len(FIELDS))
    assert Sequence(1, 2).conditions is not Sequence(1, 2).conditions
