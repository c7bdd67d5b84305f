// Where a request is answered without leaving the thread that read it. A `LocalLoop` asks its fast
// path for every CHECK and CONSUME frame of a session that takes requests; what it does not answer
// goes to the connection's conversation, as every other frame does.
//
// There is one for each loop, made on the loop's thread and used there only, so it may keep state
// without a lock. A call through a protocol's table costs a nanosecond or two a frame; a generic
// loop would save them and have to be compiled for each kind of path.

package import TollgateWire

/// One frame, as it lies in the loop's input.
// Safe: `payload` points into the loop's input buffer, which is neither moved nor written to before
// `answer` has returned; nobody keeps a frame beyond that.
@safe package struct FastFrame {
  /// `.check` or `.consume`.
  package let opcode: Opcode
  package let correlation: UInt64
  /// As it stood in the header; 0: the server's default.
  package let deadlineMilliseconds: UInt32
  /// What the peer knows of the protocol's options.
  package let features: ProtocolFeatures
  /// Nanoseconds of CLOCK_BOOTTIME, read after the frame was.
  package let now: Int64
  /// Unchecked: counts, lengths and names in it may be anything. Good until `answer` returns.
  package let payload: UnsafeRawBufferPointer
  /// It was `next` of the frame that was asked for just before this one, and lies where it lay.
  package let wasNext: Bool
  /// That of the frame that is asked for next, if it is: what it needs may be looked for already.
  package let next: UnsafeRawBufferPointer?

  package init(
    opcode: Opcode, correlation: UInt64, deadlineMilliseconds: UInt32,
    features: ProtocolFeatures, now: Int64, payload: UnsafeRawBufferPointer, wasNext: Bool = false,
    next: UnsafeRawBufferPointer? = nil
  ) {
    self.opcode = opcode
    self.correlation = correlation
    self.deadlineMilliseconds = deadlineMilliseconds
    self.features = features
    self.now = now
    unsafe self.payload = payload
    self.wasNext = wasNext
    unsafe self.next = next
  }
}

package protocol FastPath: AnyObject {
  /// Answers the whole frame, or nothing of it.
  /// - Parameter out: takes whole frames (header and payload) where the answer is true; where it is
  ///   false, nothing may have been added and nothing may have been counted.
  func answer(_ frame: borrowing FastFrame, into out: OutBytes) -> Bool

  /// Every ready connection was looked at once; answers are on their way. The place to publish
  /// what was counted without atomics.
  func turnEnded()
}

extension FastPath {
  package func turnEnded() {}
}
