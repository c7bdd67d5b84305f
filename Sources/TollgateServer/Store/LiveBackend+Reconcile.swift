// Reconciliation: what the ledger has billed, what Redis has counted, and the deltas in between.

import TollgateCore
import TollgateRedis
import TollgateWire

extension LiveBackend {
  func query(_ method: QueryMethod, _ document: Document) async throws(AdminFailure) -> Document {
    guard let ledger = sidecar.ledger else { throw .unavailable("this deployment has no ledger") }
    do throws(LedgerFailure) {
      let pages = try await ledger.pages(
        QueryRequest(method, body: document.jsonBytes()), as: QueryReply.self)
      if let status = pages.first?.status {
        throw LedgerFailure(
          kind: .refused(status),
          description: String(decoding: pages.first?.body ?? [], as: UTF8.self))
      }
      guard let answer = try? Document(json: pages.flatMap(\.body)) else {
        throw LedgerFailure(kind: .refused(.badFrame), description: "an unreadable answer")
      }
      return answer
    } catch {
      throw Self.failure(error)
    }
  }

  func ledgerBilling(account: Subject) async throws(AdminFailure) -> LedgerBilling {
    var cursor: String?
    let now = sidecar.store.wallTime()
    var totals: [BillingTotal] = []
    var parts: [BillingTotal] = []
    var hasParts = false
    var position = StreamPosition(epoch: 0, sequence: 0)
    repeat {
      let answer = try await query(
        .totals,
        Document.fields([
          "account": .string(account.path), "cursor": cursor.map { .string($0) },
          "partsSince": cursor == nil ? .integer(Self.comparedSince(now).milliseconds) : nil,
        ]))
      if cursor == nil, let told = answer["parts"]?.elements {
        hasParts = true
        for line in told { parts.append(try Self.part(line)) }
      }
      if cursor == nil { position = Self.position(answer) }
      totals += try Self.totals(answer)
      cursor = answer["next"]?.text
    } while cursor != nil
    return LedgerBilling(cursor: position, totals: totals + parts, hasParts: hasParts)
  }

  func ledgerBillings(_ accounts: [Subject]) async throws(AdminFailure) -> [LedgerBilling] {
    var billings: [LedgerBilling] = []
    while billings.count < accounts.count {
      let asked = accounts[billings.count...].prefix(Self.billingsMax)
      let answer = try await query(
        .totals,
        Document.fields([
          "accounts": .list(asked.map { .string($0.path) }), "count": .integer(1),
          "partsSince": .integer(Self.comparedSince(sidecar.store.wallTime()).milliseconds),
        ]))
      guard let told = answer["accounts"]?.elements, !told.isEmpty else {
        // A ledger of a release before this question.
        for account in asked { billings.append(try await ledgerBilling(account: account)) }
        continue
      }
      let position = Self.position(answer)
      for (account, books) in zip(asked, told) {
        guard books["account"]?.text == account.path else {
          throw .unavailable("ledger: an unreadable total")
        }
        guard books["isMore"] != .bool(true) else {
          billings.append(try await ledgerBilling(account: account))
          continue
        }
        var parts: [BillingTotal] = []
        for line in books["parts"]?.elements ?? [] { parts.append(try Self.part(line)) }
        billings.append(
          LedgerBilling(
            cursor: position, totals: try Self.totals(books) + parts, hasParts: true))
      }
    }
    return billings
  }

  /// Accounts in one question to the ledger.
  private static let billingsMax = 250

  private static func position(_ answer: Document) -> StreamPosition {
    StreamPosition(
      epoch: answer["position"]?["epoch"]?.whole ?? 0,
      sequence: answer["position"]?["cursor"]?.whole ?? 0)
  }

  private static func totals(_ answer: Document) throws(AdminFailure) -> [BillingTotal] {
    var totals: [BillingTotal] = []
    for line in answer["totals"]?.elements ?? [] {
      guard let feature = line["feature"]?.name, let start = line["start"]?.whole,
        let end = line["end"]?.whole, let charged = line["charged"]?.whole
      else { throw .unavailable("ledger: an unreadable total") }
      totals.append(
        BillingTotal(
          feature: feature,
          period: Period(start: WallTime(milliseconds: start), end: WallTime(milliseconds: end)),
          settled: charged))
    }
    return totals
  }

  /// Counters of periods that ended before are compared no more: the ledger may drop their sums.
  private static func comparedSince(_ now: WallTime) -> WallTime {
    now + -Healer.lateHorizonMilliseconds
  }

  private static func part(_ line: Document) throws(AdminFailure) -> BillingTotal {
    guard let feature = line["feature"]?.name,
      let window = line["window"]?.text.flatMap({ Window(code: $0) }),
      let start = line["start"]?.whole, let end = line["end"]?.whole,
      let settled = line["settled"]?.whole
    else { throw .unavailable("ledger: an unreadable counter") }
    return BillingTotal(
      feature: feature,
      period: Period(start: WallTime(milliseconds: start), end: WallTime(milliseconds: end)),
      settled: settled, window: window)
  }

  func unloadedAccounts(after cursor: String?) async throws(AdminFailure) -> (
    accounts: [Subject], next: String?
  ) {
    let answer = try await query(
      .totals, Document.fields(["cursor": cursor.map { .string($0) }]))
    // A cursor begins with the account of the last line before it, which the page before told of.
    var last = cursor.map { String($0.prefix { $0 != "|" }) }
    var accounts: [Subject] = []
    for line in answer["totals"]?.elements ?? [] {
      guard let name = line["account"]?.text, let account = try? Subject(name) else {
        throw .unavailable("ledger: an unreadable total")
      }
      if name != last { accounts.append(account) }
      last = name
    }
    let commands = accounts.map { Reads.header(keys, account: $0) }
    let replies = await store.replies(count: commands.count) { commands[$0].write(into: &$1) }
    let epochs = await sidecar.healer.epochs()
    var unloaded: [Subject] = []
    for (index, reply) in replies.enumerated() {
      guard case .success(let reply) = reply, let header = commands[index].decode(reply).value
      else { throw .unavailable("the header of \(accounts[index]) cannot be read") }
      let epoch = epochs[keys.bucket(of: accounts[index])]
      if epoch.map({ !header.isCurrent(in: $0) }) ?? true { unloaded.append(accounts[index]) }
    }
    return (unloaded, answer["next"]?.text)
  }

  /// Counters and outbox are separate reads: each account's counters first, then the outbox once
  /// for all; entries above an account's own position are left out, so that both speak of one
  /// moment.
  func storeBilling(
    bucket: Int, _ accounts: [(account: Subject, cursor: StreamPosition)]
  ) async throws(AdminFailure) -> [StoreBilling] {
    let features = await sidecar.healer.currentGlobal?.catalog.features ?? [:]
    var billings: [StoreBilling] = []
    var places: [String: Int] = [:]
    let snapshots = try await snapshots(accounts.map(\.account))
    for (index, item) in accounts.enumerated() {
      let snapshot = snapshots[index]
      let (bucketState, epoch) = await state(snapshot, bucket)
      let calendar = try Self.calendar(of: snapshot)
      billings.append(
        StoreBilling(
          time: snapshot.now, bucketState: bucketState,
          isLoaded: snapshot.header.isCurrent(in: epoch),
          last: StreamPosition(epoch: epoch, sequence: snapshot.fence.sequence ?? 0),
          firstSequence: 0, month: calendar.period(of: .month, containing: snapshot.now),
          totals: Self.totals(snapshot, epoch, features, calendar), undelivered: []))
      places[item.account.path] = index
    }
    guard let epoch = billings.map(\.last.epoch).max() else { return [] }
    func start(_ index: Int) -> Int64 {
      let cursor = accounts[index].cursor
      return cursor.epoch == epoch ? cursor.sequence : 0
    }
    var unlisted: [[BillingKey: Int64]] = Array(repeating: [:], count: accounts.count)
    var after = billings.indices.map(start).min() ?? 0
    let last = billings.map(\.last.sequence).max() ?? 0
    while after < last {
      let from = after
      let page = try await reading { () async throws(StoreFailure) in
        try await sidecar.store.outbox(
          bucket: bucket, epoch: epoch, after: from, limit: Self.outboxPage)
      }
      if let first = page.first {
        // Each account asks for the oldest entry above its own cursor.
        for index in billings.indices where billings[index].firstSequence == 0 {
          let wanted = start(index) + 1
          if let end = page.last, end.sequence >= wanted {
            billings[index].firstSequence = max(first.sequence, wanted)
          }
        }
      }
      for entry in page where entry.kind != .config && entry.kind != .threshold {
        guard let body = try? UsageBody.decode(entry.body),
          let index = places[body.subject.account.path], entry.sequence > start(index),
          billings[index].last.epoch == epoch, entry.sequence <= billings[index].last.sequence
        else { continue }
        for count in Self.compared(body, entry.charged) {
          if billings[index].undelivered.count < StoreBilling.listedMax {
            billings[index].undelivered.append(
              BilledDelta(
                id: entry.id, kind: entry.kind,
                position: StreamPosition(epoch: epoch, sequence: entry.sequence), time: entry.time,
                feature: body.feature, period: count.period, charged: count.amount,
                window: count.window))
          } else {
            let key = BillingKey(feature: body.feature, window: count.window, period: count.period)
            unlisted[index][key, default: 0] += count.amount
          }
        }
      }
      guard let end = page.last, page.count == Self.outboxPage else { break }
      after = end.sequence
    }
    for index in billings.indices {
      billings[index].unlisted = unlisted[index].map {
        BillingTotal(
          feature: $0.key.feature, period: $0.key.period, settled: $0.value, window: $0.key.window)
      }
    }
    return billings
  }

  private struct BillingKey: Hashable {
    var feature: Name
    var window: Window
    var period: Period
  }

  /// The bill, and the account's counters beside it.
  private static func compared(_ body: UsageBody, _ charged: Int64) -> [CountedPart] {
    let bill = CountedPart(level: 1, window: .month, period: body.period, amount: charged)
    return [bill]
      + body.counts(charged: charged).filter { $0.level == 1 && $0.window.tally != .units }
  }

  /// Entries of the outbox in one read.
  static let outboxPage = 1000

  private static func calendar(
    of snapshot: ReadAccountCall.Snapshot
  ) throws(AdminFailure) -> AccountCalendar {
    try SystemZones.calendar(of: AccountConfig(stored: snapshot.header.config ?? ""))
  }

  private static func totals(
    _ snapshot: ReadAccountCall.Snapshot, _ epoch: Int64, _ features: [Name: Feature],
    _ calendar: AccountCalendar
  ) -> [BillingTotal] {
    guard snapshot.counters.epoch == epoch || snapshot.header.epoch == epoch else { return [] }
    var totals: [BillingTotal] = []
    for (field, cell) in snapshot.counters.cells {
      let parts = field.split(separator: "|")
      // A month's quota of an unmetered feature counts in such a cell too, and is nobody's bill.
      guard parts.count == 2, let window = Window(code: parts[1]),
        window == .month || window.tally != .units, let feature = try? Name(String(parts[0])),
        features[feature]?.metered ?? true
      else { continue }
      for (start, settled) in [
        (cell.start, cell.settled), (cell.previousStart, cell.previousSettled),
      ] where settled != 0 {
        let period = period(of: window, from: start, calendar)
        guard window == .month || period.end >= comparedSince(snapshot.now) else { continue }
        totals.append(
          BillingTotal(feature: feature, period: period, settled: settled, window: window))
      }
    }
    return totals
  }

  /// By its start; instances of grants and what stands for ever have no end here.
  private static func period(
    of window: Window, from start: WallTime, _ calendar: AccountCalendar
  ) -> Period {
    switch window.tally {
    case .units, .overage: calendar.period(of: window, containing: start)
    case .priced: calendar.period(of: .month, containing: start)
    case .grant, .deficit, .inFlight:
      Period(start: start, end: WallTime(milliseconds: Quantity.maximum))
    }
  }

  func ledgerDeltas(
    account: Subject, feature: Name, window: Window, period: Period, limit: Int
  ) async throws(AdminFailure) -> [BilledDelta] {
    let answer = try await query(
      .deltaIDs,
      Document.fields([
        "account": .string(account.path), "feature": .string(feature.text),
        "from": .integer(period.start.milliseconds), "count": .integer(Int64(limit)),
        "newestFirst": .bool(true),
        "window": window == .month ? nil : .string(window.code),
      ]))
    return (answer["deltas"]?.elements ?? []).compactMap { row in
      guard let text = row["id"]?.text, let dot = text.lastIndex(of: "."),
        let operation = OperationID(hex: text[..<dot]),
        let index = UInt16(text[text.index(after: dot)...]), let charged = row["charged"]?.whole
      else { return nil }
      return BilledDelta(
        id: DeltaID(operation: operation, index: index),
        kind: (row["kind"]?.whole).map { DeltaKind(rawValue: UInt8(clamping: $0)) } ?? .usage,
        position: StreamPosition(
          epoch: row["epoch"]?.whole ?? 0, sequence: row["sequence"]?.whole ?? 0),
        time: WallTime(milliseconds: row["time"]?.whole ?? 0), feature: feature, period: period,
        charged: charged, window: window)
    }
  }
}
