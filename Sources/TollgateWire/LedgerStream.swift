// The ledger stream, first half: linking, batches of deltas and their answers, and the exchange
// that heals a bucket whose Redis was lost. Cursors are per (bucket, epoch); the ledger is the
// only issuer of epochs. Buckets 0 … B − 1 hold accounts, bucket B is the control bucket.

package import NIOCore
package import TollgateCore

/// The first request of a sidecar on a connection of role `ledger`.
package struct Link: OpcodeMessage {
  package static let opcode = Opcode.link
  package var deployment: Deployment
  package var sidecar: Name
  /// Differs at every start of the sidecar, and only grows.
  package var incarnation: UInt64

  package init(deployment: Deployment, sidecar: Name, incarnation: UInt64) {
    self.deployment = deployment
    self.sidecar = sidecar
    self.incarnation = incarnation
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(deployment)
    buffer.put(sidecar)
    buffer.put(incarnation)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Link {
    let link = Link(
      deployment: try buffer.takeDeployment(), sidecar: try buffer.takeName(),
      incarnation: try buffer.take())
    try buffer.takeUnknownFields()
    return link
  }
}

/// The ledger accepts: where every bucket stands. Buckets never opened are absent.
package struct Linked: OpcodeMessage {
  package static let opcode = Opcode.linked

  package struct BucketState: Hashable, Sendable {
    package var bucket: UInt32
    package var epoch: Int64
    /// The last sequence of that epoch that is posted.
    package var cursor: Int64

    package init(bucket: UInt32, epoch: Int64, cursor: Int64) {
      self.bucket = bucket
      self.epoch = epoch
      self.cursor = cursor
    }
  }

  package var deployment: Deployment
  package var buckets: [BucketState]

  package init(deployment: Deployment, buckets: [BucketState]) {
    self.deployment = deployment
    self.buckets = buckets
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(deployment)
    buffer.put(UInt16(buckets.count))
    for state in buckets {
      buffer.put(state.bucket)
      buffer.put(state.epoch)
      buffer.put(state.cursor)
    }
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Linked {
    var linked = Linked(deployment: try buffer.takeDeployment(), buckets: [])
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.bucketStatesMax, each: 20, of: "buckets")
    linked.buckets.reserveCapacity(count)
    for _ in 0..<count {
      linked.buckets.append(
        BucketState(
          bucket: try buffer.takeBucket(), epoch: try buffer.takeOrdinal(),
          cursor: try buffer.takeOrdinal()))
    }
    try buffer.takeUnknownFields()
    return linked
  }
}

/// Deltas of one bucket and epoch, in stream order.
package struct DeltaBatch: OpcodeMessage {
  package static let opcode = Opcode.batch
  package var bucket: UInt32
  package var epoch: Int64
  /// The sequence just before the first entry; 0 before the first of an epoch.
  package var previous: Int64
  package var entries: [OutboxEntry]

  package init(bucket: UInt32, epoch: Int64, previous: Int64, entries: [OutboxEntry]) {
    self.bucket = bucket
    self.epoch = epoch
    self.previous = previous
    self.entries = entries
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(bucket)
    buffer.put(epoch)
    buffer.put(previous)
    buffer.put(entries)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> DeltaBatch {
    let batch = DeltaBatch(
      bucket: try buffer.takeBucket(), epoch: try buffer.takeOrdinal(),
      previous: try buffer.takeOrdinal(), entries: try buffer.takeEntries())
    try buffer.requireEnd(of: "BATCH")
    return batch
  }
}

package struct BatchReply: OpcodeMessage {
  package static let opcode = Opcode.batchReply

  package enum Status: UInt8, Sendable, Hashable, CaseIterable {
    /// Everything up to `cursor` is posted.
    case ack = 0
    /// The batch starts above the cursor: send again from `cursor` + 1.
    case gap = 1
    /// The epoch is closed; entries after `lastSequence` of it are not taken here.
    case fenced = 2
    /// `lastSequence` names a position at or below the cursor that holds an unknown delta id.
    case forked = 3
  }

  package var status: Status
  package var bucket: UInt32
  /// The bucket's current epoch.
  package var epoch: Int64
  /// The cursor of the batch's epoch.
  package var cursor: Int64
  package var lastSequence: Int64
  /// Deltas of this batch that were posted before under another position: posted nothing now,
  /// their counter effect is to be reversed once, by id.
  package var duplicates: [DeltaID]

  package init(
    status: Status, bucket: UInt32, epoch: Int64, cursor: Int64, lastSequence: Int64 = 0,
    duplicates: [DeltaID] = []
  ) {
    self.status = status
    self.bucket = bucket
    self.epoch = epoch
    self.cursor = cursor
    self.lastSequence = lastSequence
    self.duplicates = duplicates
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(status.rawValue)
    buffer.put(UInt8(0))
    buffer.put(UInt16(0))
    buffer.put(bucket)
    buffer.put(epoch)
    buffer.put(cursor)
    buffer.put(lastSequence)
    buffer.put(UInt16(duplicates.count))
    for id in duplicates { buffer.put(id) }
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> BatchReply {
    let number = try buffer.take(UInt8.self)
    guard let status = Status(rawValue: number) else {
      throw .refused(.badRequest, "unknown batch status \(number)")
    }
    try buffer.takeReserved(3)
    var reply = BatchReply(
      status: status, bucket: try buffer.takeBucket(), epoch: try buffer.takeOrdinal(),
      cursor: try buffer.takeOrdinal(), lastSequence: try buffer.takeOrdinal())
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.entriesMax, each: 18, of: "duplicates")
    reply.duplicates.reserveCapacity(count)
    for _ in 0..<count { reply.duplicates.append(try buffer.takeDeltaID()) }
    try buffer.requireEnd(of: "BATCH_REPLY")
    return reply
  }
}
