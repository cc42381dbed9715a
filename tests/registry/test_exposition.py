"""The text that Prometheus scrapes."""

from __future__ import annotations

from registry.exposition import Exposition, Histogram, labels


def test_labels_are_escaped() -> None:
    assert labels() == ""
    assert labels(a=1, b='x"\\\n') == '{a="1",b="x\\"\\\\\\n"}'


def test_a_family_has_its_words_its_kind_and_its_samples() -> None:
    shown = Exposition()
    shown.family("up", "gauge", [("", 25276510208), (labels(a="b"), 0.5)], "Whether it is")
    assert shown.text() == b'# HELP up Whether it is\n# TYPE up gauge\nup 25276510208\nup{a="b"} 0.5\n'


def test_a_histogram_counts_what_is_at_most_as_long_as_each_bound() -> None:
    histogram = Histogram()
    for seconds in (0.001, 0.005, 0.3, 99):
        histogram.observe(seconds)
    shown = Exposition()
    shown.histograms("took", "action", {"start": histogram})
    lines = shown.text().decode().splitlines()
    assert lines[:3] == [
        "# TYPE took histogram",
        'took_bucket{action="start",le="0.005"} 2',
        'took_bucket{action="start",le="0.01"} 2',
    ]
    assert lines[-5:] == [
        'took_bucket{action="start",le="5"} 3',
        'took_bucket{action="start",le="10"} 3',
        'took_bucket{action="start",le="+Inf"} 4',
        'took_sum{action="start"} 99.306',
        'took_count{action="start"} 4',
    ]
