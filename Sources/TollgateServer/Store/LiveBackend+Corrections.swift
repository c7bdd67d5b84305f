// Adjustments, history, and what passes now: the live half of adjust, usage.history, top and tail.

import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

extension LiveBackend {
  // MARK: - Adjustments

  func adjust(
    _ adjustment: Adjustment, change: ChangeRecord
  ) async throws(AdminFailure) -> AdjustOutcome {
    let account = adjustment.account
    let config = try await self.account(account).config
    let isTied = adjustment.corrects != nil
    let after = Document.fields([
      "subject": .string(account.path), "feature": .string(adjustment.feature.text),
      "adjust": .integer(adjustment.amount),
      "operation": adjustment.corrects.map { .string($0.hex) },
      "start": isTied ? nil : .integer(adjustment.period.start.milliseconds),
      "end": isTied ? nil : .integer(adjustment.period.end.milliseconds),
    ])
    let items = [
      Item(feature: adjustment.feature, amount: Int64(adjustment.amount.magnitude))
    ]
    let now = store.wallTime()
    let deadline = AdminDeadline.current ?? .now() + .seconds(10)
    let result = await sidecar.healer.corrector.run(
      Corrector.Errand(
        id: change.operation,
        fingerprint: OperationFingerprint(
          subject: account, items: items,
          attributes: ["change": String(change.fingerprint, radix: 16)]),
        subject: account, corrected: adjustment.corrects, items: items, kind: .adjustment,
        reason: .allowedPosted, note: change.reason,
        change: Self.body(
          change, scope: .counter, key: account.path, version: 0, before: "",
          after: after.json()),
        deadline: deadline)
    ) { books, global in
      Self.judge(adjustment, config, books, global, at: now)
    }
    let bucket = keys.bucket(of: account)
    switch result {
    case .decided(let decision, let position):
      let written = Written(
        version: 0, bucket: bucket, position: position.epoch > 0 ? position : nil,
        time: decision.time)
      return decision.replayed ? .replayed(written) : .adjusted(written)
    case .refused(.idempotencyMismatch, _): throw change.mismatch(.body)
    case .refused(.idTooOld, _): throw change.tooOld
    case .refused(.idFromFuture, _): throw change.fromFuture
    case .refused(let code, let text):
      throw AdminFailure(
        code, text,
        fix: code == .outcomeUnknown || code == .unavailable
          ? "repeat the command with the same --id" : "")
    }
  }

  private static func judge(
    _ adjustment: Adjustment, _ config: AccountConfig, _ books: OperationBooks,
    _ global: GlobalConfig, at now: WallTime
  ) -> Corrector.Judgement {
    if let operation = adjustment.corrects {
      if let refusal = Corrector.refusal(books, operation, adjustment.account) { return refusal }
      guard
        let correction = Correction.adjustment(
          of: operation, recorded: books.recorded, earlier: books.corrections,
          feature: adjustment.feature, amount: adjustment.amount)
      else {
        return .refuse(.nothingToRefund, "less of \(adjustment.feature) is left of \(operation)")
      }
      return .correct(correction)
    }
    let period = adjustment.period
    let resolution = Resolution.resolve(
      subject: adjustment.account, items: [Item(feature: adjustment.feature, amount: 0)],
      global: global, account: config,
      now: adjustment.isRunning ? now : period.end + -1, zones: SystemZones.book)
    let cells = resolution.cells.filter { cell in
      guard cell.level == 1, cell.window.tally == .units, cell.item == 0 else { return false }
      // What was billed too much a while ago says nothing about this hour or this day.
      switch cell.window.span {
      case .month, .quarter, .year, .lifetime: break
      case .minute, .hour, .day, .week, .seconds: return false
      }
      return adjustment.isRunning
        || (cell.period.start <= period.start && period.end <= cell.period.end)
    }
    let body = UsageBody(
      subject: adjustment.account, feature: adjustment.feature, period: period,
      cells: cells.map {
        CellReference(level: $0.level, window: $0.window, period: $0.period)
      }, catalogVersion: global.catalogVersion, source: .redis)
    return .correct(
      Correction(shares: [.init(born: now, amount: adjustment.amount, body: body)]))
  }

  func left(
    of operation: OperationID, account: Subject
  ) async throws(AdminFailure) -> [Item] {
    let books: OperationBooks
    do {
      books = try await sidecar.healer.corrector.books(
        of: operation, bucket: keys.bucket(of: account))
    } catch let failure as LedgerFailure {
      throw Self.failure(failure)
    } catch {
      throw .unavailable("ledger: \(error)")
    }
    guard books.recorded.allSatisfy({ account.contains($0.body.subject) }) else { return [] }
    return Correction.left(recorded: books.recorded, earlier: books.corrections)
  }

  // MARK: - History

  func history(_ question: HistoryQuestion) async throws(AdminFailure) -> HistoryPage {
    let answer = try await query(
      .usage,
      Document.fields([
        "account": .string(question.account.path), "subject": .string(question.subject.path),
        "by": .list(question.by.map { .string($0) }),
        "from": .integer(question.from.milliseconds), "to": .integer(question.to.milliseconds),
        "days": .list(question.days.map { .integer($0.milliseconds) }),
        "feature": question.feature.map { .string($0.text) },
        "cursor": question.cursor.map { .string($0) },
      ]))
    var rows: [HistoryReply.Row] = []
    for row in answer["rows"]?.elements ?? [] {
      func number(_ key: String) -> Int64 { row[key]?.whole ?? 0 }
      let key = (row["key"]?.elements ?? []).compactMap(\.text)
      guard key.count == question.by.count else {
        throw .unavailable("ledger: an unreadable row of usage")
      }
      rows.append(
        .init(
          key: key, used: number("used"), charged: number("charged"),
          absorbed: number("absorbed"), refunded: number("refunded"),
          adjusted: number("adjusted"), deltas: number("deltas")))
    }
    return HistoryPage(rows: rows, next: answer["next"]?.text)
  }

  // MARK: - Now

  func newestDeltas(
    since: WallTime, limit: Int
  ) async throws(AdminFailure) -> [BucketSample] {
    let commands = (0..<keys.map.buckets).map { Reads.newest(keys, bucket: $0, count: limit) }
    let replies = await store.replies(count: commands.count) { commands[$0].write(into: &$1) }
    return zip(commands, replies).map { command, reply in
      guard case .success(let reply) = reply, let entries = command.decode(reply).value else {
        return BucketSample(uses: [], isCut: false, isUnread: true)
      }
      let recent = entries.filter { $0.kind == .usage && $0.time >= since }
      return BucketSample(
        uses: recent.compactMap { entry in
          guard let body = try? UsageBody.decode(entry.body) else { return nil }
          return BucketSample.Use(
            time: entry.time, account: body.subject.account, feature: body.feature,
            units: entry.actual)
        }, isCut: entries.count == limit && entries.allSatisfy { $0.time >= since })
    }
  }

  func tail(
    listener: UInt64, account: Subject?, deniedOnly: Bool, limit: Int
  ) async -> (events: [TailReply.Event], dropped: Int64)? {
    let filter = DecisionTail.Filter(account: account?.path, deniedOnly: deniedOnly)
    var taken: (events: [TailReply.Event], dropped: Int64) = ([], 0)
    for loop in sidecar.loops {
      let room = max(1, limit - taken.events.count)
      guard let more = await loop.value({ $0.tailed(listener, filter, limit: room) })
      else { return nil }
      taken.events += more.events
      taken.dropped += more.dropped
    }
    taken.events.sort { $0.time < $1.time }
    return taken
  }
}
