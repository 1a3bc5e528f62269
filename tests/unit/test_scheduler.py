"""The scheduler with a model of no size: order, slots, cancellation, expiry, overload, and the same notes alone or crowded."""

from typing import Any

import numpy as np
import pytest

from service.engine.interface import Chunk, State
from service.engine.rows import HostRows
from service.engine.sampling import Composition, Sequence
from service.engine.scheduler import Scheduler
from service.errors import EngineOverloaded, GenerationTimeout
from service.music.representation import CONTROL, FIELDS, Control, count_notes, is_note

FOREVER = float("inf")


class FakeModel:
    """Tokens that follow from a row's own inputs and its own state: how many tokens it has seen, their sum, and the time.

    Every seventh token is a pedal; where a last barline is told, the first token at or beyond it ends the piece.
    """

    conditions = ("composer",)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def rows(self, slots: int) -> HostRows:
        return HostRows(self, slots)

    def initial_state(self, positions: np.ndarray) -> State:
        return {"state_seen": np.zeros((len(positions), 3), np.int64)}

    def run(self, chunk: Chunk, state: State):
        rows, steps, _ = chunk.forced.shape
        self.batches.append(rows)
        tokens = np.zeros((rows, steps, len(FIELDS)), np.int32)
        seen = state["state_seen"]
        for k in range(steps):
            step = np.stack(
                [
                    (chunk.uniforms[:, k, 0] * 20).astype(int) + seen[:, 1] % 3,
                    np.where(seen[:, 0] % 7 == 6, CONTROL, 1),
                    np.where(seen[:, 0] % 7 == 6, Control.PEDAL_UP, 40 + chunk.conditions[:, 0]),
                    *(1 + (chunk.uniforms[:, k, i] * 30).astype(int) for i in (3, 4, 5)),
                ],
                axis=1,
            )
            ends = (chunk.left[:, 1] >= 0) & (seen[:, 2] + step[:, 0] >= chunk.left[:, 1])
            step[ends, 1:3] = [CONTROL, Control.END]
            tokens[:, k] = np.where(chunk.forced[:, k] >= 0, chunk.forced[:, k], step)
            seen += np.stack([np.ones(rows, int), tokens[:, k].sum(axis=1), tokens[:, k, 0]], axis=1)
        return tokens, np.ones(tokens.shape, np.float32)


def sequence(seed: int, length: int = 20, forced: int = 0, **end: Any) -> Sequence:
    melody = np.tile(np.array([6, 1, 50, 6, 10, 20], np.int32), (forced, 1))
    return Sequence(seed, length, melody, **end)


def run_all(scheduler: Scheduler, now: float = 0.0) -> dict[int, Composition]:
    results = {}
    for _ in range(10_000):
        results |= {outcome.id: outcome.result for outcome in scheduler.step(now)}
        if not scheduler.running and not scheduler.waiting:
            return results
    raise AssertionError("the scheduler never came to an end")


def alone(asked: Sequence, chunk: int = 4) -> Composition:
    scheduler = Scheduler(FakeModel(), 1, chunk, 1)
    scheduler.add(0, asked, FOREVER)
    return run_all(scheduler)[0]


def test_exactly_the_length_asked_for_whatever_the_chunk() -> None:
    for length in (1, 3, 4, 5, 64):
        results = [alone(sequence(9, length), chunk) for chunk in (1, 4, 16)]
        for result in results:
            assert count_notes(result.tokens) == length
            assert not result.ended
            assert (result.tokens == results[0].tokens).all()


def test_last_token_is_a_note() -> None:
    assert all(is_note(alone(sequence(seed, 6)).tokens)[-1] for seed in range(20))


def test_a_piece_that_was_told_its_length_ends_with_it() -> None:
    for chunk in (1, 4, 16):
        told, untold = alone(sequence(3, 30, tell_length=True), chunk), alone(sequence(3, 30), chunk)
        assert (told.ended, untold.ended) == (True, False)
        assert count_notes(told.tokens) == count_notes(untold.tokens) == 30


def test_end_ends_the_piece_and_is_not_part_of_it() -> None:
    for seed in range(10):
        result = alone(sequence(seed, 400, end_time=960))
        assert result.ended
        assert count_notes(result.tokens) < 400
        assert result.tokens[:, 0].sum() < 960
        controls = result.tokens[result.tokens[:, 1] == CONTROL]
        assert (controls[:, 2] != Control.END).all()


def test_a_piece_whose_notes_run_out_before_its_barline_has_not_ended() -> None:
    result = alone(sequence(1, 20, end_time=10_000))
    assert count_notes(result.tokens) == 20
    assert not result.ended


def test_forced_tokens_are_taken_and_not_given_back() -> None:
    for forced in (1, 3, 4, 9):
        result = alone(sequence(5, 10, forced))
        assert count_notes(result.tokens) == 10
        longer = alone(sequence(5, 10, forced), chunk=3)
        assert (result.tokens == longer.tokens).all()


def test_alone_equals_crowded() -> None:
    rng = np.random.default_rng(0)
    asked = [
        sequence(seed, int(rng.integers(1, 60)), int(rng.integers(0, 9)), end_time=(-1, 300)[seed % 2]) for seed in range(40)
    ]
    scheduler = Scheduler(FakeModel(), 8, 5, 40)
    for id, one in enumerate(asked):
        scheduler.add(id, one, FOREVER)
    crowd = run_all(scheduler)
    for id, one in enumerate(asked):
        expected = alone(one)
        assert (crowd[id].tokens == expected.tokens).all()
        assert crowd[id].ended == expected.ended


def test_first_come_first_served_and_rows_are_used_again() -> None:
    model = FakeModel()
    scheduler = Scheduler(model, 2, 4, 10)
    for id in range(4):
        scheduler.add(id, sequence(id, 8), FOREVER)
    order = []
    while scheduler.running or scheduler.waiting:
        order += [outcome.id for outcome in scheduler.step(0.0)]
    assert order == [0, 1, 2, 3]
    assert max(model.batches) == 2


def test_a_short_sequence_leaves_before_a_long_one() -> None:
    scheduler = Scheduler(FakeModel(), 2, 4, 10)
    for id, length in enumerate((100, 4, 4)):
        scheduler.add(id, sequence(id, length), FOREVER)
    order = []
    while scheduler.running or scheduler.waiting:
        order += [outcome.id for outcome in scheduler.step(0.0)]
    assert order == [1, 2, 0]


def test_overload_is_refused_at_once() -> None:
    scheduler = Scheduler(FakeModel(), 1, 4, 2)
    for id in range(2):
        scheduler.add(id, sequence(id), FOREVER)
    with pytest.raises(EngineOverloaded, match="2 requests"):
        scheduler.add(2, sequence(2), FOREVER)


def test_deadline_ends_what_waits_and_what_runs() -> None:
    scheduler = Scheduler(FakeModel(), 1, 4, 10)
    scheduler.add(0, sequence(0, 1000), deadline=5.0)
    scheduler.add(1, sequence(1, 4), deadline=5.0)
    scheduler.add(2, sequence(2, 4), deadline=FOREVER)
    assert scheduler.step(4.9) == []
    outcomes = scheduler.step(5.0)
    late = {outcome.id for outcome in outcomes if isinstance(outcome.result, GenerationTimeout)}
    assert late == {0, 1}
    done = {outcome.id for outcome in outcomes} - late
    assert done | set(run_all(scheduler)) == {2}


def test_cancelled_neighbours_change_nothing() -> None:
    expected = alone(sequence(3, 50))
    scheduler = Scheduler(FakeModel(), 3, 4, 10)
    for id in (1, 2, 3, 4):
        scheduler.add(id, sequence(id, 50), FOREVER)
    scheduler.step(0.0)
    scheduler.cancel(1)
    scheduler.step(0.0)
    scheduler.cancel(4)
    scheduler.cancel(77)
    results = run_all(scheduler)
    assert set(results) == {2, 3}
    assert (results[3].tokens == expected.tokens).all()
