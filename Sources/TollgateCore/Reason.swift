// The numbered registries: reasons of a decision, its source, and errors. Numbers are on the wire
// and in stored operation records, so a number is never reused and never changes its meaning.
// proto/PROTOCOL.md lists the same rows; a test holds the two together.

/// Why a decision came out as it did. Below 16 the operation was allowed; from 16 it was denied.
/// Among several denying limits the *smallest number* is reported: that is the precedence.
public enum Reason: UInt16, Sendable, Hashable, CaseIterable {
  case allowed = 0
  case allowedShadow = 1
  case allowedSoft = 2
  case allowedFailOpen = 3
  case allowedPosted = 4
  /// A reservation ended with what was used.
  case settled = 5
  /// More was used than there was; the rest is absorbed.
  case settledClamped = 6
  /// The reservation had expired: charged without a hold.
  case settledLate = 7
  case released = 8
  case extended = 9
  case refunded = 10

  case accountFrozen = 16
  case unknownAccount = 17
  case unknownFeature = 18
  case featureNotInPlan = 19
  case gateClosed = 20
  case costAboveBurst = 21
  case quotaExceeded = 22
  case rateLimited = 23
  case outboxFull = 24
  case dedupeFull = 25
  case storeUnavailable = 26
  case fallbackExhausted = 27
  case cancelled = 28
  case concurrencyExceeded = 29
  case creditExhausted = 30
  case spendCapReached = 31
  case priceUnknown = 32
  case holdsExceeded = 33
  case pastDue = 34

  public var isAllowed: Bool { rawValue < 16 }

  /// The answer says per item what was used and what of it is billed.
  package var isSettlement: Bool {
    switch self {
    case .settled, .settledClamped, .settledLate, .refunded: true
    default: false
    }
  }

  /// The name used in documents, metrics, JSON and on the command line.
  public var name: String {
    switch self {
    case .allowed: "ALLOWED"
    case .allowedShadow: "ALLOWED_SHADOW"
    case .allowedSoft: "ALLOWED_SOFT"
    case .allowedFailOpen: "ALLOWED_FAIL_OPEN"
    case .allowedPosted: "ALLOWED_POSTED"
    case .settled: "SETTLED"
    case .settledClamped: "SETTLED_CLAMPED"
    case .settledLate: "SETTLED_LATE"
    case .released: "RELEASED"
    case .extended: "EXTENDED"
    case .refunded: "REFUNDED"
    case .accountFrozen: "ACCOUNT_FROZEN"
    case .unknownAccount: "UNKNOWN_ACCOUNT"
    case .unknownFeature: "UNKNOWN_FEATURE"
    case .featureNotInPlan: "FEATURE_NOT_IN_PLAN"
    case .gateClosed: "GATE_CLOSED"
    case .costAboveBurst: "COST_ABOVE_BURST"
    case .quotaExceeded: "QUOTA_EXCEEDED"
    case .rateLimited: "RATE_LIMITED"
    case .outboxFull: "OUTBOX_FULL"
    case .dedupeFull: "DEDUPE_FULL"
    case .storeUnavailable: "STORE_UNAVAILABLE"
    case .fallbackExhausted: "FALLBACK_EXHAUSTED"
    case .cancelled: "CANCELLED"
    case .concurrencyExceeded: "CONCURRENCY_EXCEEDED"
    case .creditExhausted: "CREDIT_EXHAUSTED"
    case .spendCapReached: "SPEND_CAP_REACHED"
    case .priceUnknown: "PRICE_UNKNOWN"
    case .holdsExceeded: "HOLDS_EXCEEDED"
    case .pastDue: "PAST_DUE"
    }
  }
}

/// Where a decision was made.
public enum Source: UInt8, Sendable, Hashable, CaseIterable {
  /// One atomic script call in Redis.
  case redis = 0
  /// A lease in the sidecar's memory.
  case lease = 1
  /// The failure policy of the limits, in the sidecar, because Redis did not answer.
  case policy = 2
  /// The failure policy, in the client, because the sidecar did not answer.
  case clientFallback = 3

  public var name: String {
    switch self {
    case .redis: "redis"
    case .lease: "lease"
    case .policy: "policy"
    case .clientFallback: "client_fallback"
    }
  }
}

/// Why a request got no decision. Retry safety: see the table in PROTOCOL.md.
public enum ErrorCode: UInt16, Sendable, Hashable, CaseIterable {
  case badFrame = 1
  case unsupportedVersion = 2
  case frameTooLarge = 3
  case unknownOpcode = 4
  case badRequest = 5
  case unknownCriticalField = 6
  case helloRequired = 7
  case unauthenticated = 8
  case forbidden = 9
  case overloaded = 10
  case deadlineExceeded = 11
  case outcomeUnknown = 12
  case unavailable = 13
  case draining = 14
  case idempotencyMismatch = 15
  case idTooOld = 16
  case idFromFuture = 17
  case invalidName = 18
  case amountOutOfRange = 19
  case tooManyItems = 20
  case duplicateItem = 21
  case notFound = 22
  case conflict = 23
  case invalidDocument = 24
  case idleTimeout = 25
  case internalError = 26
  case deploymentMismatch = 27
  case notReady = 28
  case reservationUnknown = 29
  case reservationEnded = 30
  case overrunRejected = 31
  case nothingToRefund = 32

  /// The name used in documents, metrics, JSON and on the command line.
  public var name: String {
    switch self {
    case .badFrame: "BAD_FRAME"
    case .unsupportedVersion: "UNSUPPORTED_VERSION"
    case .frameTooLarge: "FRAME_TOO_LARGE"
    case .unknownOpcode: "UNKNOWN_OPCODE"
    case .badRequest: "BAD_REQUEST"
    case .unknownCriticalField: "UNKNOWN_CRITICAL_FIELD"
    case .helloRequired: "HELLO_REQUIRED"
    case .unauthenticated: "UNAUTHENTICATED"
    case .forbidden: "FORBIDDEN"
    case .overloaded: "OVERLOADED"
    case .deadlineExceeded: "DEADLINE_EXCEEDED"
    case .outcomeUnknown: "OUTCOME_UNKNOWN"
    case .unavailable: "UNAVAILABLE"
    case .draining: "DRAINING"
    case .idempotencyMismatch: "IDEMPOTENCY_MISMATCH"
    case .idTooOld: "ID_TOO_OLD"
    case .idFromFuture: "ID_FROM_FUTURE"
    case .invalidName: "INVALID_NAME"
    case .amountOutOfRange: "AMOUNT_OUT_OF_RANGE"
    case .tooManyItems: "TOO_MANY_ITEMS"
    case .duplicateItem: "DUPLICATE_ITEM"
    case .notFound: "NOT_FOUND"
    case .conflict: "CONFLICT"
    case .invalidDocument: "INVALID_DOCUMENT"
    case .idleTimeout: "IDLE_TIMEOUT"
    case .internalError: "INTERNAL_ERROR"
    case .deploymentMismatch: "DEPLOYMENT_MISMATCH"
    case .notReady: "NOT_READY"
    case .reservationUnknown: "RESERVATION_UNKNOWN"
    case .reservationEnded: "RESERVATION_ENDED"
    case .overrunRejected: "OVERRUN_REJECTED"
    case .nothingToRefund: "NOTHING_TO_REFUND"
    }
  }
}
