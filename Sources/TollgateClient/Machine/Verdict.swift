// What an error of a sidecar means for the one who asked: PROTOCOL 7.4 as a total function, so
// that a new code cannot be forgotten.

internal import TollgateWire

enum Verdict: Hashable, Sendable {
  /// Not applied, and asking again will not help.
  case final
  /// Not applied; the same id may be sent again after a pause.
  case retry
  /// May have been applied; only the same id may be sent again.
  case unknown

  init(_ code: ErrorCode) {
    switch code {
    case .overloaded, .unavailable, .draining, .notReady: self = .retry
    case .outcomeUnknown, .internalError: self = .unknown
    // DEADLINE_EXCEEDED comes when our own deadline is about to pass: another attempt would only
    // be refused later. ID_TOO_OLD cannot change either.
    case .badFrame, .unsupportedVersion, .frameTooLarge, .unknownOpcode, .badRequest,
      .unknownCriticalField, .helloRequired, .unauthenticated, .forbidden, .deadlineExceeded,
      .idempotencyMismatch, .idTooOld, .idFromFuture, .invalidName, .amountOutOfRange,
      .tooManyItems, .duplicateItem, .notFound, .conflict, .invalidDocument, .idleTimeout,
      .deploymentMismatch, .reservationUnknown, .reservationEnded, .overrunRejected,
      .nothingToRefund:
      self = .final
    }
  }
}

extension Verdict {
  /// The settle finds no hold to draw from, and what was used is to be told without it: the hold or
  /// its record was lost with Redis, or the time for it has passed, or it ended before a settle
  /// came that was not to end it. A final settle that comes second is another word for the same
  /// use, and is not told again.
  static func isWithoutHold(_ code: ErrorCode, _ settle: SettleRecord) -> Bool {
    switch code {
    case .reservationUnknown, .idTooOld: true
    case .reservationEnded: !settle.isFinal
    default: false
    }
  }

  /// The answer speaks of the id itself: no earlier attempt was applied. The store looks for the
  /// record of the id before it says any of these.
  static func excludesEffect(_ code: ErrorCode) -> Bool {
    switch code {
    case .idempotencyMismatch, .reservationUnknown, .reservationEnded, .overrunRejected,
      .nothingToRefund:
      true
    default: false
    }
  }
}

/// What an answer to POST, CANCEL or SETTLE means for the record that waits for it.
enum Acknowledgement: Hashable, Sendable {
  case done
  case later
  case refused(String)

  init(post record: DecisionRecord) {
    switch record {
    case .decision(let decision):
      switch decision.reason {
      case .allowed, .allowedShadow, .allowedSoft, .allowedFailOpen, .allowedPosted, .settled,
        .settledClamped, .settledLate, .released, .extended, .refunded:
        self = .done
      // These are not recorded under the id; asked again, they are decided anew. A freeze, an
      // unknown account or a missing price is undone by an operator; the units were used all the
      // same.
      case .outboxFull, .dedupeFull, .storeUnavailable, .fallbackExhausted, .accountFrozen,
        .unknownAccount, .priceUnknown, .pastDue:
        self = .later
      case .unknownFeature, .featureNotInPlan, .gateClosed, .costAboveBurst, .quotaExceeded,
        .rateLimited, .cancelled, .concurrencyExceeded, .creditExhausted, .spendCapReached,
        .holdsExceeded:
        self = .refused("answered \(decision.reason.name)")
      }
    case .error(let code, let message): self.init(code, message)
    }
  }

  init(cancel record: DecisionRecord) {
    switch record {
    case .decision(let decision):
      switch decision.reason {
      case .storeUnavailable, .outboxFull, .dedupeFull: self = .later
      case .allowed, .allowedShadow, .allowedSoft, .allowedFailOpen, .allowedPosted, .settled,
        .settledClamped, .settledLate, .released, .extended, .refunded, .accountFrozen,
        .unknownAccount, .unknownFeature, .featureNotInPlan, .gateClosed, .costAboveBurst,
        .quotaExceeded, .rateLimited, .fallbackExhausted, .cancelled, .concurrencyExceeded,
        .creditExhausted, .spendCapReached, .priceUnknown, .holdsExceeded, .pastDue:
        self = .done
      }
    case .error(let code, let message): self.init(code, message)
    }
  }

  /// What a settle tells was used, as what a post tells was; without what `Verdict.isWithoutHold`
  /// finds, which makes it a post.
  init(settle record: DecisionRecord) { self.init(post: record) }

  private init(_ code: ErrorCode, _ message: String) {
    switch code {
    case .badRequest, .unknownCriticalField, .idempotencyMismatch, .idTooOld, .invalidName,
      .amountOutOfRange, .tooManyItems, .duplicateItem, .frameTooLarge, .conflict, .notFound,
      .invalidDocument, .reservationUnknown, .reservationEnded, .overrunRejected, .nothingToRefund:
      self = .refused("\(code.name): \(message)")
    // What an operator or time can mend is tried again: nothing is given up for it.
    case .badFrame, .unsupportedVersion, .unknownOpcode, .helloRequired, .unauthenticated,
      .forbidden, .overloaded, .deadlineExceeded, .outcomeUnknown, .unavailable, .draining,
      .idFromFuture, .idleTimeout, .internalError, .deploymentMismatch, .notReady:
      self = .later
    }
  }
}
