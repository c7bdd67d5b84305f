// Operations of one bucket as one script call.
//
// Why this shape: half of what a decision costs Redis is the same for every operation of a bucket:
// the call itself, the fence, the clock, the bucket's meta read and written. Operations that
// arrive in the same turn of an event loop share it. Each is decided by itself; they are written
// together or not at all.

private import TollgateCore

package struct DecideBatch: BatchedCall {
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

  /// Per operation: id, fingerprint and numbers.
  package func encoded() -> BatchEncoding {
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
    return BatchEncoding(keys: keys, head: writer.bytes, parts: bodies)
  }

  package var tailCount: Int { operations.reduce(0) { $0 + 2 + $1.bodies.count } }

  package func forEachOfTail(_ parts: [[UInt8]], _ body: ([UInt8]) -> Void) {
    for (operation, bytes) in zip(operations, parts) {
      body(bytes)
      body(operation.plan.bytes)
      for delta in operation.bodies { body(delta) }
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
