// Reads replies: hiredis' reader behind a bounded Swift interface.
//
// Why this shape: hiredis parses and builds its own reply tree faster than callbacks into Swift
// would, so its tree is kept and converted once per reply. It has no bounds of its own, therefore
// `createArray` is replaced in a *copy* of its function table: that is where elements and nesting
// are refused before memory is taken. The table differs between 0.14 and 1.x (more creators, and
// the count is `int` or `size_t`); copying it whole and letting the closure's types be inferred
// builds on both.
//
// Promises: no reply makes this process hold more than `replyBytesMax` + one read, nor more than
// `replyElementsMax` nodes; a violation is final, the reader answers it again to every later call.
//
// Not thread-safe: it belongs to one connection on one event loop.

private import CHiredis
package import NIOCore

/// The bounds on one reply. They nest: bulk ≤ reply, and elements × smallest element ≤ reply.
package struct RESPLimits: Hashable, Sendable {
  /// Bytes of one bulk string.
  package var bulkBytesMax = 8 << 20
  /// Bytes of one reply on the wire, complete or not; hence also the bytes buffered for it.
  package var replyBytesMax = 32 << 20
  /// Array elements of one reply, summed over all its nested arrays.
  package var replyElementsMax = 1 << 20
  /// Arrays inside arrays. hiredis 0.14 ends here; 1.x would go on, so it is enforced for both.
  package var nestingMax = 8

  package init() {}
}

/// Why a reply could not be accepted. Always fatal to the connection.
package enum RESPViolation: Error, Hashable, Sendable {
  case malformed(String)
  case bulkTooLong
  case replyTooLong
  case tooManyElements
  case nestedTooDeep
  /// A RESP3 type, which a RESP2 connection never asked for.
  case unknownType(Int32)
}

// The pointers never leave this class: it allocates them, it alone frees them in `deinit`, and
// every access happens on the one event loop that owns it.
@safe package final class RESPReader {
  /// What the C callback may touch: reached through the reader's `privdata`, so nothing is global.
  private struct Context {
    var defaults: redisReplyObjectFunctions
    var limits: RESPLimits
    var elementsLeft: Int
    var violation: RESPViolation?
  }

  private let reader: UnsafeMutablePointer<redisReader>
  private let functions: UnsafeMutablePointer<redisReplyObjectFunctions>
  private let context: UnsafeMutablePointer<Context>
  private let limits: RESPLimits
  /// Bytes fed that do not belong to a completed reply yet.
  private var incompleteBytes = 0
  private var violation: RESPViolation?

  package init(limits: RESPLimits = RESPLimits()) {
    guard let reader = unsafe redisReaderCreate() else {
      preconditionFailure("out of memory for a Redis reply reader")
    }
    unsafe self.reader = unsafe reader
    self.limits = limits
    unsafe context = UnsafeMutablePointer<Context>.allocate(capacity: 1)
    unsafe context.initialize(
      to: Context(
        defaults: reader.pointee.fn.pointee, limits: limits,
        elementsLeft: limits.replyElementsMax, violation: nil))
    unsafe functions = UnsafeMutablePointer<redisReplyObjectFunctions>.allocate(capacity: 1)
    unsafe functions.initialize(to: reader.pointee.fn.pointee)
    unsafe functions.pointee.createArray = { task, count in
      guard let task = unsafe task, let privdata = unsafe task.pointee.privdata else {
        return nil
      }
      let context = unsafe privdata.assumingMemoryBound(to: Context.self)
      var depth = 1
      var parent = unsafe task.pointee.parent
      while let next = unsafe parent {
        depth += 1
        unsafe parent = next.pointee.parent
      }
      guard unsafe depth <= context.pointee.limits.nestingMax else {
        unsafe context.pointee.violation = .nestedTooDeep
        return nil
      }
      guard unsafe Int(count) <= context.pointee.elementsLeft else {
        unsafe context.pointee.violation = .tooManyElements
        return nil
      }
      unsafe context.pointee.elementsLeft -= Int(count)
      return unsafe context.pointee.defaults.createArray(task, count)
    }
    unsafe reader.pointee.fn = functions
    unsafe reader.pointee.privdata = UnsafeMutableRawPointer(context)
  }

  deinit {
    unsafe redisReaderFree(reader)
    unsafe functions.deallocate()
    unsafe context.deinitialize(count: 1)
    unsafe context.deallocate()
  }

  /// Hands bytes from the socket to the reader, which copies them.
  package func feed(_ buffer: ByteBuffer) {
    guard violation == nil else { return }
    let result = unsafe buffer.withUnsafeReadableBytes { bytes -> Int32 in
      guard let base = bytes.baseAddress else { return REDIS_OK }
      return unsafe redisReaderFeed(
        reader, base.assumingMemoryBound(to: CChar.self), bytes.count)
    }
    incompleteBytes += buffer.readableBytes
    if result != REDIS_OK { violation = .malformed("the reader refused input") }
  }

  /// The next complete reply, or nil when more bytes are needed.
  package func next() throws(RESPViolation) -> RESPReply? {
    if let violation { throw violation }
    var raw: UnsafeMutableRawPointer?
    let result = unsafe redisReaderGetReply(reader, &raw)
    guard result == REDIS_OK else {
      throw unsafe fail(context.pointee.violation ?? .malformed(readerError()))
    }
    guard let raw = unsafe raw else {
      if incompleteBytes > limits.replyBytesMax { throw fail(.replyTooLong) }
      return nil
    }
    let unread = unsafe Int(reader.pointee.len) - Int(reader.pointee.pos)
    let replyBytes = incompleteBytes - unread
    incompleteBytes = unread
    unsafe context.pointee.elementsLeft = limits.replyElementsMax
    let reply = unsafe convert(raw.assumingMemoryBound(to: redisReply.self))
    unsafe freeReplyObject(raw)
    if replyBytes > limits.replyBytesMax { throw fail(.replyTooLong) }
    if let violation { throw violation }
    return reply
  }

  private func fail(_ violation: RESPViolation) -> RESPViolation {
    self.violation = violation
    return violation
  }

  private func readerError() -> String {
    unsafe withUnsafeBytes(of: &reader.pointee.errstr) { bytes in
      unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
  }

  /// Copies one node out of hiredis' tree. A violation is noted rather than thrown, so that the
  /// tree is freed on the one path that does so. Recursion is bounded by `nestingMax`.
  private func convert(_ node: UnsafeMutablePointer<redisReply>) -> RESPReply {
    switch unsafe node.pointee.type {
    case REDIS_REPLY_STRING:
      let count = unsafe Int(node.pointee.len)
      if count > limits.bulkBytesMax { violation = .bulkTooLong }
      return unsafe .string([UInt8](text(node)))
    case REDIS_REPLY_INTEGER:
      return unsafe .integer(Int64(node.pointee.integer))
    case REDIS_REPLY_ARRAY:
      let count = unsafe Int(node.pointee.elements)
      return .array(
        unsafe [RESPReply](unsafeUninitializedCapacity: count) { out, filled in
          for index in 0..<count {
            let element =
              if let child = unsafe node.pointee.element[index] {
                unsafe convert(child)
              } else {
                RESPReply.null
              }
            unsafe out.initializeElement(at: index, to: element)
          }
          filled = count
        })
    case REDIS_REPLY_NIL:
      return .null
    case REDIS_REPLY_STATUS:
      return unsafe .status(String(decoding: text(node), as: UTF8.self))
    case REDIS_REPLY_ERROR:
      return unsafe .error(String(decoding: text(node), as: UTF8.self))
    case let type:
      violation = .unknownType(type)
      return .null
    }
  }

  private func text(_ node: UnsafeMutablePointer<redisReply>) -> UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(start: node.pointee.str, count: Int(node.pointee.len))
  }
}
