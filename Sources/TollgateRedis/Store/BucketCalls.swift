// The life of a bucket: opening an epoch, trimming what the ledger has, shipper ownership, sweeping
// old operation records, hearing of a new global version.

package import TollgateCore

/// Sets a bucket's meta to a new epoch, only upward; the outbox starts empty. What the old outbox
/// held is handed to the ledger before, as far as it was read; it is set aside, so that
/// `MoveLateCall` can take out of it what the ledger has not.
package struct OpenCall: ScriptCall {
  package enum Outcome: Hashable, Sendable {
    case opened
    /// Exactly this epoch stands already, for this server.
    case alreadyOpen
    /// The bucket is at this epoch or a later one, or not where it was found.
    case refused(FenceState)
  }

  /// What the operation records must have reached, or they were lost: then every id minted before
  /// that was seen is too old.
  package struct Records: Hashable, Sendable {
    /// As far as anybody knows of the epoch that Redis names; nil: nobody knows.
    package var known: StreamPosition?
    /// The latest time at which something was recorded in it.
    package var knownTime: WallTime
    /// What Redis held when it was asked; nil: nothing.
    package var found: FenceState?
    /// For how long it has been known to hold just that.
    package var milliseconds: Int64

    package init(
      known: StreamPosition?, knownTime: WallTime = WallTime(milliseconds: 0),
      found: FenceState?, milliseconds: Int64
    ) {
      self.known = known
      self.knownTime = knownTime
      self.found = found
      self.milliseconds = milliseconds
    }
  }

  package var keySpace: KeySpace
  package var bucket: Int
  /// The new state; `seenSequence` is not used.
  package var fence: Fence
  package var globalVersion: Int64
  /// Whether the deployment had an epoch of this bucket before: then rates start without burst.
  package var hadPredecessor: Bool
  package var records: Records
  /// The epoch whose outbox is set aside, as it was found in Redis, 0 where none was. nil: there is
  /// no ledger, and the outbox is dropped.
  package var lateEpoch: Int64?

  package init(
    keySpace: KeySpace, bucket: Int, fence: Fence, globalVersion: Int64, hadPredecessor: Bool,
    records: Records, lateEpoch: Int64? = nil
  ) {
    self.records = records
    self.lateEpoch = lateEpoch
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.globalVersion = globalVersion
    self.hadPredecessor = hadPredecessor
  }

  package var script: ScriptName { .open }
  package var keys: [String] {
    [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.takenBack(bucket),
      keySpace.late(bucket, epoch: lateEpoch ?? 0),
    ]
  }
  package var arguments: [RESPArgument] {
    [
      .string(fence.text), .integer(fence.epoch), .integer(globalVersion),
      .integer(hadPredecessor ? 1 : 0),
      .integer(records.known?.epoch ?? -1), .integer(records.known?.sequence ?? 0),
      .integer(records.knownTime.milliseconds), .string(records.found?.text ?? ""),
      .string(records.found?.sequence.map { String($0) } ?? ""), .integer(records.milliseconds),
      .integer(lateEpoch ?? -1),
    ]
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Outcome> {
    switch reply.code {
    case .done?: .done(.opened)
    case .replayed?: .done(.alreadyOpen)
    case .conflict?: .done(.refused(reply.fenceState))
    default: .error(reply.problem)
    }
  }
}

/// Drops delivered entries up to `acknowledged`, keeping the last `tail` of them.
package struct TrimCall: ScriptCall {
  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var acknowledged: Int64
  package var tail: Int64

  package init(
    keySpace: KeySpace, bucket: Int, fence: Fence, acknowledged: Int64, tail: Int64 = 64
  ) {
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.acknowledged = acknowledged
    self.tail = tail
  }

  package var script: ScriptName { .trim }
  package var keys: [String] {
    [keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.takenBack(bucket)]
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [.integer(fence.epoch), .integer(acknowledged), .integer(tail)]
  }

  /// How many entries were dropped.
  package func decode(_ reply: RESPReply) -> StoreReply<Int64> {
    reply.storeReply { $0.code == .done ? $0[1].integer : nil }
  }
}

/// Claims, renews or gives up a bucket's shipper ownership. Not fenced: ownership saves work, it
/// does not keep anything right.
package struct OwnCall: ScriptCall {
  package enum Outcome: Hashable, Sendable {
    case mine
    case owned(by: String, milliseconds: Int64)
    /// Given up, or it was not ours.
    case free
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var owner: String
  /// 0 gives it up.
  package var timeToLiveMilliseconds: Int64

  package init(keySpace: KeySpace, bucket: Int, owner: String, timeToLiveMilliseconds: Int64) {
    self.keySpace = keySpace
    self.bucket = bucket
    self.owner = owner
    self.timeToLiveMilliseconds = timeToLiveMilliseconds
  }

  package var script: ScriptName { .own }
  package var keys: [String] { [keySpace.owner(bucket)] }
  package var arguments: [RESPArgument] { [.string(owner), .integer(timeToLiveMilliseconds)] }

  package func decode(_ reply: RESPReply) -> StoreReply<Outcome> {
    switch reply.code {
    case .done?: .done(timeToLiveMilliseconds > 0 ? .mine : .free)
    case .conflict?:
      if let owner = reply[1].text, let left = reply[2].integer {
        .done(.owned(by: owner, milliseconds: left))
      } else {
        .error(reply.problem)
      }
    default: .error(reply.problem)
    }
  }
}

/// Raises the bucket's global version, so that decisions made on an older one are STALE.
package struct PushVersionCall: ScriptCall {
  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var globalVersion: Int64

  package init(keySpace: KeySpace, bucket: Int, fence: Fence, globalVersion: Int64) {
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.globalVersion = globalVersion
  }

  package var script: ScriptName { .pushVersion }
  package var keys: [String] { [keySpace.meta(bucket)] }
  package var arguments: [RESPArgument] { fence.arguments + [.integer(globalVersion)] }

  /// The version in force afterwards.
  package func decode(_ reply: RESPReply) -> StoreReply<Int64> {
    reply.storeReply { $0.code == .done ? $0[1].number : nil }
  }
}

/// Drops slices of operation records that are older than the window, and, where the volume class
/// is above its ceiling, the oldest volume slices before their time. The first call names no
/// slices and learns which there are.
package struct SweepCall: ScriptCall {
  package struct Slice: Hashable, Sendable {
    package var recordClass: RecordClass
    package var number: Int64
    package var bytes: Int64
  }

  package struct Report: Hashable, Sendable {
    /// All slices left, oldest first.
    package var slices: [Slice]
    /// Ids older than this are ID_TOO_OLD, per class.
    package var moneyHorizon: WallTime
    package var volumeHorizon: WallTime
    package var now: WallTime
    package var dropped: Int64

    package func bytes(_ recordClass: RecordClass) -> Int64 {
      slices.reduce(0) { $1.recordClass == recordClass ? $0 + $1.bytes : $0 }
    }
  }

  /// Slices in one call.
  package static let slicesMax = 64

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var limits: StoreLimits
  package var slices: [Slice]

  /// `report`: what an earlier call answered; nil at first.
  package init(
    keySpace: KeySpace, bucket: Int, fence: Fence, limits: StoreLimits, after report: Report?
  ) {
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.limits = limits
    slices = Array((report?.slices ?? []).prefix(Self.slicesMax))
  }

  package var script: ScriptName { .sweep }
  package var keys: [String] {
    [keySpace.meta(bucket)]
      + slices.map { keySpace.operations(bucket, $0.recordClass, slice: $0.number) }
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .integer(limits.dedupeWindowMilliseconds), .integer(limits.volumeRecordBytesMax),
    ] + slices.map { .string($0.recordClass.letter + String($0.number)) }
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Report> {
    reply.storeReply { reply in
      guard reply.code == .done, let now = reply[1].number, let dropped = reply[2].integer,
        let money = reply[3].number, let volume = reply[4].number, let flat = reply[5].array
      else { return nil }
      var slices: [Slice] = []
      for index in stride(from: 0, to: flat.count - 1, by: 2) {
        guard let name = flat[index].text, let bytes = flat[index + 1].number,
          let number = Int64(name.dropFirst())
        else { return nil }
        slices.append(
          Slice(recordClass: name.hasPrefix("m") ? .money : .volume, number: number, bytes: bytes))
      }
      slices.sort { ($0.number, $0.recordClass.rawValue) < ($1.number, $1.recordClass.rawValue) }
      return Report(
        slices: slices, moneyHorizon: WallTime(milliseconds: money),
        volumeHorizon: WallTime(milliseconds: volume), now: WallTime(milliseconds: now),
        dropped: dropped)
    }
  }
}

/// Writes the deployment record where there is none, and answers the one that stands.
package struct DeploymentCall: ScriptCall {
  package var keySpace: KeySpace
  package var deployment: Deployment
  package var bucket: Int { keySpace.map.control }

  package init(keySpace: KeySpace, deployment: Deployment) {
    self.keySpace = keySpace
    self.deployment = deployment
  }

  package var script: ScriptName { .deployment }
  package var keys: [String] { [keySpace.deploymentRecord] }
  package var arguments: [RESPArgument] {
    [
      .string(deployment.id.text), .integer(Int64(deployment.buckets)), .string(deployment.hash),
      .integer(Int64(deployment.keyVersion)), .string(deployment.mode.rawValue),
    ]
  }

  /// The recorded deployment: compare with `Deployment.differences(from:)`.
  package func decode(_ reply: RESPReply) -> StoreReply<Deployment> {
    reply.storeReply { $0.code == .done ? Self.recorded($0, from: 1) : nil }
  }

  static func recorded(_ reply: RESPReply, from at: Int) -> Deployment? {
    guard let id = reply[at].text.flatMap({ try? Name($0) }),
      let buckets = reply[at + 1].number, let hash = reply[at + 2].text,
      let keyVersion = reply[at + 3].number,
      let mode = reply[at + 4].text.flatMap(Deployment.Mode.init)
    else { return nil }
    var recorded = Deployment(id: id, buckets: Int(buckets), mode: mode)
    recorded.hash = hash
    recorded.keyVersion = Int(keyVersion)
    return recorded
  }
}
