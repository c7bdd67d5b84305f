"""The Python client against a model server: what each failure means, and the whole of drive.py."""

import os
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import model_server as model  # noqa: E402
import tollgate as t  # noqa: E402


class ClientTests(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="tg-py")
        self.path = os.path.join(self.folder.name, "s")
        self.server = model.ModelServer(self.path)

    def tearDown(self):
        self.server.close()
        self.folder.cleanup()

    def client(self, **options):
        client = t.Client.unix(self.path, model.TOKEN, **options)
        self.addCleanup(client.close)
        return client

    def test_a_denial_is_a_result(self):
        decision = self.client().consume("acme", {model.FEATURE: model.AMOUNT + 1})
        self.assertFalse(decision.allowed)
        self.assertEqual(decision.reason, "QUOTA_EXCEEDED")

    def test_no_server_is_not_sent(self):
        with self.assertRaises(t.NotSent):
            t.Client.unix(self.path + "-not-there", model.TOKEN)

    def test_a_wrong_token_is_rejected(self):
        with self.assertRaises(t.Rejected) as caught:
            t.Client.unix(self.path, "wrong")
        self.assertEqual(caught.exception.code, "UNAUTHENTICATED")

    def test_after_the_connection_ended_nothing_is_sent(self):
        client = self.client()
        client.close()
        with self.assertRaises(t.NotSent) as caught:
            client.consume("acme", {model.FEATURE: 1})
        self.assertTrue(caught.exception.retry_same_id)

    def test_an_end_while_waiting_is_outcome_unknown_with_the_id(self):
        client = self.client()
        self.server.behaviour["CONSUME"] = lambda connection, header: connection.shutdown(2)
        id = t.new_id()
        with self.assertRaises(t.OutcomeUnknown) as caught:
            client.consume("acme", {model.FEATURE: 1}, id=id)
        self.assertEqual(caught.exception.id, id)

    def test_silence_is_outcome_unknown_and_a_late_answer_disturbs_nobody(self):
        client, held, arrived = self.client(slack=0.05), [], threading.Event()

        def hold(connection, header):
            held.append((connection, header.correlation))
            arrived.set()

        self.server.behaviour["CONSUME"] = hold
        with self.assertRaises(t.OutcomeUnknown):
            client.consume("acme", {model.FEATURE: 1}, deadline=0.05)
        self.assertTrue(arrived.wait(30))
        connection, correlation = held[0]
        self.server._send(connection, "DECISIONS", {"records": []}, correlation)
        del self.server.behaviour["CONSUME"]
        self.assertTrue(client.consume("acme", {model.FEATURE: 1}).allowed)

    def test_an_error_reply_is_rejected_or_unknown_by_its_code(self):
        client = self.client()
        for code, kind in (("OVERLOADED", t.Rejected), ("OUTCOME_UNKNOWN", t.OutcomeUnknown),
                           ("INTERNAL_ERROR", t.OutcomeUnknown), ("BAD_REQUEST", t.Rejected)):
            self.server.behaviour["CONSUME"] = lambda connection, header: self.server._refuse(
                connection, code, header.correlation)
            with self.assertRaises(kind) as caught:
                client.consume("acme", {model.FEATURE: 1})
            self.assertEqual(caught.exception.code, code)

    def test_after_goaway_nothing_new_is_sent_and_what_is_in_flight_is_answered(self):
        client = self.client()

        def go_away(connection, header):
            self.server._send(connection, "GOAWAY",
                              {"code": "DRAINING", "grace": 100, "message": ""}, 0)
            self.server._refuse(connection, "NOT_READY", header.correlation)

        self.server.behaviour["CONSUME"] = go_away
        with self.assertRaises(t.Rejected) as caught:
            client.consume("acme", {model.FEATURE: 1})
        self.assertEqual(caught.exception.code, "NOT_READY")
        with self.assertRaises(t.NotSent):
            client.consume("acme", {model.FEATURE: 1})

    def test_an_answer_that_nobody_awaits_ends_the_connection(self):
        client = self.client()
        self.server.behaviour["CONSUME"] = lambda connection, header: self.server._send(
            connection, "DECISIONS", {"records": []}, header.correlation + 7)
        with self.assertRaises(t.OutcomeUnknown):
            client.consume("acme", {model.FEATURE: 1})
        with self.assertRaises(t.NotSent):
            client.ping()

    def test_answers_out_of_order_reach_their_requests(self):
        client, held = self.client(), []
        enough = threading.Event()

        def hold(connection, header):
            held.append((connection, header.correlation))
            if len(held) == 3:
                enough.set()

        self.server.behaviour["CHECK"] = hold
        sent = [client.submit("CHECK", f"s{n}", {model.FEATURE: 1}) for n in range(3)]
        self.assertTrue(enough.wait(30))
        for connection, correlation in reversed(held):
            answer = {"error": "CONFLICT", "message": str(correlation)}
            self.server._send(connection, "DECISIONS", {"records": [answer]}, correlation)
        for (connection, correlation), (_, future) in zip(held, sent):
            self.assertEqual(future.result(30)["records"][0]["message"], str(correlation))

    def test_a_ping_under_the_number_of_a_request_is_no_answer_to_it(self):
        client, held, arrived = self.client(), [], threading.Event()

        def hold(connection, header):
            held.append((connection, header.correlation))
            arrived.set()

        ponged = threading.Event()
        self.server.behaviour["PONG"] = lambda connection, header: (
            ponged.set() if header.correlation == held[0][1] else None)
        self.server.behaviour["CHECK"] = hold
        _, future = client.submit("CHECK", "acme", {model.FEATURE: 1})
        self.assertTrue(arrived.wait(30))
        connection, correlation = held[0]
        self.server._send(connection, "PING", {"nonce": 9}, correlation)
        self.assertTrue(ponged.wait(30))
        self.assertFalse(future.done())
        self.server._send(connection, "DECISIONS", {
            "records": [{"error": "CONFLICT", "message": ""}]}, correlation)
        self.assertEqual(future.result(30)["records"][0]["error"], "CONFLICT")

    def test_welcome_again_brings_policies_and_unknown_pushes_are_passed_over(self):
        client = self.client()
        self.assertEqual(client.policies[model.FEATURE]["allowance"], 5)
        news = {**client.welcome, "policies": [
            {"feature": model.FEATURE, "policy": "open", "allowance": 9}]}

        def tell(connection, header):
            connection.sendall(t.frame_bytes(0x7F, b"later", 0))
            self.server._send(connection, "WELCOME", news, 0)
            self.server._send(connection, "PONG", {"nonce": 1}, header.correlation)

        self.server.behaviour["PING"] = tell
        with self.assertRaises(t.OutcomeUnknown):
            client.ping()
        self.assertEqual(client.policies[model.FEATURE]["allowance"], 9)
        self.assertTrue(client.consume("acme", {model.FEATURE: 1}).allowed)

    def scoped(self, name):
        """A client of a sidecar of that name, for which the model's feature has scope sidecar."""
        path = os.path.join(self.folder.name, name)
        server = model.ModelServer(path, name, [model.FEATURE])
        self.addCleanup(server.close)
        client = t.Client.unix(path, model.TOKEN)
        self.addCleanup(client.close)
        return server, client

    def test_welcome_names_the_features_of_scope_sidecar(self):
        self.assertEqual(self.client().sidecar_features, frozenset())
        _, client = self.scoped("one")
        self.assertEqual((client.server, client.sidecar_features), ("one", {model.FEATURE}))

    def in_doubt(self):
        server, client = self.scoped("one")
        server.behaviour["CONSUME"] = lambda connection, header: connection.shutdown(2)
        with self.assertRaises(t.OutcomeUnknown) as caught:
            client.consume("acme", {model.FEATURE: 1})
        del server.behaviour["CONSUME"]
        return server, caught.exception

    def test_what_may_be_applied_at_one_sidecar_is_sent_to_no_other(self):
        _, unknown = self.in_doubt()
        self.assertEqual(unknown.home, "one")
        other, client = self.scoped("two")
        for call in (client.consume, client.post, client.cancel):
            with self.assertRaises(t.OutcomeUnknown) as caught:
                call("acme", {model.FEATURE: 1}, id=unknown.id)
            self.assertEqual((caught.exception.id, caught.exception.home), (unknown.id, "one"))
        with self.assertRaises(t.OutcomeUnknown):
            client.batch("CONSUME", [
                client._record("acme", {model.FEATURE: 1}),
                client._record("acme", {model.FEATURE: 1}, unknown.id)])
        self.assertEqual(other.records, {})
        self.assertTrue(client.consume("acme", {model.FEATURE: 1}).allowed)

    def test_its_home_is_asked_and_settles_it(self):
        server, unknown = self.in_doubt()
        client = t.Client.unix(server.path, model.TOKEN)
        self.addCleanup(client.close)
        # Of this attempt; what became of the one before is as open as it was.
        server.behaviour["CONSUME"] = lambda connection, header: server._send(
            connection, "DECISIONS", {"records": [{"error": "OVERLOADED", "message": ""}]},
            header.correlation)
        with self.assertRaises(t.Rejected):
            client.consume("acme", {model.FEATURE: 1}, id=unknown.id)
        self.assertEqual(t.HOMES.get(unknown.id), "one")
        del server.behaviour["CONSUME"]
        self.assertTrue(client.consume("acme", {model.FEATURE: 1}, id=unknown.id).allowed)
        self.assertIsNone(t.HOMES.get(unknown.id))

    def test_what_was_certainly_not_applied_may_go_elsewhere(self):
        server, client = self.scoped("one")
        server.behaviour["CONSUME"] = lambda connection, header: server._send(
            connection, "ERROR", {"code": "DRAINING", "message": "", "field": ""},
            header.correlation)
        with self.assertRaises(t.Rejected) as caught:
            client.consume("acme", {model.FEATURE: 1})
        _, other = self.scoped("two")
        self.assertTrue(other.consume("acme", {model.FEATURE: 1}, id=caught.exception.id).allowed)

    def test_one_item_of_scope_global_makes_the_operation_global(self):
        server, client = self.scoped("one")
        server.behaviour["CONSUME"] = lambda connection, header: connection.shutdown(2)
        with self.assertRaises(t.OutcomeUnknown) as caught:
            client.consume("acme", {model.FEATURE: 1, "zz.global": 1})
        self.assertIsNone(caught.exception.home)

    def test_homes_are_bounded(self):
        homes = t.Homes(capacity=3)
        for number in range(5):
            homes.sent(str(number), "one")
        self.assertEqual([homes.get(str(number)) for number in range(5)],
                         [None, None, "one", "one", "one"])

    def test_an_admin_answer_says_whether_anything_was_changed(self):
        client = t.Client.unix(self.path, model.ADMIN_TOKEN, role="admin")
        self.addCleanup(client.close)
        for status, kind in (("DEADLINE_EXCEEDED", t.Rejected), ("OVERLOADED", t.Rejected),
                             ("OUTCOME_UNKNOWN", t.OutcomeUnknown)):
            self.server.behaviour["ADMIN"] = lambda connection, header: self.server._send(
                connection, "ADMIN_REPLY", {"status": status, "document": "{}"},
                header.correlation)
            with self.assertRaises(kind):
                client.admin("account.set")

    def test_a_document_in_pieces_is_put_together(self):
        client = t.Client.unix(self.path, model.ADMIN_TOKEN, role="admin")
        self.addCleanup(client.close)
        self.assertEqual(client.admin("status"), {"method": 21, "text": "größer"})

    def test_the_driver_passes_against_the_model(self):
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "drive.py"), "--unix", self.path, "--token",
             model.TOKEN, "--admin-token", model.ADMIN_TOKEN], capture_output=True, text=True,
            timeout=300, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_driver_passes_against_a_model_without_reservations(self):
        self.server.features = 0
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "drive.py"), "--unix", self.path, "--token",
             model.TOKEN], capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_driver_fails_where_a_settle_counts_twice(self):
        real = self.server._reservation

        def forgetful(opcode, record):
            answer = real(opcode, record)
            if opcode == "SETTLE":
                self.server.records.pop(record.get("id"), None)
            return answer

        self.server._reservation = forgetful
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "drive.py"), "--unix", self.path, "--token",
             model.TOKEN], capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("a draw counts once", done.stdout)

    def test_the_driver_fails_where_a_replay_counts_twice(self):
        self.server._decide = lambda mode, record: (
            {"error": record["error"], "message": ""} if "error" in record
            else self.server._fresh(mode, record)[0])
        done = subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "drive.py"), "--unix", self.path, "--token",
             model.TOKEN], capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("replay", done.stdout)


if __name__ == "__main__":
    unittest.main()
