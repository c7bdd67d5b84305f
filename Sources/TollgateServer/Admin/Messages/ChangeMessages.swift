// The part that every change has in common, in requests and in replies. The JSON is described in
// proto/ADMIN.md; both the sidecar and the command line use these types, so they cannot disagree.

package import TollgateCore

/// How far a change must have got before it is answered.
package enum Durability: String, Hashable, Sendable, Codable, CaseIterable {
  case redis, ledger
}

package struct ChangeOptions: Hashable, Sendable, Codable {
  /// Both are kept in overrides and bypasses, so they fit there, proof of identity included.
  package static let reasonBytesMax = Override.textBytesMax
  package static let actorBytesMax = 128
  package static let waitMillisecondsMax: Int64 = 60_000

  /// 32 hex digits; the same id applies a change once. nil: the sidecar mints one.
  package var operation: OperationID?
  /// Who asks; recorded beside what the connection proved.
  package var actor: String
  package var reason: String
  /// Answer what would happen and change nothing.
  package var dryRun: Bool
  package var wait: Durability
  package var waitMilliseconds: Int64

  package init(
    operation: OperationID? = nil, actor: String, reason: String = "", dryRun: Bool = false,
    wait: Durability = .redis, waitMilliseconds: Int64 = 10_000
  ) {
    self.operation = operation
    self.actor = actor
    self.reason = reason
    self.dryRun = dryRun
    self.wait = wait
    self.waitMilliseconds = waitMilliseconds
  }

  package init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    operation = try container.decodeIfPresent(OperationID.self, forKey: .operation)
    actor = try container.decode(String.self, forKey: .actor)
    reason = try container.decodeIfPresent(String.self, forKey: .reason) ?? ""
    dryRun = try container.decodeIfPresent(Bool.self, forKey: .dryRun) ?? false
    wait = try container.decodeIfPresent(Durability.self, forKey: .wait) ?? .redis
    waitMilliseconds =
      try container.decodeIfPresent(Int64.self, forKey: .waitMilliseconds) ?? 10_000
  }
}

/// What a change would do, or did, to those it touches.
package struct Impact: Hashable, Sendable, Codable {
  /// Accounts whose limits change.
  package var accountsAffected: Int
  /// Of these, how many a request for one unit of some feature is denied after the change that
  /// was allowed before it.
  package var deniedAtOnce: Int
  /// How many accounts were looked at.
  package var accountsExamined: Int
  /// False where there were more accounts than a dry run looks at: the numbers are lower bounds.
  package var complete: Bool
  /// Up to 20 of those denied at once.
  package var deniedExamples: [String]

  package static let examplesMax = 20

  package init(
    accountsAffected: Int = 0, deniedAtOnce: Int = 0, accountsExamined: Int = 0,
    complete: Bool = true, deniedExamples: [String] = []
  ) {
    self.accountsAffected = accountsAffected
    self.deniedAtOnce = deniedAtOnce
    self.accountsExamined = accountsExamined
    self.complete = complete
    self.deniedExamples = deniedExamples
  }
}

package struct ChangeReply: Hashable, Sendable, Codable {
  package enum Result: String, Hashable, Sendable, Codable, CaseIterable {
    case applied
    /// The state was already as asked; nothing was written.
    case unchanged
    /// An older event of an outside system; nothing was written.
    case ignored
    /// This operation id was applied before; nothing was written now.
    case replayed
    case dryRun = "dry-run"
  }

  package var result: Result
  /// A sentence where `result` needs one; else empty.
  package var detail: String
  package var operation: OperationID
  /// The configuration version that holds after the change.
  package var version: Int64
  package var durable: Durability
  package var impact: Impact?
  /// What changed, one line each.
  package var changes: [String]

  package init(
    result: Result, detail: String = "", operation: OperationID, version: Int64,
    durable: Durability = .redis, impact: Impact? = nil, changes: [String] = []
  ) {
    self.result = result
    self.detail = detail
    self.operation = operation
    self.version = version
    self.durable = durable
    self.impact = impact
    self.changes = changes
  }
}

/// The body of every reply that is an error.
package struct AdminErrorReply: Hashable, Sendable, Codable {
  package var code: Int
  package var name: String
  package var message: String
  package var fix: String
  package var problems: [AdminFailure.Problem]

  package init(_ failure: AdminFailure) {
    code = Int(failure.code.rawValue)
    name = failure.code.name
    message = failure.message
    fix = failure.fix
    problems = failure.problems
  }

  package var failure: AdminFailure {
    let known = UInt16(exactly: code).flatMap { ErrorCode(rawValue: $0) } ?? .internalError
    return AdminFailure(known, message, fix: fix, problems: problems)
  }
}
