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

  /// One behind the other on the wire, in their order.
  func snapshots(
    _ accounts: [Subject]
  ) async throws(AdminFailure) -> [ReadAccountCall.Snapshot] {
    let calls = accounts.map { ReadAccountCall(keySpace: sidecar.keys, account: $0) }
    let replies = await sidecar.store.replies(count: calls.count) { calls[$0].write(into: &$1) }
    var snapshots: [ReadAccountCall.Snapshot] = []
    for (index, reply) in replies.enumerated() {
      switch reply {
      case .success(let reply) where reply.errorCode != "NOSCRIPT":
        snapshots.append(
          try await reading { () throws(StoreFailure) in
            try sidecar.store.value(calls[index].decode(reply))
          })
      case .success: snapshots.append(try await snapshot(accounts[index]))
      case .failure(let failure): throw Self.failure(failure)
      }
    }
    return snapshots
  }

  func state(
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
      isLoaded: snapshot.header.isCurrent(in: epoch),
      globalVersion: await sidecar.healer.currentGlobal?.version ?? 0,
      accountVersion: snapshot.header.version ?? 0,
      counters: quotas.map { quota in
        guard
          let cell = current(quota.subject)?.cell(feature: quota.feature, window: quota.window)
        else { return .empty }
        return CounterState(
          start: cell.start, settled: cell.settled, held: cell.held, forgiven: cell.forgiven,
          previousStart: cell.previousStart, previousSettled: cell.previousSettled,
          previousHeld: cell.previousHeld,
          leased: snapshot.leases.left(
            of: KeySpace.field(feature: quota.feature, window: quota.window), quota.subject,
            since: cell.start))
      },
      rates: rates.map { rate in
        current(rate.subject)?.rates[KeySpace.field(feature: rate.feature, rate: rate.limit)] ?? 0
      },
      leases: current(account.account) == nil ? [] : reports(snapshot.leases, account))
  }

  func resetCounter(
    _ reference: CounterReference, calendar: AccountCalendar, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome {
    try await reset(reference.subject, reference.feature, change) { now in
      let period = calendar.period(of: reference.window, containing: now)
      return (
        .cell(reference.window, period, value: 0),
        [
          "subject": .string(reference.subject.path), "feature": .string(reference.feature.text),
          "window": .string(reference.window.code), "start": .integer(period.start.milliseconds),
          "end": .integer(period.end.milliseconds), "used": 0,
        ]
      )
    }
  }

  func resetRate(
    _ reference: RateReference, change: ChangeRecord
  ) async throws(AdminFailure) -> ResetOutcome {
    try await reset(reference.subject, reference.feature, change) { _ in
      (
        .rate(limit: reference.limit),
        [
          "subject": .string(reference.subject.path), "feature": .string(reference.feature.text),
          "limit": .string(reference.limit.text), "used": 0,
        ]
      )
    }
  }

  private func reset(
    _ subject: Subject, _ feature: Name, _ change: ChangeRecord,
    at target: (WallTime) -> (ResetCall.Target, after: Document)
  ) async throws(AdminFailure) -> ResetOutcome {
    let bucket = sidecar.keys.bucket(of: subject)
    var now = try await snapshot(subject.account).now
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let (target, after) = target(now)
      let body = Self.body(
        change, scope: .counter, key: subject.path, version: 0, before: ResetCall.before,
        after: after.json())
      let fence = try await reading { () async throws(StoreFailure) in
        try await sidecar.store.fence(bucket: bucket, epoch: epoch)
      }
      let call = ResetCall(
        keySpace: sidecar.keys, fence: fence, change: change.key, subject: subject,
        feature: feature, target: target, body: body, outboxEntriesMax: outboxEntriesMax)
      let reply = try await reading { () async throws(StoreFailure) in
        call.decode(try await sidecar.store.raw(call))
      }
      switch reply {
      case .done(let outcome):
        var forgiven: Int64 = 0
        if case .cell = target { forgiven = outcome.before - outcome.after }
        await sidecar.healer.retainConfig(
          Self.entry(
            change, outcome.position, outcome.time, call.body(before: outcome.before),
            actual: -forgiven), bucket: bucket, epoch: outcome.position.epoch)
        return .reset(
          forgiven: forgiven,
          Written(version: 0, bucket: bucket, position: outcome.position, time: outcome.time))
      case .known(let known):
        let (result, time) = try Self.applied(known, change)
        return .replayed(
          forgiven: result, Written(version: 0, bucket: bucket, position: nil, time: time))
      case .period(let time): now = time
      case .rebuild:
        _ = await sidecar.healer.load(account: subject.account, bucket: bucket, epoch: epoch)
        try? await Task.sleep(for: .milliseconds(Self.pauseMilliseconds))
      case .outboxFull: throw Self.outboxFull
      case .fenced: await sidecar.healer.fenced(bucket: bucket, epoch: epoch)
      case .error(let text): throw .unavailable("redis refused the reset: \(text)")
      }
    }
    throw .unavailable("the account's bucket stays fenced")
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
