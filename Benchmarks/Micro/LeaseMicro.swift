// A leased consume from the bytes of its record to the bytes of its answer, as the fast path of a
// local loop does it: in place, under the stripe's lock, with the operation remembered. What is
// spent is never settled here, so that the loop holds nothing else.

import NIOCore
import TollgateCore
import TollgateEngine
import TollgateWire

extension Micro {
  static let boot: Int64 = 5_000_000_000
  private static let amount: Int64 = 1 << 40
  private static let bucket = 3

  /// A table with one account that holds a lease of one cell.
  private static func table(key: [UInt8]) throws -> LeaseTable {
    let bucket = Self.bucket
    let geometry = LeaseGeometry(stripes: 1, slots: 1 << 18, logBytes: 1 << 20)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: geometry.bytes, alignment: 4096)
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
    // The memory lives as long as the program.
    let deployment = Deployment(id: try Name("micro"), buckets: 16, mode: .dev)
    let region = try unsafe LeaseRegion(
      memory, geometry: geometry, deployment: deployment, lessee: 7, host: 1)
    let table = LeaseTable(LeaseConfiguration(), region: region, buckets: 16, begun: 0)
    table.begin(at: 0, now: 0)
    try register("acct-000417", key: key, in: table, bucket: bucket, now: boot)
    var left = [Int64](repeating: 0, count: 100)
    guard settle(table, bucket: bucket, now: boot + 1, left: &left) == 1 else {
      throw Failure.lease
    }
    return table
  }

  static func register(
    _ account: String, key: [UInt8], in table: LeaseTable, bucket: Int, now: Int64
  ) throws {
    let template = AnswerTemplate(try decision())
    var patches = [
      LeasePatch(.replayed, at: template.flagsOffset), LeasePatch(.time, at: template.timeOffset),
    ]
    for (item, offset) in template.itemOffsets.enumerated() {
      patches.append(LeasePatch(.remaining, item: item, at: offset))
      patches.append(LeasePatch(.settled, item: item, at: offset + 8))
      patches.append(LeasePatch(.held, item: item, at: offset + 16))
    }
    let registered = table.register(
      LeaseRegistration(
        bucket: bucket, account: Array(account.utf8), key: key, globalVersion: 3,
        accountVersion: 1, confirmedAt: now, now: now,
        validUntil: time.milliseconds + 86_400_000, isStaleAllowed: true,
        items: [.init(portions: [0], shown: 0, amount: amount)],
        portions: [
          LeasePortionKey(
            .cell, name: Array("\(account).month".utf8), limits: [1], start: time.milliseconds - 1,
            end: time.milliseconds + 86_400_000)
        ],
        demand: 1 << 30, template: LeaseTemplate(bytes: template.bytes, patches: patches),
        definition: [1]))
    guard registered == .ready else { throw Failure.lease }
  }

  /// What is due goes to a Redis that gives all that it is asked for.
  ///
  /// - Parameter left: of each account, by the two last digits of its name.
  /// - Returns: Calls of it.
  static func settle(
    _ table: LeaseTable, bucket: Int, now: Int64, left: inout [Int64]
  ) -> Int {
    var calls = 0
    while let exchange = table.collect(
      bucket: bucket, now: MonotonicTime(nanoseconds: now),
      id: OperationID(high: UInt64(time.milliseconds) << 16, low: UInt64(now)))
    {
      table.replied(
        exchange.token,
        exchange.accounts.map { account in
          let digits = account.name.suffix(2).reduce(0) { $0 * 10 + Int($1) - 48 }
          return .held(
            account.portions.map { portion in
              left[digits] = portion.target < 0 ? left[digits] - portion.settle : portion.target
              return .init(left: left[digits], settled: 0, held: left[digits])
            }, isProlonged: true)
        }, now: MonotonicTime(nanoseconds: now))
      calls += 1
    }
    return calls
  }

  static func leaseSpend() throws -> Body {
    let record = try record()
    guard let key = record.shape else { throw Failure.lease }
    let table = try table(key: key)
    var payload = [UInt8]()
    do {
      var buffer = ByteBuffer()
      OperationBatch([record]).encode(into: &buffer)
      payload = Array(buffer.readableBytesView)
    }
    var shape = [UInt8](repeating: 0, count: RawRecord.shapeBytesMax)
    var out = [UInt8](repeating: 0, count: 512)
    var minted: UInt64 = 0
    return { count in
      unsafe payload.withUnsafeMutableBytes { payload in
        unsafe shape.withUnsafeMutableBytes { shape in
          unsafe out.withUnsafeMutableBytes { out in
            for _ in 0..<count {
              minted += 1
              let high = UInt64(time.milliseconds) << 16
              unsafe payload.storeBytes(of: high.bigEndian, toByteOffset: 6, as: UInt64.self)
              unsafe payload.storeBytes(of: minted.bigEndian, toByteOffset: 14, as: UInt64.self)
              guard
                unsafe spendOne(
                  UnsafeRawBufferPointer(payload), shape: shape, table: table, out: out)
              else { return -1 }
            }
            return Int(minted)
          }
        }
      }
    }
  }

  /// False: it was not let through from memory, so that nothing was measured.
  @inline(__always)
  private static func spendOne(
    _ payload: UnsafeRawBufferPointer, shape: UnsafeMutableRawBufferPointer, table: LeaseTable,
    out: UnsafeMutableRawBufferPointer
  ) -> Bool {
    guard var records = unsafe RawRecords(payload, max: WireLimits.recordsMax),
      let next = unsafe records.next(), let raw = unsafe RawRecord(next, shape: shape)
    else { return false }
    var amounts = (raw.amounts[0], raw.amounts[1], raw.amounts[2], raw.amounts[3])
    let key = unsafe raw.shape(next, shape)
    table.expect(bucket: bucket, raw.id)
    return unsafe withUnsafeBytes(of: &amounts) { bytes in
      let outcome = unsafe table.spend(
        LeaseRequest(
          bucket: bucket, kind: .consume, id: raw.id, key: key, hash: LeaseHash.of(key),
          amounts: UnsafeBufferPointer(
            start: bytes.baseAddress?.assumingMemoryBound(to: Int64.self), count: raw.items),
          now: boot + 3, wall: time.milliseconds),
        into: out)
      if case .allowed = outcome { return true }
      return false
    }
  }
}
