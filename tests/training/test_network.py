"""The network and its layer: against PyTorch's own, against the grammar, and its running values against a plain loop."""

import numpy as np
import pytest
import torch
from torch import nn

from service.music.representation import CONTROL, DURATIONS, FIELDS, PITCH_OFFSET, Control, encode_piece
from tests.training.conftest import make_piece
from training.batches import Augmentation, WindowStream, augment, make_batch, prepare_piece, whole_pieces
from training.conditions import EXPECTED_PITCH_CLASSES, EXPECTED_TEMPO
from training.data import piece_condition_names
from training.lstm import TORCH_ORDER, LSTMLayer
from training.model import LAST_FIELDS, MAX_HELD, PROFILE_DECAYS, Network, expect, field_nats, running_values
from training.scoring import score_dataset


def test_layer_and_its_gradients_equal_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = LSTMLayer(10, 8), nn.LSTM(10, 8)

    def reordered(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight.chunk(4)[i] for i in TORCH_ORDER])

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(reordered(ours.weight_x))
        theirs.weight_hh_l0.copy_(reordered(ours.weight_h))
        theirs.bias_ih_l0.copy_(reordered(ours.bias))
        theirs.bias_hh_l0.zero_()
    x, h, c = (torch.randn(*shape, requires_grad=True) for shape in ((6, 3, 10), (3, 8), (3, 8)))
    results = []
    for outputs, h_after, c_after in (ours(x, h, c), _flat(theirs(x, (h[None], c[None])))):
        (outputs.sin().sum() + h_after.cos().sum() + (c_after**2).sum()).backward()
        results.append([outputs.detach(), *(t.grad.clone() for t in (x, h, c))])
        x.grad = h.grad = c.grad = None
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(reordered(ours.weight_h.grad), theirs.weight_hh_l0.grad, atol=1e-5)
    assert torch.allclose(reordered(ours.weight_x.grad), theirs.weight_ih_l0.grad, atol=1e-5)
    assert torch.allclose(reordered(ours.bias.grad), theirs.bias_ih_l0.grad, atol=1e-5)


def _flat(result):
    outputs, (h, c) = result
    return outputs, h[0], c[0]


def test_bfloat16_products_stay_close() -> None:
    torch.manual_seed(0)
    layer = LSTMLayer(64, 64)
    x, zeros = torch.randn(20, 4, 64), torch.zeros(4, 64)
    exact, _, _ = layer(x, zeros, zeros)
    rough, _, _ = layer(x, zeros, zeros, torch.bfloat16)
    assert (exact - rough).abs().max() < 0.05


def test_grammar_leaves_no_mass_for_impossible_tokens(dataset, small) -> None:
    network = Network(small).eval()
    pieces = [prepare_piece(piece, small.memory) for piece in dataset.pieces]
    batch = make_batch([(p, 0) for p in pieces], 100, dataset.piece_conditions())
    with torch.no_grad():
        logits, _ = network(batch, network.initial_state(len(pieces)))
    p = {name: torch.softmax(scores, -1) for name, scores in logits.items()}
    control = (batch.target[..., 1] == CONTROL) & batch.mask
    note = (batch.target[..., 1] != CONTROL) & batch.mask
    assert control.any()
    assert note.any()
    assert p["pitch"][note][:, : len(Control)].sum() == 0
    assert p["pitch"][control][:, len(Control) :].sum() == 0
    assert p["pitch"][control][:, Control.START].sum() == 0
    for name in FIELDS[3:]:
        assert p[name][note][:, 0].sum() == 0
        assert torch.all(p[name][control][:, 0] == 1)


@pytest.mark.parametrize(("key_told", "tempo_told"), [(0, 0), (3, 0), (0, 5), (20, 9)])
def test_running_values_equal_a_plain_loop_that_begins_with_what_is_told(key_told, tempo_told) -> None:
    tokens = encode_piece(make_piece(3)).tokens
    values = expect(running_values(tokens), tokens, key_told, tempo_told)
    tempo, last, held = EXPECTED_TEMPO[tempo_told], np.zeros((4, 3), int), np.zeros(4, int)
    profile = np.tile(EXPECTED_PITCH_CLASSES[key_told], (len(PROFILE_DECAYS), 1))
    for i, token in enumerate(tokens):
        assert values.tempo[i] == tempo
        assert (values.last[i] == last).all()
        assert (values.held[i] == np.minimum(held, MAX_HELD)).all()
        assert values.profile[i] == pytest.approx(profile.ravel(), abs=1e-5)
        held = np.maximum(held - token[0], 0)
        if token[1] != CONTROL:
            tempo = token[5]
            last[token[1]] = [token[FIELDS.index(name)] for name in LAST_FIELDS]
            held[token[1]] = max(held[token[1]], DURATIONS[token[3]])
            for decay, row in zip(PROFILE_DECAYS, profile, strict=True):
                row *= decay
                row[(token[2] + PITCH_OFFSET) % 12] += 12 * (1 - decay)


def test_what_the_profile_adds_is_the_same_in_every_key(small) -> None:
    network = Network(small).eval()
    torch.nn.init.normal_(network.profile_kernel.weight)
    torch.nn.init.normal_(network.key_kernel.weight)
    z, profile, key = torch.randn(1, 1, small.head), torch.rand(1, 1, len(PROFILE_DECAYS), 12), torch.rand(1, 12)
    with torch.no_grad():
        here = network.profile_scores(z, profile.flatten(-2), key)[0, 0, len(Control) :]
        up = network.profile_scores(z, profile.roll(3, -1).flatten(-2), key.roll(3, -1))[0, 0, len(Control) :]
        keyless = network.profile_scores(z, profile.flatten(-2), 0 * key)[0, 0, len(Control) :]
    assert torch.allclose(here[:-3], up[3:], atol=1e-4)
    assert not torch.allclose(here, keyless, atol=0.1)


def test_augmentation_moves_all_notes_alike_and_stays_on_the_piano() -> None:
    tokens = encode_piece(make_piece(1)).tokens
    notes = tokens[:, 1] != CONTROL
    moved = [augment(tokens, Augmentation(90, 2, 2), np.random.default_rng(seed)) for seed in range(20)]
    for other in moved:
        assert (other[~notes] == tokens[~notes]).all()
        difference = (other - tokens)[notes]
        assert (difference == difference[0]).all()
        assert not difference[0, [0, 1, 3]].any()
        assert other[notes, 2].min() >= len(Control)
        assert other[notes, 2].max() < len(Control) + 88
    assert len({int(other[notes, 2][0]) for other in moved}) > 5


def test_stream_plays_every_piece_once_a_round_and_can_skip(dataset) -> None:
    train = dataset.select("train")
    stream, skipping = (WindowStream(train, 3, 16, 20, Augmentation(), seed=5) for _ in range(2))
    skipping.skip(7)
    for _ in range(7):
        stream.next()
    for (a, keep_a), (b, keep_b) in ((stream.next(), skipping.next()) for _ in range(5)):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert torch.equal(keep_a, keep_b)
    fresh, plays = WindowStream(train, 3, 16, 20, Augmentation(), seed=5), []
    while len(plays) < len(train.pieces) + 3:
        plays += [play.piece for play, offset in fresh._rows if offset == 0]
        fresh.skip(1)
    assert sorted(plays[: len(train.pieces)]) == list(range(len(train.pieces)))


def test_score_does_not_depend_on_rows_and_steps(dataset, small) -> None:
    network = Network(small)
    sizes = ((12, 1000), (12, 333), (1, 7), (5, 64))  # pieces are longer than 64 tokens, and the memory has 40
    scores = [score_dataset(network, dataset, with_conditions=True, rows=r, steps=s) for r, s in sizes]
    for other in scores[1:]:
        assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(scores[0].tokens, other.tokens, strict=True))


def test_memory_counts_in_what_the_network_says(dataset, small) -> None:
    network = Network(small)
    before = score_dataset(network, dataset, with_conditions=True).tokens
    with torch.no_grad():
        network.nothing.bias.fill_(100.0)  # now every pointer points at nothing
    after = score_dataset(network, dataset, with_conditions=True).tokens
    assert max(abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0.1


def test_losses_are_those_of_the_scores(dataset, small) -> None:
    network = Network(small).eval()
    names = piece_condition_names(dataset.conditions)
    for indices, windows in whole_pieces(dataset, 12, 1000, small.memory, np.zeros((12, len(names)), np.int32), names):
        batch = next(windows)
        with torch.no_grad():
            logits, _ = network(batch, network.initial_state(len(indices)))
        total = sum(nats.sum().item() for nats in field_nats(logits, batch).values())
    assert total == pytest.approx(score_dataset(network, dataset, with_conditions=False).nats.sum(), rel=1e-4)
