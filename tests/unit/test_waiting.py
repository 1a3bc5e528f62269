"""Who has left: seen at once, by the future that is awaited, and nobody else's."""

import socket
from concurrent.futures import Future
from queue import Queue

import pytest

from service.web.waiting import ClientWatcher, has_left

TIMEOUT_S = 60  # of a test that would otherwise hang


@pytest.fixture
def left() -> "Queue[Future]":
    return Queue()


@pytest.fixture
def watcher(left) -> ClientWatcher:
    return ClientWatcher(left.put)


@pytest.mark.parametrize("goodbye", [lambda s: s.close(), lambda s: s.shutdown(socket.SHUT_WR)], ids=["closed", "half closed"])
def test_a_client_that_leaves_is_told_by_its_future(watcher, left, goodbye):
    (here, there), (other, other_end) = socket.socketpair(), socket.socketpair()
    with here, there, other, other_end:
        futures = [Future(), Future()]
        for client, future in zip((here, other), futures, strict=True):
            watcher.add(client, future)
        there.send(b"the next request")  # sent before it left; it has left all the same
        goodbye(there)
        assert left.get(timeout=TIMEOUT_S) is futures[0]
        assert futures[0].client_left
        watcher.remove(here)
        watcher.remove(other)
        assert left.empty()
        assert not hasattr(futures[1], "client_left")


def test_one_that_had_left_before_is_noticed(watcher, left):
    here, there = socket.socketpair()
    with here:
        there.close()
        future = Future()
        watcher.add(here, future)
        assert left.get(timeout=TIMEOUT_S) is future
        watcher.remove(here)


def test_one_that_leaves_after_its_answer_is_nobodys_business(watcher, left):
    here, there = socket.socketpair()
    with here:
        watcher.add(here, Future())
        watcher.remove(here)
        there.close()
        # The watcher handles one after the other: if it had seen the first one, it would have told of it before this.
        second, end = socket.socketpair()
        with second:
            future = Future()
            watcher.add(second, future)
            end.close()
            assert left.get(timeout=TIMEOUT_S) is future
            watcher.remove(second)
    assert left.empty()


def test_has_left_looks_at_the_connection_as_it_is_now():
    here, there = socket.socketpair()
    there.send(b"more")
    assert not has_left(here)
    there.close()
    assert has_left(here)
    assert here.recv(10) == b"more"
    here.close()
    assert not has_left(here)
