// Posts what an open policy let through, once the store answers again: through the enforcer, as
// any operation, under the operation's own id, so that a post whose outcome is lost is simply
// posted again. An entry leaves the queue only when Redis has recorded it, or the ledger has it:
// one older than the dedupe window goes the way of `Reposter`, behind the enforcer. Without a
// ledger nothing is metered, and such an entry is counted and let go: its windows are over.

import NIOCore
import TollgateCore
import TollgateWire

struct FallbackPoster: Sendable {
  let loop: LoopUnit
  let queue: FallbackQueue
  let buckets: BucketMap
  let metrics: Metrics

  static let batchMax = 256
  static let roundMilliseconds: Int64 = 50
  static let deadline = TimeAmount.seconds(5)

  func run() async {
    while !Task.isCancelled {
      if queue.count > 0 { await round() }
      metrics.fallbackPending.set(Int64(queue.count))
      try? await Task.sleep(for: .milliseconds(Self.roundMilliseconds))
    }
  }

  private func round() async {
    guard await loop.value({ $0.canReachStore }) else { return }
    await withTaskGroup(of: Void.self) { group in
      for operation in queue.take(Self.batchMax) {
        group.addTask { await post(operation) }
      }
    }
  }

  private func post(_ operation: FallbackOperation) async {
    let bucket = buckets.bucket(ofAccount: operation.subject.account.path)
    let isDone: Bool = await withCheckedContinuation { continuation in
      loop.onLoop { enforcer in
        let now = NIODeadline.now()
        enforcer.submit(
          Request(
            mode: .post, id: operation.id, subject: operation.subject, items: operation.items,
            attributes: operation.attributes, traceParent: operation.traceParent, source: .policy,
            bucket: bucket, arrived: now, deadline: now + Self.deadline
          ) { outcome in
            switch outcome {
            case .decision(let decision):
              // Annulled under its id: there is nothing left to post.
              continuation.resume(returning: decision.isAllowed || decision.reason == .cancelled)
            case .error(let code, _):
              if code == .idTooOld { enforcer.metrics.fallbackExpired.add() }
              continuation.resume(returning: code == .idTooOld)
            }
          })
      }
    }
    if isDone {
      queue.posted(operation.id)
      metrics.fallbackPosted.add()
    } else {
      queue.failed(operation.id)
    }
  }
}
