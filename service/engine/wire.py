"""Messages between the service and its engine's process: a JSON header and plain arrays, no pickled objects.

A message is a dict. Its numpy arrays travel as raw bytes behind the header, everything else as JSON.
"""

from typing import Any

import numpy as np
import orjson

Message = dict[str, Any]
_LENGTH_BYTES = 4  # of the header's length, big-endian, before the header


def pack(message: Message) -> bytes:
    """Return a message as bytes; numpy arrays may stand at its top level only."""
    arrays = {name: np.ascontiguousarray(value) for name, value in message.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in message.items() if name not in arrays}
    header = orjson.dumps([plain, [[name, array.dtype.str, array.shape] for name, array in arrays.items()]])
    parts = [len(header).to_bytes(_LENGTH_BYTES), header, *(array.tobytes() for array in arrays.values())]
    return b"".join(parts)


def unpack(data: bytes) -> Message:
    """Return the message that `pack` made into bytes; its arrays are read-only."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES])
    message: Message
    message, arrays = orjson.loads(data[_LENGTH_BYTES:end])
    for name, dtype, shape in arrays:
        array = np.frombuffer(data, dtype, int(np.prod(shape)), end).reshape(shape)
        message[name] = array
        end += array.nbytes
    return message
