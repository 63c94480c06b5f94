"""Clients of all kinds at once, which take note of everything that must not be."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

LAST = frozenset({"finished", "cancelled", "failed"})
LONG = 90.0  # seconds in which a request must be answered; the engine's deadline is 60
TASK = 240.0  # seconds in which a task must be over
PATIENCE = 2.0  # seconds that a refused client waits at most, whatever Retry-After says
MOST_FAULTS = 50
PROMPTS = ("a smiling face with blonde hair", "a sad face with glasses, yellow background", "an angry face with long red hair")
Act = Callable[[httpx.AsyncClient], Awaitable[None]]


class Storm:
    """What clients do, what they were told, and what of it must not be."""

    def __init__(self, url: str, gans: Sequence[str], diffusion: Sequence[str], chance: random.Random, *, history: bool) -> None:
        self.url, self.chance, self.gans, self.history = url, chance, list(gans), history
        self.faults: list[str] = []
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.kills: list[float] = []  # moments at which web workers were killed
        self.flying: dict[int, float] = {}  # requests that wait for an answer, and since when
        self.numbers = itertools.count()
        self.accepted: set[str] = set()
        self.over: dict[str, str] = {}  # task → its last event
        self.stop = asyncio.Event()
        self.heard = asyncio.Event()  # set, and replaced, when a task is over
        self.listening = asyncio.Event()
        self.styles: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=32))
        self.blobs: deque[tuple[str, float]] = deque(maxlen=32)
        self.acts: dict[Act, float] = {self.generate: 30, self.image: 10, self.rework: 10, self.edit: 4, self.walk: 2, self.look: 3}
        self.acts |= {self.vanish: 4, self.task: 8, self.blob: 2}
        if history:
            self.acts |= {self.browse: 4}
        self.diffusion = list(diffusion)
        if diffusion:
            self.acts |= {self.words: 4}

    def fault(self, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"{time.strftime('%H:%M:%S')} {text}")

    # How a client asks.

    async def client(self, number: int) -> None:
        """Does one thing after the other until it is told to stop. Each has an address of its own."""
        address = f"127.2.{number // 250}.{number % 250 + 1}"
        transport = httpx.AsyncHTTPTransport(local_address=address)
        # A connection each: whoever keeps one alive must expect the server to close it between two requests.
        headers = {"Connection": "close"}
        async with httpx.AsyncClient(transport=transport, base_url=self.url, timeout=LONG, headers=headers) as client:
            while not self.stop.is_set():
                (act,) = self.chance.choices(list(self.acts), list(self.acts.values()))
                try:
                    await act(client)
                except Exception as error:  # of this bench, or an answer that cannot be read
                    self.fault(f"{act.__name__}: {error!r}")
                    await asyncio.sleep(1)

    async def ask(
        self, client: httpx.AsyncClient, kind: str, method: str, path: str, expected: Collection[int] = (200,), **more: Any
    ) -> httpx.Response | None:
        """The answer; nothing if the server was busy, or if a web worker was killed over it."""
        number, begun = next(self.numbers), time.monotonic()
        self.flying[number] = begun
        try:
            answer = await client.request(method, path, **more)
        except httpx.TransportError as error:
            self.cut(kind, begun, error)
            return None
        finally:
            del self.flying[number]
        if answer.status_code in expected:
            self.outcomes[kind]["served"] += 1
            self.times[kind].append(time.monotonic() - begun)
            return answer
        await self.refused(kind, answer)
        return None

    def waiting(self) -> set[int | str]:
        """Requests without an answer and tasks without an end."""
        return {*self.flying, *(self.accepted - self.over.keys())}

    async def refused(self, kind: str, answer: httpx.Response) -> None:
        if answer.status_code in (429, 503) and "retry-after" in answer.headers:
            self.outcomes[kind]["refused"] += 1
            await self.pause(min(PATIENCE, float(answer.headers["retry-after"])))
        else:
            self.fault(f"{kind}: {answer.status_code} {answer.text[:200]}")

    def cut(self, kind: str, begun: float, error: Exception) -> None:
        """A connection ended early. Only a web worker that is killed may do that, to those that it serves."""
        if any(begun - 1.0 <= kill <= time.monotonic() for kill in self.kills):
            self.outcomes[kind]["cut"] += 1
        else:
            self.fault(f"{kind}: {error!r} after {time.monotonic() - begun:.2f} s, and no web worker was killed")

    async def pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()

    def seed(self) -> int:
        return self.chance.randrange(1 << 32)

    # What clients do.

    async def generate(self, client: httpx.AsyncClient) -> None:
        model = self.chance.choice(self.gans)
        query = {"seed": self.seed(), "count": self.chance.choice([1, 1, 1, 2, 8])}
        if answer := await self.ask(client, "generate", "POST", f"/{model}/generate", params=query):
            self.styles[model].append(answer.json()["style"])

    async def image(self, client: httpx.AsyncClient) -> None:
        query = {"seed": self.chance.randrange(20), "format": self.chance.choice(["png", "jpeg", "webp"])}
        await self.ask(client, "image", "GET", f"/{self.chance.choice(self.gans)}/image", params=query)

    async def rework(self, client: httpx.AsyncClient) -> None:
        """Blends or mixes what was made before."""
        model, what = self.chance.choice(self.gans), self.chance.choice(["blend", "mix"])
        if len(self.styles[model]) >= 2:
            body = {"styles": self.chance.sample(list(self.styles[model]), 2)}
            await self.ask(client, what, "POST", f"/{model}/{what}", params={"seed": self.seed()}, json=body)

    async def edit(self, client: httpx.AsyncClient) -> None:
        body = {"seed": self.seed(), "directions": {"sefa-1": self.chance.uniform(-1, 1)}}
        await self.ask(client, "edit", "POST", f"/{self.chance.choice(self.gans)}/edit", json=body)

    async def walk(self, client: httpx.AsyncClient) -> None:
        body = {"seeds": [self.seed(), self.seed()], "frames": 8, "format": self.chance.choice(["webp", "gif", "apng"])}
        await self.ask(client, "interpolate", "POST", f"/{self.chance.choice(self.gans)}/interpolate", json=body)

    async def words(self, client: httpx.AsyncClient) -> None:
        await self.ask(client, "txt2img", "GET", "/txt2img", params=self.wish() | {"steps": self.chance.choice([4, 10])})

    def wish(self) -> dict[str, Any]:
        return {"model": self.chance.choice(self.diffusion), "prompt": self.chance.choice(PROMPTS), "seed": self.seed()}

    async def look(self, client: httpx.AsyncClient) -> None:
        path = self.chance.choice(["/metrics", "/models/", "/version", "/healthz"])
        await self.ask(client, path, "GET", path)

    async def browse(self, client: httpx.AsyncClient) -> None:
        """Looks at the history, and deletes some of it."""
        found = await self.ask(client, "/images", "GET", "/images", params={"limit": 20})
        if found is None or not (images := found.json()["images"]):
            return
        for image in self.chance.sample(images, min(3, len(images))):
            # Somebody else may have deleted it meanwhile.
            if self.chance.random() < 0.5:
                await self.ask(client, "/images/…", "DELETE", f"/images/{image['id']}", (204, 404))
            else:
                await self.ask(client, "/images/…", "GET", image["file"], (200, 404))

    async def blob(self, client: httpx.AsyncClient) -> None:
        """Keeps a picture, for tasks to start from, and reads it again."""
        picture = await self.ask(client, "image", "GET", f"/{self.gans[0]}/image", params={"seed": self.chance.randrange(20)})
        if picture is None:
            return
        made = await self.ask(client, "blob", "POST", "/blob", (201,), content=picture.content, headers={"Content-Type": "image/png"})
        if made is not None:
            self.blobs.append((made.json(), time.monotonic()))
            again = await self.ask(client, "blob", "GET", f"/blob/{made.json()}")
            if again is not None and again.content != picture.content:
                self.fault(f"blob {made.json()} is not what was sent")

    # Clients that vanish.

    async def vanish(self, client: httpx.AsyncClient) -> None:
        """Asks, and is gone without a word; or says half of what it wants, and nothing more."""
        parts = urlsplit(self.url)
        path = f"/{self.chance.choice(self.gans)}/generate?count=8&seed={self.seed()}"
        if self.diffusion and self.chance.random() < 0.5:
            path = f"/txt2img?{urlencode(self.wish() | {'steps': 20})}"
        head = f"{'GET' if path.startswith('/txt2img') else 'POST'} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n".encode()
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(head if self.chance.random() < 0.7 else head[: len(head) // 2])
            await self.pause(self.chance.uniform(0, 0.5))
            writer.transport.abort()
        self.outcomes["vanished"]["asked"] += 1

    # Tasks.

    async def task(self, client: httpx.AsyncClient) -> None:
        """Has a task made and sees it to its end, in one of several ways."""
        params, key = self.task_params(), secrets.token_hex(8)
        answer = None
        for _ in range(5):  # whoever was cut off, or refused, comes back: the same key makes the same task
            answer = await self.ask(client, "task", "POST", "/task", (200, 201), json=params, headers={"Idempotency-Key": key})
            if answer is not None or self.stop.is_set():
                break
        if answer is None:
            return
        task_id = answer.json()
        self.accepted.add(task_id)
        ways = {self.follow: 4.0, self.poll: 2.0, self.hear: 2.0, self.cancel: 2.0}
        (way,) = self.chance.choices(list(ways), list(ways.values()))
        try:
            async with asyncio.timeout(TASK):
                await way(client, task_id)
        except TimeoutError:
            self.fault(f"task {task_id} ({params['params_type']}, {way.__name__}) was not over after {TASK:.0f} s")

    def task_params(self) -> dict[str, Any]:
        kind = self.chance.choice(["generate", "interpolate", "txt2img", "txt2img", "img2img"])
        fresh = [blob_id for blob_id, made in self.blobs if time.monotonic() < made + 60]
        if kind == "generate" or not self.diffusion:
            return {"params_type": "generate", "model": self.chance.choice(self.gans), "seed": self.seed()}
        if kind == "interpolate":
            seeds = [self.seed(), self.seed()]
            return {"params_type": kind, "model": self.chance.choice(self.gans), "seeds": seeds, "frames": 6}
        params = {"params_type": "txt2img", "steps": self.chance.choice([4, 10, 20]), **self.wish()}
        if kind == "img2img" and fresh:
            params |= {"params_type": kind, "initial_image": self.chance.choice(fresh)}
        return params

    async def follow(self, client: httpx.AsyncClient, task_id: str) -> None:
        """By its event stream, coming back where that ends early."""
        known, kind = 0, ""
        while kind not in LAST:
            begun = time.monotonic()
            try:
                async with client.stream("GET", f"/task/{task_id}/events", headers={"Last-Event-ID": str(known)}) as answer:
                    if answer.status_code != 200:
                        await answer.aread()
                        await self.refused("events", answer)
                        continue
                    async for line in answer.aiter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            if int(value) != known + 1:
                                self.fault(f"task {task_id}: event {value} came after {known}")
                            known = int(value)
                        elif name == "event":
                            kind = value
                self.outcomes["events"]["served"] += 1
            except httpx.TransportError as error:
                self.cut("events", begun, error)
                await asyncio.sleep(0.1)

    async def poll(self, client: httpx.AsyncClient, task_id: str) -> None:
        while True:
            answer = await self.ask(client, "task: state", "GET", f"/task/{task_id}")
            if answer is not None and answer.json()["event_type"] in LAST:
                return
            await asyncio.sleep(0.3)

    async def hear(self, client: httpx.AsyncClient, task_id: str) -> None:
        """By the WebSocket that all of this bench's clients share."""
        while task_id not in self.over:
            await self.heard.wait()

    async def cancel(self, client: httpx.AsyncClient, task_id: str) -> None:
        await asyncio.sleep(self.chance.uniform(0, 1))
        while await self.ask(client, "task: cancel", "DELETE", f"/task/{task_id}", (204,)) is None:
            await asyncio.sleep(0.1)
        await self.poll(client, task_id)

    async def listen(self, until: asyncio.Event) -> None:
        """Hears all events of all tasks, each once and in order, however often it has to come back."""
        since, numbers = 0, dict[str, int]()
        while not until.is_set():
            try:
                async with connect(f"{self.url.replace('http', 'ws')}/events?since={since}", max_size=None) as socket:
                    self.listening.set()
                    async for text in socket:
                        since = self.take(json.loads(text), since, numbers)
            except (ConnectionClosed, InvalidStatus, OSError, TimeoutError, EOFError):
                self.outcomes["WebSocket"]["came back"] += 1
            await asyncio.sleep(0.05)

    def take(self, event: Mapping[str, Any], since: int, numbers: dict[str, int]) -> int:
        task_id, kind = event["task_id"], event["event_type"]
        if event["id"] <= since:
            self.fault(f"event {event['id']} came after {since}")
        if task_id in self.over:
            self.fault(f"task {task_id}: {kind} came after {self.over[task_id]}")
        if event["number"] != numbers.get(task_id, 0) + 1:
            self.fault(f"task {task_id}: event {event['number']} came after {numbers.get(task_id, 0)}")
        numbers[task_id] = event["number"]
        self.outcomes["WebSocket"]["events"] += 1
        if kind == "failed":
            self.fault(f"task {task_id} failed: {event.get('reason')}")
        if kind in LAST:
            self.over[task_id] = kind
            del numbers[task_id]
            self.heard.set()
            self.heard = asyncio.Event()
        return int(event["id"])
