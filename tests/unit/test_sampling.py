"""What a request asks for, as the graph's inputs; and the messages that carry it to the engine."""

import numpy as np
import pytest

from service.engine.sampling import FORBIDDEN, MAX_SEED, SamplingParams, Sequence, UniformStream, is_end
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
    assert min_p["shift"] == pytest.approx(0.01)
    assert np.isfinite(SamplingParams(temperature=0.001).inverse_temperatures()).all()


def test_biases_forbid_what_must_not_be_drawn() -> None:
    for allow_end in (True, False):
        biases = SamplingParams(allow_end=allow_end).biases()
        assert {name: len(bias) for name, bias in biases.items()} == VOCABULARY._asdict()
        forbidden = {Control(i).name for i in np.flatnonzero(biases["pitch"] == FORBIDDEN)}
        assert forbidden == ({"WAIT"} if allow_end else {"WAIT", "END"})
        assert np.flatnonzero(biases["hand"]).tolist() == [3]


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
