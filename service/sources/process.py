"""The process that brings tasks in from sources. `python -m service.sources.process DESCRIPTOR`.

It speaks to engines as a front end does, and to its supervisor. It knows no HTTP of this server, and imports no torch.
"""

from __future__ import annotations

import asyncio

import uvloop

from adapters.errors import AdaptError
from service import child
from service.engine import memory
from service.engine.fleet import Fleet
from service.engine.remote import RemoteEngine
from service.engine.room import Room
from service.exits import FAILED
from service.limits import file_limits
from service.messages import Message, Told
from service.sources.sources import Sources
from service.store.catalogue import Catalogue
from service.store.journal import Journal
from service.store.opening import open_repository
from service.watch.metrics import Metrics

OWNER = "sources"


async def _run(begun: child.Beginning) -> None:
    told, settings = begun.told, begun.settings
    made: list[Sources] = []

    def heard(message: Message) -> None:
        if made and isinstance(message, Told):
            made[0].heard(message)

    channel = await begun.listen(heard)
    repository = open_repository(settings, Journal(memory.mapped(told["journal"])), OWNER)
    await asyncio.to_thread(repository.load)
    engines = [
        RemoteEngine(path, told["number"], Room.of(settings, told["cells"], number), settings.ready_timeout_s)
        for number, path in enumerate(told["engines"])
    ]
    await asyncio.gather(*(engine.connect() for engine in engines))
    fleet = Fleet(engines)
    catalogue = Catalogue(
        repository, fleet.facts.layout, file_limits(settings, fleet.facts.rank), fleet.forget, cache_bytes=0
    )
    made.append(Sources(settings, catalogue, fleet, Metrics(OWNER), channel.send))
    channel.send(Told("up", {}))
    await made[0].begin()
    channel.send(Told("built", {}))
    await made[0].run()


def main() -> None:
    """Until the supervisor is gone."""
    begun = child.begin()
    try:
        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_run(begun))
    except AdaptError as error:
        begun.refuse(error)
        child.end(f"tasks cannot be brought in from sources: {error.message}", FAILED)


if __name__ == "__main__":
    main()
