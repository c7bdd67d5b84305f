// Load from many threads, and the count of what was admitted.
//
// Every operation has an id of its own, minted once. It is sent again with that id, to any sidecar
// and over any connection, until it has a definite answer: a decision of the store, or of a failure
// policy where no earlier attempt of this operation was left without an answer. What is counted is
// what a caller was told; nothing is read from the servers.

import Foundation
import NIOConcurrencyHelpers
import TollgateCore
import TollgateTesting
import TollgateWire

struct LoadTally: Sendable {
  /// "account feature" → units admitted by definite answers.
  var admitted: [String: Int64] = [:]
  var denied: [Reason: Int] = [:]
  var operations = 0
  /// Definite answers that came from the store.
  var decided = 0
  /// Attempts beyond the first.
  var repeated = 0
  /// Answers that a sidecar gave from a record.
  var replayed = 0
  var errors: [ErrorCode: Int] = [:]
  /// What must never be seen, in words.
  var violations: [String] = []
  var latencies: [Double] = []
  /// ID_TOO_OLD to an operation of which no attempt had gone unanswered: it was not admitted.
  var tooOld = 0
  /// ID_TOO_OLD to one of which an attempt had: only the books can tell.
  var unresolved: [(id: OperationID, key: String, amount: Int64)] = []

  func units(_ account: String, _ feature: String) -> Int64 {
    admitted["\(account) \(feature)"] ?? 0
  }
}

final class LoadDriver: Sendable {
  struct Options: Sendable {
    var threads = 12
    var subjects: [String] = ["acme/alice"]
    var features: [String] = ["calls"]
    var amounts: ClosedRange<Int64> = 1...3
    var deadlineMilliseconds: UInt32 = 250
    /// A definite answer is sent once more at this rate, and must come back the same.
    var replayRate = 0.05
    /// Records of operations may be lost: their ids are then too old.
    var recordsMayBeLost = false
    /// Pause between operations of a thread.
    var pause: Duration = .zero
    /// How long an operation may go without a definite answer.
    var patience: Duration = .seconds(60)
  }

  let options: Options
  private let endpoints: [TestEndpoint]
  private let tally = NIOLockedValueBox(LoadTally())
  private let stopping = NIOLockedValueBox(false)
  private let running: NIOLockedValueBox<Int>

  init(_ endpoints: [TestEndpoint], _ options: Options, seed: inout SeededRandom) {
    self.options = options
    self.endpoints = endpoints
    running = NIOLockedValueBox(options.threads)
    for index in 0..<options.threads {
      let random = seed.fork()
      let thread = Thread { [self] in
        Worker(self, index, random).run()
        running.withLockedValue { $0 -= 1 }
      }
      thread.start()
    }
  }

  var soFar: LoadTally { tally.withLockedValue { $0 } }

  /// No new operations; waits until each that was begun has its definite answer.
  func finish(within limit: Duration = .seconds(90)) throws -> LoadTally {
    stopping.withLockedValue { $0 = true }
    try eventually(within: limit, "every operation has a definite answer") {
      running.withLockedValue { $0 } == 0
    }
    return soFar
  }

  fileprivate var isStopping: Bool { stopping.withLockedValue { $0 } }
  fileprivate var endpointCount: Int { endpoints.count }
  fileprivate func endpoint(_ index: Int) -> TestEndpoint { endpoints[index] }
  fileprivate func note(_ body: (inout LoadTally) -> Void) { tally.withLockedValue { body(&$0) } }
}

private final class Worker {
  private let driver: LoadDriver
  private var random: SeededRandom
  private var target: Int
  private var connection: WireConnection?

  init(_ driver: LoadDriver, _ index: Int, _ random: SeededRandom) {
    self.driver = driver
    self.random = random
    target = index % driver.endpointCount
  }

  func run() {
    while !driver.isStopping {
      guard let record = makeOperation() else { return }
      operate(record)
      if driver.options.pause > .zero {
        Thread.sleep(forTimeInterval: driver.options.pause.inSeconds)
      }
    }
  }

  private func makeOperation() -> OperationRecord? {
    let options = driver.options
    guard let path = options.subjects.randomElement(using: &random),
      let feature = options.features.randomElement(using: &random),
      let subject = try? Subject(path), let name = try? Name(feature)
    else { return nil }
    let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
    return OperationRecord(
      id: OperationID(time: time, using: &random), subject: subject,
      items: [Item(feature: name, amount: Int64.random(in: options.amounts, using: &random))])
  }

  private func operate(_ record: OperationRecord) {
    let end = ContinuousClock.now.advanced(by: driver.options.patience)
    let began = ContinuousClock.now
    driver.note { $0.operations += 1 }
    let key = "\(record.subject.account) \(record.items[0].feature)"
    let decision: Decision
    switch definite(record, until: end) {
    case nil:
      return driver.note {
        $0.violations.append("\(record.id.hex): no definite answer in time")
      }
    case .tooOld(isCertain: true)?: return driver.note { $0.tooOld += 1 }
    case .tooOld(isCertain: false)?:
      return driver.note { $0.unresolved.append((record.id, key, record.items[0].amount)) }
    case .decision(let found)?: decision = found
    }
    let took = (ContinuousClock.now - began).inSeconds
    driver.note {
      $0.latencies.append(took)
      if decision.isAllowed {
        $0.admitted[key, default: 0] += record.items[0].amount
      } else {
        $0.denied[decision.reason, default: 0] += 1
      }
    }
    guard decision.source == .redis, random.chance(driver.options.replayRate) else { return }
    guard case .decision(let again)? = definite(record, until: end, isCertain: false) else {
      return
    }
    if again.isAllowed != decision.isAllowed || !again.replayed {
      driver.note {
        $0.violations.append(
          "\(record.id.hex): \(decision.reason.name), then \(again.reason.name) "
            + "(replayed \(again.replayed))")
      }
    }
  }

  private enum Answer {
    case decision(Decision)
    case tooOld(isCertain: Bool)
  }

  /// Asks until the answer is one that stays. `isCertain`: nothing of this operation was ever sent
  /// without being answered, so a policy's word is definite.
  private func definite(
    _ record: OperationRecord, until end: ContinuousClock.Instant, isCertain: Bool = true
  ) -> Answer? {
    var attempts = 0
    var isCertain = isCertain
    while ContinuousClock.now < end {
      attempts += 1
      if attempts > 1 { driver.note { $0.repeated += 1 } }
      do {
        let connection = try connected()
        let answers = try connection.operate(
          [record], deadline: driver.options.deadlineMilliseconds)
        guard answers.count == 1 else { throw WireFailure.malformed("\(answers.count) answers") }
        switch answers[0] {
        case .decision(let decision):
          if decision.replayed { driver.note { $0.replayed += 1 } }
          if decision.source == .redis {
            driver.note { $0.decided += 1 }
            return .decision(decision)
          }
          if isCertain { return .decision(decision) }
        case .error(let code, let message):
          driver.note { $0.errors[code, default: 0] += 1 }
          if code == .outcomeUnknown { isCertain = false }
          switch code {
          case .idTooOld where driver.options.recordsMayBeLost:
            return .tooOld(isCertain: isCertain)
          case .outcomeUnknown, .unavailable, .draining, .overloaded, .deadlineExceeded, .notReady:
            break
          default:
            driver.note { $0.violations.append("\(record.id.hex): \(code.name) \(message)") }
            return nil
          }
        }
        Thread.sleep(forTimeInterval: 0.005)
      } catch {
        if case WireFailure.malformed(let what) = error {
          driver.note { $0.violations.append("\(record.id.hex): \(what)") }
        }
        isCertain = false
        connection = nil
        target = (target + 1) % driver.endpointCount
        Thread.sleep(forTimeInterval: 0.005)
      }
    }
    return nil
  }

  private func connected() throws -> WireConnection {
    if let connection { return connection }
    let opened = try WireConnection(driver.endpoint(target), token: Stack.checkToken)
    connection = opened
    return opened
  }
}
