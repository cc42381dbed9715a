"""Tags and extra attributes of log drivers."""

from __future__ import annotations

import pytest

from engine.containers.logtag import LogSubject, extra_attributes, render_tag

SUBJECT = LogSubject(
    id="0123456789abcdef" * 4,
    name="web",
    image="nginx:1",
    image_id="sha256:fedcba9876543210",
    command="sh -c 'x'",
    created="2024-01-01T00:00:00Z",
    hostname="host",
    labels={"team": "blue", "app.tier": "front"},
    env=("A=1", "B_X=2=3", "ODD"),
)


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{{.ID}}", "0123456789ab"),
        ("{{ .FullID }}", SUBJECT.id),
        ("{{.ImageName}}/{{.Name}}/{{.ID}}", "nginx:1/web/0123456789ab"),
        ("{{.FullName}} {{.ImageID}} {{.ImageFullID}}", "/web sha256:fedcb sha256:fedcba9876543210"),
        ("{{.DaemonName}} {{.Command}} {{.Hostname}}", "docker sh -c 'x' host"),
        ('{{index .ContainerLabels "team"}}{{index .ContainerLabels "none"}}', "blue"),
        ("{{(.ExtraAttributes nil).team}}", "blue"),
        ('{{.Name | upper}} {{upper .Name}} {{.Name | json}} {{"a" | title}}', 'WEB WEB "web" A'),
    ],
)
def test_tags(template: str, tag: str) -> None:
    assert render_tag(template, SUBJECT, {"labels": "team"}) == tag


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{", "template: log-tag:1: unclosed action"),
        (
            "{{.Foo}}",
            'template: log-tag:1:2: executing "log-tag" at <.Foo>: can\'t evaluate field Foo in type *logger.Info',
        ),
        ("{{foo}}", 'template: log-tag:1: function "foo" not defined'),
        ("{{.Name | foo}}", 'template: log-tag:1: function "foo" not defined'),
    ],
)
def test_bad_templates_are_refused_in_gos_words(template: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        render_tag(template, SUBJECT, {})
    assert str(caught.value) == words


def test_attributes_by_name_and_pattern() -> None:
    assert extra_attributes(SUBJECT, {}) == {}
    assert extra_attributes(SUBJECT, {"labels": "team,none", "env": "B_X,ODD"}) == {"team": "blue", "B_X": "2=3"}
    assert extra_attributes(SUBJECT, {"labels-regex": "^app", "env-regex": "^A$"}) == {"app.tier": "front", "A": "1"}
    assert extra_attributes(SUBJECT, {"labels": "team"}, str.upper) == {"TEAM": "blue"}


def test_a_bad_pattern() -> None:
    with pytest.raises(ValueError, match=r"^error parsing regexp: missing closing \): `\(`$"):
        extra_attributes(SUBJECT, {"env-regex": "("})
