// The three numbers that must be one: what callers were told, what Redis counts, what the ledger
// billed. Read through the tools an operator has: `reconcile`, `ledger verify`, `ledger balances`.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

enum Audit {
  struct Reconciliation: Decodable {
    struct Row: Decodable {
      var account: String
      var feature: String
      /// Of a counter beside the bill.
      var window: String?
      var redis: Int64
      var ledger: Int64
      var undelivered: Int64
      var difference: Int64
      var explanation: [String]
    }
    struct Skipped: Decodable {
      var account: String
      var why: String
    }
    var rows: [Row]
    var difference: Int64
    var undelivered: Int64
    var skipped: [Skipped]
  }

  struct Books: Decodable {
    var deltas: Int64
    var duplicates: Int64
    var parked: Int64
    var lostSequences: Int64
    var findings: [String]
  }

  struct Total: Decodable {
    var account: String
    var feature: String
    var charged: Int64
  }

  static func reconcile(_ stack: Stack, sidecar: Int = 0) throws -> Reconciliation? {
    let result = try stack.cli(["reconcile", "--verbose", "--json"], sidecar: sidecar)
    return try? JSONDecoder().decode(Reconciliation.self, from: Data(result.output.utf8))
  }

  static func verify(_ stack: Stack) throws -> Books {
    let result = try stack.books("verify")
    return try JSONDecoder().decode(Books.self, from: Data(result.output.utf8))
  }

  static func totals(_ stack: Stack) throws -> [String: Int64] {
    struct List: Decodable { var totals: [Total] }
    var sums: [String: Int64] = [:]
    let output = try stack.books("balances").output
    for total in try JSONDecoder().decode(List.self, from: Data(output.utf8)).totals {
      sums["\(total.account) \(total.feature)", default: 0] += total.charged
    }
    return sums
  }

  /// What was burnt of each grant of `acme`, by the sidecar.
  static func burnt(_ stack: Stack) throws -> [String: Int64] {
    struct Reply: Decodable {
      struct Grant: Decodable {
        var id: String
        var burnt: Int64?
      }
      var grants: [Grant]
    }
    let text = try stack.command(["grant", "list", "acme", "--json"])
    let grants = try JSONDecoder().decode(Reply.self, from: Data(text.utf8)).grants
    return Dictionary(uniqueKeysWithValues: grants.map { ($0.id, $0.burnt ?? 0) })
  }

  /// Loads each account under the current epoch, so that there are counters to compare.
  static func touch(
    _ stack: Stack, _ subjects: [String], feature: String = "calls", sidecar: Int = 0
  ) throws {
    let name = try Name(feature)
    for path in Set(subjects) {
      let subject = try Subject(path)
      try eventually(within: .seconds(20), every: .milliseconds(50), "\(path) is loaded") {
        guard
          let connection = try? WireConnection(stack.endpoint(sidecar), token: Stack.checkToken),
          let answer = try? connection.operate(
            [
              OperationRecord(
                id: OperationID(high: 0, low: 0), subject: subject,
                items: [Item(feature: name, amount: 0)])
            ], as: .check, deadline: 2000),
          case .decision(let decision)? = answer.first
        else { return false }
        return decision.source == .redis || decision.source == .lease
      }
    }
  }

  /// An operation whose outcome its caller could not learn, because the record of it was lost, is
  /// what the books say it is. Answers how many there were, and how many of them count.
  private static func resolve(_ stack: Stack, _ tally: inout LoadTally) throws -> String {
    guard !tally.unresolved.isEmpty else { return "0" }
    struct Line: Decodable { var id: String }
    var posted: Set<Substring> = []
    let lines = try stack.books("export").output
    for line in lines.split(separator: "\n") {
      let id = try JSONDecoder().decode(Line.self, from: Data(line.utf8)).id
      posted.insert(id.prefix { $0 != "." })
    }
    let counted = tally.unresolved.filter { posted.contains(Substring($0.id.hex)) }
    for one in counted { tally.admitted[one.key, default: 0] += one.amount }
    return "\(tally.unresolved.count) (\(counted.count) counted)"
  }

  /// Waits until everything is delivered, then holds the three numbers against each other. `ahead`:
  /// by how much limits see more than a ledger that lost part of its books.
  static func check(
    _ stack: Stack, _ tally: LoadTally, subjects: [String], lossesAllowed: Bool = false,
    ahead: [String: Int64] = [:], touching feature: String = "calls",
    sidecar: Int = 0, within limit: Duration = .seconds(40),
    location: SourceLocation = #_sourceLocation
  ) throws {
    var tally = tally
    for violation in tally.violations.prefix(10) {
      Issue.record(Comment(rawValue: violation), sourceLocation: location)
    }
    try touch(stack, subjects, feature: feature, sidecar: sidecar)
    var last: Reconciliation?
    let settled = Result {
      try eventually(within: limit, every: .milliseconds(200), "everything is delivered") {
        guard let found = try reconcile(stack, sidecar: sidecar) else { return false }
        last = found
        // A bucket that was given a new epoch since is loaded again by its next request.
        if !found.skipped.isEmpty {
          try touch(stack, subjects, feature: feature, sidecar: sidecar)
        }
        let expected = ahead.values.reduce(0, +)
        return found.difference == expected && found.undelivered == 0 && found.skipped.isEmpty
      }
    }
    if case .failure(let error) = settled {
      Issue.record("\(error): \(String(describing: last))", sourceLocation: location)
      print(stack.logs)
    }
    let unresolved = try resolve(stack, &tally)
    var redis: [String: Int64] = [:]
    for row in last?.rows ?? [] where row.window == nil {
      redis["\(row.account) \(row.feature)", default: 0] += row.redis
    }
    let ledger = try totals(stack)
    let books = try verify(stack)
    let keys = Set(tally.admitted.keys).union(ledger.keys).union(redis.keys).sorted()
    for key in keys where !key.hasSuffix(" pings") {
      let counts = [
        tally.admitted[key] ?? 0, (redis[key] ?? 0) - (ahead[key] ?? 0), ledger[key] ?? 0,
      ]
      if Set(counts).count != 1 {
        Issue.record(
          "\(key): clients \(counts[0]), redis \(counts[1]), ledger \(counts[2])",
          sourceLocation: location)
      }
    }
    #expect(books.findings.isEmpty, sourceLocation: location)
    #expect(books.parked == 0, sourceLocation: location)
    if books.lostSequences > 0 && ProcessInfo.processInfo.environment["TOLLGATE_LOGS"] != nil {
      print(stack.logs)
    }
    if !lossesAllowed { #expect(books.lostSequences == 0, sourceLocation: location) }
    print(
      "audit: \(tally.operations) operations, \(tally.repeated) repeated, \(tally.replayed) "
        + "replayed, admitted \(tally.admitted.values.reduce(0, +)), errors \(tally.errors), "
        + "denied \(tally.denied), too old \(tally.tooOld), unresolved \(unresolved), ledger "
        + "\(books.deltas) deltas, \(books.duplicates) duplicates, "
        + "\(books.lostSequences) lost")
  }
}
