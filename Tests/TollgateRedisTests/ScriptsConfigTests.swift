// Configuration, counter resets and reading an account.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

@Suite(.blocking) struct ScriptsConfigTests {
  private func change(
    _ rig: StoreRig, expected: Int64, new: Int64, config: String = "{\"x\":1}",
    account: String = "acme"
  ) throws -> ConfigAccountCall {
    ConfigAccountCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      account: try Subject(account), expectedVersion: expected, newVersion: new, config: config,
      body: Array("delta".utf8), outboxEntriesMax: 1000)
  }

  @Test func anAccountChangeIsInForceAtOnceAndTravelsInTheOutbox() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 5))
    let call = try change(rig, expected: 1, new: 2)
    guard case .done(let outcome) = try rig.run(call) else {
      Issue.record("not done")
      return
    }
    #expect(outcome.position == StreamPosition(epoch: 1, sequence: 2))
    #expect(
      try rig.consume("acme", ("tokens", 1))
        == .stale(globalVersion: 1, accountVersion: 2, accountConfig: "{\"x\":1}"))
    rig.account.version = 2
    #expect(try rig.consume("acme", ("tokens", 1)).decided?.decision.items[0].settled == 6)
    let entry = try rig.outbox()[1]
    #expect(entry.kind == .config)
    #expect(entry.id == DeltaID(change: call.change.operation))
    #expect(entry.body == call.body && entry.actual == 0)
    #expect(try rig.run(call) == .known(.applied(result: 2, time: rig.now)))
    let audit = try rig.read(Reads.audit(rig.keySpace, bucket: 0, count: 10))
    #expect(audit.map(\.body) == [call.body])
    #expect(audit.map(\.operation) == [call.change.operation])
  }

  @Test func pitfall26_anOlderVersionNeverOverwritesANewerOne() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try change(rig, expected: 1, new: 5))
    #expect(try rig.run(try change(rig, expected: 1, new: 2)) == .conflict(version: 5))
    #expect(try rig.run(try change(rig, expected: 5, new: 5)) == .conflict(version: 5))
    try rig.open(epoch: 2, hadPredecessor: true)
    try rig.seed()
    let header = try rig.read(Reads.header(rig.keySpace, account: try Subject("acme")))
    #expect(header.epoch == 2 && header.version == 5 && header.config == "{\"x\":1}")
    #expect(header.memory.entries.map(\.result) == [5])
  }

  /// A retry that comes after somebody else's change is still the same change: applied once.
  @Test func aChangeRepeatedAfterLaterOnesIsNotAppliedAgain() throws {
    let rig = try StoreRig.ready()
    let first = try change(rig, expected: 1, new: 2, config: "{\"x\":1}")
    _ = try rig.run(first)
    for version in Int64(3)...12 {
      _ = try rig.run(
        try change(rig, expected: version - 1, new: version, config: "{\"y\":\(version)}"))
    }
    var again = first
    again.expectedVersion = 12
    again.newVersion = 13
    #expect(try rig.run(again) == .known(.applied(result: 2, time: rig.now)))
    let header = try rig.read(Reads.header(rig.keySpace, account: try Subject("acme")))
    #expect(header.version == 12 && header.config == "{\"y\":12}")
  }

  @Test func anAccountMayBeSetBeforeItIsSeeded() throws {
    let rig = try StoreRig.ready()
    _ = try rig.run(try change(rig, expected: 0, new: 1, account: "new"))
    #expect(try rig.consume("new", ("tokens", 1)) == .rebuild)
    try rig.seed("new")
    #expect(try rig.consume("new", ("tokens", 1)).reason == .allowed)
  }

  @Test func theGlobalConfigurationMovesWithItsCatalogAndOldCatalogsAreBounded() throws {
    let rig = try StoreRig.ready()
    try Scenario.openControl(rig)
    func apply(_ version: Int64) throws -> ConfigReply {
      try rig.run(
        ConfigGlobalCall(
          keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
          expectedVersion: version - 1, newVersion: version, config: "g\(version)",
          catalog: (version: version, document: "c\(version)"), body: [1],
          outboxEntriesMax: 1000))
    }
    for version in 1...70 {
      // More ids than are remembered come in their order.
      try rig.advance(1)
      guard case .done = try apply(Int64(version)) else {
        Issue.record("version \(version)")
        return
      }
    }
    #expect(
      try rig.read(Reads.global(rig.keySpace)) == StoredConfig(version: 70, config: "g70"))
    #expect(try rig.read(Reads.catalogVersions(rig.keySpace)) == Array(7...70))
    #expect(try rig.read(Reads.catalog(rig.keySpace, version: 70)) == "c70")
    #expect(try rig.read(Reads.catalog(rig.keySpace, version: 6)) == nil)
    #expect(try rig.read(Reads.meta(rig.keySpace, bucket: 1))?.globalVersion == 70)
    #expect(try apply(70) == .conflict(version: 70))
  }

  @Test func aRestoredGlobalConfigurationNeverReplacesANewerOne() throws {
    let rig = try StoreRig.ready()
    try Scenario.openControl(rig)
    #expect(try rig.read(Reads.global(rig.keySpace)) == nil)
    func restore(_ version: Int64) throws -> StoreReply<Int64> {
      try rig.run(
        RestoreGlobalCall(
          keySpace: rig.keySpace, fence: rig.fence, version: version, config: "r\(version)"))
    }
    #expect(try restore(5) == .done(5))
    #expect(try restore(4) == .done(5))
    #expect(try rig.read(Reads.global(rig.keySpace))?.config == "r5")
  }

  @Test func aPushedVersionMakesOldDecisionsStale() throws {
    let rig = try StoreRig.ready()
    func push(_ version: Int64) throws -> StoreReply<Int64> {
      try rig.run(
        PushVersionCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: version))
    }
    #expect(try push(4) == .done(4))
    #expect(try push(3) == .done(4))
    guard case .stale(globalVersion: 4, _, _) = try rig.consume("acme", ("tokens", 1)) else {
      Issue.record("not stale")
      return
    }
  }

  @Test func pitfall27_aResetRacedByDeltasForgivesOnlyWhatItSaw() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme", ("tokens", 1000))
    let call = try Scenario.reset(rig, "acme", "tokens", .month)
    guard case .done(let outcome) = try rig.run(call) else {
      Issue.record("not done")
      return
    }
    #expect(outcome.before == 1000 && outcome.after == 0)
    let decision = try #require(try rig.consume("acme", ("tokens", 10)).decided).decision
    #expect(decision.reason == .allowed && decision.items[0].remaining == 990)
    // The bill is not touched.
    #expect(try rig.settled("acme", "tokens", .month) == 1010)
    #expect(try rig.run(call) == .known(.applied(result: 1000, time: rig.now)))
    let entry = try rig.outbox()[1]
    #expect(entry.actual == -1000 && entry.charged == 0 && entry.absorbed == -1000)
  }

  @Test func pitfall34_aResetEndsWithItsPeriod() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 6))
    _ = try rig.run(try Scenario.reset(rig, "acme/ann", "chat", .hour))
    try rig.advance(20_000)
    #expect(try rig.consume("acme/ann", ("chat", 4)).reason == .allowed)
    try rig.setNow(Window.hour.period(containing: rig.now).end)
    _ = try rig.run(try Scenario.reset(rig, "acme", "chat", .day))
    let decision = try #require(try rig.consume("acme/ann", ("chat", 1)).decided).decision
    #expect(decision.items[0].settled == 1)
  }

  @Test func pitfall44_theIndexOfSubjectsIsPruned() throws {
    let rig = try StoreRig.ready()
    for member in 0..<12 { _ = try rig.consume("acme/m\(member)", ("chat", 0)) }
    let index = rig.keySpace.index(0, account: try Subject("acme"))
    #expect(try rig.redis.command("ZCARD", index).integer == 12)
    let read = ReadAccountCall(keySpace: rig.keySpace, account: try Subject("acme"))
    #expect(try #require(try rig.run(read).value).subjects.count == 12)
    try rig.setNow(rig.now + 200_000_000)
    #expect(try #require(try rig.run(read).value).subjects.isEmpty)
    _ = try rig.consume("acme/late", ("chat", 0))
    #expect(try rig.redis.command("ZCARD", index).integer == 1)
  }

  @Test func pitfall29_aDeeperSubjectOutlivesItsPeriodAndThenGoes() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 1))
    let key = rig.keySpace.subject(0, try Subject("acme/ann"))
    let end = Window.hour.period(containing: rig.now).end
    #expect(
      try #require(try rig.redis.command("PEXPIRETIME", key).integer)
        >= end.milliseconds + 86_400_000)
    #expect(
      try rig.redis.command("PEXPIRETIME", rig.keySpace.index(0, account: try Subject("acme")))
        .integer == rig.redis.command("PEXPIRETIME", key).integer)
  }

  @Test func anAccountIsReadAtOneMoment() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 2), ("tokens", 9))
    let snapshot = try #require(
      try rig.run(ReadAccountCall(keySpace: rig.keySpace, account: try Subject("acme"))).value)
    #expect(snapshot.fence.sequence == 2 && snapshot.fence.epoch == 1)
    #expect(snapshot.header == AccountHeader(epoch: 1, version: 1, config: "{}"))
    #expect(snapshot.subjects.map(\.path) == ["acme/ann"])
    #expect(
      snapshot.counters.cell(feature: try Name("tokens"), window: .month)?.settled == 9)
    #expect(snapshot.now == rig.now)
  }
}
