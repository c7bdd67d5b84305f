// Why a command failed, and the exit code that says so. The codes are part of the interface
// (README, "Exit codes"): scripts branch on them.

import TollgateCore
import TollgateServer

enum ExitStatus: Int32, CaseIterable {
  /// Done; allowed; no difference.
  case ok = 0
  /// Denied; a difference or a problem was found.
  case denied = 1
  /// The command line or an input file is wrong.
  case usage = 2
  /// Nobody answered in time; nothing is known to have happened, trying again is safe.
  case unavailable = 3
  /// The sidecar understood and refused: conflict, not found, invalid document.
  case refused = 4
  /// The credential is missing, wrong or not sufficient.
  case notPermitted = 5
  /// It may or may not have happened; run it again with the same --id.
  case outcomeUnknown = 6
  /// A defect.
  case internalError = 7

  init(_ code: ErrorCode) {
    switch code {
    case .unavailable, .overloaded, .deadlineExceeded, .draining, .notReady, .idleTimeout:
      self = .unavailable
    case .unauthenticated, .forbidden, .helloRequired: self = .notPermitted
    case .outcomeUnknown: self = .outcomeUnknown
    case .badRequest, .invalidName, .amountOutOfRange, .tooManyItems, .duplicateItem: self = .usage
    case .internalError, .badFrame, .unknownOpcode, .unknownCriticalField, .frameTooLarge:
      self = .internalError
    default: self = .refused
    }
  }
}

struct CommandFailure: Error {
  var status: ExitStatus
  var failure: AdminFailure
  /// Lines of a file, where a problem's path is one in it.
  var file: String?

  init(_ failure: AdminFailure, file: String? = nil) {
    status = ExitStatus(failure.code)
    self.failure = failure
    self.file = file
  }

  init(_ status: ExitStatus, _ message: String, fix: String = "") {
    self.status = status
    let code: ErrorCode =
      switch status {
      case .ok, .internalError: .internalError
      case .denied, .refused: .conflict
      case .usage: .badRequest
      case .unavailable: .unavailable
      case .notPermitted: .unauthenticated
      case .outcomeUnknown: .outcomeUnknown
      }
    failure = AdminFailure(code, message, fix: fix)
  }

  static func usage(_ message: String, fix: String = "") -> Self { Self(.usage, message, fix: fix) }

  /// For people: what, where, what to do.
  var text: String {
    var lines = ["Error: \(failure.message)"]
    for problem in failure.problems {
      let place = problem.line.map { "\(file ?? "line"):\($0): " } ?? ""
      let path = problem.path.isEmpty ? "" : "\(problem.path): "
      let value = problem.value.map { $0.isEmpty ? "" : "\($0): " } ?? ""
      lines.append("  \(place)\(path)\(value)\(problem.reason)")
    }
    if !failure.fix.isEmpty { lines.append("  → \(failure.fix)") }
    return lines.joined(separator: "\n")
  }
}
