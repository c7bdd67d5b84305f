// Load through the public client library, and the count of what its callers were told.
//
// Each operation is minted once. What the client cannot tell the outcome of is asked again under
// the same id until it can; what was rejected or not sent is counted as not applied, because that
// is what those words promise. Whether they are true is for the audit to find out: it compares
// these counts with Redis and with the ledger.

import Foundation
import NIOConcurrencyHelpers
import TollgateClient
import TollgateTesting

/// What callers were told, over all of them.
struct ClientTally: Sendable {
  /// "account feature" → units, by definite answers; fallback answers included.
  var admitted: [String: Int64] = [:]
  /// Operations that the client let through by policy: id → "account feature" → units.
  var letThrough: [OperationID: [String: Int64]] = [:]
  /// The units of those since `outageBegan`.
  var outage: [String: Int64] = [:]
  /// Answers: by whom, and why.
  var answers: [String: Int] = [:]
  var operations = 0
  var rejected = 0
  var notSent = 0
  var unknown = 0
  /// Operations of unknown outcome that were asked again, and what came of it.
  var resolved: [String: Int] = [:]
  /// Answers of a client that is connected, since the last `outageBegan`.
  var answered = 0
  var byPolicy = 0
  /// What must never be seen, in words.
  var violations: [String] = []

  mutating func admit(_ request: Request, byPolicy: Bool) {
    for item in request.items {
      let key = "\(request.subject.account) \(item.feature)"
      admitted[key, default: 0] += item.amount
      guard byPolicy, let id = request.id else { continue }
      letThrough[id, default: [:]][key, default: 0] += item.amount
      outage[key, default: 0] += item.amount
    }
  }
}

/// Callers of one client.
final class ClientLoad: Sendable {
  struct Options: Sendable {
    var tasks = 8
    var subjects = ["acme/alice", "acme/bob", "beta", "gamma/x"]
    var features = ["calls", "edits"]
    /// The rate at which a request names every feature instead of one.
    var together = 0.2
    var amounts: ClosedRange<Int64> = 1...3
    /// The rate at which a caller walks away from its request.
    var cancels = 0.02
    var deadline: Duration = .milliseconds(400)
    var pause: Duration = .milliseconds(3)
    /// How long an operation of unknown outcome is asked about.
    var patience: Duration = .seconds(60)
  }

  let client: TollgateClient
  let options: Options
  private let state = NIOLockedValueBox(ClientTally())
  private let isStopping = NIOLockedValueBox(false)

  init(_ client: TollgateClient, _ options: Options) {
    self.client = client
    self.options = options
  }

  var tally: ClientTally { state.withLockedValue { $0 } }
  func stop() { isStopping.withLockedValue { $0 = true } }
  func outageBegan() {
    state.withLockedValue {
      $0.outage = [:]
      $0.answered = 0
      $0.byPolicy = 0
    }
  }

  /// Runs until `stop`, and until each operation has a definite end.
  func run(_ random: SeededRandom) async {
    var random = random
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<options.tasks {
        let stream = random.fork()
        group.addTask { await self.caller(stream) }
      }
    }
  }

  private func caller(_ stream: SeededRandom) async {
    var random = stream
    while !isStopping.withLockedValue({ $0 }) {
      guard let request = makeRequest(&random) else {
        return note { $0.violations.append("no request can be made") }
      }
      note { $0.operations += 1 }
      await operate(request, walksAway: random.chance(options.cancels))
      try? await Task.sleep(for: options.pause)
    }
  }

  private func makeRequest(_ random: inout SeededRandom) -> Request? {
    guard let path = options.subjects.randomElement(using: &random),
      let subject = try? Subject(path)
    else { return nil }
    var names = options.features
    if !random.chance(options.together) {
      names = names.randomElement(using: &random).map { [$0] } ?? []
    }
    let items = names.compactMap { name in
      (try? Name(name)).map {
        Item(feature: $0, amount: Int64.random(in: options.amounts, using: &random))
      }
    }
    return Request(.consume, subject: subject, items: items, id: client.newOperationID())
  }

  private func operate(_ request: Request, walksAway: Bool) async {
    guard let id = request.id else { return }
    let call = Task { await self.ask(request) }
    if walksAway {
      // About as long as an answer takes: some are sent by then, some are not.
      try? await Task.sleep(for: .milliseconds(1))
      call.cancel()
    }
    switch await call.value {
    case .success(let decision): decided(request, decision)
    case .failure(.rejected(let code, _)):
      note { $0.rejected += 1 }
      switch code {
      case .unavailable, .draining, .overloaded, .notReady, .deadlineExceeded: break
      default: note { $0.violations.append("\(id): rejected with \(code.name)") }
      }
    case .failure(.notSent): note { $0.notSent += 1 }
    case .failure(.outcomeUnknown(let named)):
      note {
        $0.unknown += 1
        if named != id { $0.violations.append("\(id): of unknown outcome as \(named)") }
      }
      await resolve(request, id)
    }
  }

  /// Asks again under the same id until the outcome is known.
  private func resolve(_ request: Request, _ id: OperationID) async {
    let end = ContinuousClock.now.advanced(by: options.patience)
    while ContinuousClock.now < end {
      switch await ask(request) {
      case .success(let decision) where decision.source == .redis || decision.source == .lease:
        let word = decision.isAllowed ? "allowed" : "denied"
        note { $0.resolved[decision.replayed ? "\(word) before" : word, default: 0] += 1 }
        return decided(request, decision)
      // What the client's own policy says is definite too: a denial takes back what may have been
      // applied, an admission is posted under the id.
      case .success(let decision) where decision.source == .clientFallback:
        note { $0.resolved["by policy", default: 0] += 1 }
        return decided(request, decision)
      // A sidecar's policy, a refusal, or nobody there: none of them knows of the earlier attempt.
      case .success, .failure: try? await Task.sleep(for: .milliseconds(10))
      }
    }
    note { $0.violations.append("\(id): no definite outcome in time") }
  }

  private func ask(_ request: Request) async -> Result<Decision, TollgateError> {
    do throws(TollgateError) {
      return .success(
        try await client.consume(
          request.subject, request.items, id: request.id, deadline: options.deadline))
    } catch {
      return .failure(error)
    }
  }

  private func decided(_ request: Request, _ decision: Decision) {
    let byPolicy = decision.source == .clientFallback
    note { tally in
      tally.answers["\(decision.source) \(decision.reason.name)", default: 0] += 1
      if byPolicy { tally.byPolicy += 1 } else { tally.answered += 1 }
      if decision.isAllowed { tally.admit(request, byPolicy: byPolicy) }
      if let wrong = Self.violation(request, decision) { tally.violations.append(wrong) }
    }
  }

  /// What a failure policy must not say: `calls` is closed, `edits` open within an allowance.
  private static func violation(_ request: Request, _ decision: Decision) -> String? {
    guard decision.source == .clientFallback else { return nil }
    let isOpen = request.items.allSatisfy { $0.feature.text == "edits" }
    switch decision.reason {
    case .allowedFailOpen, .fallbackExhausted: if isOpen { return nil }
    case .storeUnavailable, .cancelled: if !isOpen { return nil }
    default: break
    }
    return "\(request.items.map(\.feature)): the client's policy said \(decision.reason.name)"
  }

  private func note(_ body: (inout ClientTally) -> Void) { state.withLockedValue { body(&$0) } }
}

/// Runs what blocks on a thread of its own, so that the pool stays free for the callers.
func offThePool<Value: Sendable>(
  _ body: @escaping @Sendable () throws -> Value
) async throws -> Value {
  try await withCheckedThrowingContinuation { continuation in
    Thread { continuation.resume(with: Result { try body() }) }.start()
  }
}
