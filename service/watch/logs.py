"""Log lines, for people as text or for machines as JSON, and the one line that each request leaves.

It does not know what a request does. Bodies and keys never reach it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

FIELDS = "adaptserve"
"""The attribute of a log record that holds further members for the JSON line."""
QUIET = {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/ping", "/"}
"""Asked every few seconds by machines: their successes are told at the level debug."""

log = logging.getLogger("adaptserve.request")
_encode = json.JSONEncoder(default=str).encode  # json.dumps makes an encoder for each call


@dataclass
class BatchProgress:
    """What became of a batch call so far."""

    items: int = 0
    answered: int = 0
    failed: int = 0


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, further members, the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def configure(level: str, form: str) -> None:
    """Send every logger of this process to stderr; ``form`` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonLines())
        logging.captureWarnings(True)
        threading.excepthook = lambda lost: _unseen("a thread ended by mistake", lost.exc_value)
        sys.unraisablehook = lambda lost: _unseen(lost.err_msg or "an error that nobody could catch", lost.exc_value)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What no line tells, no line need look up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("timm").setLevel(logging.WARNING)
    for name in ("httpx", "httpx2", "httpcore", "httpcore2"):  # they tell of addresses, some of which are signed
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what a client sent
    # Pillow warns of damaged metadata with the file's own numbers: a line, and memory, for each new one that comes.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _unseen(message: str, error: BaseException | None) -> None:
    """What Python itself would print to stderr, as a line like the others."""
    logging.getLogger(__name__).error(message, exc_info=error)


def request(
    request_id: str, method: str, route: str | None, tasks: Sequence[str], key: str | None, status: int, seconds: float,
    batch: BatchProgress | None = None,
) -> None:  # fmt: skip
    """The line of one request. ``route`` is the path's template: what a client made up is not repeated."""
    level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
    if not log.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "request_id": request_id,
        "method": method,
        "route": route,
        "tasks": list(tasks),
        "key_name": key,
        "status": status,
        "ms": round(1000 * seconds, 2),
    }
    text = "%s %s %s %d in %.1f ms for %s, request %s"
    values: tuple[object, ...] = (
        method,
        route or "nowhere",
        ",".join(tasks) or "-",
        status,
        1000 * seconds,
        key or "-",
        request_id,
    )
    if batch is not None:
        fields |= vars(batch)
        text += ", %d items answered and %d failed of %d"
        values += (batch.answered, batch.failed, batch.items)
    # Not ``log.log``, which walks the stack to find who called it, for every request.
    log.handle(log.makeRecord(log.name, level, "", 0, text, values, None, extra={FIELDS: fields}))
