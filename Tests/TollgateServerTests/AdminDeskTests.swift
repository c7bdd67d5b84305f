// The desk where admin requests are taken in: so many at once, each answered by its deadline, and
// what a late answer says.

import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite("Admin desk", .blocking)
struct AdminDeskTests {
  private static let loop = MultiThreadedEventLoopGroup.singleton.next()

  /// Works until it is cancelled, as a handler does whose Redis never answers.
  private static let stuck: AdminHandler = { _, _, _ in
    while !Task.isCancelled { try? await Task.sleep(for: .milliseconds(1)) }
    return .success([])
  }

  private static func ask(
    _ desk: AdminDesk, _ method: AdminMethod, _ document: String = "", milliseconds: Int64
  ) async throws -> AdminDesk.Answer {
    let promise = loop.makePromise(of: AdminDesk.Answer.self)
    loop.execute {
      desk.ask(
        method.rawValue, Array(document.utf8), AdminCaller(proof: ""),
        deadline: .now() + .milliseconds(milliseconds),
        on: loop
      ) { promise.succeed($0) }
    }
    return try await promise.futureResult.get()
  }

  private static func failure(_ answer: AdminDesk.Answer) throws -> AdminFailure {
    guard case .failure(let error) = answer else { throw Missing() }
    let reply = try AdminJSON.decode(AdminErrorReply.self, from: error.body)
    #expect(reply.failure.code == error.code)
    return reply.failure
  }

  private struct Missing: Error {}

  @Test func anAnswerInTimeIsPassedOn() async throws {
    let desk = AdminDesk { method, body, _ in .success([UInt8(method)] + body) }
    let answer = try await Self.ask(desk, .status, "{}", milliseconds: 300_000)
    #expect(try answer.get() == [21] + Array("{}".utf8))
    try await eventually(within: .seconds(5), "its place is free") { () async -> Bool in
      desk.inFlight == 0
    }
  }

  @Test func aReadThatIsLateChangedNothing() async throws {
    let desk = AdminDesk(Self.stuck)
    let failure = try Self.failure(try await Self.ask(desk, .reconcile, milliseconds: 20))
    #expect(failure.code == .deadlineExceeded)
    try await eventually(within: .seconds(5), "the late handler ends") { () async -> Bool in
      desk.inFlight == 0
    }
  }

  @Test func aChangeThatIsLateNamesItsOperation() async throws {
    let id = "019a00000000000000000000000000aa"
    let failure = try Self.failure(
      try await Self.ask(
        AdminDesk(Self.stuck), .accountSet, "{\"change\":{\"operation\":\"\(id)\"}}",
        milliseconds: 20))
    #expect(failure.code == .outcomeUnknown)
    #expect(failure.fix.contains(id))
  }

  @Test func aChangeWithoutAnIdIsNotToBeRepeatedBlindly() async throws {
    let failure = try Self.failure(
      try await Self.ask(AdminDesk(Self.stuck), .reset, "{\"change\":{}}", milliseconds: 20))
    #expect(failure.code == .outcomeUnknown)
    #expect(failure.fix.contains("a new change"))
  }

  @Test func aDryRunThatIsLateChangedNothing() async throws {
    let failure = try Self.failure(
      try await Self.ask(
        AdminDesk(Self.stuck), .catalogApply, "{\"change\":{\"dry_run\":true}}",
        milliseconds: 20))
    #expect(failure.code == .deadlineExceeded)
  }

  @Test func oneMoreThanItHoldsIsOverloadedAtOnce() async throws {
    let release = NIOLockedValueBox(false)
    let desk = AdminDesk { _, _, _ in
      while !release.withLockedValue({ $0 }) { try? await Task.sleep(for: .milliseconds(1)) }
      return .success([])
    }
    try await withThrowingTaskGroup(of: AdminDesk.Answer.self) { group in
      for _ in 0..<AdminDesk.inFlightMax {
        group.addTask { try await Self.ask(desk, .status, milliseconds: 15_000) }
      }
      try await eventually(within: .seconds(10), "all are at work") { () async -> Bool in
        desk.inFlight == AdminDesk.inFlightMax
      }
      let refused = try Self.failure(try await Self.ask(desk, .status, milliseconds: 15_000))
      #expect(refused.code == .overloaded)
      release.withLockedValue { $0 = true }
      for try await answer in group { #expect(try answer.get() == []) }
    }
    _ = try await Self.ask(desk, .status, milliseconds: 15_000).get()
  }

  /// PROTOCOL, section 11.
  @Test func itsLimitsAreTheDocuments() {
    #expect(AdminDesk.inFlightMax == 64)
    #expect(AdminJSON.bytesMax == 16_777_216)
  }

  @Test func aWaitLeavesTimeToAnswer() {
    let now = NIODeadline.uptimeNanoseconds(1_000_000_000)
    #expect(AdminDeadline.end(ofWait: 500, from: now) - now == .milliseconds(500))
    AdminDeadline.$current.withValue(now + .milliseconds(300)) {
      #expect(AdminDeadline.end(ofWait: 500, from: now) - now == .milliseconds(200))
      #expect(AdminDeadline.end(ofWait: 50, from: now) - now == .milliseconds(50))
    }
  }
}

@Suite("Drain", .blocking)
struct DrainTests {
  @Test func workEndsBeforeTheGraceTimeDoes() {
    let start = NIODeadline.uptimeNanoseconds(5_000_000_000)
    for (grace, kept) in [(0, 0), (100, 25), (1000, 250), (10_000, 250)] as [(Int64, Int64)] {
      let plan = DrainPlan(from: start, graceMilliseconds: grace)
      #expect(plan.end - start == .milliseconds(grace))
      #expect(plan.end - plan.workEnd == .milliseconds(kept))
    }
  }

  @Test func workThatNeverEndsIsLeft() async {
    let stop = NIOLockedValueBox(false)
    let isDone = await Bounded.ended(by: .now() + .milliseconds(20)) {
      while !stop.withLockedValue({ $0 }) { try? await Task.sleep(for: .milliseconds(1)) }
    }
    #expect(!isDone)
    stop.withLockedValue { $0 = true }
  }

  @Test func workThatEndsIsNotWaitedForLonger() async {
    #expect(await Bounded.ended(by: .now() + .seconds(600)) {})
  }
}
