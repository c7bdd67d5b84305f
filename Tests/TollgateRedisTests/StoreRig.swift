// A real Redis with the scripts loaded, and the few words in which a store test speaks: open a
// bucket, seed an account, consume. Time is a key (`test:now`, microseconds) where the rig is made
// with a test clock; the production text differs from that in nothing else.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateRedis

final class StoreRig {
  let server: RedisServerProcess
  let redis: MiniRedis
  let keySpace: KeySpace
  let library: ScriptLibrary
  var fence: Fence
  var global: GlobalConfig
  var account = AccountConfig(version: 1)
  var random: SeededRandom
  var limits = StoreLimits()
  /// Milliseconds; only with a test clock.
  private(set) var now: WallTime

  /// 2065: far from the real clock, by which Redis expires keys.
  static let start = WallTime(milliseconds: 3_000_000_000_000)
  static let clockText = "local t = call('TIME')\nreturn t[1] * 1000000 + t[2]"
  static func testClock(_ text: String) -> String {
    text.replacing(clockText, with: "return tonumber(call('GET', 'test:now'))")
  }

  init(
    catalog: Catalog = .example, seed: UInt64 = 1, options: RedisServerProcess.Options = .init(),
    transform: (ScriptName, String) -> String = { testClock($1) }
  ) throws {
    server = try RedisServerProcess(options)
    redis = try server.connect()
    keySpace = KeySpace(deployment: try Name("test"), map: BucketMap(buckets: 1))
    library = ScriptLibrary(transform: transform)
    random = SeededRandom(seed: seed)
    now = Self.start
    global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
    fence = Fence(
      deployment: try Name("test"), epoch: 1, runID: "run", replicationID: "repl",
      seenSequence: 0)
    account.plan = try Name("pro")
    try setNow(Self.start)
    try load()
  }

  func load() throws {
    for script in library.scripts {
      let reply = try redis.pipeline([
        [Array("SCRIPT".utf8), Array("LOAD".utf8), script.source]
      ])[0]
      #expect(reply.string == script.sha, "\(script.name)")
    }
  }

  func setNow(_ time: WallTime, microseconds: Int64 = 0) throws {
    now = time
    try redis.command("SET", "test:now", "\(time.milliseconds * 1000 + microseconds)")
  }

  /// Resolves at this instant; for rigs on Redis's own clock.
  func useTime(_ time: WallTime) { now = time }

  func advance(_ milliseconds: Int64) throws { try setNow(now + milliseconds) }

  /// The bucket open at epoch 1 and the account `acme` seeded with nothing.
  static func ready(
    catalog: Catalog = .example, options: RedisServerProcess.Options = .init(),
    transform: (ScriptName, String) -> String = { testClock($1) }
  ) throws -> StoreRig {
    let rig = try StoreRig(catalog: catalog, options: options, transform: transform)
    try rig.open()
    try rig.seed()
    return rig
  }

  static func command(_ call: some ScriptCall, _ library: ScriptLibrary) -> [[UInt8]] {
    var words = ["EVALSHA", library.sha(call.script), "\(call.keys.count)"].map { Array($0.utf8) }
    words += call.keys.map { Array($0.utf8) }
    words += call.arguments.map { argument in
      switch argument {
      case .string(let text): Array(text.utf8)
      case .bytes(let bytes): bytes
      case .integer(let value): Array("\(value)".utf8)
      }
    }
    return words
  }

  func run<Call: ScriptCall>(_ call: Call) throws -> Call.Reply {
    call.decode(RESPReply(try redis.pipeline([Self.command(call, library)])[0]))
  }

  func read<Value>(_ command: ReadCommand<Value>) throws -> Value {
    let words = command.words.map { argument -> [UInt8] in
      switch argument {
      case .string(let text): Array(text.utf8)
      case .bytes(let bytes): bytes
      case .integer(let value): Array("\(value)".utf8)
      }
    }
    let reply = command.decode(RESPReply(try redis.pipeline([words])[0]))
    return try #require(reply.value)
  }

  @discardableResult
  func open(
    epoch: Int64 = 1, hadPredecessor: Bool = false, records: OpenCall.Records? = nil,
    hasLedger: Bool = true
  ) throws -> OpenCall.Outcome {
    let meta = try read(Reads.meta(keySpace, bucket: 0))
    let whole = OpenCall.Records(known: meta?.position, found: meta?.fence, milliseconds: 0)
    fence.epoch = epoch
    fence.seenSequence = 0
    let reply = try run(
      OpenCall(
        keySpace: keySpace, bucket: 0, fence: fence, globalVersion: global.version,
        hadPredecessor: hadPredecessor, records: records ?? whole,
        lateEpoch: hasLedger ? meta?.position.epoch ?? 0 : nil))
    return try #require(reply.value)
  }

  func seed(_ account: String = "acme", cells: [SeedCell] = []) throws {
    for call in SeedCall.chunks(
      keySpace: keySpace, fence: fence, account: try Subject(account), cells: cells,
      accountVersion: self.account.version, accountConfig: "{}")
    {
      _ = try #require(try run(call).value)
    }
  }

  func newChange(_ fingerprint: UInt64 = 7) -> ChangeKey {
    ChangeKey(operation: newID(), fingerprint: fingerprint)
  }

  func newID() -> OperationID { OperationID(time: now, using: &random) }

  func resolve(_ subject: Subject, _ items: [Item]) -> Resolution {
    Resolution.resolve(
      subject: subject, items: items, global: global, account: account, now: now, zones: .utcOnly)
  }

  func call(
    _ subject: String, _ items: [(String, Int64)], id: OperationID? = nil,
    mode: DecideCall.Mode = .consume, notAfter: WallTime? = nil
  ) throws -> DecideCall {
    let subject = try Subject(subject)
    let items = try items.map { Item(feature: try Name($0.0), amount: $0.1) }
    let plan = DecidePlan(items: items, resolution: resolve(subject, items))
    return DecideCall(
      keySpace: keySpace, fence: fence, operation: id ?? newID(),
      fingerprint: OperationFingerprint(subject: subject, items: items), mode: mode,
      subject: subject, plan: plan,
      bodies: mode == .check ? [] : plan.meteredItems.map { Array("body\($0)".utf8) },
      globalVersion: global.version, accountVersion: account.version, limits: limits,
      notAfter: notAfter)
  }

  func consume(
    _ subject: String, _ items: (String, Int64)..., id: OperationID? = nil,
    mode: DecideCall.Mode = .consume, notAfter: WallTime? = nil
  ) throws -> DecideReply {
    try run(call(subject, items, id: id, mode: mode, notAfter: notAfter))
  }

  /// The cancel of an operation, as a caller with this call's plan would make it.
  func cancelCall(_ call: DecideCall, bodies: Bool = true) -> CancelCall {
    var cancel = CancelCall(
      keySpace: keySpace, fence: fence, operation: call.operation,
      fingerprint: call.asked.fingerprint, subject: call.subject, items: call.plan.items,
      recordClass: call.plan.recordClass, limits: limits)
    if bodies { cancel.bodies = call.plan.meteredItems.map { ($0, Array("body\($0)".utf8)) } }
    return cancel
  }

  /// Both rounds of it.
  func cancel(_ call: DecideCall) throws -> DecideReply {
    var cancel = cancelCall(call, bodies: false)
    var reply = try run(cancel)
    if case .bodiesWanted(let items) = reply {
      cancel.bodies = items.map { ($0.item, Array("body\($0.item)".utf8)) }
      reply = try run(cancel)
    }
    guard case .answered(let answer) = reply else { return .error("bodies wanted twice") }
    return answer
  }

  func counters(_ subject: String) throws -> SubjectCounters {
    try read(Reads.counters(keySpace, subject: try Subject(subject)))
  }

  func settled(_ subject: String, _ feature: String, _ window: Window) throws -> Int64 {
    try counters(subject).cell(feature: try Name(feature), window: window)?.settled ?? 0
  }

  func outbox(epoch: Int64 = 1) throws -> [OutboxEntry] {
    try read(
      Reads.outbox(
        keySpace, bucket: 0, after: StreamPosition(epoch: epoch, sequence: 0), count: 100_000))
  }

  /// Every key with its whole value and expiry; streams with their ids and counters.
  func dump() throws -> [String: [String]] {
    var result: [String: [String]] = [:]
    for key in try redis.command("KEYS", "*").strings where key != "test:now" {
      let type = try redis.command("TYPE", key).string ?? ""
      var value: [String] = [type, try redis.command("PEXPIRETIME", key).string ?? ""]
      switch type {
      case "hash":
        let flat = try redis.command("HGETALL", key).elements.map { "\($0.bytes ?? [])" }
        value += stride(from: 0, to: flat.count, by: 2).map { flat[$0] + "=" + flat[$0 + 1] }
          .sorted()
      case "stream":
        value.append("\(try redis.command("XRANGE", key, "-", "+"))")
        let info = try redis.command("XINFO", "STREAM", key).dictionary
        // Not max-deleted-entry-id: Redis cannot set it back to none, and only XINFO shows it.
        for name in ["length", "last-generated-id", "entries-added"] {
          value.append("\(name)=\(info[name] ?? "")")
        }
      case "zset":
        value.append("\(try redis.command("ZRANGE", key, "0", "-1", "WITHSCORES"))")
      default: value.append("\(try redis.command("GET", key))")
      }
      result[key] = value
    }
    return result
  }
}

extension RESPReply {
  init(_ reply: MiniReply) {
    switch reply {
    case .simple(let text): self = .status(text)
    case .error(let text): self = .error(text)
    case .integer(let value): self = .integer(value)
    case .bulk(let bytes): self = .string(bytes)
    case .null: self = .null
    case .array(let elements): self = .array(elements.map(RESPReply.init))
    }
  }
}

extension DecideReply {
  var decided: DecidedOperation? { if case .decided(let value) = self { value } else { nil } }
  var replayed: DecidedOperation? { if case .replayed(let value) = self { value } else { nil } }
  var reason: Reason? { decided?.decision.reason }
}

extension Catalog {
  static func limit(
    _ id: String, _ kind: LimitKind, level: Int = 1, _ enforcement: Enforcement = .hard
  ) -> Limit {
    Limit(
      id: name(id), kind: kind, level: level, enforcement: enforcement, failurePolicy: .closed)
  }

  /// For literals in tests.
  static func name(_ text: String) -> Name {
    do { return try Name(text) } catch { preconditionFailure("\(error)") }
  }

  /// chat: two quotas and a rate, metered · tokens: per member, metered · spend: money · ping: a
  /// rate only, unmetered · beta: a closed gate · trial: shadow · gentle: soft · free: counted.
  static var example: Catalog {
    func feature(
      _ text: String, metered: Bool = true, _ importance: Feature.Importance = .volume
    ) -> Feature {
      Feature(name: name(text), metered: metered, importance: importance, unit: "unit")
    }
    let features = [
      feature("chat"), feature("tokens"), feature("spend", .money), feature("ping", metered: false),
      feature("beta", metered: false), feature("trial"), feature("gentle"), feature("free"),
    ]
    let pro: [Name: [Limit]] = [
      name("chat"): [
        limit("chat.day", .quota(amount: 10, window: .day)),
        limit("chat.member", .quota(amount: 6, window: .hour), level: 2),
        limit("chat.rate", .rate(amount: 60, periodMilliseconds: 60_000, burst: 8), level: 2),
      ],
      name("tokens"): [limit("tokens.month", .quota(amount: 1000, window: .month))],
      name("spend"): [limit("spend.cap", .quota(amount: 500, window: .month))],
      name("ping"): [limit("ping.rate", .rate(amount: 2, periodMilliseconds: 1000, burst: 2))],
      name("beta"): [limit("beta.gate", .gate(enabled: false))],
      name("trial"): [limit("trial.day", .quota(amount: 2, window: .day), .shadow)],
      name("gentle"): [limit("gentle.day", .quota(amount: 2, window: .day), .soft)],
      name("free"): [],
    ]
    return Catalog(
      levels: [name("account"), name("member")], unknownAccount: .deny,
      features: Dictionary(uniqueKeysWithValues: features.map { ($0.name, $0) }),
      plans: [name("pro"): Plan(name: name("pro"), entitlements: pro)])
  }
}
