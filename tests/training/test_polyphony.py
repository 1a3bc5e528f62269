"""The benchmark of polyphonic music: frames and what is drawn of them, and that their probabilities are probabilities."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.polyphony import TrainConfig, Trainer, sequence_nats, train
from bench.polyphony_frames import CHANNELS, END, KEYS, LOWEST, Roll, channels, cut, decode_keys, encode_roll, prepare, to_roll
from bench.polyphony_memory import EMPTY, LAG_CLASSES, MATCH_CLASS, offer_classes
from bench.polyphony_network import PolyphonyConfig, PolyphonyNetwork, draws

TINY = PolyphonyConfig(hidden=16, embedding=12, head=12, key_width=4, memory=12, offers=4, match_key=4)
TOY_KEYS = [10, 21, 22, 33, 60]


def some_roll(frames: int, seed: int = 0) -> Roll:
    """Return a phrase over the toy keys, again and again, with empty frames in it."""
    rng = np.random.default_rng(seed)
    phrase = np.zeros((5, KEYS), np.uint8)
    phrase[:, TOY_KEYS] = rng.random((5, len(TOY_KEYS))) < 0.4
    phrase[2] = 0
    return np.tile(phrase, (-(-frames // 5), 1))[:frames]


@pytest.fixture(scope="module", params=[1, 2], ids=["one layer", "two layers"])
def network(request: pytest.FixtureRequest) -> PolyphonyNetwork:
    """Return an untrained network of large random weights that trusts its memory and draws none but the toy keys."""
    torch.manual_seed(0)
    network = PolyphonyNetwork(replace(TINY, layers=request.param))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        network.memory.nothing.bias.fill_(-3.0)
        others = torch.ones(KEYS + 1, dtype=torch.bool)
        others[[*TOY_KEYS, END]] = False
        network.output.bias[others] = -1e9
    return network.eval()


def nats(network: PolyphonyNetwork, roll: Roll) -> NDArray[np.float32]:
    return sequence_nats(network, [roll])[0]


def test_frames_come_back_from_what_is_drawn() -> None:
    frames = [[60, 64, 67], [], [60, 64, 67], [21, 108], [], []]
    roll = to_roll(frames)
    keys = encode_roll(roll)
    assert keys.tolist()[:6] == [60 - LOWEST, 64 - LOWEST, 67 - LOWEST, END, END, 60 - LOWEST]
    assert (decode_keys(keys) == roll).all()
    assert [(np.flatnonzero(row) + LOWEST).tolist() for row in decode_keys(keys)] == frames


def test_network_draws_what_the_encoding_says() -> None:
    roll = some_roll(13)
    drawn = draws(torch.from_numpy(roll))
    assert (drawn.target.numpy() == encode_roll(roll)).all()
    for frame, target, last, below in zip(*(column.tolist() for column in drawn), strict=True):
        notes = np.flatnonzero(roll[frame])
        assert np.flatnonzero(below).tolist() == notes[notes <= last].tolist() == notes[notes < target].tolist()


def test_probabilities_of_all_frames_sum_to_1(network: PolyphonyNetwork) -> None:
    roll = some_roll(12)
    for at in (0, 1, 11):
        total = 0.0
        for choice in itertools.product((0, 1), repeat=len(TOY_KEYS)):
            variant = roll[: at + 1].copy()
            variant[at] = 0
            variant[at, TOY_KEYS] = choice
            total += float(np.exp(-nats(network, variant)[at].astype(np.float64)))
        assert total == pytest.approx(1, abs=1e-5)


def test_no_frame_depends_on_later_ones(network: PolyphonyNetwork) -> None:
    roll, other = some_roll(70), some_roll(70, seed=1)
    for at in (1, 20, 66):
        changed = np.concatenate([roll[:at], other[at:]])
        before, after = nats(network, roll), nats(network, changed)
        assert after[:at] == pytest.approx(before[:at], abs=1e-4)
        assert not np.allclose(after[at:], before[at:], atol=1e-2)


def test_sequences_side_by_side_score_as_alone(network: PolyphonyNetwork) -> None:
    rolls = [some_roll(frames, seed) for seed, frames in enumerate((70, 3, 64, 90))]
    for together, roll in zip(sequence_nats(network, rolls), rolls, strict=True):
        assert together == pytest.approx(nats(network, roll), abs=1e-3)


def test_channels_know_what_is_held_and_nothing_of_the_frame_itself() -> None:
    roll = to_roll([[60], [60, 64], [60], [], [60]])
    key = 60 - LOWEST
    known = channels(roll)
    assert known.shape == (5, CHANNELS, KEYS)
    assert known[:, 0, key].tolist() == [0, 1, 1, 1, 0]  # the frame before
    assert known[:, 1, key].tolist() == [0, 0, 1, 1, 1]  # two frames before
    ages = 2 ** (known[:, 8, key] * 5) - 1
    assert ages == pytest.approx([0, 1, 2, 3, 0])


def test_offers_know_how_long_they_match() -> None:
    roll = to_roll([[60], [62], [64], [60], [62], [64], [65]])
    classes = offer_classes(roll, 4)
    assert classes.shape == (7, 4)
    assert (classes[0] == EMPTY).all()
    assert (classes[2] == EMPTY).tolist() == [True, True, False, False]
    assert (classes[5] // LAG_CLASSES).tolist() == [MATCH_CLASS[n] for n in (0, 2, 0, 0)]  # three frames back, two matched


def test_windows_hold_the_frames_before_them() -> None:
    roll = some_roll(30)
    window = cut([(prepare(roll, 12), 16)], 8)
    assert (window.slots[0].numpy() == roll[4:24]).all()
    assert (window.roll[:, 0].numpy() == roll[16:24]).all()
    assert window.mask.all()


def test_training_learns_a_phrase() -> None:
    splits = {"train": [some_roll(40)] * 4, "valid": [some_roll(40)]}
    shape = replace(TINY, dropout=0.0, key_dropout=0.0)
    how = TrainConfig(minutes=1, rows=4, window=20, learning_rate=1e-2, warmup=5, ema=0.9, precision="fp32")
    trainer = Trainer(splits["train"], shape, how)
    losses = [trainer.step() for _ in range(40)]
    assert losses[-1] < losses[0] / 4
    assert nats(trainer.average, splits["valid"][0]).mean() < losses[0] / 2


def test_training_ends_in_time_with_the_best_weights() -> None:
    splits = {"train": [some_roll(20)] * 2, "valid": [some_roll(20)]}
    best, figures = train(splits, TINY, TrainConfig(minutes=0.005, rows=2, window=20, validations=2))
    assert figures["minutes"] >= 0.005
    assert 0 < figures["best_epochs"] <= figures["epochs"]
    assert np.isfinite(nats(best, splits["valid"][0])).all()
