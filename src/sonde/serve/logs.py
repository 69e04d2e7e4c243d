"""Logs as one JSON object a line, without anything that a client wrote.

to_stderr   let the loggers of sonde, uvicorn and asyncio write such lines
Lines       the formatter
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

LOGGERS = ("sonde", "uvicorn", "asyncio")


def to_stderr(level: int = logging.INFO) -> None:
    """Let these loggers write JSON lines to standard error; those of others from warnings upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "sonde" else logging.WARNING)


class Lines(logging.Formatter):
    """time, level, logger, event, and the fields that `extra={"fields": ...}` gives."""

    def format(self, record: logging.LogRecord) -> str:
        """One line. Of an exception only its kind and place: its message may hold what a client wrote."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            content["exception"] = record.exc_info[0].__name__
            content["where"] = _places(record.exc_info[2])
        return json.dumps(content, ensure_ascii=True, default=str)


def _places(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)[-8:]]
