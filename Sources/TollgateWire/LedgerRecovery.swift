// The ledger stream, second half: how a bucket is healed after Redis lost writes. The sidecar that
// noticed asks (RECOVER), the ledger asks everybody what they still hold (PRESENT_REQUEST,
// PRESENT), closes the old epoch and names the new one (EPOCH).

package import NIOCore
package import TollgateCore

/// "Redis and I disagree about this bucket." A push: what follows is PRESENT_REQUEST and then
/// EPOCH, to every link. Asking again for a bucket that is being healed does no harm.
package struct Recover: OpcodeMessage {
  package static let opcode = Opcode.recover
  package var bucket: UInt32
  /// The epoch this sidecar worked under; 0: it knew none.
  package var epoch: Int64
  /// What Redis says of itself; 0, 0 where it holds nothing.
  package var metaEpoch: Int64
  package var metaSequence: Int64

  package init(bucket: UInt32, epoch: Int64, metaEpoch: Int64, metaSequence: Int64) {
    self.bucket = bucket
    self.epoch = epoch
    self.metaEpoch = metaEpoch
    self.metaSequence = metaSequence
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(bucket)
    buffer.put(epoch)
    buffer.put(metaEpoch)
    buffer.put(metaSequence)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Recover {
    let recover = Recover(
      bucket: try buffer.takeBucket(), epoch: try buffer.takeOrdinal(),
      metaEpoch: try buffer.takeOrdinal(), metaSequence: try buffer.takeOrdinal())
    try buffer.requireEnd(of: "RECOVER")
    return recover
  }
}

/// "Stop issuing to this bucket and present what you hold of this epoch above the cursor."
package struct PresentRequest: OpcodeMessage {
  package static let opcode = Opcode.presentRequest
  package var bucket: UInt32
  package var epoch: Int64
  package var cursor: Int64

  package init(bucket: UInt32, epoch: Int64, cursor: Int64) {
    self.bucket = bucket
    self.epoch = epoch
    self.cursor = cursor
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(bucket)
    buffer.put(epoch)
    buffer.put(cursor)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> PresentRequest {
    let request = PresentRequest(
      bucket: try buffer.takeBucket(), epoch: try buffer.takeOrdinal(),
      cursor: try buffer.takeOrdinal())
    try buffer.requireEnd(of: "PRESENT_REQUEST")
    return request
  }
}

/// Entries held for (bucket, epoch), in order of sequence, not necessarily contiguous. The flag
/// `more` in the header says that another PRESENT for the bucket follows.
package struct Present: OpcodeMessage {
  package static let opcode = Opcode.present
  package var bucket: UInt32
  package var epoch: Int64
  package var entries: [OutboxEntry]

  package init(bucket: UInt32, epoch: Int64, entries: [OutboxEntry]) {
    self.bucket = bucket
    self.epoch = epoch
    self.entries = entries
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(bucket)
    buffer.put(epoch)
    buffer.put(entries)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> Present {
    let present = Present(
      bucket: try buffer.takeBucket(), epoch: try buffer.takeOrdinal(),
      entries: try buffer.takeEntries())
    try buffer.requireEnd(of: "PRESENT")
    return present
  }
}

/// A bucket's current epoch, to every link. The sidecar named `opener` opens it in Redis.
package struct EpochNotice: OpcodeMessage {
  package static let opcode = Opcode.epoch
  package var bucket: UInt32
  package var epoch: Int64
  package var opener: Name
  /// The epoch before, and the last sequence that its fence accepts; 0, 0: there was none.
  package var previousEpoch: Int64
  package var previousLast: Int64

  package init(
    bucket: UInt32, epoch: Int64, opener: Name, previousEpoch: Int64 = 0, previousLast: Int64 = 0
  ) {
    self.bucket = bucket
    self.epoch = epoch
    self.opener = opener
    self.previousEpoch = previousEpoch
    self.previousLast = previousLast
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(bucket)
    buffer.put(epoch)
    buffer.put(previousEpoch)
    buffer.put(previousLast)
    buffer.put(opener)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> EpochNotice {
    let bucket = try buffer.takeBucket()
    let epoch = try buffer.takeOrdinal()
    let previousEpoch = try buffer.takeOrdinal()
    let previousLast = try buffer.takeOrdinal()
    let notice = EpochNotice(
      bucket: bucket, epoch: epoch, opener: try buffer.takeName(), previousEpoch: previousEpoch,
      previousLast: previousLast)
    try buffer.requireEnd(of: "EPOCH")
    return notice
  }
}
