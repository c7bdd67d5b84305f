// Redis for everything that is not the request path: configuration, recovery, shipping,
// administration. One connection of its own, so that a long read never stands in front of a
// decision. Every call is one round trip and typed; a script Redis has forgotten is loaded and
// called again.

import Logging
import NIOCore
import TollgateCore
import TollgateRedis

enum StoreFailure: Error, CustomStringConvertible {
  /// Redis did not answer, or not in time. `mayHaveHappened` tells whether the call was written.
  case unavailable(String, mayHaveHappened: Bool)
  /// The fence refused the call; nothing was written.
  case fenced(FenceState)
  case refused(String)

  var description: String {
    switch self {
    case .unavailable(let text, _): text
    case .fenced: "the bucket is fenced"
    case .refused(let text): text
    }
  }
}

struct ColdStore: Sendable {
  let link: RedisLink
  let keys: KeySpace
  let deployment: Deployment
  let seen: SeenBoard

  static let timeout = TimeAmount.seconds(3)

  func start() { link.start() }
  func stop() async { await link.stop() }
  func identity() async -> ServerIdentity? { await link.currentIdentity() }
  func wallTime() -> WallTime { SystemClock.wallTime() }

  // MARK: - Calls

  func reply(_ write: @escaping @Sendable (inout ByteBuffer) -> Void) async throws(StoreFailure)
    -> RESPReply
  {
    let link = link
    let result: Result<RESPReply, RedisFailure> = await withCheckedContinuation { continuation in
      link.eventLoop.execute {
        link.send(deadline: .now() + Self.timeout, write) { continuation.resume(returning: $0) }
      }
    }
    switch result {
    case .success(let reply): return reply
    case .failure(let failure):
      throw .unavailable("redis: \(failure)", mayHaveHappened: !failure.isSafeToRetry)
    }
  }

  /// Many commands at once, one behind the other on the wire; the replies in their order.
  func replies(
    count: Int, _ write: @escaping @Sendable (Int, inout ByteBuffer) -> Void
  ) async -> [Result<RESPReply, StoreFailure>] {
    guard count > 0 else { return [] }
    let link = link
    return await withCheckedContinuation { continuation in
      link.eventLoop.execute {
        let gathered = Gathered(count: count) { continuation.resume(returning: $0) }
        for index in 0..<count {
          link.send(deadline: .now() + Self.timeout, { write(index, &$0) }) {
            gathered.set(index, $0)
          }
        }
      }
    }
  }

  /// On the link's event loop.
  private final class Gathered {
    private var replies: [Result<RESPReply, StoreFailure>]
    private var missing: Int
    private let done: ([Result<RESPReply, StoreFailure>]) -> Void

    init(count: Int, done: @escaping ([Result<RESPReply, StoreFailure>]) -> Void) {
      replies = Array(
        repeating: .failure(.unavailable("no reply", mayHaveHappened: true)), count: count)
      missing = count
      self.done = done
    }

    func set(_ index: Int, _ result: Result<RESPReply, RedisFailure>) {
      replies[index] = result.mapError {
        .unavailable("redis: \($0)", mayHaveHappened: !$0.isSafeToRetry)
      }
      missing -= 1
      if missing == 0 { done(replies) }
    }
  }

  func loadScript(_ name: ScriptName) async throws(StoreFailure) {
    let source = ScriptLibrary.shared.source(name)
    _ = try await reply { RESPWriter.write(["SCRIPT", "LOAD", .bytes(source)], to: &$0) }
  }

  func raw(_ call: some ScriptCall) async throws(StoreFailure) -> RESPReply {
    let first = try await reply { call.write(into: &$0) }
    guard first.errorCode == "NOSCRIPT" else { return first }
    try await loadScript(call.script)
    return try await reply { call.write(into: &$0) }
  }

  func read<Value>(_ command: ReadCommand<Value>) async throws(StoreFailure) -> Value {
    try value(command.decode(try await reply { command.write(into: &$0) }))
  }

  func value<Value>(_ reply: StoreReply<Value>) throws(StoreFailure) -> Value {
    switch reply {
    case .done(let value): return value
    case .fenced(let state): throw .fenced(state)
    case .error(let text): throw .refused(text)
    }
  }

  /// The fence of a call from here: who answers now, under the epoch the caller means, no earlier
  /// than what anybody in this sidecar has seen of it.
  func fence(bucket: Int, epoch: Int64) async throws(StoreFailure) -> Fence {
    guard let identity = await identity() else {
      throw .unavailable("redis is not connected", mayHaveHappened: false)
    }
    let seen = seen.seen(bucket: bucket, epoch: epoch)
    return Fence(
      deployment: deployment.id, epoch: epoch, runID: identity.runID,
      replicationID: identity.replicationID, seenSequence: seen.position.sequence,
      seenTime: seen.time)
  }

  // MARK: - Deployment

  /// Where there is no record one is written, or nothing differs.
  func deploymentDifferences(
    writing: Bool = true
  ) async throws(StoreFailure) -> [Deployment.Difference] {
    let call = DeploymentCall(keySpace: keys, deployment: deployment)
    if !writing {
      guard let recorded = try await read(Reads.deployment(keys)) else { return [] }
      return deployment.differences(from: recorded)
    }
    let recorded = try value(call.decode(try await raw(call)))
    return deployment.differences(from: recorded)
  }

  /// Why this Redis must not be used at all; nil where it may.
  func refusal() async -> String? {
    guard
      let reply = try? await reply({
        RESPWriter.write(["CONFIG", "GET", "maxmemory-policy"], to: &$0)
      })
    else { return nil }
    // A user without the right to read the setting cannot be told; `doctor` says so.
    guard let policy = reply.array?.last?.text, reply.array?.count == 2 else { return nil }
    guard policy == "noeviction" else {
      return "redis evicts keys (maxmemory-policy \(policy)); counters must never be evicted: "
        + "set maxmemory-policy noeviction"
    }
    return nil
  }

  // MARK: - Configuration

  func storedGlobal() async throws(StoreFailure) -> StoredConfig? {
    try await read(Reads.global(keys))
  }

  func global() async throws(StoreFailure) -> GlobalConfig? {
    guard let stored = try await storedGlobal() else { return nil }
    return try Self.globalConfig(stored.config)
  }

  static func globalConfig(_ json: String) throws(StoreFailure) -> GlobalConfig {
    guard let document = try? Document(json: json),
      let config = try? GlobalConfig(document: document)
    else { throw .refused("the global configuration in the store cannot be read") }
    return config
  }

  /// 0 where there is none.
  func globalVersion() async throws(StoreFailure) -> Int64 {
    let reply = try await reply { [key = keys.global] in
      RESPWriter.write(["HGET", .string(key), "version"], to: &$0)
    }
    if let error = reply.error { throw .refused(error) }
    return reply.text.flatMap { Int64($0) } ?? 0
  }

  /// `catalog`: a document to be put into the history beside it.
  func restoreGlobal(
    _ config: LedgerConfig, epoch: Int64, catalog: (number: Int64, json: String)? = nil
  ) async throws(StoreFailure) {
    let call = RestoreGlobalCall(
      keySpace: keys, fence: try await fence(bucket: keys.map.control, epoch: epoch),
      version: config.version, config: config.document, memory: config.memory, catalog: catalog)
    _ = try value(call.decode(try await raw(call)))
  }

  func header(account: Subject) async throws(StoreFailure) -> AccountHeader {
    try await read(Reads.header(keys, account: account))
  }

  // MARK: - Buckets

  func meta(bucket: Int) async throws(StoreFailure) -> BucketMeta? {
    try await read(Reads.meta(keys, bucket: bucket))
  }

  /// Opens an epoch. False where the bucket is at another one by now.
  func open(
    bucket: Int, epoch: Int64, globalVersion: Int64, hadPredecessor: Bool,
    records: OpenCall.Records, lateEpoch: Int64?
  ) async throws(StoreFailure) -> Bool {
    let call = OpenCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      globalVersion: globalVersion, hadPredecessor: hadPredecessor, records: records,
      lateEpoch: lateEpoch)
    switch try value(call.decode(try await raw(call))) {
    case .opened, .alreadyOpen: return true
    case .refused: return false
    }
  }

  func pushVersion(bucket: Int, epoch: Int64, version: Int64) async throws(StoreFailure) {
    let call = PushVersionCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      globalVersion: version)
    _ = try value(call.decode(try await raw(call)))
  }

  // MARK: - Reservations

  func holds(of account: Subject) async throws(StoreFailure) -> [StoredHold] {
    try await read(Reads.holds(keys, account: account))
  }

  func accountsDue(
    bucket: Int, now: WallTime, count: Int64
  ) async throws(StoreFailure) -> [Subject] {
    try await read(Reads.accountsDue(keys, bucket: bucket, now: now, count: count))
  }

  /// As scripts of the bucket see it.
  func now(bucket: Int) async throws(StoreFailure) -> WallTime {
    let reply = try await reply { RESPWriter.write(["TIME"], to: &$0) }
    guard let parts = reply.array, parts.count == 2, let seconds = parts[0].text,
      let micros = parts[1].text, let whole = Int64(seconds), let part = Int64(micros)
    else { throw .refused("unexpected reply to TIME") }
    let seen = try await meta(bucket: bucket)?.microseconds ?? 0
    return WallTime(milliseconds: max(whole * 1000 + part / 1000, seen / 1000))
  }

  /// How many ended; nil: the account is not seeded in this epoch.
  func expire(
    _ reservations: [OperationID], of subject: Subject, bucket: Int, epoch: Int64
  ) async throws(StoreFailure) -> Int64? {
    let call = ExpireCall(
      keySpace: keys, fence: try await fence(bucket: bucket, epoch: epoch), subject: subject,
      reservations: reservations)
    return try value(call.decode(try await raw(call)))
  }

  /// `bytes`: the hold; without a reservation: all that are known of are there.
  func represent(
    _ reservation: OperationID?, _ bytes: [UInt8] = [], of subject: Subject, bucket: Int,
    epoch: Int64
  ) async throws(StoreFailure) -> RepresentCall.Effect {
    let call = RepresentCall(
      keySpace: keys, fence: try await fence(bucket: bucket, epoch: epoch), subject: subject,
      reservation: reservation, bytes: bytes)
    return try value(call.decode(try await raw(call)))
  }

  /// Those that are held there all the same.
  func bury(
    _ ends: [HoldEnd], bucket: Int, epoch: Int64
  ) async throws(StoreFailure) -> [HoldEnd] {
    let call = BuryCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      ends: ends)
    return try value(call.decode(try await raw(call)))
  }

  func sweep(
    bucket: Int, epoch: Int64, limits: StoreLimits, after report: SweepCall.Report?
  ) async throws(StoreFailure) -> SweepCall.Report {
    let call = SweepCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      limits: limits,
      after: report)
    return try value(call.decode(try await raw(call)))
  }

  // MARK: - Outbox

  func outbox(
    bucket: Int, epoch: Int64, after: Int64, limit: Int
  ) async throws(StoreFailure) -> [OutboxEntry] {
    try await read(
      Reads.outbox(
        keys, bucket: bucket, after: StreamPosition(epoch: epoch, sequence: after), count: limit))
  }

  func lateOutbox(
    bucket: Int, epoch: Int64, limit: Int
  ) async throws(StoreFailure) -> LatePage {
    try await read(Reads.lateOutbox(keys, bucket: bucket, epoch: epoch, count: limit))
  }

  func moveLate(
    bucket: Int, epoch: Int64, from late: Int64, through: Int64, unknown: [Int64]
  ) async throws(StoreFailure) -> MoveLateCall.Moved {
    let call = MoveLateCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      epoch: late, through: through, unknown: unknown)
    return try value(call.decode(try await raw(call)))
  }

  func trim(
    bucket: Int, epoch: Int64, through: Int64, keeping tail: Int64
  ) async throws(StoreFailure) {
    let call = TrimCall(
      keySpace: keys, bucket: bucket, fence: try await fence(bucket: bucket, epoch: epoch),
      acknowledged: through,
      tail: tail)
    _ = try value(call.decode(try await raw(call)))
  }

  /// True where this owner ships the bucket now.
  func own(
    bucket: Int, owner: String, milliseconds: Int64
  ) async throws(StoreFailure) -> Bool {
    let call = OwnCall(
      keySpace: keys, bucket: bucket, owner: owner, timeToLiveMilliseconds: milliseconds)
    return try value(call.decode(try await raw(call))) == .mine
  }

  func reverse(
    _ entry: OutboxEntry, _ body: UsageBody, bucket: Int, epoch: Int64
  ) async throws(StoreFailure) -> ReverseCall.Effect {
    let call = ReverseCall(
      keySpace: keys, fence: try await fence(bucket: bucket, epoch: epoch),
      position: StreamPosition(epoch: epoch, sequence: entry.sequence), subject: body.subject,
      feature: body.feature, counts: body.counts(charged: entry.charged))
    return try value(call.decode(try await raw(call)))
  }

  /// Appends a delta born earlier to the outbox of this epoch and counts it.
  func repost(
    _ entry: OutboxEntry, _ body: UsageBody, epoch: Int64, global: GlobalConfig?
  ) async throws(StoreFailure) -> RepostCall.Outcome {
    let counts = body.counts(charged: entry.charged)
    var beginnings: [Int: RepostCall.Beginning] = [:]
    let isOfGrants = counts.contains {
      if case .grant = $0.window.tally { true } else { false }
    }
    if isOfGrants, let global {
      let header = try await header(account: body.subject.account)
      if let config = AccountConfig(stored: header.config ?? "") {
        let instances = GrantInstances(
          account: body.subject.account, config: config, global: global, now: wallTime())
        beginnings = instances.beginnings(counts, of: body.feature)
      }
    }
    let call = RepostCall(
      keySpace: keys, fence: try await fence(bucket: keys.bucket(of: body.subject), epoch: epoch),
      entry: entry, subject: body.subject, feature: body.feature, counts: counts,
      beginnings: beginnings)
    return try value(call.decode(try await raw(call)))
  }

  /// The same for a config delta; nil where it names nothing that could be.
  func repost(
    _ entry: OutboxEntry, _ delta: ConfigDelta, bucket: Int, epoch: Int64
  ) async throws(StoreFailure) -> RepostConfigCall.Outcome? {
    guard
      let call = RepostConfigCall(
        keySpace: keys, fence: try await fence(bucket: bucket, epoch: epoch), entry: entry,
        delta: delta)
    else { return nil }
    return try value(call.decode(try await raw(call)))
  }

  // MARK: - Accounts

  func snapshot(
    of account: Subject
  ) async throws(StoreFailure) -> ReadAccountCall.Snapshot {
    let call = ReadAccountCall(keySpace: keys, account: account)
    return try value(call.decode(try await raw(call)))
  }
}

extension AccountConfig {
  /// From the JSON that Redis and the ledger hold; nil where it cannot be read.
  init?(stored json: String) {
    if json.isEmpty {
      self.init()
      return
    }
    guard let document = try? Document(json: json),
      let config = try? AccountConfig(document: document)
    else { return nil }
    self = config
  }
}
