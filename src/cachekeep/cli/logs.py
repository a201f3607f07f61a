"""How the program speaks: one line an event, plain for people or JSON for machines, on standard error."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import Literal

from cachekeep.errors import printable


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {"at": at.isoformat(timespec="milliseconds"), "level": record.levelname.lower(), "logger": record.name}
        line["message"] = printable(record.getMessage())
        if record.exc_info:
            line["trace"] = "\n".join(map(printable, self.formatException(record.exc_info).split("\n")))
        return json.dumps(line, ensure_ascii=False)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        mark = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        # Set in, so that no text of an error passes for a line of its own.
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n    ".join((f"{at} {mark}{printable(record.getMessage())}", *map(printable, trace)))


def set_up(level: str, form: Literal["plain", "json"]) -> None:
    """Send everything of this process to standard error in that form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("asyncio", "uvicorn", "uvicorn.error", "sqlalchemy", "alembic", "botocore"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def event(message: str, **facts: object) -> None:
    """One fact for machines, in the same stream and form as the log."""
    at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"at": at, "level": "info", "logger": "cachekeep", "message": message, **facts}), file=sys.stderr, flush=True)
