"""Medians, spreads, verdicts; the table, report.json and the plots."""
import json
import os
import statistics

from . import rows, svg


def judge(row, results):
    value, unit = rows.FIGURES[row.figure]
    ours = [value(result) for result in results[row.ours]]
    peer = [value(result) for result in results[row.peer]]
    ratio = statistics.median(ours) / max(statistics.median(peer), 1e-9)
    ratios = sorted(a / max(b, 1e-9) for a, b in zip(ours, peer))

    def holds(number):
        return number >= row.bar if row.more_is_better else number <= row.bar

    met = within = None
    if row.bar is not None:
        within = row.within_spread and holds(ratios[-1 if row.more_is_better else 0])
        met = holds(ratio) or within
    return {"row": row.letter, "name": row.name, "unit": unit,
            "ours": round(statistics.median(ours), 3), "peer": round(statistics.median(peer), 3),
            "ratio": round(ratio, 3), "ratioLow": round(ratios[0], 3),
            "ratioHigh": round(ratios[-1], 3), "bar": row.bar, "met": met,
            "withinSpread": bool(within and not holds(ratio)), "rounds": len(ours)}


def text(entries):
    lines = [f"\n{'':3}{'':66} {'ours':>12} {'peer':>12} {'ratio':>7} {'spread':>14}  bar"]
    for e in entries:
        spread = f"{e['ratioLow']:.2f}-{e['ratioHigh']:.2f}" if "ratioLow" in e else ""
        peer = "" if e["peer"] is None else f"{e['peer']:.2f}"
        ratio = "" if e["ratio"] is None else f"{e['ratio']:.2f}"
        bar = ""
        if e["bar"] is not None:
            how = "met, within the spread" if e.get("withinSpread") else "met"
            bar = f"{e['bar']:g} {how if e['met'] else 'MISSED'}"
        by = f"  ({e['by']})" if "by" in e else ""
        lines.append(f"{e['row']:3}{e['name']:66} {e['ours']:12.2f} {peer:>12} {ratio:>7} "
                     f"{spread:>14}  {bar}{by}")
    return "\n".join(lines)


def write(path, entries, tables, say):
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        json.dump(entries, out, indent=2, ensure_ascii=False)
        out.write("\n")
    if tables:
        with open(os.path.join(folder, "growth.json"), "w", encoding="utf-8") as out:
            json.dump([{"name": t.name, "points": t.points} for t in tables], out, indent=2)
            out.write("\n")
    bars = [(f"{e['row']} {e['name']}", e["ratio"], e["bar"]) for e in entries if e["ratio"]]
    if bars:
        svg.save(os.path.join(folder, "rows.svg"),
                 svg.bars("ours / peer (the line is the bar)", bars))
    for table in tables:
        name = table.axis + ".svg"
        svg.save(os.path.join(folder, f"growth-{name}"), svg.lines(
            table.name, table.axis, [
                ("consumes/s", [(p["size"], p["throughput"]) for p in table.points]),
                ("server CPU, µs per consume", [(p["size"], p["cpu"]) for p in table.points]),
                ("p99, µs", [(p["size"], p["p99"]) for p in table.points])]))
    say(f"report in {path}, plots beside it")
