"""The corpus: name ↦ (content, words that the refusal must have). ``canary`` is the file that a payload would make."""

from __future__ import annotations

import struct
import zipfile

from tests.hostile.pickling import (
    archive,
    blob,
    call,
    floats,
    items,
    legacy,
    mapping,
    module,
    name,
    number,
    patched,
    pickle,
    repeated,
    root,
    stacked,
    storage,
    tensor,
    text,
)

Corpus = dict[str, tuple[bytes, str]]

FUNCTIONS = (
    "os system",
    "posix system",
    "nt system",
    "subprocess Popen",
    "builtins eval",
    "builtins exec",
    "builtins compile",
    "builtins open",
    "builtins __import__",
    "builtins getattr",
    "__builtin__ eval",
    "importlib import_module",
    "runpy run_path",
    "operator attrgetter",
    "functools partial",
    "types FunctionType",
    "marshal loads",
    "pickle loads",
    "_pickle loads",
    "socket create_connection",
    "webbrowser open",
    "ctypes CDLL",
    "shutil rmtree",
    "urllib.request urlopen",
    "numpy load",
    "numpy fromfile",
    "numpy.f2py.crackfortran myeval",
    "numpy.testing._private.utils runstring",
    "torch load",
    "torch.hub load",
    "torch.jit.unsupported_tensor_ops execWrapper",
    "torch.utils.collect_env run",
    "torch_utils.persistence import_hook",
    "dnnlib.util open_url",
    "dnnlib.util call_func_by_name",
    "collections OrderedDict.__init__.__globals__",
    "_codecs lookup",
    "copyreg _reconstructor",
    "api.models.formats.pickles load",
)


def calls(canary: str) -> Corpus:
    """Each opcode that names, makes or calls something."""
    command = text(f"touch {canary}")
    found: Corpus = {}
    for path in FUNCTIONS:
        found[f"GLOBAL {path}"] = pickle(name(path) + items(command) + b"R"), path.replace(" ", ".")
        found[f"STACK_GLOBAL {path}"] = pickle(stacked(path) + items(command) + b"R", 4), path.replace(" ", ".")
    target = name("collections OrderedDict")
    return found | {
        "INST": (pickle(b"(" + command + b"ios\nsystem\n"), "INST"),
        "OBJ": (pickle(b"(" + name("collections OrderedDict") + command + b"o"), "OBJ"),
        "NEWOBJ of a function": (pickle(name("torch._utils _rebuild_tensor_v2") + items(command) + b"\x81"), "only permitted as a name"),
        "NEWOBJ of os.system": (pickle(name("os system") + items(command) + b"\x81"), "os.system"),
        "NEWOBJ_EX": (pickle(target + items() + mapping(x=command) + b"\x92", 4), "NEWOBJ_EX"),
        "EXT1": (pickle(b"\x82\x01"), "EXT1"),
        "EXT2": (pickle(b"\x83\x01\x00"), "EXT2"),
        "EXT4": (pickle(b"\x84\x01\x00\x00\x00"), "EXT4"),
        "PERSID": (pickle(b"Pfile:///etc/passwd\n"), "PERSID"),
        "BINPERSID": (pickle(command + b"Q"), "persistent id"),
        "NEXT_BUFFER": (pickle(b"\x97", 5), "NEXT_BUFFER"),
        "READONLY_BUFFER": (pickle(blob(b"x") + b"\x98", 5), "READONLY_BUFFER"),
        "BUILD on text": (pickle(command + mapping(x=command) + b"b"), "sets the state"),
        "BUILD on a name": (pickle(target + mapping(__setstate__=command) + b"b"), "sets the state"),
        "BUILD on a module": (root(module() + mapping(__class__=command) + b"b"), "sets the state"),
        "BUILD on a list": (pickle(b"]" + mapping(append=command) + b"b"), "sets the state"),
        "REDUCE of text": (pickle(text("os.system") + items(command) + b"R"), "not a permitted name"),
        "REDUCE of a stub": (pickle(call("collections OrderedDict") + items(command) + b"R"), "not a permitted name"),
        "REDUCE of a constant": (pickle(name("torch FloatStorage") + items(command) + b"R"), "only permitted as a name"),
        "REDUCE with a list": (pickle(target + b"](" + command + b"eR"), "not a permitted name"),
        "APPEND to a stub": (pickle(module() + command + b"a"), "appends"),
        "SETITEM of a module": (pickle(module() + text("state") + command + b"s"), "sets items"),
        "unknown opcode": (pickle(b"\xff"), "0xff"),
        "protocol 9": (b"\x80\x09N.", "protocol 9"),
        "dtype of objects": (pickle(call("numpy dtype", text("O8"), b"\x89", b"\x88")), "plain numbers"),
        "dtype with metadata": (
            pickle(call("numpy dtype", text("f4"), b"\x89", b"\x88") + items(number(4), text("<"), mapping(a=command), b"N", b"N") + b"b"),
            "structures or objects",
        ),
        "codecs": (pickle(call("_codecs encode", command, text("zlib"))), "_codecs.encode"),
        "reconstruct another class": (
            pickle(call("numpy.core.multiarray _reconstruct", name("collections OrderedDict"), items(number(0)), blob(b"b"))),
            "something else than an array",
        ),
        "module of another kind": (
            pickle(call("torch_utils.persistence _reconstruct_persistent_obj", mapping(type=text("func")))),
            "module",
        ),
    }


def nested(canary: str) -> Corpus:
    """Streams inside of streams."""
    command = text(f"touch {canary}")
    evil = call("os system", command)

    def inside(stream: bytes) -> bytes:
        return root(module(parameters=mapping(w=tensor((4,), (1,), stream))))

    return {
        "nested legacy stream": (inside(legacy(evil)), "os.system"),
        "nested first pickle": (inside(b"\x80\x02" + evil + b"."), "os.system"),
        "nested system pickle": (inside(floats()[:21] + b"\x80\x02" + evil + b"."), "os.system"),
        "nested list of storages": (inside(legacy(storage(), evil)), "os.system"),
        "nested plain pickle": (inside(b"\x80\x02" + evil + b"."), "os.system"),
        "nested zip": (inside(archive({"data.pkl": b"\x80\x02" + evil + b".", "version": b"3\n"})), "os.system"),
        "nested in nested": (inside(legacy(call("torch.storage _load_from_bytes", blob(legacy(evil))))), "_load_from_bytes"),
        "nested persistent module": (inside(legacy(module())), "_reconstruct_persistent_obj"),
        "nested tar": (inside(b"ustar" * 200), "MARK"),
        "nested tensor instead of a storage": (inside(legacy(b"]")), "something else than a storage"),
        "foreign persistent id": (inside(legacy(items(text("module"), command) + b"Q")), "persistent id"),
        "storage of another kind": (inside(legacy(storage(kind="collections OrderedDict"))), "persistent id"),
    }


def zips(canary: str) -> Corpus:
    """Archives that lie. Their marker lets the torch formats recognise them."""
    marker = text("conv1.conv.modulation.weight") + b"0"
    evil = b"\x80\x02" + marker + call("os system", text(f"touch {canary}")) + b"."
    plain = b"\x80\x02" + marker + mapping(x=storage(4)) + b"."
    good = archive({"data.pkl": plain, "data/0": bytes(16), "version": b"3\n"})
    central, end = b"PK\x01\x02", b"PK\x05\x06"
    local = struct.pack("<I", 0)
    return {
        "zip with a call": (archive({"data.pkl": evil}), "os.system"),
        "zip bomb": (archive({"data.pkl": plain, "data/0": bytes(1 << 26)}, zipfile.ZIP_DEFLATED), "compressed"),
        "zip declared larger": (patched(good, central, 20, struct.pack("<2I", 1 << 30, 1 << 30)), "points to byte"),
        "zip stored but packed size differs": (patched(good, central, 20, struct.pack("<I", 1)), "compressed"),
        "zip encrypted": (patched(good, central, 8, b"\x01"), "encrypted"),
        "zip entries that overlap": (patched(good, central, 42, local), "share their bytes|checksum|elsewhere"),
        "zip with too many entries": (patched(good, end, 10, b"\xff\x7f"), "directory|points to byte"),
        "zip directory beyond": (patched(good, end, 16, struct.pack("<I", 1 << 30)), "points to byte"),
        "zip 64-bit directory missing": (patched(good, end, 16, b"\xff\xff\xff\xff"), "64-bit directory"),
        "zip without directory": (good[: good.rindex(end)], "without its directory"),
        "zip checksum": (good.replace(plain, plain.replace(b"cpu", b"gpu")), "checksum"),
        "zip storage missing": (archive({"data.pkl": plain}), "storage"),
        "zip storage short": (archive({"data.pkl": plain, "data/0": bytes(8)}), "storage"),
        "zip without pickle": (archive({"x": plain}), "no single data.pkl"),
        "zip in big-endian order": (archive({"data.pkl": plain, "data/0": bytes(16), "byteorder": b"big"}), "big-endian"),
        "zip of a list": (archive({"data.pkl": b"\x80\x02" + marker + b"]."}), "dictionary"),
        "zip of something else": (good, "resolutions"),
    }


def sizes() -> Corpus:
    """Lengths, counts and shapes that lie."""
    huge = 1 << 39

    def parameter(part: bytes) -> bytes:
        return root(module(parameters=mapping(w=part)))

    array = call("numpy.core.multiarray _reconstruct", name("numpy ndarray"), items(number(0)), blob(b"b"))
    dtype = call("numpy dtype", text("f4"), b"\x89", b"\x88")

    def ndarray(shape: tuple[int, ...], data: bytes, kind: bytes = dtype) -> bytes:
        return array + items(number(1), items(*map(number, shape)), kind, b"\x89", blob(data)) + b"b"

    def network(**state: bytes) -> bytes:
        return name("dnnlib.tflib.network Network") + b")\x81" + mapping(**state) + b"b"

    def synthesis(before: bytes = b"", **variables: bytes) -> bytes:
        listed = b"](" + b"".join(items(text(path), part) for path, part in variables.items()) + b"e"
        return pickle(before + items(network(components=mapping(synthesis=network(variables=listed), mapping=network()))))

    biases = {f"{side}x{side}/Conv/mod_bias": b"h\x01" for side in range(400)}
    octets = call("numpy dtype", text("u1"), b"\x89", b"\x88")
    return {
        "BINBYTES8": (pickle(b"\x8e" + struct.pack("<Q", 1 << 62) + b"x"), "are left"),
        "BINUNICODE8": (pickle(b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x"), "are left"),
        "BYTEARRAY8": (pickle(b"\x96" + struct.pack("<Q", 1 << 40) + b"x", 5), "are left"),
        "BINSTRING negative": (pickle(b"T" + struct.pack("<i", -1)), "are left"),
        "FRAME": (pickle(b"\x95" + struct.pack("<Q", 1 << 50), 4), "are left"),
        "LONG4": (pickle(b"\x8b" + struct.pack("<i", 1 << 30)), "integer of"),
        "LONG4 negative": (pickle(b"\x8b" + struct.pack("<i", -5)), "are left"),
        "LONG1 of 255 bytes": (pickle(b"\x8a\xff" + bytes(255)), "integer of"),
        "GLOBAL without end": (pickle(b"c" + b"a" * 10_000), "longer than"),
        "text that is not UTF-8": (pickle(b"\x8c\x02\xff\xfe", 4), "UTF-8"),
        "expanded tensor": (parameter(tensor((huge,), (0,), floats())), "in a storage of"),
        "expanded tensor of many axes": (parameter(tensor((1 << 20, 1 << 20, 1 << 20), (0, 0, 0), floats())), "in a storage of"),
        "tensor beyond its storage": (parameter(tensor((2, 3), (3, 1), floats())), "in a storage of"),
        "tensor with an offset beyond": (parameter(tensor((4,), (1,), floats(), 1)), "in a storage of"),
        "tensor with a negative offset": (parameter(tensor((1,), (1,), floats(), -1)), "unexpected arguments"),
        "tensor with negative strides": (parameter(tensor((4,), (-1,), floats(), 3)), "sizes"),
        "tensor of nine axes": (parameter(tensor((1,) * 9, (1,) * 9, floats())), "eight"),
        "tensor without strides": (parameter(tensor((4,), (), floats())), "strides"),
        "storage told larger": (parameter(tensor((4,), (1,), floats(told=huge))), "differ"),
        "storage counted larger": (parameter(tensor((4,), (1,), floats(told=huge, size=huge))), "are left"),
        "storage counted negative": (parameter(tensor((4,), (1,), floats(size=-4))), "differ"),
        "storage without numbers": (parameter(tensor((4,), (1,), legacy(storage()))), "not in the file|no synthesis"),
        "array told larger": (pickle(array + items(number(1), items(number(huge)), dtype, b"\x89", blob(b"1234")) + b"b"), "in 4 bytes"),
        "array with a negative size": (
            pickle(array + items(number(1), items(number(-1)), dtype, b"\x89", blob(b"")) + b"b"),
            "eight sizes",
        ),
        "array of a list": (pickle(array + items(number(1), items(number(1)), dtype, b"\x89", b"]") + b"b"), "unexpected state"),
        "scalar": (pickle(call("numpy.core.multiarray scalar", dtype, blob(b"12345678"))), "in 8 bytes"),
        "const without elements": (synthesis(**{"4x4/Const/const": ndarray((0, 1, 4, 4), b"")}), "resolutions"),
        "resolution that is no number": (synthesis(**{"fooxbar/Conv1/weight": ndarray((1, 1, 1, 1), bytes(4))}), "resolutions"),
        "one array as many biases": (synthesis(ndarray((1 << 17,), bytes(1 << 17), octets) + b"q\x010", **biases), "resolutions"),
    }


def shapes() -> Corpus:
    """What is nested, repeated or linked to itself."""
    lists = b"]" * 20_000 + b"a" * 19_999
    linked = module(children=mapping(a=b"h\x07"))
    twice = b"}(" + text("a") + b"h\x01" + text("b") + b"h\x01u"
    chain = module() + b"q\x01" + repeated(b"0" + module(children=twice) + b"q\x01", 30)
    keys = repeated(b"", 10_000, lambda i: number(i * ((1 << 61) - 1)) + b"N")
    encode = name("_codecs encode") + b"h\x01" + text("latin1") + b"\x86R0"
    stream = floats(20_000)
    load = name("torch.storage _load_from_bytes") + b"h\x02\x85R0"
    listed = b"](" + repeated(b"", 2000, number) + b"e\x85q\x010"
    many = tensor((4,), (1,), floats()) + b"q\x010" + module(parameters=mapping(**{f"p{i}": b"h\x01" for i in range(80)})) + b"q\x020"
    endless = module(
        kind="SynthesisNetwork",
        children=mapping(input=module(), L0=module(kind="SynthesisLayer")),
        body=text("_init_kwargs") + mapping(filter_size=b"G" + struct.pack(">d", float("inf"))),
    )
    return {
        "nested tuples": (pickle(b")" + b"\x85" * 20_000), "levels deep"),
        "nested lists": (pickle(lists), "levels deep"),
        "nested dictionaries": (pickle(repeated(b"}" + text("a"), 5000) + b"N" + b"s" * 5000), "levels deep"),
        "nested modules": (root(module() + repeated(b"q\x03" + b"0" + module(children=mapping(a=b"h\x03")), 60)), "levels"),
        "a hundred thousand marks": (pickle(b"(" * 100_000), "STOP|leaves|empty stack"),
        "list in itself": (pickle(b"]q\x00h\x00a"), "no 'G_ema'"),
        "module in itself": (pickle(b"}q\x07(" + text("G_ema") + linked + b"u"), "synthesis"),
        "modules used twice, thirty times over": (root(chain), "modules or 16 levels"),
        "many tensors in a module used many times": (
            root(many + module(children=mapping(**{f"m{i}": b"h\x02" for i in range(80)}))),
            "modules and tensors",
        ),
        "tensor of a long name": (
            root(module(children=mapping(**{"x" * 1001: module(parameters=mapping(w=tensor((4,), (1,), floats())))}))),
            "longer than 1000",
        ),
        "filter of infinite size": (root(module(children=mapping(synthesis=endless))), "inf where a number is expected"),
        "list walked again and again": (pickle(listed + (name("builtins set") + b"h\x01R0") * 400 + b"N"), "operations"),
        "more operations than any checkpoint": (pickle(b"N0" * 260_000), "operations"),
        "text encoded again and again": (pickle(text("x" * 100_000) + b"q\x010" + encode * 1000), "times its size"),
        "stream loaded again and again": (pickle(blob(stream) + b"q\x020" + load * 1000), "times its size"),
        "memo beyond memory": (pickle(b"N" + repeated(b"r", 1000, lambda i: struct.pack("<I", (1 << 32) - 1 - i))), "no 'G_ema'"),
        "recalls what is not there": (pickle(b"h\x63"), "recalls"),
        "keys whose hashes collide": (pickle(b"}(" + keys + b"u"), "key"),
        "unhashable key": (pickle(b"}]Ns"), "key"),
        "tuple as a key": (pickle(b"}" + items(number(1)) + b"Ns"), "key"),
        "odd number of items": (pickle(b"}(Nu"), "sets items"),
        "empty stack": (b"\x80\x020.", "empty stack"),
        "leftovers": (pickle(b"NN"), "leaves values"),
        "no stop": (pickle(b"N")[:-1], "are left"),
        "empty": (b"", "cannot be read"),
        "unfence without mark": (pickle(b"t"), "MARK"),
        "not a dictionary": (pickle(b"N"), "G_ema"),
        "generator without synthesis": (root(module()), "no synthesis"),
        "generator of another class": (root(module(kind="Popen")), "G_ema"),
    }


def everything(canary: str) -> Corpus:
    return calls(canary) | nested(canary) | zips(canary) | sizes() | shapes()
