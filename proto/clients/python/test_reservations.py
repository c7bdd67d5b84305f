"""Reservations of the Python client against a model server: what the `with` block settles, what it
never does, and that nothing counts twice whatever is lost on the way."""

import os
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import model_server as model  # noqa: E402
import tollgate as t  # noqa: E402

FEATURE = model.FEATURE


class Cut(Exception):
    """The stream ended early."""


class ReservationTests(unittest.TestCase):
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

    def settled(self, subject="acme"):
        return self.server.settled.get(subject, 0)

    def held(self, subject="acme"):
        with self.server.lock:
            return self.server._held(subject)

    def until(self, condition, what, wait=30.0):
        end = time.monotonic() + wait
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.005)

    def lose_answers(self, opcode, count):
        """The next answers to `opcode` are lost after the server did what was asked."""
        real, left = self.server._reservation, [count]

        def lossy(name, record):
            answer = real(name, record)
            if name == opcode and left[0]:
                left[0] -= 1
                return {"error": "OUTCOME_UNKNOWN", "message": "lost"}
            return answer

        self.server._reservation = lossy

    # ------------------------------------------------------------------------ the five requests

    def test_reserve_settle_and_what_is_left(self):
        client = self.client()
        held = client.reserve("acme", {FEATURE: 100}, ttl=30)
        self.assertTrue(held.allowed)
        self.assertAlmostEqual(held.expires - held.time, 30_000, delta=1_000)
        self.assertEqual((self.settled(), self.held()), (0, 100))
        part = client.settle("acme", held.id, {FEATURE: 30}, final=False)
        self.assertEqual((part.reason, self.settled(), self.held()), ("SETTLED", 30, 70))
        last = client.settle("acme", held.id, {FEATURE: 20})
        self.assertEqual(last.settlements, [{"actual": 20, "charged": 20, "absorbed": 0}])
        self.assertEqual((self.settled(), self.held()), (50, 0))

    def test_an_amount_of_zero_is_charged_as_zero(self):
        client = self.client()
        held = client.reserve("acme", {FEATURE: 100})
        self.assertEqual(client.settle("acme", held.id, {FEATURE: 0}).reason, "SETTLED")
        self.assertEqual((self.settled(), self.held()), (0, 0))

    def test_overrun_by_each_policy(self):
        client = self.client()
        for policy, bound, charged in (("reject", 0, None), ("clamp", 0, 10_000),
                                       ("overdraft", 5, 10_005)):
            held = client.reserve(policy, {FEATURE: 9_000}, overrun=policy, bound=bound)
            if charged is None:
                with self.assertRaises(t.Rejected) as caught:
                    client.settle(policy, held.id, {FEATURE: 9_001})
                self.assertEqual(caught.exception.code, "OVERRUN_REJECTED")
                self.assertEqual(self.held(policy), 9_000)
                continue
            answer = client.settle(policy, held.id, {FEATURE: 12_000})
            self.assertEqual(answer.reason, "SETTLED_CLAMPED")
            self.assertEqual(answer.settlements, [
                {"actual": 12_000, "charged": charged, "absorbed": 12_000 - charged}])

    def test_only_one_request_ends_a_reservation(self):
        client = self.client()
        held = client.reserve("acme", {FEATURE: 10})
        client.release("acme", held.id)
        for ask in (lambda: client.settle("acme", held.id, {FEATURE: 1}),
                    lambda: client.release("acme", held.id),
                    lambda: client.extend("acme", held.id, 5)):
            with self.assertRaises(t.Rejected) as caught:
                ask()
            self.assertEqual(caught.exception.code, "RESERVATION_ENDED")
        with self.assertRaises(t.Rejected) as caught:
            client.settle("acme", t.new_id(), {FEATURE: 1})
        self.assertEqual(caught.exception.code, "RESERVATION_UNKNOWN")

    def test_the_same_id_draws_once_and_another_body_is_a_mismatch(self):
        client = self.client()
        held, id = client.reserve("acme", {FEATURE: 10}), t.new_id()
        for replayed in (False, True, True):
            answer = client.settle("acme", held.id, {FEATURE: 3}, final=False, id=id)
            self.assertEqual(answer.replayed, replayed)
        self.assertEqual((self.settled(), self.held()), (3, 7))
        with self.assertRaises(t.Rejected) as caught:
            client.settle("acme", held.id, {FEATURE: 3}, final=True, id=id)
        self.assertEqual(caught.exception.code, "IDEMPOTENCY_MISMATCH")

    def test_a_refund_gives_back_no_more_than_was_charged(self):
        client = self.client()
        used = client.consume("acme", {FEATURE: 10})
        first = client.refund("acme", used.id, {FEATURE: 7}, reason="a broken answer")
        self.assertEqual(first.settlements[0]["charged"], -7)
        again = client.refund("acme", used.id, {FEATURE: 7}, id=first.id, reason="said otherwise")
        self.assertTrue(again.replayed)
        self.assertEqual(client.refund("acme", used.id).settlements[0]["charged"], -3)
        with self.assertRaises(t.Rejected) as caught:
            client.refund("acme", used.id)
        self.assertEqual(caught.exception.code, "NOTHING_TO_REFUND")
        self.assertEqual(self.settled(), 0)

    def test_a_server_without_reservations_is_sent_none(self):
        self.server.features = 0
        client, sent = self.client(), []
        self.server.behaviour["RESERVE"] = lambda *arguments: sent.append(arguments)
        with self.assertRaises(t.NotSent) as caught:
            client.reserve("acme", {FEATURE: 1})
        self.assertEqual(caught.exception.code, "UNKNOWN_OPCODE")
        self.assertTrue(client.consume("acme", {FEATURE: 1}).allowed)
        self.assertEqual(sent, [])

    def test_a_server_without_reservations_refuses_one(self):
        self.server.features = 0
        client = self.client()
        client.welcome["features"] = t.FEATURE_RESERVATIONS  # as a client that does not look
        with self.assertRaises(t.Rejected) as caught:
            client.reserve("acme", {FEATURE: 1})
        self.assertEqual(caught.exception.code, "UNKNOWN_OPCODE")

    # ---------------------------------------------------------------------------- the with block

    def test_the_block_settles_what_it_was_told(self):
        with self.client().reservation("acme", {FEATURE: 100}) as held:
            held.use(FEATURE, 20)
            held.use(FEATURE, 22)
            self.assertEqual(self.held(), 100)
        self.assertEqual(held.outcome.reason, "SETTLED")
        self.assertEqual((self.settled(), self.held()), (42, 0))

    def test_a_denied_block_holds_and_settles_nothing(self):
        with self.client().reservation("acme", {FEATURE: 10_001}) as held:
            self.assertFalse(held.allowed)
            with self.assertRaises(ValueError):
                held.use(FEATURE, 1)
        self.assertIsNone(held.outcome)
        self.assertEqual((self.settled(), self.held()), (0, 0))

    def test_a_block_that_raises_settles_the_floor(self):
        seen = []
        real = self.server._settle
        self.server._settle = lambda record: seen.append(record) or real(record)
        with self.assertRaises(Cut):
            with self.client().reservation("acme", {FEATURE: 100}) as held:
                held.use(FEATURE, 7)
                raise Cut
        self.assertEqual((self.settled(), self.held()), (7, 0))
        self.assertEqual([(r["final"], r["floor"]) for r in seen], [(True, True)])
        self.assertEqual(held.outcome.reason, "SETTLED")

    def test_a_block_that_raises_knowing_nothing_is_left_to_expire(self):
        asked = []
        real = self.server._reservation
        self.server._reservation = lambda name, record: asked.append(name) or real(name, record)
        with self.assertRaises(Cut):
            with self.client().reservation("acme", {FEATURE: 100}):
                raise Cut
        self.assertEqual((asked, self.held()), (["RESERVE"], 100))

    def test_a_block_that_did_not_say_settles_zero_as_floor(self):
        seen = []
        real = self.server._settle
        self.server._settle = lambda record: seen.append(record) or real(record)
        with self.client().reservation("acme", {FEATURE: 100}):
            pass
        self.assertEqual([(r["floor"], r["items"][0]["amount"]) for r in seen], [(True, 0)])
        with self.client().reservation("acme", {FEATURE: 100}) as held:
            held.use(FEATURE, 0)
        self.assertEqual([r["floor"] for r in seen], [True, False])

    def test_what_was_used_is_never_released(self):
        with self.client().reservation("acme", {FEATURE: 100}) as held:
            held.use(FEATURE, 1)
            with self.assertRaises(ValueError):
                held.release()
        self.assertEqual(self.settled(), 1)
        with self.client().reservation("acme", {FEATURE: 100}) as held:
            held.release()
        self.assertEqual((held.outcome.reason, self.settled(), self.held()), ("RELEASED", 1, 0))

    def test_a_stream_is_drawn_as_it_goes_and_told_to_stop_at_the_limit(self):
        with self.client().reservation("acme", {FEATURE: 9_000}) as held:
            for chunk in range(20):
                held.use(FEATURE, 1_500)
                held.draw()
                if held.limit_reached:
                    break
        self.assertEqual((chunk, held.used[FEATURE]), (6, 10_500))
        self.assertEqual((self.settled(), self.held()), (10_000, 0))

    def test_the_block_extends_itself(self):
        self.server.grace_ms = 0
        with self.client().reservation("acme", {FEATURE: 5}, ttl=0.4) as held:
            first = held.decision.expires
            self.until(lambda: time.time() * 1000 > first + 400, "two lives")
            self.assertEqual(self.held(), 5)
            held.use(FEATURE, 5)
        self.assertEqual(held.outcome.reason, "SETTLED")
        self.assertFalse(held.lost)

    def test_a_hold_that_expired_under_the_block_is_settled_late(self):
        self.server.grace_ms = 0
        with self.client().reservation("acme", {FEATURE: 5}, ttl=0.2) as held:
            with self.server.lock:
                self.server.holds[held.id]["state"] = "EXPIRED"
            self.until(lambda: held.lost, "it is noticed")
            held.use(FEATURE, 5)
            self.assertIsNone(held.draw())
            held.use(FEATURE, 6)
        self.assertEqual((held.outcome.reason, self.settled()), ("SETTLED_LATE", 11))

    def test_use_after_a_late_draw_is_posted(self):
        with self.client().reservation("acme", {FEATURE: 5}) as held:
            with self.server.lock:
                self.server.holds[held.id]["state"] = "EXPIRED"
            held.use(FEATURE, 5)
            self.assertEqual(held.draw().reason, "SETTLED_LATE")
            held.use(FEATURE, 6)
        self.assertEqual((held.outcome.reason, self.settled()), ("ALLOWED_POSTED", 11))

    def test_lost_answers_count_nothing_twice(self):
        for opcode in ("RESERVE", "SETTLE"):
            self.lose_answers(opcode, 2)
            before = self.settled()
            with self.client().reservation("acme", {FEATURE: 10}) as held:
                held.use(FEATURE, 3)
                held.draw()
                held.use(FEATURE, 4)
            self.assertEqual(held.outcome.reason, "SETTLED")
            self.assertEqual((self.settled() - before, self.held()), (7, 0), opcode)

    def test_a_settle_that_got_no_answer_is_finished_by_another_client(self):
        real = self.server._reservation

        def cut(applies):
            def answer(name, record):
                if name != "SETTLE":
                    return real(name, record)
                if applies:
                    real(name, record)
                raise OSError("the connection ends without an answer")
            return answer

        for applies in (False, True):
            self.server._reservation = cut(applies)
            before = self.settled()
            with self.assertRaises(t.OutcomeUnknown):
                with self.client().reservation("acme", {FEATURE: 10}, patience=0.1) as held:
                    held.use(FEATURE, 3)
            self.assertEqual(held.failure.id, held.unanswered["id"])
            self.server._reservation = real
            self.assertEqual(held.finish(self.client()).replayed, applies)
            held.finish(self.client())
            self.assertEqual((self.settled() - before, self.held()), (3, 0))

    def test_a_failing_settle_does_not_hide_why_the_block_raised(self):
        client = self.client()
        with self.assertRaises(Cut):
            with client.reservation("acme", {FEATURE: 10}, patience=0.1) as held:
                held.use(FEATURE, 3)
                self.server.behaviour["SETTLE"] = lambda connection, header: connection.shutdown(2)
                raise Cut
        self.assertIsInstance(held.failure, t.OutcomeUnknown)

    def test_an_unknown_reservation_is_posted_once(self):
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            with self.server.lock:
                self.server.holds.clear()  # Redis lost everything.
            held.use(FEATURE, 3)
        self.assertEqual((held.outcome.reason, self.settled()), ("ALLOWED_POSTED", 3))

    def test_use_after_a_draw_is_posted_where_the_hold_was_lost(self):
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            held.use(FEATURE, 3)
            held.draw()
            with self.server.lock:
                self.server.holds.clear()
            held.use(FEATURE, 1)
            self.assertEqual(held.draw().reason, "ALLOWED_POSTED")
            held.use(FEATURE, 2)
        self.assertEqual((held.outcome.reason, self.settled()), ("ALLOWED_POSTED", 6))

    def test_a_settle_that_was_applied_after_all_is_not_posted(self):
        real, lost = self.server._reservation, []

        def late(name, record):
            if name == "SETTLE" and not lost:
                lost.append(record["id"])
                real(name, record)  # Arrives after the answer that it made.
                return {"error": "RESERVATION_UNKNOWN", "message": ""}
            return real(name, record)

        self.server._reservation = late
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            held.use(FEATURE, 3)
        self.assertEqual((held.outcome.reason, held.outcome.replayed), ("SETTLED", True))
        self.assertEqual((held.outcome.id, self.settled()), (lost[0], 3))

    def test_a_settle_whose_id_is_too_old_is_posted_under_it(self):
        real, ids = self.server._reservation, []

        def old(name, record):
            if name == "SETTLE":
                ids.append(record["id"])
                return {"error": "ID_TOO_OLD", "message": ""}
            return real(name, record)

        self.server._reservation = old
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            held.use(FEATURE, 3)
        self.assertEqual((held.outcome.reason, self.settled()), ("ALLOWED_POSTED", 3))
        self.assertEqual(ids, [held.outcome.id])
        self.assertEqual(self.held(), 0)  # The hold was there all the while, or came back.

    def test_a_hold_is_let_go_only_by_what_ends_it_and_after_the_post(self):
        real, seen = self.server._reservation, []

        def unknown(name, record):
            if name in ("SETTLE", "RELEASE"):
                seen.append((name, self.settled()))
            if name == "SETTLE":
                return {"error": "RESERVATION_UNKNOWN", "message": ""}
            return real(name, record)

        self.server._reservation = unknown
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            held.use(FEATURE, 3)
            held.draw()
            held.use(FEATURE, 2)
        self.assertEqual(seen, [("SETTLE", 0), ("SETTLE", 3), ("RELEASE", 5)])
        self.assertEqual((held.outcome.reason, self.held()), ("ALLOWED_POSTED", 0))

    def test_a_settle_of_nothing_that_finds_no_hold_lets_it_go_too(self):
        real = self.server._reservation
        self.server._reservation = lambda name, record: (
            {"error": "RESERVATION_UNKNOWN", "message": ""} if name == "SETTLE"
            else real(name, record))
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            held.use(FEATURE, 0)
        self.assertEqual((self.settled(), self.held(), held.ended), (0, 0, True))

    def test_what_a_failure_policy_let_through_is_posted(self):
        self.server._reserve = lambda record: self.server._answer("ALLOWED_FAIL_OPEN", record)
        with self.client().reservation("acme", {FEATURE: 10}) as held:
            self.assertFalse(held.holds)
            held.use(FEATURE, 3)
            held.draw()
            held.use(FEATURE, 1)
        self.assertEqual((held.outcome.reason, self.settled()), ("ALLOWED_POSTED", 4))

    def test_a_cancelled_reserve_holds_nothing(self):
        client, id = self.client(), t.new_id()
        client.cancel("acme", {FEATURE: 10}, id=id)
        with client.reservation("acme", {FEATURE: 10}, id=id) as held:
            self.assertEqual(held.decision.reason, "CANCELLED")
        held = client.reserve("acme", {FEATURE: 10})
        with self.assertRaises(t.Rejected) as caught:
            client.cancel("acme", {FEATURE: 10}, id=held.id)
        self.assertEqual(caught.exception.code, "IDEMPOTENCY_MISMATCH")
        self.assertEqual(self.held(), 10)

    def test_no_thread_outlives_its_block(self):
        before = threading.active_count()
        client = self.client()
        for _ in range(5):
            with client.reservation("acme", {FEATURE: 1}, ttl=0.1) as held:
                held.use(FEATURE, 1)
            self.assertFalse(held.thread.is_alive())
        client.close()
        self.until(lambda: threading.active_count() <= before, "all threads end")


if __name__ == "__main__":
    unittest.main()
