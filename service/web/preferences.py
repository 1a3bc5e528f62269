"""What a client would like, beyond what it asks for: `Prefer: wait=N` (RFC 7240)."""

from werkzeug.http import parse_dict_header

PREFER, APPLIED = "Prefer", "Preference-Applied"


def wait_preference(header: str | None, limit_s: int) -> int | None:
    """Return the seconds that a client would wait for its answer; None if it does not say, or longer than the limit.

    What is not a preference of this form is ignored, as the standard has it.

    Parameters
    ----------
    header : str, optional
        `Prefer`.
    limit_s : int
        Seconds after which the service itself gives up.
    """
    value = parse_dict_header(header or "").get("wait") or ""
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        return None
    return int(value) if 0 < int(value) <= limit_s else None
