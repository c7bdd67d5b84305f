// Whether a limit was exceeded: against amounts given on the command line, or those the sidecar
// says are in force.

package import TollgateCore
import TollgateWire

/// `LEVEL:FEATURE:WINDOW=AMOUNT`, e.g. `account:tokens.total:month=1000000`.
package struct LimitRule: Sendable, Hashable {
  package var isMember: Bool
  package var feature: String
  package var window: Window
  package var amount: Int64

  package init(_ text: String) throws {
    let halves = text.split(separator: "=")
    let parts = (halves.first ?? "").split(separator: ":").map(String.init)
    guard halves.count == 2, let amount = Int64(halves[1]), amount >= 0, parts.count == 3,
      parts[0] == "account" || parts[0] == "member", let window = Window(word: parts[2])
    else {
      throw BenchError(
        "\"\(text)\": write account|member:FEATURE:WINDOW=AMOUNT, e.g. "
          + "account:tokens.total:month=1000000")
    }
    isMember = parts[0] == "member"
    feature = parts[1]
    self.window = window
    self.amount = amount
  }
}

package struct LimitCheck: Sendable, Hashable {
  package var checked = 0
  /// One line for each limit found exceeded.
  package var exceeded: [String] = []

  package init() {}

  /// Against rules given by hand. `allowance` are units a failure policy let through, by feature:
  /// the named exception of a hard limit.
  package mutating func check(
    _ rules: [LimitRule], _ books: RedisBooks, allowance: [String: Int64]
  ) {
    for (cell, reading) in books.counters.sorted(by: { $0.key < $1.key }) {
      for rule in rules
      where rule.feature == cell.feature && rule.window.code == cell.window
        && rule.isMember == cell.owner.contains("/")
      {
        checked += 1
        let most = max(reading.settled, reading.previousSettled)
        if most > rule.amount + (allowance[rule.feature] ?? 0) {
          exceeded.append(
            "\(cell.owner) \(cell.feature) per \(rule.window.word): "
              + "\(most) settled of \(rule.amount)")
        }
      }
    }
  }

  /// Against what `usage` says is in force for these subjects: every hard quota of theirs.
  package mutating func check(
    _ subjects: [String], _ admin: AdminLink, allowance: [String: Int64]
  ) throws {
    var seen: Set<[String]> = []
    for subject in subjects {
      let reply = try admin.admin(.usage, .fields(["subject": .string(subject)]))
      for row in reply.list("usage") {
        guard row.text("enforcement") == "hard", let amount = row.optionalNumber("amount"),
          let limit = row.text("limit"), let owner = row.text("owner"),
          let feature = row.text("feature"), let window = row.text("window"), window != "rate",
          seen.insert([owner, limit, feature]).inserted
        else { continue }
        checked += 1
        let counted = try row.number("settled") - (row.optionalNumber("forgiven") ?? 0)
        if counted > amount + (allowance[feature] ?? 0) {
          exceeded.append(
            "\(owner) \(feature) limit \(limit) per \(window): \(counted) settled of \(amount)")
        }
      }
    }
  }
}
