// Shapes that only the ledger stream uses: deployments, outbox entries, windows.

import NIOCore
import TollgateCore

extension ByteBuffer {
  /// length, sequence, kind, reserved, index, operation, time, three numbers, body length.
  static let entryBytesMin = 4 + 8 + 1 + 1 + 2 + 16 + 8 + 24 + 4

  mutating func takeBucket() throws(WireError) -> UInt32 {
    let bucket = try take(UInt32.self)
    guard bucket <= UInt32(Deployment.bucketsMax) else {
      throw .refused(.badRequest, "bucket \(bucket) cannot exist")
    }
    return bucket
  }

  mutating func takeAccount() throws(WireError) -> Subject {
    let account = try takeSubject()
    guard account.depth == 1 else {
      throw .refused(.invalidName, "\(account) is not an account")
    }
    return account
  }

  mutating func takeOptionalAccount() throws(WireError) -> Subject? {
    let length = Int(try take(UInt16.self))
    if length == 0 { return nil }
    let account = try takeSubject(length)
    guard account.depth == 1 else {
      throw .refused(.invalidName, "\(account) is not an account")
    }
    return account
  }

  mutating func takeWindow() throws(WireError) -> Window {
    let code = try takeText(UInt8.self, max: Window.codeBytesMax)
    guard let window = Window(code: code) else {
      throw .refused(.badRequest, "unknown window code")
    }
    return window
  }

  mutating func put(_ window: Window) {
    put(window.code, UInt8.self, max: Window.codeBytesMax)
  }

  mutating func takeDeployment() throws(WireError) -> Deployment {
    let id = try takeName()
    let buckets = Int(try take(UInt32.self))
    guard buckets >= 1, buckets <= Deployment.bucketsMax else {
      throw .refused(.badRequest, "\(buckets) buckets; 1 … \(Deployment.bucketsMax) allowed")
    }
    let keyVersion = Int(try take(UInt32.self))
    let mode: Deployment.Mode
    switch try take(UInt8.self) {
    case 0: mode = .dev
    case 1: mode = .prod
    default: throw .refused(.badRequest, "unknown deployment mode")
    }
    var deployment = Deployment(id: id, buckets: buckets, mode: mode)
    deployment.keyVersion = keyVersion
    deployment.hash = try takeName().text
    return deployment
  }

  mutating func put(_ deployment: Deployment) {
    put(deployment.id)
    put(UInt32(deployment.buckets))
    put(UInt32(truncatingIfNeeded: deployment.keyVersion))
    put(UInt8(deployment.mode == .dev ? 0 : 1))
    put(deployment.hash, UInt8.self, max: Name.bytesMax)
  }

  mutating func takeEntries() throws(WireError) -> [OutboxEntry] {
    let count = try takeCount(
      UInt16.self, max: WireLimits.entriesMax, each: Self.entryBytesMin, of: "entries")
    try takeReserved(2)
    var entries: [OutboxEntry] = []
    entries.reserveCapacity(count)
    for _ in 0..<count {
      let length = Int(try take(UInt32.self))
      guard var slice = readSlice(length: length) else { throw .truncated }
      entries.append(try slice.takeEntry())
    }
    return entries
  }

  /// The kind, the numbers and the body are the ledger's to judge: an entry that says nonsense is
  /// parked there, and must not hold up the stream behind it.
  private mutating func takeEntry() throws(WireError) -> OutboxEntry {
    let sequence = try takeOrdinal()
    let kind = DeltaKind(rawValue: try take())
    try takeReserved(1)
    let index = try take(UInt16.self)
    let operation = try takeOperationID()
    let time = try takeTime()
    let entry = OutboxEntry(
      sequence: sequence, kind: kind, id: DeltaID(operation: operation, index: index), time: time,
      actual: try take(), charged: try take(), absorbed: try take(),
      body: try takeBytes(max: WireLimits.deltaBodyBytesMax, of: "a delta body"))
    try takeUnknownFields()
    return entry
  }

  mutating func put(_ entries: [OutboxEntry]) {
    put(UInt16(entries.count))
    put(UInt16(0))
    for entry in entries {
      putSized(UInt32.self) { buffer in
        buffer.put(entry.sequence)
        buffer.put(entry.kind.rawValue)
        buffer.put(UInt8(0))
        buffer.put(entry.id.index)
        buffer.put(entry.id.operation)
        buffer.put(entry.time.milliseconds)
        buffer.put(entry.actual)
        buffer.put(entry.charged)
        buffer.put(entry.absorbed)
        buffer.put(bytes: entry.body)
      }
    }
  }
}

extension OutboxEntry {
  /// Bytes of this entry in a BATCH or PRESENT frame, for cutting batches to the frame limit.
  package var wireBytes: Int { ByteBuffer.entryBytesMin + body.count }
}
