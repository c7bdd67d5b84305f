"""Writes frames-*.json and bodies.json with the Python client. The Swift tests check the result
against the Swift codec, which shares no line with it; `by-hand.json` is checked by both."""

import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "clients", "python"))
import tollgate as t  # noqa: E402

ID1 = "0199a1b2c3d4000102030405060708ff"
ID2 = "0199a1b2c3d5ffeeddccbbaa99887766"
TIME = 1_763_700_000_123
MONTH = {"start": 1_761_955_200_000, "end": 1_764_547_200_000}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MAX = t.QUANTITY_MAX
DIRECTIONS = {name: "client to server" for name in t.REQUESTS}
DIRECTIONS.update({name: "server to client" for name in t.OPCODES if name not in t.REQUESTS})
DIRECTIONS.update({"RECOVER": "client to server", "PRESENT": "client to server",
                   "PING": "either way", "PONG": "either way", "GOAWAY": "either way"})


def record(id=ID1, subject="acme", items=(("chat.requests", 1),), attributes=None, trace=""):
    return {"id": id, "subject": subject, "attributes": attributes or {}, "traceParent": trace,
            "items": [{"feature": f, "amount": a} for f, a in items]}


def state(**changes):
    return {"remaining": None, "settled": 0, "held": 0, "reset": None, "limit": None, **changes}


def decision(reason="ALLOWED", **changes):
    return {"reason": reason, "source": "redis", "replayed": False, "time": TIME,
            "globalVersion": 7, "accountVersion": 3, "retryAfter": None, "bindingItem": None,
            "binding": None, "items": [], **changes}


def entry(sequence, index=0, kind=1, actual=5, charged=5, body="", operation=ID1):
    return {"sequence": sequence, "kind": kind, "index": index, "operation": operation,
            "time": TIME, "actual": actual, "charged": charged, "absorbed": actual - charged,
            "body": body}


def good(name, opcode, fields, correlation=1, deadline=0, flags=0):
    return {
        "name": name, "direction": DIRECTIONS[opcode],
        "header": {"opcode": opcode, "flags": flags, "deadline": deadline,
                   "correlation": correlation},
        "fields": fields,
        "hex": t.encode_frame(opcode, fields, correlation, deadline, flags).hex()}


def raw(name, opcode, payload, fields, correlation=1, canonical=True):
    vector = {
        "name": name, "direction": DIRECTIONS[opcode],
        "header": {"opcode": opcode, "flags": 0, "deadline": 0, "correlation": correlation},
        "fields": fields,
        "hex": t.frame_bytes(t.OPCODES[opcode], payload, correlation).hex()}
    if not canonical:
        vector["canonical"] = False
    return vector


def bad(name, data, code, fatal=False, direction="client to server", **more):
    return {"name": name, "direction": direction, "hex": data.hex(),
            "error": {"code": code, "fatal": fatal}, **more}


def payload(opcode, fields):
    return t.encode_payload(opcode, fields)


def framed(opcode, data, correlation=1, **more):
    return t.frame_bytes(t.OPCODES[opcode], data, correlation, **more)


def changed(data, at, value):
    return data[:at] + value + data[at + len(value):]


# ----------------------------------------------------------------------------------------- good

HELLO = {"versionMin": 1, "versionMax": 1, "role": "check", "features": 0,
         "client": "editor-backend/4.2", "token": "s3cret"}
WELCOME = {"version": 1, "role": "check", "features": 0, "deployment": "prod-eu",
           "server": "pod-7.a", "frameBytesMax": 65536, "inFlightMax": 1024, "recordsMax": 1024,
           "defaultDeadline": 50, "maxDeadline": 5000, "idleTimeout": 60000, "time": TIME,
           "globalVersion": 7, "policies": [
               {"feature": "chat.requests", "policy": "open", "allowance": 100},
               {"feature": "spend", "policy": "closed", "allowance": 0},
               {"feature": "tab", "policy": "stale", "allowance": 0}]}
DEPLOYMENT = {"id": "prod-eu", "buckets": 64, "keyVersion": 1, "mode": "prod", "hash": "fnv1a64m"}
LONG_NAME = "n" * 64
DEEP = "/".join("s" * 64 for _ in range(5))
USAGE = {"subject": "acme/alice", "feature": "tokens.output", "period": MONTH,
         "cells": [{"level": 1, "window": "M", "period": MONTH},
                   {"level": 2, "window": "90s", "period": {"start": 1_763_699_940_000,
                                                            "end": 1_763_700_030_000}}],
         "catalogVersion": 12, "source": "policy",
         "attributes": {"model": "gpt-x", "region": "eu-1"}, "traceParent": TRACE}
WINDOWS = ["M@", "7200s@", "L", "oM@", "oL", "o60s", "$spend.included", "$" + "g" * 64,
           "rsmall.input,1764547200000", "r" + "r" * 62 + ",9007199254740991", "r1,0", "c", "-"]
CORRECTED = {**USAGE, "source": "redis", "attributes": {}, "traceParent": "", "corrects": ID2}
SPENT = {**CORRECTED, "feature": "spend",
         "cells": [{"level": 1, "window": "M@", "period": MONTH}],
         "parts": [{"level": 1, "window": "$spend.included", "period": MONTH, "amount": 4_000_000},
                   {"level": 1, "window": "oM@", "period": MONTH, "amount": 17},
                   {"level": 2, "window": "-", "period": {"start": 0, "end": MAX}, "amount": -17}],
         "charges": [{"rate": "small.input", "from": 0, "units": 26_666_667, "charge": 4_000_000},
                     {"rate": "small.output", "from": TIME, "units": 1, "charge": 17}]}
CONFIG = {"scope": "account", "key": "acme", "version": 4, "action": "limit.set",
          "actor": "ops@example.org", "reason": "Grün, für März", "before": '{"version":3}',
          "after": '{"version":4}'}


def session():
    return [
        good("hello", "HELLO", HELLO),
        good("hello without token, admin, utf-8 name", "HELLO",
             {**HELLO, "token": "", "role": "admin", "client": "консоль/1", "features": 5}),
        good("hello for the ledger, versions 1 to 3", "HELLO",
             {**HELLO, "role": "ledger", "versionMax": 3}),
        good("welcome with three policies", "WELCOME", WELCOME),
        good("welcome of a ledger", "WELCOME", {**WELCOME, "role": "ledger", "policies": []}),
        good("welcome again, new policies", "WELCOME", WELCOME, correlation=0),
        good("welcome with features of scope sidecar", "WELCOME",
             {**WELCOME, "sidecarFeatures": ["chat.requests", "tab"]}),
        good("ping", "PING", {"nonce": 0x0123456789ABCDEF}),
        good("ping with the largest numbers", "PING", {"nonce": (1 << 64) - 1},
             correlation=(1 << 64) - 1, deadline=600_000),
        good("pong", "PONG", {"nonce": 0}),
        good("goaway draining", "GOAWAY",
             {"code": "DRAINING", "grace": 10_000, "message": "the sidecar stops"}, correlation=0),
        good("goaway idle", "GOAWAY", {"code": "IDLE_TIMEOUT", "grace": 0, "message": ""},
             correlation=0),
        good("error of a request", "ERROR",
             {"code": "OVERLOADED", "message": "too much at once", "field": ""}, correlation=9),
        good("error of the connection", "ERROR",
             {"code": "FRAME_TOO_LARGE", "message": "a frame of 2 GiB", "field": "length"},
             correlation=0),
        raw("hello with an unknown optional field", "HELLO",
            payload("HELLO", HELLO) + struct.pack("<HH", 900, 3) + b"abc", HELLO, canonical=False),
        raw("error with an unknown number", "ERROR", struct.pack("<HHH", 999, 0, 2) + b"hm\0",
            {"code": "INTERNAL_ERROR", "message": "hm", "field": ""}, canonical=False),
    ]


def operations():
    sixteen = [(f"f{n}", n) for n in range(16)]
    return [
        good("consume one item", "CONSUME", {"records": [record()]}, deadline=50),
        good("check, zero id, amount zero", "CHECK",
             {"records": [record(id="0" * 32, items=[("tab", 0)])]}),
        good("consume several items, attributes, trace", "CONSUME",
             {"records": [record(subject="acme/alice/run-1", trace=TRACE,
                                 items=[("tokens.input", 1200), ("tokens.output", 88)],
                                 attributes={"model": "gpt-x", "region": "eu-1", "Zone": "ü"})]}),
        good("consume three records", "CONSUME",
             {"records": [record(), record(id=ID2, subject="b@example.org"),
                          record(id=ID2, subject="c/d+e")]}),
        good("post by client fallback", "POST", {"records": [record()]}, flags=2),
        good("post without the flag", "POST", {"records": [record()]}),
        good("cancel", "CANCEL", {"records": [record()]}),
        good("sixteen items, longest names, largest amount", "CONSUME",
             {"records": [record(subject=DEEP, items=sixteen[:15] + [(LONG_NAME, MAX)])]}),
        good("sixteen attributes of full length", "CONSUME",
             {"records": [record(attributes={f"k{n:02}": "v" * 128 for n in range(16)},
                                 trace="t" * 64)]}),
        raw("a record with an unknown optional field", "CONSUME", with_field(0x0064, b"new"),
            {"records": [record()]}, canonical=False),
        raw("a known field marked critical", "CONSUME", with_field(0x8002, TRACE.encode()),
            {"records": [record(trace=TRACE)]}, canonical=False),
    ]


def with_field(tag, data, length=None):
    """One plain record with one more field."""
    inner = payload("CONSUME", {"records": [record()]})[6:]
    inner += struct.pack("<HH", tag, len(data) if length is None else length) + data
    return one(inner)


def one(inner, length=None, count=1):
    return struct.pack("<HHH", count, 0, len(inner) if length is None else length) + inner


def decisions():
    return [
        good("allowed", "DECISIONS", {"records": [decision(items=[state(
            limit="chat-month", remaining=499, settled=1, held=0, reset=MONTH["end"])])]}),
        good("denied by quota", "DECISIONS", {"records": [decision(
            "QUOTA_EXCEEDED", retryAfter=847_199_877, bindingItem=0, binding="chat-month",
            items=[state(limit="chat-month", remaining=0, settled=500, reset=MONTH["end"])])]}),
        good("denied for good, replayed, no states", "DECISIONS", {"records": [decision(
            "COST_ABOVE_BURST", replayed=True, bindingItem=1, binding="rate")]}),
        good("every reason", "DECISIONS",
             {"records": [decision(reason, source=t.SOURCES[number % 4])
                          for number, reason in t.REASONS.items()]}),
        good("every error", "DECISIONS",
             {"records": [{"error": code, "message": f"about {code}"}
                          for code in t.ERRORS.values()]}),
        good("mixed, in order", "DECISIONS",
             {"records": [decision(), {"error": "IDEMPOTENCY_MISMATCH", "message": "items differ"},
                          decision("RATE_LIMITED", retryAfter=1, binding="r", bindingItem=15)]}),
        good("extremes", "DECISIONS", {"records": [decision(
            time=-MAX, globalVersion=MAX, accountVersion=MAX, retryAfter=0, items=[
                state(remaining=0, settled=-MAX, held=MAX, reset=0),
                state(remaining=MAX, settled=MAX)])]}),
        raw("a decision with an unknown optional field", "DECISIONS", one(
            payload("DECISIONS", {"records": [decision()]})[6:] + struct.pack("<HH", 900, 0)),
            {"records": [decision()]}, canonical=False),
        raw("a record with an unknown error", "DECISIONS",
            one(struct.pack("<HH", 4000, 1) + b"x"),
            {"records": [{"error": "INTERNAL_ERROR", "message": "x"}]}, canonical=False),
    ]


def documents():
    vectors = [good(f"admin {name}", "ADMIN", {"method": number, "document": "{}"},
                    correlation=number, deadline=30_000)
               for name, number in t.ADMIN_METHODS.items()]
    return vectors + [
        good("admin, unknown method, empty document", "ADMIN", {"method": 60000, "document": ""}),
        good("admin reply", "ADMIN_REPLY", {"status": "OK", "document": '{"version":8}'}),
        good("admin reply, a piece", "ADMIN_REPLY", {"status": "OK", "document": '{"rows":['},
             flags=1),
        good("admin reply, error", "ADMIN_REPLY",
             {"status": "CONFLICT", "document": '{"message":"größer"}'}),
        good("query", "QUERY", {"method": 1, "document": '{"account":"acme"}'}),
        good("query reply", "QUERY_REPLY", {"status": "OK", "document": "{}"}, flags=1),
    ]


def ledger():
    usage, config = t.encode_usage_body(USAGE).hex(), t.encode_config_body(CONFIG).hex()
    entries = [entry(41, body=usage), entry(42, index=64, kind=2, actual=-5, charged=-5),
               entry(43, kind=3, actual=0, charged=0, body=config, operation=ID2)]
    later = [entry(44, actual=9, charged=5, body=t.encode_usage_body(SPENT).hex()),
             entry(45, kind=4, actual=-5, charged=-5, body=t.encode_usage_body(CORRECTED).hex()),
             entry(46, kind=5, actual=-MAX, charged=-MAX,
                   body=t.encode_usage_body(CORRECTED).hex())]
    balances = [{"subject": "acme", "feature": "chat.requests", "window": "M", "period": MONTH,
                 "settled": 17, "forgiven": 0}] + [
                {"subject": "acme", "feature": "spend", "window": window, "period": MONTH,
                 "settled": 1, "forgiven": 0} for window in WINDOWS] + [
                {"subject": "acme/alice", "feature": "tab", "window": "3600s",
                 "period": {"start": 0, "end": 3_600_000}, "settled": -1, "forgiven": MAX}]
    account = {"account": "acme", "version": 4, "config": '{"plan":"pro"}'}
    return [
        good("link", "LINK", {"deployment": DEPLOYMENT, "sidecar": "pod-7.a", "incarnation": TIME}),
        good("link in dev", "LINK", {"deployment": {**DEPLOYMENT, "mode": "dev", "buckets": 4096},
                                     "sidecar": "s", "incarnation": (1 << 64) - 1}),
        good("linked, nothing open", "LINKED", {"deployment": DEPLOYMENT, "buckets": []}),
        good("linked", "LINKED", {"deployment": DEPLOYMENT, "buckets": [
            {"bucket": 0, "epoch": 1, "cursor": 42}, {"bucket": 64, "epoch": 9, "cursor": 0}]}),
        good("batch", "BATCH", {"bucket": 3, "epoch": 2, "previous": 40, "entries": entries}),
        good("batch with a settle, a refund and an adjustment", "BATCH",
             {"bucket": 3, "epoch": 2, "previous": 43, "entries": later}),
        good("batch without entries", "BATCH",
             {"bucket": 64, "epoch": 1, "previous": 0, "entries": []}),
        good("batch with kinds that the ledger parks", "BATCH",
             {"bucket": 0, "epoch": 1, "previous": 0,
              "entries": [entry(1, kind=0), entry(2, kind=6), entry(3, kind=255)]}),
        good("batch with numbers that the ledger parks", "BATCH",
             {"bucket": 0, "epoch": 1, "previous": 0, "entries": [
                 {**entry(1, body="00"), "actual": -(1 << 63), "charged": (1 << 63) - 1}]}),
        good("ack with duplicates", "BATCH_REPLY",
             {"status": "ack", "bucket": 3, "epoch": 2, "cursor": 43, "lastSequence": 0,
              "duplicates": [{"operation": ID1, "index": 0}, {"operation": ID2, "index": 64}]}),
    ] + [
        good(status, "BATCH_REPLY", {"status": status, "bucket": 3, "epoch": 3, "cursor": 40,
                                     "lastSequence": last, "duplicates": []})
        for status, last in (("gap", 0), ("fenced", 45), ("forked", 39))
    ] + [
        good("recover, redis is empty", "RECOVER",
             {"bucket": 3, "epoch": 2, "metaEpoch": 0, "metaSequence": 0}, correlation=0),
        good("present request", "PRESENT_REQUEST", {"bucket": 3, "epoch": 2, "cursor": 43},
             correlation=0),
        good("present, more to come", "PRESENT", {"bucket": 3, "epoch": 2, "entries": entries},
             correlation=0, flags=1),
        good("present, holding nothing", "PRESENT", {"bucket": 3, "epoch": 2, "entries": []},
             correlation=0),
        good("epoch", "EPOCH", {"bucket": 3, "epoch": 3, "previousEpoch": 2, "previousLast": 45,
                                "opener": "pod-7.a"}, correlation=0),
        good("balances", "BALANCES", {"account": "acme", "since": TIME}),
        good("balances reply", "BALANCES_REPLY", {**account, "balances": balances}),
        good("balances reply, unknown account, a page", "BALANCES_REPLY",
             {"account": "acme", "version": 0, "config": "", "balances": []}, flags=1),
        good("config, global", "CONFIG", {"account": None}),
        good("config, account", "CONFIG", {"account": "acme"}),
        good("config reply, global", "CONFIG_REPLY",
             {"account": None, "version": 7, "document": '{"version":7}'}),
        good("config reply, nothing known", "CONFIG_REPLY",
             {"account": "acme", "version": 0, "document": ""}),
    ]


# --------------------------------------------------------------------------------- reservations

def reserve(ttl=None, overrun=None, bound=0, **changes):
    return {**record(**changes), "ttl": ttl,
            "overrun": overrun and {"policy": overrun, "bound": bound}}


def settle(final=True, floor=False, **changes):
    return {**record(**{"id": ID2, **changes}), "reservation": ID1, "final": final, "floor": floor}


def release(subject="acme", trace=""):
    return {"id": ID2, "subject": subject, "reservation": ID1, "traceParent": trace}


def extend(ttl=60_000, **changes):
    return {**release(**changes), "ttl": ttl}


def refund(items=(("chat.requests", 1),), reason="", **changes):
    return {**record(items=items, **{"id": ID2, **changes}), "corrects": ID1, "reason": reason}


def settled(actual, charged):
    return {"actual": actual, "charged": charged, "absorbed": actual - charged}


def burn(item, grant, amount):
    return {"item": item, "grant": grant, "amount": amount}


def reservations():
    tokens = [("tokens.input", 1200), ("tokens.output", 4096)]
    sixteen = [(f"f{n}", MAX - n) for n in range(16)]
    full = {"attributes": {"model": "gpt-x"}, "trace": TRACE}
    limits = [state(limit="tok-in", remaining=8_800, settled=3_000, held=1_200,
                    reset=MONTH["end"]), state(held=4_096)]
    least = payload("RESERVE", {"records": [reserve()]})[6:]
    return [
        good("reserve, everything by default", "RESERVE", {"records": [reserve()]}, deadline=50),
        good("reserve for a minute, clamp, both said", "RESERVE",
             {"records": [reserve(ttl=60_000, overrun="clamp", items=tokens, **full)]}),
        good("reserve for a millisecond, reject", "RESERVE",
             {"records": [reserve(ttl=1, overrun="reject")]}),
        good("reserve for a day, overdraft", "RESERVE",
             {"records": [reserve(ttl=t.TTL_MS_MAX, overrun="overdraft", bound=MAX,
                                  subject=DEEP, items=sixteen)]}),
        good("reserve with an overdraft of nothing", "RESERVE",
             {"records": [reserve(overrun="overdraft")]}),
        good("three reserves", "RESERVE",
             {"records": [reserve(), reserve(id=ID2, ttl=5), reserve(id="f" * 32, items=tokens)]}),
        good("settle, final", "SETTLE", {"records": [settle(items=tokens, **full)]}),
        good("settle, final, nothing was used", "SETTLE",
             {"records": [settle(items=[("tokens.input", 0), ("tokens.output", 0)])]}),
        good("settle, a part of it", "SETTLE", {"records": [settle(final=False, items=tokens)]}),
        good("settle, the known floor of a stream that was cut", "SETTLE",
             {"records": [settle(floor=True, items=[("tokens.output", 17)])]}),
        good("settle, sixteen items", "SETTLE",
             {"records": [settle(subject=DEEP, items=sixteen)]}),
        good("two settles", "SETTLE", {"records": [settle(final=False), settle(id="0" * 32)]}),
        good("release", "RELEASE", {"records": [release()]}),
        good("two releases, trace", "RELEASE",
             {"records": [release(subject=DEEP, trace=TRACE), release(trace="t" * 64)]}),
        good("extend", "EXTEND", {"records": [extend()]}),
        good("extends at both ends of the range, trace", "EXTEND",
             {"records": [extend(1, trace=TRACE), extend(t.TTL_MS_MAX)]}, deadline=600_000),
        good("refund", "REFUND", {"records": [refund()]}),
        good("refund of all", "REFUND", {"records": [refund(items=(), reason="Köln war kaputt")]}),
        good("refund with everything", "REFUND",
             {"records": [refund(items=sixteen, reason="r" * 256, **full)]}),
        raw("a reserve with an unknown optional field", "RESERVE",
            one(least + struct.pack("<HH", 3, 4) + struct.pack("<I", 9)
                + struct.pack("<HH", 0x64, 2) + b"xy"),
            {"records": [reserve(ttl=9)]}, canonical=False),
        raw("a ttl marked critical", "RESERVE",
            one(least + struct.pack("<HHI", 0x8003, 4, 9)),
            {"records": [reserve(ttl=9)]}, canonical=False),
        raw("ttl and overrun in a consume are skipped", "CONSUME",
            one(least + struct.pack("<HHI", 3, 4, 9) + struct.pack("<HH", 4, 16) + bytes(16)),
            {"records": [record()]}, canonical=False),
        raw("attributes of a release are skipped", "RELEASE",
            one(payload("RELEASE", {"records": [release()]})[6:] + struct.pack("<HH", 1, 1) + b"\0"),
            {"records": [release()]}, canonical=False),
        good("answer: reserved", "DECISIONS", {"records": [decision(
            items=limits, expires=TIME + 60_000,
            burns=[burn(0, "promo", 200), burn(0, "tokens.included", 900), burn(0, None, 100)])]}),
        good("answer: settled in part", "DECISIONS", {"records": [decision(
            "SETTLED_CLAMPED", bindingItem=1, binding="tok-out", items=limits,
            settlements=[settled(1_200, 1_200), settled(5_000, 4_100)])]}),
        good("answer: settled, money derived", "DECISIONS", {"records": [decision(
            "SETTLED", items=limits[:1] + [state(limit="spend.cap", remaining=0, settled=5)],
            settlements=[settled(9, 9), settled(4_000_017, 4_000_017)],
            burns=[burn(1, "spend.included", 4_000_000), burn(1, None, 17)],
            derived=["spend"])]}),
        good("answer: settled late, nothing used", "DECISIONS", {"records": [decision(
            "SETTLED_LATE", settlements=[settled(0, 0)])]}),
        good("answer: released, extended", "DECISIONS", {"records": [
            decision("RELEASED", replayed=True), decision("EXTENDED", expires=MAX)]}),
        good("answer: refunded", "DECISIONS", {"records": [decision(
            "REFUNDED", settlements=[settled(-9, -9), settled(-MAX, 0)],
            burns=[burn(0, None, -4), burn(0, "promo", -5)])]}),
        good("answer: everything at its bound", "DECISIONS", {"records": [decision(
            "SETTLED", items=[state(limit=LONG_NAME, remaining=MAX, settled=-MAX, held=MAX,
                                    reset=MAX)] * 16, expires=-MAX,
            settlements=[settled(MAX, MAX)] * 16, burns=[burn(15, LONG_NAME, -MAX)] * 64,
            derived=[f"d{n}" for n in range(16)])]}),
        good("answer: errors of reservations", "DECISIONS", {"records": [
            {"error": code, "message": f"about {code}"} for code in (
                "RESERVATION_UNKNOWN", "RESERVATION_ENDED", "OVERRUN_REJECTED",
                "NOTHING_TO_REFUND")]}),
        raw("answer: lists that are there and empty", "DECISIONS",
            one(payload("DECISIONS", {"records": [decision()]})[6:] + b"".join(
                struct.pack("<HHB", number, 1, 0) for number in (2, 3, 4))),
            {"records": [decision()]}, canonical=False),
    ] + hostile_reservation_frames() + hostile_reservation_records()


def hostile_reservation_frames():
    settle1 = payload("SETTLE", {"records": [settle()]})
    extend1 = payload("EXTEND", {"records": [extend()]})
    answer = payload("DECISIONS", {"records": [decision(
        expires=TIME, settlements=[settled(2, 1)], burns=[burn(0, "g", 1)], derived=["spend"])]})
    plain = payload("DECISIONS", {"records": [decision()]})[6:]

    def field(number, data):
        return one(plain + struct.pack("<HH", number, len(data)) + data)

    rows = [
        ("reserve: no records", "RESERVE", bytes(4), "BAD_REQUEST"),
        ("reserve: reserved bytes", "RESERVE", b"\1\0\0\1", "BAD_REQUEST"),
        ("settle: 1025 records announced", "SETTLE", struct.pack("<HH", 1025, 0),
         "TOO_MANY_ITEMS"),
        ("settle: two records announced, one there", "SETTLE", changed(settle1, 0, b"\2\0"),
         "BAD_REQUEST"),
        ("settle: bytes behind the last record", "SETTLE", settle1 + b"\0", "BAD_REQUEST"),
        ("settle: record longer than the frame", "SETTLE", changed(settle1, 4, b"\xff\xff"),
         "BAD_REQUEST"),
        ("settle: a frame above 98,304 bytes", "SETTLE",
         settle1 + bytes(98_304 - 24 - len(settle1) + 1), "TOO_MANY_ITEMS"),
        ("release: empty payload", "RELEASE", b"", "BAD_REQUEST"),
        ("extend: 1,000 records announced, one there", "EXTEND",
         changed(extend1, 0, struct.pack("<H", 1000)), "BAD_REQUEST"),
        ("refund: 65535 records announced", "REFUND", b"\xff\xff\0\0", "TOO_MANY_ITEMS"),
        ("answer: the last byte is missing", "DECISIONS", one(answer[6:-1]), "BAD_REQUEST"),
        ("answer: expires of seven bytes", "DECISIONS", field(1, bytes(7)), "BAD_REQUEST"),
        ("answer: expires of nine bytes", "DECISIONS", field(1, bytes(9)), "BAD_REQUEST"),
        ("answer: expires above 2^53", "DECISIONS", field(1, struct.pack("<q", 1 << 53)),
         "BAD_REQUEST"),
        ("answer: 17 settled items", "DECISIONS", field(2, b"\x11" + bytes(24 * 17)),
         "TOO_MANY_ITEMS"),
        ("answer: settled items beyond the field", "DECISIONS", field(2, b"\2" + bytes(24)),
         "BAD_REQUEST"),
        ("answer: settled above 2^53", "DECISIONS",
         field(2, b"\1" + struct.pack("<qqq", 1 << 53, 0, 1 << 53)), "AMOUNT_OUT_OF_RANGE"),
        ("answer: absorbed is not the rest", "DECISIONS",
         field(2, b"\1" + struct.pack("<qqq", 5, 3, 1)), "BAD_REQUEST"),
        ("answer: 65 burns", "DECISIONS", field(3, b"\x41" + (bytes(2) + bytes(8)) * 65),
         "BAD_REQUEST"),
        ("answer: burn of item 16", "DECISIONS", field(3, b"\1\x10\0" + bytes(8)),
         "BAD_REQUEST"),
        ("answer: burn of a grant with a slash", "DECISIONS",
         field(3, b"\1\0\3a/b" + bytes(8)), "INVALID_NAME"),
        ("answer: a byte behind the burns", "DECISIONS", field(3, b"\0\0"), "BAD_REQUEST"),
        ("answer: 17 derived items", "DECISIONS", field(4, b"\x11" + b"\1a" * 17),
         "TOO_MANY_ITEMS"),
        ("answer: derived item without a name", "DECISIONS", field(4, b"\1\0\0"),
         "INVALID_NAME"),
        ("answer: fields out of order", "DECISIONS",
         one(plain + struct.pack("<HHB", 3, 1, 0) + struct.pack("<HHB", 2, 1, 0)), "BAD_REQUEST"),
    ]
    return [bad(name, framed(opcode, data), code, direction=DIRECTIONS[opcode])
            for name, opcode, data, code in rows] + [
        bad("reserve with correlation id 0", t.encode_frame("RESERVE", {"records": [reserve()]}, 0),
            "BAD_FRAME", True),
        bad("settle with CLIENT_FALLBACK",
            t.encode_frame("SETTLE", {"records": [settle()]}, 1, 0, 2), "BAD_FRAME", True),
        bad("extend with a deadline too long",
            t.encode_frame("EXTEND", {"records": [extend()]}, 1, 600_001), "BAD_FRAME", True),
        bad("refund with MORE", t.encode_frame("REFUND", {"records": [refund()]}, 1, 0, 1),
            "BAD_FRAME", True),
    ]


def hostile_reservation_records():
    """Refused in their place, between two good ones of the same kind."""
    def inner(opcode, fields):
        return payload(opcode, {"records": [fields]})[6:]

    def with_one(opcode, fields, number, data):
        return inner(opcode, fields) + struct.pack("<HH", number, len(data)) + data

    least = reserve()
    at_bits = 16 + 2 + 4 + 16
    settle1, release1, extend1, refund1 = (
        inner("SETTLE", settle()), inner("RELEASE", release()), inner("EXTEND", extend()),
        inner("REFUND", refund()))
    at_amount = at_bits + 1 + 1 + 1 + len("chat.requests")
    items17 = [(f"f{n}", 1) for n in range(17)]
    twice = [("tab", 1), ("x", 1), ("tab", 2)]
    cases = [
        ("ttl 0", "RESERVE", with_one("RESERVE", least, 3, bytes(4)), "BAD_REQUEST"),
        ("ttl above a day", "RESERVE",
         with_one("RESERVE", least, 3, struct.pack("<I", t.TTL_MS_MAX + 1)), "BAD_REQUEST"),
        ("ttl 2^32 - 1", "RESERVE", with_one("RESERVE", least, 3, b"\xff" * 4), "BAD_REQUEST"),
        ("ttl of three bytes", "RESERVE", with_one("RESERVE", least, 3, b"\1\0\0"),
         "BAD_REQUEST"),
        ("ttl of eight bytes", "RESERVE", with_one("RESERVE", least, 3, b"\1" + bytes(7)),
         "BAD_REQUEST"),
        ("ttl twice", "RESERVE",
         with_one("RESERVE", reserve(ttl=5), 3, struct.pack("<I", 5)), "BAD_REQUEST"),
        ("overrun policy 3", "RESERVE", with_one("RESERVE", least, 4, b"\3" + bytes(15)),
         "BAD_REQUEST"),
        ("overrun with reserved bytes", "RESERVE",
         with_one("RESERVE", least, 4, b"\1" + bytes(6) + b"\1" + bytes(8)), "BAD_REQUEST"),
        ("clamp with a bound", "RESERVE",
         with_one("RESERVE", least, 4, b"\1" + bytes(7) + struct.pack("<q", 1)), "BAD_REQUEST"),
        ("reject with a bound", "RESERVE",
         with_one("RESERVE", least, 4, bytes(8) + struct.pack("<q", 1)), "BAD_REQUEST"),
        ("overdraft of less than nothing", "RESERVE",
         with_one("RESERVE", least, 4, b"\2" + bytes(7) + struct.pack("<q", -1)),
         "AMOUNT_OUT_OF_RANGE"),
        ("overdraft of 2^53", "RESERVE",
         with_one("RESERVE", least, 4, b"\2" + bytes(7) + struct.pack("<q", 1 << 53)),
         "AMOUNT_OUT_OF_RANGE"),
        ("overrun cut short", "RESERVE", with_one("RESERVE", least, 4, b"\2" + bytes(7)),
         "BAD_REQUEST"),
        ("overrun before ttl", "RESERVE",
         inner("RESERVE", least) + struct.pack("<HH", 4, 16) + bytes(16)
         + struct.pack("<HHI", 3, 4, 5), "BAD_REQUEST"),
        ("reserve without items", "RESERVE", inner("RESERVE", reserve(items=[])), "BAD_REQUEST"),
        ("reserve of 17 items", "RESERVE", inner("RESERVE", reserve(items=items17)),
         "TOO_MANY_ITEMS"),
        ("reserve of a feature twice", "RESERVE", inner("RESERVE", reserve(items=twice)),
         "DUPLICATE_ITEM"),
        ("reserve of a negative amount", "RESERVE", inner("RESERVE", reserve(items=[("tab", -1)])),
         "AMOUNT_OUT_OF_RANGE"),
        ("reserve with an unknown critical field", "RESERVE",
         with_one("RESERVE", least, 0x8005, b""), "UNKNOWN_CRITICAL_FIELD"),
        ("settle with bit 4", "SETTLE", changed(settle1, at_bits, b"\5"), "BAD_REQUEST"),
        ("settle with all bits", "SETTLE", changed(settle1, at_bits, b"\xff"), "BAD_REQUEST"),
        ("settle of a floor that is not final", "SETTLE", changed(settle1, at_bits, b"\2"),
         "BAD_REQUEST"),
        ("final settle without items", "SETTLE", inner("SETTLE", settle(items=[])), "BAD_REQUEST"),
        ("settle without items", "SETTLE", inner("SETTLE", settle(final=False, items=[])),
         "BAD_REQUEST"),
        ("settle of 17 items", "SETTLE", inner("SETTLE", settle(items=items17)), "TOO_MANY_ITEMS"),
        ("settle of a feature twice", "SETTLE", inner("SETTLE", settle(items=twice)),
         "DUPLICATE_ITEM"),
        ("settle of a negative amount", "SETTLE", changed(settle1, at_amount, b"\xff" * 8),
         "AMOUNT_OUT_OF_RANGE"),
        ("settle of 2^53", "SETTLE", inner("SETTLE", settle(items=[("tab", 1 << 53)])),
         "AMOUNT_OUT_OF_RANGE"),
        ("settle, a byte behind its items", "SETTLE", settle1 + b"\0", "BAD_REQUEST"),
        ("settle cut in its reservation", "SETTLE", settle1[:30], "BAD_REQUEST"),
        ("settle with an unknown critical field", "SETTLE",
         with_one("SETTLE", settle(), 0x8003, bytes(4)), "UNKNOWN_CRITICAL_FIELD"),
        ("settle of a subject with an empty segment", "SETTLE",
         inner("SETTLE", settle(subject="a//b")), "INVALID_NAME"),
        ("release cut in its reservation", "RELEASE", release1[:-1], "BAD_REQUEST"),
        ("release, a byte behind it", "RELEASE", release1 + b"\0", "BAD_REQUEST"),
        ("release with an unknown critical field", "RELEASE",
         release1 + struct.pack("<HH", 0x8001, 0), "UNKNOWN_CRITICAL_FIELD"),
        ("release with a trace parent of 65 bytes", "RELEASE",
         inner("RELEASE", release(trace="t" * 65)), "BAD_REQUEST"),
        ("release without a subject", "RELEASE", inner("RELEASE", release(subject="")),
         "INVALID_NAME"),
        ("extend by 0", "EXTEND", inner("EXTEND", extend(0)), "BAD_REQUEST"),
        ("extend by more than a day", "EXTEND", inner("EXTEND", extend(t.TTL_MS_MAX + 1)),
         "BAD_REQUEST"),
        ("extend without a ttl", "EXTEND", extend1[:-4] + bytes(3), "BAD_REQUEST"),
        ("extend with trace parent twice", "EXTEND",
         extend1 + (struct.pack("<HH", 2, 1) + b"t") * 2, "BAD_REQUEST"),
        ("refund of 17 items", "REFUND", inner("REFUND", refund(items=items17)), "TOO_MANY_ITEMS"),
        ("refund of a feature twice", "REFUND", inner("REFUND", refund(items=twice)),
         "DUPLICATE_ITEM"),
        ("refund of a negative amount", "REFUND", inner("REFUND", refund(items=[("tab", -1)])),
         "AMOUNT_OUT_OF_RANGE"),
        ("refund with a reason of 257 bytes", "REFUND",
         inner("REFUND", refund(reason="r" * 257)), "BAD_REQUEST"),
        ("refund with a reason not utf-8", "REFUND", with_one("REFUND", refund(), 5, b"\xff"),
         "BAD_REQUEST"),
        ("refund with an unknown critical field", "REFUND",
         with_one("REFUND", refund(), 0x8004, bytes(16)), "UNKNOWN_CRITICAL_FIELD"),
        ("refund cut in the id it corrects", "REFUND", refund1[:37], "BAD_REQUEST"),
    ]
    good_ones = {"RESERVE": [reserve(id=ID2), reserve(id=ID2, subject="last")],
                 "SETTLE": [settle(), settle(subject="last")],
                 "RELEASE": [release(), release(subject="last")],
                 "EXTEND": [extend(), extend(subject="last")],
                 "REFUND": [refund(), refund(items=(), subject="last")]}
    vectors = []
    for name, opcode, data, code in cases:
        first, last = good_ones[opcode]
        parts = [payload(opcode, {"records": [r]})[4:] for r in (first, last)]
        body = struct.pack("<HH", 3, 0) + parts[0] + struct.pack("<H", len(data)) + data + parts[1]
        vectors.append(raw(f"refused in its place: {name}", opcode, body,
                           {"records": [first, {"error": code}, last]}, canonical=False))
    return vectors


# -------------------------------------------------------------------------------------- hostile

def hostile_headers():
    ping = t.encode_frame("PING", {"nonce": 1}, 1)
    vectors = [
        bad("http", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "BAD_FRAME", True),
        bad("tls client hello", bytes.fromhex("16030100c8010000c40303") + bytes(40), "BAD_FRAME", True),
        bad("magic the wrong way round", changed(ping, 0, b"GT"), "BAD_FRAME", True),
        bad("all zero", bytes(64), "BAD_FRAME", True),
        bad("all ones", b"\xff" * 64, "BAD_FRAME", True),
        bad("version 0", changed(ping, 2, b"\0"), "UNSUPPORTED_VERSION", True),
        bad("version 2", changed(ping, 2, b"\2"), "UNSUPPORTED_VERSION", True),
        bad("reserved byte set", changed(ping, 6, b"\1"), "BAD_FRAME", True),
        bad("other reserved byte set", changed(ping, 7, b"\x80"), "BAD_FRAME", True),
        bad("length 2^32 - 1", changed(ping, 8, b"\xff\xff\xff\xff"), "FRAME_TOO_LARGE", True),
        bad("length -1 as 31 bits", changed(ping, 8, b"\xff\xff\xff\x7f"), "FRAME_TOO_LARGE", True),
        bad("one byte above the limit", changed(ping, 8, struct.pack("<I", (1 << 20) - 23)),
            "FRAME_TOO_LARGE", True),
        bad("above a smaller limit", t.encode_frame("HELLO", HELLO, 1), "FRAME_TOO_LARGE", True,
            frameBytesMax=40),
        bad("request with correlation id 0", changed(ping, 16, bytes(8)), "BAD_FRAME", True),
        bad("goaway with a correlation id",
            t.encode_frame("GOAWAY", {"code": "DRAINING", "grace": 0, "message": ""}, 5),
            "BAD_FRAME", True),
        bad("reply with correlation id 0", t.encode_frame("PONG", {"nonce": 1}, 0),
            "BAD_FRAME", True),
        bad("deadline in a reply", t.encode_frame("PONG", {"nonce": 1}, 1, 5), "BAD_FRAME", True),
        bad("deadline too long", t.encode_frame("PING", {"nonce": 1}, 1, 600_001),
            "BAD_FRAME", True),
        bad("MORE in a request", t.encode_frame("PING", {"nonce": 1}, 1, 0, 1), "BAD_FRAME", True),
        bad("CLIENT_FALLBACK in CONSUME",
            t.encode_frame("CONSUME", {"records": [record()]}, 1, 0, 2), "BAD_FRAME", True),
        bad("undefined flag", t.encode_frame("POST", {"records": [record()]}, 1, 0, 0x8000),
            "BAD_FRAME", True),
    ]
    for number in (0x00, 0x07, 0x0F, 0x1A, 0x1F, 0x22, 0x3E, 0xFF):
        vectors.append(bad(f"unknown opcode 0x{number:02x}", t.frame_bytes(number, b"abc", 7),
                           "UNKNOWN_OPCODE"))
    for cut in (1, 2, 23, 24, len(ping) - 1):
        vectors.append({"name": f"the first {cut} bytes of a ping", "direction": "client to server",
                        "hex": ping[:cut].hex(), "incomplete": True})
    return vectors


def hostile_payloads():
    hello, welcome = payload("HELLO", HELLO), payload("WELCOME", WELCOME)
    consume = payload("CONSUME", {"records": [record()]})
    allowed = payload("DECISIONS", {"records": [decision(items=[state()])]})
    link = payload("LINK", {"deployment": DEPLOYMENT, "sidecar": "s", "incarnation": 1})
    batch = payload("BATCH", {"bucket": 3, "epoch": 2, "previous": 0, "entries": [entry(1)]})
    reply = payload("BATCH_REPLY", {"status": "ack", "bucket": 3, "epoch": 2, "cursor": 1,
                                    "lastSequence": 0, "duplicates": []})
    balance = payload("BALANCES_REPLY", {
        "account": "acme", "version": 1, "config": "{}", "balances": [
            {"subject": "acme", "feature": "tab", "window": "M", "period": MONTH, "settled": 1,
             "forgiven": 0}]})
    deploy = len(t.encode_payload("LINKED", {"deployment": DEPLOYMENT, "buckets": []})) - 2
    rows = [
        ("hello: no version in range", "HELLO", changed(hello, 0, b"\2\1"), "BAD_REQUEST"),
        ("hello: role 0", "HELLO", changed(hello, 2, b"\0"), "BAD_REQUEST"),
        ("hello: role 4", "HELLO", changed(hello, 2, b"\4"), "BAD_REQUEST"),
        ("hello: reserved byte", "HELLO", changed(hello, 3, b"\1"), "BAD_REQUEST"),
        ("hello: client name of 65 bytes", "HELLO",
         b"\1\1\1\0" + bytes(4) + b"\x41" + b"a" * 65 + b"\0\0", "BAD_REQUEST"),
        ("hello: client name beyond the end", "HELLO", changed(hello, 8, b"\x40"), "BAD_REQUEST"),
        ("hello: client name not utf-8", "HELLO", changed(hello, 9, b"\xff\xfe"), "BAD_REQUEST"),
        ("hello: token of 513 bytes", "HELLO",
         b"\1\1\1\0" + bytes(4) + b"\0" + struct.pack("<H", 513) + b"a" * 513, "BAD_REQUEST"),
        ("hello: token longer than the frame", "HELLO",
         b"\1\1\1\0" + bytes(4) + b"\0" + struct.pack("<H", 512) + b"a", "BAD_REQUEST"),
        ("hello: unknown critical field", "HELLO", hello + struct.pack("<HH", 0x8001, 0),
         "UNKNOWN_CRITICAL_FIELD"),
        ("hello: half a field", "HELLO", hello + b"\1", "BAD_REQUEST"),
        ("hello: field longer than the frame", "HELLO", hello + struct.pack("<HH", 1, 9) + b"x",
         "BAD_REQUEST"),
        ("hello: field of 4 GiB", "HELLO", hello + struct.pack("<HHI", 1, 0xFFFF, 0xFFFFFFFF),
         "BAD_REQUEST"),
        ("hello: long length for a short field", "HELLO",
         hello + struct.pack("<HHI", 1, 0xFFFF, 1) + b"x", "BAD_REQUEST"),
        ("hello: field repeated", "HELLO", hello + struct.pack("<HHHH", 1, 0, 1, 0), "BAD_REQUEST"),
        ("hello: fields out of order", "HELLO", hello + struct.pack("<HHHH", 2, 0, 1, 0),
         "BAD_REQUEST"),
        ("hello: 65 fields", "HELLO",
         hello + b"".join(struct.pack("<HH", n, 0) for n in range(65)), "BAD_REQUEST"),
        ("hello: empty payload", "HELLO", b"", "BAD_REQUEST"),
        ("welcome: 257 policies", "WELCOME",
         payload("WELCOME", {**WELCOME, "policies": [
             {"feature": f"f{n}", "policy": "closed", "allowance": 0} for n in range(257)]}),
         "BAD_REQUEST"),
        ("welcome: policy count beyond the end", "WELCOME",
         payload("WELCOME", {**WELCOME, "policies": []})[:-2] + b"\xff\0", "BAD_REQUEST"),
        ("welcome: policy 3", "WELCOME",
         payload("WELCOME", {**WELCOME, "policies": []})[:-2] + b"\1\0\1a\3" + bytes(8),
         "BAD_REQUEST"),
        ("welcome: closed with an allowance", "WELCOME",
         payload("WELCOME", {**WELCOME, "policies": []})[:-2] + b"\1\0\1a\0\1" + bytes(7),
         "BAD_REQUEST"),
        ("welcome: negative allowance", "WELCOME",
         payload("WELCOME", {**WELCOME, "policies": []})[:-2] + b"\1\0\1a\1" + b"\xff" * 8,
         "AMOUNT_OUT_OF_RANGE"),
        ("welcome: features of scope sidecar out of order", "WELCOME",
         payload("WELCOME", {**WELCOME, "sidecarFeatures": ["b", "a"]}), "BAD_REQUEST"),
        ("welcome: a feature of scope sidecar twice", "WELCOME",
         payload("WELCOME", {**WELCOME, "sidecarFeatures": ["a", "a"]}), "BAD_REQUEST"),
        ("welcome: 257 features of scope sidecar", "WELCOME",
         payload("WELCOME", {**WELCOME, "sidecarFeatures": sorted(
             f"f{n}" for n in range(257))}), "BAD_REQUEST"),
        ("welcome: features of scope sidecar beyond the end", "WELCOME",
         welcome + struct.pack("<HHH", 1, 2, 9), "BAD_REQUEST"),
        ("welcome: deployment with a colon", "WELCOME", welcome.replace(b"prod-eu", b"prod:eu"),
         "INVALID_NAME"),
        ("ping: seven bytes", "PING", bytes(7), "BAD_REQUEST"),
        ("ping: nine bytes", "PING", bytes(9), "BAD_REQUEST"),
        ("ping: empty", "PING", b"", "BAD_REQUEST"),
        ("error: code 0", "ERROR", bytes(7), "BAD_REQUEST"),
        ("error: text of 513 bytes", "ERROR", struct.pack("<HHH", 5, 0, 513) + b"a" * 513 + b"\0",
         "BAD_REQUEST"),
        ("error: trailing byte", "ERROR", struct.pack("<HHH", 5, 0, 0) + b"\0\0", "BAD_REQUEST"),
        ("consume: no records", "CONSUME", bytes(4), "BAD_REQUEST"),
        ("consume: empty payload", "CONSUME", b"", "BAD_REQUEST"),
        ("consume: 1025 records announced", "CONSUME", struct.pack("<HH", 1025, 0),
         "TOO_MANY_ITEMS"),
        ("consume: 65535 records announced", "CONSUME", b"\xff\xff\0\0", "TOO_MANY_ITEMS"),
        ("consume: two records announced, one there", "CONSUME", changed(consume, 0, b"\2\0"),
         "BAD_REQUEST"),
        ("consume: reserved bytes", "CONSUME", changed(consume, 2, b"\1"), "BAD_REQUEST"),
        ("consume: record longer than the frame", "CONSUME", changed(consume, 4, b"\xff\xff"),
         "BAD_REQUEST"),
        ("consume: bytes behind the last record", "CONSUME", consume + b"\0", "BAD_REQUEST"),
        ("decisions: unknown reason", "DECISIONS", changed(allowed, 8, b"\x0f\0"), "BAD_REQUEST"),
        ("decisions: unknown source", "DECISIONS", changed(allowed, 10, b"\4"), "BAD_REQUEST"),
        ("decisions: unknown bits", "DECISIONS", changed(allowed, 11, b"\4"), "BAD_REQUEST"),
        ("decisions: absent retry time not zero", "DECISIONS", changed(allowed, 36, b"\1"),
         "BAD_REQUEST"),
        ("decisions: binding item 16", "DECISIONS", changed(allowed, 44, b"\x10"), "BAD_REQUEST"),
        ("decisions: 17 states", "DECISIONS",
         payload("DECISIONS", {"records": [decision(items=[state()] * 17)]}), "TOO_MANY_ITEMS"),
        ("decisions: state bits", "DECISIONS", changed(allowed, 47, b"\x80"), "BAD_REQUEST"),
        ("decisions: absent remaining not zero", "DECISIONS", changed(allowed, 48, b"\1"),
         "BAD_REQUEST"),
        ("decisions: negative held", "DECISIONS", changed(allowed, 64, b"\xff" * 8),
         "AMOUNT_OUT_OF_RANGE"),
        ("decisions: unknown critical field", "DECISIONS",
         one(allowed[6:] + struct.pack("<HH", 0x8384, 0)), "UNKNOWN_CRITICAL_FIELD"),
        ("decisions: record cut short", "DECISIONS", one(allowed[6:-1]), "BAD_REQUEST"),
        ("admin: document longer than the frame", "ADMIN", struct.pack("<HHI", 1, 0, 3) + b"{}",
         "BAD_REQUEST"),
        ("admin: document of 4 GiB", "ADMIN", struct.pack("<HHI", 1, 0, 0xFFFFFFFF) + b"{}",
         "BAD_REQUEST"),
        ("admin: document too long", "ADMIN", struct.pack("<HHI", 1, 0, 1_044_481), "BAD_REQUEST"),
        ("admin: reserved bytes", "ADMIN", struct.pack("<HHI", 1, 1, 0), "BAD_REQUEST"),
        ("admin: trailing byte", "ADMIN", struct.pack("<HHI", 1, 0, 0) + b"{", "BAD_REQUEST"),
        ("link: no buckets", "LINK", link.replace(struct.pack("<I", 64), bytes(4), 1),
         "BAD_REQUEST"),
        ("link: 4097 buckets", "LINK", link.replace(struct.pack("<I", 64), struct.pack("<I", 4097), 1),
         "BAD_REQUEST"),
        ("link: mode 2", "LINK", changed(link, 16, b"\2"), "BAD_REQUEST"),
        ("link: empty sidecar name", "LINK", link.replace(b"\1s", b"\0"), "INVALID_NAME"),
        ("linked: 4098 buckets announced", "LINKED", link[:deploy] + struct.pack("<H", 4098),
         "BAD_REQUEST"),
        ("linked: buckets beyond the end", "LINKED", link[:deploy] + b"\2\0" + bytes(20),
         "BAD_REQUEST"),
        ("batch: bucket 4097", "BATCH", changed(batch, 0, struct.pack("<I", 4097)), "BAD_REQUEST"),
        ("batch: negative epoch", "BATCH", changed(batch, 4, b"\xff" * 8), "BAD_REQUEST"),
        ("batch: epoch above 2^53", "BATCH", changed(batch, 4, struct.pack("<q", 1 << 53)),
         "BAD_REQUEST"),
        ("batch: 4097 entries announced", "BATCH", changed(batch, 20, struct.pack("<H", 4097)),
         "BAD_REQUEST"),
        ("batch: entries beyond the end", "BATCH", changed(batch, 20, b"\2\0"), "BAD_REQUEST"),
        ("batch: entry longer than the frame", "BATCH", changed(batch, 24, b"\xff\xff\xff\xff"),
         "BAD_REQUEST"),
        ("batch: entry length a little too short", "BATCH",
         changed(batch, 24, struct.pack("<I", 63)), "BAD_REQUEST"),
        ("batch: reserved byte of an entry", "BATCH", changed(batch, 37, b"\1"), "BAD_REQUEST"),
        ("batch: body longer than its entry", "BATCH", changed(batch, 88, b"\1"), "BAD_REQUEST"),
        ("batch: trailing byte", "BATCH", batch + b"\0", "BAD_REQUEST"),
        ("batch reply: status 4", "BATCH_REPLY", changed(reply, 0, b"\4"), "BAD_REQUEST"),
        ("batch reply: reserved", "BATCH_REPLY", changed(reply, 3, b"\1"), "BAD_REQUEST"),
        ("batch reply: 4097 duplicates announced", "BATCH_REPLY",
         reply[:-2] + struct.pack("<H", 4097), "BAD_REQUEST"),
        ("batch reply: duplicates beyond the end", "BATCH_REPLY", reply[:-2] + b"\1\0" + bytes(17),
         "BAD_REQUEST"),
        ("balances: not an account", "BALANCES",
         payload("BALANCES", {"account": "acme/alice", "since": 0}), "INVALID_NAME"),
        ("balances reply: unknown window", "BALANCES_REPLY", balance.replace(b"\1M", b"\1X"),
         "BAD_REQUEST"),
        ("balances reply: window of zero seconds", "BALANCES_REPLY",
         balance.replace(b"\1M", b"\x020s"), "BAD_REQUEST"),
        *[(f"balances reply: window code {code[:20]!r}", "BALANCES_REPLY", balance.replace(
            b"\1M", bytes([len(code)]) + code.encode()), "BAD_REQUEST")
          for code in ("", "@", "L@", "M@@", "@M", "01s", "+1s", "0s@", "o", "oc", "o-", "oo", "ooM",
                       "o$g", "$", "$.g", "$a b", "$" + "g" * 65, "r", "r,1", "rx", "rx,", "rx,01",
                       "rx,-1", "rx,1,2", "rx,9007199254740992", "rx," + "9" * 19, "cc", "c@", "--",
                       "C", "M ", "m" * 81)],
        ("balances reply: period turned round", "BALANCES_REPLY", balance.replace(
            struct.pack("<qq", MONTH["start"], MONTH["end"]),
            struct.pack("<qq", MONTH["end"], MONTH["start"])), "BAD_REQUEST"),
        ("balances reply: settled above 2^53", "BALANCES_REPLY",
         balance[:-16] + struct.pack("<qq", 1 << 53, 0), "AMOUNT_OUT_OF_RANGE"),
        ("config: length beyond the end", "CONFIG", b"\5\0acme", "BAD_REQUEST"),
    ]
    vectors = []
    for name, opcode, data, code in rows:
        correlation = 0 if opcode in t.PUSHES else 1
        vectors.append(bad(name, framed(opcode, data, correlation), code,
                           direction=DIRECTIONS[opcode]))
    return vectors


def hostile_records():
    """Records that are refused in their place, between two good ones."""
    def inner(**changes):
        return payload("CONSUME", {"records": [record(**changes)]})[6:]

    plain = inner()
    at_items = 16 + 2 + 4
    at_amount = at_items + 1 + 1 + len("chat.requests")
    cases = [
        ("negative amount", changed(plain, at_amount, b"\xff" * 8), "AMOUNT_OUT_OF_RANGE"),
        ("amount 2^53", inner(items=[("tab", 1 << 53)]), "AMOUNT_OUT_OF_RANGE"),
        ("smallest amount", inner(items=[("tab", -(1 << 63))]), "AMOUNT_OUT_OF_RANGE"),
        ("no items", inner(items=[]), "BAD_REQUEST"),
        ("17 items", inner(items=[(f"f{n}", 1) for n in range(17)]), "TOO_MANY_ITEMS"),
        ("255 items announced", changed(plain, at_items, b"\xff"), "TOO_MANY_ITEMS"),
        ("two items announced, one there", changed(plain, at_items, b"\2"), "BAD_REQUEST"),
        ("a feature named twice", inner(items=[("tab", 1), ("x", 1), ("tab", 2)]), "DUPLICATE_ITEM"),
        ("empty feature name", inner(items=[("", 1)]), "INVALID_NAME"),
        ("feature name of 65 bytes",
         plain[:at_items] + b"\1\x41" + b"f" * 65 + bytes(8), "INVALID_NAME"),
        ("feature name with a space", inner(items=[("a b", 1)]), "INVALID_NAME"),
        ("feature name starting with a dot", inner(items=[(".a", 1)]), "INVALID_NAME"),
        ("feature name not utf-8", plain[:at_items] + b"\1\2\xff\xfe" + bytes(8), "INVALID_NAME"),
        ("feature name with a nul", plain[:at_items] + b"\1\2a\0" + bytes(8), "INVALID_NAME"),
        ("empty subject", inner(subject=""), "INVALID_NAME"),
        ("subject of six segments", inner(subject="a/b/c/d/e/f"), "INVALID_NAME"),
        ("subject with an empty segment", inner(subject="a//b"), "INVALID_NAME"),
        ("subject ending in a slash", inner(subject="a/"), "INVALID_NAME"),
        ("segment of 65 bytes", inner(subject="a" * 65), "INVALID_NAME"),
        ("subject with a brace", inner(subject="a{b}"), "INVALID_NAME"),
        ("subject not utf-8", plain[:18] + b"ac\xc3\x28" + plain[22:], "INVALID_NAME"),
        ("subject longer than the record", changed(plain, 16, b"\x40\1"), "BAD_REQUEST"),
        ("subject length 65535", changed(plain, 16, b"\xff\xff"), "INVALID_NAME"),
        ("record cut to three bytes of its id", plain[:3], "BAD_REQUEST"),
        ("unknown critical field", plain + struct.pack("<HH", 0x8064, 1) + b"x",
         "UNKNOWN_CRITICAL_FIELD"),
        ("a lone byte behind the items", plain + b"\0", "BAD_REQUEST"),
        ("fields out of order", plain + struct.pack("<HH", 2, 1) + b"t" + struct.pack("<HH", 1, 1)
         + b"\0", "BAD_REQUEST"),
        ("field repeated", plain + (struct.pack("<HH", 2, 1) + b"t") * 2, "BAD_REQUEST"),
        ("field repeated as critical", plain + struct.pack("<HH", 2, 1) + b"t"
         + struct.pack("<HH", 0x8002, 1) + b"t", "BAD_REQUEST"),
        ("field longer than the record", plain + struct.pack("<HH", 2, 10) + b"t", "BAD_REQUEST"),
        ("trace parent of 65 bytes", plain + struct.pack("<HH", 2, 65) + b"t" * 65, "BAD_REQUEST"),
        ("trace parent not utf-8", plain + struct.pack("<HH", 2, 1) + b"\x80", "BAD_REQUEST"),
        ("17 attributes", plain + struct.pack("<HH", 1, 1) + b"\x11", "BAD_REQUEST"),
        ("attributes beyond the field", plain + struct.pack("<HH", 1, 3) + b"\2\1a", "BAD_REQUEST"),
        ("attributes with a byte too many", plain + struct.pack("<HH", 1, 2) + b"\0\0",
         "BAD_REQUEST"),
        ("attribute repeated", plain + struct.pack("<HH", 1, 7) + b"\2\1a\0\1a\0", "BAD_REQUEST"),
        ("attributes out of order", plain + struct.pack("<HH", 1, 7) + b"\2\1b\0\1a\0",
         "BAD_REQUEST"),
        ("attribute value of 129 bytes",
         plain + struct.pack("<HH", 1, 133) + b"\1\1a\x81" + b"v" * 129 + b"", "BAD_REQUEST"),
        ("attribute name with a slash", plain + struct.pack("<HH", 1, 6) + b"\1\3a/b\0",
         "INVALID_NAME"),
    ]
    vectors = []
    first, last = record(id=ID2), record(id=ID2, subject="last")
    for name, data, code in cases:
        parts = [payload("CONSUME", {"records": [r]})[4:] for r in (first, last)]
        body = struct.pack("<HH", 3, 0) + parts[0] + struct.pack("<H", len(data)) + data + parts[1]
        vectors.append(raw(f"refused in its place: {name}", "CONSUME", body,
                           {"records": [first, {"error": code}, last]}, canonical=False))
    return vectors


def bodies():
    usage, config = t.encode_usage_body(USAGE), t.encode_config_body(CONFIG)
    part, charge = SPENT["parts"][0], SPENT["charges"][0]
    plain = {**USAGE, "cells": [], "attributes": {}, "traceParent": "", "source": "redis"}
    bare = {**CONFIG, "scope": "global", "key": "", "reason": "", "before": "", "after": "{}"}

    def body(name, kind, data, fields=None, code=None, canonical=True):
        vector = {"name": name, "kind": kind, "hex": data.hex()}
        if fields is not None:
            vector["fields"] = fields
        else:
            vector["error"] = {"code": code, "fatal": False}
        if not canonical:
            vector["canonical"] = False
        return vector

    return [
        body("usage", "usage", usage, USAGE),
        body("usage, least", "usage", t.encode_usage_body(plain), plain),
        body("usage with a field of a newer release", "usage",
             usage + struct.pack("<HH", 99, 4) + b"data", USAGE, canonical=False),
        body("usage without catalog version and source", "usage",
             t.encode_usage_body(plain)[:-17], {**plain, "catalogVersion": 0}, canonical=False),
        body("usage with a critical field of a newer release", "usage",
             usage + struct.pack("<HH", 0x8063, 0), code="UNKNOWN_CRITICAL_FIELD"),
        body("usage without subject", "usage", usage[4 + len(USAGE["subject"]):], code="BAD_REQUEST"),
        body("usage, empty", "usage", b"", code="BAD_REQUEST"),
        body("usage, cut", "usage", usage[:-1], code="BAD_REQUEST"),
        body("usage, cell of level 6", "usage",
             t.encode_usage_body({**plain, "cells": [{**USAGE["cells"][0], "level": 6}]}),
             code="BAD_REQUEST"),
        body("usage, bad subject", "usage", t.encode_usage_body({**plain, "subject": "a b"}),
             code="INVALID_NAME"),
        body("usage of money, by grants, overage and rates", "usage", t.encode_usage_body(SPENT),
             SPENT),
        body("usage of a settle", "usage", t.encode_usage_body(CORRECTED), CORRECTED),
        body("usage, 96 parts and 16 charges", "usage",
             t.encode_usage_body({**SPENT, "parts": [part] * 96, "charges": [charge] * 16}),
             {**SPENT, "parts": [part] * 96, "charges": [charge] * 16}),
        body("usage, every window code in a part", "usage",
             t.encode_usage_body({**plain, "parts": [{**part, "window": w} for w in WINDOWS]}),
             {**plain, "parts": [{**part, "window": w} for w in WINDOWS]}),
        body("usage, every window code in a cell", "usage",
             t.encode_usage_body({**plain, "cells": [
                 {"level": 5, "window": w, "period": MONTH} for w in WINDOWS]}),
             {**plain, "cells": [{"level": 5, "window": w, "period": MONTH} for w in WINDOWS]}),
        body("usage, lists that are there and empty", "usage",
             t.encode_usage_body(plain) + struct.pack("<HHBHHB", 9, 1, 0, 10, 1, 0), plain,
             canonical=False),
        body("usage, 97 parts", "usage",
             t.encode_usage_body({**SPENT, "parts": [part] * 97}), code="BAD_REQUEST"),
        body("usage, 17 charges", "usage",
             t.encode_usage_body({**SPENT, "charges": [charge] * 17}), code="BAD_REQUEST"),
        body("usage, parts beyond the field", "usage",
             t.encode_usage_body(plain) + struct.pack("<HHB", 9, 1, 1), code="BAD_REQUEST"),
        body("usage, part of level 0", "usage",
             t.encode_usage_body({**SPENT, "parts": [{**part, "level": 0}]}), code="BAD_REQUEST"),
        body("usage, part of an unknown window", "usage",
             t.encode_usage_body({**SPENT, "parts": [{**part, "window": "$"}]}),
             code="BAD_REQUEST"),
        body("usage, part of 2^53", "usage",
             t.encode_usage_body({**SPENT, "parts": [{**part, "amount": 1 << 53}]}),
             code="AMOUNT_OUT_OF_RANGE"),
        body("usage, charge below -2^53", "usage",
             t.encode_usage_body({**SPENT, "charges": [{**charge, "charge": -1 << 53}]}),
             code="AMOUNT_OUT_OF_RANGE"),
        body("usage, charge of a rate with a space", "usage",
             t.encode_usage_body({**SPENT, "charges": [{**charge, "rate": "a b"}]}),
             code="INVALID_NAME"),
        body("usage, corrects an id of 15 bytes", "usage",
             t.encode_usage_body({**CORRECTED, "corrects": "00" * 15}), code="BAD_REQUEST"),
        body("usage, corrects an id of 17 bytes", "usage",
             t.encode_usage_body({**CORRECTED, "corrects": "00" * 17}), code="BAD_REQUEST"),
        body("config", "config", config, CONFIG),
        body("config, global, empty texts", "config", t.encode_config_body(bare), bare),
        body("config, a long length for a short field", "config",
             config[:-4 - len(CONFIG["after"])] + struct.pack("<HHI", 8, 0xFFFF, 2) + b"{}",
             code="BAD_REQUEST"),
        body("config, unknown scope", "config", config.replace(b"account", b"accounT", 1),
             code="BAD_REQUEST"),
        body("config, negative version", "config", t.encode_config_body({**CONFIG, "version": -1}),
             code="BAD_REQUEST"),
        body("config, key of 385 bytes", "config", t.encode_config_body({**CONFIG, "key": "k" * 385}),
             code="BAD_REQUEST"),
    ]


FILES = {"frames-session": session, "frames-operations": operations,
         "frames-decisions": decisions, "frames-reservations": reservations, "frames-documents": documents, "frames-ledger": ledger,
         "frames-hostile": lambda: hostile_headers() + hostile_payloads() + hostile_records(),
         "bodies": bodies}


def main():
    for name, vectors in FILES.items():
        names = [vector["name"] for vector in vectors()]
        if len(set(names)) != len(names):
            raise SystemExit(f"{name}: a name is used twice")
        with open(os.path.join(HERE, name + ".json"), "w", encoding="utf-8") as out:
            out.write("[\n" + ",\n".join(
                json.dumps(vector, ensure_ascii=False) for vector in vectors()) + "\n]\n")
        print(name, len(names))


if __name__ == "__main__":
    main()
