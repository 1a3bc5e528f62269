"""The networks that ours is compared with: each lacks what its name says, and an event stream says all that its notes do."""

import numpy as np
import pytest
import torch

from bench.event_stream import LONGEST, OFF, SHIFT, VELOCITY, EventNetwork, encode_events, score, seconds_at
from bench.networks import NAMES, VARIANTS
from service.music.representation import FIELDS, decode_tokens, encode_piece
from tests.training.conftest import make_piece
from training.batches import make_batch, prepare_piece
from training.fit import FitConfig, fit
from training.model import Batch, ModelConfig, field_nats
from training.score import InvalidScores, read_score, save_score
from training.scoring import score_dataset


@pytest.fixture
def batch(small: ModelConfig) -> Batch:
    piece = prepare_piece(encode_piece(make_piece(1)), small.memory)
    return make_batch([(piece, 0)], 40, np.zeros((1, len(small.conditions) - 1), np.int32))


def nats(network: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        logits, _ = network(batch, network.initial_state(1))
    return field_nats(logits, batch)


def test_parallel_heads_do_not_see_the_fields_of_their_token(small, batch) -> None:
    network = VARIANTS["parallel"][0](small).eval()
    other = batch._replace(target=batch.target.clone())
    other.target[..., FIELDS.index("hand")] = 3 - batch.target[..., FIELDS.index("hand")].clamp(1, 2)
    ours = VARIANTS["ours"][0](small).eval()
    assert torch.equal(nats(network, batch)["velocity"], nats(network, other)["velocity"])
    assert not torch.equal(nats(ours, batch)["velocity"], nats(ours, other)["velocity"])


def test_without_the_match_it_is_not_seen(small, batch) -> None:
    network = VARIANTS["no_match"][0](small).eval()
    other = batch._replace(matched=(batch.matched + 1) % 10)
    assert torch.equal(nats(network, batch)["pitch"], nats(network, other)["pitch"])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns(name, dataset, small, tmp_path) -> None:
    make, changes = VARIANTS[name]
    shape = ModelConfig(**{**vars(small), **changes})
    config = FitConfig(steps=8, rows=4, window=32, learning_rate=1e-2, warmup=1, ema=0.5, evaluate_every=4, precision="fp32")
    history = fit(dataset, tmp_path, shape, config, make=make)
    assert history["best_nats"] < 22  # equal choice among all values: 25
    assert name in NAMES


def test_an_event_stream_has_every_note_its_end_and_its_time() -> None:
    for seed in range(4):
        tokens = encode_piece(make_piece(seed)).tokens
        stream, piece = encode_events(tokens), decode_tokens(tokens)
        events, notes = stream.events, piece.notes
        assert sorted(events[events < OFF].tolist()) == sorted(notes["pitch"].tolist())
        assert sorted((events[(events >= OFF) & (events < SHIFT)] - OFF).tolist()) == sorted(notes["pitch"].tolist())
        shifts = events[(events >= SHIFT) & (events < VELOCITY)] - SHIFT + 1
        assert shifts.max() <= LONGEST
        assert abs(shifts.sum() / 100 - seconds_at(piece, np.array([piece.end]))[0]) <= 0.02
        assert piece.seconds() == pytest.approx(seconds_at(piece, np.array([piece.end]))[0])
        struck = np.flatnonzero(events < OFF)
        assert (notes["pitch"][stream.notes[struck]] == events[struck]).all(), "an event counts for the note that it leads to"


def test_an_event_network_scores_each_note(dataset) -> None:
    valid = dataset.select("valid")
    found = score(EventNetwork(8, 4), valid)
    events = sum(len(encode_events(piece.tokens).events) for piece in valid.pieces)
    assert found.nats.sum() == pytest.approx(events * np.log(389), rel=0.1), "all events alike before it has learnt anything"


def test_scores_can_be_read_again(dataset, small, tmp_path) -> None:
    valid = dataset.select("valid")
    found = score_dataset(VARIANTS["ours"][0](small), valid, with_conditions=False)
    save_score(tmp_path / "scores.npz", found, "a network", by_field=False)
    again = read_score(tmp_path / "scores.npz", valid.pieces)
    assert (again.about, again.by_field) == ("a network", False)
    assert again.score.nats_per_note == pytest.approx(found.nats_per_note, rel=1e-6)
    with pytest.raises(InvalidScores, match="tokens; the pieces have"):
        read_score(tmp_path / "scores.npz", valid.pieces[:1])
    (tmp_path / "scores.npz").write_text("no scores")
    with pytest.raises(InvalidScores, match="not a file of scores"):
        read_score(tmp_path / "scores.npz", valid.pieces)
