// The fallback queue: what it answers and does in every state, in which order it posts, what it
// holds up and what it does not, and what an answer of the store means to it.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting

@testable import TollgateServer

enum FallbackSamples {
  static func operation(
    _ n: UInt64, amount: Int64 = 3, account: String = "acme/bob@x.org"
  ) throws -> FallbackOperation {
    FallbackOperation(
      id: OperationID(high: n, low: n), subject: try Subject(account),
      items: [Item(feature: try Name("chat"), amount: amount)], attributes: ["model": "a \"b\""],
      traceParent: "00-aa-bb-01")
  }

  static func claim(_ amount: Int64) throws -> AllowanceBook.Claim {
    AllowanceBook.Claim(subject: "acme", limit: try Name("rpm"), amount: amount, allowance: 5)
  }
}

/// A queue on a clock of the test's own.
private final class Bench {
  let queue: FallbackQueue
  var now = NIODeadline.uptimeNanoseconds(1_000_000_000)
  var held: FallbackQueue.Errand?

  init(_ limits: FallbackQueue.Limits = .init()) {
    queue = FallbackQueue(limits: limits, journal: nil, now: now)
  }

  func admit(
    _ n: UInt64, amount: Int64 = 3, account: String = "acme/bob@x.org", claim: Int64? = nil
  )
    throws -> FallbackQueue.Admission
  {
    queue.admit(
      try FallbackSamples.operation(n, amount: amount, account: account),
      claims: try claim.map { [try FallbackSamples.claim($0)] } ?? [], now: now)
  }

  func take(_ limit: Int = 100) -> [FallbackQueue.Errand] { queue.take(limit, now: now) }

  @discardableResult
  func resolve(_ errand: FallbackQueue.Errand, _ verdict: FallbackVerdict)
    -> FallbackQueue.Resolution
  {
    queue.resolve(errand, verdict, now: now, at: WallTime(milliseconds: 7))
  }
}

@Suite("Fallback queue: state × event", .blocking)
struct FallbackStateTests {
  enum State: String, CaseIterable {
    case absent, waiting, posting, turned, cancelled, cancelling, deferred, parked
  }

  enum Event: String, CaseIterable {
    case admitSame, admitOther, askSame, askOther, cancelSame, cancelOther, take
    case done, again, later, refused
  }

  private func bench(in state: State) throws -> Bench {
    let bench = Bench()
    let operation = try FallbackSamples.operation(1)
    if state == .absent { return bench }
    _ = try bench.admit(1)
    switch state {
    case .absent, .waiting: break
    case .posting: bench.held = bench.take().first
    case .turned:
      bench.held = bench.take().first
      _ = bench.queue.cancel(operation, now: bench.now)
    case .cancelled: _ = bench.queue.cancel(operation, now: bench.now)
    case .cancelling:
      _ = bench.queue.cancel(operation, now: bench.now)
      bench.held = bench.take().first
    case .deferred: bench.resolve(try #require(bench.take().first), .later("frozen"))
    case .parked: bench.resolve(try #require(bench.take().first), .refused("other body"))
    }
    return bench
  }

  /// What is done and answered, and what the queue then is.
  private func play(_ event: Event, on bench: Bench) throws -> String {
    let (queue, now) = (bench.queue, bench.now)
    let same = try FallbackSamples.operation(1)
    let other = try FallbackSamples.operation(1, amount: 4)
    let result: String
    switch event {
    case .admitSame: result = "\(queue.admit(same, claims: [], now: now))"
    case .admitOther: result = "\(queue.admit(other, claims: [], now: now))"
    case .askSame: result = queue.answer(to: same).map { "\($0)" } ?? "unknown"
    case .askOther: result = queue.answer(to: other).map { "\($0)" } ?? "unknown"
    case .cancelSame: result = "\(queue.cancel(same, now: now))"
    case .cancelOther: result = "\(queue.cancel(other, now: now))"
    case .take:
      bench.held = bench.take().first
      result = bench.held.map { "\($0.intent)" } ?? "nothing"
    case .done, .again, .later, .refused:
      let held = try #require(bench.held)
      bench.held = nil
      let verdicts: [Event: FallbackVerdict] = [
        .done: .done, .again: .again, .later: .later("x"), .refused: .refused("x"),
      ]
      switch bench.resolve(held, try #require(verdicts[event])) {
      case .settled: result = "settled"
      case .waits: result = "waits"
      case .parked: result = "parked"
      }
    }
    let status = queue.status
    var state = "absent"
    if status.refused == 1 { state = "parked" }
    if status.pending == 1 {
      state = status.deferred == 1 ? "deferred" : "pending"
      state += queue.answer(to: same) == .cancelled ? " cancel" : " post"
    }
    let isAnyTaken = bench.held != nil
    return "\(result.split(separator: ".").last ?? "") | \(state)\(isAnyTaken ? " taken" : "")"
  }

  /// Event: its result in each state, in the order of `State.allCases`. "-": cannot happen.
  private static let table: [Event: [String]] = [
    .admitSame: [
      "kept | pending post", "allowed) | pending post", "allowed) | pending post taken",
      "cancelled) | pending cancel taken", "cancelled) | pending cancel",
      "cancelled) | pending cancel taken", "allowed) | deferred post", "allowed) | parked",
    ],
    .admitOther: [
      "kept | pending post", "mismatch(\"amounts\")) | pending post",
      "mismatch(\"amounts\")) | pending post taken",
      "mismatch(\"amounts\")) | pending cancel taken", "mismatch(\"amounts\")) | pending cancel",
      "mismatch(\"amounts\")) | pending cancel taken", "mismatch(\"amounts\")) | deferred post",
      "mismatch(\"amounts\")) | parked",
    ],
    .askSame: [
      "unknown | absent", "allowed | pending post", "allowed | pending post taken",
      "cancelled | pending cancel taken", "cancelled | pending cancel",
      "cancelled | pending cancel taken", "allowed | deferred post", "allowed | parked",
    ],
    .askOther: [
      "unknown | absent", "mismatch(\"amounts\") | pending post",
      "mismatch(\"amounts\") | pending post taken", "mismatch(\"amounts\") | pending cancel taken",
      "mismatch(\"amounts\") | pending cancel", "mismatch(\"amounts\") | pending cancel taken",
      "mismatch(\"amounts\") | deferred post", "unknown | parked",
    ],
    .cancelSame: [
      "unknown | absent", "annulled(isKept: true) | pending cancel",
      "annulled(isKept: true) | pending cancel taken",
      "annulled(isKept: true) | pending cancel taken", "annulled(isKept: true) | pending cancel",
      "annulled(isKept: true) | pending cancel taken", "annulled(isKept: true) | pending cancel",
      "unknown | absent",
    ],
    .cancelOther: [
      "unknown | absent", "mismatch(\"amounts\") | pending post",
      "mismatch(\"amounts\") | pending post taken", "mismatch(\"amounts\") | pending cancel taken",
      "mismatch(\"amounts\") | pending cancel", "mismatch(\"amounts\") | pending cancel taken",
      "mismatch(\"amounts\") | deferred post", "unknown | parked",
    ],
    .take: [
      "nothing | absent", "post | pending post taken", "nothing | pending post",
      "nothing | pending cancel", "cancel | pending cancel taken", "nothing | pending cancel",
      "nothing | deferred post", "nothing | parked",
    ],
    .done: [
      "-", "-", "settled | absent", "waits | pending cancel", "-", "settled | absent", "-", "-",
    ],
    .again: [
      "-", "-", "waits | pending post", "waits | pending cancel", "-", "waits | pending cancel",
      "-", "-",
    ],
    .later: [
      "-", "-", "waits | deferred post", "waits | pending cancel", "-",
      "waits | deferred cancel", "-", "-",
    ],
    .refused: [
      "-", "-", "parked | parked", "waits | pending cancel", "-", "parked | parked", "-", "-",
    ],
  ]

  @Test(arguments: State.allCases, Event.allCases)
  func theTableHolds(_ state: State, _ event: Event) throws {
    let row = try #require(Self.table[event])
    let column = try #require(State.allCases.firstIndex(of: state))
    guard row[column] != "-" else { return }
    #expect(try play(event, on: bench(in: state)) == row[column], "\(state) \(event)")
  }

  /// The post was under way when the cancel came: whatever came of it, the last word is CANCEL's.
  @Test(arguments: [FallbackVerdict.done, .again, .later("x"), .refused("x")])
  func aCancelDuringThePostIsSentAfterIt(_ verdict: FallbackVerdict) throws {
    let bench = try bench(in: .turned)
    #expect(bench.take() == [], "nothing else is sent while the post is under way")
    bench.resolve(try #require(bench.held), verdict)
    bench.now = bench.now + .seconds(3)
    let next = bench.take()
    #expect(next.map(\.intent) == [.cancel])
    #expect(bench.resolve(try #require(next.first), .done) == .settled)
    #expect(bench.queue.count == 0 && !bench.queue.remembersAny)
  }
}

@Suite("Fallback queue", .blocking)
struct FallbackQueueTests {
  /// 1 and 2 are let through, and refused.
  private func parked(_ limits: FallbackQueue.Limits = .init()) throws -> Bench {
    let bench = Bench(limits)
    for n in [1, 2] as [UInt64] { _ = try bench.admit(n) }
    for errand in bench.take() { bench.resolve(errand, .refused("other body")) }
    #expect(bench.queue.status.refused == 2)
    return bench
  }

  @Test func aParkedOneThatIsRetriedIsPostedUnderItsId() throws {
    let bench = try parked()
    let id = try FallbackSamples.operation(1).id
    guard case .waits(let refusal) = bench.queue.retry(id, now: bench.now) else {
      Issue.record("not retried")
      return
    }
    #expect(refusal.operation == (try FallbackSamples.operation(1)))
    #expect(bench.queue.status.refused == 1 && bench.queue.status.pending == 1)
    #expect(bench.queue.retry(id, now: bench.now) == .unknown)
    let errand = try #require(bench.take().first)
    #expect(errand.operation.id == id && errand.intent == .post)
    #expect(bench.resolve(errand, .done) == .settled)
    #expect(bench.queue.count == 0 && bench.queue.remembersAny, "the other one is parked still")
  }

  @Test func aParkedOneThatIsDroppedIsForgotten() throws {
    let bench = try parked()
    let operation = try FallbackSamples.operation(2)
    #expect(bench.queue.drop(operation.id)?.reason == "other body")
    #expect(bench.queue.drop(operation.id) == nil)
    #expect(bench.queue.answer(to: operation) == nil)
    #expect(bench.queue.status.refused == 1 && bench.take() == [])
    _ = bench.queue.drop(try FallbackSamples.operation(1).id)
    #expect(!bench.queue.remembersAny)
  }

  @Test func withoutRoomItStaysParked() throws {
    var limits = FallbackQueue.Limits()
    limits.operationsMax = 2
    let bench = try parked(limits)
    for n in [3, 4] as [UInt64] { _ = try bench.admit(n) }
    #expect(bench.queue.retry(try FallbackSamples.operation(1).id, now: bench.now) == .full)
    #expect(bench.queue.status.refused == 2)
  }

  @Test func aFullQueueLetsNothingMoreThrough() throws {
    var limits = FallbackQueue.Limits()
    limits.operationsMax = 2
    let bench = Bench(limits)
    #expect(try bench.admit(1) == .kept)
    #expect(try bench.admit(2) == .kept)
    #expect(try bench.admit(3) == .full)
    #expect(try bench.admit(2) == .remembered(.allowed))
  }

  @Test func aRetryOfWhatWasLetThroughDrawsOnNoAllowance() throws {
    let bench = Bench()
    #expect(try bench.admit(1, claim: 5) == .kept)
    #expect(try bench.admit(1, claim: 5) == .remembered(.allowed))
    #expect(try bench.admit(2, claim: 1) == .exhausted(try Name("rpm")))
    #expect(bench.queue.refusal(of: [try FallbackSamples.claim(1)]) == (try Name("rpm")))
    #expect(bench.queue.count == 1)
  }

  @Test func whatDiffersIsNamed() throws {
    let bench = Bench()
    _ = try bench.admit(1)
    let first = try FallbackSamples.operation(1)
    var others = [String: FallbackOperation]()
    for field in ["subject", "features", "amounts", "attributes"] { others[field] = first }
    others["subject"]?.subject = try Subject("acme")
    others["features"]?.items[0].feature = try Name("voice")
    others["amounts"]?.items[0].amount = 9
    others["attributes"]?.attributes = [:]
    for (field, other) in others { #expect(bench.queue.answer(to: other) == .mismatch(field)) }
    var traced = first
    traced.traceParent = ""
    #expect(bench.queue.answer(to: traced) == .allowed, "the trace parent is not of the body")
  }

  @Test func whatOneLoopHeardOfAnAccountAnotherKnows() throws {
    let queue = FallbackQueue(limits: .init(), journal: nil, accountsMax: 10)
    #expect(queue.configuration(of: "acme") == nil)
    queue.learned("acme", KeptAccount(AccountConfig(version: 3)))
    #expect(queue.configuration(of: "acme")?.version == 3)
    queue.learned("acme", nil)
    #expect(queue.configuration(of: "acme") == nil)
  }

  @Test func allowancesAreWholeWhenAllIsPosted() throws {
    let bench = Bench()
    for n: UInt64 in 1...2 { #expect(try bench.admit(n, claim: 2) == .kept) }
    let errands = bench.take()
    bench.resolve(errands[0], .done)
    #expect(try bench.admit(3, claim: 2) == .exhausted(try Name("rpm")))
    bench.resolve(errands[1], .done)
    #expect(try bench.admit(3, claim: 5) == .kept)
  }

  /// The store answered for every entry: the outage is over, whatever some of them wait for.
  @Test(arguments: [FallbackVerdict.refused("x"), .later("x"), .expired])
  func whatCannotBePostedDoesNotHoldBackTheAllowances(_ verdict: FallbackVerdict) throws {
    let bench = Bench()
    for n: UInt64 in 1...2 { #expect(try bench.admit(n, claim: 2) == .kept) }
    let errands = bench.take()
    bench.resolve(errands[0], verdict)
    #expect(try bench.admit(3, claim: 2) == .exhausted(try Name("rpm")), "one is still owed")
    bench.resolve(errands[1], .done)
    #expect(bench.queue.owed == 0)
    #expect(try bench.admit(3, claim: 5) == .kept)
  }

  @Test func anOutageGoesOnWhileTheStoreDoesNotAnswer() throws {
    let bench = Bench()
    #expect(try bench.admit(1, claim: 5) == .kept)
    bench.resolve(bench.take()[0], .again)
    #expect(bench.queue.owed == 1)
    #expect(try bench.admit(2, claim: 1) == .exhausted(try Name("rpm")))
  }

  @Test func firstComeFirstPosted() throws {
    let bench = Bench()
    for n: UInt64 in 1...500 {
      _ = try bench.admit(n, account: "a\(n % 7)")
      bench.now = bench.now + .nanoseconds(Int64(n % 3))
    }
    var order: [UInt64] = []
    while order.count < 500 {
      let errands = bench.take(64)
      #expect(errands.count <= 64)
      order += errands.map(\.operation.id.high)
      for errand in errands { bench.resolve(errand, .done) }
    }
    #expect(order == Array(1...500))
  }

  @Test func noMoreThanTheLimitAreUnderWay() throws {
    let bench = Bench()
    for n: UInt64 in 1...10 { _ = try bench.admit(n, account: "a\(n)") }
    let first = bench.take(4)
    #expect(first.count == 4 && bench.take(4).isEmpty)
    bench.resolve(first[0], .again)
    #expect(bench.take(4).count == 1)
  }

  /// Refused entries, however many and however early, cost one attempt each.
  @Test func poisonStarvesNobody() throws {
    let bench = Bench()
    for n: UInt64 in 1...400 { _ = try bench.admit(n, account: "poison") }
    for n: UInt64 in 401...500 { _ = try bench.admit(n, account: "good") }
    var posted = 0
    for _ in 0..<2 {
      for errand in bench.take(256) {
        if errand.operation.id.high <= 400 {
          bench.resolve(errand, .refused("other body"))
        } else if bench.resolve(errand, .done) == .settled {
          posted += 1
        }
      }
      bench.now = bench.now + .milliseconds(20)
    }
    #expect(posted == 100)
    #expect(bench.queue.status == .init(pending: 0, deferred: 0, refused: 400, journalBytes: 0))
  }

  /// An account that cannot be loaded keeps one probe under way, not the whole window.
  @Test func anAccountInTroubleHoldsUpNobody() throws {
    let bench = Bench()
    for n: UInt64 in 1...1000 { _ = try bench.admit(n, account: "stuck") }
    for n: UInt64 in 1001...1100 { _ = try bench.admit(n, account: "good") }
    var posted = 0
    var attempts = 0
    for _ in 0..<50 {
      for errand in bench.take(256) {
        if errand.operation.subject.path == "stuck" {
          attempts += 1
          bench.resolve(errand, .again)
        } else if bench.resolve(errand, .done) == .settled {
          posted += 1
        }
      }
      bench.now = bench.now + .milliseconds(20)
    }
    #expect(posted == 100)
    #expect(attempts < 256 + 10, "\(attempts) attempts in a second at an account in trouble")
    // It can be asked again: all of it goes within the longest pause and a few rounds.
    bench.now = bench.now + .seconds(2)
    for _ in 0..<200 {
      for errand in bench.take(256) { bench.resolve(errand, .done) }
      bench.now = bench.now + .milliseconds(20)
    }
    #expect(bench.queue.count == 0)
  }

  @Test func parkedOnesAreBoundedAndTheOldestIsHandedOut() throws {
    var limits = FallbackQueue.Limits()
    limits.refusedMax = 2
    let bench = Bench(limits)
    for n: UInt64 in 1...3 { _ = try bench.admit(n) }
    let resolutions = bench.take().map { bench.resolve($0, .refused("r\($0.operation.id.high)")) }
    guard case .parked(let third, let dropped) = resolutions[2] else {
      Issue.record("not parked: \(resolutions)")
      return
    }
    #expect(third.reason == "r3" && third.time == WallTime(milliseconds: 7))
    #expect(dropped?.operation.id.high == 1)
    #expect(bench.queue.refusals(10).map(\.reason) == ["r2", "r3"])
    #expect(bench.queue.answer(to: try FallbackSamples.operation(1)) == nil)
    #expect(bench.queue.answer(to: try FallbackSamples.operation(2)) == .allowed)
  }

  @Test func anEntryThatFailsComesBackLaterEachTimeAndIsNeverForgotten() throws {
    let bench = Bench()
    _ = try bench.admit(1)
    var waits: [Int64] = []
    for _ in 0..<14 {
      let began = bench.now
      while bench.queue.take(1, now: bench.now).first.map({ bench.resolve($0, .later("x")) }) == nil
      {
        bench.now = bench.now + .milliseconds(50)
        try #require(bench.now - began < .seconds(120))
      }
      waits.append((bench.now - began).nanoseconds / 1_000_000)
    }
    #expect(waits[1] == 50 && waits[2] == 100 && waits[3] == 200)
    #expect(waits.last == 60_000)
  }
}

@Suite("Fallback verdicts", .blocking)
struct FallbackVerdictTests {
  private func kind(_ verdict: FallbackVerdict) -> String {
    switch verdict {
    case .done: "done"
    case .again: "again"
    case .later: "later"
    case .refused: "refused"
    case .expired: "expired"
    }
  }

  private func decision(_ reason: Reason) -> Outcome {
    .decision(Decision(reason: reason, source: .redis, time: WallTime(milliseconds: 1)))
  }

  @Test func everyReasonOfAPostIsJudged() {
    let expected: [String: Set<Reason>] = [
      "done": [
        .allowed, .allowedShadow, .allowedSoft, .allowedFailOpen, .allowedPosted, .settled,
        .settledClamped, .settledLate, .released, .extended, .refunded, .cancelled,
      ],
      "again": [.storeUnavailable, .fallbackExhausted],
      "later": [
        .outboxFull, .dedupeFull, .accountFrozen, .unknownAccount, .priceUnknown, .pastDue,
      ],
      "refused": [
        .unknownFeature, .featureNotInPlan, .gateClosed, .costAboveBurst, .quotaExceeded,
        .rateLimited, .concurrencyExceeded, .creditExhausted, .spendCapReached, .holdsExceeded,
      ],
    ]
    var found: [String: Set<Reason>] = [:]
    for reason in Reason.allCases {
      found[kind(FallbackVerdict(post: decision(reason))), default: []].insert(reason)
    }
    #expect(found == expected)
  }

  @Test func everyReasonOfACancelIsJudged() {
    for reason in Reason.allCases {
      let expected =
        switch reason {
        case .outboxFull, .dedupeFull: "later"
        case .storeUnavailable, .fallbackExhausted: "again"
        default: "done"
        }
      #expect(kind(FallbackVerdict(cancel: decision(reason))) == expected, "\(reason)")
    }
  }

  @Test func everyErrorIsJudged() {
    let again: Set<ErrorCode> = [
      .overloaded, .deadlineExceeded, .outcomeUnknown, .unavailable, .draining, .notReady,
    ]
    let refused: Set<ErrorCode> = [
      .badRequest, .unknownCriticalField, .idempotencyMismatch, .invalidName, .amountOutOfRange,
      .tooManyItems, .duplicateItem, .frameTooLarge, .conflict, .notFound, .invalidDocument,
      .reservationUnknown, .reservationEnded, .overrunRejected, .nothingToRefund,
    ]
    for code in ErrorCode.allCases {
      var expected = again.contains(code) ? "again" : refused.contains(code) ? "refused" : "later"
      if code == .idTooOld { expected = "expired" }
      #expect(kind(FallbackVerdict(post: .error(code, ""))) == expected, "\(code)")
      if code == .idTooOld { expected = "refused" }
      if code == .idempotencyMismatch { expected = "done" }
      #expect(kind(FallbackVerdict(cancel: .error(code, ""))) == expected, "\(code)")
    }
  }
}
