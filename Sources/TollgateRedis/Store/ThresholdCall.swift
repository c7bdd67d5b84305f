// Thresholds of one limit that were found reached: the script asks the counter again, notes each
// of them once for its period, and puts a delta into the outbox for it.

package import TollgateCore

package struct ThresholdCall: ScriptCall {
  package struct Outcome: Hashable, Sendable {
    /// Those noted now, with where their deltas lie; empty: all were noted before.
    package var entries: [OutboxEntry]
    package var epoch: Int64
  }

  package enum Reply: Hashable, Sendable {
    case done(Outcome)
    /// Judged under another configuration, another reset, or in a period that is over: look again.
    case stale
    /// The account's counters are not seeded.
    case rebuild
    case outboxFull
    case fenced(FenceState)
    case error(String)
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var reading: ThresholdReading
  package var globalVersion: Int64
  package var accountVersion: Int64
  package var outboxEntriesMax: Int64

  package init(
    keySpace: KeySpace, fence: Fence, reading: ThresholdReading, globalVersion: Int64,
    accountVersion: Int64, outboxEntriesMax: Int64
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: reading.subject)
    self.fence = fence
    self.reading = reading
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.outboxEntriesMax = outboxEntriesMax
  }

  package var script: ScriptName { .threshold }
  package var keys: [String] {
    let subject = reading.subject
    return [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.subject(bucket, subject.account),
    ] + (subject.depth > 1 ? [keySpace.subject(bucket, subject)] : [])
  }
  package var arguments: [RESPArgument] {
    var forgives = true
    if case .grant = reading.window.tally { forgives = false }
    var arguments: [RESPArgument] =
      fence.arguments + [
        .integer(fence.epoch), .integer(globalVersion), .integer(accountVersion),
        .string(KeySpace.field(feature: reading.feature, window: reading.window)),
        .integer(reading.period.start.milliseconds), .integer(reading.forgiven),
        forgives ? "1" : "0", .string(KeySpace.field(threshold: reading.limit)),
        .integer(reading.amount), .integer(outboxEntriesMax),
      ]
    for percent in reading.reached {
      let body = reading.body(percent)
      arguments += [
        .integer(percent), .integer(ThresholdReading.units(percent, of: reading.amount)),
        .bytes(body.id(forgiven: reading.forgiven).operation.bytes), .bytes(body.encode()),
      ]
    }
    return arguments
  }

  package func decode(_ reply: RESPReply) -> Reply {
    switch reply.code {
    case .done?:
      guard let epoch = reply[1].number, let first = reply[2].number, let time = reply[3].number,
        let words = reply.array
      else { return .error(reply.problem) }
      let entries = words.dropFirst(4).enumerated().compactMap { offset, word in
        word.number.map { percent in
          let body = reading.body(percent)
          return OutboxEntry(
            sequence: first + Int64(offset), kind: .threshold,
            id: body.id(forgiven: reading.forgiven), time: WallTime(milliseconds: time), actual: 0,
            charged: 0, absorbed: 0, body: body.encode())
        }
      }
      return .done(Outcome(entries: entries, epoch: epoch))
    case .stale?, .period?: return .stale
    case .rebuild?: return .rebuild
    case .outboxFull?: return .outboxFull
    case .fenced?: return .fenced(reply.fenceState)
    default: return .error(reply.problem)
    }
  }
}
