// Exchanges over a loop's Redis link: when one may be sent, and what follows from its answer.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

extension Enforcer {
  /// A reply said what time it is in Redis.
  func observed(_ time: WallTime, at now: NIODeadline) {
    clock.observed(time, at: now)
    leases?.hub.heard(clock.now(at: now, wall: wallClock), at: LeaseHub.bootNanoseconds())
  }

  /// A call under this epoch was refused: nothing more is sent to the bucket before it is known
  /// why. That is asked for at once: where leases answer, no request may come that would.
  func fencedOff(_ bucket: Int, epoch: Int64) {
    if buckets[bucket].phase == .open, buckets[bucket].epoch == epoch {
      enter(.recovering, bucket)
      delegate?.recover(bucket: bucket, knownEpoch: epoch)
    }
  }

  /// What an exchange of an open bucket is sent over.
  struct LeasePath {
    var connection: RedisConnection
    var fence: Fence
  }

  private static var recoveryPause: TimeAmount { .milliseconds(500) }

  /// nil: it cannot be sent now; what it settles waits in the table.
  func leasePath(_ bucket: Int) -> LeasePath? {
    let state = buckets[bucket]
    guard state.phase == .open else {
      // What waits asks now and then, and does not crowd out whoever is at it.
      let now = NIODeadline.now()
      if now - state.recoveryAskedAt >= Self.recoveryPause {
        buckets[bucket].recoveryAskedAt = now
        delegate?.recover(bucket: bucket, knownEpoch: state.epoch)
      }
      return nil
    }
    guard !isBreakerOpen, let connection = link?.connection, let fence = fence(bucket) else {
      return nil
    }
    return LeasePath(connection: connection, fence: fence)
  }

  func leaseAnswered(
    _ result: Result<RESPReply, RedisFailure>, _ call: LeaseCall,
    _ exchange: LeaseExchange, bucket: Int, sentAt: NIODeadline, ticket: BreakerMachine.Ticket
  ) {
    guard let table = leases?.hub.table else { return }
    let now = NIODeadline.now()
    landed(1, bucket)
    switch result {
    case .failure(.notSent):
      noteBreaker(breaker.failed(ticket, now: monotonic(now)))
      return table.notSent(exchange.token)
    case .failure(.outcomeUnknown):
      noteBreaker(breaker.failed(ticket, now: monotonic(now)))
      return table.lost(exchange.token)
    case .success(let reply):
      answeredAt = now
      metrics.redisLatency.record(nanoseconds: (now - sentAt).nanoseconds)
      leases?.called((now - sentAt).nanoseconds)
      noteBreaker(
        breaker.answered(
          ticket, latency: redisTime(since: sentAt, to: now), now: monotonic(now)))
      leaseHeard(
        call.decode(reply), call, exchange, first: call.firstSequence(reply), bucket: bucket,
        at: now)
    }
  }

  private func leaseHeard(
    _ outcome: TollgateRedis.LeaseOutcome, _ call: LeaseCall, _ exchange: LeaseExchange,
    first: Int64, bucket: Int, at now: NIODeadline
  ) {
    guard let table = leases?.hub.table else { return }
    switch outcome {
    case .answered(let answers, let time, let isReplay):
      observed(time, at: now)
      keepLeased(call, bornAt: time, from: first, isReplay: isReplay)
      metrics.leases.settledUnits.add(
        call.accounts.reduce(0) { $0 + $1.deltas.reduce(0) { $0 + $1.amount } })
      for (answer, account) in zip(answers, exchange.accounts) {
        guard let stale = answer.stale else { continue }
        leaseIsStale(stale, String(decoding: account.name, as: UTF8.self), bucket)
      }
      table.replied(
        exchange.token,
        LeaseTranslation.replies(
          answers, to: exchange, at: time, ttlMilliseconds: call.timeToLiveMilliseconds),
        now: LeaseHub.now)
    case .unseeded(let places):
      for place in places where call.accounts.indices.contains(place) {
        delegate?.rebuild(
          account: call.accounts[place].account.path, bucket: bucket, epoch: call.fence.epoch,
          purpose: .write)
      }
      table.notSent(exchange.token)
    case .tooOld:
      guard table.isInDoubt(exchange.token), configuration.ledger != nil else {
        _ = table.tooOld(exchange.token, wasDone: true, now: LeaseHub.now)
        return
      }
      isLate(exchange.token, call)
    case .fromFuture, .error:
      if case .error(let text) = outcome {
        logger.debug("an exchange was refused", metadata: ["error": "\(text)"])
        if text.hasPrefix("NOSCRIPT") { loadAllScripts() }
      }
      table.notSent(exchange.token)
    case .fenced:
      metrics.fences.add()
      table.notSent(exchange.token)
      fencedOff(bucket, epoch: call.fence.epoch)
    case .overflow:
      logger.error("units of leases would leave a counter's range; they stay unsettled")
      table.notSent(exchange.token)
    }
  }

  private func leaseIsStale(_ stale: LeaseAnswer.Stale, _ account: String, _ bucket: Int) {
    metrics.retriedStale.add()
    if let version = stale.accountVersion, (accounts[account]?.version ?? -1) != version,
      var config = AccountConfig(stored: stale.accountConfig ?? "")
    {
      config.version = version
      accountChanged(account, config)
    }
    leases?.hub.table.versions(
      bucket: bucket, account: Array(account.utf8), globalVersion: stale.globalVersion,
      accountVersion: stale.accountVersion ?? 0)
    let ours = global?.version ?? 0
    if stale.globalVersion > ours {
      delegate?.refreshGlobal(atLeast: stale.globalVersion)
    } else if stale.globalVersion < ours {
      delegate?.pushVersion(bucket: bucket)
    }
  }

  /// The deltas it bore are held until the ledger has them, like any other.
  private func keepLeased(
    _ call: LeaseCall, bornAt time: WallTime, from first: Int64, isReplay: Bool
  ) {
    let epoch = call.fence.epoch
    let entries = call.entries(bornAt: time, from: first)
    // Borne in an epoch that is over: the ledger is asked whether it has them.
    if isReplay, first == 0, configuration.ledger != nil { return keepLate(entries, of: call) }
    seen.saw(
      bucket: call.bucket, epoch: epoch, sequence: entries.last?.sequence ?? 0,
      time: isReplay ? nil : time)
    if configuration.ledger != nil { keep(entries, bucket: call.bucket, epoch: epoch) }
  }
}
