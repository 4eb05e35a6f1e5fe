"""Ways to damage bytes, texts, tables, pickles and archives: each takes a `random.Random`, so each can be repeated."""

import io
import json
import pickletools
import struct
import warnings
import zipfile
from random import Random
from typing import Any

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**63 - 1,
    2**64,
)
HOSTILE = (
    "",
    "\0",
    "a\nb\r\nc\td",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "\u202eright-to-left\u2066\u200b\ufeff",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</td></tr></table>&amp;&lt;\"'`",
    "]]><!-- --><?xml version='1.0'?>",
    "[bold red]x[/bold red][link=file:///etc/passwd]y[/link]",
    "| a | b |\n|---|---|\n![x](http://example.com/x.png) [y](javascript:alert(1)) `code` **b**",
    "::error file=a::b\n::set-output name=c::d%0A",
    "../../etc/passwd",
    "/etc/passwd",
    "\ud800\udfff lone",
    "\ue000\uffff\U000e0001\u2028\u2029",
    "e\u0301" * 50,
    "=cmd|' /C calc'!A0",
    "%s%n{0}{__class__}${HOME}",
    "x" * 10_000,
    ("<b>" + "\x1b[1m\u202e" + "word ") * 700,
    "-" * 3000 + ">",
    "nan",
    "1e999",
)
GLOBALS = (
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "subprocess Popen"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_parameter"),
    *("torch LongStorage", "torch BoolStorage", "torch ComplexDoubleStorage", "torch float16", "torch Size"),
    *(
        "collections OrderedDict",
        "argparse Namespace",
        "numpy dtype",
        "numpy ndarray",
        "torch.nn.modules.linear Linear",
    ),
    *(
        "torch.storage _load_from_bytes",
        "numpy._core.multiarray scalar",
        "torch._utils _rebuild_device_tensor_from_numpy",
    ),
)
SONG = b"cos\nsystem\n(S'touch sang'\ntR."  # a pickle that leaves a file `sang`


def damaged(data: bytes, rng: Random, others: tuple[bytes, ...] = (), words: tuple[bytes, ...] = ()) -> bytes:
    """Return bytes with one to four faults: flips, cuts, splices, lengths, repeats, tokens."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_FAULTS)(bytearray(data), rng, others or (data,), words or (b"\0",))
    return data


def _place(data: bytearray, rng: Random) -> int:
    # headers and tails hold the structure
    near = rng.choice((len(data), min(len(data), 64), 512))
    at = rng.randrange(min(near, len(data)) or 1)
    return at if rng.random() < 0.7 else max(0, len(data) - 1 - at)


def _flip(data: bytearray, rng: Random, *_: Any) -> bytes:
    for _i in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _byte(data: bytearray, rng: Random, *_: Any) -> bytes:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(data)


def _cut(data: bytearray, rng: Random, *_: Any) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _drop(data: bytearray, rng: Random, *_: Any) -> bytes:
    at = _place(data, rng)
    return bytes(data[:at] + data[at + rng.choice((1, 2, 4, 8, 100)) :])


def _repeat(data: bytearray, rng: Random, *_: Any) -> bytes:
    at, size = _place(data, rng), rng.choice((1, 4, 8, 64, 1000))
    return bytes(data[:at] + data[at : at + size] * rng.choice((2, 3, 50)) + data[at + size :])


def _splice(data: bytearray, rng: Random, others: tuple[bytes, ...], _words: Any) -> bytes:
    other = rng.choice(others)
    return bytes(data[: _place(data, rng)]) + other[rng.randrange(len(other) or 1) :]


def _length(data: bytearray, rng: Random, *_: Any) -> bytes:
    size, order, value = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big")), rng.choice(NUMBERS)
    at = _place(data, rng)
    data[at : at + size] = (value % 256**size).to_bytes(size, order)  # type: ignore[arg-type]  # either order, drawn
    return bytes(data)


def _token(data: bytearray, rng: Random, _others: Any, words: tuple[bytes, ...]) -> bytes:
    at, word = _place(data, rng), rng.choice(words)
    over = len(word) if rng.random() < 0.5 else 0
    data[at : at + over] = word
    return bytes(data)


_FAULTS = (_flip, _flip, _byte, _cut, _drop, _repeat, _splice, _length, _length, _token)


def changed_text(text: str, rng: Random, words: tuple[str, ...]) -> str:
    """Return a text whose words, lines or characters are replaced, dropped, doubled or swapped."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        way = rng.randrange(6)
        if way == 0:
            pieces = text.split("\n")
            at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
            pieces[at] = rng.choice(("", pieces[other], pieces[at] + pieces[other]))
            text = "\n".join(pieces)
            continue
        at = rng.randrange(len(text) + 1)
        word = rng.choice((*words, *HOSTILE, *map(str, NUMBERS)))
        end = {1: at, 2: at + 1, 3: at + rng.choice((1, 3, 10, 100)), 4: _end_of_word(text, at), 5: at}[way]
        text = (
            text[:at]
            + ("" if way == 3 else word if way != 5 else chr(rng.choice((0, 9, 10, 27, 34, 39, 61, 91))))
            + text[end:]
        )
    return text


def _end_of_word(text: str, at: int) -> int:
    while at < len(text) and text[at] not in ' =,\n"[]{}':
        at += 1
    return at


def odd_value(rng: Random, depth: int = 0) -> Any:
    """Return a value that few expect at its place."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice((None, True, False, float("nan"), float("inf"), -0.0, 1e308, 5e-324))
    if kind <= 2:
        return rng.choice(NUMBERS) * rng.choice((1, 1, -1))
    if kind <= 4:
        return rng.choice(HOSTILE)
    if kind == 5 and depth < 2:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6 and depth < 2:
        return {str(odd_value(rng, 2)): odd_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    if kind == 7:
        nested: Any = []
        for _ in range(rng.choice((3, 60, 300))):
            nested = [nested]
        return nested
    return rng.random() * 10.0 ** rng.randrange(-30, 30)


def changed_table(value: Any, rng: Random) -> Any:
    """Return a copy of nested plain values in which one to three places are replaced, dropped or added."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return odd_value(rng)
        holder, key = rng.choice(places)
        way = rng.randrange(5)
        if way == 0 and isinstance(holder, dict):
            holder[rng.choice(HOSTILE) or "x"] = holder.pop(key)
        elif way == 1:
            del holder[key]
        elif way == 2:
            other, there = rng.choice(places)
            held = other.get(there) if isinstance(other, dict) else other[there] if there < len(other) else None
            holder[key] = json.loads(json.dumps(held))
        else:
            holder[key] = odd_value(rng)
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def changed_pickle(data: bytes, rng: Random) -> bytes:
    """Return a pickle in which numbers, names or opcodes are others; its frames and strings stay readable."""
    try:
        operations = list(pickletools.genops(data))
    except Exception:  # several pickles in a row, or one already damaged
        return damaged(data, rng)
    parts = [
        data[at:end] for (_, _, at), end in zip(operations, [*(o[2] for o in operations[1:]), len(data)], strict=True)
    ]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(operations))
        like = [i for i, one in enumerate(operations) if one[0].name == operations[at][0].name]
        at = rng.choice(like)
        parts[at] = _other_opcode(operations[at], parts, rng)
    return b"".join(part for part in parts)


def _other_opcode(operation: Any, parts: list[bytes], rng: Random) -> bytes:
    opcode, argument, _ = operation
    name = opcode.name
    if name == "FRAME":
        return b""
    if name.startswith(("BININT", "LONG", "INT")) and rng.random() < 0.9:
        value = rng.choice(NUMBERS) * rng.choice((1, 1, -1))
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw
    if name == "GLOBAL" and rng.random() < 0.9:
        return b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n"
    if "UNICODE" in name and rng.random() < 0.8:
        text = rng.choice((*HOSTILE, str(argument) + "x", "storage", "cuda:0", "cpu", "meta", "0")).encode(
            "utf-8", "replace"
        )
        return b"X" + struct.pack("<I", len(text)) + text
    way = rng.randrange(5)
    if way == 0:
        return b""
    if way == 1:
        return rng.choice((b"N", b"\x88", b"]", b"}", b")", b"K\0", b"0", b"(", b"R", b"b", b"t", b"a", b"s", b"."))
    if way == 2:
        return parts[rng.randrange(len(parts))]
    if way == 3:
        return b"(" * rng.choice((1, 100, 5000)) + b"".join(rng.choice(parts) for _ in range(3))
    return SONG[:-1]


def changed_archive(data: bytes, rng: Random, change: Any) -> bytes:
    """Return a zip whose members are changed, dropped, doubled, renamed or packed otherwise; its checksums hold."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    if rng.random() < 0.6:  # what holds the structure, if there is any
        at = next((i for i, (name, _) in enumerate(members) if name.endswith((".pkl", ".json"))), at)
    name, content = members[at]
    way = rng.randrange(8)
    if way == 0:
        del members[at]
    elif way == 1:
        members.append(members[at])
    elif way == 2:
        members[at] = (
            rng.choice((*HOSTILE, members[rng.randrange(len(members))][0])).encode("utf-8", "replace").decode(),
            content,
        )
    elif way == 3:
        members[at] = (name, members[rng.randrange(len(members))][1])
    else:
        members[at] = (name, change(name, content, rng))
    out = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for name, content in members:
            archive.writestr(name.replace("\0", "") or "x", content)
    return out.getvalue()
