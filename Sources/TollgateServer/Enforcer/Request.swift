// One operation on its way through a sidecar, and the answer it gets. A `Request` lives on one
// event loop from arrival to answer; it is answered exactly once, whoever comes first: Redis, the
// deadline, or the failure policy.

import NIOCore
import TollgateCore
import TollgateRedis

enum RequestMode: Sendable, Hashable {
  /// Asks, changes nothing.
  case check
  case consume
  /// Records what was already let through elsewhere; never denied by a limit.
  case post
  /// Takes back an operation whose outcome its caller does not know and will not ask again.
  case cancel
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

  init(
    mode: RequestMode, id: OperationID, subject: Subject, items: [Item],
    attributes: [String: String] = [:], traceParent: String = "", source: Source = .redis,
    bucket: Int, arrived: NIODeadline, deadline: NIODeadline,
    answer: @escaping (Outcome) -> Void
  ) {
    self.mode = mode
    self.id = id
    self.subject = subject
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
    self.source = source
    self.bucket = bucket
    self.account = subject.depth == 1 ? subject.path : subject.account.path
    self.arrived = arrived
    self.deadline = deadline
    self.answer = answer
    fingerprint = OperationFingerprint(subject: subject, items: items, attributes: attributes)
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
