// Why an admin request was not carried out. One shape for every handler, so that a person at the
// command line always reads three things: which code, what happened, and what to do about it.

package import TollgateCore

package struct AdminFailure: Error, Hashable, Sendable, CustomStringConvertible {
  /// One problem of a document or a request, at the place where it was found.
  package struct Problem: Hashable, Sendable, Codable, CustomStringConvertible {
    /// Where: `plans.pro.tokens[0].amount`; empty for the whole.
    package var path: String
    /// The line of the file, where the sender knows it.
    package var line: Int?
    /// The offending value as text.
    package var value: String?
    package var reason: String

    package init(path: String, line: Int? = nil, value: String? = nil, reason: String) {
      self.path = path
      self.line = line
      self.value = value
      self.reason = reason
    }

    package var description: String {
      let place = [line.map { "line \($0)" }, path.isEmpty ? nil : path].compactMap { $0 }
      let head = place.isEmpty ? "" : place.joined(separator: ": ") + ": "
      return head + (value.map { "\"\($0)\" " } ?? "") + reason
    }
  }

  package var code: ErrorCode
  package var message: String
  /// What the caller can do; empty where nothing helps.
  package var fix: String
  package var problems: [Problem]

  package init(_ code: ErrorCode, _ message: String, fix: String = "", problems: [Problem] = []) {
    self.code = code
    self.message = message
    self.fix = fix
    self.problems = problems
  }

  package var description: String { "\(code.name): \(message)" }

  package static func badRequest(_ path: String, _ reason: String, value: String? = nil) -> Self {
    let problem = Problem(path: path, value: value, reason: reason)
    return Self(.badRequest, "the request is not valid", problems: [problem])
  }

  package static func notFound(_ what: String, fix: String = "") -> Self {
    Self(.notFound, what, fix: fix)
  }

  package static func unavailable(_ what: String) -> Self {
    Self(
      .unavailable, what,
      fix: "run `tollgate doctor` for the state of Redis and the ledger, then try again")
  }
}
