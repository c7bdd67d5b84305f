// Where the request path meets the fallback queue. An id that was answered ALLOWED_FAIL_OPEN is
// answered the same for as long as the sidecar has to post it, whatever Redis would say now: the
// caller has acted on that answer, and the post counts the units without asking any limit.

import NIOCore
import TollgateCore

extension Enforcer {
  /// Answers from the queue what it remembers. A CANCEL is noted there first, so that the post does
  /// not come after it, and then goes on to Redis, whose record all sidecars see.
  func answeredFromQueue(_ request: Request) -> Bool {
    guard fallback.remembersAny, !request.isPosting else { return false }
    switch request.mode {
    case .check, .post, .reserve, .settle, .release, .extend, .refund: return false
    case .consume:
      guard let answer = fallback.answer(to: FallbackOperation(request)) else { return false }
      finish(request, outcome(of: answer))
      return true
    case .cancel:
      guard case .mismatch(let field) = fallback.cancel(FallbackOperation(request)) else {
        return false
      }
      finish(request, outcome(of: .mismatch(field)))
      return true
    }
  }

  /// Redis cannot be asked, and need not be for the answer to a CANCEL that the queue has noted: it
  /// will be told as soon as it can.
  func cancelledInQueue(_ request: Request) -> Bool {
    guard request.mode == .cancel, !request.isPosting, fallback.remembersAny,
      fallback.isAnnulled(FallbackOperation(request))
    else { return false }
    finish(request, outcome(of: .cancelled))
    return true
  }

  func outcome(of answer: FallbackQueue.Answer) -> Outcome {
    switch answer {
    case .allowed: .decision(byPolicy(.allowedFailOpen, replayed: true))
    case .cancelled: .decision(byPolicy(.cancelled, replayed: true))
    case .mismatch(let field):
      .error(.idempotencyMismatch, "\(field) differ from the first request of this id")
    }
  }

  private func byPolicy(_ reason: Reason, replayed: Bool) -> Decision {
    Decision(
      reason: reason, source: .policy, time: redisNow, globalVersion: global?.version ?? 0,
      replayed: replayed)
  }
}
