"""What is asked for. Limits are never reached, but the one of `bench.edge`, which is there to be.

`bench.units` is money: exact, always one atomic script call. The others are `volume` with
`idempotency: sidecar`: what a sidecar may answer from its leases."""

FAR = 1_000_000_000_000
EDGE = 20_000
# In the order in which limits are added in the growth table; the month is also what is billed.
PERIODS = ["month", "day", "hour", "week", "year", "quarter", "lifetime", "minute"]
LEVELS = ["account", "member", "run"]


def features():
    names = [f"bench.limits{count}" for count in range(1, len(PERIODS) + 1)]
    return names + ["bench.levels1", "bench.levels3", "bench.edge"]


def quota(name, period, amount=FAR, level="account"):
    return (f"      - {{id: {name}.{level}.{period}, quota: {amount}, per: {period}, "
            f"level: {level}}}\n")


def text():
    out = f"levels: [{', '.join(LEVELS)}]\nunknown_account: {{plan: bench}}\nfeatures:\n"
    out += "  bench.units: {metered: true, importance: money, unit: unit}\n"
    for name in features():
        out += (f"  {name}: {{metered: true, importance: volume, unit: unit, "
                "idempotency: sidecar}\n")
    out += "plans:\n  bench:\n    bench.units:\n"
    out += f"      - {{id: bench.rate, rate: {FAR // 1000}, per: 1s, burst: {FAR // 1000}}}\n"
    out += quota("bench", "day") + quota("bench", "month")
    for count in range(1, len(PERIODS) + 1):
        name = f"bench.limits{count}"
        out += f"    {name}:\n" + "".join(quota(name, period) for period in PERIODS[:count])
    out += "    bench.levels1:\n" + quota("bench.levels1", "month")
    out += "    bench.levels3:\n"
    out += "".join(quota("bench.levels3", "month", level=level) for level in LEVELS)
    out += "    bench.edge:\n" + quota("bench.edge", "month", EDGE)
    return out
