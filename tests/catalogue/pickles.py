"""Pickles in the archives of torch.save that would run code, take all memory, or make nonsense."""

from __future__ import annotations

import pickle
import struct
import zipfile

from tests.catalogue.table import AS_FINETUNED, Make, given, refused, refused_files

BAD = "bad.pt"


def pickled(content: bytes) -> Make:
    """Makes an archive of this pickle and the records of a small tensor."""
    return lambda: archive(BAD, content)


def archive(path: str, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w") as made:
        records = {"data.pkl": content, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"}
        for name, one in records.items():
            made.writestr(f"x/{name}", one, method)


START = b"\x80\x02"
MKDIR = b"cposix\nmkdir\n"
ARGUMENTS = b"X\x06\x00\x00\x00canary\x85"
RUN = MKDIR + ARGUMENTS + b"R"
STORED = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n"
MILLION = b"J" + struct.pack("<i", 10**6)
N = 100_000


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def long(value: int) -> bytes:
    content = pickle.encode_long(value)
    return b"\x8a" + bytes([len(content)]) + content


def tensor(offset: bytes, shape: bytes, strides: bytes, stored: bytes = STORED) -> bytes:
    """A tensor of these."""
    return TENSOR + b"(" + stored + offset + shape + strides + b"\x89" + ORDERED + b")RtR"


PLAIN = tensor(b"K\x00", b"K\x02K\x02\x86", b"K\x02K\x01\x86")


def named(value: bytes) -> bytes:
    """A state dict of a tensor `block.weight` and of this, `b`."""
    return START + b"}" + text("block.weight") + PLAIN + b"s" + text("b") + value + b"s."


def alone(value: bytes) -> bytes:
    """A state dict of `a`, which is this."""
    return START + b"}" + text("a") + value + b"s."


FOREIGN = "holds an object that is not a tensor"
MALFORMED = "its pickle is malformed"
UNKNOWN = "which torch does not write"
PICKLES: dict[str, tuple[bytes, str]] = {
    # that would run code
    "REDUCE": (named(RUN), FOREIGN),
    "REDUCE of what eval makes": (
        named(b"c__builtin__\neval\n" + text("__import__('os').mkdir('canary')") + b"\x85R"),
        FOREIGN,
    ),
    "REDUCE of an attribute": (
        named(
            b"c__builtin__\ngetattr\n"
            + b"cos\nsystem\n"
            + text("__call__")
            + b"\x86R"
            + text("mkdir canary")
            + b"\x85R"
        ),
        FOREIGN,
    ),
    "REDUCE as a key": (START + b"}" + RUN + PLAIN + b"s.", "a name in the state dict is not text"),
    "REDUCE as the shape": (alone(tensor(b"K\x00", RUN, b"K\x01\x85")), MALFORMED),
    "REDUCE as the storage": (alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", RUN)), MALFORMED),
    "REDUCE as the key of a storage": (
        alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(text("0"), RUN))),
        MALFORMED,
    ),
    "REDUCE as the class of a storage": (
        alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(b"ctorch\nFloatStorage\n", RUN))),
        "a dtype that safetensors does not have",
    ),
    "REDUCE as the pairs of a dict": (START + ORDERED + b"(" + RUN + b"tR.", MALFORMED),
    "REDUCE in BUILD": (alone(PLAIN + RUN + b"b"), MALFORMED),
    "REDUCE of a tensor's function": (named(RUN + b")R"), FOREIGN),
    "REDUCE of a number": (named(b"K\x01)R"), MALFORMED),
    "REDUCE with a list of arguments": (named(MKDIR + b"](" + text("canary") + b"eR"), MALFORMED),
    "BUILD that sets a state": (
        named(b"cargparse\nNamespace\n)R}" + text("__setstate__") + MKDIR + b"sb"),
        FOREIGN,
    ),
    "BUILD of a dict's attributes": (
        START + b"}" + text("a") + PLAIN + b"s}" + text("__class__") + RUN + b"sb" + text("b") + b"K\x01s.",
        "'b' is not a tensor",
    ),
    "NEWOBJ": (named(b"csubprocess\nPopen\n" + text("true") + b"\x85\x81"), FOREIGN),
    "NEWOBJ_EX": (named(b"csubprocess\nPopen\n" + text("true") + b"\x85}\x92"), FOREIGN),
    "STACK_GLOBAL": (named(text("posix") + text("mkdir") + b"\x93" + ARGUMENTS + b"R"), FOREIGN),
    "STACK_GLOBAL of dots": (
        named(text("torch") + text("serialization.os.system") + b"\x93" + ARGUMENTS + b"R"),
        FOREIGN,
    ),
    "STACK_GLOBAL of numbers": (named(b"K\x01K\x02\x93"), MALFORMED),
    "STACK_GLOBAL of a megabyte": (named(text("x" * 1_000_000) + text("y") + b"\x93"), MALFORMED),
    "GLOBAL of torch's own loader": (named(b"ctorch\nload\n" + text("x.pt") + b"\x85R"), FOREIGN),
    "GLOBAL of a module to import": (named(b"cantigravity\nx\n)R"), FOREIGN),
    "GLOBAL of control characters": (named(b"c\x1b[2J\n\x07\n)R"), FOREIGN),
    "GLOBAL that is no ASCII": (named("cé\n\u202e\n)R".encode()), MALFORMED),
    "INST": (named(b"(" + text("canary") + b"iposix\nmkdir\n"), "the operation INST, " + UNKNOWN),
    "OBJ": (named(b"(" + MKDIR + text("canary") + b"o"), "the operation OBJ, " + UNKNOWN),
    "EXT1": (named(b"\x82\x01"), "the operation EXT1, " + UNKNOWN),
    "EXT2": (named(b"\x83\x01\x00"), "the operation EXT2, " + UNKNOWN),
    "EXT4": (named(b"\x84\x01\x00\x00\x00"), "the operation EXT4, " + UNKNOWN),
    "PERSID": (named(b"Pstorage\n"), "the operation PERSID, " + UNKNOWN),
    "NEXT_BUFFER": (named(b"\x97"), "the operation NEXT_BUFFER, " + UNKNOWN),
    "READONLY_BUFFER": (named(b"\x98"), "the operation READONLY_BUFFER, " + UNKNOWN),
    "DUP": (named(b"K\x012"), "the operation DUP, " + UNKNOWN),
    "POP_MARK": (named(b"(K\x011"), "the operation POP_MARK, " + UNKNOWN),
    "DICT": (named(b"(d"), "the operation DICT, " + UNKNOWN),
    "LIST": (named(b"(l"), "the operation LIST, " + UNKNOWN),
    "INT": (named(b"I1\n"), "the operation INT, " + UNKNOWN),
    "INT of 9999 digits": (named(b"I" + b"9" * 9999 + b"\n"), MALFORMED),
    "LONG": (named(b"L1L\n"), "the operation LONG, " + UNKNOWN),
    "LONG4 of 2 GB": (named(b"\x8b\xff\xff\xff\x7f"), MALFORMED),
    "FLOAT": (named(b"F1e999\n"), "the operation FLOAT, " + UNKNOWN),
    "STRING of escapes": (named(b"S'\\x41'\n"), "the operation STRING, " + UNKNOWN),
    "UNICODE": (named(b"Vx\n"), "the operation UNICODE, " + UNKNOWN),
    "GET of text": (named(b"g1\n"), "the operation GET, " + UNKNOWN),
    "PUT of text": (named(b"p1\n"), "the operation PUT, " + UNKNOWN),
    "PUT of a negative place": (named(b"p-1\n"), "the operation PUT, " + UNKNOWN),
    "an operation that is none": (named(b"\xff"), MALFORMED),
    # that are no program
    "nothing": (b"", MALFORMED),
    "STOP alone": (b".", MALFORMED),
    "no STOP": (START + b"}", MALFORMED),
    "two STOPs": (START + b"}..", "the state dict is empty"),
    "a protocol that does not exist": (b"\x80\xff}.", "the state dict is empty"),
    "SETITEM without a dict": (START + b"s.", MALFORMED),
    "SETITEM on a list": (START + b"]K\x01K\x02s.", MALFORMED),
    "SETITEMS of an odd number": (START + b"}(K\x01u.", MALFORMED),
    "APPENDS on a dict": (START + b"}(K\x01e.", MALFORMED),
    "GET of what is not there": (START + b"h\x00.", MALFORMED),
    "PUT of nothing": (START + b"q\x00.", MALFORMED),
    "PUT at 2^31": (START + b"}r\xff\xff\xff\x7f(e.", MALFORMED),
    "TUPLE without a mark": (START + b"t.", MALFORMED),
    "a mark that stays open": (START + b"(}.", "the state dict is empty"),
    "POP of nothing": (START + b"0.", MALFORMED),
    "text of 4 GB": (START + b"X\xff\xff\xff\xffa.", MALFORMED),
    "text of 2^63 bytes": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.", MALFORMED),
    "text that is no UTF-8": (START + b"}X\x01\x00\x00\x00\xffK\x01s.", MALFORMED),
    "GLOBAL without an end": (START + b"ctorch\n", MALFORMED),
    "a frame that is cut": (b"\x80\x04\x95", MALFORMED),
    "a frame of 2^64 bytes": (b"\x80\x04\x95" + b"\xff" * 8 + b"}.", "c"),
    "a storage of nothing": (START + b"Q.", MALFORMED),
    "a storage of a number": (START + b"K\x01Q.", MALFORMED),
    "a storage with a state": (START + STORED + b"}b.", MALFORMED),
    "a storage as the state dict": (START + STORED + b".", "not a state dict: found a Storage"),
    "a function as the state dict": (START + MKDIR + b".", "not a state dict: found a Global"),
    "a dict in itself": (START + b"}q\x00" + text("model") + b"h\x00s.", "c"),
    "a list in itself": (START + b"]q\x00h\x00a.", "not a state dict: found a list"),
    "a tensor of itself": (alone(TENSOR + b"(" + STORED + b"K\x00)q\x05h\x05\x89)tR"), "c"),
    # tensors that lie
    "a tensor of stride 0": (
        alone(tensor(b"K\x00", MILLION * 2 + b"\x86", b"K\x00K\x00\x86")),
        "elements overlap",
    ),
    "a tensor beyond its storage": (
        alone(tensor(b"K\x00", MILLION * 2 + b"\x86", MILLION + b"K\x01\x86")),
        "beyond its storage",
    ),
    "an offset beyond the storage": (
        alone(tensor(b"K\x02", b"K\x03\x85", b"K\x01\x85")),
        "beyond its storage",
    ),
    "an offset of 2^70": (alone(tensor(long(2**70), b"K\x01\x85", b"K\x01\x85")), "beyond its storage"),
    "a negative offset": (alone(tensor(long(-4), b"K\x03\x85", b"K\x01\x85")), MALFORMED),
    "a negative size": (alone(tensor(b"K\x00", long(-1) + b"\x85", b"K\x01\x85")), MALFORMED),
    "a negative stride": (alone(tensor(b"K\x03", b"K\x02\x85", long(-1) + b"\x85")), MALFORMED),
    "a size of 2^1000": (
        alone(tensor(b"K\x00", long(2**1000) + b"\x85", b"K\x01\x85")),
        "the shape overflows",
    ),
    "zero, then overflow": (
        alone(tensor(b"K\x00", b"K\x00" + long(2**40) * 2 + b"\x87", b"K\x01K\x01K\x01\x87")),
        "the shape overflows",
    ),
    "more strides than sizes": (alone(tensor(b"K\x00", b"K\x02\x85", b"K\x01K\x01\x86")), MALFORMED),
    "true as a size": (alone(tensor(b"K\x00", b"\x88\x85", b"K\x01\x85")), MALFORMED),
    "a fraction as a size": (
        alone(tensor(b"K\x00", b"G?\xf0\x00\x00\x00\x00\x00\x00\x85", b"K\x01\x85")),
        MALFORMED,
    ),
    "text as a shape": (alone(tensor(b"K\x00", text("2"), text("1"))), MALFORMED),
    "a storage of 2^70 elements": (
        alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(b"K\x04", long(2**70)))),
        "differ in size",
    ),
    "a storage of another key": (
        alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(text("0"), text("9")))),
        "its elements are not in the file",
    ),
    "a storage whose key leads out": (
        alone(
            tensor(
                b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(text("0"), text("../../../etc/hostname"))
            )
        ),
        "its elements are not in the file",
    ),
    "a storage whose key is the pickle": (
        alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(text("0"), text("../data.pkl")))),
        "its elements are not in the file",
    ),
    "a storage that is no storage": (
        alone(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(text("storage"), text("module")))),
        MALFORMED,
    ),
    # that take far more than they are
    "a name that takes 2^60 steps": (
        START + b"}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
        "not text: found tuple",
    ),
    "a name half a million deep": (START + b"})" + b"\x85" * 500_000 + b"K\x01s.", "not text: found tuple"),
    "a list of pairs copied over and over": (
        START
        + b"]("
        + b"K\x01K\x02\x86" * (N // 5)
        + b"e\x85q\x00("
        + ORDERED
        + b"q\x01"
        + b"h\x01h\x00R" * (N // 5)
        + b"t.",
        "far more work than its size warrants",
    ),
    "a storage of 64 GB": (START + b"ctorch.storage\nUntypedStorage\n" + long(2**36) + b"\x85R.", FOREIGN),
    "an array of 64 GB": (START + b"c__builtin__\nbytearray\n" + long(2**36) + b"\x85R.", FOREIGN),
    "numbers of one hash": (
        START + b"}(" + b"".join(long(one * (2**61 - 1)) + b"K\x01" for one in range(N)) + b"u.",
        "not text: found 0",
    ),
    "dicts of dicts of the same": (
        START + b"](}q\x00" + b"".join(text(f"{one}") + b"h\x00s" for one in range(100)) + b"e.",
        "not a state dict: found a list",
    ),
}

ROWS = [
    *refused_files({name: (pickled(content), words) for name, (content, words) in PICKLES.items()}, BAD),
    refused(
        "six million operations",  # a file of 150,000 tensors has nearly as many
        pickled(START + b"]" + b"]0" * 3_000_000 + b"."),
        BAD,
        "its pickle has too many parts",
        lines=given(BAD, [AS_FINETUNED]),
        seconds=6,
    ),
]

THOROUGH = {"six million operations", "a name half a million deep"}
