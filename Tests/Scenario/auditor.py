"""What the bill of `month.py` must be, from the answers its caller got and the price list, in exact
fractions; compared to the micro-unit with the ledger's statement. Knows nothing of the code that
decided: neither how a charge is rounded nor in what order grants are burnt.

    python3 auditor.py --log FILE --statement FILE [--catalog FILE]
"""
import argparse
import collections
import fractions
import json
import re
import sys

INCLUDED, PROMOTION, CAP = 20_000_000, 5_000_000, 50_000_000
ULTRA = 200_000_000
METERED = ["tokens.input", "tokens.output", "spend"]


def prices(catalog):
    """(feature, model) → (rate, exact price of one unit), read as text."""
    found = {}
    for line in open(catalog):
        match = re.match(
            r"\s*- \{id: (\S+), feature: (\S+), into: spend, when: \{model: (\w+)\}, price: (\d+), "
            r"per: (\d+)\}", line)
        if match:
            rate, feature, model, price, per = match.groups()
            found[feature, model] = rate, fractions.Fraction(int(price), int(per))
    return found


class Books:
    def __init__(self):
        self.used = collections.Counter()
        self.charged = collections.Counter()
        self.refunded = collections.Counter()
        self.burnt = collections.Counter()
        self.rate_units = collections.Counter()
        self.rate_given_back = collections.Counter()

    def read(self, log):
        by_id = {entry["id"]: entry for entry in log}
        for entry in log:
            if entry["kind"] == "reserve" or entry["reason"] in ("PRICE_UNKNOWN",):
                continue
            features = entry["features"]
            if entry["kind"] == "consume":
                assert entry["reason"] == "ALLOWED", entry
                amounts = dict(entry["used"])
                amounts["spend"] = sum(burn["amount"] for burn in entry["burns"])
                self.add(entry, amounts, amounts)
            elif entry["kind"] == "settle":
                actual = dict(zip(features, (s["actual"] for s in entry["settlements"])))
                charged = dict(zip(features, (s["charged"] for s in entry["settlements"])))
                for feature, amount in entry["used"].items():
                    assert actual[feature] == amount, (feature, entry)
                self.add(entry, actual, charged)
            else:
                for feature, back in zip(features, entry["settlements"]):
                    self.refunded[feature] += back["charged"]
                original = by_id[entry["refunds"]]
                for feature, amount in original["used"].items():
                    self.rate_given_back[feature, original["model"]] += amount
            for burn in entry["burns"]:
                self.burnt[features[burn["item"]], burn["grant"]] += burn["amount"]

    def add(self, entry, actual, charged):
        for feature in METERED:
            self.used[feature] += actual.get(feature, 0)
            self.charged[feature] += charged.get(feature, 0)
            if feature != "spend":
                self.rate_units[feature, entry["model"]] += charged.get(feature, 0)


def audit(books, statement, price_list):
    problems = []

    def same(what, expected, got):
        line = f"{what:44} {expected:>15,} {got:>15,}"
        print(line + ("" if expected == got else "   <- differs"))
        if expected != got:
            problems.append(what)

    def must(condition, what):
        if not condition:
            problems.append(what)
            print(what)

    print(f"{'':44} {'by the answers':>15} {'by the ledger':>15}")
    lines = {line["feature"]: line for line in statement["lines"]}
    for feature in METERED:
        line = lines[feature]
        same(f"{feature} used", books.used[feature], line["used"])
        same(f"{feature} refunded", books.refunded[feature], line["refunds"])
        same(f"{feature} billed", books.charged[feature] + books.refunded[feature], line["charged"])
        same(f"{feature} absorbed", books.used[feature] - books.charged[feature], line["absorbed"])

    grants = collections.Counter()
    for entry in lines["spend"].get("entries", []):
        if entry.get("part") in ("grant", "overage"):
            grants[entry.get("grant")] += entry["amount"]
    for grant in ["launch", "spend.included", None]:
        same(f"spend from {grant or 'beyond every grant'}", books.burnt["spend", grant], grants[grant])

    total = fractions.Fraction(0)
    charges = collections.Counter()
    units = collections.Counter()
    for charge in statement["rates"]:
        charges[charge["rate"]] += charge["charge"]
        units[charge["rate"]] += charge["units"]
    for (feature, model), (rate, price) in sorted(price_list.items()):
        expected = books.rate_units[feature, model] - books.rate_given_back[feature, model]
        same(f"{rate}: units", expected, units[rate])
        exact = expected * price
        total += exact
        # A refund gives back what was charged, which is a whole number too.
        slack = 2 if books.rate_given_back[feature, model] else 1
        must(abs(exact - charges[rate]) < slack,
             f"{rate}: charged {charges[rate]}, exactly {float(exact):.3f}")
    # What rates made of charged units is used of `spend`, whether or not it could be billed.
    same("spend by the price list", sum(charges.values()), lines["spend"]["used"] + lines["spend"]["refunds"])
    print(f"{'exact to the fraction':44} {float(total):>15,.3f} {sum(charges.values()):>15,}")

    must(0 < books.burnt["spend", "launch"] <= PROMOTION, "the promotion gave more than it had")
    must(books.burnt["spend", "spend.included"] <= ULTRA, "the plan gave more than it includes")
    must(books.burnt["spend", "spend.included"] > INCLUDED, "Ultra's larger allowance was used")
    must(books.burnt["spend", None] <= CAP, "the cap on on-demand spend slipped")
    must(books.used["spend"] > books.charged["spend"], "something was absorbed at the cap")
    return problems


def main():
    parser = argparse.ArgumentParser()
    for name in ["log", "statement", "catalog"]:
        parser.add_argument("--" + name, required=True)
    options = parser.parse_args()
    books = Books()
    books.read(json.load(open(options.log)))
    problems = audit(
        books, json.load(open(options.statement)), prices(options.catalog))
    if problems:
        sys.exit(f"auditor: {len(problems)} differences: {', '.join(problems)}")
    print("the statement is what the answers say, to the micro-unit")


if __name__ == "__main__":
    main()
