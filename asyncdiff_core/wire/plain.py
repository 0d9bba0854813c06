"""Plain data as bytes, and back. Needs nothing but the standard library.

What is read is a tree of values of a few types, of bounded depth, made in time proportional to its
bytes. Nothing in it names code, refers to another part, or is hashed at more cost than it was to
send. So reading runs no code and takes no longer than it should, whoever wrote the bytes. (A pickle
may be a few bytes that take hours to hash or to print.)
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import Any

from ..errors import ChannelDataError, NotPlainError

MAX_DEPTH = 64
MAX_INT_BYTES = 128
# Of keys that are no strings or whole numbers somebody could choose many with the same hash.
MAX_OTHER_KEYS = 4096

_COUNT = struct.Struct("<I")
_LONG = struct.Struct("<Q")
_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")
_SMALL = range(-(2**63), 2**63)

Write = Callable[["Writer", Any], None]
Read = Callable[["Reader"], Any]

WRITERS: dict[type, Write] = {}  # by exact type
READERS: dict[int, Read] = {}  # by tag


class Writer:
    """Collects the bytes of a value.

    Attributes:
        beside: what crosses beside the bytes, in order.
        places: how that is described which crosses beside them, by where it is.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.beside: list[Any] = []
        self.places: dict[Any, Any] = {}
        self._depth = 0

    def write(self, value: Any) -> None:
        """Add `value`.

        Raises:
            NotPlainError: it, or a part of it, is not plain.
        """
        write = WRITERS.get(type(value))
        if write is None:
            write = next((WRITERS[base] for base in _OPEN if isinstance(value, base)), None)
        if write is None:
            raise NotPlainError(f"{_name(value)} is no plain data")
        write(self, value)

    def write_all(self, tag: bytes, values: Any) -> None:
        """Add a tag, how many values there are, and the values."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotPlainError(f"it is nested deeper than {MAX_DEPTH} levels")
        self.data += tag + _COUNT.pack(len(values))
        for value in values:
            self.write(value)
        self._depth -= 1

    def write_bytes(self, tag: bytes, data: bytes | bytearray) -> None:
        self.data += tag + _LONG.pack(len(data))
        self.data += data


class Reader:
    """Takes bytes apart.

    Args:
        beside: what crossed beside them.
    """

    def __init__(self, data: bytes | bytearray | memoryview, beside: Any = ()) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._depth = 0
        self.beside = beside

    def read_whole(self) -> Any:
        """The value that all of the bytes are.

        Raises:
            ChannelDataError: they are none.
        """
        try:
            value = self.read()
        except Exception as error:  # whatever a damaged frame leads to
            text = f"{type(error).__name__}: {str(error)[:200]}"
            raise ChannelDataError(f"the other end sent something unreadable ({text})") from error
        if self._at != len(self._data):
            raise ChannelDataError("the other end sent something unreadable (there is more of it)")
        return value

    def read(self) -> Any:
        read = READERS.get(self.take(1)[0])
        if read is None:
            raise ValueError("a value of no known type")
        return read(self)

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise ValueError("it ends too early")
        self._at += size
        return part

    def take_bytes(self) -> memoryview:
        return self.take(_LONG.unpack(self.take(_LONG.size))[0])

    def read_all(self) -> list[Any]:
        """As many values as the next number says."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")
        (count,) = _COUNT.unpack(self.take(_COUNT.size))
        if count > len(self._data) - self._at:
            raise ValueError("it ends too early")
        values = [self.read() for _ in range(count)]
        self._depth -= 1
        return values


def require_plain(value: Any) -> None:
    """See that `value` can cross.

    Raises:
        NotPlainError: it, or a part of it, cannot.
    """
    Writer().write(value)


def _name(value: Any) -> str:
    kind = type(value)
    what = getattr(value, "__qualname__", None) or kind.__qualname__
    return f"{getattr(value, '__module__', kind.__module__)}.{what}"


def register(kind: type, tag: bytes, write: Write, read: Read, *, is_open: bool = False) -> None:
    """Have values of a further type cross.

    Args:
        kind: the type.
        tag: one byte that no other type has.
        write: adds tag and content.
        read: makes the value, after the tag.
        is_open: values of subclasses cross as well, and arrive as `kind`.
    """
    assert tag[0] not in READERS
    WRITERS[kind] = write
    READERS[tag[0]] = read
    if is_open:
        _OPEN.append(kind)


_OPEN: list[type] = []


def _constant(value: Any, tag: bytes) -> None:
    READERS[tag[0]] = lambda reader: value


def _write_bool(writer: Writer, value: bool) -> None:
    writer.data += b"T" if value else b"F"


def _write_int(writer: Writer, value: int) -> None:
    if value in _SMALL:
        writer.data += b"i" + _INT.pack(value)
        return
    size = value.bit_length() // 8 + 1
    if size > MAX_INT_BYTES:
        raise NotPlainError(f"a number of {size} bytes is too large")
    writer.data += b"I" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _read_long_int(reader: Reader) -> int:
    size = reader.take(1)[0]
    if size > MAX_INT_BYTES:
        raise ValueError("a number that is too large")
    return int.from_bytes(reader.take(size), "little", signed=True)


def _write_float(writer: Writer, value: float) -> None:
    writer.data += b"f" + _FLOAT.pack(value)


def _write_complex(writer: Writer, value: complex) -> None:
    writer.data += b"c" + _COMPLEX.pack(value.real, value.imag)


def _write_dict(writer: Writer, value: dict[Any, Any]) -> None:
    writer.write_all(b"d", [part for item in value.items() for part in item])


def _read_dict(reader: Reader) -> dict[Any, Any]:
    parts = reader.read_all()
    if len(parts) % 2:
        raise ValueError("a key without a value")
    keys = parts[::2]
    _require_keys(keys)
    return dict(zip(keys, parts[1::2], strict=True))


def _read_set(reader: Reader) -> set[Any]:
    values = reader.read_all()
    _require_keys(values)
    return set(values)


def _require_keys(keys: list[Any]) -> None:
    if len(keys) > MAX_OTHER_KEYS and any(type(key) not in (str, int) for key in keys):
        raise ValueError("too many keys")


def _write_uuid(writer: Writer, value: uuid.UUID) -> None:
    writer.data += b"u" + value.bytes


def _write_str(writer: Writer, value: str) -> None:
    writer.write_bytes(b"s", value.encode("utf-8", "surrogatepass"))


WRITERS[type(None)] = lambda writer, value: writer.data.extend(b"N")
WRITERS[bool] = _write_bool
_constant(None, b"N")
_constant(True, b"T")
_constant(False, b"F")
register(int, b"i", _write_int, lambda reader: _INT.unpack(reader.take(8))[0])
READERS[ord("I")] = _read_long_int
register(float, b"f", _write_float, lambda reader: _FLOAT.unpack(reader.take(8))[0])
register(complex, b"c", _write_complex, lambda r: complex(*_COMPLEX.unpack(r.take(16))))
register(str, b"s", _write_str, lambda r: str(r.take_bytes(), "utf-8", "surrogatepass"))
register(bytes, b"b", lambda w, v: w.write_bytes(b"b", v), lambda r: bytes(r.take_bytes()))
register(bytearray, b"a", lambda w, v: w.write_bytes(b"a", v), lambda r: bytearray(r.take_bytes()))
register(list, b"l", lambda w, v: w.write_all(b"l", v), Reader.read_all)
register(tuple, b"t", lambda w, v: w.write_all(b"t", v), lambda r: tuple(r.read_all()))
register(set, b"S", lambda w, v: w.write_all(b"S", v), _read_set)
register(frozenset, b"z", lambda w, v: w.write_all(b"z", v), lambda r: frozenset(_read_set(r)))
register(dict, b"d", _write_dict, _read_dict)
register(uuid.UUID, b"u", _write_uuid, lambda r: uuid.UUID(bytes=bytes(r.take(16))))
