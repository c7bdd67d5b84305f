// The leases' side of one event loop: sends the exchanges of the buckets that are this loop's,
// hears the answers, and learns what is asked for often enough to be leased.
//
// Why this shape: an exchange goes over the loop's own Redis link, fenced like every other call, so
// it is in order with the decisions of the same loop and needs no connection of its own. It is the
// table that knows what is due; this only asks it every few milliseconds, and not at all where
// nothing is leased: a sidecar that leases nothing has no timer for it. What waits when a call
// cannot be sent stays in the table, so nothing here keeps units.

import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateWire

final class LeaseKeeper {
  let hub: LeaseHub
  private unowned let enforcer: Enforcer
  /// Whose exchanges this loop sends.
  private let own: [Int]
  private var pace = LeasePace()
  private var isTicking = false
  private var isResting = false
  /// A tick that was overtaken by `wake` does nothing.
  private var generation = 0
  private var random = SystemRandomNumberGenerator()
  private var shapes = HotShapes()
  private var memory = LeaseTranslation.Memory()
  private var scratch = [UInt8](repeating: 0, count: LeaseFastPath.answerBytesMax)

  /// Exchanges of one bucket in one tick.
  static let exchangesPerTick = 16
  /// While there are leases, but nothing is used: only what is idle is given back then.
  static let restMilliseconds: Int64 = 500
  /// While nothing is held: only what nobody has asked for in long is forgotten then.
  static let idleMilliseconds: Int64 = 4_000

  init(_ hub: LeaseHub, enforcer: Enforcer, own: [Int]) {
    self.hub = hub
    self.enforcer = enforcer
    self.own = own
  }

  // MARK: - Requests

  /// Asks the table as the fast path does.
  func spend(
    _ request: Request, _ shape: [UInt8]
  ) -> (TollgateEngine.LeaseOutcome, [UInt8]) {
    let now = LeaseHub.bootNanoseconds()
    let amounts = request.items.map(\.amount)
    let outcome = unsafe scratch.withUnsafeMutableBytes { out in
      unsafe shape.withUnsafeBytes { key in
        unsafe amounts.withUnsafeBufferPointer { amounts in
          unsafe hub.table.spend(
            LeaseRequest(
              bucket: request.bucket, kind: request.mode == .check ? .check : .consume,
              id: request.id, key: key, hash: LeaseHash.of(key), amounts: amounts, now: now,
              wall: hub.wall(at: now)),
            into: out)
        }
      }
    }
    if case .allowed = outcome { hub.spent() }
    switch outcome {
    case .allowed(let bytes), .replayed(let bytes), .denied(let bytes):
      return (outcome, Array(scratch.prefix(bytes)))
    case .known, .knownDenied, .mismatch, .tooOld, .cancelled, .miss: return (outcome, [])
    }
  }

  /// What the table says to a POST or CANCEL, or where nothing is leased any more.
  enum Known {
    /// It does not know the id; Redis answers.
    case goesOn
    /// It was decided here before.
    case answer(Reason)
    case cancelled
    case mismatch(amounts: Bool)
    case tooOld
    /// The shape that it was let through by is gone, and what is taken back is settled by a shape.
    case unregistered
    case later
  }

  func known(_ request: Request, _ shape: [UInt8]) -> Known {
    switch asking(request, shape, hub.table.known) {
    case .allowed: .answer(.allowed)
    case .cancelled: .answer(.cancelled)
    // What was let through elsewhere counts although it was denied here.
    case .denied(let reason): request.mode == .post ? .goesOn : .answer(reason.reason)
    case .unknown: .goesOn
    case .mismatch(let item, _): .mismatch(amounts: item != nil)
    case .tooOld: .tooOld
    }
  }

  func cancelled(_ request: Request, _ shape: [UInt8]) -> Known {
    let outcome = asking(request, shape, hub.table.cancel)
    stir()
    return switch outcome {
    case .cancelled: .cancelled
    case .already: .answer(.cancelled)
    case .denied(let reason): .answer(reason.reason)
    case .mismatch(let item, _): .mismatch(amounts: item != nil)
    case .tooOld: .tooOld
    case .unknown: .goesOn
    case .unregistered: .unregistered
    case .full: .later
    }
  }

  private func asking<Answer>(
    _ request: Request, _ shape: [UInt8], _ ask: (borrowing LeaseRequest) -> Answer
  ) -> Answer {
    let now = LeaseHub.bootNanoseconds()
    let amounts = request.items.map(\.amount)
    return unsafe shape.withUnsafeBytes { key in
      unsafe amounts.withUnsafeBufferPointer { amounts in
        unsafe ask(
          LeaseRequest(
            bucket: request.bucket, kind: .consume, id: request.id, key: key,
            hash: LeaseHash.of(key), amounts: amounts, now: now, wall: hub.wall(at: now)))
      }
    }
  }

  /// Redis allowed it: a shape that comes often is leased from now on.
  func seen(_ request: Request, _ resolution: Resolution, _ decision: Decision, sentAt: Int64) {
    guard let shape = request.shape else { return }
    let now = LeaseHub.bootNanoseconds()
    guard shapes.note(LeaseHash.of(shape), at: now, within: pace.demand) else { return }
    learn(request, resolution, decision, sentAt: sentAt)
  }

  /// What Redis decided says how the like of it is answered from memory, and settled.
  func learn(_ request: Request, _ resolution: Resolution, _ decision: Decision, sentAt: Int64) {
    guard
      let registration = LeaseBinding.registration(
        request, resolution, decision, bucket: request.bucket,
        versions: (
          decision.globalVersion, decision.accountVersion, enforcer.global?.catalogVersion ?? 0
        ), confirmedAt: sentAt, now: LeaseHub.bootNanoseconds())
    else { return }
    // Full or outdated: it stays with Redis.
    _ = hub.table.register(registration)
    stir()
  }

  /// Redis denied it, finally: the same is denied from memory for a while.
  func denied(_ request: Request, _ resolution: Resolution, _ decision: Decision, sentAt: Int64) {
    // By prices or holds that came with a newer catalog more was decided than leases know of.
    guard LeaseBinding.isLeasable(resolution), request.items.count == 1,
      let shape = request.shape, let state = decision.items.first,
      let limit = resolution.limits.first(where: { $0.id == decision.binding })
    else { return }
    guard let memory = Self.memory(of: decision, state, limit, resolution, request.items[0].amount),
      request.items[0].amount <= memory.amountMax
    else { return }
    // It may be another grant by now that it was burnt from last, and none is burnt any more.
    if decision.isOutOfCredit { learn(request, resolution, decision, sentAt: sentAt) }
    var answer = decision
    answer.source = .lease
    if decision.retryAfter != nil || decision.reason == .quotaExceeded {
      answer.retryAfter = max(1, memory.reset - decision.time)
    }
    let template = AnswerTemplate(answer)
    var patches = [
      LeasePatch(.replayed, at: template.flagsOffset), LeasePatch(.time, at: template.timeOffset),
    ]
    if answer.retryAfter != nil {
      patches.append(LeasePatch(.retryAfter, at: template.retryOffset))
    }
    let note = LeaseDenialNote(
      key: shape, reason: memory.reason, amount: request.items[0].amount,
      amountMax: memory.amountMax,
      isSettledAlone: state.limit == limit.id && memory.isSettled,
      reset: memory.reset.milliseconds,
      confirmedAt: sentAt, template: LeaseTemplate(bytes: template.bytes, patches: patches))
    // After a change, or a start, nobody may be let through for long who would be learnt by that.
    guard !hub.table.noteDenial(bucket: request.bucket, note),
      shapes.note(LeaseHash.of(shape), at: LeaseHub.bootNanoseconds(), within: pace.demand)
    else { return }
    learn(request, resolution, decision, sentAt: sentAt)
    _ = hub.table.noteDenial(bucket: request.bucket, note)
  }

  /// As what a denial is remembered.
  private struct Memory {
    var reason: LeaseDenialReason
    /// Settled use alone is in the way.
    var isSettled: Bool
    var reset: WallTime
    /// Greater amounts may be told another time, or none.
    var amountMax: Int64
  }

  /// nil: it is not.
  private static func memory(
    of decision: Decision, _ state: Decision.ItemState, _ limit: AppliedLimit,
    _ resolution: Resolution, _ amount: Int64
  ) -> Memory? {
    let retry = decision.retryAfter.map { decision.time + $0 }
    switch (limit.rule, decision.reason) {
    case (.quota(_, let most), .quotaExceeded):
      return state.reset.map {
        Memory(reason: .quota, isSettled: state.settled >= most, reset: $0, amountMax: most)
      }
    case (.credit, .creditExhausted):
      // Or when credit is added, which ends the shape.
      return Memory(
        reason: .credit, isSettled: decision.isOutOfCredit,
        reset: retry ?? resolution.validUntil, amountMax: .max)
    case (.rate, .rateLimited), (.sliding, .quotaExceeded):
      // Some of it comes back all the time.
      return retry.map {
        Memory(
          reason: decision.reason == .rateLimited ? .rate : .quota, isSettled: false, reset: $0,
          amountMax: amount)
      }
    default: return nil
    }
  }

  // MARK: - Ticks

  /// A call of this loop was answered after so many nanoseconds.
  func called(_ took: Int64) { pace.called(took, way: enforcer.callTime.quickest) }

  /// There may be something to exchange from now on, of a bucket that may be another keeper's.
  private func stir() {
    hub.spent()
    wake()
  }

  /// The same, of a bucket of its own.
  func wake() {
    // Again at once where it rests.
    guard !isTicking || isResting else { return }
    isTicking = true
    isResting = false
    generation &+= 1
    tick()
  }

  private func tick() {
    if pace.isToMeasure(at: LeaseHub.bootNanoseconds()) {
      pace.measured(waiting: own.reduce(0) { $0 + hub.table.waiting(bucket: $1) })
    }
    var sent = 0
    for bucket in own { sent += exchange(bucket) }
    var load = hub.table.load
    if sent == 0, load < .unsettled {
      hub.rests()
      load = hub.table.load
    }
    guard load != .none else {
      isTicking = false
      return
    }
    isResting = sent == 0 && load < .unsettled
    let turn = generation
    let rest = load == .idle ? Self.idleMilliseconds : Self.restMilliseconds
    let pause = isResting ? rest : enforcer.configuration.leases.tickMilliseconds
    enforcer.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(pause)) {
      if self.generation == turn { self.tick() }
    }
  }

  /// Sends what is due of a bucket; how many calls that were.
  @discardableResult
  func exchange(_ bucket: Int) -> Int {
    var sent = 0
    while sent < Self.exchangesPerTick, let path = enforcer.leasePath(bucket) {
      let now = LeaseHub.now
      guard
        let exchange = hub.table.collect(
          bucket: bucket, now: now, id: OperationID(time: enforcer.redisNow, using: &random),
          isSpare: pace.isSpare(at: now.nanoseconds), settle: pace.settle)
      else { break }
      pace.sent(accounts: exchange.accounts.count)
      sent += 1
      guard send(exchange, path) else { break }
    }
    return sent
  }

  /// False: nothing can be sent now.
  private func send(_ exchange: LeaseExchange, _ path: Enforcer.LeasePath) -> Bool {
    let bucket = exchange.token.bucket
    guard case .allowed(let ticket) = enforcer.breaker.admit(now: enforcer.monotonicNow()) else {
      hub.table.notSent(exchange.token)
      return false
    }
    let call: LeaseCall
    do throws(LeaseTranslation.Unreadable) {
      call = try LeaseTranslation.call(
        exchange, keys: enforcer.keys, bucket: bucket, fence: path.fence,
        ttlMilliseconds: enforcer.configuration.leases.ttlMilliseconds,
        outboxEntriesMax: enforcer.storeLimits.outboxEntriesMax, memory: &memory)
    } catch {
      enforcer.logger.critical(
        "what was let through from leases cannot be read", metadata: ["part": "\(error.what)"])
      hub.table.abandon(exchange.token, now: LeaseHub.now)
      return true
    }
    let sentAt = NIODeadline.now()
    enforcer.metrics.leases.exchanges.add()
    enforcer.begun(bucket)
    enforcer.startTicking()
    path.connection.send(
      { call.write(into: &$0) },
      completion: { [self] result in
        enforcer.leaseAnswered(
          result, call, exchange, bucket: bucket, sentAt: sentAt,
          ticket: ticket)
      })
    return true
  }

  /// What Redis held for leases is gone; what was spent of it is settled in the new epoch.
  func epochChanged(_ bucket: Int) {
    guard own.contains(bucket) else { return }
    hub.table.epochChanged(bucket: bucket)
    wake()
  }
}

extension AnswerTemplate {
  /// Of the retry time, after the time and both versions.
  var retryOffset: Int { timeOffset + 24 }
}

extension LeaseDenialReason {
  var reason: Reason {
    switch self {
    case .quota: .quotaExceeded
    case .credit: .creditExhausted
    case .rate: .rateLimited
    }
  }
}
