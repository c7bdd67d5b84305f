// Changes of configuration: each is one compare-and-set on the old version, together with its
// config delta in the same outbox and an entry in the bounded audit stream. A retry under the same
// operation id is recognised, so an edit of unknown outcome may be sent again.

package import TollgateCore

package struct ConfigOutcome: Hashable, Sendable {
  /// Where the config delta lies: `durable: ledger` waits until the ledger's cursor reaches it.
  package var position: StreamPosition
  package var time: WallTime
}

package enum ConfigReply: Hashable, Sendable {
  case done(ConfigOutcome)
  /// This operation was applied before.
  case alreadyDone
  /// The version that stands differs from the expected one.
  case conflict(version: Int64)
  case fenced(FenceState)
  case error(String)

  fileprivate init(_ reply: RESPReply) {
    switch reply.code {
    case .done?:
      guard let epoch = reply[1].number, let sequence = reply[2].number, let time = reply[3].number
      else {
        self = .error(reply.problem)
        return
      }
      self = .done(
        ConfigOutcome(
          position: StreamPosition(epoch: epoch, sequence: sequence),
          time: WallTime(milliseconds: time)))
    case .replayed?: self = .alreadyDone
    case .conflict?: self = .conflict(version: reply[1].number ?? 0)
    case .fenced?: self = .fenced(reply.fenceState)
    default: self = .error(reply.problem)
    }
  }
}

package struct ConfigAccountCall: ScriptCall {
  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  package var account: Subject
  /// 0: no header, or one that nobody ever set.
  package var expectedVersion: Int64
  package var newVersion: Int64
  package var config: String
  /// The encoded `ConfigDelta`.
  package var body: [UInt8]

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, account: Subject,
    expectedVersion: Int64, newVersion: Int64, config: String, body: [UInt8]
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: account)
    self.fence = fence
    self.operation = operation
    self.account = account
    self.expectedVersion = expectedVersion
    self.newVersion = newVersion
    self.config = config
    self.body = body
  }

  package var script: ScriptName { .configAccount }
  package var keys: [String] {
    [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.subject(bucket, account),
      keySpace.audit(bucket),
    ]
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .integer(fence.epoch), .bytes(operation.bytes), .integer(expectedVersion),
      .integer(newVersion), .string(config), .bytes(body),
    ]
  }
  package func decode(_ reply: RESPReply) -> ConfigReply { ConfigReply(reply) }
}

/// On the control bucket. The other buckets learn the new version by `PushVersionCall`.
package struct ConfigGlobalCall: ScriptCall {
  /// Old catalogs kept for `rollback` and `show`.
  package static let catalogsKept: Int64 = 64

  package var keySpace: KeySpace
  package var fence: Fence
  package var operation: OperationID
  package var expectedVersion: Int64
  package var newVersion: Int64
  package var config: String
  /// The catalog document to keep under this number; nil where the change made none.
  package var catalog: (version: Int64, document: String)?
  package var body: [UInt8]
  package var bucket: Int { keySpace.map.control }

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, expectedVersion: Int64,
    newVersion: Int64, config: String, catalog: (version: Int64, document: String)?,
    body: [UInt8]
  ) {
    self.keySpace = keySpace
    self.fence = fence
    self.operation = operation
    self.expectedVersion = expectedVersion
    self.newVersion = newVersion
    self.config = config
    self.catalog = catalog
    self.body = body
  }

  package var script: ScriptName { .configGlobal }
  package var keys: [String] {
    [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.global, keySpace.audit(bucket),
      keySpace.catalogs,
    ]
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .integer(fence.epoch), .bytes(operation.bytes), .integer(expectedVersion),
      .integer(newVersion), .string(config), .bytes(body), .integer(catalog?.version ?? 0),
      .string(catalog?.document ?? ""), .integer((catalog?.version ?? 0) - Self.catalogsKept),
    ]
  }
  package func decode(_ reply: RESPReply) -> ConfigReply { ConfigReply(reply) }
}

/// Puts a global configuration back from the ledger after Redis lost it: set where higher, no
/// delta, no audit entry, because both exist already.
package struct RestoreGlobalCall: ScriptCall {
  package var keySpace: KeySpace
  package var fence: Fence
  package var version: Int64
  package var config: String
  package var bucket: Int { keySpace.map.control }

  package init(keySpace: KeySpace, fence: Fence, version: Int64, config: String) {
    self.keySpace = keySpace
    self.fence = fence
    self.version = version
    self.config = config
  }

  package var script: ScriptName { .restoreGlobal }
  package var keys: [String] { [keySpace.meta(bucket), keySpace.global] }
  package var arguments: [RESPArgument] {
    fence.arguments + [.integer(version), .string(config)]
  }
  /// The version in force afterwards.
  package func decode(_ reply: RESPReply) -> StoreReply<Int64> {
    reply.storeReply { $0.code == .done ? $0[1].number : nil }
  }
}

/// Forgives (or charges against a limit) the usage of one cell, without touching what is billed:
/// limits see settled − forgiven, the bill sees settled. Safe against deltas in flight, because it
/// changes an offset, not the sum (PITFALL 27).
package struct CounterResetCall: ScriptCall {
  package struct Outcome: Hashable, Sendable {
    package var position: StreamPosition
    package var time: WallTime
    /// What limits saw before and see now.
    package var before: Int64
    package var after: Int64
  }

  package enum Reply: Hashable, Sendable {
    case done(Outcome)
    case alreadyDone
    /// The period given is not the current one.
    case period(now: WallTime)
    case rebuild
    case fenced(FenceState)
    case error(String)
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  /// Of exactly the cell's level.
  package var subject: Subject
  package var feature: Name
  package var window: Window
  package var period: Period
  /// What limits shall see: 0 for a reset.
  package var value: Int64
  /// The encoded `ConfigDelta` of scope `counter`. The entry's `actual` and `absorbed` carry the
  /// change (after − before), its `charged` is 0.
  package var body: [UInt8]

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, subject: Subject, feature: Name,
    window: Window, period: Period, value: Int64 = 0, body: [UInt8]
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.operation = operation
    self.subject = subject
    self.feature = feature
    self.window = window
    self.period = period
    self.value = value
    self.body = body
  }

  package var script: ScriptName { .counterReset }
  package var keys: [String] {
    var keys = [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.subject(bucket, subject.account),
      keySpace.audit(bucket),
    ]
    if subject.depth > 1 {
      keys += [
        keySpace.index(bucket, account: subject.account), keySpace.subject(bucket, subject),
      ]
    }
    return keys
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .integer(fence.epoch), .bytes(operation.bytes),
      .string(KeySpace.field(feature: feature, window: window)),
      .integer(period.start.milliseconds), .integer(period.end.milliseconds), .integer(value),
      .bytes(body),
    ]
  }

  package func decode(_ reply: RESPReply) -> Reply {
    switch reply.code {
    case .done?:
      guard let epoch = reply[1].number, let sequence = reply[2].number,
        let time = reply[3].number, let before = reply[4].number, let after = reply[5].number
      else { return .error(reply.problem) }
      return .done(
        Outcome(
          position: StreamPosition(epoch: epoch, sequence: sequence),
          time: WallTime(milliseconds: time), before: before, after: after))
    case .replayed?: return .alreadyDone
    case .period?:
      return reply[1].number.map { .period(now: WallTime(milliseconds: $0)) }
        ?? .error(reply.problem)
    case .rebuild?: return .rebuild
    case .fenced?: return .fenced(reply.fenceState)
    default: return .error(reply.problem)
    }
  }
}
