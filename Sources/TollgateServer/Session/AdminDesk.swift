// Where ADMIN requests are taken in. A handler may wait for Redis, for the ledger and for other
// changes, one after another, and is not bounded by itself; the desk is what bounds it (promise 8):
// so many at once in a sidecar, and each answered by its deadline. A handler that is late is
// cancelled, which makes its loops end, and its place is free again when it has returned.
//
// What the late answer says is what can be known: a read, or a dry run, changed nothing
// (DEADLINE_EXCEEDED); a change may have been made (OUTCOME_UNKNOWN), and the same operation id
// tells, because a change is recorded under it in the same script that makes it.

import NIOConcurrencyHelpers
import NIOCore
import TollgateCore
import TollgateWire

/// When the admin request that this task works for must be answered; nil outside of one.
enum AdminDeadline {
  @TaskLocal static var current: NIODeadline?

  /// A wait of that many milliseconds, or as much of it as leaves time to answer.
  static func end(ofWait milliseconds: Int64, from now: NIODeadline) -> NIODeadline {
    let end = now + .milliseconds(milliseconds)
    return current.map { min(end, $0 - .milliseconds(answerMilliseconds)) } ?? end
  }

  /// Kept for writing down what came of it.
  static let answerMilliseconds: Int64 = 100
}

final class AdminDesk: Sendable {
  typealias Answer = Result<[UInt8], AdminError>

  /// Requests at work in one sidecar; one more is answered OVERLOADED. Each holds at most one
  /// document in and one out, and a few Redis calls.
  static let inFlightMax = 64

  private let handler: AdminHandler
  private let running = NIOLockedValueBox(0)

  init(_ handler: @escaping AdminHandler) { self.handler = handler }

  var inFlight: Int { running.withLockedValue { $0 } }

  /// On the event loop; `done` is called there, once, by the deadline.
  func ask(
    _ method: UInt16, _ body: [UInt8], _ caller: AdminCaller, deadline: NIODeadline,
    on eventLoop: any EventLoop, done: @escaping (Answer) -> Void
  ) {
    let hasRoom = running.withLockedValue { running in
      guard running < Self.inFlightMax else { return false }
      running += 1
      return true
    }
    guard hasRoom else { return done(.failure(Self.overloaded)) }
    let pending = NIOLoopBound(Pending(done), eventLoop: eventLoop)
    let handler = handler
    let task = Task {
      let answer = await AdminDeadline.$current.withValue(deadline) {
        await handler(method, body, caller)
      }
      running.withLockedValue { $0 -= 1 }
      eventLoop.execute { pending.value.finish(answer) }
    }
    pending.value.timer = eventLoop.assumeIsolated().scheduleTask(deadline: deadline) {
      task.cancel()
      pending.value.finish(.failure(Self.late(method, body)))
    }
  }

  private static var overloaded: AdminError {
    AdminError(
      AdminFailure(
        .overloaded, "\(inFlightMax) admin requests are being worked on; this one was not begun",
        fix: "try again in a moment; with the same operation id where it is a change"))
  }

  /// What is known of a request that was not done by its deadline.
  static func late(_ method: UInt16, _ body: [UInt8]) -> AdminError {
    let method = AdminMethod(rawValue: method)
    let change = (try? Document(json: body, bytesMax: AdminJSON.bytesMax))?["change"]
    guard let method, method.changes, change?["dry_run"]?.isTrue != true else {
      return AdminError(
        AdminFailure(
          .deadlineExceeded,
          "\(method?.name ?? "it") was not done by the deadline; nothing was changed",
          fix: "ask again with a longer deadline; `tollgate doctor` says what does not answer"))
    }
    let fix =
      if let id = change?["operation"]?.text {
        "repeat it with the same operation id, \(id): it is then made once, whatever became of "
          + "this attempt"
      } else {
        "look whether it was made (audit.log): it named no operation id, so repeating it is a "
          + "new change"
      }
    return AdminError(
      AdminFailure(
        .outcomeUnknown, "\(method.name) was not done by the deadline and may still be made",
        fix: fix))
  }

  /// On the event loop only.
  private final class Pending {
    private var done: ((Answer) -> Void)?
    var timer: Scheduled<Void>?

    init(_ done: @escaping (Answer) -> Void) { self.done = done }

    func finish(_ answer: Answer) {
      timer?.cancel()
      timer = nil
      done?(answer)
      done = nil
    }
  }
}

extension AdminMethod {
  /// Whether a request of this kind can change anything.
  var changes: Bool {
    switch self {
    case .catalogApply, .catalogRollback, .accountSet, .accountImport, .limitSet, .limitUnset,
      .reset, .bypassSet, .bypassClear, .fallbackRetry, .fallbackDrop, .leaseRelease,
      .accountPlan, .accountPastDue, .grantAdd, .grantVoid, .adjust:
      true
    case .catalogValidate, .catalogDiff, .catalogShow, .accountShow, .accountList, .limitList,
      .usage, .explain, .bypassList, .auditLog, .reconcile, .status, .doctor, .resolveOperation,
      .fallbackList, .leaseList, .grantList, .usageHistory, .top, .tail:
      false
    }
  }
}

extension AdminError {
  /// The document that every error of this protocol's admin part has.
  init(_ failure: AdminFailure) {
    let document = try? Document(encoding: AdminErrorReply(failure))
    self.init(code: failure.code, body: document?.jsonBytes() ?? [])
  }
}

extension Document {
  fileprivate var isTrue: Bool { self == .bool(true) }
}
