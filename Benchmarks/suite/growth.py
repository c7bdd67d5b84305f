"""Growth: what a consume costs as one thing grows and all else stays. Each point is the median of
the rounds; cost stays flat, or the note says why it does not."""
import statistics

from . import catalog, drive, stack


# Accounts that a sidecar has never seen are loaded at some thousands a second, and leased when they
# were asked for three times: what is measured is what comes after.
LOADED_PER_SECOND = 2_000


class Table:
    def __init__(self, name, axis, points):
        self.name, self.axis, self.points = name, axis, points


def point(rig, size, runs, redis_pid):
    """Medians over the rounds of one size."""
    return {
        "size": size,
        "throughput": statistics.median(r["throughput"] for r in runs),
        "p50": statistics.median(drive.latency(r, "p50") for r in runs),
        "p99": statistics.median(drive.latency(r, "p99") for r in runs),
        "cpu": statistics.median(drive.server_cpu(r) for r in runs),
        "redisCPU": statistics.median(drive.server_cpu(r, redis_pid) for r in runs),
    }


def sweep(rig, name, axis, sizes, run, say):
    """Rounds outside, sizes inside, turned round every second time, as the rows do."""
    runs = {size: [] for size in sizes}
    for number in range(rig.options.rounds):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            result = run(size)
            runs[size].append(result)
            say(f"round {number + 1}  {name:28} {size:>9,}  {result['throughput']:10.0f}/s")
    points = [point(rig, size, runs[size], rig.ours_redis.pid) for size in sizes]
    for p in points:
        say(f"{name:28} {p['size']:>9,}  {p['throughput']:10.0f}/s  p50 {p['p50']:7.0f}  p99 "
            f"{p['p99']:7.0f} µs  CPU {p['cpu']:6.2f} µs, of Redis {p['redisCPU']:6.2f}")
    return Table(name, axis, points)


def limits(rig, say):
    most = len(catalog.PERIODS)
    return sweep(
        rig, "limits per check", "limits", [1, most] if rig.options.quick else range(1, most + 1),
        lambda n: rig.ours(rig.shape(50, 16, feature=f"bench.limits{n}"), f"{n} limits"), say)


def subjects(rig, say):
    sizes = [1, 100] if rig.options.quick else [10 ** n for n in range(7)]
    sizes = [n for n in sizes if n <= rig.options.most]

    def run(n):
        rig.ours_redis.forget(outbox=False)
        return rig.ours(rig.shape(50, 16, feature="bench.limits1", subjects=n,
                                  warmup=max(0.5, n / LOADED_PER_SECOND),
                                  extra=("--prefix", f"many{n}-", "--drain", "300")),
                        f"{n} subjects")
    return sweep(rig, "subjects", "subjects", sizes, run, say)


def connections(rig, say):
    sizes = [1, 100] if rig.options.quick else [1, 10, 100, 1000, 10_000]
    return sweep(rig, "connections", "connections", sizes,
                 lambda n: rig.ours(rig.shape(n, 1, feature="bench.limits1"),
                                    f"{n} connections"), say)


def sidecars(rig, say):
    sizes = [1, 2] if rig.options.quick else [1, 2, 4, 8, 16]
    more = [rig.sidecar]
    try:
        while len(more) < sizes[-1]:
            # All alike, and like the first.
            more.append(rig.servers.sidecar("ours", f"unix:{rig.ours_redis.path}",
                                            rig.ledger_path, number=20 + len(more),
                                            extra=stack.ROOM))
        return sweep(
            rig, "sidecars on one Redis", "sidecars", sizes,
            lambda n: rig.ours(
                rig.shape(48, 16, feature="bench.limits1",
                          warmup=max(0.5, n * drive.ACCOUNTS / LOADED_PER_SECOND)),
                f"{n} sidecars", sidecars=more[:n]), say)
    finally:
        for sidecar in more[1:]:
            rig.servers.stop(sidecar.process)


# Subjects last: an audit looks at every account that there is.
TABLES = {"limits": limits, "connections": connections, "sidecars": sidecars,
          "subjects": subjects}
