// An error forced at each call of each script, and a full memory: nothing may have changed.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

/// One way to run one script, with the state it needs.
struct Scenario: CustomTestStringConvertible, Sendable {
  let name: String
  let script: ScriptName
  let prepare: @Sendable (StoreRig) throws -> [[UInt8]]
  var testDescription: String { name }

  init(
    _ name: String, _ script: ScriptName,
    _ prepare: @escaping @Sendable (StoreRig) throws -> [[UInt8]]
  ) {
    self.name = name
    self.script = script
    self.prepare = prepare
  }

  static func command(_ rig: StoreRig, _ call: some ScriptCall) -> [[UInt8]] {
    StoreRig.command(call, rig.library)
  }

  static let all: [Scenario] = plain + rich + leases

  static let plain: [Scenario] = [
    Scenario("first consume of a member", .decide) {
      command($0, try $0.call("acme/ann", [("chat", 2), ("tokens", 5), ("spend", 1)]))
    },
    Scenario("later consume of a member", .decide) {
      _ = try $0.consume("acme/ann", ("chat", 1), ("tokens", 5))
      try $0.advance(90_000_000)
      return command($0, try $0.call("acme/ann", [("chat", 2), ("tokens", 5), ("spend", 1)]))
    },
    Scenario("consume of a member of an older epoch", .decide) {
      _ = try $0.consume("acme/ann", ("chat", 1))
      try $0.open(epoch: 2, hadPredecessor: true)
      try $0.seed()
      try $0.advance(60_000)
      return command($0, try $0.call("acme/ann", [("chat", 2), ("tokens", 5)]))
    },
    Scenario("consume that prunes the index", .decide) {
      _ = try $0.consume("acme/ann", ("chat", 1))
      try $0.setNow($0.now + 200_000_000)
      return command($0, try $0.call("acme/bob", [("chat", 1), ("free", 1)]))
    },
    Scenario("consume after delivery and trim", .decide) {
      _ = try $0.consume("acme", ("tokens", 1))
      _ = try $0.consume("acme", ("tokens", 1))
      _ = try $0.run(
        TrimCall(keySpace: $0.keySpace, bucket: 0, fence: $0.fence, acknowledged: 2, tail: 0))
      return command($0, try $0.call("acme", [("tokens", 5), ("free", 1), ("spend", 1)]))
    },
    Scenario("several operations at once", .decide) { rig in
      _ = try rig.consume("acme/ann", ("chat", 1))
      _ = try rig.consume("acme", ("tokens", 1))
      let denied = try rig.call("acme/ann", [("chat", 50), ("tokens", 1)])
      _ = try rig.run(denied)
      try rig.advance(90_000_000)
      let calls = try [
        rig.call("acme/ann", [("chat", 2), ("tokens", 5), ("spend", 1)]),
        rig.call("acme/bob", [("chat", 1), ("free", 2)]),
        rig.call("acme/ann", [("chat", 1)]),
        rig.call("acme/ann", [("chat", 500)]),
        rig.call("acme", [("spend", 3), ("ping", 1)]),
        rig.call("acme", [("chat", 50), ("tokens", 1)], id: denied.operation, mode: .post),
      ]
      return command(
        rig,
        DecideBatch(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits,
          script: .decide, operations: calls.map(\.asked)))
    },
    Scenario("denial", .decide) { command($0, try $0.call("acme", [("tokens", 5000)])) },
    Scenario("post over a denial", .decide) {
      let denied = try $0.call("acme/ann", [("chat", 50), ("tokens", 1)])
      _ = try $0.run(denied)
      return command(
        $0,
        try $0.call(
          "acme/ann", [("chat", 50), ("tokens", 1)], id: denied.operation, mode: .post))
    },
    Scenario("check", .check) {
      command($0, try $0.call("acme/ann", [("chat", 2)], mode: .check))
    },
    Scenario("cancel of an allowed operation", .cancel) {
      let call = try $0.call("acme/ann", [("chat", 2), ("tokens", 5)])
      _ = try $0.run(call)
      return command($0, $0.cancelCall(call))
    },
    Scenario("cancel of an operation that never came", .cancel) {
      command($0, $0.cancelCall(try $0.call("acme/ann", [("chat", 2)])))
    },
    Scenario("look of a refund", .correct) {
      let call = try $0.call("acme/ann", [("chat", 2)])
      _ = try $0.run(call)
      return command($0, try ScriptsCorrectTests.Refund($0, of: call).call)
    },
    Scenario("refund of an operation", .correct) {
      let call = try $0.call("acme/ann", [("chat", 2), ("tokens", 5)])
      _ = try $0.run(call)
      let refund = try ScriptsCorrectTests.Refund($0, of: call)
      return command($0, try refund.planned(try refund.look($0)))
    },
    Scenario("later refund of an operation, which prunes marks", .correct) {
      let call = try $0.call("acme/ann", [("chat", 2), ("tokens", 5)])
      _ = try $0.run(call)
      _ = try ScriptsCorrectTests.Refund($0, of: call, [("chat", 1)]).run($0)
      try $0.advance(700_000)
      let other = try $0.call("acme", [("tokens", 5)])
      _ = try $0.run(other)
      _ = try ScriptsCorrectTests.Refund($0, of: other, [("tokens", 1)]).run($0)
      try $0.advance(500)
      _ = try $0.run(call)
      let refund = try ScriptsCorrectTests.Refund($0, of: other, [("tokens", 1)])
      return command($0, try refund.planned(try refund.look($0)))
    },
    Scenario("adjustment", .correct) {
      _ = try $0.consume("acme", ("tokens", 100))
      return command($0, try ScriptsCorrectTests.adjust($0, -30))
    },
    Scenario("first adjustment of a period", .correct) {
      command($0, try ScriptsCorrectTests.adjust($0, 30))
    },
    Scenario("reverse", .reverse) {
      let call = try $0.call("acme/ann", [("chat", 2)])
      let decided = try #require(try $0.run(call).decided)
      return command(
        $0,
        ReverseCall(
          keySpace: $0.keySpace, fence: $0.fence,
          position: StreamPosition(epoch: 1, sequence: decided.entries[0].sequence),
          subject: call.subject, feature: try Name("chat"),
          cells: call.plan.resolution.cells.map {
            CellReference(level: $0.level, window: $0.window, period: $0.period)
          }, amount: 2))
    },
    Scenario("repost of a member's delta", .repost) {
      command($0, try ScriptsRepostTests.late($0, "acme/ann", "chat", 2).call)
    },
    Scenario("repost that rolls a member's cells forward", .repost) {
      _ = try $0.consume("acme/ann", ("chat", 1))
      try $0.advance(90_000_000)
      return command($0, try ScriptsRepostTests.late($0, "acme/ann", "chat", 2).call)
    },
    Scenario("repost over a member of an older epoch", .repost) {
      let late = try ScriptsRepostTests.late($0, "acme/ann", "chat", 2)
      _ = try $0.consume("acme/ann", ("chat", 1))
      try $0.open(epoch: 2, hadPredecessor: true)
      try $0.seed()
      try $0.advance(5)
      return command($0, late.call(under: $0.fence))
    },
    Scenario("repost of an account's configuration", .repostConfig) {
      command($0, try ScriptsRepostTests.lateConfig($0, .account, version: 7))
    },
    Scenario("repost of the global configuration", .repostConfig) {
      try openControl($0)
      return command($0, try ScriptsRepostTests.lateConfig($0, .global, version: 7))
    },
    Scenario("repost of a member's reset", .repostConfig) {
      _ = try $0.consume("acme/ann", ("chat", 3))
      return command(
        $0, try ScriptsRepostTests.lateConfig($0, .counter, version: 0, subject: "acme/ann"))
    },
    Scenario("seed of deeper subjects", .seed) { command($0, try seeding($0)[0]) },
    Scenario("seed of an older epoch's subjects", .seed) {
      _ = try $0.consume("acme/ann", ("chat", 1))
      try $0.open(epoch: 2, hadPredecessor: true)
      return command($0, try seeding($0)[0])
    },
    Scenario("seed again", .seed) {
      try $0.open(epoch: 2, hadPredecessor: true)
      _ = try $0.run(try seeding($0)[0])
      return command($0, try seeding($0)[0])
    },
    Scenario("seed of the account level", .seed) {
      _ = try $0.consume("acme/ann", ("chat", 1))
      try $0.open(epoch: 2, hadPredecessor: true)
      return command($0, try #require(try seeding($0).last))
    },
    Scenario("first open", .open) { rig in
      try rig.redis.command("FLUSHALL")
      try rig.setNow(rig.now)
      return command(
        rig,
        OpenCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: 3,
          hadPredecessor: false, records: .init(known: nil, found: nil, milliseconds: 0)))
    },
    Scenario("open after a loss", .open) { rig in
      _ = try rig.consume("acme", ("tokens", 1))
      rig.fence.epoch = 2
      return command(
        rig,
        OpenCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: 3,
          hadPredecessor: true, records: .init(known: nil, found: nil, milliseconds: 0)))
    },
    Scenario("later open", .open) { rig in
      _ = try rig.consume("acme", ("tokens", 1))
      rig.fence.epoch = 2
      return command(
        rig,
        OpenCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: 3,
          hadPredecessor: true,
          records: .init(
            known: StreamPosition(epoch: 1, sequence: 1), found: nil, milliseconds: 0)))
    },
    Scenario("open that sets an outbox aside", .open) { rig in
      _ = try rig.consume("acme", ("tokens", 1))
      try rig.open(epoch: 2, hadPredecessor: true)
      _ = try rig.run(ScriptsLateTests.move(rig, through: 1, unknown: [1]))
      rig.fence.epoch = 3
      return command(
        rig,
        OpenCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, globalVersion: 3,
          hadPredecessor: true, records: .init(known: nil, found: nil, milliseconds: 0),
          lateEpoch: 2))
    },
    Scenario("move of part of an outbox that was set aside", .moveLate) { rig in
      for _ in 0..<3 { _ = try rig.consume("acme", ("tokens", 1)) }
      try rig.open(epoch: 2, hadPredecessor: true)
      return command(rig, ScriptsLateTests.move(rig, through: 2, unknown: [1, 2]))
    },
    Scenario("move of the rest of one, behind others", .moveLate) { rig in
      for _ in 0..<3 { _ = try rig.consume("acme", ("tokens", 1)) }
      try rig.open(epoch: 2, hadPredecessor: true)
      _ = try rig.run(ScriptsLateTests.move(rig, through: 1, unknown: [1]))
      return command(rig, ScriptsLateTests.move(rig, through: 3, unknown: [2, 3]))
    },
    Scenario("trim", .trim) { rig in
      for _ in 0..<5 { _ = try rig.consume("acme", ("tokens", 1)) }
      for sequence: Int64 in [2, 3, 5] {
        let reverse = ReverseCall(
          keySpace: rig.keySpace, fence: rig.fence,
          position: StreamPosition(epoch: 1, sequence: sequence), subject: try Subject("acme"),
          feature: try Name("tokens"), cells: [], amount: 1)
        #expect(try rig.run(reverse) == .done(.reversed))
      }
      return command(
        rig,
        TrimCall(keySpace: rig.keySpace, bucket: 0, fence: rig.fence, acknowledged: 4, tail: 1))
    },
    Scenario("own", .own) {
      command(
        $0,
        OwnCall(keySpace: $0.keySpace, bucket: 0, owner: "me", timeToLiveMilliseconds: 9_000_000))
    },
    Scenario("give up ownership", .own) {
      _ = try $0.run(
        OwnCall(keySpace: $0.keySpace, bucket: 0, owner: "me", timeToLiveMilliseconds: 9_000_000))
      return command(
        $0, OwnCall(keySpace: $0.keySpace, bucket: 0, owner: "me", timeToLiveMilliseconds: 0))
    },
    Scenario("sweep", .sweep) { rig in
      _ = try rig.consume("acme", ("tokens", 1))
      _ = try rig.consume("acme", ("spend", 1))
      try rig.advance(10_000_000)
      let list = SweepCall(
        keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: nil)
      let report = try #require(try rig.run(list).value)
      return command(
        rig,
        SweepCall(
          keySpace: rig.keySpace, bucket: 0, fence: rig.fence, limits: rig.limits, after: report))
    },
    Scenario("deployment", .deployment) {
      command(
        $0,
        DeploymentCall(
          keySpace: $0.keySpace,
          deployment: Deployment(id: $0.keySpace.deployment, buckets: 1, mode: .dev)))
    },
    Scenario("first account configuration", .configAccount) { rig in
      try accountChange(rig, "new", expected: 0)
    },
    Scenario("later account configuration", .configAccount) { rig in
      try accountChange(rig, "acme", expected: 1)
    },
    Scenario("global configuration", .configGlobal) { rig in
      try openControl(rig)
      _ = try rig.run(globalChange(rig, version: 1))
      return command(rig, globalChange(rig, version: 65))
    },
    Scenario("restore of the global configuration", .restoreGlobal) { rig in
      try openControl(rig)
      return command(
        rig,
        RestoreGlobalCall(
          keySpace: rig.keySpace, fence: rig.fence, version: 9, config: "{}", memory: memory(rig)))
    },
    Scenario("push of a version", .pushVersion) {
      command(
        $0, PushVersionCall(keySpace: $0.keySpace, bucket: 0, fence: $0.fence, globalVersion: 8))
    },
    Scenario("reset of an account's cell", .counterReset) {
      _ = try $0.consume("acme", ("tokens", 7))
      return command($0, try reset($0, "acme", "tokens", .month))
    },
    Scenario("reset of a member's cell", .counterReset) {
      _ = try $0.consume("acme/ann", ("chat", 3))
      return command($0, try reset($0, "acme/ann", "chat", .day))
    },
    Scenario("reset of a rate", .counterReset) {
      _ = try $0.consume("acme/ann", ("chat", 3))
      return command($0, try reset($0, "acme/ann", rate: "chat.rate"))
    },
    Scenario("reset without a ledger", .counterReset) { rig in
      var call = try reset(rig, "acme", "tokens", .month)
      call.outboxEntriesMax = 0
      return command(rig, call)
    },
    Scenario("account configuration past what is remembered", .configAccount) { rig in
      for version in Int64(1)...40 {
        _ = try rig.redis.pipeline([try accountChange(rig, "acme", expected: version)])
      }
      return try accountChange(rig, "acme", expected: 41)
    },
    Scenario("reset of a member never seen", .counterReset) {
      command($0, try reset($0, "acme/eve", "chat", .hour))
    },
    Scenario("seed of subjects that keeps", .seed) { command($0, try keeping($0)[0]) },
    Scenario("seed of an account that keeps", .seed) { command($0, try keeping($0)[1]) },
    Scenario("thresholds of an account", .threshold) {
      _ = try $0.consume("acme", ("tokens", 1000))
      return command($0, try $0.thresholds())
    },
    Scenario("thresholds of a member that stood lower", .threshold) {
      func call(_ rig: StoreRig) throws -> ThresholdCall {
        try rig.thresholds(
          "acme/ann", "chat", "chat.member", window: .hour, amount: 6, reached: [50, 80, 100])
      }
      _ = try $0.consume("acme/ann", ("chat", 3))
      _ = try $0.run(call($0))
      _ = try $0.consume("acme/ann", ("chat", 3))
      return command($0, try call($0))
    },
    Scenario("read of an account", .readAccount) {
      command($0, ReadAccountCall(keySpace: $0.keySpace, account: try Subject("acme")))
    },
  ]

  /// What an older epoch left is kept: hashes with cells of the ledger, and one without.
  static func keeping(_ rig: StoreRig) throws -> [SeedCall] {
    _ = try rig.consume("acme/ann", ("chat", 1))
    _ = try rig.consume("acme/eve", ("chat", 1), ("tokens", 2))
    try rig.open(epoch: 2, hadPredecessor: true)
    var calls = try seeding(rig)
    for index in calls.indices { calls[index].isLossy = true }
    calls[0].others = [try Subject("acme/eve")]
    return calls
  }

  static func seeding(_ rig: StoreRig) throws -> [SeedCall] {
    func cell(_ subject: String, _ window: Window) throws -> SeedCell {
      SeedCell(
        subject: try Subject(subject), feature: try Name("chat"), window: window,
        period: window.period(containing: rig.now), settled: 4)
    }
    return SeedCall.chunks(
      keySpace: rig.keySpace, fence: rig.fence, account: try Subject("acme"),
      cells: [
        try cell("acme", .day), try cell("acme/ann", .hour), try cell("acme/ann", .day),
        try cell("acme/bob", .hour),
      ], accountVersion: 5, accountConfig: "{\"plan\":1}", memory: memory(rig))
  }

  static func memory(_ rig: StoreRig) -> ChangeMemory {
    ChangeMemory(
      entries: (0..<40).map { number in
        .init(
          operation: rig.newID(), fingerprint: 7, result: Int64(number),
          time: rig.now + -Int64(number))
      })
  }

  static func accountChange(
    _ rig: StoreRig, _ account: String, expected: Int64
  ) throws -> [[UInt8]] {
    command(
      rig,
      ConfigAccountCall(
        keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
        account: try Subject(account), expectedVersion: expected, newVersion: expected + 1,
        config: "{}", body: [1, 2, 3], outboxEntriesMax: 1000))
  }

  static func openControl(_ rig: StoreRig) throws {
    _ = try rig.run(
      OpenCall(
        keySpace: rig.keySpace, bucket: 1, fence: rig.fence, globalVersion: 0,
        hadPredecessor: false, records: .init(known: nil, found: nil, milliseconds: 0)))
  }

  static func globalChange(_ rig: StoreRig, version: Int64) -> ConfigGlobalCall {
    ConfigGlobalCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      expectedVersion: version == 1 ? 0 : 1, newVersion: version, config: "{}",
      catalog: (version: version, document: "{}"), body: [1], outboxEntriesMax: 1000)
  }

  static func reset(
    _ rig: StoreRig, _ subject: String, _ feature: String, _ window: Window
  ) throws -> ResetCall {
    ResetCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      subject: try Subject(subject), feature: try Name(feature),
      target: .cell(window, window.period(containing: rig.now), value: 0),
      body: Array(ResetCall.before.utf8), outboxEntriesMax: 1000)
  }

  static func reset(_ rig: StoreRig, _ subject: String, rate: String) throws -> ResetCall {
    ResetCall(
      keySpace: rig.keySpace, fence: rig.fence, change: rig.newChange(),
      subject: try Subject(subject), feature: try Name("chat"),
      target: .rate(limit: try Name(rate)), body: Array(ResetCall.before.utf8),
      outboxEntriesMax: 1000)
  }
}

@Suite(.blocking) struct ScriptsFaultTests {
  static let binding = "local call, try = redis.call, redis.pcall"

  /// The script with its n-th command failing instead of running.
  static func failing(_ source: String, at n: Int) -> String {
    source.replacing(
      binding,
      with: """
        local count = 0
        local call = function(...)
        count = count + 1
        if count == \(n) then error({err = 'FORCED'}) end
        return redis.call(...)
        end
        local try = function(...)
        count = count + 1
        if count == \(n) then return {err = 'FORCED'} end
        return redis.pcall(...)
        end
        """)
  }

  @Test func everyScriptHasAScenario() {
    #expect(Set(Scenario.all.map(\.script)) == Set(ScriptName.allCases))
  }

  @Test(arguments: Scenario.all)
  func anErrorForcedAtEachCallFindsNothingChanged(_ scenario: Scenario) throws {
    let rig = try StoreRig.ready()
    let command = try scenario.prepare(rig)
    let source = String(decoding: rig.library.source(scenario.script), as: UTF8.self)
    #expect(source.contains(Self.binding))
    let before = try rig.dump()
    var forced = 0
    for n in 1..<200 {
      var words = command
      words[0] = Array("EVAL".utf8)
      words[1] = Array(Self.failing(source, at: n).utf8)
      let reply = try rig.redis.pipeline([words])[0]
      guard case .error(let text) = reply else {
        // The n-th call was never reached: every call has failed once.
        #expect(forced > 0)
        return
      }
      #expect(text.contains("FORCED"), "call \(n): \(text)")
      let after = try rig.dump()
      for key in Set(before.keys).union(after.keys) where before[key] != after[key] {
        Issue.record("call \(n) changed \(key): \(before[key] ?? []) → \(after[key] ?? [])")
        return
      }
      forced += 1
    }
    Issue.record("the script never ended")
  }

  @Test func pitfall13_aFullMemoryFindsNothingChangedAndTheIdUnclaimed() throws {
    let rig = try StoreRig.ready()
    _ = try rig.consume("acme/ann", ("chat", 1))
    let call = try rig.call("acme/ann", [("chat", 1), ("tokens", 3)])
    let before = try rig.dump()
    try rig.redis.command("CONFIG", "SET", "maxmemory", "1mb")
    guard case .error(let text) = try rig.run(call) else {
      Issue.record("a full Redis admitted")
      return
    }
    #expect(text.hasPrefix("OOM"))
    #expect(try rig.dump() == before)
    #expect(try rig.consume("acme/ann", ("chat", 1), mode: .check).reason == .allowed)
    try rig.redis.command("CONFIG", "SET", "maxmemory", "0")
    #expect(try rig.run(call).reason == .allowed)
  }

  @Test func takingBackWorksWhenMemoryIsFull() throws {
    let rig = try StoreRig.ready()
    let call = try rig.call("acme/ann", [("chat", 1)])
    _ = try rig.run(call)
    try rig.redis.command("CONFIG", "SET", "maxmemory", "1mb")
    #expect(try rig.cancel(call).reason == .cancelled)
    #expect(try rig.settled("acme/ann", "chat", .hour) == 0)
  }
}
