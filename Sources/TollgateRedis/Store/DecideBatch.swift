// Operations of one bucket as one script call.
//
// Why this shape: half of what a decision costs Redis is the same for every operation of a bucket:
// the call itself, the fence, the clock, the bucket's meta read and written. Operations that
// arrive in the same turn of an event loop share it. Each is decided by itself; they are written
// together or not at all.

package import NIOCore
private import TollgateCore

package struct DecideBatch: ScriptCall {
  /// A script call holds up every other caller of its Redis; this many take well under a
  /// millisecond. Lua's stack also bounds what one call may name.
  package static let operationsMax = 32

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var limits: StoreLimits
  /// `decide`; `check` where every operation only asks.
  package var script: ScriptName
  package var operations: [DecideOperation]

  package init(
    keySpace: KeySpace, bucket: Int, fence: Fence, limits: StoreLimits, script: ScriptName,
    operations: [DecideOperation]
  ) {
    precondition((1...Self.operationsMax).contains(operations.count))
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.limits = limits
    self.script = script
    self.operations = operations
  }

  private struct Slice {
    var recordClass: RecordClass
    var number: Int64
  }

  /// Keys in the order the script is given them, and the arguments that name them by number.
  private struct Encoding {
    var keys: [String]
    var head: [UInt8]
    /// Per operation: id, fingerprint and numbers.
    var operations: [[UInt8]]
  }

  private func encoded() -> Encoding {
    var keys = [keySpace.meta(bucket), keySpace.outbox(bucket)]
    var slices: [Slice] = []
    func place(_ recordClass: RecordClass, _ number: Int64) -> Int {
      for (at, slice) in slices.enumerated()
      where slice.number == number && slice.recordClass == recordClass { return at + 1 }
      slices.append(Slice(recordClass: recordClass, number: number))
      keys.append(keySpace.operations(bucket, recordClass, slice: number))
      return slices.count
    }
    let places = operations.map { operation in
      let number = OperationSlice.of(operation.id.time)
      let recordClass = operation.plan.recordClass
      return (place(recordClass, number), place(recordClass.other, number))
    }
    let subjectsFrom = keys.count
    func number(of key: String) -> Int {
      for at in subjectsFrom..<keys.count where keys[at] == key { return at + 1 }
      keys.append(key)
      return keys.count
    }
    var bodies: [[UInt8]] = []
    bodies.reserveCapacity(operations.count)
    for (operation, place) in zip(operations, places) {
      var writer = MessagePackWriter(capacity: 96)
      writer.append(unframed: operation.id.bytes)
      writer.append(unframed: operation.fingerprint.bytes)
      writer.append(operation.mode.rawValue)
      writer.append(operation.globalVersion)
      writer.append(operation.accountVersion)
      writer.append(operation.id.time.milliseconds)
      writer.append(operation.notAfter?.milliseconds ?? 0)
      writer.append(place.0)
      writer.append(place.1)
      writer.append(operation.bodies.count)
      for key in operation.keys { writer.append(number(of: key)) }
      bodies.append(writer.bytes)
    }
    var writer = MessagePackWriter(capacity: 64 + 16 * slices.count)
    writer.append(fence.seenSequence)
    writer.append(fence.seenMicroseconds)
    writer.append(String(fence.epoch))
    writer.append(fence.epoch)
    writer.append(limits.dedupeWindowMilliseconds)
    writer.append(limits.outboxEntriesMax)
    writer.append(operations.count)
    writer.append(slices.count)
    writer.append(limits.recordBytesMax(.money))
    writer.append(limits.recordBytesMax(.volume))
    for (at, slice) in slices.enumerated() {
      writer.append(3 + at)
      writer.append(slice.recordClass.letter)
      writer.append(slice.recordClass.letter + String(slice.number))
      writer.append(slice.number)
    }
    return Encoding(keys: keys, head: writer.bytes, operations: bodies)
  }

  package var keys: [String] { encoded().keys }

  package var arguments: [RESPArgument] {
    let encoding = encoded()
    var result: [RESPArgument] = [.string(fence.text), .bytes(encoding.head)]
    for (operation, bytes) in zip(operations, encoding.operations) {
      result.append(.bytes(bytes))
      result.append(.bytes(operation.plan.bytes))
      for body in operation.bodies { result.append(.bytes(body)) }
    }
    return result
  }

  /// The same command as `keys` and `arguments` make, without the arrays in between.
  package func write(into buffer: inout ByteBuffer, library: ScriptLibrary = .shared) {
    let encoding = encoded()
    let arguments = operations.reduce(2) { $0 + 2 + $1.bodies.count }
    var writer = RESPWriter()
    writer.begin(&buffer, count: 3 + encoding.keys.count + arguments)
    writer.append(literal: "EVALSHA", to: &buffer)
    writer.append(library.sha(script), to: &buffer)
    writer.append(integer: Int64(encoding.keys.count), to: &buffer)
    for key in encoding.keys { writer.append(key, to: &buffer) }
    writer.append(fence.text, to: &buffer)
    writer.append(encoding.head, to: &buffer)
    for (operation, bytes) in zip(operations, encoding.operations) {
      writer.append(bytes, to: &buffer)
      writer.append(operation.plan.bytes, to: &buffer)
      for body in operation.bodies { writer.append(body, to: &buffer) }
    }
  }

  /// One reply per operation, in their order: the fence and a server's error are said once and
  /// hold for all.
  package func decode(_ reply: RESPReply) -> [DecideReply] {
    if case .array(let elements) = reply, elements.count == operations.count,
      elements.first?.integer == nil
    {
      return elements.map { DecideReply($0) }
    }
    let whole: DecideReply
    if case .fenced? = reply.code {
      whole = .fenced(reply.fenceState)
    } else {
      whole = .error(reply.problem)
    }
    return Array(repeating: whole, count: operations.count)
  }
}
