// Counters, reconciliation and operation records: the reading half of the live backend.

import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

extension LiveBackend {
  func snapshot(_ account: Subject) async throws(AdminFailure) -> ReadAccountCall.Snapshot {
    let call = ReadAccountCall(keySpace: sidecar.keys, account: account)
    return try await reading { () async throws(StoreFailure) in
      try sidecar.store.value(call.decode(try await sidecar.store.raw(call)))
    }
  }

  private func state(
    _ snapshot: ReadAccountCall.Snapshot, _ bucket: Int
  ) async -> (CountersSnapshot.Bucket, Int64) {
    let open = await sidecar.healer.epoch(of: bucket)
    guard let open else { return (.recovering, snapshot.fence.epoch ?? 0) }
    return (snapshot.fence.epoch == open ? .ready : .fenced, open)
  }

  func counters(
    account: Subject, quotas: [CounterReference], rates: [RateReference]
  ) async throws(AdminFailure) -> CountersSnapshot {
    let snapshot = try await snapshot(account)
    let bucket = sidecar.keys.bucket(of: account)
    let (bucketState, epoch) = await state(snapshot, bucket)
    var hashes: [Subject: SubjectCounters] = [account.account: snapshot.counters]
    for subject in Set(quotas.map(\.subject) + rates.map(\.subject)) where hashes[subject] == nil {
      hashes[subject] = try await reading { () async throws(StoreFailure) in
        try await sidecar.store.read(Reads.counters(sidecar.keys, subject: subject))
      }
    }
    func current(_ subject: Subject) -> SubjectCounters? {
      guard let counters = hashes[subject], counters.epoch == epoch else { return nil }
      return counters
    }
    return CountersSnapshot(
      time: snapshot.now, bucket: bucket, bucketState: bucketState, epoch: epoch,
      isLoaded: snapshot.header.epoch == epoch,
      globalVersion: await sidecar.healer.currentGlobal?.version ?? 0,
      accountVersion: snapshot.header.version ?? 0,
      counters: quotas.map { quota in
        guard
          let cell = current(quota.subject)?.cell(feature: quota.feature, window: quota.window)
        else { return .empty }
        return CounterState(
          start: cell.start, settled: cell.settled, held: cell.held, forgiven: cell.forgiven)
      },
      rates: rates.map { rate in
        current(rate.subject)?.rates[KeySpace.field(feature: rate.feature, rate: rate.limit)] ?? 0
      })
  }

  func resetCounter(
    _ reference: CounterReference, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome {
    let bucket = sidecar.keys.bucket(of: reference.subject)
    var now = try await snapshot(reference.subject.account).now
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let period = reference.window.period(containing: now)
      let body = ConfigDelta(
        scope: .counter, key: reference.subject.path, version: 0, action: change.action,
        actor: change.actor, reason: change.reason, before: "",
        after: Document.fields([
          "subject": .string(reference.subject.path), "feature": .string(reference.feature.text),
          "window": .string(reference.window.code),
          "start": .integer(period.start.milliseconds), "end": .integer(period.end.milliseconds),
        ]).json()
      ).encode()
      let moment = now
      let reply = try await reading { () async throws(StoreFailure) in
        let call = CounterResetCall(
          keySpace: sidecar.keys, fence: try await sidecar.store.fence(epoch: epoch),
          operation: change.operation, subject: reference.subject, feature: reference.feature,
          window: reference.window, period: reference.window.period(containing: moment), body: body)
        return call.decode(try await sidecar.store.raw(call))
      }
      switch reply {
      case .done(let outcome):
        let forgiven = outcome.before - outcome.after
        await sidecar.healer.retainConfig(
          OutboxEntry(
            sequence: outcome.position.sequence, kind: .config,
            id: DeltaID(operation: change.operation, index: 0), time: outcome.time,
            actual: -forgiven, charged: 0, absorbed: -forgiven, body: body),
          bucket: bucket, epoch: outcome.position.epoch)
        return .reset(
          forgiven: forgiven,
          Written(version: 0, bucket: bucket, position: outcome.position, time: outcome.time))
      case .alreadyDone:
        return .replayed(Written(version: 0, bucket: bucket, position: nil, time: now))
      case .period(let time): now = time
      case .rebuild:
        _ = await sidecar.healer.load(
          account: reference.subject.account, bucket: bucket, epoch: epoch)
        try? await Task.sleep(for: .milliseconds(Self.pauseMilliseconds))
      case .fenced: await sidecar.healer.fenced(bucket: bucket, epoch: epoch)
      case .error(let text): throw .unavailable("redis refused the reset: \(text)")
      }
    }
    throw .unavailable("the account's bucket stays fenced")
  }

  func resetRate(
    _ reference: RateReference, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome {
    // A rate has no books: dropping its arrival time is the whole reset, and repeating it is safe.
    let bucket = sidecar.keys.bucket(of: reference.subject)
    let key = sidecar.keys.subject(bucket, reference.subject)
    let field = KeySpace.field(feature: reference.feature, rate: reference.limit)
    let reply = try await reading { () async throws(StoreFailure) in
      try await sidecar.store.reply {
        RESPWriter.write(["HDEL", .string(key), .string(field)], to: &$0)
      }
    }
    guard reply.integer != nil else { throw .unavailable(reply.error ?? "unexpected reply") }
    return .reset(
      forgiven: 0,
      Written(version: 0, bucket: bucket, position: nil, time: sidecar.store.wallTime()))
  }

  // MARK: - Reconciliation

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
    var totals: [BillingTotal] = []
    var position = StreamPosition(epoch: 0, sequence: 0)
    repeat {
      let answer = try await query(
        .totals,
        Document.fields([
          "account": .string(account.path), "cursor": cursor.map { .string($0) },
        ]))
      if cursor == nil, let place = answer["position"] {
        position = StreamPosition(
          epoch: place["epoch"]?.whole ?? 0, sequence: place["cursor"]?.whole ?? 0)
      }
      for line in answer["totals"]?.elements ?? [] {
        guard let feature = line["feature"]?.name, let start = line["start"]?.whole,
          let end = line["end"]?.whole, let charged = line["charged"]?.whole
        else { throw .unavailable("ledger: an unreadable total") }
        totals.append(
          BillingTotal(
            feature: feature,
            period: Period(
              start: WallTime(milliseconds: start), end: WallTime(milliseconds: end)),
            settled: charged))
      }
      cursor = answer["next"]?.text
    } while cursor != nil
    return LedgerBilling(cursor: position, totals: totals)
  }

  func storeBilling(
    account: Subject, after cursor: StreamPosition
  ) async throws(AdminFailure) -> StoreBilling {
    let bucket = sidecar.keys.bucket(of: account)
    // The counters and the outbox are two reads; entries above the counters' own position are
    // left out, so that both speak of one moment.
    let snapshot = try await snapshot(account)
    let (bucketState, epoch) = await state(snapshot, bucket)
    let last = StreamPosition(epoch: epoch, sequence: snapshot.fence.sequence ?? 0)
    var undelivered: [BilledDelta] = []
    var first: Int64 = 0
    var after = cursor.epoch == epoch ? cursor.sequence : 0
    while true {
      let from = after
      let page = try await reading { () async throws(StoreFailure) in
        try await sidecar.store.outbox(bucket: bucket, epoch: epoch, after: from, limit: 1000)
      }
      if first == 0 { first = page.first?.sequence ?? 0 }
      for entry in page where entry.sequence <= last.sequence && entry.kind != .config {
        guard let body = try? UsageBody.decode(entry.body), body.subject.account == account.account
        else { continue }
        undelivered.append(
          BilledDelta(
            id: entry.id, kind: entry.kind,
            position: StreamPosition(epoch: epoch, sequence: entry.sequence), time: entry.time,
            feature: body.feature, period: body.period, charged: entry.charged))
      }
      guard let end = page.last, page.count == 1000, end.sequence < last.sequence else { break }
      after = end.sequence
    }
    var totals: [BillingTotal] = []
    if snapshot.counters.epoch == epoch || snapshot.header.epoch == epoch {
      for (field, cell) in snapshot.counters.cells {
        let parts = field.split(separator: "|")
        guard parts.count == 2, parts[1] == "M", let feature = try? Name(String(parts[0])) else {
          continue
        }
        for (start, settled) in [
          (cell.start, cell.settled), (cell.previousStart, cell.previousSettled),
        ] where settled != 0 {
          totals.append(
            BillingTotal(
              feature: feature, period: Window.month.period(containing: start), settled: settled))
        }
      }
    }
    return StoreBilling(
      time: snapshot.now, bucketState: bucketState, isLoaded: snapshot.header.epoch == epoch,
      last: last, firstSequence: first, totals: totals, undelivered: undelivered)
  }

  func ledgerDeltas(
    account: Subject, feature: Name, period: Period, limit: Int
  ) async throws(AdminFailure) -> [BilledDelta] {
    let answer = try await query(
      .deltaIDs,
      Document.fields([
        "account": .string(account.path), "feature": .string(feature.text),
        "from": .integer(period.start.milliseconds), "count": .integer(Int64(limit)),
        "newestFirst": .bool(true),
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
        charged: charged)
    }
  }

  // MARK: - Operation records

  func recordedDecision(
    account: Subject, operation: OperationID
  ) async throws(AdminFailure) -> Decision? {
    let bucket = sidecar.keys.bucket(of: account)
    for recordClass in RecordClass.allCases {
      let key = sidecar.keys.operations(
        bucket, recordClass, slice: OperationSlice.of(operation.time))
      let reply = try await reading { () async throws(StoreFailure) in
        try await sidecar.store.reply {
          RESPWriter.write(["HGET", .string(key), .bytes(operation.bytes)], to: &$0)
        }
      }
      if case .string = reply, case .decided(let decided) = DecideReply(reply) {
        var decision = decided.decision
        decision.replayed = true
        return decision
      }
    }
    return nil
  }

  func operationRecords(
    account: Subject, _ ids: [OperationID]
  ) async throws(AdminFailure) -> [OperationID: Bool] {
    var found: [OperationID: Bool] = [:]
    for id in Set(ids) {
      if let decision = try await recordedDecision(account: account, operation: id) {
        found[id] = decision.isAllowed
      }
    }
    return found
  }

  func waitForLedger(
    bucket: Int, position: StreamPosition?, milliseconds: Int64
  ) async throws(AdminFailure) -> Bool {
    guard hasLedger else { return false }
    let end = AdminDeadline.end(ofWait: milliseconds, from: .now())
    var target = position
    while true {
      let meta = try await reading { () async throws(StoreFailure) in
        try await sidecar.store.meta(bucket: bucket)
      }
      if let meta, let epoch = meta.fence.epoch {
        let wanted =
          target ?? StreamPosition(epoch: epoch, sequence: meta.fence.sequence ?? 0)
        target = wanted
        // A later epoch was opened after everything of the earlier one was posted.
        if epoch > wanted.epoch || meta.acknowledged >= wanted.sequence { return true }
      }
      guard NIODeadline.now() < end, !Task.isCancelled else { return false }
      try? await Task.sleep(for: .milliseconds(10))
    }
  }
}

extension Document {
  var whole: Int64? {
    if case .integer(let value) = self { return value }
    return nil
  }

  var text: String? {
    if case .string(let value) = self { return value }
    return nil
  }

  var name: Name? { text.flatMap { try? Name($0) } }

  var elements: [Document]? {
    if case .list(let values) = self { return values }
    return nil
  }
}
