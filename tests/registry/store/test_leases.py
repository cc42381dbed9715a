import asyncio

from registry.digest import Digest
from registry.store.leases import Leases

A = Digest.of(b"a")


async def test_holds_nest() -> None:
    leases = Leases()
    async with leases.hold(A):
        async with leases.hold(A):
            assert leases.protects(A)
        assert leases.protects(A)
    assert not leases.protects(A)


def test_what_is_remembered_is_forgotten_in_time() -> None:
    now = [0.0]
    leases = Leases(clock=lambda: now[0])
    leases.remember(A, 10)
    leases.remember(A, 5)
    now[0] = 9.0
    assert leases.protects(A)
    now[0] = 11.0
    assert not leases.protects(A)


async def test_the_condemned_is_hidden_and_waited_for() -> None:
    leases = Leases()
    waited = []

    async def writer() -> None:
        await leases.settled(A)
        waited.append("gone")

    async with leases.condemn(A) as may_go:
        assert may_go and leases.is_condemned(A)
        task = asyncio.get_running_loop().create_task(writer())
        await asyncio.sleep(0)
        assert waited == []
    await task
    assert waited == ["gone"] and not leases.is_condemned(A)


async def test_what_is_leased_cannot_be_condemned() -> None:
    leases = Leases()
    async with leases.hold(A), leases.condemn(A) as may_go:
        assert not may_go and not leases.is_condemned(A)
