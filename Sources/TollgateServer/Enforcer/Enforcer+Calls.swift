// How operations leave for Redis and their replies come back: collected by bucket, one call at a
// time for each, as many operations in it as have come.
//
// Why this shape: a call costs Redis as much as several operations in it do. Under light load an
// operation leaves in the turn of the loop that read it; under heavy load it waits for the call
// before it, at most one round trip, and shares the next one with everything else that waited. What
// fills a call does not wait for the one before it: where Redis is far, a bucket would do no more
// than one call's operations in each round trip.

import DequeModule
import Logging
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateRedis

extension Enforcer {
  /// Operations of one bucket on their way to one script. One call is out at a time: what comes
  /// meanwhile leaves together when it is answered, so calls grow with the load by themselves. Only
  /// what fills a call leaves beside others, and only where Redis is far.
  struct Lane {
    /// Calls at once: some 1,700 operations a second of one bucket, 150 ms away.
    static let callsMax = 8

    var queue: Deque<Pending> = []
    /// On their way to Redis.
    var calls = 0

    /// Whether another call may leave.
    ///
    /// - Parameters:
    ///   - sent: operations of this loop that Redis has not answered.
    ///   - way: to Redis and back, nanoseconds.
    static func maySend(calls: Int, waiting: Int, sent: Int, way: Int64) -> Bool {
      guard calls > 0 else { return waiting > 0 }
      // Redis is done with what it was sent long before the first of it is answered. Where the way
      // is short it is not, and more would only make a queue there, which is taken for an outage.
      return calls < callsMax && waiting >= DecideBatch.operationsMax
        && 2 * Int64(sent) * LoadEstimator.assumed < way
    }
  }

  private func maySend(_ lane: Lane) -> Bool {
    Lane.maySend(
      calls: lane.calls, waiting: lane.queue.count, sent: sent, way: callTime.quickest)
  }

  /// One operation on its way to the store.
  struct Pending {
    var request: Request
    var operation: DecideOperation
    /// An earlier attempt of it may have been applied.
    var wasInDoubt: Bool
  }

  /// Nobody here can say when its periods end: as good as counters that cannot be asked.
  func zoneIsUnknown(_ zone: String, _ request: Request) {
    if unknownZones.count < 100, unknownZones.insert(zone).inserted {
      logger.error(
        "a zone is not installed here: its accounts are answered by their failure policies",
        metadata: ["zone": "\(zone)", "account": "\(request.account)"])
    }
    storeIsAway(request)
  }

  func enqueue(
    _ request: Request, _ plan: DecidePlan, keys: [String], bodies: [[UInt8]],
    versions: (global: Int64, account: Int64)
  ) {
    let lane: WritableKeyPath<BucketState, Lane>
    let mode: DecideOperation.Mode
    switch request.mode {
    case .cancel, .reserve, .settle, .release, .extend, .refund:
      preconditionFailure("\(request.mode) is a script of its own")
    case .check: (lane, mode) = (\.checks, .check)
    case .consume:
      lane = \.decides
      mode = request.leaseStep == .atomic ? .consumeBeforeRecall : .consume
    case .post: (lane, mode) = (\.decides, .post)
    }
    let remaining = max(1, (request.deadline - NIODeadline.now()).nanoseconds / 1_000_000)
    let pending = Pending(
      request: request,
      operation: DecideOperation(
        id: request.id, fingerprint: request.fingerprint, mode: mode, plan: plan,
        keys: keys, bodies: bodies, globalVersion: versions.global,
        accountVersion: versions.account,
        notAfter: request.mode == .post ? nil : redisNow + remaining),
      wasInDoubt: request.inDoubt)
    let bucket = request.bucket
    // Behind a call that does not come back nothing is queued: the failure policy answers at once.
    if buckets[bucket][keyPath: lane].calls > 0, isBreakerOpen { return storeIsAway(request) }
    buckets[bucket].inFlight += 1
    planned += 1
    request.isQueued = true
    buckets[bucket][keyPath: lane].queue.append(pending)
    let isFull = buckets[bucket][keyPath: lane].queue.count == DecideBatch.operationsMax
    if buckets[bucket][keyPath: lane].queue.count == 1 || isFull,
      maySend(buckets[bucket][keyPath: lane])
    {
      queued.append(bucket)
      scheduleCalls()
    }
  }

  /// Everything this turn of the loop read leaves at its end.
  private func scheduleCalls() {
    guard !callsScheduled else { return }
    callsScheduled = true
    eventLoop.assumeIsolated().execute { self.sendQueued() }
  }

  private func sendQueued() {
    callsScheduled = false
    let dirty = queued
    queued.removeAll(keepingCapacity: true)
    for bucket in dirty {
      sendNext(bucket, \.decides)
      sendNext(bucket, \.checks)
    }
  }

  private func sendNext(_ bucket: Int, _ lane: WritableKeyPath<BucketState, Lane>) {
    while maySend(buckets[bucket][keyPath: lane]) {
      var batch: [Pending] = []
      var answered = 0
      let now = NIODeadline.now()
      while batch.count < DecideBatch.operationsMax,
        let pending = buckets[bucket][keyPath: lane].queue.popFirst()
      {
        // Answered while it waited: it was never sent, so it is as if it had not come.
        pending.request.isQueued = false
        if comesTooLate(pending, now) { waitedInVain(pending.request, at: now) }
        if pending.request.isAnswered { answered += 1 } else { batch.append(pending) }
      }
      if answered > 0 { landed(answered, bucket) }
      if !batch.isEmpty { send(batch, lane, bucket) }
    }
  }

  /// It has waited, and Redis would answer it after its deadline: sent now, nobody would know what
  /// became of it. One that comes fresh is sent whatever time it has.
  private func comesTooLate(_ pending: Pending, _ now: NIODeadline) -> Bool {
    let request = pending.request
    guard request.mode == .check || request.mode == .consume, !pending.wasInDoubt,
      !request.isAnswered
    else { return false }
    let behind = Int64(sent) * load.perOperation(now: monotonic(now))
    return callTime.missesDeadline(
      left: (DeadlineWheel.aim(request) - now).nanoseconds,
      waited: (now - request.arrived).nanoseconds, behind: behind, at: monotonic(now).nanoseconds)
  }

  /// Operations of one bucket leave as one call. Between their queueing and now the bucket may
  /// have been closed or the link lost: then none was sent.
  private func send(
    _ batch: [Pending], _ lane: WritableKeyPath<BucketState, Lane>, _ bucket: Int
  ) {
    guard buckets[bucket].phase == .open else {
      landed(batch.count, bucket)
      for pending in batch { attempt(pending.request) }
      return
    }
    guard let connection = link?.connection, let fence = fence(bucket),
      case .allowed(let ticket) = breaker.admit(now: monotonicNow())
    else {
      landed(batch.count, bucket)
      for pending in batch { storeIsAway(pending.request) }
      return
    }
    let sentAt = NIODeadline.now()
    if leases != nil {
      let boot = LeaseHub.bootNanoseconds()
      for pending in batch { pending.request.sentAt = boot }
    }
    let asksOnly = lane == \BucketState.checks
    let call = DecideBatch(
      keySpace: keys, bucket: bucket, fence: fence, limits: storeLimits,
      script: asksOnly ? .check : .decide, operations: batch.map(\.operation))
    if !asksOnly { for pending in batch { pending.request.inDoubt = true } }
    metrics.redisCommands.add()
    metrics.redisOperations.add(Int64(batch.count))
    buckets[bucket][keyPath: lane].calls += 1
    let isAlone = sent == 0
    sent += batch.count
    connection.send(
      { call.write(into: &$0) },
      completion: { [self] result in
        buckets[bucket][keyPath: lane].calls -= 1
        received(
          result.map { call.decode($0) }, of: batch, bucket: bucket, epoch: fence.epoch,
          sentAt: sentAt, isAlone: isAlone, ticket: ticket)
        // What waited leaves at the end of this turn, with whatever else it brings.
        if !buckets[bucket][keyPath: lane].queue.isEmpty {
          queued.append(bucket)
          scheduleCalls()
        }
      })
  }

  /// What this loop believes of a bucket; nil without a connection.
  func fence(_ bucket: Int) -> Fence? {
    guard let identity = link?.connection?.identity else { return nil }
    let epoch = buckets[bucket].epoch
    let seen = seen.seen(bucket: bucket, epoch: epoch)
    return Fence(
      deployment: configuration.deployment.id, epoch: epoch, runID: identity.runID,
      replicationID: identity.replicationID, seenSequence: seen.position.sequence,
      seenTime: seen.time)
  }

  /// No call will be answered soon: what was not sent yet is answered without the store.
  func abandonQueued() {
    for bucket in buckets.indices {
      for lane in [\BucketState.decides, \BucketState.checks]
      where !buckets[bucket][keyPath: lane].queue.isEmpty {
        let waiting = buckets[bucket][keyPath: lane].queue
        buckets[bucket][keyPath: lane].queue = []
        landed(waiting.count, bucket)
        for pending in waiting {
          pending.request.isQueued = false
          storeIsAway(pending.request)
        }
      }
    }
  }

  // MARK: - Annulment

  /// A cancel is a call of its own, and two where the operation was counted: the record says in
  /// which cells, and the second call brings the reversals that name them.
  func sendCancel(_ request: Request, global: GlobalConfig) {
    let bucket = request.bucket
    guard let fence = fence(bucket) else { return storeIsAway(request) }
    let isMoney = request.items.contains {
      global.catalog.features[$0.feature]?.importance == .money
    }
    let call = CancelCall(
      keySpace: keys, fence: fence, operation: request.id, fingerprint: request.fingerprint,
      subject: request.subject, items: request.items, recordClass: isMoney ? .money : .volume,
      limits: storeLimits)
    send(call, request, catalogVersion: global.catalogVersion)
  }

  private func send(_ call: CancelCall, _ request: Request, catalogVersion: Int64) {
    let bucket = request.bucket
    guard let connection = link?.connection,
      case .allowed(let ticket) = breaker.admit(now: monotonicNow())
    else { return storeIsAway(request) }
    let sentAt = NIODeadline.now()
    let wasInDoubt = request.inDoubt
    request.inDoubt = true
    begun(bucket)
    connection.send(
      { call.write(into: &$0) },
      completion: { [self] result in
        let now = NIODeadline.now()
        landed(1, bucket)
        switch result {
        case .success(let reply):
          metrics.redisLatency.record(nanoseconds: (now - sentAt).nanoseconds)
          noteBreaker(
            breaker.answered(
              ticket, latency: redisTime(since: sentAt, to: now), now: monotonic(now)))
          switch call.decode(reply) {
          case .bodiesWanted(let counted) where call.bodies.isEmpty:
            var second = call
            second.counted = counted
            second.bodies = counted.map { item in
              (
                item.item,
                encoder.reversal(of: request, item, catalogVersion: catalogVersion)
              )
            }
            guard buckets[bucket].phase == .open, buckets[bucket].epoch == call.fence.epoch else {
              return attempt(request)
            }
            send(second, request, catalogVersion: catalogVersion)
          case .bodiesWanted: attempt(request)
          case .answered(let answer):
            handle(
              answer, of: request, wasInDoubt: wasInDoubt, epoch: call.fence.epoch, at: now
            ) { call.entries($0) }
          }
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

  /// A call of one operation leaves.
  func begun(_ bucket: Int) {
    buckets[bucket].inFlight += 1
    planned += 1
    metrics.redisCommands.add()
    metrics.redisOperations.add()
  }

  func landed(_ count: Int, _ bucket: Int) {
    buckets[bucket].inFlight -= count
    planned -= count
    if intakeCount > 0, hasRoom { onRoom?() }
    if buckets[bucket].inFlight == 0, let done = quiescing.removeValue(forKey: bucket) {
      for callback in done { callback() }
    }
  }

  private func received(
    _ result: Result<[DecideReply], RedisFailure>, of batch: [Pending], bucket: Int,
    epoch: Int64, sentAt: NIODeadline, isAlone: Bool, ticket: BreakerMachine.Ticket
  ) {
    let now = NIODeadline.now()
    sent -= batch.count
    landed(batch.count, bucket)
    switch result {
    case .success(let replies):
      answeredAt = now
      callTime.note(
        (now - sentAt).nanoseconds, at: monotonic(now).nanoseconds, isAlone: isAlone)
      leases?.called((now - sentAt).nanoseconds)
      worked(batch.count, at: now)
      metrics.redisLatency.record(nanoseconds: (now - sentAt).nanoseconds)
      noteBreaker(
        breaker.answered(
          ticket, latency: redisTime(since: sentAt, to: now), now: monotonic(now)))
      for (reply, pending) in zip(replies, batch) {
        if pending.request.isAnswered { metrics.lateReplies.add() }
        handle(
          reply, of: pending.request, wasInDoubt: pending.wasInDoubt, epoch: epoch, at: now
        ) { pending.operation.entries($0) }
      }
    case .failure(.notSent):
      noteBreaker(breaker.failed(ticket, now: monotonic(now)))
      for pending in batch {
        pending.request.inDoubt = pending.wasInDoubt
        storeIsAway(pending.request)
      }
    case .failure(.outcomeUnknown):
      noteBreaker(breaker.failed(ticket, now: monotonic(now)))
      for pending in batch where !pending.request.isAnswered {
        waiting[.link, default: []].append(pending.request)
      }
    }
  }
}
