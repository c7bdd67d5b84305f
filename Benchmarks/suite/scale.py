#!/usr/bin/env python3
"""What a fleet would ask of Redis and of the ledger: Benchmarks/SCALE.md has its output.

A simulation in virtual time of what one sidecar does for one subject (asked three times in a row
with pauses of a second at most, or twice once it is known: leased; idle for a second: given back;
forgotten after a minute; settled at the pace of LeasePace.swift, which lets nothing wait for longer
than half a second where so little is hot at each and no call waits in Redis), for subjects drawn
from a Zipf distribution, summed up over the fleet. Redis and ledger are the constants below,
measured on one small machine or estimated, as each says. It knows nothing of limits that are nearly
used up: there every request is one atomic call.

    Benchmarks/suite/scale.py [--seed N]
"""
import argparse
import math
import random

# Microseconds of Redis, and where they come from.
ATOMIC = 35          # measured: decide, 3 limits and a delta, alone (ScriptsSpeedTests)
ACCOUNT = 11         # measured: an account of an exchange, with its delta (the same tests)
CALL = 30            # estimated: an exchange itself: fence, memory of calls, parsing
SHIP = 6             # estimated: an entry of the outbox read, acknowledged and trimmed
COMMAND = 10         # measured: a small command by itself, as an idle sidecar sends them
BUCKETS = 16
IDLE_COMMANDS = 29   # measured: a second and sidecar that neither is asked nor ships, of 16 buckets
# Microseconds of the reference ledger's CPU for one delta: measured of 100,000 subjects in turn, whose
# books no cache holds (15 where they are hot, under row h).
LEDGER = 55
# The lease engine's (LeaseConfiguration, LeasePace, LeaseKeeper).
DEMAND, TIMES, IDLE, EVICT = 1.0, 3, 1.0, 60.0
TICK, SETTLE, COVER, LEAST = 0.01, 0.5, 2.0, 16
PACE, PER_CALL, BATCH = 500, 3, 64


def pair(rate, early, rng, arrivals):
    """One subject at one sidecar: requests, atomic ones, exchanges of its account, deltas, and the
    seconds it held a lease, over so many arrivals; and how long that took."""
    now = last = -math.inf
    known = leased = False
    row = 0
    dirty = None
    atomic = exchanges = deltas = 0
    held = 0.0
    start = None
    for _ in range(arrivals):
        now = (now if start is not None else 0.0) + rng.expovariate(rate)
        if start is None:
            start = now
        gap = now - last
        if dirty is not None and now >= dirty:
            exchanges, deltas, dirty = exchanges + 1, deltas + 1, None
        if leased and gap > IDLE:
            exchanges, leased = exchanges + 1, False
            held += IDLE
        if known and gap > EVICT:
            known = False
        row = row + 1 if gap <= DEMAND else 1
        if leased:
            held += gap
            if dirty is None:
                dirty = now + (TICK if rng.random() < early else SETTLE)
        else:
            atomic += 1
            if row >= (2 if known else TIMES):
                known = leased = True
                exchanges += 1
        last = now
    return arrivals, atomic, exchanges, deltas, held, now - start


def fleet(subjects, sidecars, per_second, spread, rng):
    """Sums a second over the fleet, of Zipf-distributed subjects each served by `spread` sidecars."""
    steps, exponent = 160, 1.05
    edges = sorted({round(subjects ** (i / steps)) for i in range(steps + 1)})
    strata = [(a, b) for a, b in zip(edges, edges[1:])]
    weight = [sum(((a + (b - a) * (q + .5) / 8) ** -exponent) for q in range(8)) / 8 * (b - a)
              for a, b in strata]
    total = sum(weight)
    early = 1.0
    for _ in range(6):  # how much is settled early depends on how much there is to settle
        sums = dict.fromkeys(("requests", "atomic", "exchanges", "deltas", "leases", "held"), 0.0)
        for (a, b), share in zip(strata, weight):
            count = (b - a) * spread
            rate = per_second * share / total / count
            asked, atomic, exchanges, deltas, held, took = pair(
                rate, early, rng, 400 if rate > 0.02 else 60)
            scale = count * rate / asked
            sums["requests"] += asked * scale
            sums["atomic"] += atomic * scale
            sums["exchanges"] += exchanges * scale
            sums["deltas"] += deltas * scale
            leases = min(1.0, held / max(took, 1e-9)) * count
            sums["leases"] += leases
            sums["held"] += leases * max(LEAST, COVER * rate)
        # What becomes due while something waits goes out with it, of the same bucket; a call counts
        # as three accounts of the pace.
        wait = early * TICK + (1 - early) * SETTLE
        calls = sums["exchanges"] / max(
            1.0, min(BATCH, sums["exchanges"] / sidecars * wait / BUCKETS))
        early = min(1.0, PACE * sidecars / max(1.0, sums["exchanges"] + PER_CALL * calls))
    deltas = sums["atomic"] + sums["deltas"]
    background = sidecars * IDLE_COMMANDS
    cores = (sums["atomic"] * ATOMIC + sums["exchanges"] * ACCOUNT + calls * CALL + deltas * SHIP
             + background * COMMAND) / 1e6
    return {**sums, "all deltas": deltas, "background": background, "cores": cores,
            "ledger": deltas * LEDGER / 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    rng = random.Random(parser.parse_args().seed)
    subjects, sidecars = 10_000_000, 10_000
    print("| requests/s | sidecars a subject | from leases | atomic/s | exchanges/s | deltas/s "
          "| leases at once | units held | Redis, cores | of it polling | ledger, cores |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for per_second in (500_000, 5_000_000):
        for spread in (1, 3, 100):
            sums = fleet(subjects, sidecars, per_second, spread, rng)
            leased = 1 - sums["atomic"] / sums["requests"]
            polling = sums["background"] * COMMAND / 1e6
            print(f"| {per_second:,} | {spread} | {leased:.0%} | {sums['atomic']:,.0f} "
                  f"| {sums['exchanges']:,.0f} | {sums['all deltas']:,.0f} "
                  f"| {sums['leases']:,.0f} | {sums['held']:,.0f} | {sums['cores']:.1f} "
                  f"| {polling:.1f} | {sums['ledger']:.1f} |")


if __name__ == "__main__":
    main()
