// One effect per operation id of a change (promise 4): the same answer again, a mismatch that names
// what differs, and ID_TOO_OLD for what may have been forgotten; through a rebuild too.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsChangeTests {
  private func change(
    _ rig: StoreRig, _ key: ChangeKey, expected: Int64, account: String = "acme",
    outboxEntriesMax: Int64 = 1000
  ) throws -> ConfigReply {
    try rig.run(
      ConfigAccountCall(
        keySpace: rig.keySpace, fence: rig.fence, change: key, account: try Subject(account),
        expectedVersion: expected, newVersion: expected + 1, config: "{\"v\":\(expected + 1)}",
        body: [1], outboxEntriesMax: outboxEntriesMax))
  }

  /// Ids in the order of their numbers.
  private func key(_ rig: StoreRig, _ number: Int, _ fingerprint: UInt64 = 7) -> ChangeKey {
    ChangeKey(
      operation: OperationID(
        high: UInt64(rig.now.milliseconds) << 16, low: UInt64(number)), fingerprint: fingerprint)
  }

  private func header(_ rig: StoreRig) throws -> AccountHeader {
    try rig.read(Reads.header(rig.keySpace, account: try Subject("acme")))
  }

  @Test func theSameIdWithAnotherBodyIsAMismatchThatSaysWhat() throws {
    let rig = try StoreRig.ready()
    let first = key(rig, 1, 0x0000_0001_0000_0002)
    guard case .done = try change(rig, first, expected: 1) else {
      Issue.record("not done")
      return
    }
    var other = first
    other.fingerprint = 0x0000_0001_0000_0003
    #expect(try change(rig, other, expected: 2) == .known(.mismatch(.body)))
    other.fingerprint = 0x0000_0009_0000_0002
    #expect(try change(rig, other, expected: 2) == .known(.mismatch(.action)))
    #expect(try header(rig).version == 2)
  }

  @Test func anIdThatMayHaveBeenForgottenIsRefused() throws {
    let rig = try StoreRig.ready()
    for number in 1...40 { _ = try change(rig, key(rig, number), expected: Int64(number)) }
    let before = try rig.dump()
    // 40 changes, 32 remembered: number 8 is the highest that was dropped.
    #expect(try change(rig, key(rig, 8), expected: 41) == .known(.tooOld))
    #expect(try change(rig, key(rig, 1), expected: 41) == .known(.tooOld))
    #expect(try change(rig, key(rig, 0), expected: 41) == .known(.tooOld))
    #expect(
      try change(rig, key(rig, 9), expected: 41) == .known(.applied(result: 10, time: rig.now)))
    #expect(try rig.dump() == before)
    guard case .done = try change(rig, key(rig, 41), expected: 41) else {
      Issue.record("a new id was refused")
      return
    }
  }

  @Test func anIdFromTheFutureIsRefused() throws {
    let rig = try StoreRig.ready()
    var random = SeededRandom(seed: 3)
    func at(_ milliseconds: Int64) -> ChangeKey {
      ChangeKey(
        operation: OperationID(time: rig.now + milliseconds, using: &random), fingerprint: 7)
    }
    #expect(try change(rig, at(60_001), expected: 1) == .known(.fromFuture))
    guard case .done = try change(rig, at(60_000), expected: 1) else {
      Issue.record("60 s are allowed")
      return
    }
  }

  @Test func resetsAndConfigurationChangesShareTheirIds() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 7))
    let reset = try Scenario.reset(rig, "acme", "tokens", .month)
    _ = try rig.run(reset)
    let same = ChangeKey(operation: reset.change.operation, fingerprint: 1 << 40)
    #expect(try change(rig, same, expected: 1) == .known(.mismatch(.action)))
    #expect(try header(rig).memory.entries.map(\.result) == [7])
  }

  /// FLUSHALL: the ledger's list is all there is.
  @Test func aRebuildRestoresTheIds() throws {
    let rig = try StoreRig.ready()
    for number in 1...40 { _ = try change(rig, key(rig, number), expected: Int64(number)) }
    let memory = try header(rig).memory
    try rig.redis.command("FLUSHALL")
    try rig.setNow(rig.now + 1000)
    let minted = rig.now + -1000
    func old(_ number: Int) -> ChangeKey {
      ChangeKey(
        operation: OperationID(high: UInt64(minted.milliseconds) << 16, low: UInt64(number)),
        fingerprint: 7)
    }
    try rig.open(epoch: 2, hadPredecessor: true)
    for call in SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), cells: [],
      accountVersion: 41, accountConfig: "{}", memory: memory)
    {
      #expect(try rig.run(call) == .done(.seeded))
    }
    #expect(try header(rig).memory == memory)
    #expect(try change(rig, old(40), expected: 41) == .known(.applied(result: 41, time: minted)))
    #expect(try change(rig, old(8), expected: 41) == .known(.tooOld))
    #expect(try header(rig).version == 41)
  }

  /// An older snapshot put back knows old ids, the ledger newer ones.
  @Test func whatBothSidesRememberIsJoined() throws {
    let rig = try StoreRig.ready()
    for number in 1...20 { _ = try change(rig, key(rig, number), expected: Int64(number)) }
    let ledger = ChangeMemory(
      entries: (11...40).reversed().map { number in
        let key = key(rig, number)
        return .init(
          operation: key.operation, fingerprint: 7, result: Int64(number) + 1,
          time: rig.now + Int64(number <= 20 ? 0 : number))
      })
    try rig.open(epoch: 2, hadPredecessor: true)
    for call in SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"), cells: [],
      accountVersion: 41, accountConfig: "{}", memory: ledger)
    {
      _ = try rig.run(call)
    }
    let joined = try header(rig).memory
    #expect(joined.entries.count == ChangeMemory.entriesMax)
    #expect(Set(joined.entries.map(\.operation)).count == ChangeMemory.entriesMax)
    #expect(
      Set((21...40).map { key(rig, $0).operation }).isSubset(of: joined.entries.map(\.operation)))
    for number in 1...40 {
      let id = key(rig, number).operation
      #expect(joined.entries.contains { $0.operation == id } || id <= joined.floor, "\(number)")
    }
  }

  @Test func theMemoryReadsAsItIsWritten() throws {
    let rig = try StoreRig.ready()
    for number in 1...40 { _ = try change(rig, key(rig, number), expected: Int64(number)) }
    let memory = try header(rig).memory
    #expect(memory.floor == key(rig, 8).operation)
    #expect(memory.entries.map(\.result) == (10...41).reversed().map { Int64($0) })
    #expect(ChangeMemory(bytes: memory.bytes) == memory)
    #expect(memory.verdict(on: key(rig, 8).operation, fingerprint: 7) == .tooOld)
    #expect(memory.verdict(on: key(rig, 41).operation, fingerprint: 7) == .unknown)
    #expect(memory.verdict(on: key(rig, 40).operation, fingerprint: 8) == .mismatch(.body))
  }

  @Test func aChangeIsRefusedWhereTheOutboxIsFull() throws {
    let rig = try StoreRig.ready()
    for _ in 0..<5 { _ = try rig.consume("acme", ("tokens", 1)) }
    let before = try rig.dump()
    #expect(try change(rig, key(rig, 1), expected: 1, outboxEntriesMax: 5) == .outboxFull)
    #expect(try rig.dump() == before)
    guard case .done = try change(rig, key(rig, 1), expected: 1, outboxEntriesMax: 6) else {
      Issue.record("there is room for one")
      return
    }
  }

  @Test func withoutALedgerTheOutboxDoesNotGrow() throws {
    let rig = try StoreRig.ready()
    for number in 1...12_000 {
      _ = try change(rig, key(rig, number), expected: Int64(number), outboxEntriesMax: 0)
    }
    let length = try #require(
      try rig.redis.command("XLEN", rig.keySpace.outbox(0)).integer)
    #expect(length < 11_000)
  }

  // MARK: - Rates

  @Test func aRateResetGivesTheWholeBurstAndIsRecorded() throws {
    let rig = try StoreRig.ready()
    #expect(try rig.consume("acme", ("ping", 2)).reason == .allowed)
    #expect(try rig.consume("acme", ("ping", 1)).reason == .rateLimited)
    let call = ResetCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      subject: try Subject("acme"), feature: try Name("ping"),
      target: .rate(limit: try Name("ping.rate")), body: Array(ResetCall.before.utf8),
      outboxEntriesMax: 1000)
    guard case .done(let outcome) = try rig.run(call) else {
      Issue.record("not done")
      return
    }
    #expect(outcome.before > 0 && outcome.after == 0)
    let entry = try #require(try rig.outbox().last)
    #expect(entry.kind == .config && entry.id.operation == call.change.operation)
    #expect(entry.actual == 0 && entry.charged == 0)
    #expect(entry.body == call.body(before: outcome.before))
    #expect(
      try Document(json: entry.body)["used"] == .integer(outcome.before), "the number before")
    let audit = try rig.read(Reads.audit(rig.keySpace, bucket: 0, count: 10))
    #expect(audit.first?.operation == call.change.operation)
    #expect(try rig.consume("acme", ("ping", 2)).reason == .allowed)
    // Sent again, it does not give the burst a second time.
    #expect(try rig.run(call) == .known(.applied(result: 0, time: rig.now)))
    #expect(try rig.consume("acme", ("ping", 1)).reason == .rateLimited)
  }
}
