// A refund or an adjustment as the store sees it: which counters lose or get how much, worked out
// from the books beforehand (TollgateCore, `Correction`).
//
// Why this shape: what is left of an operation is the ledger's to say, and the ledger is asked
// outside of Redis. So there are two calls of one script. The look finds an answer that is recorded
// already, or says how far the outbox must be delivered before the books are whole, with a mark of
// the operation; the second call brings the counts and is refused where the mark has moved.

package import TollgateCore

package struct CorrectCall: ScriptCall {
  /// What the books must contain before anything is worked out from them, and when it was asked.
  package struct Look: Hashable, Sendable {
    package var mark: Int64
    /// The last sequence of the outbox then.
    package var sequence: Int64
    package var acknowledged: Int64
    package var time: WallTime
  }

  package struct Plan: Hashable, Sendable {
    package var correction: Correction
    package var look: Look
    package var kind: DeltaKind
    package var reason: Reason
    package var globalVersion: Int64
    package var accountVersion: Int64
    /// Encoded bodies of `correction.shares`, in their order.
    package var bodies: [[UInt8]]
    /// The encoded config delta of an operator's change; empty: none.
    package var change: [UInt8] = []
    /// What was owed of features as it was worked out; where it is not any more, it is overtaken.
    package var owed: [Name: Int64] = [:]

    package init(
      correction: Correction, look: Look, kind: DeltaKind, reason: Reason, globalVersion: Int64,
      accountVersion: Int64, bodies: [[UInt8]], change: [UInt8] = [], owed: [Name: Int64] = [:]
    ) {
      self.correction = correction
      self.look = look
      self.kind = kind
      self.reason = reason
      self.globalVersion = globalVersion
      self.accountVersion = accountVersion
      self.bodies = bodies
      self.change = change
      self.owed = owed
    }
  }

  package enum Reply: Hashable, Sendable {
    case looked(Look)
    /// `decided` where it was made now, `replayed` where it was made before.
    case answered(DecideReply)
    /// Somebody else corrected the operation, or the look is too old: look again.
    case overtaken
    /// The outbox holds as much undelivered as it may, or the records of operations are too many.
    case full
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var operation: OperationID
  package var fingerprint: OperationFingerprint
  /// Whose counters are moved: that of the operation corrected, or an account.
  package var subject: Subject
  package var corrected: OperationID?
  /// As asked; none: all of the operation. The answer is in their order.
  package var items: [Item]
  package var recordClass: RecordClass
  package var limits: StoreLimits
  /// nil: the look.
  package var plan: Plan?

  package init(
    keySpace: KeySpace, fence: Fence, operation: OperationID, fingerprint: OperationFingerprint,
    subject: Subject, corrected: OperationID?, items: [Item], recordClass: RecordClass,
    limits: StoreLimits, plan: Plan? = nil
  ) {
    self.keySpace = keySpace
    self.bucket = keySpace.bucket(of: subject)
    self.fence = fence
    self.operation = operation
    self.fingerprint = fingerprint
    self.subject = subject
    self.corrected = corrected
    self.items = items
    self.recordClass = recordClass
    self.limits = limits
    self.plan = plan
  }

  package var script: ScriptName { .correct }

  package var keys: [String] {
    let slice = OperationSlice.of(operation.time)
    let other = OperationSlice.of((corrected ?? operation).time)
    return [
      keySpace.meta(bucket), keySpace.outbox(bucket),
      keySpace.subject(bucket, subject.account), keySpace.audit(bucket),
      keySpace.corrected(bucket), keySpace.operations(bucket, recordClass, slice: slice),
      keySpace.operations(bucket, recordClass.other, slice: slice),
      keySpace.operations(bucket, .money, slice: other),
      keySpace.operations(bucket, .volume, slice: other),
    ] + (1...subject.depth).dropFirst().map { keySpace.subject(bucket, subject.prefix($0)) }
  }

  package var arguments: [RESPArgument] {
    var writer = MessagePackWriter()
    writer.append(String(fence.epoch))
    writer.append(fence.epoch)
    writer.append(operation.time.milliseconds)
    writer.append(limits.dedupeWindowMilliseconds)
    writer.append(recordClass.letter)
    writer.append(OperationSlice.of(operation.time))
    writer.append(limits.recordBytesMax(recordClass))
    writer.append(limits.outboxEntriesMax)
    writer.append(Int64(plan?.kind.rawValue ?? 0))
    writer.append(Int64(plan?.reason.rawValue ?? 0))
    writer.append(plan?.globalVersion ?? 0)
    writer.append(plan?.accountVersion ?? 0)
    writer.append(plan?.look.time.milliseconds ?? 0)
    writer.append(plan?.look.mark ?? 0)
    writer.append(plan?.correction.shares.count ?? 0)
    var result =
      fence.arguments + [
        .bytes(operation.bytes + fingerprint.bytes), .bytes(writer.bytes),
        .bytes(corrected?.bytes ?? []),
        .bytes(plan.map { CorrectionRecord.encode($0.correction) } ?? []),
        .bytes(plan?.change ?? []),
      ]
    guard let plan else { return result }
    for (share, body) in zip(plan.correction.shares, plan.bodies) {
      result.append(.bytes(Self.encode(share, plan.owed, of: subject)))
      result.append(.bytes(body))
    }
    return result
  }

  private static func encode(
    _ share: Correction.Share, _ owed: [Name: Int64], of subject: Subject
  ) -> [UInt8] {
    let (cells, parts) = (share.body.cells, share.body.parts)
    let billing = cells.firstIndex { $0.level == 1 && $0.period == share.body.period }
    var writer = MessagePackWriter(capacity: 64 * (cells.count + parts.count))
    writer.append(share.amount)
    writer.append(share.absorbed)
    writer.append(share.born.milliseconds)
    writer.append(billing.map { $0 + 1 } ?? 0)
    writer.append(cells.count + parts.count)
    // Below any counter: not looked at.
    let seen = share.isMove ? nil : owed[share.body.feature]
    writer.append(seen ?? -Quantity.maximum - 1)
    writer.append(share.isMove ? 1 : 0)
    func append(_ level: Int, _ window: Window, _ period: Period, _ change: Int64) {
      writer.append(min(level, subject.depth) - 1)
      writer.append(KeySpace.field(feature: share.body.feature, window: window))
      writer.append(period.start.milliseconds)
      writer.append(period.end.milliseconds)
      writer.append(change)
    }
    for cell in cells { append(cell.level, cell.window, cell.period, share.amount) }
    for part in parts { append(part.level, part.window, part.period, part.amount) }
    return writer.bytes
  }

  package func decode(_ reply: RESPReply) -> Reply {
    switch reply.code {
    case .counted?:
      guard let mark = reply[1].number, let sequence = reply[2].number,
        let acknowledged = reply[3].number, let time = reply[4].number
      else { return .answered(.error(reply.problem)) }
      return .looked(
        Look(
          mark: mark, sequence: sequence, acknowledged: acknowledged,
          time: WallTime(milliseconds: time)))
    case .conflict?: return .overtaken
    case .outboxFull?: return .full
    case .done?, .replayed?:
      var answer = DecideReply(reply)
      if let bytes = reply[1].bytes { answer.addCorrection(from: bytes, items) }
      return .answered(answer)
    default: return .answered(DecideReply(reply))
    }
  }

  /// The deltas it bore, as the ledger will get them.
  package func entries(_ decided: DecidedOperation) -> [OutboxEntry] {
    guard let plan, decided.entries.count == plan.correction.shares.count else { return [] }
    return zip(decided.entries, plan.correction.shares.indices).map { born, position in
      let share = plan.correction.shares[position]
      return OutboxEntry(
        sequence: born.sequence, kind: plan.kind,
        id: DeltaID(operation: operation, index: born.index), time: decided.bornAt,
        actual: share.actual, charged: share.amount, absorbed: share.absorbed,
        body: plan.bodies[position])
    }
  }
}

/// What the record of a correction says behind the part that all records have: the features, what
/// came back of each, and where to.
enum CorrectionRecord {
  /// As many as an answer can say; the deltas say them all.
  private static let burnsMax = 64

  /// features: name, amount, derived (2: only moved, from a debt to grants); then burns: item,
  /// grant or empty, amount; then per feature what is absorbed less, which records of older
  /// releases do not say: it was nothing.
  static func encode(_ correction: Correction) -> [UInt8] {
    var writer = MessagePackWriter(capacity: 128)
    writer.append(correction.shares.count)
    for share in correction.shares {
      writer.append(share.body.feature.text)
      writer.append(share.amount)
      writer.append(share.isMove ? 2 : share.isDerived ? 1 : 0)
    }
    let burns = correction.burns.prefix(burnsMax)
    writer.append(burns.count)
    for burn in burns {
      writer.append(burn.item)
      writer.append(burn.grant?.text ?? "")
      writer.append(burn.amount)
    }
    for share in correction.shares { writer.append(share.absorbed) }
    return writer.bytes
  }

  struct Feature {
    var name: Name
    var amount: Int64
    var absorbed: Int64 = 0
    var isDerived: Bool
    /// Nothing is charged more or less, and nothing is to be told but where units went.
    var isMove = false
  }

  /// From a whole record; nil where it is not that of a correction.
  static func decode(_ record: [UInt8]) -> (features: [Feature], burns: [Decision.Burn])? {
    guard record.count > 16 else { return nil }
    var reader = MessagePackReader(record, from: 16)
    for _ in 0..<9 { guard reader.integer() != nil else { return nil } }
    guard reader.text() != nil, reader.integer() != nil, let count = reader.integer(),
      (0...Int64(Resolution.itemsMax)).contains(count)
    else { return nil }
    for _ in 0..<count {
      guard reader.text() != nil else { return nil }
      for _ in 0..<4 { guard reader.integer() != nil else { return nil } }
    }
    guard reader.integer() == 0, let features = reader.integer(), features == count else {
      return nil
    }
    var found: [Feature] = []
    for _ in 0..<features {
      guard let text = reader.text(), let name = try? Name(text), let amount = reader.integer(),
        let derived = reader.integer()
      else { return nil }
      found.append(
        Feature(name: name, amount: amount, isDerived: derived == 1, isMove: derived == 2))
    }
    guard let count = reader.integer(), (0...Int64(burnsMax)).contains(count) else { return nil }
    var burns: [Decision.Burn] = []
    for _ in 0..<count {
      guard let item = reader.integer(), let grant = reader.text(), let amount = reader.integer()
      else { return nil }
      burns.append(
        Decision.Burn(
          item: Int(item), grant: grant.isEmpty ? nil : try? Name(grant), amount: amount))
    }
    for index in found.indices { found[index].absorbed = reader.integer() ?? 0 }
    return (found, burns)
  }
}

extension DecideReply {
  /// Settlements, burns and features of a correction, from its record.
  fileprivate mutating func addCorrection(from record: [UInt8], _ items: [Item]) {
    guard let (features, burns) = CorrectionRecord.decode(record) else { return }
    switch self {
    case .decided(var decided):
      decided.decision.describe(features, burns, items)
      self = .decided(decided)
    case .replayed(var decided):
      decided.decision.describe(features, burns, items)
      self = .replayed(decided)
    case .mismatch, .idTooOld, .idFromFuture, .expired, .stale, .rebuild, .period, .fenced,
      .holdsDue, .young, .holdsElsewhere, .planWanted, .notHeld, .error:
      break
    }
  }
}

extension Decision {
  /// Brings what is said by feature into the order of the items that were asked for, those that
  /// rates charged behind them.
  mutating func describe(
    _ features: [CorrectionRecord.Feature], _ burns: [Burn], _ asked: [Item]
  ) {
    var order = asked.map { item in
      features.firstIndex { $0.name == item.feature && !$0.isDerived && !$0.isMove }
    }
    order += features.indices.filter { features[$0].isDerived }
    let states = self.items
    items = order.map { place in
      place.flatMap { states.indices.contains($0) ? states[$0] : nil } ?? ItemState()
    }
    settlements = order.map { place in
      guard let feature = place.map({ features[$0] }) else {
        return Settlement(actual: 0, charged: 0)
      }
      return Settlement(actual: feature.amount + feature.absorbed, charged: feature.amount)
    }
    self.burns = burns.compactMap { burn in
      guard let item = order.firstIndex(of: burn.item) else { return nil }
      return Burn(item: item, grant: burn.grant, amount: burn.amount)
    }
    derived = features.filter(\.isDerived).map(\.name)
  }

  /// The answer to a correction whose effect is on record and whose answer is not any more.
  package init(
    corrected correction: Correction, _ asked: [Item], reason: Reason, time: WallTime,
    globalVersion: Int64
  ) {
    self.init(
      reason: reason, source: .redis, time: time, globalVersion: globalVersion, replayed: true)
    describe(
      correction.shares.map {
        .init(
          name: $0.body.feature, amount: $0.amount, absorbed: $0.absorbed,
          isDerived: $0.isDerived && !$0.isMove, isMove: $0.isMove)
      }, correction.burns, asked)
  }
}
