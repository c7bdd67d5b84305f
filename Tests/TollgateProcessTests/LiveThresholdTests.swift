// Thresholds on real processes: one event for each limit, period and threshold, in the books, by
// whichever sidecar ships; through a lost Redis, a raise and a reset.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

extension LiveTests {
  @Suite(.serialized) struct Thresholds {
    static let catalog = """
      levels: [account, member]
      features:
        calls: {metered: true, unit: call}
      plans:
        small:
          calls:
            - {id: calls.month, quota: 100, per: month, thresholds: [50, 80, 100]}
            - {id: calls.member, quota: 40, per: month, level: member, thresholds: [100]}
      """

    /// `limit percent amount`, oldest first.
    private func events(_ stack: Stack) throws -> [String] {
      let document = try Document(json: Array(try stack.books("events", ["acme"]).output.utf8))
      guard case .list(let rows)? = document["events"] else { return [] }
      return rows.reversed().map { row in
        func text(_ key: String) -> String {
          switch row[key] {
          case .string(let text)?: text
          case .integer(let number)?: "\(number)"
          default: "?"
          }
        }
        return "\(text("subject")) \(text("limit")) \(text("threshold")) of \(text("amount"))"
      }
    }

    private func wait(_ stack: Stack, for expected: [String]) throws {
      var found: [String] = []
      do {
        try eventually(within: .seconds(15), every: .milliseconds(50), "\(expected)") {
          found = try events(stack)
          return Set(found) == Set(expected) && found.count == expected.count
        }
      } catch {
        Issue.record("expected \(expected), found \(found)")
        throw error
      }
    }

    @Test func eachIsInTheBooksOnceThroughALossARaiseAndAReset() throws {
      let stack = try Stack(
        .init(
          persistence: .none, extra: ExactLimit.patient, catalog: Self.catalog,
          accounts: ["acme": "small"]))
      try stack.command(["consume", "acme/ann", "calls=40"], sidecar: 0)
      var expected = ["acme/ann calls.member 100 of 40"]
      try wait(stack, for: expected)
      try stack.command(["consume", "acme/bob", "calls=10"], sidecar: 1)
      expected.append("acme calls.month 50 of 100")
      try wait(stack, for: expected)
      let metrics = (0..<2).map { stack.metric("tollgate_thresholds_total", sidecar: $0) ?? 0 }
      #expect(metrics.reduce(0, +) == 2)

      // Redis forgets what was noted; the same events come again and are in the books once.
      try stack.redis.connect().command("FLUSHALL")
      for index in 0..<2 { try stack.waitReady(index) }
      try Audit.touch(stack, ["acme/ann", "acme/bob"])
      try stack.command(["consume", "acme/bob", "calls=30"])
      expected.append("acme/bob calls.member 100 of 40")
      expected.append("acme calls.month 80 of 100")
      try wait(stack, for: expected)

      try stack.command([
        "limit", "set", "acme", "calls.month", "--amount", "150", "--reason", "grown",
      ])
      try stack.command(["consume", "acme/eve", "calls=5"])
      expected.append("acme calls.month 50 of 150")
      try wait(stack, for: expected)

      try stack.command(["reset", "acme", "calls.month", "--reason", "outage"])
      try stack.command(["consume", "acme/eve", "calls=5"])
      try stack.command(["consume", "acme/dan", "calls=40"])
      expected.append("acme/dan calls.member 100 of 40")
      try wait(stack, for: expected)
      try stack.command(["consume", "acme/kim", "calls=30"])
      // Armed again by the reset: 75 of 150 are used since.
      expected.append("acme calls.month 50 of 150")
      try wait(stack, for: expected)
      let books = try stack.books("verify")
      #expect(books.status == .exited(0), "\(books.output)")
      try eventually(within: .seconds(10), every: .milliseconds(50), "the books agree") {
        try stack.cli(["reconcile"]).output.contains("difference 0")
      }
    }
  }
}
