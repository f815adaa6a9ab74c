"""docs/operators/log-events.md lists every event that the code can log, with its level, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "operators" / "log-events.md"
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
"""The methods of a logger and their levels; structlog writes ``exception`` as ``error``."""


def is_logger(node: ast.expr) -> bool:
    """``log``, ``self._log``, ``structlog.get_logger()``, and loggers bound from them."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lstrip("_") in {"log", "logger"}
        case ast.Call(func=ast.Attribute(attr="get_logger")):
            return True
        case ast.Call(func=ast.Attribute(attr="bind", value=bound)):
            return is_logger(bound)
    return False


def logged(tree: ast.AST) -> list[tuple[int, ast.expr, set[str]]]:
    """Line, event and possible levels of every logger call."""
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not is_logger(call.func.value):
            continue
        method = call.func.attr
        if method in LEVELS:
            found.append((call.lineno, call.args[0], {"error" if method == "exception" else method}))
        elif method == "log":
            names = {node.attr.lower() for node in ast.walk(call.args[0]) if isinstance(node, ast.Attribute)}
            found.append((call.lineno, call.args[1], names & LEVELS))
    return found


def levels_by_event() -> dict[str, set[str]]:
    events: dict[str, set[str]] = defaultdict(set)
    for folder in ("dicom_node", "inference"):
        for file in (ROOT / folder).rglob("*.py"):
            for line, event, levels in logged(ast.parse(file.read_text(encoding="utf-8"))):
                assert isinstance(event, ast.Constant), f"{file}:{line}: an event's name must be a literal"
                assert levels, f"{file}:{line}: the level can't be read"
                events[event.value] |= levels
    return dict(events)


def levels_in_the_table() -> dict[str, set[str]]:
    rows = re.findall(
        r"^\| `([a-z_.]+)` \| ([a-z, ]+) \| .+ \| .+ \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == len(dict(rows)), "an event is listed twice"
    return {event: set(levels.split(", ")) for event, levels in rows}


def test_table_lists_every_event_with_its_levels():
    assert levels_in_the_table() == levels_by_event()


def test_every_form_of_logger_call_is_found():
    source = """
self._log.info("a")
log.exception("b")
structlog.get_logger().bind(x=1).warning("c")
structlog.get_logger().log(logging.ERROR if full else logging.INFO, "d")
parser.error("e")
"""
    found = {event.value: levels for _, event, levels in logged(ast.parse(source))}
    assert found == {"a": {"info"}, "b": {"error"}, "c": {"warning"}, "d": {"error", "info"}}
