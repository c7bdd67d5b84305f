// What the records of one frame share on their way to the enforcer and back: each becomes a request
// of its own, and their answers leave as one frame, when the last of them is decided.

import NIOCore
import TollgateCore
import TollgateWire

/// What the records of one frame have in common on their way.
struct FrameWork {
  let shared: SessionContext
  let mode: RequestMode
  let source: Source
  let arrived: NIODeadline
  let deadline: NIODeadline
  let reply: FrameAnswer

  func begin(_ index: Int, _ result: Result<AskedRecord, WireError>) {
    switch result {
    case .success(let record):
      let reply = reply
      shared.enforcer.submit(
        Request(
          mode: mode, id: record.id, subject: record.subject, items: record.items,
          attributes: record.attributes, traceParent: record.traceParent, terms: record.terms,
          source: source, bucket: shared.buckets.bucket(ofAccount: record.subject.account.path),
          arrived: arrived, deadline: deadline
        ) { outcome in reply.answered(index, outcome) })
    case .failure(let error):
      shared.enforcer.metrics.failed(error.code)
      reply.answered(index, .error(error.code, error.text))
    }
  }

  /// It was not begun.
  func refuse(_ index: Int) {
    shared.enforcer.metrics.overloaded.add()
    shared.enforcer.metrics.failed(.overloaded)
    reply.answered(index, .error(.overloaded, "too much in flight; retry later or elsewhere"))
  }
}

/// Collects the answers of one frame's records, in their order.
final class FrameAnswer {
  private let conversation: Conversation
  private let correlation: UInt64
  private var records: [DecisionRecord]
  private var missing: Int
  /// What the peer knows of the protocol's options.
  private let features: ProtocolFeatures

  init(
    conversation: Conversation, correlation: UInt64, count: Int, features: ProtocolFeatures
  ) {
    self.conversation = conversation
    self.correlation = correlation
    self.features = features
    missing = count
    records = Array(repeating: .error(.internalError, message: ""), count: count)
  }

  func answered(_ index: Int, _ outcome: Outcome) {
    switch outcome {
    case .decision(var decision):
      if !features.contains(.reservations) {
        decision.reason = decision.reason.knownWithoutReservations
      }
      records[index] = .decision(decision)
    case .error(let code, let message): records[index] = .error(code, message: message)
    }
    missing -= 1
    if missing == 0 { conversation.answered(correlation, records) }
  }
}

extension Reason {
  /// PROTOCOL 7.2: what a peer is told that does not know the reasons of reservations.
  var knownWithoutReservations: Reason {
    switch self {
    case .concurrencyExceeded, .creditExhausted, .spendCapReached, .holdsExceeded: .quotaExceeded
    case .priceUnknown: .featureNotInPlan
    case .pastDue: .accountFrozen
    case .allowed, .allowedShadow, .allowedSoft, .allowedFailOpen, .allowedPosted, .settled,
      .settledClamped, .settledLate, .released, .extended, .refunded, .accountFrozen,
      .unknownAccount, .unknownFeature, .featureNotInPlan, .gateClosed, .costAboveBurst,
      .quotaExceeded, .rateLimited, .outboxFull, .dedupeFull, .storeUnavailable,
      .fallbackExhausted, .cancelled:
      self
    }
  }
}
