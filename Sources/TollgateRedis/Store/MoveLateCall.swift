// What an outbox that was set aside holds and the ledger has not, moved into the current one. Each
// entry lies in one of the two, so the call may be made by anybody, again after any lost reply.

package struct MoveLateCall: ScriptCall {
  package struct Moved: Hashable, Sendable {
    /// Of the current outbox.
    package var lastSequence: Int64
    package var count: Int64
    /// The outbox that was set aside holds more.
    package var isLeft: Bool
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  /// Of the outbox that was set aside.
  package var epoch: Int64
  /// Up to where the ledger was asked: everything there is moved, or dropped.
  package var through: Int64
  /// The sequences among them that the ledger has not, ascending.
  package var unknown: [Int64]

  package init(
    keySpace: KeySpace, bucket: Int, fence: Fence, epoch: Int64, through: Int64, unknown: [Int64]
  ) {
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.epoch = epoch
    self.through = through
    self.unknown = unknown
  }

  package var script: ScriptName { .moveLate }
  package var keys: [String] {
    [keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.late(bucket, epoch: epoch)]
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [.integer(fence.epoch), .integer(epoch), .integer(through)]
      + unknown.map { .integer($0) }
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Moved> {
    reply.storeReply { reply in
      guard reply.code == .done, let last = reply[1].number, let count = reply[2].integer,
        let left = reply[3].integer
      else { return nil }
      return Moved(lastSequence: last, count: count, isLeft: left == 1)
    }
  }
}
