// Gives back units of operations, and carries out an operator's adjustments: beside the request
// path, because what is left of an operation only the ledger can say, also days later.
//
//   look (`correct` in Redis) ─┬ on record: answered
//     ▲                        └ not yet: wait until the ledger has all that was in the outbox then
//     │                            ─▶ ask the ledger for the operation and its corrections
//     │                            ─▶ work out what goes back (`Correction`)
//     └─ overtaken, fenced ◀──────── `correct` in Redis: compares the mark of the look, moves the
//                                    counters, bears the deltas, remembers the answer
//
// Why it is exactly once: the id's record and the effect are one script call, so whatever is
// repeated is answered; two refunds of one operation cannot be worked out from the same books,
// because the second finds the mark moved; and where Redis lost its records, the books show what
// the id did (promises 3 and 4). All or nothing: one call writes every feature's part.

import Foundation
import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateLedger
import TollgateRedis
import TollgateWire

struct Corrector: Sendable {
  let store: ColdStore
  let ledger: LedgerLink?
  let healer: Healer
  let loops: [LoopUnit]
  let metrics: Metrics
  let logger: Logger
  let limits: StoreLimits

  /// Between two looks at how far the outbox is delivered.
  static let pollMilliseconds: Int64 = 5
  /// Kept of the deadline for the answer to travel.
  static let answerMilliseconds: Int64 = 20
  /// Pages of one operation; it bears at most 64 deltas, and each correction as many.
  static let pagesMax = 50

  /// What to correct, and how.
  struct Errand: Sendable {
    var id: OperationID
    var fingerprint: OperationFingerprint
    /// As asked: the account at least.
    var subject: Subject
    var corrected: OperationID?
    var items: [Item]
    var kind: DeltaKind
    var reason: Reason
    /// Beside those of what is corrected.
    var attributes: [String: String] = [:]
    var traceParent = ""
    var note = ""
    /// Body of the config delta of an operator's change; empty: none.
    var change: [UInt8] = []
    var deadline: NIODeadline
  }

  enum Result: Sendable {
    case decided(Decision, position: StreamPosition)
    case refused(ErrorCode, String)
  }

  /// Why there is nothing to be done, or what.
  enum Judgement: Sendable {
    case correct(Correction)
    case refuse(ErrorCode, String)
  }

  typealias Judge = @Sendable (OperationBooks, GlobalConfig) -> Judgement

  // MARK: - Refunds

  func refund(_ errand: RefundErrand) async -> Outcome {
    let (items, corrected, subject) = (errand.items, errand.corrected, errand.subject)
    let result = await run(
      Errand(
        id: errand.key.id, fingerprint: errand.key.fingerprint, subject: subject,
        corrected: corrected, items: items, kind: .refund, reason: .refunded,
        attributes: errand.attributes, traceParent: errand.traceParent, note: errand.reason,
        deadline: errand.deadline)
    ) { books, _ in
      if let refusal = Self.refusal(books, corrected, subject) { return refusal }
      guard
        let correction = Correction.refund(
          of: corrected, recorded: books.recorded, earlier: books.corrections, items: items)
      else { return .refuse(.nothingToRefund, Self.nothingLeft(books, corrected, items)) }
      return .correct(correction)
    }
    switch result {
    case .decided(let decision, _): return .decision(decision)
    case .refused(let code, let text): return .error(code, text)
    }
  }

  /// Why nobody can say what is left of an operation, or it is not this subject's.
  static func refusal(
    _ books: OperationBooks, _ operation: OperationID, _ subject: Subject
  ) -> Judgement? {
    if books.isParked {
      return .refuse(
        .unavailable,
        "a delta of \(operation) is parked in the ledger; refund it when it was replayed")
    }
    let own = books.recorded.filter { $0.kind == .usage }
    if own.isEmpty, let settle = books.settles.first {
      return .refuse(
        .nothingToRefund,
        "\(operation) is a reservation: what was charged are its settles, the first is \(settle)")
    }
    guard own.allSatisfy({ subject.contains($0.body.subject) }) else {
      return .refuse(.nothingToRefund, "\(operation) is not an operation of \(subject)")
    }
    guard !own.isEmpty else {
      return .refuse(.nothingToRefund, "no units of an operation \(operation) are on record")
    }
    return nil
  }

  private static func nothingLeft(
    _ books: OperationBooks, _ operation: OperationID, _ items: [Item]
  ) -> String {
    let left = Correction.left(recorded: books.recorded, earlier: books.corrections)
    let words = left.map { "\($0.amount) of \($0.feature)" }.joined(separator: ", ")
    let priced = Set(books.recorded.filter { !$0.body.charges.isEmpty }.map(\.body.feature))
    if let item = items.first(where: { priced.contains($0.feature) }) {
      return "\(item.feature) of \(operation) was charged by rates: name the features that were "
        + "used (left: \(words)), or adjust it"
    }
    return "of \(operation) this is left to give back: \(words)"
  }

  // MARK: - The one way

  func run(_ errand: Errand, _ judge: Judge) async -> Result {
    guard ledger != nil else {
      return .refused(.nothingToRefund, "this deployment has no ledger: nothing is metered")
    }
    let end = errand.deadline - .milliseconds(Self.answerMilliseconds)
    var trouble = "the account's bucket is being recovered"
    var inDoubt = false
    var attempts: Int64 = 0
    while NIODeadline.now() < end, !Task.isCancelled {
      do {
        if let result = try await attempt(errand, judge, until: end, &inDoubt, &trouble) {
          return result
        }
      } catch let failure as StoreFailure {
        if case .unavailable(_, mayHaveHappened: true) = failure { inDoubt = true }
        trouble = "\(failure)"
      } catch let failure as LedgerFailure {
        trouble = "the ledger cannot be asked what is left: \(failure)"
      } catch {
        trouble = "\(error)"
      }
      // Whoever was overtaken waits longer each time, so that of many the others get their turn.
      attempts += 1
      let pause = Int64.random(in: 1...Self.pollMilliseconds * min(attempts, 20))
      try? await Task.sleep(for: .milliseconds(pause))
    }
    let text = "\(trouble); repeat with the same id"
    return .refused(inDoubt ? .outcomeUnknown : .unavailable, text)
  }

  /// nil: something changed meanwhile; to be tried again.
  private func attempt(
    _ errand: Errand, _ judge: Judge, until end: NIODeadline, _ inDoubt: inout Bool,
    _ trouble: inout String
  ) async throws -> Result? {
    let bucket = store.keys.bucket(of: errand.subject)
    guard let epoch = await healer.epoch(of: bucket), let global = await healer.currentGlobal
    else { return nil }
    var call = CorrectCall(
      keySpace: store.keys, fence: try await store.fence(bucket: bucket, epoch: epoch),
      operation: errand.id, fingerprint: errand.fingerprint, subject: errand.subject,
      corrected: errand.corrected, items: errand.items,
      recordClass: Self.recordClass(errand.items, global), limits: limits)
    let look: CorrectCall.Look
    switch call.decode(try await store.raw(call)) {
    case .looked(let found): look = found
    case .overtaken, .full: return nil
    case .answered(let answer):
      return try await answered(answer, call, bucket, epoch, &trouble)
    }
    // The look's answer settles what became of an earlier attempt: there is no record.
    inDoubt = false
    guard try await isDelivered(look, bucket, epoch, until: end) else {
      trouble = "the ledger does not have everything yet"
      return nil
    }
    let books = try await books(of: errand.corrected, bucket: bucket)
    if let repeated = Self.repeated(errand, books, look.time, global.version) { return repeated }
    var correction: Correction
    switch judge(books, global) {
    case .correct(let found): correction = found
    case .refuse(let code, let text): return .refused(code, text)
    }
    let header = try await store.header(account: errand.subject.account)
    let debts = try await debts(of: correction, books, epoch)
    correction = correction.returning(debts)
    call.subject = correction.shares.first?.body.subject ?? errand.subject
    call.fence = try await store.fence(bucket: bucket, epoch: epoch)
    call.plan = CorrectCall.Plan(
      correction: correction, look: look, kind: errand.kind, reason: errand.reason,
      globalVersion: global.version, accountVersion: header.version ?? 0,
      bodies: correction.shares.map { Self.body($0.body, errand) }, change: errand.change,
      owed: debts.mapValues(\.owed))
    let reply: RESPReply
    do {
      reply = try await store.raw(call)
    } catch {
      if case .unavailable(_, mayHaveHappened: true) = error { inDoubt = true }
      throw error
    }
    switch call.decode(reply) {
    case .looked, .overtaken:
      trouble = "the operation is being corrected by others"
      return nil
    case .full:
      return .refused(
        .overloaded, "there is no room for another correction; repeat with the same id")
    case .answered(let answer):
      return try await answered(answer, call, bucket, epoch, &trouble)
    }
  }

  private func answered(
    _ answer: DecideReply, _ call: CorrectCall, _ bucket: Int, _ epoch: Int64,
    _ trouble: inout String
  ) async throws -> Result? {
    switch answer {
    case .decided(let decided):
      let entries = call.entries(decided)
      await loops[0].value { $0.reposted(entries, bucket: bucket, epoch: epoch) }
      var position = Self.position(decided)
      if let change = call.plan?.change, !change.isEmpty {
        position.sequence += 1
        await healer.retainConfig(
          OutboxEntry(
            sequence: position.sequence, kind: .config, id: DeltaID(change: call.operation),
            time: decided.bornAt, actual: 0, charged: 0, absorbed: 0, body: change),
          bucket: bucket, epoch: epoch)
      }
      metrics.corrections.add()
      return .decided(decided.decision, position: position)
    case .replayed(let decided):
      await retain(decided, bucket, epoch)
      return .decided(decided.decision, position: Self.position(decided))
    case .mismatch(let field):
      return .refused(
        .idempotencyMismatch, "\(field.name) differ from the first request of this id")
    case .idTooOld: return .refused(.idTooOld, "the id is older than the dedupe window")
    case .idFromFuture:
      return .refused(.idFromFuture, "the id's time is ahead of the server's")
    case .rebuild:
      switch await healer.load(account: call.subject.account, bucket: bucket, epoch: epoch) {
      case .unknown: return .refused(.nothingToRefund, "the account is not known")
      case .loaded, .retry: break
      case .failed, .busy: trouble = "the account cannot be loaded"
      }
      return nil
    case .fenced:
      await healer.fenced(bucket: bucket, epoch: epoch)
      return nil
    case .error("QUANTITY_OVERFLOW"):
      return .refused(
        .amountOutOfRange,
        "a counter would leave its range: below zero by an adjustment, or beyond 2^53 − 1")
    case .error(let text): throw StoreFailure.refused(text)
    case .expired, .stale, .period, .holdsDue, .young, .holdsElsewhere, .planWanted, .notHeld:
      return .refused(.internalError, "an answer that a correction never gets")
    }
  }

  private static func position(_ decided: DecidedOperation) -> StreamPosition {
    StreamPosition(epoch: decided.epoch, sequence: decided.entries.last?.sequence ?? 0)
  }

  /// The first answer was perhaps lost, and with it the only word of these deltas that anybody but
  /// Redis had.
  private func retain(_ decided: DecidedOperation, _ bucket: Int, _ epoch: Int64) async {
    guard decided.epoch == epoch, let first = decided.entries.first?.sequence,
      let meta = try? await store.meta(bucket: bucket), meta.acknowledged < first,
      let entries = try? await store.outbox(
        bucket: bucket, epoch: epoch, after: first - 1, limit: decided.entries.count)
    else { return }
    await loops[0].value { $0.reposted(entries, bucket: bucket, epoch: epoch) }
  }

  /// Waits until the ledger has everything that was born before the look, in this epoch and in
  /// older ones. False: not in time, or the bucket is another by now.
  private func isDelivered(
    _ look: CorrectCall.Look, _ bucket: Int, _ epoch: Int64, until end: NIODeadline
  ) async throws -> Bool {
    var acknowledged = look.acknowledged
    while true {
      if acknowledged >= look.sequence, try await healer.isSettled(bucket, epoch) { return true }
      guard NIODeadline.now() < end, !Task.isCancelled else { return false }
      // Whichever sidecar ships the bucket writes there how far the ledger is.
      try await Task.sleep(for: .milliseconds(Self.pollMilliseconds))
      guard let meta = try await store.meta(bucket: bucket), meta.fence.epoch == epoch else {
        return false
      }
      acknowledged = meta.acknowledged
    }
  }

  /// What is owed of the features of which it takes back debts, with those who paid them.
  private func debts(
    of correction: Correction, _ books: OperationBooks, _ epoch: Int64
  ) async throws -> [Name: Correction.Debt] {
    let features = correction.indebted
    guard !features.isEmpty, let account = correction.shares.first?.body.subject.account
    else { return [:] }
    let counters = try await store.read(Reads.counters(store.keys, subject: account))
    // Else the script says that the account is to be loaded first.
    guard counters.epoch == epoch else { return [:] }
    var debts: [Name: Correction.Debt] = [:]
    for feature in features {
      let payers = books.payers.filter { $0.feature == feature.text }
      debts[feature] = Correction.Debt(
        owed: counters.cell(feature: feature, window: .deficit)?.settled ?? 0,
        payers: payers.compactMap { payer in
          Window(code: payer.window).map {
            .init(
              window: $0,
              period: Period(
                start: WallTime(milliseconds: payer.start), end: WallTime(milliseconds: payer.end)),
              units: payer.units)
          }
        })
    }
    return debts
  }

  // MARK: - The books

  func books(of operation: OperationID?, bucket: Int) async throws -> OperationBooks {
    var books = OperationBooks()
    guard let operation, let ledger else { return books }
    var cursor: String?
    for _ in 0..<Self.pagesMax {
      let question = Document.fields([
        "operation": .string(operation.hex), "bucket": .integer(Int64(bucket)),
        "cursor": cursor.map { .string($0) },
      ])
      let pages = try await ledger.pages(
        QueryRequest(.operation, body: question.jsonBytes()), as: QueryReply.self)
      guard pages.first?.status == nil,
        let page = try? JSONDecoder().decode(
          OperationBooks.Page.self, from: Data(pages.flatMap(\.body)))
      else { throw LedgerFailure(kind: .refused(.badFrame), description: "an unreadable answer") }
      books.add(page)
      cursor = page.next
      if cursor == nil { return books }
    }
    throw LedgerFailure(
      kind: .refused(.badFrame), description: "\(operation) has more deltas than are read")
  }

  /// What this id did before Redis lost the record of it; nil: nothing.
  private static func repeated(
    _ errand: Errand, _ books: OperationBooks, _ time: WallTime, _ globalVersion: Int64
  ) -> Result? {
    let own = books.corrections.filter { $0.id.operation == errand.id && $0.kind == errand.kind }
      .sorted { $0.id < $1.id }
    guard !own.isEmpty else { return nil }
    let named = Set(errand.items.map(\.feature))
    let correction = Correction(
      shares: own.map {
        Correction.Share(
          born: $0.time, amount: $0.charged, absorbed: $0.actual - $0.charged, body: $0.body,
          isDerived: !named.contains($0.body.feature))
      })
    let decision = Decision(
      corrected: correction, errand.items, reason: errand.reason, time: own[0].time,
      globalVersion: globalVersion)
    return .decided(decision, position: StreamPosition(epoch: 0, sequence: 0))
  }

  // MARK: - Parts

  /// Under which class an id is remembered; all of an operation may be money.
  private static func recordClass(_ items: [Item], _ global: GlobalConfig) -> RecordClass {
    let isVolume = items.allSatisfy {
      global.catalog.features[$0.feature]?.importance == .volume
    }
    return items.isEmpty || !isVolume ? .money : .volume
  }

  private static func body(_ body: UsageBody, _ errand: Errand) -> [UInt8] {
    var body = body
    // Those of what is corrected stand: what was used by a model is given back by that model.
    for (key, value) in errand.attributes.sorted(by: { $0.key < $1.key })
    where body.attributes[key] == nil && body.attributes.count < WireLimits.attributesMax {
      body.attributes[key] = value
    }
    body.traceParent = errand.traceParent
    body.note = errand.note
    return body.encode()
  }
}

extension Subject {
  /// Whether the other is this one or lies below it.
  func contains(_ other: Subject) -> Bool { other.depth >= depth && other.prefix(depth) == self }
}
