// Redis is gone, and its connections with it: leases answer on whichever way a request comes, and
// what policies let through is counted although no table of leases remembers it.

import Foundation
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests.Leases {
  private static func record(
    _ subject: String, _ feature: String, at offset: Int64 = 0, _ low: UInt64
  ) throws -> OperationRecord {
    let now = Int64(Date().timeIntervalSince1970 * 1000) + offset
    return OperationRecord(
      id: OperationID(high: UInt64(now) << 16, low: low &* 0x9E37_79B9_7F4A_7C15),
      subject: try Subject(subject), items: [Item(feature: try Name(feature), amount: 1)])
  }

  private static func decision(_ record: DecisionRecord?) -> Decision? {
    guard case .decision(let decision)? = record else { return nil }
    return decision
  }

  /// One frame with a retry and a new operation is not for the fast path; without local loops
  /// nothing is.
  @Test(arguments: [0, 1])
  func withRedisGoneLeasesAnswerOn(localLoops: Int) throws {
    var options = Self.options(1_000_000, sidecars: 1, accounts: ["acme"])
    options.extra += "\nlocal_loops: \(localLoops)"
    let stack = try Stack(options)
    let link = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    var low: UInt64 = 0
    var allowed: Int64 = 0
    var leased: OperationRecord?
    func ask(_ records: [OperationRecord]) throws -> [Decision] {
      try link.operate(records, deadline: 1_000).compactMap(Self.decision)
    }
    try eventually(within: .seconds(20), every: .milliseconds(5), "a lease answers") {
      low += 1
      let record = try Self.record("acme/ann/7", "edits", low)
      guard let decision = try ask([record]).first, decision.isAllowed else { return false }
      allowed += 1
      if decision.source == .lease { leased = record }
      return decision.source == .lease && allowed > 200
    }
    let known = try #require(leased)
    try stack.redis.stop()
    for _ in 0..<20 {
      low += 1
      let both = try ask([known, try Self.record("acme/ann/7", "edits", low)])
      #expect(both.map(\.source) == [.lease, .lease] && both.map(\.replayed) == [true, false])
      #expect(both.map(\.reason) == [.allowed, .allowed])
      allowed += Int64(both.count { $0.isAllowed && !$0.replayed })
    }
    try stack.redis.start()
    // Nobody asks any more: what was let through is settled, and the bucket opened, all the same.
    try stack.waitReady(0)
    var tally = LeaseTally()
    tally.admitted = ["acme": allowed]
    try Self.audit(stack, tally, subjects: ["acme"])
  }

  private static let openCatalog = catalog(
    edits: "{id: edits.day, quota: 1000000000, per: day, on_failure: closed}",
    notes: "{id: notes.day, quota: 1000000000, per: day, on_failure: {open: 1000000000}}")

  /// The journal of the policies outlives a restart of the host; that of the leases does not, and a
  /// client's POST comes to a sidecar that has begun anew.
  @Test func whatAPolicyLetThroughCountsAlthoughNoTableRemembersIt() throws {
    var options = Stack.Options(
      sidecars: 1, extra: LiveTests.ExactLimit.patient, catalog: Self.openCatalog,
      accounts: ["acme": "plan"])
    options.journals = true
    let stack = try Stack(options)
    var link = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    func reason(
      _ record: OperationRecord, _ opcode: Opcode = .consume, _ deadline: UInt32 = 300
    ) throws -> Reason? {
      let flags: FrameFlags = opcode == .post ? .clientFallback : []
      return Self.decision(
        try link.operate([record], as: opcode, deadline: deadline, flags: flags).first)?.reason
    }
    #expect(try reason(try Self.record("acme/ann/7", "notes", 1), .consume, 3_000) == .allowed)
    try stack.redis.pause()
    for low in 2..<12 as Range<UInt64> {
      #expect(try reason(try Self.record("acme/ann/7", "notes", low)) == .allowedFailOpen)
    }
    stack.sidecar(0)?.kill()
    let before = try Self.record("acme/ann/7", "notes", at: -100, 20)
    try FileManager.default.removeItem(atPath: stack.journal(0) + ".leases")
    stack.redis.resume()
    try stack.startSidecar(0)
    try stack.waitReady(0)
    link = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
    try eventually(within: .seconds(20), "what was let through is posted") {
      stack.metric("tollgate_fallback_posted_total", sidecar: 0) == 10
    }
    // A client let it through meanwhile; asked for as something new, it is too old.
    #expect(try reason(before, .post, 3_000) == .allowedPosted)
    #expect(try reason(before, .post, 3_000) == .allowedPosted)
    let other = try Self.record("acme/ann/7", "notes", at: -60_000, 21)
    #expect(try reason(other, .consume, 3_000) == nil)
    var tally = LoadTally()
    tally.admitted = ["acme notes": 12]
    try Audit.check(stack, tally, subjects: ["acme"], touching: "notes")
  }
}
