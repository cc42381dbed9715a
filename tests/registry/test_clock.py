"""A clock that is set ahead ages nothing until it has stood for a day; one that is set back is followed."""

from pathlib import Path

from registry.clock import SteadyClock
from registry.store import paths
from registry.store.filesystem import FilesystemDriver


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


async def test_a_restart_with_a_wrong_clock_ages_nothing(tmp_path: Path) -> None:
    driver = FilesystemDriver(tmp_path)
    wall, passed = [1000.0], [0.0]

    async def started() -> SteadyClock:
        clock = SteadyClock(lambda: wall[0], lambda: passed[0])
        await clock.recall(driver)
        return clock

    assert (await started())() == 1000.0, "the first start knows no better"
    await (await started()).save(driver)
    wall[0] += 40_000
    assert (await started())() == 41_000.0, "hours without a server are nothing special"
    wall[0] += 40 * 86400
    clock = await started()
    assert clock() == 1000.0
    wall[0], passed[0] = wall[0] + 86_500, passed[0] + 86_500
    assert clock() == wall[0], "a clock that has stood for a day is believed"
    (tmp_path / paths.state("clock")).write_bytes(b"nonsense")
    assert (await started())() == wall[0]
