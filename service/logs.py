"""What is logged is a line of JSON, whoever says it: the service, gunicorn, a library, the engine's process."""

import logging
from datetime import UTC, datetime

import orjson


def timestamp(seconds: float) -> str:
    """Return a time since the epoch as every line has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """A record as one line: when, how bad, who says it and what; where there was an exception, its traceback as one string."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


# For `logging.config.dictConfig`, which gunicorn and the engine's process call. Access lines have a handler of their own.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    # gunicorn turns the propagation of its own loggers off.
    "loggers": {"gunicorn.error": {"level": "WARNING", "handlers": ["stderr"], "propagate": False}},
}
