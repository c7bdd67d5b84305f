// Seeding accounts from the ledger, a group at a time: the headers in one round trip to Redis, the
// balances in one to the ledger, its memory of changes in another, the seeds in one to Redis. A
// first deployment, a lost Redis or a Monday morning bring thousands of accounts at once, and one
// by one each would wait for four round trips of everybody before it.

import Logging
import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

extension Healer {
  /// Seeds one account; single-flight.
  func load(
    account: Subject, bucket: Int, epoch: Int64, purpose: SeedPurpose = .write
  ) async -> LoadOutcome {
    let key = "\(purpose) \(epoch) \(account.path)"
    guard loading[key] == nil else {
      return await withCheckedContinuation { loading[key]?.append($0) }
    }
    loading[key] = []
    let outcome = await withCheckedContinuation { continuation in
      let isKept = seeds.add(
        SeedErrand(account: account, bucket: bucket, epoch: epoch, purpose: purpose) {
          continuation.resume(returning: $0)
        })
      if !isKept { continuation.resume(returning: LoadOutcome.busy) }
      seedNext()
    }
    for waiter in loading.removeValue(forKey: key) ?? [] { waiter.resume(returning: outcome) }
    return outcome
  }

  private func seedNext() {
    guard seedingGroups < SeedQueue.groupsMax, seeds.count > 0 else { return }
    seedingGroups += 1
    // As a task of its own it begins when the errands that come with this one are in the queue.
    Task {
      while let group = self.seeds.next() { await self.seed(group) }
      self.seedingGroups -= 1
    }
  }

  /// An account that is ready to be seeded.
  private struct Ready: Sendable {
    var errand: SeedErrand
    var stored: AccountHeader
  }

  private func seed(_ group: [SeedErrand]) async {
    let bucket = group[0].bucket
    let epoch = group[0].epoch
    var left = group
    do {
      guard try await isSettledInTime(bucket, epoch) else {
        return group.forEach { $0.done(.failed) }
      }
      let headers = try await store.headers(of: group.map(\.account))
      let found = zip(group, headers).map { Ready(errand: $0, stored: $1) }
      let end = NIODeadline.now() + .milliseconds(Self.undeliveredWaitMilliseconds)
      var rest = found
      while true {
        let isDelivered = try await areDelivered(rest, bucket, epoch)
        let ready = zip(rest, isDelivered).compactMap { $1 ? $0 : nil }
        rest = zip(rest, isDelivered).compactMap { $1 ? nil : $0 }
        try await seed(ready, bucket, epoch)
        left = rest.map(\.errand)
        guard !rest.isEmpty else { return }
        guard NIODeadline.now() < end, open[bucket] == epoch else { break }
        // Delivered by whichever sidecar ships the bucket: looked at until it is.
        try await Task.sleep(for: .milliseconds(10))
      }
      for one in rest { one.errand.done(.failed) }
    } catch StoreFailure.fenced {
      await fenced(bucket: bucket, epoch: epoch)
      for errand in left { errand.done(.retry) }
    } catch {
      logger.debug("accounts not seeded", metadata: ["error": "\(error)"])
      for errand in left { errand.done(.failed) }
    }
  }

  /// Of each whether the ledger has all that was counted of it.
  private func areDelivered(
    _ accounts: [Ready], _ bucket: Int, _ epoch: Int64
  ) async throws -> [Bool] {
    func isKnown(_ one: Ready) -> Bool {
      ledger == nil || one.stored.epoch != nil || one.stored.lookedAt == epoch
    }
    guard !accounts.allSatisfy(isKnown) else { return accounts.map { _ in true } }
    guard try await readUndelivered(bucket, epoch) else { return accounts.map { isKnown($0) } }
    return accounts.map { isKnown($0) || !awaitsDelivery($0.errand.account, bucket, $0.stored) }
  }

  /// Answers every errand, or throws before it has answered any.
  private func seed(_ ready: [Ready], _ bucket: Int, _ epoch: Int64) async throws {
    var plans: [(ready: Ready, plan: SeedPlan)] = []
    // Nothing was known of these anywhere, and whatever was counted since would stand in another
    // header: there is nothing to ask the ledger.
    let looked = ready.filter { $0.stored.lookedAt == epoch }
    for one in looked where one.errand.purpose != .read {
      plans.append((one, SeedPlan(account: one.errand.account)))
    }
    let asked = ready.filter { $0.stored.lookedAt != epoch }
    var unknown: [Ready] = []
    var isLossy = false
    if let first = asked.first {
      isLossy = try await self.isLossy(bucket, epoch, first.errand.account)
      let known = try await ask(asked.map(\.errand.account))
      for (one, known) in zip(asked, known) {
        if let plan = plan(one, known, isLossy) {
          plans.append((one, plan))
        } else {
          unknown.append(one)
        }
      }
    }
    let results = try await store.seed(plans.map(\.plan), bucket: bucket, epoch: epoch)
    for one in looked where one.errand.purpose == .read { one.errand.done(.loaded) }
    for one in unknown { one.errand.done(.unknown) }
    var isFenced = false
    for ((one, plan), result) in zip(plans, results) {
      switch result {
      case .success:
        if plan.isLossy, let kept = one.stored.version, kept > plan.version,
          let config = one.stored.config
        {
          sendAgain(one.errand.account, bucket, epoch, version: kept, config: config)
        }
        if one.stored.lookedAt != epoch { metrics.rebuilds.add() }
        one.errand.done(.loaded)
      case .failure(.fenced):
        isFenced = true
      case .failure(let failure):
        logger.debug("account not seeded", metadata: ["error": "\(failure)"])
        one.errand.done(.failed)
      }
    }
    guard isFenced else { return }
    await fenced(bucket: bucket, epoch: epoch)
    for ((one, _), result) in zip(plans, results) {
      if case .failure(.fenced) = result { one.errand.done(.retry) }
    }
  }

  /// What the ledger knows of an account.
  private struct Known: Sendable {
    var pages: [BalancesReply] = []
    var memory = ChangeMemory()
  }

  private func ask(_ accounts: [Subject]) async throws -> [Known] {
    guard let ledger else { return accounts.map { _ in Known() } }
    let since = store.wallTime() + -Self.lateHorizonMilliseconds
    let pages = try await ledger.pages(
      ofEach: accounts.map { BalancesRequest(account: $0, since: since) }, as: BalancesReply.self)
    // After the balances: a change between the two is remembered, and never forgotten.
    let configs = try await ledger.configs(of: accounts)
    return zip(pages, configs).map { Known(pages: $0, memory: $1.memory) }
  }

  /// nil: nobody knows of it.
  private func plan(_ one: Ready, _ known: Known, _ isLossy: Bool) -> SeedPlan? {
    let stored = one.stored
    let purpose = one.errand.purpose
    let version = known.pages.first?.version ?? 0
    let balances = known.pages.flatMap(\.balances)
    let isStored = stored.epoch != nil || (stored.lookedAt == nil && stored.version != nil)
    let isUnknown =
      version == 0 && balances.isEmpty && known.memory.isEmpty && (stored.version ?? 0) == 0
    if isUnknown, purpose != .post, global?.catalog.unknownAccount ?? .deny == .deny { return nil }
    let config =
      version > 0 ? (known.pages.first?.config).map { String(decoding: $0, as: UTF8.self) } : nil
    // The one that will be in force.
    let isNewer = (stored.version ?? -1) >= version
    let force = isNewer ? stored.config ?? config : config ?? stored.config
    let grants = global.flatMap { global in
      AccountConfig(stored: force ?? "").map {
        GrantInstances(
          account: one.errand.account, config: $0, global: global, now: store.wallTime())
      }
    }
    return SeedPlan(
      account: one.errand.account, cells: SeedCell.cells(balances, grants), version: version,
      config: config,
      memory: known.memory, isLossy: isLossy,
      isForRead: purpose == .read && isUnknown && !isStored)
  }
}

/// One account as it is to stand in Redis.
struct SeedPlan: Sendable {
  var account: Subject
  var cells: [SeedCell] = []
  var version: Int64 = 0
  var config: String?
  var memory = ChangeMemory()
  var isLossy = false
  var isForRead = false
}

extension ColdStore {
  /// Script calls of one account that leave without waiting for the one before; a larger account is
  /// seeded by itself.
  private static var seedCallsTogether: Int { 4 }

  func headers(of accounts: [Subject]) async throws(StoreFailure) -> [AccountHeader] {
    let commands = accounts.map { Reads.header(keys, account: $0) }
    let replies = await replies(count: commands.count) { commands[$0].write(into: &$1) }
    var headers: [AccountHeader] = []
    for (command, reply) in zip(commands, replies) {
      headers.append(try value(command.decode(try reply.get())))
    }
    return headers
  }

  /// Seeds accounts of one bucket; each is current afterwards, or its failure says why not.
  func seed(
    _ plans: [SeedPlan], bucket: Int, epoch: Int64
  ) async throws(StoreFailure) -> [Result<Void, StoreFailure>] {
    guard !plans.isEmpty else { return [] }
    let fence = try await fence(bucket: bucket, epoch: epoch)
    var results: [Result<Void, StoreFailure>] = []
    var together: [(plan: Int, call: SeedCall)] = []
    for (index, plan) in plans.enumerated() {
      results.append(.success(()))
      do throws(StoreFailure) {
        let live = plan.isLossy ? try await snapshot(of: plan.account).subjects : []
        let calls = SeedCall.chunks(
          keySpace: keys, fence: fence, account: plan.account, cells: plan.cells,
          accountVersion: plan.version, accountConfig: plan.config, memory: plan.memory,
          isLossy: plan.isLossy, live: live, isForRead: plan.isForRead)
        if calls.count <= Self.seedCallsTogether {
          together += calls.map { (index, $0) }
        } else {
          for call in calls { _ = try value(call.decode(try await raw(call))) }
        }
      } catch {
        results[index] = .failure(error)
      }
    }
    let calls = together.map(\.call)
    let replies = await replies(count: calls.count) { calls[$0].write(into: &$1) }
    var isForgotten = false
    for (reply, (index, call)) in zip(replies, together) {
      do throws(StoreFailure) {
        let reply = try reply.get()
        if reply.errorCode == "NOSCRIPT" { isForgotten = true }
        _ = try value(call.decode(reply))
      } catch {
        results[index] = .failure(error)
      }
    }
    guard isForgotten else { return results }
    // A script that Redis has forgotten is unknown to every call behind the first as well.
    try await loadScript(.seed)
    return try await seed(plans, bucket: bucket, epoch: epoch)
  }
}
