"""`--change` instructions, one by one."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.images.changes import apply_changes
from engine.images.model import Healthcheck, RuntimeConfig


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ('CMD ["a", "b"]', "cmd", ["a", "b"]),
        ("cmd a b", "cmd", ["/bin/sh", "-c", "a b"]),
        ('ENTRYPOINT ["x"]', "entrypoint", ["x"]),
        ("ENTRYPOINT []", "entrypoint", None),
        ("ENV A=1 B='two words'", "env", ["A=1", "B=two words"]),
        ("ENV A one two", "env", ["A=one two"]),
        ("EXPOSE 80 53/udp 8000-8001", "exposed_ports", {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}),
        ('LABEL a="b c" d=e', "labels", {"a": "b c", "d": "e"}),
        ("ONBUILD RUN x", "on_build", ["RUN x"]),
        ("STOPSIGNAL SIGINT", "stop_signal", "SIGINT"),
        ("USER me:us", "user", "me:us"),
        ("USER a b", "user", "a b"),
        ('VOLUME ["/a"]', "volumes", {"/a": {}}),
        ("VOLUME /a /b", "volumes", {"/a": {}, "/b": {}}),
        ("WORKDIR /a/../b", "working_dir", "/b"),
        ('SHELL ["/bin/bash", "-c"]', "shell", ["/bin/bash", "-c"]),
        ("HEALTHCHECK NONE", "healthcheck", Healthcheck(test=["NONE"])),
        (
            "HEALTHCHECK --interval=5s --retries=2 CMD curl x",
            "healthcheck",
            Healthcheck(test=["CMD-SHELL", "curl x"], interval=5_000_000_000, retries=2),
        ),
        ('HEALTHCHECK CMD ["a"]', "healthcheck", Healthcheck(test=["CMD", "a"])),
    ],
)
def test_one_change(change: str, field: str, value: object) -> None:
    assert getattr(apply_changes(RuntimeConfig(), [change]), field) == value


def test_without_words_commands_are_reset() -> None:
    config = RuntimeConfig(cmd=["a"], entrypoint=["b"])
    assert apply_changes(config, ["ENTRYPOINT", "CMD"]) == RuntimeConfig(cmd=["/bin/sh", "-c"])


def test_changes_build_on_what_is_there() -> None:
    config = RuntimeConfig(env=["A=0", "Z=9"], working_dir="/srv", labels={"k": "v"}, shell=["sh", "-x"])
    changed = apply_changes(config, ["ENV A=1", "WORKDIR sub\nLABEL n=1", "# nothing", "CMD run \\\n it"])
    assert changed.env == ["A=1", "Z=9"]
    assert changed.working_dir == "/srv/sub"
    assert changed.labels == {"k": "v", "n": "1"}
    assert changed.cmd == ["sh", "-x", "run  it"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("FROM x", "from is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("# nothing", "file with no instructions"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", 'find = in "B"'),
        ("ENV =1", "ENV names can not be blank"),
        ("EXPOSE 70000", "Invalid containerPort: 70000"),
        ("EXPOSE 1/foo", "Invalid proto: foo"),
        ("EXPOSE x", "Invalid containerPort: x"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ('VOLUME [""]', "can not be an empty string"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("SHELL sh", "JSON form"),
        ("HEALTHCHECK RUN x", 'Unknown type "RUN"'),
        ("HEALTHCHECK --foo=1 CMD x", "unknown flag: foo"),
        ("HEALTHCHECK --interval=x CMD x", "invalid value for interval"),
        ("HEALTHCHECK NONE x", "takes no arguments"),
        ("LABEL a='b", "cannot split"),
    ],
)
def test_refusals(change: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        apply_changes(RuntimeConfig(), [change])


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("ENV X=$A", "1"),
        ('ENV X="${A} b"', "1 b"),
        ("ENV X='$A'", "$A"),
        ("ENV X=\\$A", "$A"),
        ("ENV X=${NONE:-d}${A:+e}${NONE:+f}", "de"),
        ("ENV X $A and $B", "1 and two words"),
        ("ENV X=$B", "two words"),
        ("ENV X=${NONE}", ""),
    ],
)
def test_variables_are_filled_in(change: str, value: str) -> None:
    config = apply_changes(RuntimeConfig(env=["A=1", "B=two words"]), [change])
    assert f"X={value}" in (config.env or ())


def test_a_new_entry_point_drops_the_old_command() -> None:
    old = RuntimeConfig(cmd=["old"])
    assert apply_changes(old, ['ENTRYPOINT ["/e"]']).cmd is None
    assert apply_changes(old, ['CMD ["c"]', 'ENTRYPOINT ["/e"]']).cmd == ["c"]
