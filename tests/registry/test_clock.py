"""A clock that is set ahead ages nothing until it has stood for a day; one that is set back is followed."""

from registry.clock import SteadyClock


class Times:
    """What the wall clock and the steady one say."""

    wall = 1_000_000.0
    passed = 50.0

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds


def test_it_follows_the_wall_clock_and_its_small_corrections() -> None:
    times = Times()
    clock = SteadyClock(lambda: times.wall, lambda: times.passed)
    for _ in range(100):
        times.wait(3600)
        times.wall += 30  # a clock that is slewed
        assert clock() == times.wall


def test_a_jump_ahead_is_believed_after_a_day() -> None:
    times = Times()
    clock = SteadyClock(lambda: times.wall, lambda: times.passed)
    times.wall += 365 * 86400
    before = clock()
    assert before == 1_000_000.0
    times.wait(3600)
    assert clock() == before + 3600
    times.wait(86400)
    assert clock() == times.wall
    times.wait(10)
    assert clock() == times.wall


def test_a_jump_ahead_that_is_undone_leaves_no_trace() -> None:
    times = Times()
    clock = SteadyClock(lambda: times.wall, lambda: times.passed)
    times.wall += 7 * 86400
    clock()
    times.wall -= 7 * 86400
    times.wait(90_000)
    assert clock() == times.wall
    times.wall += 7 * 86400
    assert clock() == times.wall - 7 * 86400


def test_a_jump_back_is_followed_at_once() -> None:
    times = Times()
    clock = SteadyClock(lambda: times.wall, lambda: times.passed)
    times.wall -= 86400
    assert clock() == times.wall
    times.wait(5)
    assert clock() == times.wall
