"""Tools and tool calls of a row, in any spelling, and what reading a row needs beside them."""

import json
from collections.abc import Mapping

from overlays.errors import UserError
from overlays.files import is_shallow

CALL_LEVELS = 32  # of the arguments of a tool call, and of a tool
_CALL_KEYS = ("name", "arguments", "parameters", "id", "type", "index", "function")


def is_empty(value: object) -> bool:
    return value is None or isinstance(value, str | list | dict | bytes) and not value


def one_of(turn: Mapping, keys: tuple[str, str], where: str) -> object:
    """What a turn has under one of two names of the same thing."""
    values = [turn[key] for key in keys if key in turn]
    if len(values) == 2 and values[0] != values[1]:
        raise UserError(f"{where} has {keys[0]} and {keys[1]}, which differ; keep one of them")
    return values[0] if values else None


def parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_calls(value: object, where: str) -> list[dict]:
    """Tool calls in any spelling as [{"name", "arguments"}]."""
    value = parsed(value) if isinstance(value, str) else value
    calls = []
    for call in [] if is_empty(value) else value if isinstance(value, list) else [value]:
        call = parsed(call) if isinstance(call, str) else call
        call = (call.get("function") or call) if isinstance(call, Mapping) else call
        name = call.get("name") if isinstance(call, Mapping) else None
        if not isinstance(name, str) or not name:
            raise UserError(f'{where} has a tool call that is not {{"name": ..., "arguments": {{...}}}}')
        unread = [key for key, given in call.items() if key not in _CALL_KEYS and not is_empty(given)]
        if unread:
            raise UserError(f"{where}: the key {unread[0]!r} of the tool call {name!r} is not read")
        arguments = one_of({key: call[key] for key in ("arguments", "parameters") if call.get(key) not in (None, "")},
                         ("arguments", "parameters"), where)
        if arguments is None:
            arguments = {}
        arguments = parsed(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict) or not is_shallow(arguments, CALL_LEVELS):
            raise UserError(f"{where}: the arguments of the tool call {name!r} must be a JSON object of at most "
                            f"{CALL_LEVELS} levels")
        calls.append({"name": name, "arguments": arguments})
    return calls


def read_tools(value: object) -> list[dict]:
    """The tools of a row as the list that chat templates take; a bare function is wrapped."""
    value = parsed(value.strip()) if isinstance(value, str) else value
    if not is_shallow(value, CALL_LEVELS):
        raise UserError(f"tools have more than {CALL_LEVELS} levels")
    tools = []
    for tool in [] if is_empty(value) else value if isinstance(value, list) else [value]:
        tool = parsed(tool) if isinstance(tool, str) else tool
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", tool), Mapping) \
                or not isinstance(tool.get("function", tool).get("name"), str):
            raise UserError('tools must be a list of {"type": "function", "function": {"name": ...}}')
        tools.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return tools
