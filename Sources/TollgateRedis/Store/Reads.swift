// Reading: configuration, the outbox, the counters of an account. Plain commands where one answers
// the question; a read-only script where several values must be of one moment.

package import NIOCore
package import TollgateCore

/// A plain command with its decoder.
package struct ReadCommand<Value: Sendable>: Sendable {
  package let bucket: Int
  package let words: [RESPArgument]
  private let decoder: @Sendable (RESPReply) -> Value?

  init(
    bucket: Int, words: [RESPArgument], decoder: @escaping @Sendable (RESPReply) -> Value?
  ) {
    self.bucket = bucket
    self.words = words
    self.decoder = decoder
  }

  package func write(into buffer: inout ByteBuffer) { RESPWriter.write(words, to: &buffer) }

  /// `fenced` never occurs.
  package func decode(_ reply: RESPReply) -> StoreReply<Value> {
    decoder(reply).map { .done($0) } ?? .error(reply.problem)
  }
}

package struct StoredConfig: Hashable, Sendable {
  package var version: Int64
  package var config: String
}

package struct AccountHeader: Hashable, Sendable {
  /// The epoch it is seeded in; nil: never.
  package var epoch: Int64?
  /// The epoch in which nothing was known of the account when it was looked at, and nothing was
  /// counted since: such a header expires, and the first write replaces it.
  package var lookedAt: Int64?
  /// nil: there is no header. 0: one that nobody ever set.
  package var version: Int64?
  package var config: String?
  /// The changes made to it that are still known by their ids.
  package var memory = ChangeMemory()

  /// Whether what stands in Redis is all that is counted of the account.
  package func isCurrent(in epoch: Int64) -> Bool { self.epoch == epoch || lookedAt == epoch }

  /// From the text of field `e`.
  package mutating func setEpoch(_ text: String?) {
    epoch = text.flatMap { Int64($0) }
    lookedAt = text.flatMap { $0.hasSuffix("?") ? Int64($0.dropLast()) : nil }
  }
}

package struct BucketMeta: Hashable, Sendable {
  package var fence: FenceState
  package var globalVersion: Int64
  /// Latest Redis time seen, in microseconds.
  package var microseconds: Int64
  package var acknowledged: Int64
  package var moneyRecordBytes: Int64
  package var volumeRecordBytes: Int64
  package var predecessor: StreamPosition?
  /// Epochs whose outboxes were set aside and may hold what the ledger has not, oldest first.
  package var late: [Int64] = []
  /// The last sequence that was moved here out of one of them in this epoch; 0: none.
  package var moved: Int64 = 0

  /// The ledger has all that older outboxes of this bucket held.
  package var isSettled: Bool { late.isEmpty && acknowledged >= moved }

  /// Where it is; 0-0 where it names no epoch.
  package var position: StreamPosition {
    StreamPosition(epoch: fence.epoch ?? 0, sequence: fence.sequence ?? 0)
  }
}

package struct AuditEntry: Hashable, Sendable {
  package var streamID: String
  package var time: WallTime
  package var body: [UInt8]
  /// nil: written by a release that did not note it.
  package var operation: OperationID?
}

package enum Reads {
  /// nil: none was ever set, or it is lost.
  package static func global(_ keySpace: KeySpace) -> ReadCommand<StoredConfig?> {
    ReadCommand(
      bucket: keySpace.map.control,
      words: ["HMGET", .string(keySpace.global), "version", "cfg"]
    ) { reply in
      guard reply.array != nil else { return nil }
      guard let version = reply[0].number, let config = reply[1].text else { return .some(nil) }
      return StoredConfig(version: version, config: config)
    }
  }

  /// The global changes that are still known by their ids.
  package static func globalMemory(_ keySpace: KeySpace) -> ReadCommand<ChangeMemory> {
    ReadCommand(
      bucket: keySpace.map.control, words: ["HGET", .string(keySpace.global), "op"]
    ) { reply in
      reply.error == nil ? ChangeMemory(bytes: reply.bytes ?? []) : nil
    }
  }

  /// nil: nothing is recorded, or it is lost.
  package static func deployment(_ keySpace: KeySpace) -> ReadCommand<Deployment?> {
    ReadCommand(
      bucket: keySpace.map.control,
      words: [
        "HMGET", .string(keySpace.deploymentRecord), "id", "buckets", "hash", "keyVersion", "mode",
      ]
    ) { reply in
      guard reply.array != nil else { return nil }
      if reply[0].isNull { return .some(nil) }
      return DeploymentCall.recorded(reply, from: 0)
    }
  }

  package static func catalog(_ keySpace: KeySpace, version: Int64) -> ReadCommand<String?> {
    ReadCommand(
      bucket: keySpace.map.control,
      words: ["HGET", .string(keySpace.catalogs), .string(String(version))]
    ) { reply in
      if reply.isNull { return .some(nil) }
      return reply.text
    }
  }

  package static func catalogVersions(_ keySpace: KeySpace) -> ReadCommand<[Int64]> {
    ReadCommand(
      bucket: keySpace.map.control, words: ["HKEYS", .string(keySpace.catalogs)]
    ) { reply in reply.array?.compactMap(\.number).sorted() }
  }

  package static func header(_ keySpace: KeySpace, account: Subject) -> ReadCommand<AccountHeader> {
    let bucket = keySpace.bucket(of: account)
    return ReadCommand(
      bucket: bucket,
      words: ["HMGET", .string(keySpace.subject(bucket, account.account)), "e", "v", "cfg", "op"]
    ) { reply in
      guard reply.array != nil else { return nil }
      guard let memory = ChangeMemory(bytes: reply[3].bytes ?? []) else { return nil }
      var header = AccountHeader(
        version: reply[1].number, config: reply[2].text, memory: memory)
      header.setEpoch(reply[0].text)
      return header
    }
  }

  /// nil: the bucket has no meta.
  package static func meta(_ keySpace: KeySpace, bucket: Int) -> ReadCommand<BucketMeta?> {
    ReadCommand(
      bucket: bucket,
      words: [
        "HMGET", .string(keySpace.meta(bucket)), "f", "seq", "gv", "t", "ack", "om", "ov", "pf",
        "pfseq", "lt", "lm",
      ]
    ) { reply in
      guard reply.array != nil else { return nil }
      guard let text = reply[0].text else { return .some(nil) }
      return BucketMeta(
        fence: FenceState(text: text, sequence: reply[1].number),
        globalVersion: reply[2].number ?? 0, microseconds: reply[3].number ?? 0,
        acknowledged: reply[4].number ?? 0, moneyRecordBytes: reply[5].number ?? 0,
        volumeRecordBytes: reply[6].number ?? 0,
        predecessor: reply[7].number.map {
          StreamPosition(epoch: $0, sequence: reply[8].number ?? 0)
        },
        late: (reply[9].text ?? "").split(separator: " ").compactMap { Int64($0) },
        moved: reply[10].number ?? 0)
    }
  }

  /// The oldest entries of an outbox that was set aside.
  package static func lateOutbox(
    _ keySpace: KeySpace, bucket: Int, epoch: Int64, count: Int
  ) -> ReadCommand<LatePage> {
    ReadCommand(
      bucket: bucket,
      words: [
        "XRANGE", .string(keySpace.late(bucket, epoch: epoch)), "-", "+", "COUNT",
        .integer(Int64(count)),
      ]
    ) { reply in
      guard let array = reply.array, let entries = OutboxCodec.entries(reply) else { return nil }
      let last = array.last?[0].text?.split(separator: "-").last.flatMap { Int64($0) }
      return LatePage(
        entries: entries.map(\.entry), through: last ?? 0,
        unreadable: array.count - entries.count)
    }
  }

  /// Entries after `position` of its epoch, in order; at most `count`.
  package static func outbox(
    _ keySpace: KeySpace, bucket: Int, after position: StreamPosition, count: Int
  ) -> ReadCommand<[OutboxEntry]> {
    ReadCommand(
      bucket: bucket,
      words: [
        "XRANGE", .string(keySpace.outbox(bucket)),
        .string("(\(position.epoch)-\(position.sequence)"), .string("\(position.epoch)"),
        "COUNT", .integer(Int64(count)),
      ]
    ) { reply in OutboxCodec.entries(reply)?.map(\.entry) }
  }

  /// The newest entries of the outbox, the newest first, delivered or not.
  package static func newest(
    _ keySpace: KeySpace, bucket: Int, count: Int
  ) -> ReadCommand<[OutboxEntry]> {
    ReadCommand(
      bucket: bucket,
      words: [
        "XREVRANGE", .string(keySpace.outbox(bucket)), "+", "-", "COUNT", .integer(Int64(count)),
      ]
    ) { reply in OutboxCodec.entries(reply)?.map(\.entry) }
  }

  /// Whatever survives in the outbox, of any epoch: what recovery presents.
  package static func survivingOutbox(
    _ keySpace: KeySpace, bucket: Int, after position: StreamPosition, count: Int
  ) -> ReadCommand<[PositionedEntry]> {
    ReadCommand(
      bucket: bucket,
      words: [
        "XRANGE", .string(keySpace.outbox(bucket)),
        .string("(\(position.epoch)-\(position.sequence)"), "+", "COUNT", .integer(Int64(count)),
      ]
    ) { reply in OutboxCodec.entries(reply) }
  }

  /// The latest audit entries, newest first; `end`: from this stream id on (`(` in front of one:
  /// below it).
  package static func audit(
    _ keySpace: KeySpace, bucket: Int, count: Int, from end: String = "+"
  ) -> ReadCommand<[AuditEntry]> {
    ReadCommand(
      bucket: bucket,
      words: [
        "XREVRANGE", .string(keySpace.audit(bucket)), .string(end), "-", "COUNT",
        .integer(Int64(count)),
      ]
    ) { reply in
      reply.array?.compactMap { entry in
        guard let id = entry[0].text, let body = entry[1][3].bytes, let time = entry[1][1].number
        else { return nil }
        return AuditEntry(
          streamID: id, time: WallTime(milliseconds: time), body: body,
          operation: entry[1][5].bytes.flatMap { OperationID(bytes: $0[...]) })
      }
    }
  }

  package static func counters(
    _ keySpace: KeySpace, subject: Subject
  ) -> ReadCommand<SubjectCounters> {
    let bucket = keySpace.bucket(of: subject)
    return ReadCommand(
      bucket: bucket, words: ["HGETALL", .string(keySpace.subject(bucket, subject))]
    ) { reply in SubjectCounters(flat: reply.array ?? []) }
  }
}

/// The first part of an outbox that was set aside.
package struct LatePage: Hashable, Sendable {
  package var entries: [OutboxEntry]
  /// The last sequence of the page, readable or not; 0: there is nothing.
  package var through: Int64
  package var unreadable: Int
}

package struct PositionedEntry: Hashable, Sendable {
  package var epoch: Int64
  package var entry: OutboxEntry
}

package enum OutboxCodec {
  /// nil where the reply is not a stream range; an entry of another shape is left out, and shows
  /// as a gap in the sequence.
  package static func entries(_ reply: RESPReply) -> [PositionedEntry]? {
    guard let array = reply.array else { return nil }
    return array.compactMap { element in
      guard let id = element[0].text, let dash = id.firstIndex(of: "-"),
        let epoch = Int64(id[..<dash]), let sequence = Int64(id[id.index(after: dash)...]),
        let fields = element[1].array, fields.count >= 4, let numbers = fields[1].bytes,
        numbers.count > 16, let body = fields[3].bytes,
        let operation = OperationID(bytes: numbers[..<16])
      else { return nil }
      var reader = MessagePackReader(numbers, from: 16)
      guard let kindCode = reader.integer(), let kind = UInt8(exactly: kindCode),
        let indexCode = reader.integer(), let index = UInt16(exactly: indexCode),
        let time = reader.integer(), let actual = reader.integer(),
        let charged = reader.integer(), let absorbed = reader.integer()
      else { return nil }
      return PositionedEntry(
        epoch: epoch,
        entry: OutboxEntry(
          sequence: sequence, kind: DeltaKind(rawValue: kind),
          id: DeltaID(operation: operation, index: index),
          time: WallTime(milliseconds: time), actual: actual, charged: charged,
          absorbed: absorbed, body: body))
    }
  }
}
