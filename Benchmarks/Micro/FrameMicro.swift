// Frames of 16 leased consumes through the fast path itself, from the bytes of the frame to the bytes
// of its answer: `lease.frame` without anything around it, `lease.turn` with all of it settled after
// four frames, in a table so small that its ring turns many times.

import Glibc
import NIOCore
import TollgateCore
import TollgateServer
import TollgateWire

extension Micro {
  private static let records = 16

  static func leaseFrame() throws -> Body {
    let frames = try Frames(operations: 1 << 22)
    return { count in
      for index in 0..<count {
        guard frames.answer() else { return -1 }
        // Beyond what the gates count: the table has room for some 8,000.
        if index % 4_096 == 4_095, frames.settle() == 0 { return -1 }
      }
      return frames.answered
    }
  }

  static func leaseTurn() throws -> Body {
    let frames = try Frames(operations: 1 << 16)
    return { count in
      for _ in 0..<count {
        for _ in 0..<4 { guard frames.answer() else { return -1 } }
        guard frames.settle() > 0 else { return -1 }
      }
      return frames.answered
    }
  }

  /// One frame, with ids of its own each time, of 16 accounts that hold a lease each.
  private final class Frames {
    private let path: LeaseFastPath
    private let out = OutBytes(capacity: 1 << 16)
    private var payload: [UInt8]
    private let begun: Int64
    private var now: Int64
    private var left = [Int64](repeating: 0, count: 100)
    private var minted: UInt64 = 0
    private(set) var answered = 0

    init(operations: Int) throws {
      let configuration = try ServeEntry.configuration(
        yaml: """
          deployment: {id: micro, buckets: 1, mode: dev}
          sidecar_id: micro
          listen: {unix: /none}
          redis: {address: "unix:/none"}
          ledger: {address: "unix:/none"}
          leases: {operations: \(operations)}
          """, environment: [:])
      path = try LeaseFastPath(alone: configuration, at: time)
      var clock = timespec()
      unsafe clock_gettime(CLOCK_BOOTTIME, &clock)
      begun = Int64(clock.tv_sec) * 1_000_000_000 + Int64(clock.tv_nsec)
      now = begun
      var batch: [OperationRecord] = []
      for number in 0..<records {
        let account = "acct-\(100_000 + number)"
        var record = try record()
        record.subject = try Subject("\(account)/m0013")
        guard let key = record.shape else { throw Failure.lease }
        try register(account, key: key, in: path.table, bucket: 0, now: now)
        batch.append(record)
      }
      var buffer = ByteBuffer()
      OperationBatch(batch).encode(into: &buffer)
      payload = Array(buffer.readableBytesView)
      guard settle() > 0 else { throw Failure.lease }
    }

    func answer() -> Bool {
      out.clear()
      let wall = time.milliseconds + (now - begun) / 1_000_000
      let isAnswered = unsafe payload.withUnsafeMutableBytes { payload in
        // All records are as long as each other: u16 length, then the id.
        for offset in stride(from: 6, to: payload.count, by: (payload.count - 4) / records) {
          minted += 1
          let high = UInt64(wall) << 16
          unsafe payload.storeBytes(of: high.bigEndian, toByteOffset: offset, as: UInt64.self)
          unsafe payload.storeBytes(of: minted.bigEndian, toByteOffset: offset + 8, as: UInt64.self)
        }
        return unsafe path.answer(
          FastFrame(
            opcode: .consume, correlation: minted, deadlineMilliseconds: 0, features: [],
            now: now, payload: UnsafeRawBufferPointer(payload)), into: out)
      }
      path.turnEnded()
      answered += out.count
      return isAnswered
    }

    func settle() -> Int {
      now += 20_000_000
      return Micro.settle(path.table, bucket: 0, now: now, left: &left)
    }
  }
}
