"""The rows that compare: what is run (cases), and which figures are held against each other (rows).

A case is run once in each round; the next round runs them in the opposite order, so that a slow
minute of the machine hits both sides, and neither is always the one that comes first."""
from dataclasses import dataclass, field

from . import drive


@dataclass(frozen=True)
class Case:
    """One run: who is asked, by which transport, in which shape, for what."""
    who: str  # ours, incr, ping, decide, echo
    transport: str = "unix"
    connections: int = 50
    depth: int = 1
    records: int = 1
    feature: str = "bench.limits1"
    subjects: int = drive.ACCOUNTS
    extra: tuple = ()

    @property
    def label(self):
        per = f" {self.records} a frame" if self.records > 1 else ""
        what = f" {self.feature}" if self.who == "ours" else ""
        return f"{self.who} {self.transport} {self.connections}x{self.depth}{per}{what}"

    def run(self, rig):
        shape = rig.shape(self.connections, self.depth, self.records, self.feature,
                          subjects=self.subjects, extra=self.extra)
        if self.who == "ours":
            rig.ours_redis.forget(outbox=False)
            return rig.ours(shape, self.label, self.transport)
        if self.who == "echo":
            return rig.echoed(shape, self.label, self.transport)
        if self.who == "decide":
            rig.peer_redis.forget(outbox=True)
        return rig.resp(self.who, shape, self.label, self.transport)


@dataclass(frozen=True)
class Row:
    """`ours` against `peer` in one figure. The bar is on the ratio ours / peer."""
    letter: str
    name: str
    ours: Case
    peer: Case
    figure: str  # throughput, p50, p99, cpu
    bar: float | None = None
    # A p99, or a bar at 1.0: met where the bar lies within the spread of the rounds.
    within_spread: bool = field(default=False)

    @property
    def more_is_better(self):
        return self.figure == "throughput"


FIGURES = {
    "throughput": (lambda r: r["throughput"], "/s"),
    "p50": (lambda r: drive.latency(r, "p50"), "µs"),
    "p99": (lambda r: drive.latency(r, "p99"), "µs"),
    "cpu": (drive.server_cpu, "µs CPU"),
}


def three(letter, name, ours, peer):
    return [Row(letter, f"{name}: throughput", ours, peer, "throughput", 1.0, True),
            Row(letter, f"{name}: p99", ours, peer, "p99", 1.0, True),
            Row(letter, f"{name}: server CPU", ours, peer, "cpu", 1.0, True)]


def atomic(connections, depth):
    ours = Case("ours", "unix", connections, depth, feature="bench.units")
    peer = Case("decide", "unix", connections, depth, feature="bench.units")
    name = f"atomic consume, unix {connections}x{depth}"
    deep, alone = depth == 16, connections == 1
    return [
        Row("h", f"{name}: throughput", ours, peer, "throughput", 1.0 if deep else None, True),
        Row("h", f"{name}: p50", ours, peer, "p50", 2.5 if alone else None),
        Row("h", f"{name}: p99", ours, peer, "p99"),
        Row("h", f"{name}: server CPU", ours, peer, "cpu"),
    ]


def table():
    a, b = Case("ours"), Case("ours", "tcp")
    c = Case("ours", depth=16)
    d = Case("ours", records=16)
    f = Case("ours", connections=1)
    run = {"depth": 16, "subjects": 250, "extra": ("--members", "4", "--suffix", "/run")}
    levels1 = Case("ours", feature="bench.levels1", **run)
    levels3 = Case("ours", feature="bench.levels3", **run)
    incr16 = Case("incr", depth=16)
    return [
        *three("a", "leased consume, unix 50x1, vs INCR", a, Case("incr")),
        *three("b", "leased consume, TCP 50x1, vs INCR", b, Case("incr", "tcp")),
        Row("c", "leased consume, unix 50x16, vs INCR: throughput", c, incr16, "throughput", 1.0,
            True),
        Row("c", "leased consume, unix 50x16, vs INCR: server CPU", c, incr16, "cpu"),
        Row("d", "16 consumes a frame, unix 50x1, vs INCR x16: throughput", d, incr16,
            "throughput", 2.0),
        Row("e", "leased consume, unix 50x1, vs bare echo: throughput", a, Case("echo"),
            "throughput", 0.75),
        Row("e", "leased consume, unix 50x16, vs bare echo: throughput", c,
            Case("echo", depth=16), "throughput", 0.4),
        Row("f", "leased consume, unix 1x1, vs PING: p50", f, Case("ping", connections=1), "p50",
            1.0, True),
        Row("g", "three levels vs one, leased, unix 50x16: throughput", levels3, levels1,
            "throughput", 0.7),
        *atomic(50, 16), *atomic(50, 1), *atomic(1, 1),
    ]


def cases(rows):
    """Each once, peers beside what they are held against."""
    seen = []
    for row in rows:
        for case in (row.ours, row.peer):
            if case not in seen:
                seen.append(case)
    return seen


def measure(rig, rows, say):
    results = {}
    for number in range(rig.options.rounds):
        order = cases(rows)
        for case in order if number % 2 == 0 else reversed(order):
            result = case.run(rig)
            results.setdefault(case, []).append(result)
            say(f"round {number + 1}  {case.label:42} {result['throughput']:10.0f}/s  p50 "
                f"{drive.latency(result, 'p50'):7.0f}  p99 {drive.latency(result, 'p99'):7.0f} µs"
                f"  server {drive.server_cpu(result):6.2f}  generator "
                f"{result['generatorMicrosecondsPerAnswer']:5.2f} µs CPU")
    return results
