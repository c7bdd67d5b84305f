"""A Tollgate client in one file, standard library only, written from proto/PROTOCOL.md.

    client = Client.unix("/run/tollgate/tollgate.sock", token="...")
    decision = client.consume("acme/alice", {"chat.requests": 1})
    if decision.allowed: ...

    with client.reservation("acme/alice", {"tokens.output": 4096}) as held:
        for chunk in stream if held.allowed else ():
            held.use("tokens.output", chunk.tokens)

The codec works on plain dictionaries (`encode_payload`, `decode_payload`), so that it can be held
against the golden vectors. A denial is a result. Failures are three different exceptions:
`Rejected` (certainly not applied), `NotSent` (no byte left this process), `OutcomeUnknown` (may have
been applied: ask again with the same id, which is on the exception).
"""

import concurrent.futures
import json
import os
import socket
import struct
import threading
import time as _time

MAGIC = b"\x54\x47"
VERSION = 1
HEADER = struct.Struct("<2sBBHHIIQ")
QUANTITY_MAX = (1 << 53) - 1
MORE, CLIENT_FALLBACK = 1, 2
FRAME_BYTES_MAX = 1 << 20
DATA_FRAME_BYTES_MAX = 98304
DOCUMENT_BYTES_MAX = 1044480

OPCODES = {
    "HELLO": 0x01, "WELCOME": 0x02, "PING": 0x03, "PONG": 0x04, "GOAWAY": 0x05, "ERROR": 0x06,
    "CHECK": 0x10, "CONSUME": 0x11, "POST": 0x12, "DECISIONS": 0x13, "CANCEL": 0x14,
    "RESERVE": 0x15, "SETTLE": 0x16, "RELEASE": 0x17, "EXTEND": 0x18, "REFUND": 0x19,
    "ADMIN": 0x20, "ADMIN_REPLY": 0x21,
    "LINK": 0x30, "LINKED": 0x31, "BATCH": 0x32, "BATCH_REPLY": 0x33, "RECOVER": 0x34,
    "PRESENT_REQUEST": 0x35, "PRESENT": 0x36, "EPOCH": 0x37, "BALANCES": 0x38,
    "BALANCES_REPLY": 0x39, "CONFIG": 0x3A, "CONFIG_REPLY": 0x3B, "QUERY": 0x3C,
    "QUERY_REPLY": 0x3D,
}
OPCODE_NAMES = {number: name for name, number in OPCODES.items()}
RESERVATION_OPCODES = {"RESERVE", "SETTLE", "RELEASE", "EXTEND", "REFUND"}
REQUESTS = {"HELLO", "PING", "CHECK", "CONSUME", "POST", "CANCEL", "ADMIN", "LINK", "BATCH",
            "BALANCES", "CONFIG", "QUERY"} | RESERVATION_OPCODES
PUSHES = {"GOAWAY", "RECOVER", "PRESENT_REQUEST", "PRESENT", "EPOCH"}
EITHER = {"ERROR", "WELCOME"}
FLAGS = {"POST": CLIENT_FALLBACK, "ADMIN_REPLY": MORE, "QUERY_REPLY": MORE,
         "BALANCES_REPLY": MORE, "PRESENT": MORE}
FEATURE_RESERVATIONS = 1
FEATURES = FEATURE_RESERVATIONS  # what this client knows of PROTOCOL 7.5

REASONS = {
    0: "ALLOWED", 1: "ALLOWED_SHADOW", 2: "ALLOWED_SOFT", 3: "ALLOWED_FAIL_OPEN",
    4: "ALLOWED_POSTED", 5: "SETTLED", 6: "SETTLED_CLAMPED", 7: "SETTLED_LATE", 8: "RELEASED",
    9: "EXTENDED", 10: "REFUNDED", 16: "ACCOUNT_FROZEN", 17: "UNKNOWN_ACCOUNT", 18: "UNKNOWN_FEATURE",
    19: "FEATURE_NOT_IN_PLAN", 20: "GATE_CLOSED", 21: "COST_ABOVE_BURST", 22: "QUOTA_EXCEEDED",
    23: "RATE_LIMITED", 24: "OUTBOX_FULL", 25: "DEDUPE_FULL", 26: "STORE_UNAVAILABLE",
    27: "FALLBACK_EXHAUSTED", 28: "CANCELLED", 29: "CONCURRENCY_EXCEEDED",
    30: "CREDIT_EXHAUSTED", 31: "SPEND_CAP_REACHED", 32: "PRICE_UNKNOWN", 33: "HOLDS_EXCEEDED",
    34: "PAST_DUE",
}
REASON_NUMBERS = {name: number for number, name in REASONS.items()}
SOURCES = ["redis", "lease", "policy", "client_fallback"]
ERRORS = {
    1: "BAD_FRAME", 2: "UNSUPPORTED_VERSION", 3: "FRAME_TOO_LARGE", 4: "UNKNOWN_OPCODE",
    5: "BAD_REQUEST", 6: "UNKNOWN_CRITICAL_FIELD", 7: "HELLO_REQUIRED", 8: "UNAUTHENTICATED",
    9: "FORBIDDEN", 10: "OVERLOADED", 11: "DEADLINE_EXCEEDED", 12: "OUTCOME_UNKNOWN",
    13: "UNAVAILABLE", 14: "DRAINING", 15: "IDEMPOTENCY_MISMATCH", 16: "ID_TOO_OLD",
    17: "ID_FROM_FUTURE", 18: "INVALID_NAME", 19: "AMOUNT_OUT_OF_RANGE", 20: "TOO_MANY_ITEMS",
    21: "DUPLICATE_ITEM", 22: "NOT_FOUND", 23: "CONFLICT", 24: "INVALID_DOCUMENT",
    25: "IDLE_TIMEOUT", 26: "INTERNAL_ERROR", 27: "DEPLOYMENT_MISMATCH", 28: "NOT_READY",
    29: "RESERVATION_UNKNOWN", 30: "RESERVATION_ENDED", 31: "OVERRUN_REJECTED",
    32: "NOTHING_TO_REFUND",
}
ERROR_NUMBERS = {name: number for number, name in ERRORS.items()}
EFFECT_UNKNOWN = {"OUTCOME_UNKNOWN", "ID_TOO_OLD", "INTERNAL_ERROR"}
RETRY_SAME_ID = {"OVERLOADED", "DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN", "UNAVAILABLE", "DRAINING",
                 "INTERNAL_ERROR", "NOT_READY"}
ADMIN_METHODS = {
    "catalog.validate": 1, "catalog.diff": 2, "catalog.apply": 3, "catalog.show": 4,
    "catalog.rollback": 5, "account.set": 6, "account.show": 7, "account.list": 8,
    "account.import": 9, "limit.set": 10, "limit.unset": 11, "limit.list": 12, "usage": 13,
    "reset": 14, "explain": 15, "bypass.set": 16, "bypass.clear": 17, "bypass.list": 18,
    "audit.log": 19, "reconcile": 20, "status": 21, "doctor": 22, "resolve.operation": 23,
    "fallback.list": 24, "fallback.retry": 25, "fallback.drop": 26, "lease.list": 27,
    "lease.release": 28,
    "account.plan": 32, "account.past_due": 33, "grant.add": 34, "grant.void": 35, "grant.list": 36,
    "adjust": 40, "usage.history": 41, "top": 42, "tail": 43,
}
ROLES = {"check": 1, "admin": 2, "ledger": 3}
ROLE_NAMES = {number: name for name, number in ROLES.items()}
POLICIES = ["closed", "open", "stale"]
OVERRUNS = ["reject", "clamp", "overdraft"]
TTL_MS_MAX = 86_400_000
WINDOWS = set("mhdwMQYL")
WINDOW_SECONDS_MAX = 100 * 366 * 86400
BATCH_STATUSES = ["ack", "gap", "fenced", "forked"]
ALNUM = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
NAME_BYTES = ALNUM | frozenset(b"._-")
SEGMENT_BYTES = NAME_BYTES | frozenset(b"@+")


class WireError(Exception):
    """Bytes that break the protocol. `fatal`: the connection cannot go on."""

    def __init__(self, code, text, fatal=False):
        super().__init__(f"{code}: {text}")
        self.code, self.text, self.fatal = code, text, fatal


# --------------------------------------------------------------------------------------- values

class Reader:
    def __init__(self, data):
        self.data, self.at = bytes(data), 0

    def left(self):
        return len(self.data) - self.at

    def raw(self, count):
        if count > self.left():
            raise WireError("BAD_REQUEST", "the payload ends inside a value")
        piece = self.data[self.at:self.at + count]
        self.at += count
        return piece

    def integer(self, size, signed=False):
        return int.from_bytes(self.raw(size), "little", signed=signed)

    def u8(self):
        return self.integer(1)

    def u16(self):
        return self.integer(2)

    def u32(self):
        return self.integer(4)

    def u64(self):
        return self.integer(8)

    def i64(self):
        return self.integer(8, signed=True)

    def between(self, low, code):
        value = self.i64()
        if not low <= value <= QUANTITY_MAX:
            raise WireError(code, f"{value} is out of range")
        return value

    def amount(self):
        return self.between(0, "AMOUNT_OUT_OF_RANGE")

    def quantity(self):
        return self.between(-QUANTITY_MAX, "AMOUNT_OUT_OF_RANGE")

    def ordinal(self):
        return self.between(0, "BAD_REQUEST")

    def time(self):
        return self.between(-QUANTITY_MAX, "BAD_REQUEST")

    def period(self):
        start, end = self.time(), self.time()
        if start >= end:
            raise WireError("BAD_REQUEST", "a period ends before it starts")
        return {"start": start, "end": end}

    def reserved(self, count):
        if any(self.raw(count)):
            raise WireError("BAD_REQUEST", "reserved bytes are not zero")

    def utf8(self, length):
        try:
            return self.raw(length).decode("utf-8")
        except UnicodeDecodeError:
            raise WireError("BAD_REQUEST", "a text is not valid UTF-8") from None

    def text(self, size, maximum):
        length = self.integer(size)
        if length > maximum:
            raise WireError("BAD_REQUEST", f"a text of {length} bytes")
        return self.utf8(length)

    def name(self, length=None):
        return valid_name(self.raw(self.u8() if length is None else length))

    def optional_name(self):
        length = self.u8()
        return self.name(length) if length else None

    def subject(self, length=None):
        length = self.u16() if length is None else length
        if length > 5 * 65:
            raise WireError("INVALID_NAME", "the subject is too long")
        return valid_subject(self.raw(length))

    def account(self):
        return only_account(self.subject())

    def optional_account(self):
        length = self.u16()
        return only_account(self.subject(length)) if length else None

    def window(self):
        return valid_window(self.text(1, 80))

    def op_id(self):
        return self.raw(16).hex()

    def blob(self, maximum):
        length = self.u32()
        if length > maximum:
            raise WireError("BAD_REQUEST", f"{length} bytes are too many")
        return self.raw(length)

    def count(self, size, maximum, each, code="BAD_REQUEST"):
        count = self.integer(size)
        if count > maximum:
            raise WireError(code, f"{count} is too many")
        if count * each > self.left():
            raise WireError("BAD_REQUEST", "the payload ends inside a value")
        return count

    def end(self):
        if self.left():
            raise WireError("BAD_REQUEST", f"{self.left()} bytes too many")

    def fields(self, known=None):
        """A field list up to the end. `known`: number → function(Reader) → value."""
        found, last, seen = {}, -1, 0
        while self.left():
            raw = self.u16()
            number = raw & 0x7FFF
            if number <= last:
                raise WireError("BAD_REQUEST", f"field {number} is repeated or out of order")
            last, seen = number, seen + 1
            if seen > 64:
                raise WireError("BAD_REQUEST", "more than 64 fields")
            length = self.u16()
            if length == 0xFFFF:
                length = self.u32()
                if length < 0xFFFF:
                    raise WireError("BAD_REQUEST", "a short field has a long length")
            body = Reader(self.raw(length))
            if known and number in known:
                found[number] = known[number](body)
                body.end()
            elif raw & 0x8000:
                raise WireError("UNKNOWN_CRITICAL_FIELD", f"field {number} is not known here")
        return found


def valid_name(raw):
    if not 1 <= len(raw) <= 64 or not all(b in NAME_BYTES for b in raw) or raw[0] not in ALNUM:
        raise WireError("INVALID_NAME", f"{raw!r} is not a name")
    return raw.decode("ascii")


def valid_subject(raw):
    segments = raw.split(b"/")
    if len(segments) > 5:
        raise WireError("INVALID_NAME", "more than 5 segments")
    for segment in segments:
        if not 1 <= len(segment) <= 64 or not all(b in SEGMENT_BYTES for b in segment):
            raise WireError("INVALID_NAME", f"{segment!r} is not a segment")
    return raw.decode("ascii")


def only_account(subject):
    if "/" in subject:
        raise WireError("INVALID_NAME", f"{subject} is not an account")
    return subject


def valid_window(code):
    kind, rest = code[:1], code[1:]
    if code in ("c", "-") or is_time(code) or kind == "o" and is_time(rest):
        return code
    try:
        if kind == "$":
            valid_name(rest.encode())
            return code
        rate, comma, start = rest.partition(",")
        if kind == "r" and comma and is_number(start, QUANTITY_MAX):
            valid_name(rate.encode())
            return code
    except WireError:
        pass
    raise WireError("BAD_REQUEST", f"unknown window code {code!r}")


def is_time(code):
    """A window of time, with `@` where it is anchored; there is one lifetime."""
    plain = code[:-1] if code.endswith("@") else code
    if plain in WINDOWS:
        return code != "L@"
    return (plain.endswith("s") and plain != "0s"
            and is_number(plain[:-1], WINDOW_SECONDS_MAX))


def is_number(digits, maximum):
    """Decimal digits, as a number is written once: no sign, no zeros in front."""
    return (digits.isascii() and digits.isdigit() and str(int(digits)) == digits
            and int(digits) <= maximum)


class Writer:
    def __init__(self):
        self.out = bytearray()

    def integer(self, value, size, signed=False):
        self.out += value.to_bytes(size, "little", signed=signed)

    def u8(self, value):
        self.integer(value, 1)

    def u16(self, value):
        self.integer(value, 2)

    def u32(self, value):
        self.integer(value, 4)

    def u64(self, value):
        self.integer(value, 8)

    def i64(self, *values):
        for value in values:
            self.integer(value, 8, signed=True)

    def text(self, text, size, maximum):
        raw = text.encode("utf-8")
        if len(raw) > maximum:
            raw = raw[:maximum].decode("utf-8", "ignore").encode("utf-8")
        self.integer(len(raw), size)
        self.out += raw

    def name(self, name):
        self.text(name or "", 1, 64)

    def subject(self, subject):
        self.text(subject or "", 2, 5 * 65)

    def period(self, period):
        self.i64(period["start"], period["end"])

    def op_id(self, text):
        self.out += bytes.fromhex(text)

    def blob(self, raw):
        self.u32(len(raw))
        self.out += raw

    def sized(self, size, inner):
        self.integer(len(inner.out), size)
        self.out += inner.out

    def field(self, number, raw):
        self.u16(number)
        if len(raw) < 0xFFFF:
            self.u16(len(raw))
        else:
            self.u16(0xFFFF)
            self.u32(len(raw))
        self.out += raw


# ------------------------------------------------------------------------------------- messages

def encode_hello(w, m):
    w.u8(m["versionMin"])
    w.u8(m["versionMax"])
    w.u8(ROLES[m["role"]])
    w.u8(0)
    w.u32(m["features"])
    w.text(m["client"], 1, 64)
    w.text(m["token"], 2, 512)


def known_role(r):
    number = r.u8()
    if number not in ROLE_NAMES:
        raise WireError("BAD_REQUEST", "unknown role")
    return ROLE_NAMES[number]


def decode_hello(r):
    low, high = r.u8(), r.u8()
    if low > high:
        raise WireError("BAD_REQUEST", "the version range is empty")
    role = known_role(r)
    r.reserved(1)
    m = {"versionMin": low, "versionMax": high, "role": role, "features": r.u32(),
         "client": r.text(1, 64), "token": r.text(2, 512)}
    r.fields()
    return m


WELCOME_NUMBERS = ["frameBytesMax", "inFlightMax", "recordsMax", "defaultDeadline", "maxDeadline",
                   "idleTimeout"]


def encode_welcome(w, m):
    w.u8(m["version"])
    w.u8(ROLES[m["role"]])
    w.u16(0)
    w.u32(m["features"])
    w.name(m["deployment"])
    w.name(m["server"])
    for key in WELCOME_NUMBERS:
        w.u32(m[key])
    w.i64(m["time"], m["globalVersion"])
    w.u16(len(m["policies"]))
    for policy in m["policies"]:
        w.name(policy["feature"])
        w.u8(POLICIES.index(policy["policy"]))
        w.i64(policy["allowance"])
    if m.get("sidecarFeatures"):
        names = Writer()
        names.u16(len(m["sidecarFeatures"]))
        for feature in m["sidecarFeatures"]:
            names.name(feature)
        w.field(1, bytes(names.out))


def decode_welcome(r):
    m = {"version": r.u8(), "role": known_role(r)}
    r.reserved(2)
    m["features"] = r.u32()
    m["deployment"], m["server"] = r.name(), r.name()
    for key in WELCOME_NUMBERS:
        m[key] = r.u32()
    m["time"], m["globalVersion"] = r.time(), r.ordinal()
    m["policies"] = []
    for _ in range(r.count(2, 256, 11)):
        feature, kind, allowance = r.name(), r.u8(), r.amount()
        if kind > 2 or (kind != 1 and allowance != 0):
            raise WireError("BAD_REQUEST", "a wrong failure policy")
        m["policies"].append({"feature": feature, "policy": POLICIES[kind], "allowance": allowance})
    found = r.fields({1: decode_features}).get(1)
    if found:
        m["sidecarFeatures"] = found
    return m


def decode_features(r):
    features = [r.name() for _ in range(r.count(2, 256, 2))]
    if any(a >= b for a, b in zip(features, features[1:])):
        raise WireError("BAD_REQUEST", "a feature is repeated or out of order")
    return features


def encode_nonce(w, m):
    w.u64(m["nonce"])


def decode_nonce(r):
    m = {"nonce": r.u64()}
    r.end()
    return m


def error_name(number):
    if number == 0:
        raise WireError("BAD_REQUEST", "error code 0")
    return ERRORS.get(number, "INTERNAL_ERROR")


def encode_goaway(w, m):
    w.u16(ERROR_NUMBERS[m["code"]])
    w.u16(0)
    w.u32(m["grace"])
    w.text(m["message"], 2, 512)


def decode_goaway(r):
    m = {"code": error_name(r.u16())}
    r.reserved(2)
    m["grace"], m["message"] = r.u32(), r.text(2, 512)
    r.end()
    return m


def encode_error(w, m):
    w.u16(ERROR_NUMBERS[m["code"]])
    w.u16(0)
    w.text(m["message"], 2, 512)
    w.text(m["field"], 1, 255)


def decode_error(r):
    m = {"code": error_name(r.u16())}
    r.reserved(2)
    m["message"], m["field"] = r.text(2, 512), r.text(1, 255)
    r.end()
    return m


def encode_attributes(attributes):
    w = Writer()
    w.u8(len(attributes))
    for key in sorted(attributes, key=lambda k: k.encode()):
        w.name(key)
        w.text(attributes[key], 1, 128)
    return bytes(w.out)


def decode_attributes(r):
    found, last = {}, ""
    for _ in range(r.count(1, 16, 3)):
        key = r.name()
        if key <= last:
            raise WireError("BAD_REQUEST", "attributes are repeated or out of order")
        last = key
        found[key] = r.text(1, 128)
    return found


def decode_trace(r):
    if r.left() > 64:
        raise WireError("BAD_REQUEST", "the trace parent is too long")
    return r.utf8(r.left())


def encode_items(w, items):
    w.u8(len(items))
    for item in items:
        w.name(item["feature"])
        w.i64(item["amount"])


def decode_items(r, least=1):
    count = r.u8()
    if count < least:
        raise WireError("BAD_REQUEST", "an operation without items")
    if count > 16:
        raise WireError("TOO_MANY_ITEMS", f"{count} items")
    items, seen = [], set()
    for _ in range(count):
        feature = r.name()
        if feature in seen:
            raise WireError("DUPLICATE_ITEM", f"{feature} is named twice")
        seen.add(feature)
        items.append({"feature": feature, "amount": r.amount()})
    return items


def encode_common_fields(w, record):
    if record.get("attributes"):
        w.field(1, encode_attributes(record["attributes"]))
    if record.get("traceParent"):
        w.field(2, record["traceParent"].encode())


ATTRIBUTES_AND_TRACE = {1: decode_attributes, 2: decode_trace}


def common_fields(fields):
    return {"attributes": fields.get(1, {}), "traceParent": fields.get(2, "")}


def encode_operation(w, record):
    w.op_id(record["id"])
    w.subject(record["subject"])
    encode_items(w, record["items"])
    encode_common_fields(w, record)


def decode_operation(r):
    record = {"id": r.op_id(), "subject": r.subject(), "items": decode_items(r)}
    return {**record, **common_fields(r.fields(ATTRIBUTES_AND_TRACE))}


def valid_ttl(r):
    ttl = r.u32()
    if not 1 <= ttl <= TTL_MS_MAX:
        raise WireError("BAD_REQUEST", f"a ttl of {ttl} ms")
    return ttl


def decode_overrun(r):
    policy = r.u8()
    r.reserved(7)
    bound = r.amount()
    if policy >= len(OVERRUNS) or (bound and OVERRUNS[policy] != "overdraft"):
        raise WireError("BAD_REQUEST", "a wrong overrun policy")
    return {"policy": OVERRUNS[policy], "bound": bound}


def encode_reserve(w, record):
    encode_operation(w, record)
    if record["ttl"] is not None:
        w.field(3, struct.pack("<I", record["ttl"]))
    if record["overrun"] is not None:
        overrun = record["overrun"]
        w.field(4, struct.pack("<B7xq", OVERRUNS.index(overrun["policy"]), overrun["bound"]))


def decode_reserve(r):
    record = {"id": r.op_id(), "subject": r.subject(), "items": decode_items(r)}
    fields = r.fields({**ATTRIBUTES_AND_TRACE, 3: valid_ttl, 4: decode_overrun})
    return {**record, **common_fields(fields), "ttl": fields.get(3), "overrun": fields.get(4)}


def encode_settle(w, record):
    w.op_id(record["id"])
    w.subject(record["subject"])
    w.op_id(record["reservation"])
    w.u8((1 if record["final"] else 0) | (2 if record["floor"] else 0))
    encode_items(w, record["items"])
    encode_common_fields(w, record)


def decode_settle(r):
    record = {"id": r.op_id(), "subject": r.subject(), "reservation": r.op_id()}
    bits = r.u8()
    if bits & ~3 or bits == 2:
        raise WireError("BAD_REQUEST", "wrong bits of a settle")
    record.update(final=bool(bits & 1), floor=bool(bits & 2), items=decode_items(r))
    return {**record, **common_fields(r.fields(ATTRIBUTES_AND_TRACE))}


def encode_release(w, record):
    w.op_id(record["id"])
    w.subject(record["subject"])
    w.op_id(record["reservation"])
    if "ttl" in record:  # EXTEND
        w.u32(record["ttl"])
    encode_common_fields(w, record)


def decode_release(r):
    record = {"id": r.op_id(), "subject": r.subject(), "reservation": r.op_id()}
    return {**record, "traceParent": r.fields({2: decode_trace}).get(2, "")}


def decode_extend(r):
    record = {"id": r.op_id(), "subject": r.subject(), "reservation": r.op_id(),
              "ttl": valid_ttl(r)}
    return {**record, "traceParent": r.fields({2: decode_trace}).get(2, "")}


def decode_reason(r):
    if r.left() > 256:
        raise WireError("BAD_REQUEST", "the reason is too long")
    return r.utf8(r.left())


def encode_refund(w, record):
    w.op_id(record["id"])
    w.subject(record["subject"])
    w.op_id(record["corrects"])
    encode_items(w, record["items"])
    encode_common_fields(w, record)
    if record["reason"]:
        w.field(5, record["reason"].encode())


def decode_refund(r):
    record = {"id": r.op_id(), "subject": r.subject(), "corrects": r.op_id(),
              "items": decode_items(r, least=0)}
    fields = r.fields({**ATTRIBUTES_AND_TRACE, 5: decode_reason})
    return {**record, **common_fields(fields), "reason": fields.get(5, "")}


def encode_records(encode):
    def encode_all(w, m):
        w.u16(len(m["records"]))
        w.u16(0)
        for record in m["records"]:
            inner = Writer()
            encode(inner, record)
            w.sized(2, inner)
    return encode_all


def decode_records(decode, least):
    """`least`: bytes of the shortest record. A bad record is `{"error": code}` in its place."""
    def decode_all(r):
        if HEADER.size + r.left() > DATA_FRAME_BYTES_MAX:
            raise WireError("TOO_MANY_ITEMS", "the batch is too long: split it")
        count = r.count(2, 1024, 2 + least, "TOO_MANY_ITEMS")
        if count == 0:
            raise WireError("BAD_REQUEST", "a batch without records")
        r.reserved(2)
        records = []
        for _ in range(count):
            inner = Reader(r.raw(r.u16()))
            try:
                records.append(decode(inner))
            except WireError as error:
                records.append({"error": error.code})
        r.end()
        return {"records": records}
    return decode_all


OPERATIONS = (encode_records(encode_operation), decode_records(decode_operation, 19))


def encode_decisions(w, m):
    w.u16(len(m["records"]))
    w.u16(0)
    for record in m["records"]:
        inner = Writer()
        if "error" in record:
            inner.u16(ERROR_NUMBERS[record["error"]])
            inner.text(record["message"], 2, 512)
        else:
            encode_decision(inner, record)
        w.sized(2, inner)


def encode_decision(w, d):
    w.u16(0)
    w.u16(REASON_NUMBERS[d["reason"]])
    w.u8(SOURCES.index(d["source"]))
    w.u8((1 if d["replayed"] else 0) | (0 if d["retryAfter"] is None else 2))
    w.i64(d["time"], d["globalVersion"], d["accountVersion"], d["retryAfter"] or 0)
    w.u8(255 if d["bindingItem"] is None else d["bindingItem"])
    w.name(d["binding"])
    w.u8(len(d["items"]))
    for state in d["items"]:
        w.u8((0 if state["remaining"] is None else 1) | (0 if state["reset"] is None else 2))
        w.i64(state["remaining"] or 0, state["settled"], state["held"], state["reset"] or 0)
        w.name(state["limit"])
    encode_decision_fields(w, d)


def encode_decision_fields(w, d):
    if d.get("expires") is not None:
        w.field(1, struct.pack("<q", d["expires"]))
    for number, key, encode in ((2, "settlements", encode_settlement), (3, "burns", encode_burn),
                                (4, "derived", Writer.name)):
        if d.get(key):
            inner = Writer()
            inner.u8(len(d[key]))
            for element in d[key]:
                encode(inner, element)
            w.field(number, bytes(inner.out))


def encode_settlement(w, s):
    w.i64(s["actual"], s["charged"], s["absorbed"])


def encode_burn(w, burn):
    w.u8(burn["item"])
    w.name(burn["grant"])
    w.i64(burn["amount"])


def decode_settlement(r):
    s = {"actual": r.quantity(), "charged": r.quantity(), "absorbed": r.quantity()}
    if s["absorbed"] != s["actual"] - s["charged"]:
        raise WireError("BAD_REQUEST", "what is absorbed is not what was not charged")
    return s


def decode_burn(r):
    item = r.u8()
    if item >= 16:
        raise WireError("BAD_REQUEST", "burnt item")
    return {"item": item, "grant": r.optional_name(), "amount": r.quantity()}


def counted(maximum, each, decode, code="BAD_REQUEST"):
    return lambda r: [decode(r) for _ in range(r.count(1, maximum, each, code))]


DECISION_FIELDS = {1: Reader.time, 2: counted(16, 24, decode_settlement, "TOO_MANY_ITEMS"),
                   3: counted(64, 10, decode_burn),
                   4: counted(16, 2, Reader.name, "TOO_MANY_ITEMS")}
DECISION_KEYS = {1: "expires", 2: "settlements", 3: "burns", 4: "derived"}


def named(fields, keys):
    """What is there and not empty, by its key."""
    return {key: fields[n] for n, key in keys.items() if fields.get(n) not in (None, [])}


def when(present, value):
    if not present and value != 0:
        raise WireError("BAD_REQUEST", "an absent value is not zero")
    return value if present else None


def decode_decision(r):
    status = r.u16()
    if status:
        m = {"error": error_name(status), "message": r.text(2, 512)}
        r.fields()
        return m
    reason, source, bits = r.u16(), r.u8(), r.u8()
    if reason not in REASONS or source >= len(SOURCES) or bits & ~3:
        raise WireError("BAD_REQUEST", "unknown reason, source or bits")
    m = {"reason": REASONS[reason], "source": SOURCES[source], "replayed": bool(bits & 1),
         "time": r.time(), "globalVersion": r.ordinal(), "accountVersion": r.ordinal(),
         "retryAfter": when(bits & 2, r.ordinal())}
    item = r.u8()
    if item != 255 and item >= 16:
        raise WireError("BAD_REQUEST", "binding item")
    m["bindingItem"] = None if item == 255 else item
    m["binding"] = r.optional_name()
    m["items"] = []
    for _ in range(r.count(1, 16, 34, "TOO_MANY_ITEMS")):
        bits = r.u8()
        if bits & ~3:
            raise WireError("BAD_REQUEST", "unknown bits")
        remaining, settled, held, reset = r.amount(), r.quantity(), r.amount(), r.ordinal()
        m["items"].append({
            "remaining": when(bits & 1, remaining), "settled": settled, "held": held,
            "reset": when(bits & 2, reset), "limit": r.optional_name()})
    m.update(named(r.fields(DECISION_FIELDS), DECISION_KEYS))
    return m


def decode_decisions(r):
    count = r.count(2, 1024, 6)
    r.reserved(2)
    records = [decode_decision(Reader(r.raw(r.u16()))) for _ in range(count)]
    r.end()
    return {"records": records}


def encode_document(w, m):
    w.u16(m["method"])
    w.u16(0)
    w.blob(m["document"].encode())


def decode_numbered(r):
    number = r.u16()
    r.reserved(2)
    document = r.blob(DOCUMENT_BYTES_MAX)
    r.end()
    return number, document


def decode_document(r):
    number, document = decode_numbered(r)
    return {"method": number, "document": document.decode("utf-8", "surrogateescape")}


def encode_document_reply(w, m):
    w.u16(0 if m["status"] == "OK" else ERROR_NUMBERS[m["status"]])
    w.u16(0)
    w.blob(m["document"].encode("utf-8", "surrogateescape"))


def decode_document_reply(r):
    number, document = decode_numbered(r)
    return {"status": "OK" if number == 0 else error_name(number),
            "document": document.decode("utf-8", "surrogateescape")}


# ------------------------------------------------------------------------------- ledger messages

def encode_deployment(w, d):
    w.name(d["id"])
    w.u32(d["buckets"])
    w.u32(d["keyVersion"])
    w.u8(["dev", "prod"].index(d["mode"]))
    w.name(d["hash"])


def decode_deployment(r):
    d = {"id": r.name(), "buckets": r.u32()}
    if not 1 <= d["buckets"] <= 4096:
        raise WireError("BAD_REQUEST", "buckets")
    d["keyVersion"] = r.u32()
    mode = r.u8()
    if mode > 1:
        raise WireError("BAD_REQUEST", "mode")
    d["mode"], d["hash"] = ["dev", "prod"][mode], r.name()
    return d


def bucket(r):
    number = r.u32()
    if number > 4096:
        raise WireError("BAD_REQUEST", "bucket")
    return number


def encode_link(w, m):
    encode_deployment(w, m["deployment"])
    w.name(m["sidecar"])
    w.u64(m["incarnation"])


def decode_link(r):
    m = {"deployment": decode_deployment(r), "sidecar": r.name(), "incarnation": r.u64()}
    r.fields()
    return m


def encode_linked(w, m):
    encode_deployment(w, m["deployment"])
    w.u16(len(m["buckets"]))
    for state in m["buckets"]:
        w.u32(state["bucket"])
        w.i64(state["epoch"], state["cursor"])


def decode_linked(r):
    m = {"deployment": decode_deployment(r)}
    m["buckets"] = [{"bucket": bucket(r), "epoch": r.ordinal(), "cursor": r.ordinal()}
                    for _ in range(r.count(2, 4097, 20))]
    r.fields()
    return m


def encode_entries(w, entries):
    w.u16(len(entries))
    w.u16(0)
    for entry in entries:
        inner = Writer()
        inner.i64(entry["sequence"])
        inner.u8(entry["kind"])
        inner.u8(0)
        inner.u16(entry["index"])
        inner.op_id(entry["operation"])
        inner.i64(entry["time"], entry["actual"], entry["charged"], entry["absorbed"])
        inner.blob(bytes.fromhex(entry["body"]))
        w.sized(4, inner)


def decode_entry(r):
    sequence, kind = r.ordinal(), r.u8()
    r.reserved(1)
    index, operation = r.u16(), r.op_id()
    entry = {"sequence": sequence, "kind": kind, "index": index, "operation": operation,
             "time": r.time(), "actual": r.i64(), "charged": r.i64(), "absorbed": r.i64(),
             "body": r.blob(786432).hex()}
    r.fields()
    return entry


def decode_entries(r):
    count = r.count(2, 4096, 68)
    r.reserved(2)
    return [decode_entry(Reader(r.raw(r.u32()))) for _ in range(count)]


def encode_batch(w, m):
    w.u32(m["bucket"])
    w.i64(m["epoch"], m["previous"])
    encode_entries(w, m["entries"])


def decode_batch(r):
    m = {"bucket": bucket(r), "epoch": r.ordinal(), "previous": r.ordinal(),
         "entries": decode_entries(r)}
    r.end()
    return m


def encode_batch_reply(w, m):
    w.u8(BATCH_STATUSES.index(m["status"]))
    w.u8(0)
    w.u16(0)
    w.u32(m["bucket"])
    w.i64(m["epoch"], m["cursor"], m["lastSequence"])
    w.u16(len(m["duplicates"]))
    for delta in m["duplicates"]:
        w.op_id(delta["operation"])
        w.u16(delta["index"])


def decode_batch_reply(r):
    status = r.u8()
    if status >= len(BATCH_STATUSES):
        raise WireError("BAD_REQUEST", "unknown batch status")
    r.reserved(3)
    m = {"status": BATCH_STATUSES[status], "bucket": bucket(r), "epoch": r.ordinal(),
         "cursor": r.ordinal(), "lastSequence": r.ordinal()}
    m["duplicates"] = [{"operation": r.op_id(), "index": r.u16()}
                       for _ in range(r.count(2, 4096, 18))]
    r.end()
    return m


def encode_bucket_and(*keys):
    def encode(w, m):
        w.u32(m["bucket"])
        w.i64(*[m[key] for key in keys])
    return encode


def decode_bucket_and(*keys):
    def decode(r):
        m = {"bucket": bucket(r)}
        for key in keys:
            m[key] = r.ordinal()
        r.end()
        return m
    return decode


def encode_present(w, m):
    w.u32(m["bucket"])
    w.i64(m["epoch"])
    encode_entries(w, m["entries"])


def decode_present(r):
    m = {"bucket": bucket(r), "epoch": r.ordinal(), "entries": decode_entries(r)}
    r.end()
    return m


def encode_epoch(w, m):
    w.u32(m["bucket"])
    w.i64(m["epoch"], m["previousEpoch"], m["previousLast"])
    w.name(m["opener"])


def decode_epoch(r):
    m = {"bucket": bucket(r), "epoch": r.ordinal(), "previousEpoch": r.ordinal(),
         "previousLast": r.ordinal(), "opener": r.name()}
    r.end()
    return m


def encode_balances(w, m):
    w.subject(m["account"])
    w.i64(m["since"])


def decode_balances(r):
    m = {"account": r.account(), "since": r.time()}
    r.end()
    return m


def encode_balances_reply(w, m):
    w.subject(m["account"])
    w.i64(m["version"])
    w.blob(m["config"].encode())
    w.u16(len(m["balances"]))
    for balance in m["balances"]:
        w.subject(balance["subject"])
        w.name(balance["feature"])
        w.text(balance["window"], 1, 80)
        w.period(balance["period"])
        w.i64(balance["settled"], balance["forgiven"])


def decode_balances_reply(r):
    m = {"account": r.account(), "version": r.ordinal(),
         "config": r.blob(262144).decode("utf-8", "surrogateescape")}
    m["balances"] = [
        {"subject": r.subject(), "feature": r.name(), "window": r.window(), "period": r.period(),
         "settled": r.quantity(), "forgiven": r.quantity()}
        for _ in range(r.count(2, 2048, 39))]
    r.end()
    return m


def encode_config(w, m):
    w.subject(m["account"])


def decode_config(r):
    m = {"account": r.optional_account()}
    r.end()
    return m


def encode_config_reply(w, m):
    w.subject(m["account"])
    w.i64(m["version"])
    w.blob(m["document"].encode())


def decode_config_reply(r):
    m = {"account": r.optional_account(), "version": r.ordinal(),
         "document": r.blob(DOCUMENT_BYTES_MAX).decode("utf-8", "surrogateescape")}
    r.end()
    return m


CODECS = {
    "HELLO": (encode_hello, decode_hello), "WELCOME": (encode_welcome, decode_welcome),
    "PING": (encode_nonce, decode_nonce), "PONG": (encode_nonce, decode_nonce),
    "GOAWAY": (encode_goaway, decode_goaway), "ERROR": (encode_error, decode_error),
    "CHECK": OPERATIONS, "CONSUME": OPERATIONS, "POST": OPERATIONS, "CANCEL": OPERATIONS,
    "RESERVE": (encode_records(encode_reserve), decode_records(decode_reserve, 19)),
    "SETTLE": (encode_records(encode_settle), decode_records(decode_settle, 36)),
    "RELEASE": (encode_records(encode_release), decode_records(decode_release, 34)),
    "EXTEND": (encode_records(encode_release), decode_records(decode_extend, 38)),
    "REFUND": (encode_records(encode_refund), decode_records(decode_refund, 35)),
    "DECISIONS": (encode_decisions, decode_decisions),
    "ADMIN": (encode_document, decode_document),
    "ADMIN_REPLY": (encode_document_reply, decode_document_reply),
    "LINK": (encode_link, decode_link), "LINKED": (encode_linked, decode_linked),
    "BATCH": (encode_batch, decode_batch), "BATCH_REPLY": (encode_batch_reply, decode_batch_reply),
    "RECOVER": (encode_bucket_and("epoch", "metaEpoch", "metaSequence"),
                decode_bucket_and("epoch", "metaEpoch", "metaSequence")),
    "PRESENT_REQUEST": (encode_bucket_and("epoch", "cursor"), decode_bucket_and("epoch", "cursor")),
    "PRESENT": (encode_present, decode_present), "EPOCH": (encode_epoch, decode_epoch),
    "BALANCES": (encode_balances, decode_balances),
    "BALANCES_REPLY": (encode_balances_reply, decode_balances_reply),
    "CONFIG": (encode_config, decode_config), "CONFIG_REPLY": (encode_config_reply, decode_config_reply),
    "QUERY": (encode_document, decode_document),
    "QUERY_REPLY": (encode_document_reply, decode_document_reply),
}


def encode_payload(opcode, message):
    writer = Writer()
    CODECS[opcode][0](writer, message)
    return bytes(writer.out)


def decode_payload(opcode, payload):
    return CODECS[opcode][1](Reader(payload))


# --------------------------------------------------------------------------------- delta bodies

def whole(maximum):
    def read(r):
        if r.left() > maximum:
            raise WireError("BAD_REQUEST", "a text is too long")
        return r.utf8(r.left())
    return read


def decode_cell(r):
    level = r.u8()
    if not 1 <= level <= 5:
        raise WireError("BAD_REQUEST", "level")
    return {"level": level, "window": r.window(), "period": r.period()}


def decode_part(r):
    return {**decode_cell(r), "amount": r.quantity()}


def decode_charge(r):
    return {"rate": r.name(), "from": r.time(), "units": r.quantity(), "charge": r.quantity()}


def known_source(r):
    number = r.u8()
    if number >= len(SOURCES):
        raise WireError("BAD_REQUEST", "unknown source")
    return SOURCES[number]


def whole_name(r):
    if r.left() > 64:
        raise WireError("BAD_REQUEST", "a text is too long")
    return r.name(r.left())


def known_scope(r):
    scope = whole(16)(r)
    if scope not in ("global", "account", "counter"):
        raise WireError("BAD_REQUEST", "unknown scope")
    return scope


USAGE_FIELDS = {1: lambda r: r.subject(r.left()), 2: whole_name, 3: lambda r: r.period(),
                4: counted(64, 19, decode_cell), 5: lambda r: r.ordinal(), 6: known_source,
                7: decode_attributes, 8: decode_trace, 9: counted(96, 27, decode_part),
                10: counted(16, 26, decode_charge), 11: Reader.op_id}
CONFIG_FIELDS = {1: known_scope, 2: whole(384), 3: lambda r: r.ordinal(), 4: whole(384),
                 5: whole(384), 6: whole(1024), 7: whole(786432), 8: whole(786432)}


def decode_usage_body(raw):
    f = Reader(raw).fields(USAGE_FIELDS)
    if not all(number in f for number in (1, 2, 3)):
        raise WireError("BAD_REQUEST", "a usage body without subject, feature or period")
    return {"subject": f[1], "feature": f[2], "period": f[3], "cells": f.get(4, []),
            "catalogVersion": f.get(5, 0), "source": f.get(6, "redis"),
            "attributes": f.get(7, {}), "traceParent": f.get(8, ""),
            **named(f, {9: "parts", 10: "charges", 11: "corrects"})}


def encode_cells(elements):
    w = Writer()
    w.u8(len(elements))
    for cell in elements:
        w.u8(cell["level"])
        w.text(cell["window"], 1, 80)
        w.period(cell["period"])
        if "amount" in cell:
            w.i64(cell["amount"])
    return bytes(w.out)


def encode_charges(charges):
    w = Writer()
    w.u8(len(charges))
    for charge in charges:
        w.name(charge["rate"])
        w.i64(charge["from"], charge["units"], charge["charge"])
    return bytes(w.out)


def encode_usage_body(m):
    w = Writer()
    w.field(1, m["subject"].encode())
    w.field(2, m["feature"].encode())
    w.field(3, struct.pack("<qq", m["period"]["start"], m["period"]["end"]))
    w.field(4, encode_cells(m["cells"]))
    w.field(5, struct.pack("<q", m["catalogVersion"]))
    w.field(6, bytes([SOURCES.index(m["source"])]))
    if m["attributes"]:
        w.field(7, encode_attributes(m["attributes"]))
    if m["traceParent"]:
        w.field(8, m["traceParent"].encode())
    if m.get("parts"):
        w.field(9, encode_cells(m["parts"]))
    if m.get("charges"):
        w.field(10, encode_charges(m["charges"]))
    if m.get("corrects"):
        w.field(11, bytes.fromhex(m["corrects"]))
    return bytes(w.out)


CONFIG_KEYS = {1: "scope", 2: "key", 3: "version", 4: "action", 5: "actor", 6: "reason",
               7: "before", 8: "after"}


def decode_config_body(raw):
    f = Reader(raw).fields(CONFIG_FIELDS)
    if 1 not in f or 3 not in f:
        raise WireError("BAD_REQUEST", "a configuration delta without scope or version")
    return {key: f.get(number, "") for number, key in CONFIG_KEYS.items()}


def encode_config_body(m):
    w = Writer()
    for number, key in CONFIG_KEYS.items():
        value = m[key]
        w.field(number, struct.pack("<q", value) if key == "version" else value.encode())
    return bytes(w.out)


# --------------------------------------------------------------------------------------- frames

class Header:
    __slots__ = ("opcode", "flags", "length", "deadline", "correlation")

    def __init__(self, opcode, flags, length, deadline, correlation):
        self.opcode, self.flags, self.length = opcode, flags, length
        self.deadline, self.correlation = deadline, correlation

    @property
    def name(self):
        return OPCODE_NAMES.get(self.opcode)


def encode_frame(opcode, message, correlation, deadline=0, flags=0):
    payload = encode_payload(opcode, message)
    return frame_bytes(OPCODES[opcode], payload, correlation, deadline, flags)


def frame_bytes(number, payload, correlation, deadline=0, flags=0):
    return HEADER.pack(
        MAGIC, VERSION, number, flags, 0, len(payload), deadline, correlation) + payload


def decode_header(raw, frame_bytes_max):
    magic, version, opcode, flags, reserved, length, deadline, correlation = HEADER.unpack(raw)
    if magic != MAGIC:
        raise WireError("BAD_FRAME", "wrong magic", fatal=True)
    if version != VERSION:
        raise WireError("UNSUPPORTED_VERSION", f"version {version}", fatal=True)
    if reserved:
        raise WireError("BAD_FRAME", "reserved header bytes are not zero", fatal=True)
    if HEADER.size + length > frame_bytes_max:
        raise WireError("FRAME_TOO_LARGE", f"{length} bytes", fatal=True)
    header = Header(opcode, flags, length, deadline, correlation)
    name = header.name
    if name is None:
        return header
    if flags & ~FLAGS.get(name, 0):
        raise WireError("BAD_FRAME", "flags", fatal=True)
    if name in PUSHES and correlation or name not in PUSHES | EITHER and not correlation:
        raise WireError("BAD_FRAME", "correlation id", fatal=True)
    if deadline > (600_000 if name in REQUESTS else 0):
        raise WireError("BAD_FRAME", "deadline", fatal=True)
    return header


class FrameDecoder:
    """Bytes in, (header, payload) out; keeps at most one incomplete frame."""

    def __init__(self, frame_bytes_max=FRAME_BYTES_MAX):
        self.frame_bytes_max, self.buffer, self.header = frame_bytes_max, bytearray(), None

    def feed(self, data):
        self.buffer += data

    def next(self):
        if self.header is None:
            if len(self.buffer) < HEADER.size:
                return None
            self.header = decode_header(bytes(self.buffer[:HEADER.size]), self.frame_bytes_max)
            del self.buffer[:HEADER.size]
        if len(self.buffer) < self.header.length:
            return None
        header, self.header = self.header, None
        payload = bytes(self.buffer[:header.length])
        del self.buffer[:header.length]
        return header, payload


# --------------------------------------------------------------------------------------- client

class Failure(Exception):
    """A request without a decision. `id` is the operation's id where it had one."""

    def __init__(self, code, message, id=None):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.id = code, message, id

    @property
    def retry_same_id(self):
        return self.code in RETRY_SAME_ID


class Rejected(Failure):
    """The server answered, and the request was certainly not applied."""


class NotSent(Failure):
    """No byte left this process: safe to send anywhere."""

    retry_same_id = True


class OutcomeUnknown(Failure):
    """May have been applied. Retry with the same id and body, or not at all. Where `home` names a
    sidecar, only that one knows: see `Homes`."""

    @property
    def home(self):
        return HOMES.get(self.id)


class Homes:
    """Which sidecar had an operation of scope `sidecar` first (PROTOCOL 6.1), for as long as it may
    have been applied there: elsewhere it would be decided anew, and counted again. Shared by all
    clients of this process, so that none of them sends it elsewhere: they raise OutcomeUnknown.
    Remembers the last `capacity` ids; what another process was told is not known here."""

    def __init__(self, capacity=10_000):
        self.capacity, self.lock, self.homes = capacity, threading.Lock(), {}

    def get(self, id):
        with self.lock:
            return self.homes.get(id)

    def sent(self, id, server):
        """Where it may be sent; and whether an earlier attempt of it is in doubt."""
        with self.lock:
            known = id in self.homes
            home = self.homes.setdefault(id, server)
            while len(self.homes) > self.capacity:
                del self.homes[next(iter(self.homes))]
            return home, known

    def settled(self, id):
        with self.lock:
            self.homes.pop(id, None)


HOMES = Homes()
KEPT_HOME = {"CONSUME", "POST", "CANCEL"}


class Decision:
    def __init__(self, id, fields):
        self.id = id
        self.__dict__.update(
            reason=fields["reason"], source=fields["source"], replayed=fields["replayed"],
            time=fields["time"], retry_after=fields["retryAfter"], binding=fields["binding"],
            binding_item=fields["bindingItem"], global_version=fields["globalVersion"],
            account_version=fields["accountVersion"], items=fields["items"],
            expires=fields.get("expires"), settlements=fields.get("settlements", []),
            burns=fields.get("burns", []), derived=fields.get("derived", []))

    @property
    def allowed(self):
        return REASON_NUMBERS[self.reason] < 16

    def __repr__(self):
        return f"Decision({self.reason}, {self.source}, items={self.items})"


def new_id(now_ms=None):
    """128 bits: 48 of time in milliseconds, 80 random; as 32 hex digits."""
    now_ms = int(_time.time() * 1000) if now_ms is None else now_ms
    return (now_ms.to_bytes(6, "big") + os.urandom(10)).hex()


def milliseconds(seconds):
    return max(1, int(seconds * 1000))


def failure(code, message, id=None):
    return (OutcomeUnknown if code in EFFECT_UNKNOWN else Rejected)(code, message, id)


class Client:
    """One connection. Thread-safe; any number of requests in flight, up to the server's limit."""

    def __init__(self, connection, token="", role="check", name="tollgate-python/1", slack=0.25,
                 hello_timeout=5.0):
        self.socket, self.slack = connection, slack
        self.lock, self.send_lock = threading.Lock(), threading.Lock()
        self.waiting, self.pieces, self.abandoned = {}, {}, set()
        self.homing = {}  # Of requests in flight: ids of scope sidecar, and whether new there.
        self.correlation, self.closed, self.going_away = 0, None, None
        self.welcome = None
        self.decoder = FrameDecoder()
        self.reader = threading.Thread(target=self._read, daemon=True)
        hello = {"versionMin": 1, "versionMax": 1, "role": role, "features": FEATURES,
                 "client": name, "token": token}
        self.reader.start()
        try:
            self.welcome = self._wait(self._send("HELLO", hello), hello_timeout)
        except BaseException:
            self.close()
            raise

    @classmethod
    def unix(cls, path, token="", **options):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise NotSent("UNAVAILABLE", str(error)) from None
        return cls(connection, token, **options)

    @classmethod
    def tcp(cls, host, port, token="", **options):
        try:
            connection = socket.create_connection((host, port))
        except OSError as error:
            raise NotSent("UNAVAILABLE", str(error)) from None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connection, token, **options)

    # ------------------------------------------------------------------------------ the calls

    def check(self, subject, items, **options):
        return self._one("CHECK", subject, items, **options)

    def consume(self, subject, items, **options):
        return self._one("CONSUME", subject, items, **options)

    def post(self, subject, items, id, **options):
        """Records what this client let through by failure policy, under the id it had."""
        return self._one("POST", subject, items, id=id, flags=CLIENT_FALLBACK, **options)

    def cancel(self, subject, items, id, **options):
        """Takes back a consume of unknown outcome that will not be repeated: same id and body."""
        return self._one("CANCEL", subject, items, id=id, **options)

    # Reservations: PROTOCOL 5.6 … 5.9. Times are seconds. `reservation` is the id of the reserve.

    def reserve(self, subject, items, ttl=None, overrun=None, bound=0, **options):
        """Holds an estimate; `decision.id` names the reservation. A decision without `expires`
        holds nothing. `overrun`: reject, clamp (the default) or overdraft up to `bound`."""
        terms = {"ttl": None if ttl is None else milliseconds(ttl),
                 "overrun": overrun and {"policy": overrun, "bound": bound}}
        return self._one("RESERVE", subject, items, terms=terms, **options)

    def settle(self, subject, reservation, used, final=True, floor=False, **options):
        """What was used since the settle before. 0 is a statement; not final: draws, and the hold
        lives on; floor: the stream was cut, and this is what is known."""
        terms = {"reservation": reservation, "final": final or floor, "floor": floor}
        return self._one("SETTLE", subject, used, terms=terms, **options)

    def release(self, subject, reservation, **options):
        """Only where it is certain that nothing more was used."""
        return self._one("RELEASE", subject, {}, terms={"reservation": reservation}, **options)

    def extend(self, subject, reservation, ttl, **options):
        terms = {"reservation": reservation, "ttl": milliseconds(ttl)}
        return self._one("EXTEND", subject, {}, terms=terms, **options)

    def refund(self, subject, corrects, items=None, reason="", **options):
        """Gives back what a consume, post or settle was charged; without items, all of it."""
        terms = {"corrects": corrects, "reason": reason}
        return self._one("REFUND", subject, items or {}, terms=terms, **options)

    def reservation(self, subject, items, **options):
        """A `Reservation`, for `with`."""
        return Reservation(self, subject, items, **options)

    def batch(self, opcode, records, deadline=0.0):
        """Many records in one frame; a list of Decision or Failure, in order."""
        message = {"records": records}
        future = self._send(opcode, message, deadline, id=records[0]["id"],
                            flags=CLIENT_FALLBACK if opcode == "POST" else 0)
        return self._outcomes(records, self._wait(future, self._patience(deadline)))

    def submit(self, opcode, subject, items, id=None, deadline=0.0):
        """Sends without waiting. The Future's result is the DECISIONS message (a dictionary)."""
        record = self._record(subject, items, id)
        return record["id"], self._send(opcode, {"records": [record]}, deadline, id=record["id"])

    def admin(self, method, document=None, deadline=0.0):
        """Rejected: nothing was changed. OutcomeUnknown: repeat a change with the same operation
        id, and only if it named one. Without a deadline the server has the longest it grants."""
        number = ADMIN_METHODS[method] if isinstance(method, str) else method
        text = json.dumps(document or {})
        reply = self._wait(self._send("ADMIN", {"method": number, "document": text}, deadline),
                           self._patience(deadline or self.welcome["maxDeadline"] / 1000))
        if reply["status"] != "OK":
            raise failure(reply["status"], reply["document"])
        return json.loads(reply["document"] or "{}")

    def ping(self, timeout=5.0):
        nonce = int.from_bytes(os.urandom(8), "little")
        if self._wait(self._send("PING", {"nonce": nonce}), timeout)["nonce"] != nonce:
            raise OutcomeUnknown("BAD_FRAME", "a pong with another nonce")

    @property
    def policies(self):
        return {policy["feature"]: policy for policy in self.welcome["policies"]}

    @property
    def server(self):
        return self.welcome["server"]

    @property
    def sidecar_features(self):
        """Features of which only the sidecar knows that was asked first."""
        return frozenset(self.welcome.get("sidecarFeatures", ()))

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
        if threading.current_thread() is not self.reader:
            self.reader.join()

    # ---------------------------------------------------------------------------- inside

    @staticmethod
    def _record(subject, items, id=None, attributes=None, trace_parent=""):
        return {"id": id or new_id(), "subject": subject, "attributes": attributes or {},
                "items": [{"feature": f, "amount": a} for f, a in items.items()],
                "traceParent": trace_parent}

    def _one(self, opcode, subject, items, id=None, deadline=0.0, flags=0, terms=None, **extra):
        record = {**self._record(subject, items, id, **extra), **(terms or {})}
        future = self._send(opcode, {"records": [record]}, deadline, flags, record["id"])
        outcome = self._outcomes([record], self._wait(future, self._patience(deadline)))[0]
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    def _patience(self, deadline):
        seconds = deadline or self.welcome["defaultDeadline"] / 1000
        return min(seconds, self.welcome["maxDeadline"] / 1000 or seconds) + self.slack

    def _outcomes(self, records, reply):
        if len(reply["records"]) != len(records):
            self._fail("BAD_FRAME", "another number of answers than of records")
            raise OutcomeUnknown("BAD_FRAME", "another number of answers", records[0]["id"])
        return [failure(answer["error"], answer["message"], record["id"]) if "error" in answer
                else Decision(record["id"], answer)
                for record, answer in zip(records, reply["records"])]

    def _send(self, opcode, message, deadline=0.0, flags=0, id=None):
        if opcode in RESERVATION_OPCODES and not self.welcome["features"] & FEATURE_RESERVATIONS:
            raise NotSent("UNKNOWN_OPCODE", "this server has no reservations", id)
        payload = encode_payload(opcode, message)
        future = concurrent.futures.Future()
        homing = self._address(opcode, message)
        with self.lock:
            if self.closed or self.going_away:
                self._unsent(homing)
                raise NotSent("DRAINING" if self.going_away else "UNAVAILABLE",
                              str(self.closed or self.going_away), id)
            if self.welcome and len(self.waiting) >= self.welcome["inFlightMax"]:
                self._unsent(homing)
                raise NotSent("OVERLOADED", "too many requests in flight", id)
            self.correlation += 1
            correlation = future.correlation = self.correlation
            self.waiting[correlation] = (future, id)
            if homing:
                self.homing[correlation] = homing
        data = frame_bytes(OPCODES[opcode], payload, correlation, int(deadline * 1000), flags)
        try:
            with self.send_lock:
                self.socket.sendall(data)
        except OSError as error:
            # Some bytes may have left: the outcome is unknown, which _fail says to all in flight.
            self._fail("UNAVAILABLE", str(error))
        return future

    def _address(self, opcode, message):
        """Raises where only another sidecar may be asked. [(id, new)], one for each record of scope
        sidecar; None for the others."""
        if opcode not in KEPT_HOME:
            return None
        scoped, homing = self.sidecar_features, []
        for record in message["records"]:
            known = HOMES.get(record["id"])
            # What a POST tells was let through by no sidecar; under a new id it goes anywhere.
            if known is None and not (opcode == "CONSUME" and record["items"] and all(
                    item["feature"] in scoped for item in record["items"])):
                homing.append(None)
                continue
            home, was_known = HOMES.sent(record["id"], self.server)
            homing.append((record["id"], not was_known))
            if home != self.server:
                self._unsent(homing)
                raise OutcomeUnknown("OUTCOME_UNKNOWN", f"only {home} knows of it", record["id"])
        return homing if any(homing) else None

    @staticmethod
    def _unsent(homing):
        for entry in homing or ():
            if entry and entry[1]:
                HOMES.settled(entry[0])

    @staticmethod
    def _heard(homing, answers):
        """A decision settles it. An error that excludes an effect does so for this attempt alone."""
        for entry, answer in zip(homing, answers):
            if entry and ("error" not in answer
                          or (entry[1] and answer["error"] not in EFFECT_UNKNOWN)):
                HOMES.settled(entry[0])

    def _wait(self, future, timeout):
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            with self.lock:
                _, id = self.waiting.pop(future.correlation, (None, None))
                self.pieces.pop(future.correlation, None)
                self.abandoned.add(future.correlation)
                self.homing.pop(future.correlation, None)
            raise OutcomeUnknown("DEADLINE_EXCEEDED", "no answer in time", id) from None

    def _read(self):
        try:
            while True:
                data = self.socket.recv(65536)
                if not data:
                    return self._fail("UNAVAILABLE", "the server closed the connection")
                self.decoder.feed(data)
                while (frame := self.decoder.next()) is not None:
                    self._received(*frame)
        except (OSError, WireError) as error:
            self._fail("UNAVAILABLE", str(error))

    def _received(self, header, payload):
        if header.name is None:
            if header.correlation == 0:
                return  # A push of a later release.
            raise WireError("BAD_FRAME", "an opcode that this client does not know", fatal=True)
        if header.name == "PING":
            # The server's ids are its own: one that equals an id of ours answers nothing.
            with self.send_lock:
                self.socket.sendall(frame_bytes(OPCODES["PONG"], payload, header.correlation))
            return
        message = decode_payload(header.name, payload)
        if header.name == "GOAWAY":
            self.going_away = f"{message['code']}: {message['message']}"
            return
        if header.correlation == 0:
            if header.name == "WELCOME":
                self.welcome = message  # New failure policies; everything else is as it was.
                return
            raise WireError(message.get("code", "BAD_FRAME"), message.get("message", ""), True)
        with self.lock:
            if header.correlation in self.abandoned:
                if not header.flags & MORE:
                    self.abandoned.discard(header.correlation)
                return
            if header.correlation not in self.waiting:
                raise WireError("BAD_FRAME", "an answer that nobody awaits", fatal=True)
            if header.flags & MORE:
                self.pieces.setdefault(header.correlation, []).append(message["document"])
                return
            future, id = self.waiting.pop(header.correlation)
            pieces = self.pieces.pop(header.correlation, None)
            homing = self.homing.pop(header.correlation, None)
        if homing:
            self._heard(homing, message["records"] if header.name == "DECISIONS"
                        else [{"error": message["code"]}] * len(homing))
        if pieces:
            whole_bytes = b"".join(
                p.encode("utf-8", "surrogateescape") for p in pieces + [message["document"]])
            message["document"] = whole_bytes.decode("utf-8")
        if header.name == "ERROR":
            future.set_exception(failure(message["code"], message["message"], id))
        else:
            future.set_result(message)

    def _fail(self, code, message):
        with self.lock:
            if self.closed is None:
                self.closed = f"{code}: {message}"
            waiting, self.waiting, self.homing = self.waiting, {}, {}
        for future, id in waiting.values():
            future.set_exception(OutcomeUnknown(code, message, id))


class Reservation:
    """A hold that lasts as long as a `with` block, and is charged with what was used in it.

    It extends itself from a thread. When the block ends, what `use` was told is settled: for good,
    or as floor where the block raised or did not say for every feature what it used. Where it
    raised and nothing was told, nothing is known: the hold is left to expire, never released.
    `release` is for who is certain. A denial is a result: `allowed` is False and nothing is held.
    What could not be delivered stays here: `finish` sends it again, under the same ids, also by
    another client. Methods may be called from any thread."""

    def __init__(self, client, subject, items, ttl=60.0, id=None, attributes=None,
                 trace_parent="", patience=10.0, **terms):
        self.client, self.subject, self.estimate, self.ttl = client, subject, dict(items), ttl
        self.id, self.patience, self.terms = id or new_id(), patience, terms
        self.options = {"attributes": attributes, "trace_parent": trace_parent}
        self.decision = self.outcome = self.failure = None
        self.used, self.pending = {}, {}  # told in all; told and not settled yet
        self.limit_reached = self.lost = False  # should stop; the hold expired under the block
        self.drawn = self.ended = self.late = False
        self.unanswered = None  # a settle that may have been applied: it goes first, as it was
        self.lock, self.over = threading.RLock(), threading.Event()
        self.thread = None

    @property
    def allowed(self):
        return self.decision is not None and self.decision.allowed

    @property
    def holds(self):
        """False where a failure policy let it through: there is no hold, use is posted."""
        return self.allowed and self.decision.expires is not None

    def __enter__(self):
        sent = _time.monotonic()
        self.decision = self._insist(lambda: self.client.reserve(
            self.subject, self.estimate, ttl=self.ttl, id=self.id, **self.terms, **self.options))
        if self.holds:
            lives = sent + (self.decision.expires - self.decision.time) / 1000
            self.thread = threading.Thread(target=self._extend, args=(lives,), daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self.over.set()
        try:
            if error is None or self.used:
                self.finish(floor=error is not None)
        except Failure as failed:
            self.failure = failed
            if error is None:
                raise
        finally:
            if self.thread:
                self.thread.join()
        return False

    def use(self, feature, amount):
        """So much more was used. 0 says that it is known to be nothing."""
        if feature not in self.estimate or amount < 0:
            raise ValueError(f"{amount} of {feature} cannot be used of {self.estimate}")
        with self.lock:
            if not self.allowed or (self.ended and not self.late):
                raise ValueError("nothing may be used of a reservation that was denied or is over")
            for told in (self.used, self.pending):
                told[feature] = told.get(feature, 0) + amount

    def draw(self):
        """Settles what was told so far, and keeps the rest of the hold. After it,
        `limit_reached` says whether the stream should stop."""
        with self.lock:
            self._again()
            if self.holds and self.pending and not (self.ended or self.lost):
                self._settle(final=False, floor=False)
            return self.outcome

    def release(self):
        """For who is certain that nothing was used."""
        with self.lock:
            if any(self.used.values()):
                raise ValueError("what was used is settled, not released")
            self.over.set()
            self._again()
            if self.holds and not self.ended:
                self.unanswered = {"id": new_id(), "release": True}
                self._again()
            self.ended = True
            return self.outcome

    def finish(self, client=None, floor=False):
        """Ends the reservation with what was told. Again, where that failed: safe to call."""
        with self.lock:
            self.client = client or self.client
            self.over.set()
            self._again()
            if self.late and any(self.pending.values()):
                self._post(self._take())  # A late settle ended it, and this came after.
            if self.ended or not self.allowed:
                return self.outcome
            unsaid = self.estimate.keys() - self.used.keys()
            for feature in self.estimate:
                self.pending.setdefault(feature, 0)
            if self.holds:
                self._settle(final=True, floor=floor or bool(unsaid))
            else:
                self._post(self._take())
            return self.outcome

    # ---------------------------------------------------------------------------- inside

    def _settle(self, final, floor):
        self.unanswered = {"id": new_id(), "used": self._take(), "final": final, "floor": floor}
        self._again()

    def _take(self):
        told, self.pending = self.pending, {}
        return told

    def _post(self, used, settle=None):
        """What no hold covers: of a settle that found none, under its id, which keeps it from
        counting twice."""
        settle = settle or {"id": new_id(), "final": True}
        if any(used.values()):
            self.unanswered = {**settle, "used": used, "post": True, "settle": settle}
            self._again()
        else:
            self._let_go(settle)
        self.ended = self.ended or settle["final"]

    def _let_go(self, settle):
        """A final settle found no hold. Should it come back, nobody else would end it."""
        if settle["final"] and "floor" in settle:
            try:
                self.client.release(self.subject, self.id)
            except Failure:
                pass  # It is gone, or it expires.

    def _again(self):
        """Sends what is unanswered, with the id it has, until it is answered."""
        ask = self.unanswered
        if ask is None:
            return
        try:
            self.outcome = self._insist(lambda: self._ask(ask))
        except Rejected as rejected:
            if rejected.retry_same_id:
                raise  # Not applied, and still to be said.
            self.unanswered = None
            if self._finds_no_hold(rejected, ask):
                return self._post(ask["used"], ask)
            if rejected.code == "IDEMPOTENCY_MISMATCH" and "floor" in ask.get("settle", {}):
                self.unanswered = ask["settle"]  # It was applied after all: its record answers.
                return self._again()
            if rejected.code in ("RESERVATION_UNKNOWN", "RESERVATION_ENDED"):
                self.ended = True
            for feature, amount in ask.get("used", {}).items():
                self.pending[feature] = self.pending.get(feature, 0) + amount
            raise
        except OutcomeUnknown as unknown:
            if not self._finds_no_hold(unknown, ask):
                raise
            return self._post(ask["used"], ask)
        self.unanswered = None
        if "post" in ask:
            self._let_go(ask["settle"])
        self.drawn = self.drawn or "post" not in ask
        self.limit_reached = self.outcome.reason == "SETTLED_CLAMPED"
        self.late = self.outcome.reason == "SETTLED_LATE"
        if ask.get("final") or "release" in ask or self.late:
            self.ended = True

    @staticmethod
    def _finds_no_hold(failed, ask):
        """PROTOCOL 5.7, use without a hold."""
        if "floor" not in ask or "post" in ask:
            return False
        return (failed.code in ("RESERVATION_UNKNOWN", "ID_TOO_OLD")
                or failed.code == "RESERVATION_ENDED" and not ask["final"])

    def _ask(self, ask):
        if "release" in ask:
            return self.client.release(self.subject, self.id, id=ask["id"])
        if "post" in ask:
            return self.client.post(self.subject, ask["used"], id=ask["id"], **self.options)
        return self.client.settle(self.subject, self.id, ask["used"], final=ask["final"],
                                  floor=ask["floor"], id=ask["id"], **self.options)

    def _insist(self, call):
        """Repeats, under the same id, what may be repeated; no longer than `patience`."""
        end, pause = _time.monotonic() + self.patience, 0.02
        while True:
            try:
                return call()
            except Failure as failed:
                hopeless = isinstance(failed, NotSent) and failed.code != "OVERLOADED"
                if (hopeless or not failed.retry_same_id or self.client.closed
                        or self.client.going_away or _time.monotonic() + pause > end):
                    raise
            _time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _extend(self, lives):
        """Prolongs the hold at half of what is left of it, until the block is over."""
        while not self.over.wait(max(0.01, (lives - _time.monotonic()) / 2)):
            sent = _time.monotonic()
            try:
                answer = self.client.extend(self.subject, self.id, self.ttl)
                lives = sent + (answer.expires - answer.time) / 1000
            except Failure as failed:
                if failed.code in ("RESERVATION_ENDED", "RESERVATION_UNKNOWN"):
                    self.lost = True  # A late settle still finds what is used.
                if self.lost or self.client.closed or lives <= _time.monotonic():
                    return
