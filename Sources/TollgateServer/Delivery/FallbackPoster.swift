// Posts what an open policy let through, once the store answers again, and cancels what its caller
// took back: through the enforcer, as any operation, under the operation's own id, so that a post
// whose outcome is lost is simply posted again. An entry leaves the queue only when Redis has
// recorded it, or has refused it for good: then it is parked, counted and named in the log. One
// older than the dedupe window goes the way of `Reposter`, behind the enforcer.

import Logging
import NIOCore
import TollgateCore
import TollgateWire

struct FallbackPoster: Sendable {
  let loop: LoopUnit
  let queue: FallbackQueue
  let buckets: BucketMap
  let metrics: Metrics
  let logger: Logger

  /// Under way at once. One that hangs keeps its place among them till its deadline, and no other
  /// waits for it.
  static let parallelMax = 256
  static let roundMilliseconds: Int64 = 20
  /// While nothing waits.
  static let idleMilliseconds: Int64 = 1_000
  static let deadline = TimeAmount.seconds(5)

  func run() async {
    await withDiscardingTaskGroup { group in
      while !Task.isCancelled {
        if queue.count > 0, await loop.value({ $0.canReachStore }) {
          for errand in queue.take(Self.parallelMax) { group.addTask { await run(errand) } }
        }
        queue.compactIfLarge()
        metrics.note(queue.status)
        // What waits is owed, not awaited: a round is soon enough.
        if queue.count > 0 {
          try? await Task.sleep(for: .milliseconds(Self.roundMilliseconds))
        } else {
          await queue.nap.rest(until: Nap.end(after: Self.idleMilliseconds)) { queue.count == 0 }
        }
      }
    }
  }

  private func run(_ errand: FallbackQueue.Errand) async {
    let outcome = await send(errand)
    switch errand.intent {
    case .post:
      var verdict = FallbackVerdict(post: outcome)
      if verdict == .expired { verdict = expired(errand.operation) }
      if resolve(errand, verdict) == .settled {
        if case .decision(let decision) = outcome, decision.reason == .cancelled {
          metrics.fallbackCancelled.add()
        } else {
          metrics.fallbackPosted.add()
        }
      }
    case .cancel:
      if resolve(errand, FallbackVerdict(cancel: outcome)) == .settled {
        metrics.fallbackCancelled.add()
      }
    }
  }

  /// Beyond the dedupe window, and there is no ledger to ask: nothing is metered then, and the
  /// windows of the id are over. It is counted and let go.
  private func expired(_ operation: FallbackOperation) -> FallbackVerdict {
    metrics.fallbackExpired.add()
    logger.notice(
      "a post older than the dedupe window is let go", metadata: ["operation": "\(operation.text)"])
    return .done
  }

  private func send(_ errand: FallbackQueue.Errand) async -> Outcome {
    let operation = errand.operation
    let bucket = buckets.bucket(ofAccount: operation.subject.account.path)
    return await withCheckedContinuation { continuation in
      loop.onLoop { enforcer in
        let now = NIODeadline.now()
        let request = Request(
          mode: errand.intent == .post ? .post : .cancel, id: operation.id,
          subject: operation.subject, items: operation.items, attributes: operation.attributes,
          traceParent: operation.traceParent, source: .policy, bucket: bucket, arrived: now,
          deadline: now + Self.deadline
        ) { outcome in continuation.resume(returning: outcome) }
        request.isPosting = true
        enforcer.submit(request)
      }
    }
  }

  private func resolve(
    _ errand: FallbackQueue.Errand, _ verdict: FallbackVerdict
  ) -> FallbackQueue.Resolution {
    let resolution = queue.resolve(errand, verdict, at: SystemClock.wallTime())
    guard case .parked(let refusal, let dropped) = resolution else { return resolution }
    metrics.fallbackRefusals.add()
    logger.error(
      "what an open policy let through is refused, and parked",
      metadata: ["operation": "\(refusal.operation.text)", "reason": "\(refusal.reason)"])
    if let dropped {
      metrics.fallbackRefusalsDropped.add()
      logger.critical(
        "a parked operation makes room and is remembered here only",
        metadata: ["operation": "\(dropped.operation.text)", "reason": "\(dropped.reason)"])
    }
    return resolution
  }
}
