"""A month of one customer, for real, against two running sidecars: Pro with $20 included, three
models, a promotion that expires midway, on-demand spend under a cap, 200 agent runs at once that
settle as they stream, an upgrade while they run, a cancelled stream, a late settle, a refund.

Everything that was answered is written down; `auditor.py` then says from that alone, and from the
price list, what the bill must be, and compares it with the ledger's statement.

    python3 month.py --sidecar PATH --sidecar PATH --check-token FILE --admin-token FILE
        --tollgate BINARY --log FILE
"""
import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "proto", "clients", "python"))
import tollgate  # noqa: E402

ACCOUNT = "studio"
MODELS = ["small", "large", "max"]


class Story:
    """What was asked and answered, and the connections it was asked over."""

    def __init__(self, options):
        self.options = options
        token = open(options.check_token).read().strip()
        self.clients = [
            tollgate.Client.unix(path, token) for path in options.sidecar for _ in range(4)]
        self.log, self.lock = [], threading.Lock()

    def client(self, number):
        return self.clients[number % len(self.clients)]

    def note(self, kind, model, used, decision, **more):
        """`used`: what the caller knows it used, by feature."""
        with self.lock:
            self.log.append(dict(
                kind=kind, model=model, used=used, reason=decision.reason, id=decision.id,
                settlements=decision.settlements, burns=decision.burns,
                features=more.pop("features", list(used)) + decision.derived,
                replayed=decision.replayed, time=decision.time, **more))
        return decision

    def command(self, *words, check=True):
        environment = dict(
            os.environ, TOLLGATE_UNIX=self.options.sidecar[0],
            TOLLGATE_TOKEN=open(self.options.admin_token).read().strip())
        done = subprocess.run(
            [self.options.tollgate, *words], env=environment, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise SystemExit(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def consume(self, number, model, items):
        subject = f"{ACCOUNT}/m{number % 5}"
        decision = self.client(number).consume(
            subject, items, attributes={"model": model}, deadline=5)
        return self.note("consume", model, items, decision, subject=subject)


def say(text):
    print(f"  {text}", flush=True)


def instant(seconds):
    """So many seconds from now, as the command line wants it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def expect(condition, text):
    if not condition:
        raise SystemExit(f"scenario: {text}")


def together(count, body):
    """Runs body(number) for each number at once; the first failure is the scenario's."""
    failures = []

    def one(number):
        try:
            body(number)
        except BaseException as error:  # noqa: B902: whatever it is, it is the scenario's failure
            failures.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Run:
    """One agent run: an estimate is held, what it streams is settled bit by bit."""

    def __init__(self, story, number, model, estimate, used):
        self.story, self.number, self.model = story, number, model
        self.subject = f"{ACCOUNT}/m{number % 5}/run{number}"
        self.estimate, self.left = estimate, used
        self.id = None

    def begin(self, ttl=60):
        items = dict(runs=1, **self.estimate)
        decision = self.story.client(self.number).reserve(
            self.subject, items, ttl=ttl, attributes={"model": self.model}, deadline=5)
        self.story.note(
            "reserve", self.model, {}, decision, features=list(items), subject=self.subject)
        self.id = decision.id if decision.allowed else None
        return decision

    def settle(self, share, final=False, floor=False):
        used = {feature: int(amount * share) for feature, amount in self.left.items()}
        self.left = {feature: self.left[feature] - used[feature] for feature in used}
        decision = self.story.client(self.number + 1).settle(
            self.subject, self.id, used, final=final, floor=floor,
            attributes={"model": self.model}, deadline=5)
        # Items of the reservation stand in the order of the reserve.
        return self.story.note(
            "settle", self.model, used, decision, features=["runs", *self.estimate],
            subject=self.subject, reservation=self.id)


def play(story, dice):
    say("Pro: $20 included, then on demand up to $50; a promotion of $5 for 20 seconds")
    story.command(
        "account", "set", ACCOUNT, "--plan", "pro", "--anchor", instant(0), "--reason", "signs up")
    story.command(
        "grant", "add", ACCOUNT, "spend", "5000000", "--grant", "launch", "--kind", "promotional",
        "--priority", "50", "--expires", instant(20), "--reason", "launch week")
    begun = time.time()
    for number in range(60):
        story.consume(number, MODELS[number % 2], {
            "tokens.input": dice.randrange(1, 4000), "tokens.output": dice.randrange(1, 5000)})
    burnt = {burn["grant"] for entry in story.log for burn in entry["burns"]}
    expect(burnt == {"launch"}, f"the promotion burns first, not {burnt}")
    refused = story.consume(0, "brand-new", {"tokens.input": 10})
    expect(refused.reason == "PRICE_UNKNOWN", f"a model without a price: {refused.reason}")

    time.sleep(max(0, 21 - (time.time() - begun)))
    say("the promotion is over; chats burn what is included")
    first = story.consume(1, "large", {"tokens.input": 3, "tokens.output": 7})
    expect([b["grant"] for b in first.burns] == ["spend.included"], f"burnt {first.burns}")
    together(20, lambda n: [
        story.consume(n, "large", {"tokens.input": 1000 + n, "tokens.output": 9000 + n})
        for _ in range(5)])
    given_back = next(e for e in reversed(story.log) if e["kind"] == "consume" and e["reason"] == "ALLOWED")

    say("200 agents at once, through both sidecars; the 201st has to wait")
    runs = []
    for number in range(200):
        model = "small" if number < 120 else "large" if number < 180 else "max"
        used = {"tokens.input": dice.randrange(1, 20000), "tokens.output": dice.randrange(1, 20000)}
        if number >= 190:
            used["tokens.output"] = 150000 + number
        runs.append(Run(
            story, number, model, {"tokens.input": 20000, "tokens.output": 20000}, used))
    together(200, lambda n: runs[n].begin())
    expect(all(run.id for run in runs), "all 200 runs are let in")
    extra = Run(story, 200, "small", {"tokens.input": 10, "tokens.output": 10}, {})
    expect(extra.begin().reason == "CONCURRENCY_EXCEEDED", "the 201st run is denied")

    together(200, lambda n: runs[n].settle(0.5))
    ending, open_runs = runs[:60] + runs[190:], runs[60:190]
    together(len(ending), lambda n: ending[n].settle(1, final=True))
    clamped = [e for e in story.log if e["reason"] == "SETTLED_CLAMPED"]
    expect(clamped, "runs far beyond their estimate meet the cap")
    say(f"{len(clamped)} settles met the cap: charged up to it, the rest is absorbed")

    say(f"upgrade to Ultra with {len(open_runs)} runs open; each ends as what it is")
    story.command("account", "plan", ACCOUNT, "ultra", "--at", "now", "--reason", "needs more")
    cancelled, open_runs = open_runs[0], open_runs[1:]
    together(len(open_runs), lambda n: open_runs[n].settle(1, final=True))
    cut = cancelled.settle(0.3, final=True, floor=True)
    expect(cut.reason == "SETTLED", f"the cancelled stream: {cut.reason}")
    say("one stream was cancelled: what is known of it is settled as floor")

    late = Run(
        story, 300, "large", {"tokens.input": 5000, "tokens.output": 5000},
        {"tokens.input": 4321, "tokens.output": 1234})
    expect(late.begin(ttl=1).allowed, "a short reservation")
    time.sleep(9)
    answer = late.settle(1, final=True)
    expect(answer.reason == "SETTLED_LATE", f"settled after its expiry: {answer.reason}")
    say("one reservation expired first and was settled late: charged once, without a hold")

    decision = story.client(0).refund(
        given_back["subject"], given_back["id"], {}, reason="a bad answer", deadline=10)
    # All of it: the answer names every feature itself.
    story.note(
        "refund", given_back["model"], {}, decision, features=[], refunds=given_back["id"])
    expect(decision.reason == "REFUNDED", f"the refund: {decision.reason}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", action="append", required=True)
    for name in ["check-token", "admin-token", "tollgate", "log"]:
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    story = Story(options)
    play(story, random.Random(options.seed))
    with open(options.log, "w") as file:
        json.dump(story.log, file)
    say(f"{len(story.log)} answers written down")


if __name__ == "__main__":
    main()
