// Operations that are about more than quotas and rates, and reservations: each is a script call of
// its own, because what it reads and writes depends on grants, prices and holds. Their deltas'
// bodies come back with the answer, and so does the hold, for this loop to remember.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

extension Enforcer {
  /// Fields 5 to 8 of a delta's body; the script puts the others around them.
  private func common(_ request: Request, _ global: GlobalConfig) -> [UInt8] {
    UsageBody.commonFields(
      catalogVersion: global.catalogVersion, source: request.source,
      attributes: request.attributes, traceParent: request.traceParent)
  }

  private func notAfter(_ request: Request) -> WallTime? {
    guard !request.mode.tellsOnly else { return nil }
    return redisNow + max(1, (request.deadline - NIODeadline.now()).nanoseconds / 1_000_000)
  }

  func transact(
    _ request: Request, _ plan: RichPlan, account: AccountConfig, global: GlobalConfig
  ) {
    let mode: TransactCall.Mode
    switch request.mode {
    case .check: mode = .check
    case .post: mode = .post
    case .reserve:
      if let refusal = unreservable(request, global) {
        return finish(request, .error(.badRequest, refusal))
      }
      mode = .reserve(
        ReserveTerms(
          ttlMilliseconds: request.terms?.ttlMilliseconds ?? HoldBounds.ttlDefault,
          overrun: request.terms?.overrun ?? .standard,
          holdsMax: configuration.limits.holdsPerAccountMax))
    case .consume where request.leased != nil && request.leaseStep == .atomic:
      mode = .consumeBeforeRecall
    case .consume, .cancel, .settle, .release, .extend, .refund: mode = .consume
    }
    guard let fence = fence(request.bucket) else { return storeIsAway(request) }
    let call = TransactCall(
      keySpace: keys, fence: fence, operation: request.id, fingerprint: request.fingerprint,
      mode: mode, subject: request.subject, plan: plan, asked: request.items.count,
      common: mode == .check ? [] : common(request, global), globalVersion: global.version,
      accountVersion: account.version, limits: storeLimits, notAfter: notAfter(request))
    dispatch(call, request, isHarmless: mode == .check) { reply, wasInDoubt, now in
      self.handle(
        reply.answer, of: request, wasInDoubt: wasInDoubt, epoch: fence.epoch, at: now
      ) { reply.entries(of: request.id, $0) }
      self.remember(reply, request.id, request)
    }
  }

  /// nil: all of it may be held.
  private func unreservable(_ request: Request, _ global: GlobalConfig) -> String? {
    let refused = request.items.first { item in
      global.catalog.features[item.feature].map { !$0.reservable } ?? false
    }
    return refused.map {
      "\($0.feature) cannot be held: set `reservable: true` for it in the catalog, or consume it"
    }
  }

  // MARK: - After a reservation is made

  func sendStep(_ request: Request, global: GlobalConfig, account: AccountConfig) {
    step(request, plan: nil, global: global, account: account)
  }

  private func step(
    _ request: Request, plan: RichPlan?, global: GlobalConfig, account: AccountConfig
  ) {
    guard let fence = fence(request.bucket) else { return storeIsAway(request) }
    guard let reservation = request.terms?.reservation else {
      return finish(request, .error(.badRequest, "no reservation is named"))
    }
    let step: SettleCall.Step
    switch request.mode {
    case .release: step = .release
    case .extend:
      step = .extend(
        ttlMilliseconds: request.terms?.ttlMilliseconds ?? HoldBounds.ttlDefault)
    case .settle, .check, .consume, .post, .cancel, .reserve, .refund:
      step = .settle(request.items, isFinal: request.terms?.isFinal ?? true)
    }
    let isMoney = request.items.contains {
      global.catalog.features[$0.feature]?.importance == .money
    }
    var call = SettleCall(
      keySpace: keys, fence: fence, operation: request.id, fingerprint: request.fingerprint,
      reservation: reservation, subject: request.subject, step: step,
      recordClass: isMoney ? .money : .volume, common: common(request, global),
      globalVersion: global.version, accountVersion: account.version, limits: storeLimits,
      notAfter: notAfter(request))
    call.plan = plan
    dispatch(call, request) { reply, wasInDoubt, now in
      if case .planWanted(let created, let features) = reply.answer {
        return self.stepWithPlan(request, created, features)
      }
      self.handle(
        reply.answer, of: request, wasInDoubt: wasInDoubt, epoch: fence.epoch, at: now
      ) { reply.entries(of: request.id, $0) }
      self.remember(reply, reservation, request)
    }
  }

  /// More was used than is held, or it comes late: what limits and grants leave beyond the hold is
  /// asked of them as they are now, in the periods that admitted it.
  private func stepWithPlan(_ request: Request, _ created: WallTime, _ features: [Name]) {
    request.inDoubt = false
    guard let global, buckets[request.bucket].phase == .open else { return attempt(request) }
    let account = accounts[request.account] ?? AccountConfig(version: -1)
    let resolution = Resolution.resolve(
      subject: request.subject, items: features.map { Item(feature: $0, amount: 0) },
      priced: false, global: global, account: account, now: created, zones: SystemZones.book)
    if let zone = resolution.unknownZone { return zoneIsUnknown(zone, request) }
    step(
      request, plan: RichPlan(resolution: resolution, depth: request.subject.depth),
      global: global, account: account)
  }

  func refuseStep(_ request: Request, _ reply: DecideReply) {
    guard case .notHeld(let problem) = reply else {
      return finish(request, .error(.internalError, "a plan was wanted by what has one"))
    }
    if problem == .unknown, isBringing(request.bucket) {
      // Nothing was applied. Its reservation may be on its way back into the epoch.
      request.inDoubt = false
      eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(Self.bringPollMilliseconds)) {
        self.attempt(request)
      }
      return
    }
    if let reservation = request.terms?.reservation {
      switch problem {
      case .unknown: heldHere.forget(reservation, of: request.subject)
      // Of whose it was a refusal says nothing, so only one that is known here is noted.
      case .committed where heldHere.subject(of: reservation) == request.subject:
        note(.committed, reservation, request)
      case .released where heldHere.subject(of: reservation) == request.subject:
        note(.released, reservation, request)
      case .committed, .released: break
      // It may still be settled late, or is held as before.
      case .expired, .otherItem, .overrun: break
      }
    }
    let (code, text): (ErrorCode, String) =
      switch problem {
      case .unknown:
        (.reservationUnknown, "no reservation of this id is known for this subject")
      case .committed: (.reservationEnded, "the reservation was settled: COMMITTED")
      case .released: (.reservationEnded, "the reservation was given back: RELEASED")
      case .expired: (.reservationEnded, "the reservation is over: EXPIRED; settle what was used")
      case .otherItem: (.badRequest, "the reservation does not hold this feature")
      case .overrun: (.overrunRejected, "more was used than is held, and its policy refuses that")
      }
    finish(request, .error(code, text))
  }

  // MARK: - Holds across epochs

  /// A few times in the second that sidecars have for bringing the holds that they made.
  private static let bringPollMilliseconds: Int64 = 250

  private func isBringing(_ bucket: Int) -> Bool {
    let state = buckets[bucket]
    return state.epoch > 1
      && .now() - state.openedAt < .milliseconds(TransactCall.settlingMilliseconds)
  }

  /// What Redis says of the reservation now; what did not happen, or did not reach Redis, is no
  /// word on it.
  private func remember(_ reply: RichReply, _ reservation: OperationID, _ request: Request) {
    let decision: Decision
    switch reply.answer {
    case .decided(let decided), .replayed(let decided): decision = decided.decision
    case .mismatch, .idTooOld, .idFromFuture, .expired, .stale, .rebuild, .period, .fenced,
      .holdsDue, .young, .holdsElsewhere, .planWanted, .notHeld, .error:
      return
    }
    if let hold = StoredHold(reservation: reservation.bytes, bytes: reply.hold) {
      heldHere.note(hold, bucket: request.bucket, now: redisNow)
      return
    }
    switch decision.reason {
    case .released: note(.released, reservation, request)
    case .settledLate: note(.committed, reservation, request)
    case .settled where request.terms?.isFinal ?? true,
      .settledClamped where request.terms?.isFinal ?? true:
      note(.committed, reservation, request)
    default: break
    }
  }

  private func note(_ state: HoldEnd.State, _ reservation: OperationID, _ request: Request) {
    heldHere.ended(
      HoldEnd(reservation: reservation, subject: request.subject, state: state),
      bucket: request.bucket, now: redisNow)
  }

  func bringHolds(for request: Request, epoch: Int64) {
    let known = heldHere.live(of: request.account, in: request.bucket)
    park(request, .holds(request.account)) {
      $0.bringHolds(
        account: request.account, bucket: request.bucket, epoch: epoch, known: known)
    }
  }

  /// The bucket has a new epoch: what is held here must be held there before anything is let in.
  func bringHolds(of bucket: Int, epoch: Int64) {
    guard epoch > 1 else { return }
    for (account, holds) in heldHere.live(in: bucket, now: redisNow)
    where holds.contains(where: { $0.epoch != epoch }) {
      delegate?.bringHolds(account: account, bucket: bucket, epoch: epoch, known: holds)
    }
    let ends = heldHere.ends(in: bucket, now: redisNow)
    if !ends.isEmpty { delegate?.tellOfEnds(ends, bucket: bucket, epoch: epoch) }
  }

  // MARK: - Calls

  /// One script call for one request, and what it answered; losses are dealt with here.
  private func dispatch<Call: ScriptCall>(
    _ call: Call, _ request: Request, isHarmless: Bool = false,
    answered: @escaping (Call.Reply, _ wasInDoubt: Bool, NIODeadline) -> Void
  ) {
    let bucket = request.bucket
    guard let connection = link?.connection,
      case .allowed(let ticket) = breaker.admit(now: monotonicNow())
    else { return storeIsAway(request) }
    let sentAt = NIODeadline.now()
    if leases != nil { request.sentAt = LeaseHub.bootNanoseconds() }
    let wasInDoubt = request.inDoubt
    if !isHarmless { request.inDoubt = true }
    begun(bucket)
    connection.send(
      { call.write(into: &$0) },
      completion: { [self] result in
        let now = NIODeadline.now()
        landed(1, bucket)
        switch result {
        case .success(let reply):
          answeredAt = now
          worked(1, at: now)
          metrics.redisLatency.record(nanoseconds: (now - sentAt).nanoseconds)
          noteBreaker(
            breaker.answered(
              ticket, latency: redisTime(since: sentAt, to: now), now: monotonic(now)))
          if request.isAnswered { metrics.lateReplies.add() }
          answered(call.decode(reply), wasInDoubt, now)
        case .failure(.notSent):
          noteBreaker(breaker.failed(ticket, now: monotonic(now)))
          request.inDoubt = wasInDoubt
          storeIsAway(request)
        case .failure(.outcomeUnknown):
          noteBreaker(breaker.failed(ticket, now: monotonic(now)))
          if !request.isAnswered { waiting[.link, default: []].append(request) }
        }
      })
  }
}
