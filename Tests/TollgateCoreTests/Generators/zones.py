#!/usr/bin/env python3
"""Writes Data/zones.txt: periods in zones, computed by zoneinfo and dateutil, the independent
oracle for AccountCalendar. The compiled zone files it used are written along, so that the table
does not depend on the zone files of the machine that runs the test.

    python3 Generators/zones.py > Data/zones.txt       (in this folder; needs python3-dateutil)

Lines:  zone NAME BASE64
        case WINDOW INSTANT START END RULE [RULE …]    RULE = ZONE,ANCHOR,SINCE,RESTARTS
Instants are milliseconds since 1970; ANCHOR is - for a calendar-aligned window, SINCE - for the first.
"""
import base64
import io
import random
import zoneinfo
from datetime import datetime, timedelta, timezone

from dateutil.relativedelta import relativedelta

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)

ZONES = """UTC Europe/Berlin Europe/London Europe/Lisbon Europe/Moscow Europe/Istanbul Europe/Dublin
America/New_York America/Los_Angeles America/St_Johns America/Sao_Paulo America/Santiago
America/Caracas America/Havana America/Asuncion America/Mexico_City America/Nuuk
Asia/Kathmandu Asia/Kolkata Asia/Tokyo Asia/Pyongyang Asia/Tehran Asia/Gaza Asia/Amman Asia/Almaty
Asia/Riyadh Asia/Yangon
Australia/Sydney Australia/Adelaide Australia/Lord_Howe Australia/Eucla
Pacific/Auckland Pacific/Chatham Pacific/Tongatapu Pacific/Apia Pacific/Kiritimati Pacific/Marquesas
Pacific/Norfolk Africa/Casablanca Africa/Cairo Africa/Monrovia Africa/Juba
Antarctica/Troll""".split()
WINDOWS = ["minute", "hour", "day", "week", "month", "quarter", "year", "1s", "5400s", "86400s"]
WEIGHTS = [1, 1, 8, 5, 12, 5, 5, 1, 1, 1]
STEP = {"month": 1, "quarter": 3, "year": 12}
LENGTH = {"minute": 60, "hour": 3600, "1s": 1, "5400s": 5400, "86400s": 86400}


def ms(moment):
    return (moment - EPOCH) // MS


def at(milliseconds):
    return EPOCH + milliseconds * MS


FILES = {}
ZONE = {}
for _name in ZONES:
    with open("/usr/share/zoneinfo/" + _name, "rb") as _file:
        FILES[_name] = _file.read()
    ZONE[_name] = zoneinfo.ZoneInfo.from_file(io.BytesIO(FILES[_name]), key=_name)


def to_instant(local, zone):
    """First instant at which the clock shows `local` or later. fold=0 is the first occurrence; a
    time that does not exist comes back changed, and then the jump is searched for by halving."""
    guess = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if guess.astimezone(zone).replace(tzinfo=None) == local:
        return guess
    low, high = guess - timedelta(hours=30), guess + timedelta(hours=30)
    while high - low > MS:
        middle = low + (high - low) // 2
        middle -= timedelta(microseconds=middle.microsecond % 1000)
        if middle.astimezone(zone).replace(tzinfo=None) >= local:
            high = middle
        else:
            low = middle
    return high


class Layout:
    def __init__(self, window, zone, anchor):
        self.window = window
        self.zone = ZONE[zone]
        self.key = (window, zone if window not in LENGTH else "", anchor)
        if anchor is None:
            self.local = datetime(1969, 12, 29) if window == "week" else datetime(1970, 1, 1)
            self.anchor = EPOCH
        else:
            self.anchor = at(anchor)
            self.local = self.anchor.astimezone(self.zone).replace(tzinfo=None)

    def boundary(self, n):
        if self.window in LENGTH:
            return self.anchor + n * timedelta(seconds=LENGTH[self.window])
        if self.window in STEP:
            return to_instant(self.local + relativedelta(months=n * STEP[self.window]), self.zone)
        days = 7 if self.window == "week" else 1
        return to_instant(self.local + relativedelta(days=n * days), self.zone)

    def around(self, moment):
        """The last boundary at or before the moment and the first one after it, by bisection."""
        if self.window in LENGTH:
            unit = LENGTH[self.window]
            slack = 3
        else:
            unit = 86400 * {"day": 1, "week": 7, "month": 30, "quarter": 91, "year": 365}[self.window]
            slack = 200
        middle = int((moment - self.anchor).total_seconds() // unit)
        low, high = middle - slack, middle + slack
        while high - low > 1:
            middle = (low + high) // 2
            if self.boundary(middle) <= moment:
                low = middle
            else:
                high = middle
        return self.boundary(low), self.boundary(high)


def plain(window, rule, moment):
    return Layout(window, rule[0], rule[1]).around(moment)


def period(window, rules, moment):
    """rules: (zone, anchor, since, restarts), ascending; since None for the first."""
    active = [r for r in rules if r[2] is None or r[2] <= ms(moment)]
    last = active[-1]
    if len(active) == 1:
        return plain(window, last, moment)
    since = at(last[2])
    if last[3] and last[1] is not None:
        start, end = plain(window, last, moment)
        return max(start, since), end
    if Layout(window, *last[:2]).key == Layout(window, *active[-2][:2]).key:
        return period(window, active[:-1], moment)
    before = active[:-1]
    old_start, old_end = period(window, before, since)
    if moment < old_end:
        return old_start, old_end
    layout = Layout(window, last[0], last[1])
    start, end = layout.around(old_end)
    if start != old_end:
        bound = old_end + (ms(end) - ms(start) + 1) // 2 * MS
        start, end = layout.around(bound)
        stop = start if start == bound else end
        if moment < stop:
            return old_end, stop
    return layout.around(moment)


def random_instant(source):
    return source.randrange(ms(datetime(1995, 1, 1, tzinfo=UTC)),
                            ms(datetime(2045, 1, 1, tzinfo=UTC)))


def anchors(source, zone):
    """Often on the days 28 to 31, at times that fall into gaps and overlaps."""
    year = source.randrange(2000, 2036)
    day = source.choice([28, 29, 30, 31, 31, source.randrange(1, 28)])
    month = source.randrange(1, 13)
    hour, minute = source.choice([(0, 0), (1, 30), (2, 0), (2, 30), (3, 0), (23, 59), (12, 0),
                                  (source.randrange(24), source.randrange(60))])
    while True:
        try:
            local = datetime(year, month, day, hour, minute, source.choice([0, 0, 17]))
            break
        except ValueError:
            day -= 1
    return ms(to_instant(local, ZONE[zone]))


def main():
    source = random.Random(20261121)
    print("# Generated by Generators/zones.py; do not edit. Its form is described there.")
    for name in ZONES:
        print("zone", name, base64.b64encode(FILES[name]).decode())
    count = 0
    while count < 24_000:
        zone = source.choice(ZONES)
        window = source.choices(WINDOWS, WEIGHTS)[0]
        anchor = anchors(source, zone) if source.random() < 0.6 else None
        rules = [(zone, anchor, None, False)]
        moment = random_instant(source)
        changes = source.choice([0, 0, 0, 1, 1, 2])
        since = moment
        for _ in range(changes):
            # Changes a little before or after the instant, so that the cut period is looked at.
            since = moment - source.randrange(0, {"year": 500, "quarter": 150}.get(window, 45)
                                              * 86_400_000)
            new = source.choice(ZONES) if source.random() < 0.7 else zone
            moved, restarts = anchor, False
            if anchor is not None and source.random() < 0.6:
                moved = anchors(source, new)
                if source.random() < 0.3:
                    moved, restarts = since, True
            rules.append((new, moved, since, restarts))
        rules = [rules[0]] + sorted(rules[1:], key=lambda r: r[2])
        # Half of the instants are boundaries themselves, or the last millisecond before one.
        kind = source.randrange(4)
        if kind < 2:
            start, end = period(window, rules, at(moment))
            moment = ms(end) - kind
        start, end = period(window, rules, at(moment))
        text = " ".join("%s,%s,%s,%d" % (z, "-" if a is None else a, "-" if s is None else s, r)
                        for z, a, s, r in rules)
        print("case", window, moment, ms(start), ms(end), text)
        count += 1


if __name__ == "__main__":
    main()
