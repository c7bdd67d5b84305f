"""A sidecar in miniature, for the client's own tests: one feature, one quota, reservations,
everything in memory. It follows PROTOCOL.md in framing, session and ids, so that `tollgate.py` and
`drive.py` can be tested without a sidecar. It is no reference for decisions."""

import json
import socket
import threading
import time

import tollgate as t

TOKEN, ADMIN_TOKEN, FEATURE, AMOUNT = "check-token", "admin-token", "chat.requests", 10_000


class Violation(Exception):
    """Answer with this code, then close."""

    def __init__(self, code, correlation=0):
        super().__init__(code)
        self.code, self.correlation = code, correlation


class ModelServer:
    def __init__(self, path, name="model-1", sidecar_features=()):
        self.path, self.lock = path, threading.Lock()
        self.name, self.sidecar_features = name, list(sidecar_features)
        self.settled, self.records, self.holds = {}, {}, {}
        self.features, self.grace_ms = t.FEATURES, 5_000
        self.behaviour = {}  # opcode name → function(connection, header) that replaces the answer
        self.connections = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(path)
        self.socket.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.socket.close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        decoder, session = t.FrameDecoder(4096), {"role": None, "features": 0}
        try:
            while data := connection.recv(65536):
                decoder.feed(data)
                while (frame := decoder.next()) is not None:
                    self._frame(connection, decoder, session, *frame)
        except t.WireError as error:
            self._refuse(connection, error.code, 0)
        except Violation as violation:
            self._refuse(connection, violation.code, violation.correlation)
        except OSError:
            pass
        connection.close()

    def _refuse(self, connection, code, correlation):
        try:
            self._send(connection, "ERROR", {"code": code, "message": "", "field": ""}, correlation)
        except OSError:
            pass

    @staticmethod
    def _send(connection, opcode, message, correlation, flags=0):
        connection.sendall(t.encode_frame(opcode, message, correlation, 0, flags))

    def _frame(self, connection, decoder, session, header, payload):
        if session["role"] is None and header.name != "HELLO":
            raise Violation("HELLO_REQUIRED")
        if header.name is None or (header.name in t.RESERVATION_OPCODES
                                   and not session["features"] & t.FEATURE_RESERVATIONS):
            return self._refuse(connection, "UNKNOWN_OPCODE", header.correlation)
        if header.name not in {"HELLO", "PING", "GOAWAY", "CHECK", "CONSUME", "POST", "CANCEL",
                               "ADMIN", "PONG"} | t.RESERVATION_OPCODES:
            raise Violation("BAD_FRAME")
        if header.name in self.behaviour:
            return self.behaviour[header.name](connection, header)
        try:
            message = t.decode_payload(header.name, payload)
        except t.WireError as error:
            return self._refuse(connection, error.code, header.correlation)
        if header.name == "HELLO":
            self._hello(connection, session, header, message)
            decoder.frame_bytes_max = t.FRAME_BYTES_MAX
        elif header.name == "PING":
            self._send(connection, "PONG", message, header.correlation)
        elif header.name == "ADMIN":
            self._admin(connection, session, header, message)
        elif header.name not in ("GOAWAY", "PONG"):
            with self.lock:
                decide = (self._reservation if header.name in t.RESERVATION_OPCODES
                          else self._decide)
                answers = [decide(header.name, record) for record in message["records"]]
            self._send(connection, "DECISIONS", {"records": answers}, header.correlation)

    def _hello(self, connection, session, header, hello):
        if session["role"] is not None:
            raise Violation("BAD_FRAME")
        if not hello["versionMin"] <= 1 <= hello["versionMax"]:
            raise Violation("UNSUPPORTED_VERSION", header.correlation)
        granted = {TOKEN: {"check"}, ADMIN_TOKEN: {"check", "admin"}}.get(hello["token"])
        if granted is None:
            raise Violation("UNAUTHENTICATED", header.correlation)
        if hello["role"] not in granted:
            raise Violation("FORBIDDEN", header.correlation)
        session.update(role=hello["role"], features=hello["features"] & self.features)
        self._send(connection, "WELCOME", {
            "version": 1, "role": hello["role"], "features": session["features"], "deployment": "model",
            "server": self.name, "sidecarFeatures": self.sidecar_features, "frameBytesMax": t.FRAME_BYTES_MAX, "inFlightMax": 1024,
            "recordsMax": 1024, "defaultDeadline": 30_000, "maxDeadline": 60_000, "idleTimeout": 0,
            "time": int(time.time() * 1000), "globalVersion": 1, "policies": [
                {"feature": FEATURE, "policy": "open", "allowance": 5}]}, header.correlation)

    def _admin(self, connection, session, header, message):
        if session["role"] != "admin":
            return self._refuse(connection, "FORBIDDEN", header.correlation)
        if message["method"] not in t.ADMIN_METHODS.values():
            reply = {"status": "NOT_FOUND", "document": '{"message":"no such method"}'}
            return self._send(connection, "ADMIN_REPLY", reply, header.correlation)
        text = json.dumps({"method": message["method"], "text": "größer"}, ensure_ascii=False)
        raw = text.encode()
        cut = raw.index("ö".encode()) + 1  # in the middle of a character
        for piece, flags in ((raw[:cut], t.MORE), (raw[cut:], 0)):
            self._send(connection, "ADMIN_REPLY", {
                "status": "OK", "document": piece.decode("utf-8", "surrogateescape")},
                header.correlation, flags)

    def _decide(self, mode, record):
        if "error" in record:
            return {"error": record["error"], "message": "refused in its place"}
        if mode != "CHECK" and (fault := self._id_fault(record)):
            return fault
        body = (record["subject"], tuple((i["feature"], i["amount"]) for i in record["items"]))
        known = self.records.get(record["id"]) if mode != "CHECK" else None
        if known:
            if known["body"] not in (None, body):
                return {"error": "IDEMPOTENCY_MISMATCH", "message": "the body differs"}
            reason = known["answer"]["reason"]
            if mode == "POST" and reason != "CANCELLED" and t.REASON_NUMBERS[reason] >= 16:
                known["answer"], known["units"] = self._fresh(mode, record)
                return known["answer"]
            if mode == "CANCEL" and known["units"]:
                self.settled[record["subject"]] -= known["units"]
                known.update(units=0, answer=self._answer("CANCELLED", record))
            return {**known["answer"], "replayed": True}
        answer, units = self._fresh(mode, record)
        if mode != "CHECK":
            self.records[record["id"]] = {
                "body": None if mode == "CANCEL" else body, "answer": answer, "units": units}
        return answer

    def _fresh(self, mode, record):
        units = sum(item["amount"] for item in record["items"])
        subject = record["subject"]
        if mode == "CANCEL":
            return self._answer("CANCELLED", record), 0
        if any(item["feature"] != FEATURE for item in record["items"]):
            return self._answer("UNKNOWN_FEATURE", record), 0
        if mode != "POST" and units > self._room(subject):
            return self._answer("QUOTA_EXCEEDED", record), 0
        if mode == "CHECK":
            return self._answer("ALLOWED", record), 0
        self.settled[subject] = self.settled.get(subject, 0) + units
        return self._answer("ALLOWED_POSTED" if mode == "POST" else "ALLOWED", record), units

    @staticmethod
    def _id_fault(record):
        now, minted = int(time.time() * 1000), int(record["id"][:12], 16)
        if minted < now - 86_400_000:
            return {"error": "ID_TOO_OLD", "message": ""}
        if minted > now + 60_000:
            return {"error": "ID_FROM_FUTURE", "message": ""}
        return None

    def _answer(self, reason, record, items=None, **extra):
        settled, held = self.settled.get(record["subject"], 0), self._held(record["subject"])
        state = {"remaining": max(0, AMOUNT - settled - held), "settled": settled, "held": held,
                 "reset": None, "limit": "model"}
        items = record["items"] if items is None else items
        return {"reason": reason, "source": "redis", "replayed": False,
                "time": int(time.time() * 1000), "globalVersion": 1, "accountVersion": 0,
                "retryAfter": None, "bindingItem": None, "binding": None,
                "items": [dict(state) for _ in items], **extra}

    # ------------------------------------------------------------------------- reservations

    def _held(self, subject):
        now = time.time() * 1000
        for hold in self.holds.values():
            if hold["state"] == "HELD" and hold["expires"] + self.grace_ms <= now:
                hold["state"] = "EXPIRED"
        return sum(hold["left"] for hold in self.holds.values()
                   if hold["subject"] == subject and hold["state"] == "HELD")

    def _room(self, subject):
        return AMOUNT - self.settled.get(subject, 0) - self._held(subject)

    def _reservation(self, opcode, record):
        if "error" in record:
            return {"error": record["error"], "message": "refused in its place"}
        if fault := self._id_fault(record):
            return fault
        body = (opcode, json.dumps({**record, "traceParent": "", "reason": ""}, sort_keys=True))
        known = self.records.get(record["id"])
        if known:
            if known["body"] not in (None, body):
                return {"error": "IDEMPOTENCY_MISMATCH", "message": "the body differs"}
            return {**known["answer"], "replayed": True}
        self._held(record["subject"])  # What is over by now has expired.
        answer = getattr(self, "_" + opcode.lower())(record)
        if "error" in answer:
            return {"message": "", **answer}
        units = sum(s["charged"] for s in answer.get("settlements", []))
        self.records[record["id"]] = {"body": body, "answer": answer, "units": units}
        return answer

    def _hold(self, record, *states):
        hold = self.holds.get(record["reservation"])
        if hold is None or hold["subject"] != record["subject"]:
            return {"error": "RESERVATION_UNKNOWN"}
        if hold["state"] not in states:
            return {"error": "RESERVATION_ENDED", "message": hold["state"]}
        return hold

    def _reserve(self, record):
        units, subject = sum(item["amount"] for item in record["items"]), record["subject"]
        if any(item["feature"] != FEATURE for item in record["items"]):
            return self._answer("UNKNOWN_FEATURE", record)
        if units > self._room(subject):
            return self._answer("QUOTA_EXCEEDED", record)
        expires = int(time.time() * 1000) + (record["ttl"] or 60_000)
        self.holds[record["id"]] = {
            "state": "HELD", "subject": subject, "left": units, "expires": expires,
            **(record["overrun"] or {"policy": "clamp", "bound": 0})}
        return self._answer("ALLOWED", record, expires=expires)

    def _settle(self, record):
        hold = self._hold(record, "HELD", "EXPIRED")
        if "error" in hold:
            return hold
        if any(item["feature"] != FEATURE for item in record["items"]):
            return {"error": "BAD_REQUEST"}
        actual, late = record["items"][0]["amount"], hold["state"] == "EXPIRED"
        over = max(0, actual - hold["left"])
        if over and hold["policy"] == "reject" and not late:
            return {"error": "OVERRUN_REJECTED"}
        beyond = max(0, self._room(record["subject"]))
        if hold["policy"] == "overdraft":
            beyond += hold["bound"]
        charged = actual if late else actual - over + min(over, beyond)
        if hold["policy"] == "overdraft" and not late:
            hold["bound"] -= min(hold["bound"], max(0, charged - (actual - over)))
        self.settled[record["subject"]] = self.settled.get(record["subject"], 0) + charged
        hold["left"] = 0 if late else max(0, hold["left"] - actual)
        if record["final"] or late:
            hold.update(state="COMMITTED", left=0)
        reason = ("SETTLED_LATE" if late else "SETTLED" if charged == actual
                  else "SETTLED_CLAMPED")
        return self._answer(reason, record, settlements=[
            {"actual": actual, "charged": charged, "absorbed": actual - charged}])

    def _release(self, record):
        hold = self._hold(record, "HELD")
        if "error" not in hold:
            hold.update(state="RELEASED", left=0)
            return self._answer("RELEASED", record, items=[0])
        return hold

    def _extend(self, record):
        hold = self._hold(record, "HELD")
        if "error" not in hold:
            hold["expires"] = max(hold["expires"], int(time.time() * 1000) + record["ttl"])
            return self._answer("EXTENDED", record, items=[0], expires=hold["expires"])
        return hold

    def _refund(self, record):
        charged = self.records.get(record["corrects"], {"units": 0})
        asked = [item["amount"] for item in record["items"]] or [charged["units"]]
        back = min(sum(asked), charged["units"])
        if back <= 0:
            return {"error": "NOTHING_TO_REFUND"}
        charged["units"] -= back
        self.settled[record["subject"]] -= back
        return self._answer("REFUNDED", record, items=[0], settlements=[
            {"actual": -back, "charged": -back, "absorbed": 0}])
