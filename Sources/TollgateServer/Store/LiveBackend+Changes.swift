// Writing configuration: compare-and-set through the fenced scripts, one effect per operation id.
// A fence met on the way is healed and the write tried again, because nothing was written.

import TollgateCore
import TollgateRedis
import TollgateWire

extension LiveBackend {
  /// Undelivered entries beyond the outbox's ceiling that an operator's change may still add: the
  /// moment in which admissions are denied is the one in which limits must be changed.
  static let outboxRoom: Int64 = 10_000
  /// Undelivered entries of one bucket at which an import waits for the ledger: far below the
  /// ceiling, and below what a sidecar retains of its own changes.
  static let importBacklogMax: Int64 = 2_000

  var outboxEntriesMax: Int64 {
    hasLedger ? sidecar.configuration.outbox.entriesMax + Self.outboxRoom : 0
  }

  static func body(
    _ change: ChangeRecord, scope: ConfigDelta.Scope, key: String, version: Int64, before: String,
    after: String
  ) -> [UInt8] {
    ConfigDelta(
      scope: scope, key: key, version: version, action: change.action, actor: change.actor,
      reason: change.reason, before: before, after: after, fingerprint: change.fingerprint
    ).encode()
  }

  func writeGlobal(
    _ config: GlobalConfig, before: GlobalConfig?, expecting: Int64, change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome {
    let bucket = keys.map.control
    let after = config.document.json()
    let body = Self.body(
      change, scope: .global, key: "", version: config.version,
      before: before?.document.json() ?? "", after: after)
    let newCatalog = config.catalogVersion != (before?.catalogVersion ?? 0)
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let reply = try await reading { () async throws(StoreFailure) in
        let call = ConfigGlobalCall(
          keySpace: keys, fence: try await store.fence(bucket: bucket, epoch: epoch),
          change: change.key,
          expectedVersion: expecting, newVersion: config.version, config: after,
          catalog: newCatalog
            ? (config.catalogVersion, config.catalog.document.json()) : nil, body: body,
          outboxEntriesMax: outboxEntriesMax)
        return call.decode(try await store.raw(call))
      }
      if let outcome = try await outcome(
        reply, change, version: config.version, bucket: bucket, epoch: epoch, body: body)
      {
        await sidecar.healer.refresh()
        return outcome
      }
    }
    throw .unavailable("the control bucket stays fenced")
  }

  func writeAccount(
    _ account: Subject, _ config: AccountConfig, before: AccountConfig, expecting: Int64,
    change: ChangeRecord
  ) async throws(AdminFailure) -> WriteOutcome {
    let bucket = keys.bucket(of: account)
    let after = config.document.json()
    let body = Self.body(
      change, scope: .account, key: account.path, version: config.version,
      before: before.document.json(), after: after)
    for _ in 0..<Self.attemptsMax {
      let epoch = try await epoch(bucket)
      let reply = try await reading { () async throws(StoreFailure) in
        let call = ConfigAccountCall(
          keySpace: keys, fence: try await store.fence(bucket: bucket, epoch: epoch),
          change: change.key,
          account: account, expectedVersion: expecting, newVersion: config.version, config: after,
          body: body, outboxEntriesMax: outboxEntriesMax)
        return call.decode(try await store.raw(call))
      }
      if let outcome = try await outcome(
        reply, change, version: config.version, bucket: bucket, epoch: epoch, body: body)
      {
        return outcome
      }
    }
    throw .unavailable("the account's bucket stays fenced")
  }

  /// nil: fenced, healed, to be tried again.
  private func outcome(
    _ reply: TollgateRedis.ConfigReply, _ change: ChangeRecord, version: Int64, bucket: Int,
    epoch: Int64, body: [UInt8]
  ) async throws(AdminFailure) -> WriteOutcome? {
    switch reply {
    case .done(let done):
      await sidecar.healer.retainConfig(
        Self.entry(change, done.position, done.time, body), bucket: bucket,
        epoch: done.position.epoch)
      return .written(
        Written(version: version, bucket: bucket, position: done.position, time: done.time))
    case .known(let known):
      let (result, time) = try Self.applied(known, change)
      return .replayed(Written(version: result, bucket: bucket, position: nil, time: time))
    case .conflict(let current): return .conflict(current: current)
    case .outboxFull: throw Self.outboxFull
    case .fenced:
      await sidecar.healer.fenced(bucket: bucket, epoch: epoch)
      return nil
    case .error(let text): throw .unavailable("redis refused the change: \(text)")
    }
  }

  static func entry(
    _ change: ChangeRecord, _ position: StreamPosition, _ time: WallTime, _ body: [UInt8],
    actual: Int64 = 0
  ) -> OutboxEntry {
    OutboxEntry(
      sequence: position.sequence, kind: .config,
      id: DeltaID(change: change.operation), time: time, actual: actual, charged: 0,
      absorbed: actual, body: body)
  }

  static var outboxFull: AdminFailure {
    AdminFailure(
      .overloaded, "the outbox is full: the ledger is too far behind; nothing was changed",
      fix: "bring the ledger up (tollgate doctor), then repeat with the same --id")
  }

  /// What an id that is known makes of a change: the earlier one, or a refusal.
  static func applied(
    _ known: KnownChange, _ change: ChangeRecord
  ) throws(AdminFailure) -> (result: Int64, time: WallTime) {
    switch known {
    case .applied(let result, let time): return (result, time)
    case .mismatch(let difference): throw change.mismatch(difference)
    case .tooOld: throw change.tooOld
    case .fromFuture: throw change.fromFuture
    }
  }

  // MARK: - Many accounts at once

  func accounts(_ accounts: [Subject]) async -> [Result<AccountState, AdminFailure>] {
    let commands = accounts.map { Reads.header(keys, account: $0) }
    let replies = await store.replies(count: commands.count) { commands[$0].write(into: &$1) }
    let epochs = await sidecar.healer.epochs()
    var states: [Result<AccountState, AdminFailure>?] = []
    var headers: [AccountHeader?] = []
    for (index, reply) in replies.enumerated() {
      let bucket = keys.bucket(of: accounts[index])
      guard case .success(let reply) = reply, let header = commands[index].decode(reply).value,
        let epoch = epochs[bucket], let state = try? Self.state(header, bucket, epoch)
      else {
        states.append(nil)
        headers.append(nil)
        continue
      }
      headers.append(header)
      states.append(state.isLoaded || !hasLedger ? .success(state) : nil)
      // A header that is not seeded is believed where the ledger has nothing newer: see below.
    }
    do throws(LedgerFailure) {
      try await believe(accounts, headers, epochs, &states)
    } catch {
      // Asking one by one would fail as often, and take that much longer.
      for index in states.indices where states[index] == nil {
        states[index] = .failure(Self.failure(error))
      }
    }
    let rest = states.indices.filter { states[$0] == nil }
    let slow = await AdminService<LiveBackend>.inParallel(rest.map { accounts[$0] }) { account in
      do throws(AdminFailure) {
        return Result<AccountState, AdminFailure>.success(try await self.account(account))
      } catch {
        return .failure(error)
      }
    }
    for (index, state) in zip(rest, slow) { states[index] = state }
    return states.compactMap { $0 }
  }

  /// Accounts whose header is not seeded in this epoch, or that have none: one question to the
  /// ledger tells for all of them whether what Redis has is the newest. Their counters are not
  /// seeded for it; the script works on such a header.
  private func believe(
    _ accounts: [Subject], _ headers: [AccountHeader?], _ epochs: [Int: Int64],
    _ states: inout [Result<AccountState, AdminFailure>?]
  ) async throws(LedgerFailure) {
    let open = states.indices.filter { states[$0] == nil && headers[$0] != nil }
    guard !open.isEmpty, let ledger = sidecar.ledger else { return }
    let known = try await ledger.configs(of: open.map { accounts[$0] })
    for (index, config) in zip(open, known) {
      let bucket = keys.bucket(of: accounts[index])
      guard let header = headers[index], let epoch = epochs[bucket],
        (header.version ?? 0) >= config.version,
        config.memory.entries.allSatisfy({ header.memory.entries.contains($0) }),
        config.memory.floor <= header.memory.floor
      else { continue }
      do throws(AdminFailure) {
        states[index] = .success(try Self.state(header, bucket, epoch))
      } catch {
        states[index] = .failure(error)
      }
    }
  }

  func writeAccounts(_ writes: [AccountWrite]) async -> [Result<WriteOutcome, AdminFailure>] {
    let epochs = await sidecar.healer.epochs()
    var calls: [ConfigAccountCall] = []
    var called: [Int] = []
    var outcomes: [Result<WriteOutcome, AdminFailure>?] = Array(
      repeating: nil, count: writes.count)
    let limit = hasLedger ? min(Self.importBacklogMax, outboxEntriesMax) : 0
    for (index, write) in writes.enumerated() {
      guard let epoch = epochs[keys.bucket(of: write.account)],
        let fence = try? await store.fence(bucket: keys.bucket(of: write.account), epoch: epoch)
      else { continue }
      let after = write.config.document.json()
      calls.append(
        ConfigAccountCall(
          keySpace: keys, fence: fence, change: write.change.key, account: write.account,
          expectedVersion: write.before.version, newVersion: write.config.version, config: after,
          body: Self.body(
            write.change, scope: .account, key: write.account.path, version: write.config.version,
            before: write.before.document.json(), after: after), outboxEntriesMax: limit))
      called.append(index)
    }
    let sent = calls
    let replies = await store.replies(count: sent.count) { sent[$0].write(into: &$1) }
    var retained: [(bucket: Int, epoch: Int64, entry: OutboxEntry)] = []
    for (at, reply) in replies.enumerated() {
      let (index, call, write) = (called[at], sent[at], writes[called[at]])
      switch reply {
      case .failure(let failure): outcomes[index] = .failure(Self.failure(failure))
      case .success(let reply):
        switch call.decode(reply) {
        case .done(let done):
          retained.append(
            (
              call.bucket, done.position.epoch,
              Self.entry(write.change, done.position, done.time, call.body)
            ))
          outcomes[index] = .success(
            .written(
              Written(
                version: write.config.version, bucket: call.bucket, position: done.position,
                time: done.time)))
        case .outboxFull: outcomes[index] = .success(.crowded)
        case .conflict(let current): outcomes[index] = .success(.conflict(current: current))
        case .known, .fenced, .error: break
        }
      }
    }
    await sidecar.healer.retainConfigs(retained)
    // What is left (a fence, a script that Redis has forgotten, a bucket that is not open, an id
    // that is known) goes the careful way, one by one.
    for index in outcomes.indices where outcomes[index] == nil {
      let write = writes[index]
      do throws(AdminFailure) {
        outcomes[index] = .success(
          try await writeAccount(
            write.account, write.config, before: write.before, expecting: write.before.version,
            change: write.change))
      } catch {
        outcomes[index] = .failure(error)
      }
    }
    return outcomes.compactMap { $0 }
  }

  func waitForRoom(buckets: Set<Int>, milliseconds: Int64) async -> Bool {
    let end = ContinuousClock.now + .milliseconds(milliseconds)
    while true {
      var crowded = false
      for bucket in buckets where !crowded {
        guard let meta = try? await store.meta(bucket: bucket) else { return false }
        crowded =
          (meta.fence.sequence ?? 0) - meta.acknowledged >= Self.importBacklogMax / 2
      }
      if !crowded { return true }
      guard ContinuousClock.now < end else { return false }
      try? await Task.sleep(for: .milliseconds(10))
    }
  }
}

extension ChangeRecord {
  var key: ChangeKey { ChangeKey(operation: operation, fingerprint: fingerprint) }

  func mismatch(_ difference: ChangeMemory.Difference) -> AdminFailure {
    let what =
      switch difference {
      case .action: "another kind of change"
      case .body: "the same kind of change with other values"
      }
    return AdminFailure(
      .idempotencyMismatch, "operation \(operation) was \(what); nothing was changed",
      fix: "mint a new id (leave --id out)",
      problems: [
        .init(
          path: difference == .action ? "action" : "request", value: action,
          reason: "differs from what this id stands for")
      ])
  }

  var tooOld: AdminFailure {
    AdminFailure(
      .idTooOld,
      "operation \(operation), minted \(CivilDate.text(operation.time)), is older than the "
        + "changes that are remembered; it may have been applied, so nothing was changed",
      fix: "look it up (tollgate audit-log); where it is missing, run it with a new id, and check "
        + "that this machine's clock is right")
  }

  var fromFuture: AdminFailure {
    AdminFailure(
      .idFromFuture,
      "operation \(operation) was minted \(CivilDate.text(operation.time)), more than "
        + "\(ChangeMemory.aheadMillisecondsMax / 1000) s ahead of Redis; nothing was changed",
      fix: "set this machine's clock right (NTP) and mint a new id")
  }
}
