// What is measured by itself: the codec of the data path, the evaluator, RESP. Each entry makes
// its inputs first and gives back the loop, so that only the loop grows with the count.

import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

enum Micro {
  typealias Body = (Int) throws -> Int

  static let all: [String: @Sendable () throws -> Body] = [
    "consume.encode": consumeEncode,
    "consume.decode": consumeDecode,
    "consume.raw": consumeRaw,
    "decisions.encode": decisionsEncode,
    "decisions.decode": decisionsDecode,
    "answer.template": answerTemplate,
    "evaluator.decide": evaluatorDecide,
    "lease.frame": leaseFrame,
    "lease.spend": leaseSpend,
    "lease.turn": leaseTurn,
    "resp.write": respWrite,
    "resp.read": respRead,
  ]

  static let time = WallTime(milliseconds: 1_700_000_000_000)

  static func record() throws -> OperationRecord {
    OperationRecord(
      id: OperationID(high: 0x0199_5A7C_33E1_D00D, low: 0xA1B2_93C4_85D6_77E8),
      subject: try Subject("acct-000417/m0013"),
      items: [Item(feature: try Name("chat.requests"), amount: 1)])
  }

  static func decision() throws -> Decision {
    var decision = Decision(
      reason: .allowed, source: .redis, time: time, globalVersion: 3, accountVersion: 1)
    decision.items = [
      Decision.ItemState(
        limit: try Name("chat.month"), remaining: 1_000_000, settled: 1000, held: 0,
        reset: time + 86_400_000)
    ]
    return decision
  }

  // MARK: - Codec

  static func consumeEncode() throws -> Body {
    let batch = OperationBatch([try record()])
    var buffer = ByteBuffer()
    buffer.reserveCapacity(4096)
    return { count in
      var sum = 0
      for index in 0..<count {
        buffer.clear()
        buffer.writeFrame(.consume, batch, correlation: UInt64(index + 1))
        sum &+= buffer.readableBytes
      }
      return sum
    }
  }

  static func consumeDecode() throws -> Body {
    var payload = ByteBuffer()
    OperationBatch([try record()]).encode(into: &payload)
    return { count in
      var sum = 0
      for _ in 0..<count {
        var bytes = payload
        for case .success(let record) in try OperationBatch.decodeEach(from: &bytes) {
          sum &+= record.items.count
        }
      }
      return sum
    }
  }

  /// As an answer from memory reads it: in place, into a shape.
  static func consumeRaw() throws -> Body {
    var payload = ByteBuffer()
    OperationBatch([try record()]).encode(into: &payload)
    var shape = [UInt8](repeating: 0, count: RawRecord.shapeBytesMax)
    return { count in
      unsafe shape.withUnsafeMutableBytes { shape in
        unsafe payload.withUnsafeReadableBytes { bytes in
          var sum = 0
          for _ in 0..<count {
            guard var records = unsafe RawRecords(bytes, max: WireLimits.recordsMax) else {
              return -1
            }
            while let next = unsafe records.next() {
              guard let record = unsafe RawRecord(next, shape: shape) else { return -1 }
              sum &+= record.shapeBytes &+ Int(record.amounts[0])
            }
          }
          return sum
        }
      }
    }
  }

  static func decisionsEncode() throws -> Body {
    let batch = DecisionBatch([.decision(try decision())])
    var buffer = ByteBuffer()
    buffer.reserveCapacity(4096)
    return { count in
      var sum = 0
      for index in 0..<count {
        buffer.clear()
        buffer.writeFrame(batch, correlation: UInt64(index + 1))
        sum &+= buffer.readableBytes
      }
      return sum
    }
  }

  static func decisionsDecode() throws -> Body {
    var payload = ByteBuffer()
    DecisionBatch([.decision(try decision())]).encode(into: &payload)
    return { count in
      var sum = 0
      for _ in 0..<count {
        var bytes = payload
        sum &+= try DecisionBatch.decode(from: &bytes).records.count
      }
      return sum
    }
  }

  /// The bytes of an answer and the numbers in it, as they are written for an answer from memory.
  static func answerTemplate() throws -> Body {
    let template = AnswerTemplate(try decision())
    var out = [UInt8](repeating: 0, count: template.bytes.count)
    return { count in
      unsafe out.withUnsafeMutableBytes { out in
        var sum = 0
        for index in 0..<count {
          unsafe out.copyBytes(from: template.bytes)
          unsafe out.storeBytes(
            of: Int64(index).littleEndian, toByteOffset: template.timeOffset, as: Int64.self)
          for offset in template.itemOffsets {
            unsafe out.storeBytes(
              of: Int64(index).littleEndian, toByteOffset: offset, as: Int64.self)
          }
          sum &+= unsafe Int(out[template.timeOffset])
        }
        return sum
      }
    }
  }

  // MARK: - Evaluator

  /// One subject, one quota; each operation new, as the oracle is used. It remembers operations,
  /// so its memory grows with the count.
  static func evaluatorDecide() throws -> Body {
    let text = """
      {"levels": ["account"], "features": {"f": {"metered": true}}, "plans": {"p": {"f": [
        {"id": "f.month", "quota": 1000000000, "per": "month"}]}}}
      """
    guard case .success(let catalog) = CatalogReader.read(try Document(json: text)) else {
      throw Failure.catalog
    }
    let subject = try Subject("acme")
    let items = [Item(feature: try Name("f"), amount: 1)]
    let global = GlobalConfig(version: 1, catalogVersion: 1, catalog: catalog, bypasses: [])
    let account = AccountConfig(version: 1, plan: try Name("p"))
    let resolution = Resolution.resolve(
      subject: subject, items: items, global: global, account: account, now: time, zones: .utcOnly)
    return { count in
      var evaluator = Evaluator()
      evaluator.state.globalVersion = 1
      evaluator.state.accountVersions[subject] = 1
      var sum = 0
      for index in 0..<count {
        let request = Evaluator.Request(
          id: OperationID(high: UInt64(time.milliseconds) << 16, low: UInt64(index)),
          subject: subject, items: items)
        let outcome = evaluator.decide(
          request, resolution: resolution, versions: .init(global: 1, account: 1),
          nowMicroseconds: time.milliseconds * 1000, mode: .consume)
        if case .decided(let decision, _) = outcome { sum &+= Int(decision.reason.rawValue) + 1 }
      }
      return sum
    }
  }

  enum Failure: Error { case catalog, lease }

  // MARK: - RESP

  static func respWrite() throws -> Body {
    let words = (0..<24).map { [UInt8]("argument \($0) of a script call".utf8) }
    var buffer = ByteBuffer()
    buffer.reserveCapacity(4096)
    return { count in
      var sum = 0
      for index in 0..<count {
        buffer.clear()
        var writer = RESPWriter()
        writer.begin(&buffer, count: words.count + 1)
        for word in words { writer.append(word, to: &buffer) }
        writer.append(integer: Int64(index), to: &buffer)
        sum &+= buffer.readableBytes
      }
      return sum
    }
  }

  /// As `decide` answers: an array of one bulk string.
  static func respRead() throws -> Body {
    let reply = ByteBuffer(string: "*1\r\n$48\r\n" + String(repeating: "x", count: 48) + "\r\n")
    let reader = RESPReader()
    return { count in
      var sum = 0
      for _ in 0..<count {
        reader.feed(reply)
        while try reader.next() != nil { sum &+= 1 }
      }
      return sum
    }
  }
}
