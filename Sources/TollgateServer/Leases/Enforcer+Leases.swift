// Operations that leases may answer, on their way through an enforcer: those that the fast path
// left, and those that no fast path saw.
//
//   first ─▶ table ─┬ answered ─────────────────────────────────────────────▶ answer
//                   └ miss: its id is marked, so that a retry comes here ─▶ Redis
//   Redis allowed ─▶ asked for three times in a row with pauses of a second at most (longer where
//                    much is hot or Redis is slow): it is registered, leased from then on ─▶ answer
//   Redis denied, and leases hold some of it ─▶ recall ─▶ (they give back) ─▶ Redis again
//
// What Redis decides is recorded there as ever. A denial that a recall may turn is not recorded
// before nothing is left to be recalled: the same id is asked again.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

/// How far a request is with the leases.
enum LeaseStep: Sendable, Hashable {
  /// The table was not asked.
  case new
  /// Redis decides; a denial may be asked again.
  case atomic
  /// Redis decides, finally.
  case final
}

extension Enforcer {
  /// Whether the table answers; else it goes on to Redis, and this is not asked again.
  func answeredFromLease(_ request: Request, _ resolution: Resolution) -> Bool {
    guard request.leaseStep == .new, let leases else {
      // What is decided next is decided by this one: under an older one's limits nothing is leased.
      if request.leased != nil { request.leased = resolution }
      return false
    }
    guard LeaseBinding.isLeasable(resolution) else {
      if wasDecided(request, by: leases) { return true }
      awaitsRecall(request, resolution)
      return false
    }
    guard request.mode == .consume || request.mode == .check, let shape = request.shape else {
      return false
    }
    request.leaseStep = .atomic
    request.leased = resolution
    var answer: Outcome?
    var asksAgain = true
    while asksAgain {
      asksAgain = false
      let (outcome, bytes) = leases.spend(request, shape)
      switch outcome {
      case .allowed, .replayed, .denied:
        answer = Self.decoded(bytes) ?? .error(.internalError, "an answer cannot be read")
      case .known:
        answer = .decision(leaseDecision(.allowed, request))
      case .knownDenied(let reason):
        answer = .decision(leaseDecision(reason.reason, request))
      case .cancelled: answer = .decision(leaseDecision(.cancelled, request))
      case .mismatch(let item, _): answer = Self.mismatch(amounts: item != nil)
      case .tooOld: answer = Self.tooOld
      case .miss(.unknownKey) where request.mode == .consume:
        // False: another connection's copy was faster.
        asksAgain = !leases.hub.table.mark(bucket: request.bucket, id: request.id)
      case .miss: break
      }
    }
    guard let answer else { return false }
    finish(request, answer)
    return true
  }

  private static func mismatch(amounts: Bool) -> Outcome {
    .error(
      .idempotencyMismatch,
      (amounts ? "amounts" : "subject, features or attributes")
        + " differ from the first request of this id")
  }

  /// Redis cannot be asked now: what leases hold, and what they let through, needs it not.
  func answeredWithoutRedis(_ request: Request, _ global: GlobalConfig) -> Bool {
    guard request.mode == .consume || request.mode == .check, !request.inDoubt,
      request.leaseStep == .new, leases != nil, Self.isSidecarScope(request, global),
      let account = accounts[request.account]
    else { return false }
    let resolution = plans.plan(
      for: request, global: global, account: account, now: billedAt(request), keys: keys
    ).resolution
    guard resolution.refusal == nil, resolution.unknownZone == nil,
      LeaseBinding.isLeasable(resolution)
    else { return false }
    return answeredFromLease(request, resolution)
  }

  // MARK: - What leases let through before

  /// Before a policy answers: what a lease let through, or nobody can tell whether one did, is
  /// not let through a second time and posted. What is not known is marked, so that a post of it
  /// is proof of itself (`isUsedAnyway`).
  func answeredBefore(_ request: Request) -> Remembered {
    guard request.leaseStep == .new, let leases else { return .nothing }
    return answeredAsKnown(request, by: leases)
  }

  /// What the table has to say of an id.
  enum Remembered {
    case nothing
    /// It may have been let through: nobody here can tell.
    case forgotten
    /// Answered as it was.
    case answered
  }

  /// It is not leased any more, as its limit was made exact or its account frozen: what was let
  /// through or denied before that under its id stands, and Redis does not know of it.
  private func wasDecided(_ request: Request, by leases: LeaseKeeper) -> Bool {
    switch answeredAsKnown(request, by: leases) {
    case .nothing: return false
    case .forgotten: answerTooOld(request)
    case .answered: break
    }
    return true
  }

  private func answeredAsKnown(_ request: Request, by leases: LeaseKeeper) -> Remembered {
    guard request.mode == .consume, !request.inDoubt, let global,
      Self.isSidecarScope(request, global), let shape = request.shape
    else { return .nothing }
    switch leases.known(request, shape) {
    case .answer(let reason): finish(request, .decision(leaseDecision(reason, request)))
    case .cancelled: finish(request, .decision(leaseDecision(.cancelled, request)))
    case .mismatch(let amounts): finish(request, Self.mismatch(amounts: amounts))
    case .tooOld: return .forgotten
    case .goesOn, .unregistered, .later: return .nothing
    }
    return .answered
  }

  /// A lease may have let it through, and nobody here remembers: Redis, which does not know either,
  /// would count it a second time. What Redis itself decided it remembers for longer.
  private func answerTooOld(_ request: Request) {
    answerFromRecord(request, epoch: buckets[request.bucket].epoch) { [self] isKnown in
      guard isKnown else { return storeIsAway(request) }
      finish(request, Self.tooOld)
    }
  }

  static var tooOld: Outcome {
    .error(.idTooOld, "the id is older than what this sidecar remembers")
  }

  /// A POST or CANCEL of what a sidecar remembers by itself: whether the table knows of it.
  func answeredFromTable(_ request: Request, _ global: GlobalConfig) -> Bool {
    guard request.mode == .post || request.mode == .cancel, request.leaseStep == .new,
      let leases, Self.isSidecarScope(request, global), let shape = request.shape
    else { return false }
    request.leaseStep = .final
    switch request.mode == .post
      ? leases.known(request, shape) : leases.cancelled(request, shape)
    {
    case .goesOn: return false
    case .answer(let reason): finish(request, .decision(leaseDecision(reason, request)))
    case .cancelled:
      var decision = leaseDecision(.cancelled, request)
      decision.replayed = false
      finish(request, .decision(decision))
    case .mismatch(let amounts): finish(request, Self.mismatch(amounts: amounts))
    case .tooOld where isUsedAnyway(request, leases): return false
    case .tooOld: finish(request, Self.tooOld)
    case .unregistered:
      request.leaseStep = .new
      learnShape(of: request)
    case .later:
      // There is room again in a moment.
      request.leaseStep = .new
      eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(20)) { self.attempt(request) }
    }
    return true
  }

  /// A POST of what no lease here let through: what this sidecar's own policy let through after the
  /// table had missed it, or a client's while there was no sidecar.
  private func isUsedAnyway(_ request: Request, _ leases: LeaseKeeper) -> Bool {
    request.mode == .post
      && (request.isPosting
        || request.source == .clientFallback
          && leases.hub.table.isOfUnknownPast(bucket: request.bucket, request.id))
  }

  /// Nobody asked for the like of it lately, or since the start. Redis is asked what an operation
  /// like it resolves to, which counts nothing; then it is attempted again.
  private func learnShape(of request: Request) {
    var random = SystemRandomNumberGenerator()
    let look = Request(
      mode: .check, id: OperationID(time: redisNow, using: &random), subject: request.subject,
      items: request.items, attributes: request.attributes, bucket: request.bucket,
      arrived: .now(), deadline: request.deadline
    ) { [self] _ in
      // Who looks in vain, as nobody answers or it is not leased any more, takes his time.
      let pause = TimeAmount.milliseconds(request.attempts > 1 ? 20 : 1)
      eventLoop.assumeIsolated().scheduleTask(in: pause) { self.attempt(request) }
    }
    look.isForShape = true
    submit(look)
  }

  static func isSidecarScope(_ request: Request, _ global: GlobalConfig) -> Bool {
    request.items.count <= RawRecord.itemsMax
      && request.items.allSatisfy { isSidecarScope($0, global) }
  }

  private static func isSidecarScope(_ item: Item, _ global: GlobalConfig) -> Bool {
    global.catalog.features[item.feature]?.idempotency == .sidecar
  }

  private static func decoded(_ bytes: [UInt8]) -> Outcome? {
    var buffer = ByteBuffer(bytes: [1, 0, 0, 0] + bytes)
    guard let record = try? DecisionBatch.decode(from: &buffer).records.first else { return nil }
    switch record {
    case .decision(let decision): return .decision(decision)
    case .error(let code, let message): return .error(code, message)
    }
  }

  /// What was answered before, where only that is known.
  private func leaseDecision(_ reason: Reason, _ request: Request) -> Decision {
    Decision(
      reason: reason, source: .lease, time: redisNow, globalVersion: global?.version ?? 0,
      accountVersion: accounts[request.account]?.version ?? 0, replayed: true,
      items: request.items.map { _ in Decision.ItemState() })
  }

  // MARK: - After Redis decided

  /// What gives units back ends what leases remember of denials.
  func tookBack(_ request: Request) {
    switch request.mode {
    case .check, .consume, .post, .reserve, .settle, .release, .extend: break
    case .cancel, .refund:
      leases?.hub.table.corrected(
        bucket: request.bucket, account: Array(request.account.utf8), now: LeaseHub.now)
    }
  }

  /// Whether it waits for what leases hold.
  func leaseDecided(_ request: Request, _ decision: Decision) -> Bool {
    guard let leases, let resolution = request.leased else { return false }
    let sentAt = request.sentAt
    guard !request.isForShape else {
      leases.learn(request, resolution, decision, sentAt: sentAt)
      return false
    }
    if decision.isAllowed {
      if decision.reason == .allowed { leases.seen(request, resolution, decision, sentAt: sentAt) }
      return false
    }
    guard isToBeRecalled(request, decision), link?.connection != nil else {
      leases.denied(request, resolution, decision, sentAt: sentAt)
      return false
    }
    guard request.isLeasedWholly || bindsWhatIsLeased(decision, of: request) else {
      // That denial was not recorded, and nobody's lease would change it.
      decideFinally(request)
      return true
    }
    recall(request, resolution, decision)
    return true
  }

  /// Not answered from leases, and yet what it asks for may be held by some: by another shape of a
  /// feature that is leased, or of the limits that are.
  private func awaitsRecall(_ request: Request, _ resolution: Resolution) {
    // Where configuration denies it, as that of an account that is not loaded yet, nothing is held.
    guard request.mode == .consume, !resolution.isDenied, let global,
      request.items.contains(where: { Self.isSidecarScope($0, global) })
    else { return }
    request.leaseStep = .atomic
    request.leased = resolution
    request.isLeasedWholly = false
  }

  /// It is denied for a feature that leases hold some of.
  private func bindsWhatIsLeased(_ decision: Decision, of request: Request) -> Bool {
    guard let global, decision.reason == .quotaExceeded || decision.reason == .creditExhausted,
      let binding = decision.bindingItem,
      request.items.indices.contains(binding), decision.items.indices.contains(binding)
    else { return false }
    let state = decision.items[binding]
    return Self.isSidecarScope(request.items[binding], global)
      && (state.held > 0 || decision.reason == .creditExhausted && state.limit != decision.binding)
  }

  /// Denied, not recorded, and asked for again when leases were asked to give back.
  func isToBeRecalled(_ request: Request, _ decision: Decision) -> Bool {
    request.leased != nil && request.mode == .consume && request.leaseStep == .atomic
      && !decision.isAllowed && !decision.replayed && decision.mayBeHeld
  }

  private func recall(_ request: Request, _ resolution: Resolution, _ decision: Decision) {
    guard let leases, let fence = fence(request.bucket), let connection = link?.connection else {
      return decideFinally(request)
    }
    let call = RecallCall(
      keySpace: keys, fence: fence, account: request.subject.account,
      asker: LesseeID(leases.hub.lessee),
      wanted: LeaseBinding.wanted(request, resolution, decision))
    guard !call.wanted.isEmpty else { return decideFinally(request) }
    metrics.leases.recalls.add()
    begun(request.bucket)
    connection.send(
      { call.write(into: &$0) },
      completion: { [self] result in
        landed(1, request.bucket)
        guard !request.isAnswered else { return }
        guard case .success(let reply) = result, case .done(let held?) = call.decode(reply) else {
          return decideFinally(request)
        }
        let others = held.contains { $0.byOthers > 0 }
        let own = held.contains { $0.byAsker > 0 }
        if own {
          leases.hub.table.recall(
            bucket: request.bucket, account: Array(request.account.utf8), now: LeaseHub.now)
          leases.exchange(request.bucket)
        }
        guard others || own, request.recalls < Self.recallsMax else {
          return decideFinally(request)
        }
        // Half a call until the holder has heard it, and a whole one of its own.
        let pause =
          Self.recallPauses[request.recalls] + .nanoseconds(callTime.usual + callTime.usual / 2)
        let now = NIODeadline.now()
        let needed = pause.nanoseconds + 2 * callTime.expected(at: monotonic(now).nanoseconds)
        guard (request.deadline - now).nanoseconds > needed else { return decideFinally(request) }
        request.recalls += 1
        eventLoop.assumeIsolated().scheduleTask(in: pause) { self.attempt(request) }
      })
  }

  private func decideFinally(_ request: Request) {
    request.leaseStep = .final
    attempt(request)
  }

  /// Who holds leases is told at once and gives back within a tick or two of its own.
  private static let recallPauses: [TimeAmount] = [
    .milliseconds(3), .milliseconds(6), .milliseconds(12), .milliseconds(25), .milliseconds(50),
  ]
  private static var recallsMax: Int { recallPauses.count }
}

extension Decision {
  /// Denied by a limit whose units, or tokens, somebody may hold for now.
  var mayBeHeld: Bool {
    switch reason {
    case .rateLimited: true
    case .quotaExceeded: items.contains { $0.held > 0 }
    // Where another limit leaves less, what is held of its grants is not shown.
    case .creditExhausted:
      items.contains { $0.held > 0 }
        || bindingItem.map { items.indices.contains($0) && items[$0].limit != binding } ?? false
    default: false
    }
  }
}
