// One operation on its way through a sidecar, and the answer it gets. A `Request` lives on one
// event loop from arrival to answer; it is answered exactly once, whoever comes first: Redis, the
// deadline, or the failure policy.

import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

enum RequestMode: Sendable, Hashable {
  /// Asks, changes nothing.
  case check
  case consume
  /// Records what was already let through elsewhere; never denied by a limit.
  case post
  /// Takes back an operation whose outcome its caller does not know and will not ask again.
  case cancel
  /// Holds an estimate; its id is the reservation's.
  case reserve
  /// Says what was used of a hold, and ends it where that was all.
  case settle
  /// Ends a hold of which nothing more was used.
  case release
  /// Prolongs a hold.
  case extend
  /// Gives back what an earlier operation was charged.
  case refund

  /// nil for those that have no terms.
  var holdVerb: HoldVerb? {
    switch self {
    case .check, .consume, .post, .cancel: nil
    case .reserve: .reserve
    case .settle: .settle
    case .release: .release
    case .extend: .extend
    case .refund: .refund
    }
  }

  /// Says what has happened already: no limit is asked and no policy can answer for it, so it waits
  /// for the store and, at its deadline, its outcome is not known.
  var tellsOnly: Bool {
    switch self {
    case .check, .consume, .reserve: false
    case .post, .cancel, .settle, .release, .extend, .refund: true
    }
  }
}

enum Outcome: Sendable {
  case decision(Decision)
  case error(ErrorCode, String)
}

final class Request: Awaited {
  let mode: RequestMode
  let id: OperationID
  let subject: Subject
  let items: [Item]
  let attributes: [String: String]
  let traceParent: String
  /// Of the requests of a reservation's life, and of a refund.
  let terms: HoldTerms?
  /// What let the units through, for `post`.
  let source: Source
  let arrived: NIODeadline
  let deadline: NIODeadline
  let bucket: Int
  let account: String

  let fingerprint: OperationFingerprint
  /// Called once with the answer; nil afterwards.
  private var answer: ((Outcome) -> Void)?
  /// A script call with this id was written and its outcome is not known (yet).
  var inDoubt = false
  var attempts = 0
  /// Waits for the call before it; nothing of this attempt was sent.
  var isQueued = false
  /// Its account was not in Redis when it came: its time went, or goes, into loading it.
  var awaitsAccount = false
  /// An intent to post this operation waits in the fallback queue.
  var isPosting = false
  var leaseStep = LeaseStep.new
  /// Where leases may answer it, or hold what it asks for: what it resolves to.
  var leased: Resolution?
  /// Leases may answer it; else some item of it is never leased.
  var isLeasedWholly = true
  /// Nobody's: it is asked so that leases learn how the like of it is settled.
  var isForShape = false
  /// How often leases were asked to give back for it.
  var recalls = 0
  /// When its call left, boot time.
  var sentAt: Int64 = 0
  /// What leases know it by; nil: none does.
  private(set) lazy var shape: [UInt8]? = TollgateWire.OperationRecord(
    id: id, subject: subject, items: items, attributes: attributes
  ).shape

  init(
    mode: RequestMode, id: OperationID, subject: Subject, items: [Item],
    attributes: [String: String] = [:], traceParent: String = "", terms: HoldTerms? = nil,
    source: Source = .redis, bucket: Int, arrived: NIODeadline, deadline: NIODeadline,
    answer: @escaping (Outcome) -> Void
  ) {
    self.mode = mode
    self.id = id
    self.subject = subject
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
    self.terms = terms
    self.source = source
    self.bucket = bucket
    self.account = subject.depth == 1 ? subject.path : subject.account.path
    self.arrived = arrived
    self.deadline = deadline
    self.answer = answer
    fingerprint = OperationFingerprint(
      subject: subject, items: items, attributes: attributes, verb: mode.holdVerb, terms: terms)
  }

  var isAnswered: Bool { answer == nil }

  /// Answers once; later calls are ignored and say so.
  @discardableResult
  func complete(_ outcome: Outcome) -> Bool {
    guard let answer else { return false }
    self.answer = nil
    answer(outcome)
    return true
  }
}
