// Load on features that leases answer, and the count of what was admitted. Each caller stays with
// one sidecar, as PROTOCOL 6.1 asks: an operation is sent there again under its id until it has a
// definite answer, through kills and restarts. What is counted is what callers were told.

import Foundation
import NIOConcurrencyHelpers
import TollgateCore
import TollgateTesting
import TollgateWire

struct LeaseTally: Sendable {
  /// Account → units.
  var admitted: [String: Int64] = [:]
  var allowed = 0
  var denied = 0
  var deniedFromLeases = 0
  /// Answers by `Source`.
  var sources: [Source: Int] = [:]
  var replayed = 0
  var retries = 0
  /// Units of operations that went unanswered, and whose ids were too old then.
  var unresolved: Int64 = 0
  /// The same, one by one: of what Redis decided the books can tell.
  var open: [(id: OperationID, key: String, amount: Int64)] = []
  /// Denials since the last allow, over all callers.
  var denialsInRow = 0
  /// What must never be seen, in words.
  var violations: [String] = []
}

final class LeaseDriver: Sendable {
  struct Options: Sendable {
    var callers = 8
    var subjects = ["acme/ann/7"]
    var feature = "edits"
    var amounts: ClosedRange<Int64> = 1...1
    var deadlineMilliseconds: UInt32 = 1_000
    var pause: Duration = .zero
    /// How long an operation may go without a definite answer.
    var patience: Duration = .seconds(60)
    /// A definite answer is asked for once more at this rate, and must come back the same.
    var replayRate = 0.02
    /// What a limit that is used up is called.
    var denial = Reason.quotaExceeded
  }

  private let tally = NIOLockedValueBox(LeaseTally())
  private let stopping = NIOLockedValueBox(false)
  private let running: NIOLockedValueBox<Int>

  /// Callers are spread over the endpoints.
  init(_ endpoints: [TestEndpoint], _ options: Options, seed: inout SeededRandom) {
    running = NIOLockedValueBox(options.callers)
    for index in 0..<options.callers {
      let random = seed.fork()
      let endpoint = endpoints[index % endpoints.count]
      let thread = Thread { self.call(endpoint, options, random) }
      thread.stackSize = 1 << 20
      thread.start()
    }
  }

  var soFar: LeaseTally { tally.withLockedValue { $0 } }

  func stop() { stopping.withLockedValue { $0 = true } }

  func finish() throws -> LeaseTally {
    stop()
    try eventually(within: .seconds(90), "every caller has its answer") {
      running.withLockedValue { $0 } == 0
    }
    return soFar
  }

  private func call(_ endpoint: TestEndpoint, _ options: Options, _ seed: SeededRandom) {
    var random = seed
    var connection: WireConnection?
    defer { running.withLockedValue { $0 -= 1 } }
    guard let feature = try? Name(options.feature) else { return }
    while !stopping.withLockedValue({ $0 }) {
      guard
        let subject = try? Subject(
          options.subjects[Int(random.next() % UInt64(options.subjects.count))])
      else { return }
      let amount = Int64.random(in: options.amounts, using: &random)
      let record = OperationRecord(
        id: OperationID(time: Self.now(), using: &random), subject: subject,
        items: [Item(feature: feature, amount: amount)])
      guard let first = ask(record, endpoint, options, &connection) else { continue }
      note(first, record, options.denial)
      // What Redis could not be asked is not remembered.
      if first.reason != .storeUnavailable, random.chance(options.replayRate),
        let again = ask(record, endpoint, options, &connection)
      {
        tally.withLockedValue { tally in
          tally.replayed += 1
          // Redis decided it, and could not be asked again in time: the policy knows of nothing.
          if again.source == .policy, first.source == .redis { return }
          if again.isAllowed != first.isAllowed || !again.replayed
            || !again.isAllowed && again.reason != first.reason
          {
            tally.violations.append("asked again: \(again.reason.name) after \(first.reason.name)")
          }
        }
      }
      if options.pause > .zero { Thread.sleep(forTimeInterval: options.pause.seconds) }
    }
  }

  private func note(_ decision: Decision, _ record: OperationRecord, _ denial: Reason) {
    tally.withLockedValue { tally in
      tally.sources[decision.source, default: 0] += 1
      if decision.isAllowed {
        tally.allowed += 1
        tally.denialsInRow = 0
        tally.admitted[record.subject.account.path, default: 0] += record.items[0].amount
      } else {
        tally.denied += 1
        if decision.source == .lease { tally.deniedFromLeases += 1 }
        tally.denialsInRow += 1
        // A sidecar that has just started, or a Redis that is away, is no defect of leases.
        if decision.reason != denial, decision.reason != .storeUnavailable {
          tally.violations.append("denied: \(decision.reason.name)")
        }
      }
    }
  }

  /// nil: no definite answer, and there will be none.
  private func ask(
    _ record: OperationRecord, _ endpoint: TestEndpoint, _ options: Options,
    _ connection: inout WireConnection?
  ) -> Decision? {
    let end = ContinuousClock.now.advanced(by: options.patience)
    var isUncertain = false
    while ContinuousClock.now < end {
      do {
        let link = try connection ?? WireConnection(endpoint, token: Stack.checkToken)
        connection = link
        switch try link.operate([record], deadline: options.deadlineMilliseconds).first {
        case .decision(let decision)?: return decision
        case .error(.idTooOld, _)?:
          if isUncertain {
            tally.withLockedValue {
              $0.unresolved += record.items[0].amount
              $0.open.append(
                (
                  record.id, "\(record.subject.account.path) \(options.feature)",
                  record.items[0].amount
                ))
            }
          }
          return nil
        case .error(.outcomeUnknown, _)?: isUncertain = true
        case .error, nil: break
        }
      } catch {
        // It may have been decided.
        isUncertain = isUncertain || connection != nil
        connection = nil
      }
      tally.withLockedValue { $0.retries += 1 }
      Thread.sleep(forTimeInterval: 0.005)
    }
    tally.withLockedValue { $0.violations.append("no definite answer in time") }
    return nil
  }

  private static func now() -> WallTime {
    WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
  }
}

extension Duration {
  fileprivate var seconds: Double {
    Double(components.seconds) + Double(components.attoseconds) / 1e18
  }
}
