"""When a request has arrived whole: for every way to cut it into pieces, and for what is no request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.received import MAX_HEAD_BYTES, Arrival, Received

HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\n"
LIMIT = 1000


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = [
    HEAD + b"\r\n",
    b"\r\n" + HEAD + b"\r\n",
    HEAD + b"Content-Length: 0\r\n\r\n",
    HEAD + b"CONTENT-length:5 \r\nX: y\r\n\r\nhello",
    HEAD + b"Content-Length: %d\r\n\r\n" % LIMIT + bytes(LIMIT),
    HEAD + b"X-Content-Length: 7\r\n\r\n",
    HEAD + b"Content-Length: 4\r\n\r\n\r\n\r\n",
    CHUNKED + chunks(),
    CHUNKED + chunks(b"{", b'"seed": 42', b"}"),
    CHUNKED + chunks(b"\r\n0\r\n\r\n", b"0\r\n\r\n"),
    CHUNKED + b"5 ; name=value\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"5\r\nhello\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n",
    HEAD + b"transfer-encoding:\tChunked\r\n\r\n" + chunks(b"hello"),
]


@pytest.mark.parametrize("request_bytes", WHOLE)
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 10_000])
def test_a_request_is_whole_with_its_last_byte_and_not_before(request_bytes, piece):
    received = Received(LIMIT)
    starts = range(0, len(request_bytes), piece)
    arrivals = [received.add(request_bytes[i : i + piece]) for i in starts]
    assert arrivals == [Arrival.PART] * (len(starts) - 1) + [Arrival.WHOLE]
    assert received.data == request_bytes


@given(st.sampled_from(WHOLE), st.data())
def test_it_does_not_matter_where_a_request_is_cut(request_bytes, data):
    cuts = sorted(data.draw(st.lists(st.integers(1, len(request_bytes) - 1), unique=True, max_size=6)))
    received = Received(LIMIT)
    pieces = [request_bytes[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    assert [received.add(piece) for piece in pieces] == [Arrival.PART] * len(cuts) + [Arrival.WHOLE]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        HEAD + b"X: y\n\r\n",
        b"\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n",
        HEAD + b"Content-Length: 5, 5\r\n\r\n",
        HEAD + b"Content-Length: \xb2\r\n\r\n",
        HEAD + b"Content-Length: \r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1),
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"\r\n",
        CHUNKED + b"2\r\n{}xx",
        CHUNKED + b"2\n{}\r\n",
        CHUNKED + b"11111111111111111\r\n",
        CHUNKED + chunks(bytes(LIMIT), b"x"),
        CHUNKED + b"fff\r\n" + bytes(LIMIT + 1),
    ],
)
def test_what_will_be_refused_is_not_waited_for(request_bytes):
    received = Received(LIMIT)
    for i in range(len(request_bytes)):
        if received.add(request_bytes[i : i + 1]) is Arrival.HOPELESS:
            return
    pytest.fail("it waits for more")


def test_a_head_has_an_end_or_is_too_long():
    for line in (b"x" * 1000, b"X: y\r\n" * 100, b"GET / HTTP/1.1\r\nX: " + b"y" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n"):
        received = Received(LIMIT)
        arrivals = {received.add(line) for _ in range(200)}
        assert arrivals - {Arrival.PART} == {Arrival.HEAD_TOO_LONG}


def test_a_chunk_size_and_a_trailer_have_an_end():
    for body in (b"5;" + b"x" * 100, b"0\r\nX: " + b"x" * 100):
        received = Received(LIMIT)
        received.add(CHUNKED + body)
        arrivals = {received.add(b"y" * 1000) for _ in range(100)}
        assert arrivals - {Arrival.PART} <= {Arrival.HOPELESS, Arrival.HEAD_TOO_LONG}
        assert len(arrivals) > 1


def test_a_client_that_wants_to_be_told_that_its_body_is_welcome_is_told():
    received = Received(LIMIT)
    received.add(HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n")
    assert not received.expects_continue()
    received.add(b"\r\n")
    assert received.expects_continue()
    received.add(b"h")
    assert not received.expects_continue()
    other = Received(LIMIT)
    other.add(HEAD + b"Content-Length: 5\r\n\r\n")
    assert not other.expects_continue()
