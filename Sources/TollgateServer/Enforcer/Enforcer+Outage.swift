// What is answered when the store cannot be: by the failure policy of the limits in an outage, by
// OVERLOADED or NOT_READY where nothing has failed and there is only more to do than time for it.

import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

extension Enforcer {
  /// Redis cannot be asked now. A request in doubt waits for the link, because only its id can
  /// tell; any other is answered by the failure policy of its limits.
  func storeIsAway(_ request: Request) {
    guard !request.isAnswered, !cancelledInQueue(request) else { return }
    if request.inDoubt || request.mode.tellsOnly {
      waiting[.link, default: []].append(request)
      // The link may be up by now, or never have been what was missing: nobody else would say so.
      if canReachStore { tryAgainSoon() }
    } else {
      answerByPolicy(request)
    }
  }

  private func tryAgainSoon() {
    guard !retryScheduled else { return }
    retryScheduled = true
    eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(50)) {
      self.retryScheduled = false
      self.resume(.link)
    }
  }

  func deadlinePassed(_ request: Request) {
    metrics.timeouts.add()
    if cancelledInQueue(request) { return }
    if request.mode.tellsOnly { return finishInDoubt(request) }
    let now = NIODeadline.now()
    // Redis answers, but not as fast as requests come: that is overload, not an outage, and no
    // reason to let anything through. The same of accounts that are being seeded: the next
    // attempt finds what this one asked for.
    let call = TimeAmount.nanoseconds(callTime.usual)
    let isFlowing = request.isQueued && isFlowing(for: request, at: now)
    let isLoading = request.awaitsAccount && now - loadedAt < Self.loadingFlows + call
    if !request.inDoubt, isFlowing || isLoading { return refuseLate(request) }
    answerByPolicy(request)
  }

  /// It waited for as long as it had, and was sent nowhere.
  func waitedInVain(_ request: Request, at now: NIODeadline) {
    isFlowing(for: request, at: now) ? refuseLate(request) : answerByPolicy(request)
  }

  private func isFlowing(for request: Request, at now: NIODeadline) -> Bool {
    // It owes nobody an answer: it was this loop that took its time.
    if let connection = link?.connection, connection.oldestSentAt == nil { return !isBreakerOpen }
    return Self.isFlowing(
      silence: redisTime(since: answeredAt, to: now),
      waited: redisTime(since: request.arrived, to: now), usual: callTime.usual,
      way: callTime.quickest)
  }

  /// Nothing of it was begun, and nothing has failed: there was more to do than time for it.
  private func refuseLate(_ request: Request) {
    guard !request.awaitsAccount else {
      return finish(
        request, .error(.notReady, "the account is being loaded; ask again with the same id"))
    }
    metrics.overloaded.add()
    finish(request, .error(.overloaded, "too many operations of this bucket"))
  }

  /// Redis is taken to be answering while its last answer is not older than this and a call.
  static var answersFlow: TimeAmount { .milliseconds(50) }

  /// Whether Redis answers others while a request waits for its turn. Who came after its last
  /// answer has seen none, and what calls take as a rule tells him nothing: those that waited out
  /// an outage make the next one look like a slow call. All in nanoseconds.
  ///
  /// - Parameters:
  ///   - silence: since Redis answered anybody.
  ///   - waited: since the request came.
  ///   - usual: what a call takes as a rule.
  ///   - way: to Redis and back.
  static func isFlowing(silence: Int64, waited: Int64, usual: Int64, way: Int64) -> Bool {
    silence < answersFlow.nanoseconds + (silence < waited ? usual : way)
  }

  /// Whether what Redis was sent does not come back. An answer that is on its way is none that
  /// stays away, however far Redis is.
  ///
  /// - Parameters:
  ///   - silence: since its oldest call was sent; nil: it has answered all. Nanoseconds.
  ///   - way: to Redis and back.
  static func isStuck(silence: Int64?, way: Int64) -> Bool {
    silence.map { $0 > answersFlow.nanoseconds + way } ?? false
  }

  /// Accounts are taken to be loading while one came within this time and that of a call.
  static var loadingFlows: TimeAmount { .milliseconds(500) }

  /// It may have been applied. Anything else would be a guess; the id will tell.
  private func finishInDoubt(_ request: Request) {
    finish(
      request,
      .error(.outcomeUnknown, "the store did not answer in time; repeat with the same id"))
  }

  /// A hold is made in the store or nowhere: no policy, however open, can let one through. One that
  /// was made unknown to anybody ends by itself.
  private func refuseToHold(_ request: Request) {
    if request.inDoubt { return finishInDoubt(request) }
    finish(
      request,
      .decision(
        Decision(
          reason: .storeUnavailable, source: .policy, time: redisNow,
          globalVersion: global?.version ?? 0,
          accountVersion: accounts[request.account]?.version ?? 0)))
  }

  private func answerByPolicy(_ request: Request) {
    defer { worked(1, at: .now()) }
    if request.mode == .reserve { return refuseToHold(request) }
    let remembered = answeredBefore(request)
    if remembered == .answered { return }
    let account = accounts[request.account] ?? fallback.configuration(of: request.account)
    let verdict = PolicyAnswer.verdict(
      for: request, global: global, account: account, now: redisNow, unknown: &unknownAccounts)
    switch verdict {
    case .tooMany(let refusal): finish(request, .error(.tooManyItems, refusal))
    case .deny(let reason, let binding, let item):
      if request.inDoubt {
        return finishInDoubt(request)
      }
      finish(
        request,
        .decision(
          Decision(
            reason: reason, source: .policy, binding: binding, bindingItem: item,
            time: redisNow, globalVersion: global?.version ?? 0,
            accountVersion: account?.version ?? 0)))
    case .allow where remembered == .forgotten: finish(request, Self.tooOld)
    case .allow(let units, let claims):
      var refused = false
      var binding: Name?
      switch request.mode {
      case .check, .post, .cancel, .reserve, .settle, .release, .extend, .refund:
        binding = fallback.refusal(of: claims)
        refused = binding != nil
      case .consume:
        switch fallback.admit(FallbackOperation(request), claims: claims) {
        case .kept:
          metrics.fallbackUnits.add(units)
          metrics.fallbackPending.set(Int64(fallback.count))
        case .remembered(let answer): return finish(request, outcome(of: answer))
        case .exhausted(let limit):
          binding = limit
          refused = true
        case .full: refused = true
        }
      }
      if refused {
        if request.inDoubt { return finishInDoubt(request) }
        return finish(
          request,
          .decision(
            Decision(
              reason: .fallbackExhausted, source: .policy, binding: binding, time: redisNow,
              globalVersion: global?.version ?? 0,
              accountVersion: account?.version ?? 0)))
      }
      finish(
        request,
        .decision(
          Decision(
            reason: .allowedFailOpen, source: .policy, time: redisNow,
            globalVersion: global?.version ?? 0,
            accountVersion: account?.version ?? 0)))
    }
  }
}
