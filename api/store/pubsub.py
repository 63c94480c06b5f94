"""A bell over Redis: what one host's process writes wakes those of the others who wait for it."""

from __future__ import annotations

import asyncio
import logging
import secrets

from api.cluster import connect, failures, name_space
from api.store.bell import TOPICS, LocalBell, Topic

log = logging.getLogger(__name__)
RETRY = 0.3  # seconds


class RedisBell(LocalBell):
    """While Redis is away, those who wait look at the database every ``poll`` seconds, and nobody else notices."""

    poll = 1.0

    def __init__(self, url: str) -> None:
        super().__init__()
        self.client, self.ears = connect(url), connect(url)
        self.name = secrets.token_hex(8)
        space = name_space(self.client)
        self.channels: dict[Topic, str] = {topic: f"{space}store:{topic}" for topic in TOPICS}
        self.unsent: set[Topic] = set()
        self.news = asyncio.Event()
        self.closed = False

    def ring(self, topic: Topic) -> None:
        super().ring(topic)
        self.unsent.add(topic)
        self.news.set()

    async def run(self) -> None:
        await asyncio.gather(self.tell(), self.listen())

    async def close(self) -> None:
        self.closed = True  # the library may swallow a cancel
        await super().close()
        await self.client.aclose()
        await self.ears.aclose()

    async def tell(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            try:
                for topic in list(self.unsent):
                    self.unsent.discard(topic)
                    await self.client.publish(self.channels[topic], self.name)
            except failures():  # nobody is told late: they look by themselves meanwhile, and once more when it is back
                await asyncio.sleep(RETRY)

    async def listen(self) -> None:
        while not self.closed:
            try:
                await self.hear()
            except failures() as error:
                log.warning("no news from redis, looking at the database every %s s instead: %s", self.poll, error)
                await asyncio.sleep(RETRY)

    async def hear(self) -> None:
        async with self.ears.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(*self.channels.values())
            for topic in TOPICS:  # what was missed
                LocalBell.ring(self, topic)
            while not self.closed:
                message = await pubsub.get_message(timeout=1.0)
                if message and message["data"] != self.name:
                    for topic, channel in self.channels.items():
                        if channel == message["channel"]:
                            LocalBell.ring(self, topic)
