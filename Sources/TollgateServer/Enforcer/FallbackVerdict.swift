// What the answer to a post or a cancel of the fallback queue means for the entry that waits for
// it: total functions, so that a new code cannot be forgotten. They say what the client library's
// `Acknowledgement` says of its own posts, with three differences: an answer that never came from
// the store keeps the outage going (`again`); CANCELLED is done with, because here it is the caller
// who took the operation back; and an id beyond the dedupe window is a case of its own.

import TollgateCore

enum FallbackVerdict: Sendable, Hashable {
  /// On record, or never to be.
  case done
  /// The store could not be asked, or its answer was lost: the outage goes on.
  case again
  /// The store answered, and what it needs may come: the entry waits, and nobody waits for it.
  case later(String)
  /// It can never be recorded as it is.
  case refused(String)
  /// The id is older than the dedupe window: nothing in Redis can tell whether it was posted.
  case expired

  init(post outcome: Outcome) {
    switch outcome {
    case .decision(let decision):
      switch decision.reason {
      case .allowed, .allowedShadow, .allowedSoft, .allowedFailOpen, .allowedPosted, .settled,
        .settledClamped, .settledLate, .released, .extended, .refunded, .cancelled:
        self = .done
      case .outboxFull, .dedupeFull, .accountFrozen, .unknownAccount, .priceUnknown, .pastDue:
        // An operator or time mends these; the units were used all the same.
        self = .later("answered \(decision.reason.name)")
      case .storeUnavailable, .fallbackExhausted: self = .again
      case .unknownFeature, .featureNotInPlan, .gateClosed, .costAboveBurst, .quotaExceeded,
        .rateLimited, .concurrencyExceeded, .creditExhausted, .spendCapReached, .holdsExceeded:
        self = .refused("answered \(decision.reason.name)")
      }
    case .error(.idTooOld, _): self = .expired
    case .error(let code, let message): self.init(code, message)
    }
  }

  init(cancel outcome: Outcome) {
    switch outcome {
    case .decision(let decision):
      switch decision.reason {
      case .outboxFull, .dedupeFull: self = .later("answered \(decision.reason.name)")
      case .storeUnavailable, .fallbackExhausted: self = .again
      case .allowed, .allowedShadow, .allowedSoft, .allowedFailOpen, .allowedPosted, .settled,
        .settledClamped, .settledLate, .released, .extended, .refunded, .accountFrozen,
        .unknownAccount, .unknownFeature, .featureNotInPlan, .gateClosed, .costAboveBurst,
        .quotaExceeded, .rateLimited, .cancelled, .concurrencyExceeded, .creditExhausted,
        .spendCapReached, .priceUnknown, .holdsExceeded, .pastDue:
        self = .done
      }
    // What is on record is another body: nothing of this one was counted.
    case .error(.idempotencyMismatch, _): self = .done
    case .error(.idTooOld, _):
      // It was answered CANCELLED; whether it counts nobody can tell any more.
      self = .refused("the cancel: \(ErrorCode.idTooOld.name)")
    case .error(let code, let message): self.init(code, message)
    }
  }

  private init(_ code: ErrorCode, _ message: String) {
    switch code {
    case .overloaded, .deadlineExceeded, .outcomeUnknown, .unavailable, .draining, .notReady:
      self = .again
    case .badFrame, .unsupportedVersion, .unknownOpcode, .helloRequired, .unauthenticated,
      .forbidden, .idFromFuture, .idleTimeout, .internalError, .deploymentMismatch:
      self = .later("\(code.name): \(message)")
    case .badRequest, .unknownCriticalField, .idempotencyMismatch, .idTooOld, .invalidName,
      .amountOutOfRange, .tooManyItems, .duplicateItem, .frameTooLarge, .conflict, .notFound,
      .invalidDocument, .reservationUnknown, .reservationEnded, .overrunRejected, .nothingToRefund:
      self = .refused("\(code.name): \(message)")
    }
  }
}
