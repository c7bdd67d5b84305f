// A reset by an operator: a cell's usage is forgiven, or a rate's whole burst is available again.
// Each bears a config delta and an audit entry like every change, and happens once per id.

package import TollgateCore

/// A cell: limits see settled − forgiven, the bill sees settled, and only what is forgiven changes,
/// so deltas in flight do not matter (PITFALL 27). A rate: its arrival time becomes now.
package struct ResetCall: ScriptCall {
  package enum Target: Hashable, Sendable {
    /// `value`: what limits shall see; 0 for a reset.
    case cell(Window, Period, value: Int64)
    case rate(limit: Name)
  }

  package struct Outcome: Hashable, Sendable {
    package var position: StreamPosition
    package var time: WallTime
    /// What limits saw before and see now; of a rate, the microseconds it was ahead.
    package var before: Int64
    package var after: Int64
  }

  package enum Reply: Hashable, Sendable {
    case done(Outcome)
    case known(KnownChange)
    /// The period given is not the current one.
    case period(now: WallTime)
    case rebuild
    case outboxFull
    case fenced(FenceState)
    case error(String)
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var change: ChangeKey
  /// Of exactly the level of the cell or rate.
  package var subject: Subject
  package var feature: Name
  package var target: Target
  /// The encoded `ConfigDelta` of scope `counter`. The entry's `actual` and `absorbed` carry the
  /// change (after − before), its `charged` is 0.
  package var body: [UInt8]
  package var outboxEntriesMax: Int64

  package init(
    keySpace: KeySpace, fence: Fence, change: ChangeKey, subject: Subject, feature: Name,
    target: Target, body: [UInt8], outboxEntriesMax: Int64
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.change = change
    self.subject = subject
    self.feature = feature
    self.target = target
    self.body = body
    self.outboxEntriesMax = outboxEntriesMax
  }

  package var script: ScriptName { .counterReset }
  package var keys: [String] {
    var keys = [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.subject(bucket, subject.account),
      keySpace.audit(bucket),
    ]
    if subject.depth > 1 {
      keys += [
        keySpace.index(bucket, account: subject.account), keySpace.subject(bucket, subject),
      ]
    }
    return keys
  }
  package var arguments: [RESPArgument] {
    let field: [RESPArgument] =
      switch target {
      case .cell(let window, let period, let value):
        [
          .string(KeySpace.field(feature: feature, window: window)),
          .integer(period.start.milliseconds), .integer(period.end.milliseconds), .integer(value),
        ]
      case .rate(let limit): [.string(KeySpace.field(feature: feature, rate: limit)), "", "", "0"]
      }
    return fence.arguments + [.integer(fence.epoch), change.argument] + field + [
      .bytes(body), .integer(Int64(Self.hole(in: body) ?? 0)), .integer(outboxEntriesMax),
    ]
  }

  // MARK: - The number before

  private static let holeBytes = 17

  /// The state before, as text with room for the number that only the script knows.
  package static let before = "{\"used\":" + String(repeating: " ", count: holeBytes) + "}"

  /// Where the number goes; nil where the body has no room for it.
  private static func hole(in body: [UInt8]) -> Int? {
    let pattern = Array(before.utf8)
    guard body.count >= pattern.count else { return nil }
    // From the end: what people wrote, and could contrive, stands in front of it.
    for start in stride(from: body.count - pattern.count, through: 0, by: -1)
    where body[start..<start + pattern.count].elementsEqual(pattern) {
      return start + pattern.count - holeBytes - 1
    }
    return nil
  }

  /// The body as the script wrote it.
  package func body(before: Int64) -> [UInt8] {
    guard let hole = Self.hole(in: body) else { return body }
    let digits = Array(String(before).utf8)
    var filled = body
    filled.replaceSubrange(hole..<hole + min(digits.count, Self.holeBytes), with: digits)
    return filled
  }

  package func decode(_ reply: RESPReply) -> Reply {
    if let known = KnownChange(reply) { return .known(known) }
    switch reply.code {
    case .done?:
      guard let epoch = reply[1].number, let sequence = reply[2].number,
        let time = reply[3].number, let before = reply[4].number, let after = reply[5].number
      else { return .error(reply.problem) }
      return .done(
        Outcome(
          position: StreamPosition(epoch: epoch, sequence: sequence),
          time: WallTime(milliseconds: time), before: before, after: after))
    case .period?:
      return reply[1].number.map { .period(now: WallTime(milliseconds: $0)) }
        ?? .error(reply.problem)
    case .rebuild?: return .rebuild
    case .outboxFull?: return .outboxFull
    case .fenced?: return .fenced(reply.fenceState)
    default: return .error(reply.problem)
    }
  }
}
