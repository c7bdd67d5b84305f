// Who is looked at, when, and what is asked of the script; over a store that notes in memory.

import Logging
import NIOConcurrencyHelpers
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

extension FakeBackend: ThresholdStore {
  func knownGlobal() async -> GlobalConfig? { read(\.global) }

  func note(
    _ reading: ThresholdReading, globalVersion: Int64, accountVersion: Int64
  ) async throws(AdminFailure) -> Bool {
    let (failing, answer) = read { ($0.failing, $0.notes) }
    if let failing { throw failing }
    edit { $0.noted.append(reading) }
    return answer
  }
}

@Suite(.blocking) struct ThresholdWatchTests {
  static let yaml = """
    levels: [account, member]
    features:
      chat: {metered: true}
      tokens: {metered: true}
    plans:
      pro:
        chat:
          - {id: chat.month, quota: 100, per: month, thresholds: [50, 80]}
          - {id: chat.member, quota: 10, per: day, level: member, thresholds: [100]}
        tokens:
          - {id: tokens.month, quota: 100, per: month}
    """

  let fixture: AdminFixture
  let watch: ThresholdWatch<FakeBackend>

  init() throws {
    fixture = try AdminFixture()
    let catalog = try AdminFixture.catalog(Self.yaml)
    let acme = fixture.acme
    let account = AccountConfig(version: 1, plan: try Name("pro"))
    fixture.backend.edit { state in
      state.global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
      state.accounts[acme] = account
    }
    let backend = fixture.backend
    watch = ThresholdWatch(
      backend, clock: { backend.read(\.now) }, logger: Logger(label: "test"))
  }

  private func delta(_ subject: String, _ feature: String, kind: DeltaKind = .usage) throws
    -> OutboxEntry
  {
    let now = fixture.backend.read(\.now)
    let body = UsageBody(
      subject: try Subject(subject), feature: try Name(feature),
      period: Window.month.period(containing: now), cells: [], catalogVersion: 1, source: .redis,
      attributes: [:])
    return OutboxEntry(
      sequence: 1, kind: kind, id: DeltaID(operation: AdminFixture.id(1), index: 0), time: now,
      actual: 1, charged: 1, absorbed: 0, body: body.encode())
  }

  private var noted: [String] {
    fixture.backend.read { $0.noted.map { "\($0.subject) \($0.limit) \($0.reached)" } }
  }

  @Test func whatADeltaReachedIsNotedAtTheNextLook() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 80)
    await watch.look()
    #expect(noted.isEmpty)
    await watch.saw([try delta("acme", "chat")])
    await watch.look()
    #expect(noted == ["acme chat.month [50, 80]"])
  }

  @Test func limitsOfEveryLevelOfTheSubjectAreLookedAt() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 50)
    try fixture.use(try Subject("acme/ann"), "chat", .day, settled: 10)
    await watch.saw([try delta("acme/ann", "chat")])
    await watch.look()
    #expect(noted.sorted() == ["acme chat.month [50]", "acme/ann chat.member [100]"])
  }

  @Test func theScriptIsNotAskedAgainForWhatIsNoted() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 50)
    for _ in 0..<3 {
      await watch.saw([try delta("acme", "chat")])
      await watch.look()
    }
    #expect(noted.count == 1)
    try fixture.use(fixture.acme, "chat", .month, settled: 80)
    await watch.saw([try delta("acme", "chat")])
    await watch.look()
    #expect(noted == ["acme chat.month [50]", "acme chat.month [50, 80]"])
  }

  @Test func whatCouldNotBeNotedIsLookedAtAgain() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 50)
    fixture.backend.edit { $0.notes = false }
    await watch.saw([try delta("acme", "chat")])
    await watch.look()
    await watch.look()
    #expect(noted.count == 2)
    fixture.backend.edit { $0.failing = .unavailable("no redis") }
    await watch.look()
    fixture.backend.edit {
      $0.failing = nil
      $0.notes = true
    }
    await watch.look()
    await watch.look()
    #expect(noted.count == 3)
  }

  @Test func aFeatureWithoutThresholdsAndAnEventAreNoReasonToLook() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 80)
    await watch.saw([
      try delta("acme", "tokens"), try delta("acme", "chat", kind: .threshold),
      try delta("acme", "chat", kind: .config),
    ])
    await watch.look()
    #expect(noted.isEmpty)
  }

  @Test func aFreezeHidesNothing() async throws {
    try fixture.use(fixture.acme, "chat", .month, settled: 80)
    let acme = fixture.acme
    fixture.backend.edit { $0.accounts[acme]?.frozen = true }
    await watch.saw([try delta("acme", "chat")])
    await watch.look()
    #expect(noted.count == 1)
  }

  @Test func usesOfOneAccountAreBounded() async throws {
    let over = ThresholdWatch<FakeBackend>.usesMax + 20
    for index in 0..<over {
      try fixture.use(try Subject("acme/m\(index)"), "chat", .day, settled: 10)
      await watch.saw([try delta("acme/m\(index)", "chat")])
    }
    await watch.look()
    #expect(noted.count == ThresholdWatch<FakeBackend>.usesMax)
  }
}
