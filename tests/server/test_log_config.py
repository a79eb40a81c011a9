from __future__ import annotations

import io
import logging

import pytest

from vlcore.server.log_config import LogFormatter

FORGED = "a\nINFO: started\r\x1b[2J\u2028b"


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter("%(levelname)s: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, stream


def test_a_message_stays_on_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.warning("refused: %s, ü and 图", FORGED)
    assert stream.getvalue() == (
        "WARNING: refused: a\\nINFO: started\\r\\x1b[2J\\u2028b, ü and 图\n"
    )


def test_no_line_of_a_traceback_looks_like_a_log_line(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = log
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("a request failed")
    first, *traceback = stream.getvalue().split("\n")[:-1]
    assert first == "ERROR: a request failed"
    assert all(line.startswith("    ") for line in traceback)
    assert "    INFO: started" in traceback
    assert "\x1b" not in stream.getvalue()
