"""What docker's log drivers say about a container: its tag (a Go template) and its extra attributes. Pure.

Of Go's templates tags use field access, `index` into a map, and a pipe into a string function; that is understood here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

DEFAULT_TAG = "{{.ID}}"

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_FIELD = re.compile(r"^\.([A-Za-z]+)$")
_INDEX = re.compile(r'^index\s+\.([A-Za-z]+)\s+"((?:[^"\\]|\\.)*)"$')
_EXTRA = re.compile(r"^\(\.ExtraAttributes nil\)\.([A-Za-z0-9_]+)$")
_FUNCTIONS: dict[str, Callable[[object], str]] = {
    "lower": lambda value: str(value).lower(),
    "upper": lambda value: str(value).upper(),
    "title": lambda value: str(value).title(),
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "println": lambda value: f"{value}\n",
    "print": str,
}


@dataclass(frozen=True, slots=True)
class LogSubject:
    """The container as its log's reader sees it; ``created`` as RFC 3339, ``name`` without a slash."""

    id: str
    name: str
    image: str
    image_id: str
    command: str
    created: str
    hostname: str
    labels: Mapping[str, str] = field(default_factory=dict)
    env: tuple[str, ...] = ()
    log_path: str = ""


def render_tag(template: str, subject: LogSubject, options: Mapping[str, str]) -> str:
    """The tag. Raises ``ValueError`` in the words of Go's template package."""
    if "{{" in _ACTION.sub("", template):
        raise ValueError("template: log-tag:1: unclosed action")
    return _ACTION.sub(lambda action: _evaluate(action, subject, options), template)


def _evaluate(action: re.Match[str], subject: LogSubject, options: Mapping[str, str]) -> str:
    first, *pipe = (part.strip() for part in action[1].split("|"))
    words = first.split(maxsplit=1)
    if len(words) == 2 and words[0] in _FUNCTIONS:
        first, pipe = words[1], [words[0], *pipe]
    value = _operand(first, action, subject, options)
    for name in pipe:
        if name not in _FUNCTIONS:
            raise ValueError(f'template: log-tag:1: function "{name}" not defined')
        value = _FUNCTIONS[name](value)
    return str(value)


def _operand(text: str, action: re.Match[str], subject: LogSubject, options: Mapping[str, str]) -> object:
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return text[1:-1]
    if match := _EXTRA.match(text):
        return extra_attributes(subject, options).get(match[1], "<no value>")
    fields = _fields(subject)
    if match := _INDEX.match(text):
        table = fields.get(match[1])
        return table.get(match[2], "") if isinstance(table, Mapping) else ""
    match = _FIELD.match(text)
    if match is None:
        name = text.split()[0] if text else ""
        raise ValueError(f'template: log-tag:1: function "{name}" not defined')
    if match[1] not in fields:
        column = action.start() + 2
        raise ValueError(
            f'template: log-tag:1:{column}: executing "log-tag" at <{text}>: '
            f"can't evaluate field {match[1]} in type *logger.Info"
        )
    return fields[match[1]]


def _fields(subject: LogSubject) -> dict[str, object]:
    return {
        "ID": subject.id[:12],
        "FullID": subject.id,
        "Name": subject.name,
        "FullName": f"/{subject.name}",
        "ImageID": subject.image_id[:12],
        "ImageFullID": subject.image_id,
        "ImageName": subject.image,
        "ImageFullName": subject.image,
        "Command": subject.command,
        "ContainerEntrypoint": subject.command.partition(" ")[0],
        "DaemonName": "docker",
        "Hostname": subject.hostname,
        "ContainerID": subject.id,
        "ContainerName": f"/{subject.name}",
        "ContainerImageID": subject.image_id,
        "ContainerImageName": subject.image,
        "ContainerCreated": subject.created,
        "ContainerLabels": dict(subject.labels),
        "ContainerEnv": list(subject.env),
        "LogPath": subject.log_path,
    }


def extra_attributes(
    subject: LogSubject, options: Mapping[str, str], rename: Callable[[str], str] = str
) -> dict[str, str]:
    """What ``labels``, ``labels-regex``, ``env`` and ``env-regex`` choose. Raises ``ValueError`` for a bad pattern."""
    environment = dict(entry.split("=", 1) for entry in subject.env if "=" in entry)
    chosen: dict[str, str] = {}
    for option, table in (("labels", subject.labels), ("env", environment)):
        for key in options.get(option, "").split(","):
            if key and key in table:
                chosen[rename(key)] = table[key]
        pattern = options.get(f"{option}-regex", "")
        if pattern:
            search = _compiled(pattern).search
            chosen.update({rename(key): value for key, value in table.items() if search(key)})
    return chosen


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        words = "missing closing )" if "unterminated subpattern" in str(error) else str(error)
        raise ValueError(f"error parsing regexp: {words}: `{pattern}`") from error
