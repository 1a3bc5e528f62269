"""Whether a request has arrived whole: the framing of HTTP/1.1 (RFC 9112) and nothing else of it.

Decides when a request can be read without waiting. What is broken is not judged here but handed on at once, to a parser that
refuses it.
"""

import re
from enum import Enum, auto

MAX_HEAD_BYTES = 65536  # request line and headers together; ours need a few hundred
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([^\r]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*([^\r]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")


class Arrival(Enum):
    """How far a request has come."""

    PART = auto()  # more is to come
    WHOLE = auto()  # all of it is there
    HOPELESS = auto()  # what is there will be refused, whatever comes: too long, or not HTTP
    HEAD_TOO_LONG = auto()


class Received:
    """The bytes of a request that have arrived.

    Parameters
    ----------
    max_body : int
        Bytes of a body, beyond which it is refused.
    """

    def __init__(self, max_body: int) -> None:
        self.data = bytearray()
        self._max_body = max_body
        self._body = 0  # where the body begins; 0: the head is not complete
        self._length: int | None = None  # of the body; None: it comes in chunks
        self._next = 0  # where the next chunk begins, or where to look on for the end of the head
        self._decoded = 0  # bytes of the chunks before it

    def add(self, data: bytes) -> Arrival:
        """Take what has come, and return whether it is enough."""
        self.data += data
        if not self._body:
            arrival = self._read_head()
            if arrival is not Arrival.WHOLE:
                return arrival
        if self._length is None:
            return self._read_chunks()
        return Arrival.WHOLE if len(self.data) - self._body >= self._length else Arrival.PART

    def expects_continue(self) -> bool:
        """Return whether the client waits to be told that its body is welcome (`Expect: 100-continue`)."""
        return len(self.data) == self._body > 0 and bool(_EXPECTS.search(self.data))

    def _read_head(self) -> Arrival:
        """Look for the end of the head; WHOLE if it is there and says how long the body is."""
        end = self.data.find(b"\r\n\r\n", max(0, self._next - 3))
        if _BARE_LF.search(self.data, max(0, self._next - 1), len(self.data) if end < 0 else end):
            return Arrival.HOPELESS
        self._next = len(self.data)
        if end < 0:
            return Arrival.HEAD_TOO_LONG if len(self.data) > MAX_HEAD_BYTES else Arrival.PART
        if end > MAX_HEAD_BYTES:
            return Arrival.HEAD_TOO_LONG
        self._body = self._next = end + 4
        head = bytes(self.data[: self._body])
        lengths, codings = _LENGTH.findall(head), _CODING.findall(head)
        if len(lengths) + len(codings) > 1:  # two answers to one question: an attempt to smuggle a request
            return Arrival.HOPELESS
        if codings:
            return Arrival.WHOLE if codings[0].lower() == b"chunked" else Arrival.HOPELESS
        self._length = 0
        if lengths:
            if not _DIGITS.fullmatch(lengths[0]) or int(lengths[0]) > self._max_body:
                return Arrival.HOPELESS
            self._length = int(lengths[0])
        return Arrival.WHOLE

    def _read_chunks(self) -> Arrival:
        """Go over the chunks that have come."""
        while True:
            line_end = self.data.find(b"\r\n", self._next, self._next + MAX_HEAD_BYTES)
            if line_end < 0:
                return Arrival.PART if len(self.data) - self._next < MAX_HEAD_BYTES else Arrival.HOPELESS
            size_text = bytes(self.data[self._next : line_end]).partition(b";")[0].strip(b" \t")
            if not _CHUNK_SIZE.fullmatch(size_text):
                return Arrival.HOPELESS
            size = int(size_text, 16)
            end = line_end + 2 + size
            if self._decoded + size > self._max_body:
                # The parser must find more than the limit, to refuse it for that.
                enough = line_end + 2 + self._max_body + 1 - self._decoded
                return Arrival.HOPELESS if len(self.data) >= enough else Arrival.PART
            if len(self.data) < end + 2:
                return Arrival.PART
            if self.data[end : end + 2] != b"\r\n":
                return Arrival.HOPELESS if size else self._read_trailer(line_end)
            if not size:
                return Arrival.WHOLE
            self._next, self._decoded = end + 2, self._decoded + size

    def _read_trailer(self, line_end: int) -> Arrival:
        if self.data.find(b"\r\n\r\n", line_end) >= 0:
            return Arrival.WHOLE
        return Arrival.HEAD_TOO_LONG if len(self.data) - line_end > MAX_HEAD_BYTES else Arrival.PART
