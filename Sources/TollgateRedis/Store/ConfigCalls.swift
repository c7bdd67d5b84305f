// Changes of configuration: each is one compare-and-set on the old version, together with its
// config delta in the same outbox and an entry in the bounded audit stream. A retry under the same
// operation id is answered as the first time, so an edit of unknown outcome may be sent again.

package import TollgateCore

package struct ConfigOutcome: Hashable, Sendable {
  /// Where the config delta lies: `durable: ledger` waits until the ledger's cursor reaches it.
  package var position: StreamPosition
  package var time: WallTime
}

/// Who asks for a change: its operation id, and the fingerprint of the request it stands for.
package struct ChangeKey: Hashable, Sendable {
  package var operation: OperationID
  package var fingerprint: UInt64

  package init(operation: OperationID, fingerprint: UInt64) {
    self.operation = operation
    self.fingerprint = fingerprint
  }

  var argument: RESPArgument {
    .bytes(
      operation.bytes
        + stride(from: UInt64(56), through: 0, by: -8).map {
          UInt8(truncatingIfNeeded: fingerprint >> $0)
        })
  }
}

/// Why a change under this id was not looked at any further; nothing was written.
package enum KnownChange: Hashable, Sendable {
  /// Applied before: what it made (a version, or units forgiven), and when.
  case applied(result: Int64, time: WallTime)
  case mismatch(ChangeMemory.Difference)
  case tooOld
  case fromFuture

  init?(_ reply: RESPReply) {
    switch reply.code {
    case .replayed?:
      guard let result = reply[1].number, let time = reply[2].number else { return nil }
      self = .applied(result: result, time: WallTime(milliseconds: time))
    case .mismatch?:
      guard let half = reply[1].integer, let half = ChangeMemory.Difference(rawValue: Int(half))
      else { return nil }
      self = .mismatch(half)
    case .tooOld?: self = .tooOld
    case .fromFuture?: self = .fromFuture
    default: return nil
    }
  }
}

package enum ConfigReply: Hashable, Sendable {
  case done(ConfigOutcome)
  case known(KnownChange)
  /// The version that stands differs from the expected one.
  case conflict(version: Int64)
  /// The ledger is too far behind.
  case outboxFull
  case fenced(FenceState)
  case error(String)

  fileprivate init(_ reply: RESPReply) {
    if let known = KnownChange(reply) {
      self = .known(known)
      return
    }
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
    case .conflict?: self = .conflict(version: reply[1].number ?? 0)
    case .outboxFull?: self = .outboxFull
    case .fenced?: self = .fenced(reply.fenceState)
    default: self = .error(reply.problem)
    }
  }
}

package struct ConfigAccountCall: ScriptCall {
  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var change: ChangeKey
  package var account: Subject
  /// 0: no header, or one that nobody ever set.
  package var expectedVersion: Int64
  package var newVersion: Int64
  package var config: String
  /// The encoded `ConfigDelta`.
  package var body: [UInt8]
  /// Undelivered entries that the change may find in the outbox; 0: there is no ledger.
  package var outboxEntriesMax: Int64

  package init(
    keySpace: KeySpace, fence: Fence, change: ChangeKey, account: Subject,
    expectedVersion: Int64, newVersion: Int64, config: String, body: [UInt8],
    outboxEntriesMax: Int64
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: account)
    self.fence = fence
    self.change = change
    self.account = account
    self.expectedVersion = expectedVersion
    self.newVersion = newVersion
    self.config = config
    self.body = body
    self.outboxEntriesMax = outboxEntriesMax
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
      .integer(fence.epoch), change.argument, .integer(expectedVersion), .integer(newVersion),
      .string(config), .bytes(body), .integer(outboxEntriesMax),
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
  package var change: ChangeKey
  package var expectedVersion: Int64
  package var newVersion: Int64
  package var config: String
  /// The catalog document to keep under this number; nil where the change made none.
  package var catalog: (version: Int64, document: String)?
  package var body: [UInt8]
  package var outboxEntriesMax: Int64
  package var bucket: Int { keySpace.map.control }

  package init(
    keySpace: KeySpace, fence: Fence, change: ChangeKey, expectedVersion: Int64,
    newVersion: Int64, config: String, catalog: (version: Int64, document: String)?,
    body: [UInt8], outboxEntriesMax: Int64
  ) {
    self.keySpace = keySpace
    self.fence = fence
    self.change = change
    self.expectedVersion = expectedVersion
    self.newVersion = newVersion
    self.config = config
    self.catalog = catalog
    self.body = body
    self.outboxEntriesMax = outboxEntriesMax
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
      .integer(fence.epoch), change.argument, .integer(expectedVersion), .integer(newVersion),
      .string(config), .bytes(body), .integer(outboxEntriesMax),
      .integer(catalog?.version ?? 0), .string(catalog?.document ?? ""),
      .integer((catalog?.version ?? 0) - Self.catalogsKept),
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
  /// What the ledger knows of earlier changes, so that their ids are still known.
  package var memory: ChangeMemory
  /// One catalog of the history; nil: none.
  package var catalog: (number: Int64, json: String)?
  package var bucket: Int { keySpace.map.control }

  package init(
    keySpace: KeySpace, fence: Fence, version: Int64, config: String,
    memory: ChangeMemory = ChangeMemory(),
    catalog: (number: Int64, json: String)? = nil
  ) {
    self.keySpace = keySpace
    self.fence = fence
    self.version = version
    self.config = config
    self.memory = memory
    self.catalog = catalog
  }

  package var script: ScriptName { .restoreGlobal }
  package var keys: [String] {
    [keySpace.meta(bucket), keySpace.global, keySpace.catalogs]
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .integer(version), .string(config), .bytes(memory.bytes), .integer(catalog?.number ?? 0),
      .string(catalog?.json ?? ""),
    ]
  }
  /// The version in force afterwards.
  package func decode(_ reply: RESPReply) -> StoreReply<Int64> {
    reply.storeReply { $0.code == .done ? $0[1].number : nil }
  }
}
