"""Drives a running sidecar through a session with asserts; exits 0, or 1 naming what failed.

    drive.py (--unix PATH | --tcp HOST:PORT) --token T [--admin-token A] [--subject acme/alice]
             [--feature chat.requests] [--amount 1]

The feature must be metered by a quota (or nothing but unlimited) for the subject, with room for a
few hundred units, not of `idempotency: sidecar`, and reservable where reservations are driven;
`--subject` is an account that may use it: the script compares `settled` before and after. It sends every hostile vector, so run it against a test's sidecar. On a busy
machine give that sidecar a `limits.redis_slow_ms` of seconds: a breaker that opens meanwhile answers
by policy, which is right and not what is asserted here.
"""

import argparse
import json
import os
import socket
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import tollgate as t  # noqa: E402

VECTORS = os.path.join(HERE, "..", "..", "vectors")
DATA_PATH = {"HELLO", "PING", "CHECK", "CONSUME", "POST", "CANCEL", "ADMIN",
             "GOAWAY"} | t.RESERVATION_OPCODES


def hostile(name):
    """The vectors that a receiver refuses, in whole or in one of their records."""
    with open(os.path.join(VECTORS, name), encoding="utf-8") as file:
        vectors = json.load(file)
    return [v for v in vectors if "fields" not in v or any(
        "error" in r for r in v["fields"].get("records", []) if v["direction"] != "server to client")]


class Drive:
    def __init__(self, options):
        self.options, self.passed, self.failed = options, 0, []
        self.subject, self.feature, self.amount = options.subject, options.feature, options.amount

    # --------------------------------------------------------------------------- small tools

    def expect(self, condition, what):
        if condition:
            self.passed += 1
        else:
            self.failed.append(what)
            print("FAILED", what, flush=True)

    def refused(self, code, what, call, *arguments, **options):
        try:
            outcome = call(*arguments, **options)
        except t.Failure as failure:
            self.expect(failure.code == code, f"{what}: {failure.code} instead of {code}")
        else:
            self.expect(False, f"{what}: {outcome} instead of {code}")

    def connect(self, token=None, **options):
        token = self.options.token if token is None else token
        # The way back may be slow on a busy machine; what the server does in time is its own test.
        options = {"slack": 10.0, "hello_timeout": 30.0, **options}
        if self.options.unix:
            return t.Client.unix(self.options.unix, token, **options)
        host, port = self.options.tcp.rsplit(":", 1)
        return t.Client.tcp(host, int(port), token, **options)

    def raw(self):
        if self.options.unix:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(self.options.unix)
        else:
            host, port = self.options.tcp.rsplit(":", 1)
            connection = socket.create_connection((host, int(port)))
        connection.settimeout(30)
        return connection

    def exchange(self, data, hello=True, until=None, wait=30.0):
        """Sends bytes on a connection of its own. Returns the messages that came back, and
        whether the server closed it. A connection that goes on is left after the answer to
        `until`, or, since answers overtake each other, after the pong to a ping sent behind."""
        connection, decoder, messages = self.raw(), t.FrameDecoder(), []
        greeting = {"versionMin": 1, "versionMax": 1, "role": "check", "features": t.FEATURES,
                    "client": "drive", "token": self.options.token}
        last = (1 << 63) + 1

        def send(raw):
            try:
                connection.sendall(raw)
            except ConnectionError:
                pass  # The server closed while this was still writing; what it said is read below.

        send(t.encode_frame("HELLO", greeting, 1 << 63) if hello else data)
        try:
            end = time.monotonic() + wait
            while time.monotonic() < end:
                received = connection.recv(65536)
                if not received:
                    return messages, True
                decoder.feed(received)
                while (frame := decoder.next()) is not None:
                    header, payload = frame
                    if header.correlation == last:
                        return messages, False
                    messages.append((header, t.decode_payload(header.name, payload)))
                    if header.name == "WELCOME":
                        ping = b"" if until else t.encode_frame("PING", {"nonce": 7}, last)
                        send(data + ping)
                    elif until and header.correlation == until:
                        return messages, False
        except ConnectionError:
            return messages, True
        except TimeoutError:
            return messages, False
        finally:
            connection.close()
        return messages, False

    def settled(self, client):
        decision = client.check(self.subject, {self.feature: 0})
        return decision.items[0]["settled"] if decision.items else None

    def counted(self, client, wanted, what, wait=10.0):
        """`settled` becomes `wanted`: at once, unless an operation of unknown outcome is still
        being annulled."""
        end = time.monotonic() + wait
        while (found := self.settled(client)) != wanted and time.monotonic() < end:
            time.sleep(0.05)
        self.expect(found == wanted, f"{what}: settled {found}, {wanted} wanted")

    # --------------------------------------------------------------------------- the session

    def run(self):
        with_client = [self.basics, self.replays, self.ids, self.cancels, self.posts,
                       self.all_or_nothing, self.pipelining, self.records, self.roles]
        client = self.connect()
        if client.welcome["features"] & t.FEATURE_RESERVATIONS:
            with_client += [self.reservations, self.reservation_ends, self.refunds]
        else:
            with_client.append(self.no_reservations)
        try:
            for step in with_client:
                step(client)
            self.hello_faults()
            self.hostile_frames("frames-hostile.json")
            if client.welcome["features"] & t.FEATURE_RESERVATIONS:
                self.hostile_frames("frames-reservations.json")
            self.expect(client.check(self.subject, {self.feature: 0}) is not None,
                        "the good client is still served")
            client.ping(30)
        finally:
            client.close()

    def basics(self, client):
        welcome = client.welcome
        self.expect(welcome["version"] == 1 and welcome["role"] == "check", "welcome")
        self.expect(welcome["frameBytesMax"] >= 4096 and welcome["inFlightMax"] >= 1, "limits")
        self.expect(abs(welcome["time"] - time.time() * 1000) < 60_000, "the server's clock")
        self.expect(self.feature in client.policies, "the feature has a failure policy")
        client.ping(30)
        before = self.settled(client)
        decision = client.check(self.subject, {self.feature: self.amount})
        self.expect(decision.allowed and not decision.replayed, f"check: {decision}")
        self.counted(client, before, "check changes nothing")
        decision = client.consume(self.subject, {self.feature: self.amount}, deadline=5.0)
        self.expect(decision.allowed and decision.source == "redis", f"consume: {decision}")
        self.counted(client, before + self.amount, "consume counts once")

    def replays(self, client):
        first = client.consume(self.subject, {self.feature: self.amount})
        count = self.settled(client)
        again = client.consume(self.subject, {self.feature: self.amount}, id=first.id)
        self.expect(again.replayed and again.reason == first.reason, f"replay: {again}")
        self.expect(again.items == first.items and again.time == first.time, "the same answer")
        other = self.connect()
        elsewhere = other.consume(self.subject, {self.feature: self.amount}, id=first.id)
        other.close()
        self.expect(elsewhere.replayed, "replay on another connection")
        self.refused("IDEMPOTENCY_MISMATCH", "other amount", client.consume, self.subject,
                     {self.feature: self.amount + 1}, id=first.id)
        self.refused("IDEMPOTENCY_MISMATCH", "other subject", client.consume,
                     self.subject + "/else", {self.feature: self.amount}, id=first.id)
        self.counted(client, count, "replays and mismatches count nothing")

    def ids(self, client):
        now = int(time.time() * 1000)
        self.refused("ID_TOO_OLD", "an id of 2001", client.consume, self.subject,
                     {self.feature: 1}, id=t.new_id(1_000_000_000_000))
        self.refused("ID_FROM_FUTURE", "an id of tomorrow", client.consume, self.subject,
                     {self.feature: 1}, id=t.new_id(now + 86_400_000))

    def cancels(self, client):
        count, tombstone = self.settled(client), t.new_id()
        first = client.cancel(self.subject, {self.feature: self.amount}, id=tombstone)
        self.expect(first.reason == "CANCELLED", f"cancel before consume: {first}")
        late = client.consume(self.subject, {self.feature: self.amount}, id=tombstone)
        self.expect(late.reason == "CANCELLED", f"consume after cancel: {late}")
        done = client.consume(self.subject, {self.feature: self.amount})
        self.counted(client, count + self.amount, "consumed")
        back = client.cancel(self.subject, {self.feature: self.amount}, id=done.id)
        self.expect(back.reason == "CANCELLED", f"cancel after consume: {back}")
        client.cancel(self.subject, {self.feature: self.amount}, id=done.id)
        self.counted(client, count, "cancel takes back once")
        for id in (tombstone, done.id):
            posted = client.post(self.subject, {self.feature: self.amount}, id=id)
            self.expect(posted.reason == "CANCELLED" and posted.replayed,
                        f"post after cancel: {posted}")
        self.counted(client, count, "cancel is final")

    def posts(self, client):
        count, id = self.settled(client), t.new_id()
        first = client.post(self.subject, {self.feature: self.amount}, id=id)
        self.expect(first.reason == "ALLOWED_POSTED", f"post: {first}")
        again = client.post(self.subject, {self.feature: self.amount}, id=id)
        self.expect(again.replayed and again.allowed, f"post again: {again}")
        self.counted(client, count + self.amount, "post counts once")

    def all_or_nothing(self, client):
        count = self.settled(client)
        decision = client.consume(self.subject, {self.feature: self.amount, "no.such.feature": 1})
        self.expect(decision.reason == "UNKNOWN_FEATURE", f"unknown feature: {decision}")
        self.counted(client, count, "a denial counts nothing")
        self.refused("AMOUNT_OUT_OF_RANGE", "a negative amount", client.consume, self.subject,
                     {self.feature: -1})
        self.refused("INVALID_NAME", "a bad subject", client.consume, "a//b", {self.feature: 1})

    def pipelining(self, client):
        count = self.settled(client)
        room = max(1, min(200, client.welcome["inFlightMax"] // 2))
        sent = [client.submit("CONSUME", self.subject, {self.feature: 1}, deadline=5.0)
                for _ in range(room)]
        records = [future.result(30)["records"][0] for _, future in sent]
        decided = [r for r in records if "reason" in r]
        self.expect(len(decided) == room, f"{len(decided)} of {room} decided")
        allowed = sum(t.REASON_NUMBERS[r["reason"]] < 16 for r in decided)
        self.counted(client, count + allowed, f"{allowed} pipelined units are counted")

    def records(self, client):
        good = [client._record(self.subject, {self.feature: 0}) for _ in range(3)]
        bad = client._record(self.subject, {self.feature: 1})
        bad["items"].append(dict(bad["items"][0]))
        outcomes = client.batch("CHECK", [good[0], bad, good[1], good[2]])
        self.expect([isinstance(o, t.Decision) for o in outcomes] == [True, False, True, True],
                    f"one bad record among good ones: {outcomes}")
        self.expect(getattr(outcomes[1], "code", "") == "DUPLICATE_ITEM", "named in its place")

    def roles(self, client):
        self.refused("FORBIDDEN", "admin on a check connection", client.admin, "status")
        if not self.options.admin_token:
            return
        admin = self.connect(self.options.admin_token, role="admin")
        self.expect(isinstance(admin.admin("status"), dict), "status")
        self.refused("NOT_FOUND", "an unknown method", admin.admin, 60_000)
        admin.check(self.subject, {self.feature: 0})
        admin.close()

    def no_reservations(self, client):
        frame = t.encode_frame("RELEASE", {"records": [
            {"id": t.new_id(), "subject": self.subject, "reservation": t.new_id()}]}, 5)
        messages, closed = self.exchange(frame, until=5)
        codes = [m.get("code") for h, m in messages if h.correlation == 5]
        self.expect(not closed and codes == ["UNKNOWN_OPCODE"], f"no reservations: {codes}")

    def held(self, client):
        decision = client.check(self.subject, {self.feature: 0})
        return decision.items[0]["held"] if decision.items else None

    def reservations(self, client):
        count, feature, subject = self.settled(client), self.feature, self.subject
        free = self.held(client)
        held = client.reserve(subject, {feature: 10}, ttl=120, attributes={"model": "drive"})
        self.expect(held.allowed and held.expires, f"reserve: {held}")
        self.expect(115_000 <= held.expires - held.time <= 120_000, f"expires: {held.expires}")
        self.expect(self.held(client) == free + 10, "reserve holds")
        again = client.reserve(subject, {feature: 10}, ttl=120, attributes={"model": "drive"},
                               id=held.id)
        self.expect(again.replayed and again.expires == held.expires, f"reserve again: {again}")
        self.refused("IDEMPOTENCY_MISMATCH", "another ttl", client.reserve, subject, {feature: 10},
                     ttl=121, attributes={"model": "drive"}, id=held.id)
        self.refused("IDEMPOTENCY_MISMATCH", "a consume under its id", client.consume, subject,
                     {feature: 10}, id=held.id)
        self.refused("IDEMPOTENCY_MISMATCH", "a cancel under its id", client.cancel, subject,
                     {feature: 10}, id=held.id, attributes={"model": "drive"})
        part = client.settle(subject, held.id, {feature: 3}, final=False)
        self.expect(part.reason == "SETTLED", f"draw: {part}")
        client.settle(subject, held.id, {feature: 3}, final=False, id=part.id)
        self.counted(client, count + 3, "a draw counts once")
        self.expect(self.held(client) == free + 7, "a draw leaves the rest")
        longer = client.extend(subject, held.id, 600)
        self.expect(longer.reason == "EXTENDED" and longer.expires > held.expires, f"{longer}")
        shorter = client.extend(subject, held.id, 1)
        self.expect(shorter.expires == longer.expires, "extend never shortens")
        last = client.settle(subject, held.id, {feature: 4})
        self.expect(last.reason == "SETTLED" and last.settlements[0] == {
            "actual": 4, "charged": 4, "absorbed": 0}, f"settle: {last} {last.settlements}")
        self.counted(client, count + 7, "settle counts what was used")
        self.expect(self.held(client) == free, "settle frees the rest")

    def reservation_ends(self, client):
        count, feature, subject = self.settled(client), self.feature, self.subject
        free = self.held(client)
        zero = client.reserve(subject, {feature: 5})
        self.expect(client.settle(subject, zero.id, {feature: 0}).allowed, "settle of zero")
        given = client.reserve(subject, {feature: 5})
        self.expect(client.release(subject, given.id).reason == "RELEASED", "release")
        for id, state in ((zero.id, "settled"), (given.id, "released")):
            self.refused("RESERVATION_ENDED", f"settle of a {state} one", client.settle, subject,
                         id, {feature: 1})
            self.refused("RESERVATION_ENDED", f"release of a {state} one", client.release, subject,
                         id)
            self.refused("RESERVATION_ENDED", f"extend of a {state} one", client.extend, subject,
                         id, 60)
        self.refused("RESERVATION_UNKNOWN", "settle of nothing", client.settle, subject, t.new_id(),
                     {feature: 1})
        strict = client.reserve(subject, {feature: 5}, overrun="reject")
        self.refused("OVERRUN_REJECTED", "more than is held", client.settle, subject, strict.id,
                     {feature: 6})
        self.refused("RESERVATION_UNKNOWN", "another subject's", client.settle, subject + "/else",
                     strict.id, {feature: 1})
        self.expect(self.held(client) == free + 5, "what was refused changed nothing")
        client.release(subject, strict.id)
        with client.reservation(subject, {feature: 5}) as held:
            held.use(feature, 2)
        self.counted(client, count + 2, "the block settles")
        self.expect(self.held(client) == free, "nothing is left held")

    def refunds(self, client):
        count, feature, subject = self.settled(client), self.feature, self.subject
        used = client.consume(subject, {feature: 9})
        back = client.refund(subject, used.id, {feature: 4}, reason="drive")
        self.expect(back.reason == "REFUNDED" and back.settlements[0]["charged"] == -4,
                    f"refund: {back} {back.settlements}")
        again = client.refund(subject, used.id, {feature: 4}, id=back.id)
        self.expect(again.replayed, "refund again")
        self.counted(client, count + 5, "a refund counts once")
        client.refund(subject, used.id)
        self.counted(client, count, "all of it")
        self.refused("NOTHING_TO_REFUND", "more than all", client.refund, subject, used.id)

    def hello_faults(self):
        messages, closed = self.exchange(t.encode_frame("PING", {"nonce": 1}, 1), hello=False)
        codes = [m.get("code") for _, m in messages]
        self.expect(closed and codes == ["HELLO_REQUIRED"], f"ping before hello: {codes}")
        greeting = {"versionMin": 1, "versionMax": 1, "role": "check", "features": 0,
                    "client": "drive", "token": "not the token"}
        for change, code in (({}, "UNAUTHENTICATED"),
                             ({"versionMin": 2, "versionMax": 9}, "UNSUPPORTED_VERSION")):
            frame = t.encode_frame("HELLO", {**greeting, **change}, 1)
            messages, closed = self.exchange(frame, hello=False)
            codes = [m.get("code") for _, m in messages]
            self.expect(closed and codes == [code], f"hello: {codes}, {code} wanted")

    def hostile_frames(self, name):
        for vector in hostile(name):
            data = bytes.fromhex(vector["hex"])
            if vector.get("incomplete") or "frameBytesMax" in vector:
                connection = self.raw()
                connection.sendall(data)
                connection.close()
                continue
            until = None if "error" in vector else vector["header"]["correlation"]
            messages, closed = self.exchange(data, until=until)
            messages = [m for m in messages if m[0].name not in ("WELCOME", "PONG")]
            self.judge(vector, data, messages, closed)

    def judge(self, vector, data, messages, closed):
        name = f"hostile: {vector['name']}"
        codes = [m["code"] for h, m in messages if h.name == "ERROR"]
        opcode = t.OPCODE_NAMES.get(data[3]) if data[:2] == t.MAGIC else None
        if "error" not in vector:
            wanted = vector["fields"]["records"][1]["error"]
            got = [m["records"][1].get("error") for h, m in messages if h.name == "DECISIONS"]
            self.expect(got == [wanted], f"{name}: {got}, {wanted} wanted")
        elif vector["error"]["fatal"]:
            self.expect(closed, f"{name}: the connection stays open")
            self.expect(codes in ([vector["error"]["code"]], []), f"{name}: {codes}")
        elif opcode in DATA_PATH - {"HELLO"} or opcode is None:
            self.expect(codes == [vector["error"]["code"]],
                        f"{name}: {codes}, {vector['error']['code']} wanted")
        else:
            self.expect(codes or closed, f"{name}: neither an error nor closed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--unix")
    where.add_argument("--tcp")
    parser.add_argument("--token", default="")
    parser.add_argument("--admin-token")
    parser.add_argument("--subject", default="acme/alice")
    parser.add_argument("--feature", default="chat.requests")
    parser.add_argument("--amount", type=int, default=1)
    drive = Drive(parser.parse_args())
    try:
        drive.run()
    except (t.Failure, t.WireError, OSError) as error:
        drive.expect(False, f"the session ended early: {error!r}")
    print(f"{drive.passed} expectations held, {len(drive.failed)} failed")
    return 1 if drive.failed else 0


if __name__ == "__main__":
    sys.exit(main())
