// What the fallback queue keeps of an operation, and what became of one that cannot be posted.

import TollgateCore

struct FallbackOperation: Sendable, Hashable {
  var id: OperationID
  var subject: Subject
  var items: [Item]
  var attributes: [String: String]
  var traceParent: String

  init(
    id: OperationID, subject: Subject, items: [Item], attributes: [String: String] = [:],
    traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
  }

  init(_ request: Request) {
    self.init(
      id: request.id, subject: request.subject, items: request.items,
      attributes: request.attributes, traceParent: request.traceParent)
  }

  /// What of the body differs (PROTOCOL 6), as the script would name it; nil: the same operation.
  func difference(from other: FallbackOperation) -> String? {
    if subject != other.subject { return "subject" }
    if items.map(\.feature) != other.items.map(\.feature) { return "features" }
    if items.map(\.amount) != other.items.map(\.amount) { return "amounts" }
    if attributes != other.attributes { return "attributes" }
    return nil
  }

  /// For a log line: enough to bill it by hand.
  var text: String {
    "\(id.hex) \(subject.path) " + items.map { "\($0.feature)=\($0.amount)" }.joined(separator: " ")
  }
}

/// An operation that was let through and whose post is refused for good.
struct FallbackRefusal: Sendable, Hashable {
  var operation: FallbackOperation
  var reason: String
  var time: WallTime
}
