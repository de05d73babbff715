"""Requests that nobody should send: near-valid, random, mutated and garbage, from the contract's own descriptors.

The same seed makes the same requests. Knows no servers and no fields: a new field or method is tried as it is added.
"""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

NEAR_VALID, RANDOM, MUTATED, GARBAGE = "near-valid", "random", "mutated", "garbage"
KINDS = (NEAR_VALID, RANDOM, MUTATED, GARBAGE)

_TEXTS = (
    "",
    " ",
    "\x00",
    "a" * 33_000,
    "running shoes",
    "\u202egnisrever\u202c",
    "é" * 500,
    "\U0001f600" * 100,
    "'; DROP TABLE ads; --",
    "${jndi:ldap://localhost/a}",
    "$\\x$",
    "[/50%]",
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b[0m\r\n",
    "../../etc/passwd",
    "NaN",
    "-1",
    "\ud7ff\uffff",
    "日本語のテキスト",
    "a\u0301" * 50,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 3e38, -3e38, 1e-45, 1e308, float("inf"), float("-inf"), float("nan"), 1e-320)
_WHOLE = (0, 1, -1, 2, 7, 100, 1000, 1001, 5000, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_BOUNDS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_LARGEST_FLOAT32 = 3.4028234e38
_MOST_REPEATED = (0, 1, 1, 2, 5, 40)
_DEEPEST = 4
_PERTURBED = 3

# Makes a request that a server would answer, from a source of chance.
Valid = Callable[[random.Random], Message]


@dataclass(frozen=True)
class FuzzedRequest:
    """One request: the method's full name ("/package.Service/Method"), which of `KINDS` it is, and its bytes."""

    method: str
    kind: str
    payload: bytes


class RequestFuzzer:
    """Makes requests of the given methods, in turns.

    Args:
        methods: Unary ones.
        valid: For a method's name, such as "Rank", what makes a request of it that is in order; a method without one
            starts from an empty request.
        texts: Texts and ids that the servers know; a text field holds one of them half of the time.
    """

    def __init__(
        self,
        methods: Sequence[MethodDescriptor],
        seed: int,
        valid: "dict[str, Valid] | None" = None,
        texts: Sequence[str] = (),
    ) -> None:
        self._methods = list(methods)
        self._random = random.Random(seed)
        self._valid = valid or {}
        self._texts = list(texts)
        self._made = 0

    def next(self) -> FuzzedRequest:
        """The next request."""
        method = self._methods[self._made % len(self._methods)]
        kind = self._random.choice(KINDS)
        self._made += 1
        return FuzzedRequest(f"/{method.containing_service.full_name}/{method.name}", kind, self._payload(method, kind))

    def _payload(self, method: MethodDescriptor, kind: str) -> bytes:
        if kind == GARBAGE:
            return self._random.randbytes(self._random.choice((0, 1, 3, 30, 300, 3000)))
        if kind == RANDOM:
            return self._random_message(method.input_type, 0).SerializeToString()
        message = self._valid_of(method)
        if kind == MUTATED:
            return self._mutated(message.SerializeToString())
        for _ in range(self._random.randint(0, _PERTURBED)):
            self._perturb(message)
        return message.SerializeToString()

    def _valid_of(self, method: MethodDescriptor) -> Message:
        make = self._valid.get(method.name)
        return make(self._random) if make is not None else GetMessageClass(method.input_type)()

    # ---- values

    def _random_message(self, descriptor: Any, depth: int) -> Message:
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < 0.6:
                self._set(message, field, depth)
        return message

    def _perturb(self, message: Message) -> None:
        """Puts something else into one field, as deep down as chance has it."""
        inner = _messages_in(message)
        target = self._random.choice(inner)
        if target.DESCRIPTOR.fields:
            field: Any = self._random.choice(list(target.DESCRIPTOR.fields))
            target.ClearField(field.name)
            self._set(target, field, 1)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        count = self._random.choice(_MOST_REPEATED) if field.is_repeated else 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._set_map(message, field, count, depth)
        elif field.message_type is not None:
            if depth < _DEEPEST:
                made = [self._random_message(field.message_type, depth + 1) for _ in range(count)]
                if field.is_repeated:
                    getattr(message, field.name).extend(made)
                else:
                    getattr(message, field.name).CopyFrom(made[0])
        elif field.is_repeated:
            getattr(message, field.name).extend([self._scalar(field) for _ in range(count)])
        else:
            setattr(message, field.name, self._scalar(field))

    def _set_map(self, message: Message, field: Any, count: int, depth: int) -> None:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        entries = getattr(message, field.name)
        for _ in range(count):
            if value.message_type is None:
                entries[self._scalar(key)] = self._scalar(value)
            elif depth < _DEEPEST:
                entries[self._scalar(key)].CopyFrom(self._random_message(value.message_type, depth + 1))

    def _scalar(self, field: Any) -> Any:
        chance = self._random
        if field.type == FieldDescriptor.TYPE_BOOL:
            return chance.random() < 0.5
        if field.type == FieldDescriptor.TYPE_STRING:
            known = self._texts and chance.random() < 0.5
            return chance.choice(self._texts if known else _TEXTS)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 100)))
        if field.type == FieldDescriptor.TYPE_FLOAT:
            return max(-_LARGEST_FLOAT32, min(_LARGEST_FLOAT32, value)) if (value := self._float()) == value else value
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return self._float()
        if field.type == FieldDescriptor.TYPE_ENUM:
            return chance.choice((*field.enum_type.values_by_number, 99, -1))
        low, high = _BOUNDS[field.type]
        return max(low, min(high, chance.choice(_WHOLE)))

    def _float(self) -> float:
        return self._random.choice(_FLOATS) if self._random.random() < 0.7 else self._random.gauss(0, 1)

    # ---- bytes

    def _mutated(self, payload: bytes) -> bytes:
        """A few bits flipped, and bytes cut out, put in, doubled or taken off the end."""
        changed = bytearray(payload)
        for _ in range(self._random.randint(1, 6)):
            place = self._random.randrange(len(changed) + 1)
            how = self._random.randrange(6)
            if how == 0 and place < len(changed):
                changed[place] ^= 1 << self._random.randrange(8)
            elif how == 1:
                del changed[place : place + self._random.randint(1, 20)]
            elif how == 2:
                changed[place:place] = self._random.randbytes(self._random.randint(1, 20))
            elif how == 3:
                changed[place:place] = changed[place : place + 50]
            elif how == 4:
                del changed[place:]
            else:  # a length or a number that claims far too much
                changed[place:place] = struct.pack("<Q", self._random.choice(_WHOLE) & (2**64 - 1))
        return bytes(changed)


def _messages_in(message: Message) -> list[Message]:
    """The message and every one in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            found += _messages_in(one)
    return found
