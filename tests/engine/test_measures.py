"""What metrics tell and nobody else remembers."""

from __future__ import annotations

import pytest

from engine.measures import Measures


def test_nothing_is_timed_where_nobody_asks() -> None:
    measures = Measures()
    with measures.container_action("start"), measures.network_action("allocate"):
        pass
    assert measures.container_actions == measures.network_actions == {}


def test_what_succeeded_is_timed() -> None:
    measures = Measures(is_on=True)
    with measures.container_action("start"), measures.network_action("allocate"):
        pass
    with pytest.raises(OSError), measures.container_action("start"):
        raise OSError
    assert measures.container_actions["start"].samples("x", {})[-1] == "x_count 1"
    assert measures.network_actions["allocate"].samples("x", {})[-1] == "x_count 1"


def test_health_checks_are_counted() -> None:
    measures = Measures()
    measures.probed(failed=False)
    measures.probed(failed=True)
    assert (measures.probes, measures.failed_probes) == (2, 1)
