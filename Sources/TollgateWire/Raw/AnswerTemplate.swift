// The answer to a record, encoded once, and where in it the numbers stand that differ from one
// answer to the next. Whoever answers from memory copies it and writes these numbers.

private import NIOCore
package import TollgateCore

package struct AnswerTemplate: Hashable, Sendable {
  /// As in DECISIONS, the length in front included.
  package let bytes: [UInt8]
  /// Of the reason, two bytes, behind the length and the status.
  package static let reasonOffset = 2 + 2
  /// Where the numbers stand, in `bytes`; each has eight bytes, little-endian.
  package let timeOffset: Int
  /// Of the flags; `replayed` is a bit in them.
  package let flagsOffset: Int
  package static let replayed: UInt8 = 1
  /// Per item the place of what remains; what is settled, and what is held, follow it.
  package let itemOffsets: [Int]

  /// - Parameter decision: one without what only reservations and refunds have. An item that has no
  ///   `remaining` keeps none.
  package init(_ decision: Decision) {
    precondition(
      decision.expires == nil && decision.settlements.isEmpty && decision.burns.isEmpty
        && decision.derived.isEmpty, "an answer from memory is of a CHECK or CONSUME")
    var buffer = ByteBuffer()
    DecisionRecord.decision(decision).encode(into: &buffer)
    bytes = Array(buffer.readableBytesView)
    // Reason and source, then the flags and the time.
    flagsOffset = Self.reasonOffset + 2 + 1
    timeOffset = flagsOffset + 1
    // The versions, the retry time, the binding item and limit, the number of items.
    var offset = timeOffset + 8 * 4 + 1
    offset += 1 + (decision.binding?.text.utf8.count ?? 0) + 1
    var offsets: [Int] = []
    for item in decision.items {
      offsets.append(offset + 1)
      offset += 1 + 4 * 8 + 1 + (item.limit?.text.utf8.count ?? 0)
    }
    itemOffsets = offsets
    precondition(offset == bytes.count, "the offsets are those of the encoder")
  }
}
