"""Pickles read as data: a small machine of our own that knows neither ``import`` nor calls.

The machine walks the opcodes of the pickle protocol (0 to 5; PEP 307, PEP 3154, PEP 574) and builds only ``None``, ``bool``,
``int``, ``float``, ``str``, ``memoryview``, ``list``, ``dict``, ``set``, ``tuple`` and the stubs of this module. A name in the
stream is looked up in a table that the format passes in; whatever is not there is refused. Where the original would call the
named function, the machine calls a function of ours that checks its arguments and makes a stub.

Every loop is bounded: operations and copied bytes are paid from a ``Budget`` that nested streams share, lengths are compared with
what is left of the data before anything is made, and what is nested too deeply is refused without being walked recursively.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

from api.errors import ConfigError

OPERATIONS = 500_000  # a published checkpoint has about 40,000
DEPTH = 100  # a published checkpoint has about 15
GROWTH = 4  # bytes that may be copied or decoded for each byte of the file


@dataclass(kw_only=True)
class Budget:
    """What reading one file may still cost. Shared by the streams nested in it, so that repeating one does not multiply it."""

    operations: int
    copies: int

    @classmethod
    def of(cls, size: int) -> Budget:
        """The budget for a file of ``size`` bytes."""
        return cls(operations=OPERATIONS, copies=GROWTH * size + (1 << 20))

    def operate(self, count: int = 1) -> None:
        self.operations -= count
        if self.operations < 0:
            refuse(f"more than {OPERATIONS} pickle operations")

    def copy(self, size: int) -> None:
        self.copies -= size
        if self.copies < 0:
            refuse(f"its contents unfold to more than {GROWTH} times its size")


def refuse(reason: str) -> NoReturn:
    """Raise the one error of this package: the file cannot be used, and why."""
    raise ConfigError(f"checkpoint refused: {reason}")


class Stub:
    """An object of ours that stands for one that the file names. ``build`` takes what the original's ``__setstate__`` would."""

    __slots__ = ()

    def build(self, state: object) -> None:
        refuse(f"it sets the state of a {type(self).__name__}")

    def parts(self) -> Iterable[object]:
        """The values it holds, for measuring depth."""
        return ()


@dataclass(frozen=True, eq=False)
class Name(Stub):
    """A permitted name. ``call`` stands for calling it with arguments, ``new`` for making an instance without ``__init__``."""

    path: str
    call: Callable[..., object] | None = None
    new: Callable[..., object] | None = None


Names = Mapping[str, Name]


def table(*names: Name) -> dict[str, Name]:
    return {name.path: name for name in names}


def _ordered_dict(*args: object) -> dict[object, object]:
    match args:
        case ():
            return {}
        case (list() as pairs,):
            made: dict[object, object] = {}
            for pair in pairs:
                match pair:
                    case (key, value) | [key, value]:
                        made[_key(key)] = value
                    case _:
                        refuse("an OrderedDict of something else than pairs")
            return made
    refuse("an OrderedDict with unexpected arguments")


def _set(*args: object) -> set[object]:
    match args:
        case ():
            return set()
        case (list() as items,):
            return {_key(item) for item in items}
    refuse("a set with unexpected arguments")


COMMON = table(
    Name("collections.OrderedDict", _ordered_dict, _ordered_dict),
    Name("builtins.set", _set),
    Name("__builtin__.set", _set),
)
"""Names that any format may meet: containers without behaviour."""


def _key(value: object) -> object:
    """``value`` if it may be a key: short and hashed in constant time, without meeting hashes chosen to collide."""
    if value is None or isinstance(value, (str, bool)) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    refuse(f"a dictionary key or set member of type {type(value).__name__}")


Persistent = Callable[[object], object]


@dataclass(kw_only=True)
class Machine:
    """Runs one pickle stream that starts at ``position`` of ``data``; after ``run`` it stands behind its STOP."""

    data: memoryview
    names: Names
    budget: Budget
    persistent: Persistent | None = None
    position: int = 0
    stack: list[object] = field(default_factory=list)
    fenced: list[list[object]] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    operations: ClassVar[dict[int, Callable[[Machine], None]]] = {}

    def run(self) -> object:
        """The value at STOP. Raises ``ConfigError`` for whatever is not data."""
        while True:
            self.budget.operate()
            code = self.take(1)[0]
            if code == _STOP:
                return self.finish()
            operation = self.operations.get(code)
            if operation is None:
                refuse(f"pickle opcode 0x{code:02x} ({_REFUSED.get(code, 'unknown')}) at byte {self.position - 1}")
            operation(self)

    def finish(self) -> object:
        value = self.pop()
        if self.stack or self.fenced:
            refuse("a pickle that leaves values on its stack")
        check_depth(value)
        return value

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, as a view; nothing is copied, so that a size that lies costs nothing."""
        if size < 0 or size > len(self.data) - self.position:
            refuse(f"a length of {size} bytes where {len(self.data) - self.position} are left")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def line(self) -> str:
        window = bytes(self.data[self.position : self.position + 256])
        end = window.find(b"\n")
        if end < 0:
            refuse("a name longer than 255 bytes")
        self.position += end + 1
        return decode(window[:end])

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            refuse("a pickle that takes from an empty stack")
        return self.stack.pop()

    def top(self) -> object:
        if not self.stack:
            refuse("a pickle that looks at an empty stack")
        return self.stack[-1]

    def fence(self) -> None:
        self.fenced.append(self.stack)
        self.stack = []

    def unfence(self) -> list[object]:
        """The values pushed since the last MARK."""
        if not self.fenced:
            refuse("a pickle that looks for a MARK that is not there")
        items, self.stack = self.stack, self.fenced.pop()
        return items

    def find(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            refuse("a global whose name is not text")
        path = f"{module}.{name}"
        found = self.names.get(path)
        if found is None:
            refuse(f"it names {path[:100]!r}, which no checkpoint needs")
        self.push(found)

    def apply(self, *, new: bool) -> None:
        args, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            refuse("it calls something that is not a permitted name")
        call = name.new if new else name.call
        if call is None:
            refuse(f"it calls {name.path!r}, which is only permitted as a name")
        # What is called may walk through its arguments, which the memo gives again and again for one operation.
        self.budget.operate(len(args) + sum(len(arg) for arg in args if isinstance(arg, (list, tuple, dict, set))))
        self.push(call(*args))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Stub):
            target.build(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # attributes of an OrderedDict: torch's _metadata
            refuse(f"it sets the state of a {type(target).__name__}")

    def extend_list(self, items: list[object]) -> None:
        target = self.top()
        if type(target) is not list:
            refuse(f"it appends to a {type(target).__name__}")
        target.extend(items)

    def extend_dict(self, items: list[object]) -> None:
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            refuse(f"it sets items of a {type(target).__name__}")
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def extend_set(self, items: list[object]) -> None:
        target = self.top()
        if type(target) is not set:
            refuse(f"it adds members to a {type(target).__name__}")
        target.update(map(_key, items))

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            refuse(f"it recalls value {index}, which it has not stored")
        self.push(self.memo[index])

    def group(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def integer(self, size: int) -> None:
        if size > 16:
            refuse(f"an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def text(self, size: int) -> None:
        raw = self.take(size)
        self.budget.copy(size)
        self.push(decode(bytes(raw)))

    def persist(self) -> None:
        if self.persistent is None:
            refuse("a persistent id outside of a torch file")
        self.push(self.persistent(self.pop()))


def decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        refuse("text that is not UTF-8")


def check_depth(value: object, limit: int = DEPTH) -> None:
    """Refuse what is nested in more than ``limit`` levels. Level by level, each container once: cycles and shared parts cost nothing."""
    level, seen = [value], {id(value)}
    for _ in range(limit):
        following: list[object] = []
        for item in level:
            for part in _parts(item):
                if isinstance(part, (tuple, list, dict, Stub)) and id(part) not in seen:
                    seen.add(id(part))
                    following.append(part)
        if not following:
            return
        level = following
    refuse(f"values nested more than {limit} levels deep")


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (tuple, list)):
        return value
    return value.parts() if isinstance(value, Stub) else ()


_STOP = ord(".")
_REFUSED = {
    ord("i"): "INST: makes an object",
    ord("o"): "OBJ: makes an object",
    ord("P"): "PERSID: names something outside of the file",
    0x82: "EXT1: names a registered extension",
    0x83: "EXT2: names a registered extension",
    0x84: "EXT4: names a registered extension",
    0x92: "NEWOBJ_EX: makes an object with keywords",
    0x97: "NEXT_BUFFER: needs a buffer outside of the file",
    0x98: "READONLY_BUFFER: needs a buffer outside of the file",
    ord("I"): "INT: a text number of protocol 0",
    ord("L"): "LONG: a text number of protocol 0",
    ord("F"): "FLOAT: a text number of protocol 0",
    ord("S"): "STRING: quoted text of protocol 0",
    ord("V"): "UNICODE: escaped text of protocol 0",
}


def _protocol(machine: Machine) -> None:
    version = machine.number("<B")
    if version > 5:
        refuse(f"pickle protocol {version}; known are those up to 5")


def _frame(machine: Machine) -> None:
    size = machine.number("<Q")
    machine.take(size)  # it must be there, but its contents are read as what follows
    machine.position -= size


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.find(module, name)


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.extend_list([value])


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.extend_dict([key, value])


def _binary_float(machine: Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _latin_text(machine: Machine, size: int) -> None:
    raw = machine.take(size)
    machine.budget.copy(size)
    machine.push(str(raw, "latin-1"))


_dict = dict[int, Callable[[Machine], None]]
_FIXED: _dict = {
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    0x8F: lambda m: m.push(set()),
    ord(")"): lambda m: m.push(()),
    ord("("): Machine.fence,
    ord("0"): lambda m: _discard(m),
    ord("1"): lambda m: _discard(m, fence=True),
    ord("2"): lambda m: m.push(m.top()),
    ord("l"): lambda m: m.push(m.unfence()),
    ord("d"): lambda m: _make_dict(m),
    ord("t"): lambda m: m.push(tuple(m.unfence())),
    0x85: lambda m: m.group(1),
    0x86: lambda m: m.group(2),
    0x87: lambda m: m.group(3),
    0x91: lambda m: m.push({_key(item) for item in m.unfence()}),
    0x80: _protocol,
    0x95: _frame,
}
_NUMBERS: _dict = {
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("J"): lambda m: m.push(m.number("<i")),
    0x8A: lambda m: m.integer(m.number("<B")),
    0x8B: lambda m: m.integer(m.number("<i")),
    ord("G"): _binary_float,
}
_TEXTS: _dict = {
    0x8C: lambda m: m.text(m.number("<B")),
    ord("X"): lambda m: m.text(m.number("<I")),
    0x8D: lambda m: m.text(m.number("<Q")),
    ord("U"): lambda m: _latin_text(m, m.number("<B")),
    ord("T"): lambda m: _latin_text(m, m.number("<i")),
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    0x96: lambda m: m.push(m.take(m.number("<Q"))),
}
_CHANGES: _dict = {
    ord("a"): _append,
    ord("e"): lambda m: m.extend_list(m.unfence()),
    ord("s"): _set_item,
    ord("u"): lambda m: m.extend_dict(m.unfence()),
    0x90: lambda m: m.extend_set(m.unfence()),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
}
_NAMED: _dict = {
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: _stack_global,
    ord("R"): lambda m: m.apply(new=False),
    0x81: lambda m: m.apply(new=True),
    ord("b"): Machine.build,
    ord("Q"): Machine.persist,
}


def _discard(machine: Machine, *, fence: bool = False) -> None:
    if fence:
        machine.unfence()
    else:
        machine.pop()


def _make_dict(machine: Machine) -> None:
    items = machine.unfence()
    machine.push({})
    machine.extend_dict(items)


Machine.operations.update(_FIXED | _NUMBERS | _TEXTS | _CHANGES | _NAMED)


def load(data: memoryview, names: Names, budget: Budget) -> object:
    """The value of the pickle at the start of ``data``. Raises ``ConfigError`` and says why."""
    return Machine(data=data, names=names, budget=budget).run()
