// Random legal messages: every field over its whole range, with a liking for the ends of it.

import NIOCore
import TollgateCore
import TollgateTesting

@testable import TollgateWire

struct RandomMessages {
  var random: SeededRandom

  /// One random frame of `opcode` with its description.
  mutating func frame(_ opcode: Opcode) -> ByteBuffer {
    var buffer = ByteBuffer()
    let correlation: UInt64
    switch opcode.kind {
    case .push: correlation = 0
    case .replyOrPush:
      correlation = random.chance(0.5) ? 0 : UInt64.random(in: 1 ... .max, using: &random)
    case .request, .reply: correlation = UInt64.random(in: 1 ... .max, using: &random)
    }
    let deadline: UInt32 =
      opcode.kind == .request
      ? UInt32.random(in: 0...WireLimits.deadlineMillisecondsMax, using: &random) : 0
    let flags: FrameFlags = random.chance(0.5) ? opcode.allowedFlags : []
    let message = message(opcode)
    buffer.writeFrame(
      opcode, message, correlation: correlation, deadlineMilliseconds: deadline, flags: flags)
    return buffer
  }

  mutating func message(_ opcode: Opcode) -> any WireMessage {
    switch opcode {
    case .hello:
      Hello(
        role: pick(Role.allCases), client: text(64), token: text(512),
        versionMin: UInt8.random(in: 0...9, using: &random),
        versionMax: UInt8.random(in: 9...255, using: &random),
        features: ProtocolFeatures(rawValue: word()))
    case .welcome: welcome()
    case .ping: Ping(nonce: random.next())
    case .pong: Pong(nonce: random.next())
    case .goAway:
      GoAway(code: pick(ErrorCode.allCases), graceMilliseconds: word(), message: text(512))
    case .error:
      ErrorReply(
        code: pick(ErrorCode.allCases), message: text(512),
        field: random.chance(0.5) ? nil : "f" + text(254))
    case .check, .consume, .post, .cancel: OperationBatch(list(1...4) { $0.operation() })
    case .reserve: ReserveBatch(list(1...4) { $0.reserve() })
    case .settle: SettleBatch(list(1...4) { $0.settle() })
    case .release: ReleaseBatch(list(1...4) { $0.release() })
    case .extend: ExtendBatch(list(1...4) { $0.extend() })
    case .refund: RefundBatch(list(1...4) { $0.refund() })
    case .decisions: DecisionBatch(list(0...4) { $0.decision() })
    case .admin:
      AdminRequest(rawMethod: UInt16.random(in: 0 ... .max, using: &random), body: bytes(200))
    case .adminReply:
      AdminReply(status: random.chance(0.5) ? nil : pick(ErrorCode.allCases), body: bytes(200))
    case .query:
      QueryRequest(rawMethod: UInt16.random(in: 0 ... .max, using: &random), body: bytes(200))
    case .queryReply:
      QueryReply(status: random.chance(0.5) ? nil : pick(ErrorCode.allCases), body: bytes(200))
    case .link: Link(deployment: deployment(), sidecar: name(), incarnation: random.next())
    case .linked:
      Linked(
        deployment: deployment(),
        buckets: list(0...5) {
          .init(bucket: $0.bucket(), epoch: $0.ordinal(), cursor: $0.ordinal())
        })
    case .batch:
      DeltaBatch(bucket: bucket(), epoch: ordinal(), previous: ordinal(), entries: entries())
    case .batchReply:
      BatchReply(
        status: pick(BatchReply.Status.allCases), bucket: bucket(), epoch: ordinal(),
        cursor: ordinal(), lastSequence: ordinal(), duplicates: list(0...5) { $0.deltaID() })
    case .recover:
      Recover(
        bucket: bucket(), epoch: ordinal(), metaEpoch: ordinal(), metaSequence: ordinal())
    case .presentRequest: PresentRequest(bucket: bucket(), epoch: ordinal(), cursor: ordinal())
    case .present: Present(bucket: bucket(), epoch: ordinal(), entries: entries())
    case .epoch:
      EpochNotice(
        bucket: bucket(), epoch: ordinal(), opener: name(), previousEpoch: ordinal(),
        previousLast: ordinal())
    case .balances: BalancesRequest(account: subject(depth: 1), since: time())
    case .balancesReply:
      BalancesReply(
        account: subject(depth: 1), version: ordinal(), config: bytes(300),
        balances: list(0...4) {
          .init(
            subject: $0.subject(), feature: $0.name(), window: $0.window(), period: $0.period(),
            settled: $0.quantity(), forgiven: $0.quantity())
        })
    case .config: ConfigRequest(account: random.chance(0.5) ? nil : subject(depth: 1))
    case .configReply:
      ConfigReply(
        account: random.chance(0.5) ? nil : subject(depth: 1), version: ordinal(),
        document: bytes(300))
    }
  }

  // MARK: parts

  mutating func operation() -> OperationRecord {
    OperationRecord(
      id: id(), subject: subject(), items: items(1), attributes: attributes(), traceParent: trace())
  }

  mutating func decision() -> DecisionRecord {
    if random.chance(0.2) { return .error(pick(ErrorCode.allCases), message: text(512)) }
    let bindingItem: Int? = random.chance(0.5) ? nil : Int.random(in: 0...15, using: &random)
    return .decision(
      Decision(
        reason: pick(Reason.allCases), source: pick(Source.allCases), binding: optionalName(),
        bindingItem: bindingItem, retryAfter: optionalOrdinal(), time: time(),
        globalVersion: ordinal(), accountVersion: ordinal(), replayed: random.chance(0.5),
        items: list(0...WireLimits.itemsMax) {
          .init(
            limit: $0.optionalName(), remaining: $0.optionalOrdinal(), settled: $0.quantity(),
            held: $0.ordinal(), reset: $0.optionalOrdinal().map { WallTime(milliseconds: $0) })
        }, expires: random.chance(0.5) ? nil : time(), settlements: settlements(), burns: burns(),
        derived: random.chance(0.7) ? [] : list(0...WireLimits.itemsMax) { $0.name() }))
  }

  private mutating func welcome() -> Welcome {
    Welcome(
      version: 1, role: pick(Role.allCases), features: ProtocolFeatures(rawValue: word()),
      deployment: name(), sidecar: name(), frameBytesMax: word(), inFlightMax: word(),
      recordsMax: word(),
      defaultDeadlineMilliseconds: word(), maxDeadlineMilliseconds: word(),
      idleTimeoutMilliseconds: word(), time: time(), globalVersion: ordinal(),
      policies: list(0...5) {
        let policy: FailurePolicy =
          $0.random.chance(0.3)
          ? .closed : $0.random.chance(0.5) ? .stale : .open(allowance: $0.ordinal())
        return FeaturePolicy(feature: $0.name(), policy: policy)
      }, sidecarFeatures: Set(list(0...5) { $0.name() }).sorted())
  }

  mutating func usageBody() -> UsageBody {
    UsageBody(
      subject: subject(), feature: name(), period: period(),
      cells: list(0...8) {
        CellReference(
          level: Int.random(in: 1...5, using: &$0.random), window: $0.window(), period: $0.period())
      },
      catalogVersion: ordinal(), source: pick(Source.allCases), attributes: attributes(),
      traceParent: trace(), parts: parts(), charges: charges(),
      corrects: random.chance(0.5) ? nil : id())
  }

  mutating func configDelta() -> ConfigDelta {
    ConfigDelta(
      scope: pick(ConfigDelta.Scope.allCases), key: text(300), version: ordinal(),
      action: text(40), actor: text(40), reason: text(200),
      before: String(repeating: "b", count: edge(0...80_000)),
      after: String(repeating: "ä", count: edge(0...40_000)))
  }

  mutating func entries() -> [OutboxEntry] {
    list(0...4) {
      OutboxEntry(
        sequence: $0.ordinal(), kind: $0.pick(DeltaKind.allCases), id: $0.deltaID(),
        time: $0.time(), actual: Int64(bitPattern: $0.random.next()),
        charged: Int64(bitPattern: $0.random.next()), absorbed: Int64(bitPattern: $0.random.next()),
        body: $0.bytes(200))
    }
  }

  mutating func list<T>(_ range: ClosedRange<Int>, _ make: (inout Self) -> T) -> [T] {
    (0..<Int.random(in: range, using: &random)).map { _ in make(&self) }
  }

  mutating func pick<T>(_ values: [T]) -> T {
    values[Int.random(in: values.indices, using: &random)]
  }

  /// Somewhere in the range, and often at an end of it.
  mutating func edge(_ range: ClosedRange<Int>) -> Int {
    switch Int.random(in: 0...9, using: &random) {
    case 0: range.lowerBound
    case 1: range.upperBound
    default: Int.random(in: range, using: &random)
    }
  }

  mutating func word() -> UInt32 { UInt32.random(in: 0 ... .max, using: &random) }
  mutating func bucket() -> UInt32 { UInt32(edge(0...Deployment.bucketsMax)) }
  mutating func ordinal() -> Int64 { Int64(edge(0...Int(Quantity.maximum))) }
  mutating func quantity() -> Int64 { Int64(edge(-Int(Quantity.maximum)...Int(Quantity.maximum))) }
  mutating func optionalOrdinal() -> Int64? { random.chance(0.5) ? nil : ordinal() }
  mutating func optionalName() -> Name? { random.chance(0.5) ? nil : name() }
  mutating func time() -> WallTime { WallTime(milliseconds: quantity()) }
  mutating func id() -> OperationID { OperationID(high: random.next(), low: random.next()) }

  mutating func deltaID() -> DeltaID {
    DeltaID(operation: id(), index: UInt16.random(in: 0 ... .max, using: &random))
  }

  mutating func period() -> Period {
    let start = Int64(edge(-1_000_000...1_000_000_000))
    return Period(
      start: WallTime(milliseconds: start),
      end: WallTime(milliseconds: start + Int64(edge(1...1_000_000))))
  }

  mutating func deployment() -> Deployment {
    var deployment = Deployment(
      id: name(), buckets: edge(1...Deployment.bucketsMax), mode: pick(Deployment.Mode.allCases))
    deployment.keyVersion = edge(0...Int(UInt32.max))
    deployment.hash = name().text
    return deployment
  }

  mutating func bytes(_ max: Int) -> [UInt8] {
    (0..<Int.random(in: 0...max, using: &random)).map { _ in
      UInt8.random(in: 0 ... .max, using: &random)
    }
  }

  /// Valid UTF-8 of at most `max` bytes, of one to four bytes a character.
  mutating func text(_ max: Int) -> String {
    var text = ""
    let wanted = edge(0...max)
    while true {
      let next = text + pick(["a", "Z", " ", "\u{0}", "é", "漢", "🚦", "\""])
      if next.utf8.count > wanted { return text }
      text = next
    }
  }

  mutating func name() -> Name {
    let first = Array("abcXYZ019"), rest = Array("abcXYZ019._-")
    var text = String(pick(first))
    for _ in 1..<edge(1...Name.bytesMax) { text.append(pick(rest)) }
    do { return try Name(text) } catch { preconditionFailure("\(error)") }
  }

  mutating func subject(depth: Int? = nil) -> Subject {
    let letters = Array("abcXYZ019._-@+")
    let segments = (0..<(depth ?? edge(1...Subject.levelsMax))).map { _ in
      String((0..<edge(1...Subject.segmentBytesMax)).map { _ in pick(letters) })
    }
    do { return try Subject(segments.joined(separator: "/")) } catch {
      preconditionFailure("\(error)")
    }
  }

  mutating func attributes() -> [String: String] {
    var attributes: [String: String] = [:]
    guard random.chance(0.5) else { return attributes }
    for _ in 0..<edge(0...WireLimits.attributesMax) { attributes[name().text] = text(128) }
    return attributes
  }
}
