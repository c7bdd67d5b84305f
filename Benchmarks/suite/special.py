"""The rows that are no comparison of two runs: commands, memory, start, a small pod, a distant
Redis, the Python client. Each gives dictionaries as the report holds them."""
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time

from . import catalog, drive, process, stack


# Row k: of so many of the subjects a lease has to be held, for its memory to be that of live ones.
LIVE = 0.85


def entry(letter, name, ours, bar=None, peer=None, met=None, **more):
    """A figure of ours, held against a bar of its own (`less is better`) or only printed."""
    ratio = None if not peer else round(ours / peer, 3)
    if met is None and bar is not None:
        met = (ratio if ratio is not None else ours) <= bar
    return {"row": letter, "name": name, "ours": round(ours, 4),
            "peer": None if peer is None else round(peer, 4), "ratio": ratio, "bar": bar,
            "met": met, **more}


def commands(rig):
    """i: Redis commands per leased consume, at the full speed of row c over 1,000 subjects.

    Sampled while the load runs, well inside its measured time, so that neither its beginning nor
    its audit is counted: commands a second, by consumes a second."""
    total, calls, ages = [], [], []
    seconds = max(2.0, rig.options.seconds)
    for _ in range(rig.options.rounds):
        rig.ours_redis.forget(outbox=False)
        samples, waiting, ending = [], [], threading.Event()

        def sample():
            while not ending.wait(0.1):
                # Each asking costs two commands itself.
                own = 2 * len(samples)
                everything, scripts = rig.ours_redis.commands()
                samples.append((time.monotonic(), everything - own, scripts))
                waiting.append(rig.sidecar.metric("tollgate_lease_unsettled_operations"))

        thread = threading.Thread(target=sample)
        begun = time.monotonic()
        thread.start()
        try:
            result = rig.ours(rig.shape(50, 16, feature="bench.limits1", seconds=seconds), "row i")
        finally:
            ending.set()
            thread.join()
        inside = [s for s in samples if 1.0 < s[0] - begun < seconds]
        if len(inside) < 2:
            raise stack.BenchError("row i: Redis did not answer while the load ran")
        consumed = (inside[-1][0] - inside[0][0]) * result["throughput"]
        total.append((inside[-1][1] - inside[0][1]) / max(1, consumed))
        calls.append((inside[-1][2] - inside[0][2]) / max(1, consumed))
        # What waits, by what comes: how long one waits (Little).
        loaded = [count for count in waiting if count]
        ages.append(statistics.fmean(loaded or [0]) / result["throughput"] * 1000)
    return [entry("i", "Redis commands per leased consume, those inside scripts too",
                  statistics.median(total), 0.01),
            entry("i", "script calls per leased consume", statistics.median(calls)),
            entry("i", "how long a consume waits for its settling, ms", statistics.median(ages))]


def journalled(rig):
    """c, with a journal: what it costs, against the same without."""
    path = rig.servers.file("journal")
    sidecar = rig.servers.sidecar("ours", f"unix:{rig.ours_redis.path}", rig.ledger_path, number=5,
                                  extra=stack.ROOM + f"journal: {path}\n")
    with_it, without = [], []
    try:
        for number in range(rig.options.rounds):
            sides = [(without, None), (with_it, [sidecar])]
            for figures, sidecars in sides if number % 2 == 0 else reversed(sides):
                rig.ours_redis.forget(outbox=False)
                result = rig.ours(rig.shape(50, 16, feature="bench.limits1"), "row c, journal",
                                  sidecars=sidecars)
                figures.append(result["throughput"])
    finally:
        rig.servers.stop(sidecar.process)
    ratios = [a / max(b, 1e-9) for a, b in zip(with_it, without)]
    return [entry("c", "leased consume, unix 50x16, with a journal, vs without: /s",
                  statistics.median(with_it), peer=statistics.median(without),
                  ratioLow=round(min(ratios), 3), ratioHigh=round(max(ratios), 3))]


def memory(rig):
    """k: resident memory of a sidecar of its own: idle, then with live subjects, each of which was
    asked for often enough to be leased."""
    steps = [1000, 10_000] if rig.options.quick else [100_000, 1_000_000]
    steps = [count for count in steps if count <= rig.options.most]
    bars = {100_000: 120, 1_000_000: 800}
    sidecar = rig.servers.sidecar("ours", f"unix:{rig.ours_redis.path}", rig.ledger_path, number=8)
    rows = []
    try:
        time.sleep(1 if rig.options.quick else 3)
        rows.append(entry("k", "resident memory idle, MB", process.resident(sidecar.pid), 40))
        for count in steps:
            rig.ours(["--connections", "16", "--in-flight", "16", "--subjects", str(count),
                      "--distribution", "each", "--times", "4", "--requests", str(4 * count),
                      "--prefix", "live-",
                      "--feature", "bench.limits1=1", "--drain", "300"],
                     f"{count} live subjects", sidecars=[sidecar])
            resident, leased = process.resident(sidecar.pid), sidecar.metric("tollgate_lease_shapes")
            # Where too few of them are leased, little memory shows nothing.
            bar = bars.get(count)
            rows.append(entry("k", f"resident memory with {count:,} live subjects, MB", resident,
                              bar, met=bar and resident <= bar and leased >= LIVE * count))
            rows.append(entry("k", f"of {count:,} subjects leased at that moment", leased))
            rows.append(entry("k", f"the most while {count:,} subjects were asked for, MB",
                              process.resident(sidecar.pid, peak=True)))
    finally:
        rig.servers.stop(sidecar.process)
    return rows


def allocations(rig):
    """j: by valgrind, which counts; the gates that CI holds."""
    del rig
    rows = []
    for name, each, what in [("lease.spend", 1, "leased consume"),
                             ("lease.frame", 16, "leased consume of a frame of 16")]:
        gate = subprocess.run([os.path.join(stack.ROOT, ".ci/gates"), name],
                              capture_output=True, text=True)
        found = re.search(r"([\d.]+) instructions .*, +([\d.]+) allocations", gate.stdout)
        if not found:
            raise stack.BenchError(f"row j: {gate.stderr[-500:]}")
        rows += [entry("j", f"heap allocations per {what}", float(found[2]) / each, 0),
                 entry("j", f"instructions per {what}", float(found[1]) / each)]
    return rows


def start(rig):
    """l: from the start of the process until it says that it is ready."""
    times = []
    for number in range(rig.options.rounds):
        begun = time.monotonic()
        sidecar = rig.servers.sidecar(
            "ours", f"unix:{rig.ours_redis.path}", rig.ledger_path, number=9, until="started")
        try:
            rig.servers.wait("ours-s9", sidecar.process, lambda: stack.ready(sidecar.http),
                             pause=0.001)
            times.append((time.monotonic() - begun) * 1000)
        finally:
            rig.servers.stop(sidecar.process)
    return [entry("l", "start to ready, ms", statistics.median(times), 300,
                  low=round(min(times), 1), high=round(max(times), 1))]


def pod(rig):
    """m: a quarter of a core, 64 MB; open loop; then idle."""
    rows = []
    sidecar = rig.servers.sidecar("ours", f"unix:{rig.ours_redis.path}", rig.ledger_path, number=7)
    box = process.Pod(sidecar.pid)
    try:
        seconds = rig.options.seconds
        for rate in (500, 2000):
            shape = rig.shape(20, 8, feature="bench.limits1", extra=("--rate", str(rate)),
                              seconds=seconds)
            result = rig.ours(shape, f"small pod at {rate}/s", sidecars=[sidecar])
            for figure in ("p50", "p99", "p999"):
                rows.append(entry(
                    "m", f"small pod, {rate}/s: {figure} µs", drive.latency(result, figure),
                    by=box.kind))
        # Falling quiet costs some ten milliseconds, once: memory and text are given back.
        time.sleep(0.5 if rig.options.quick else 5)
        used, wakes = process.idle(sidecar.pid, 1 if rig.options.quick else 10)
        rows.append(entry("m", "small pod idle: % of a core", used * 100, 0.2, by=box.kind))
        rows.append(entry("m", "small pod idle: switches a second", wakes, by=box.kind))
    finally:
        rig.servers.stop(sidecar.process)
        box.leave()
    return rows


def distant(rig):
    """n: 150 ms (a round trip) between sidecar and Redis."""
    proxy, address = rig.servers.delay(rig.ours_redis, 150)
    sidecar = rig.servers.sidecar("ours", address, rig.ledger_path, number=6)
    near, far, rows = [], [], []
    try:
        # Of subjects that are asked for often enough to be leased at this distance, once they are:
        # 50 callers who wait 150 ms for each answer ask for each of 1,000 every three seconds.
        shape = rig.shape(50, 1, feature="bench.limits1", subjects=20, extra=("--warmup", "3"))
        rig.ours(shape, "distant Redis, to begin", sidecars=[sidecar], audit_at=rig.sidecar)
        for number in range(rig.options.rounds):
            sides = [(near, None), (far, [sidecar])]
            for results, sidecars in sides if number % 2 == 0 else reversed(sides):
                result = rig.ours(shape, "distant Redis", sidecars=sidecars, audit_at=rig.sidecar)
                results.append(drive.latency(result, "p99"))
        ratios = [a / max(b, 1e-9) for a, b in zip(far, near)]
        row = entry("n", "leased p99 with 150 ms to Redis, µs", statistics.median(far), 1.1,
                    peer=statistics.median(near))
        row.update(ratioLow=round(min(ratios), 3), ratioHigh=round(max(ratios), 3),
                   withinSpread=not row["met"] and min(ratios) <= 1.1,
                   met=row["met"] or min(ratios) <= 1.1)
        rows.append(row)
        admitted, each = [], 10
        for number in range(1 if rig.options.quick else 3):
            asked = catalog.EDGE // each * 3 // 2
            result = rig.ours(
                ["--connections", "64", "--in-flight", "16", "--requests", str(asked),
                 "--subjects", "1", "--prefix", f"edge{os.getpid()}x{number}-", "--feature",
                 f"bench.edge={each}"], "the edge, 150 ms away", sidecars=[sidecar], may_deny=True,
                audit_at=rig.sidecar)
            admitted.append(result["allowed"] * each)
        # One at a time, on what is left of another limit: what a check costs at the edge.
        close = rig.ours(
            ["--connections", "1", "--requests", "12", "--subjects", "1", "--prefix",
             f"near{os.getpid()}-", "--feature", f"bench.edge={catalog.EDGE // 10}"],
            "close to the edge", sidecars=[sidecar], may_deny=True, audit_at=rig.sidecar)
        rows.append(entry("n", f"admitted of a limit of {catalog.EDGE}, 150 ms away",
                          statistics.median(admitted), catalog.EDGE,
                          met=all(n == catalog.EDGE for n in admitted), all=admitted))
        rows.append(entry("n", "close to the edge: p50 ms", drive.latency(close, "p50") / 1000,
                          170, slowest=drive.latency(close, "max") / 1000))
    finally:
        rig.servers.stop(sidecar.process)
        rig.servers.stop(proxy)
    return rows


def settled(rig, account, wanted):
    """What Redis and ledger have of an account's bill, once it is so much or ten seconds later."""
    end = time.monotonic() + 10
    while True:
        done = subprocess.run(
            [rig.servers.binary, "reconcile", "--account", account, "--verbose", "--json", "--unix",
             rig.sidecar.path, "--token-file", rig.servers.tokens["admin"]],
            capture_output=True, text=True)
        rows = json.loads(done.stdout)["rows"] if done.returncode in (0, 1) else []
        bill = [row for row in rows if row.get("window") is None]
        found = tuple(sum(row[side] for row in bill) for side in ("redis", "ledger"))
        if found == (wanted, wanted) or time.monotonic() > end:
            return found
        time.sleep(0.2)


def python(rig):
    """o: the Python client, one connection, one request after another."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python_client.py")
    account = f"python{os.getpid()}"
    done = subprocess.run(
        [sys.executable, program, rig.sidecar.path, rig.servers.tokens["check"],
         "bench.limits1", str(rig.options.seconds), account], capture_output=True, text=True)
    if done.returncode:
        raise stack.BenchError(f"the Python client failed: {done.stderr[-2000:]}")
    result = json.loads(done.stdout)
    billed = settled(rig, account, result["units"])
    rig.audits += 1
    if billed != (result["units"], result["units"]):
        rig.failed.append(f"audit of row o: the client was allowed {result['units']} units, Redis "
                          f"and ledger have {billed}")
    return [entry("o", f"Python client: {name}", result[key])
            for name, key in (("consumes a second", "throughput"), ("p50 µs", "p50"),
                              ("p99 µs", "p99"))]


# Memory last: an audit looks at every account that there is.
ROWS = {"c": journalled, "i": commands, "j": allocations, "l": start, "m": pod, "n": distant,
        "o": python, "k": memory}
