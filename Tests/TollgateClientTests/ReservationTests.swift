// Reservations over a real socket, against a fake sidecar that does what the test says.

import NIOConcurrencyHelpers
import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

private let ada = subject("acme/ada")

private struct Broken: Error, Equatable {}

/// Reserves live for so long (ms); everything else is answered in full.
private func holding(_ lives: Int64) -> @Sendable (FakeSidecar.Request) -> FakeSidecar.Answer {
  { request in
    switch request.opcode {
    case .reserve: .grant(.allowed, lives: lives)
    case .extend: .grant(.extended, lives: lives)
    case .settle: .grant(.settled, lives: nil)
    case .release: .grant(.released, lives: nil)
    case .refund: .grant(.refunded, lives: nil)
    default: .allow
    }
  }
}

/// What `body` throws; nil where it does not.
private func thrown(_ body: () async throws -> Void) async -> (any Error)? {
  do { try await body() } catch { return error }
  return nil
}

extension FakeSidecar {
  fileprivate var settles: [SettleRecord] { requests.flatMap(\.settles) }
  fileprivate var opcodes: [Opcode] { requests.map(\.opcode) }
  fileprivate var releases: [ReleaseRecord] {
    requests.flatMap(\.asks).compactMap {
      if case .release(let record) = $0 { record } else { nil }
    }
  }
}

@Suite(.blocking) struct ReservationTests {
  // MARK: by hand

  @Test func theFiveRequestsAreAnswered() async throws {
    try await withScene { scene in
      let client = scene.client
      scene.sidecar.answer(holding(1000))
      let id = client.newOperationID()
      let reserved = try await client.reserve(
        ada, [item("a", 10)], id: id, ttl: .seconds(2), overrun: .overdraft(bound: 7),
        attributes: ["model": "small"])
      #expect(reserved.expires == reserved.time + 1000)
      #expect(try await client.extend(ada, id, ttl: .seconds(3)).reason == .extended)
      #expect(try await client.settle(ada, [item("a", 4)], of: id, isFinal: false).isAllowed)
      #expect(try await client.release(ada, id).reason == .released)
      #expect(try await client.refund(ada, id, reason: "twice").reason == .refunded)
      let asks = scene.sidecar.requests.flatMap(\.asks)
      #expect(
        asks.first
          == .reserve(
            ReserveRecord(
              Record(
                id: id, subject: ada, items: [item("a", 10)], attributes: ["model": "small"]),
              ttlMilliseconds: 2000, overrun: .overdraft(bound: 7))))
      #expect(scene.sidecar.settles.map(\.reservation) == [id])
      guard case .refund(let refund)? = asks.last else { throw Broken() }
      #expect(refund.corrects == id && refund.reason == "twice" && refund.items.isEmpty)
    }
  }

  @Test func aTtlOutOfRangeIsRejected() async throws {
    try await withScene { scene in
      for ttl in [Duration.zero, .seconds(86_401)] {
        let answer = await outcome { () async throws(TollgateError) in
          try await scene.client.reserve(
            ada, [item("a")], id: scene.client.newOperationID(), ttl: ttl)
        }
        guard case .rejected(.badRequest, _)? = answer.error else { throw Broken() }
      }
      #expect(scene.sidecar.requests.isEmpty)
    }
  }

  @Test func whatIsNotSettledIsHandedOverAtTheEnd() async throws {
    try await withScene { scene in
      let client = scene.client
      scene.sidecar.answer { $0.opcode == .settle ? .hold : .allow }
      let id = client.newOperationID()
      let answer = await outcome { () async throws(TollgateError) in
        try await client.settle(
          ada, [item("a", 3)], of: operation(1), id: id, deadline: .seconds(2))
      }
      #expect(answer.error == .outcomeUnknown(id))
      let left = await client.shutdown(grace: .zero)
      #expect(
        left.unsettled == [
          UnsettledUse(id: id, subject: ada, reservation: operation(1), items: [item("a", 3)])
        ])
      scene.sidecar.answer(holding(1000))
      let next = TollgateClient(
        configuration: ClientConfiguration(endpoints: [scene.sidecar.endpoint]))
      next.start()
      next.adopt(left)
      try await until("it is settled") { next.statistics.settled == 1 }
      #expect(scene.sidecar.sends(id, .settle) >= 2)
      #expect(await next.shutdown().isEmpty)
    }
  }

  // MARK: the block

  @Test func theBlockSettlesWhatItUsed() async throws {
    try await withScene { scene in
      scene.sidecar.answer(holding(60_000))
      let ended = try await scene.client.withReservation(
        ada, [item("a", 10)], attributes: ["model": "small"]
      ) { held in
        try held.used(name("a"), 3)
        try held.used(name("a"), 4)
        return "done"
      }
      guard case .ended("done", let decision) = ended else { throw Broken() }
      #expect(decision.reason == .settled)
      let settle = try #require(scene.sidecar.settles.first)
      #expect(settle.items == [item("a", 7)] && settle.isFinal && !settle.isFloor)
      #expect(settle.attributes == ["model": "small"])
      #expect(settle.reservation == scene.sidecar.requests.first?.records.first?.id)
      #expect(scene.sidecar.opcodes == [.reserve, .settle])
    }
  }

  @Test func aDeniedBlockDoesNotRun() async throws {
    try await withScene { scene in
      scene.sidecar.answer { _ in .deny(.quotaExceeded) }
      let ended = try await scene.client.withReservation(ada, [item("a", 10)]) { _ in
        Issue.record("it ran")
      }
      guard case .denied(let decision) = ended else { throw Broken() }
      #expect(decision.reason == .quotaExceeded)
      #expect(scene.sidecar.opcodes == [.reserve])
    }
  }

  @Test func aBlockThatThrowsSettlesTheLeastAndThrows() async throws {
    try await withScene { scene in
      scene.sidecar.answer(holding(60_000))
      let error = await thrown {
        _ = try await scene.client.withReservation(ada, [item("a", 10)]) { held in
          try held.used(name("a"), 3)
          throw Broken()
        }
      }
      #expect(error is Broken)
      let settle = try #require(scene.sidecar.settles.first)
      #expect(settle.items == [item("a", 3)] && settle.isFinal && settle.isFloor)
    }
  }

  @Test func aBlockThatThrowsKnowingNothingIsLeftToExpire() async throws {
    try await withScene { scene in
      scene.sidecar.answer(holding(60_000))
      let error = await thrown {
        _ = try await scene.client.withReservation(ada, [item("a", 10)]) { _ in throw Broken() }
      }
      #expect(error is Broken)
      // Whatever the block's end sent would be there before this.
      let next = try await scene.client.check(ada, [item("a")])
      #expect(next.isAllowed && scene.sidecar.opcodes == [.reserve, .check])
    }
  }

  @Test func aBlockThatKnowsThatNothingWasUsedReleases() async throws {
    try await withScene { scene in
      scene.sidecar.answer(holding(60_000))
      let ended = try await scene.client.withReservation(ada, [item("a", 10)]) { held in
        held.usedNothing()
      }
      guard case .ended(_, let decision) = ended else { throw Broken() }
      #expect(decision.reason == .released)
      #expect(scene.sidecar.opcodes == [.reserve, .release])
    }
  }

  @Test func aCancelledBlockSettlesTheLeast() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer(holding(60_000))
      let isRunning = NIOLockedValueBox(false)
      let task = Task {
        try await client.withReservation(ada, [item("a", 10)]) { held in
          try held.used(name("a"), 3)
          isRunning.withLockedValue { $0 = true }
          try await Task.sleep(for: .seconds(600))
        }
      }
      try await until("it runs") { isRunning.withLockedValue { $0 } }
      task.cancel()
      #expect(await thrown { _ = try await task.value } is CancellationError)
      // Settled by the time the block is left, though its task was cancelled.
      let settle = try #require(sidecar.settles.first)
      #expect(settle.items == [item("a", 3)] && settle.isFinal && settle.isFloor)
      #expect(sidecar.opcodes == [.reserve, .settle])
    }
  }

  @Test func aStreamIsSettledAsItGoesAndToldToStop() async throws {
    try await withScene { scene in
      scene.sidecar.answer { request in
        guard request.opcode == .settle else { return holding(60_000)(request) }
        let isFirst = request.settles.first?.items == [item("a", 4)]
        return .grant(isFirst ? .settled : .settledClamped, lives: nil)
      }
      _ = try await scene.client.withReservation(ada, [item("a", 10)]) { held in
        try held.used(name("a"), 4)
        #expect(try await held.settle()?.reason == .settled)
        #expect(!held.isLimitReached)
        #expect(try await held.settle() == nil)
        try held.used(name("a"), 5)
        try await held.settle()
        #expect(held.isLimitReached)
        #expect(held.total == [item("a", 9)])
      }
      #expect(
        scene.sidecar.settles.map(\.items) == [[item("a", 4)], [item("a", 5)], [item("a", 0)]])
      #expect(scene.sidecar.settles.map(\.isFinal) == [false, false, true])
    }
  }

  @Test func theHoldIsExtendedWhileTheBlockRuns() async throws {
    try await withScene { scene in
      let sidecar = scene.sidecar
      sidecar.answer(holding(100))
      _ = try await scene.client.withReservation(ada, [item("a", 10)], ttl: .milliseconds(100)) {
        held in
        try await until("it was extended twice") {
          sidecar.opcodes.filter { $0 == .extend }.count >= 2
        }
        #expect(!held.isLost)
        try held.used(name("a"), 1)
      }
      #expect(sidecar.opcodes.last == .settle)
      let ids = sidecar.requests.filter { $0.opcode == .extend }.flatMap(\.records).map(\.id)
      #expect(Set(ids).count == ids.count, "each extension is a new one")
    }
  }

  @Test func aHoldThatIsGoneIsSettledAllTheSame() async throws {
    try await withScene { scene in
      let sidecar = scene.sidecar
      sidecar.answer { request in
        switch request.opcode {
        case .extend: .error(.reservationEnded)
        case .settle: .grant(.settledLate, lives: nil)
        default: holding(50)(request)
        }
      }
      let ended = try await scene.client.withReservation(
        ada, [item("a", 10)], ttl: .milliseconds(50)
      ) { held in
        try held.used(name("a"), 3)
        try await until("it is known to be gone") { held.isLost }
      }
      guard case .ended(_, let decision) = ended else { throw Broken() }
      #expect(decision.reason == .settledLate)
      #expect(sidecar.settles.map(\.items) == [[item("a", 3)]])
    }
  }

  @Test func aHoldThatNobodyKnowsIsPosted() async throws {
    try await withScene { scene in
      let sidecar = scene.sidecar
      sidecar.answer { request in
        request.opcode == .settle ? .error(.reservationUnknown) : holding(60_000)(request)
      }
      let ended = try await scene.client.withReservation(ada, [item("a", 10)]) { held in
        try held.used(name("a"), 3)
      }
      guard case .ended(_, let decision) = ended else { throw Broken() }
      #expect(decision.reason == .allowedPosted)
      let settle = try #require(sidecar.settles.first)
      #expect(sidecar.sends(settle.id, .post) == 1)
      // Should it come back, it is held for nobody.
      try await until("it is released") { sidecar.opcodes.contains(.release) }
      #expect(sidecar.releases.map(\.reservation) == [settle.reservation])
    }
  }

  @Test func aSettleThatIsNotAnsweredInTimeIsToldAsSuchAndSentOn() async throws {
    try await withScene(configure: { $0.settlePatience = .milliseconds(30) }) { scene in
      let sidecar = scene.sidecar
      sidecar.answer { $0.opcode == .settle ? .hold : holding(60_000)($0) }
      let ended = try await scene.client.withReservation(ada, [item("a", 10)]) { held in
        try held.used(name("a"), 3)
        return 5
      }
      guard case .unsettled(5, .outcomeUnknown(let id)) = ended else { throw Broken() }
      // On a busy machine the time may be over before it has left.
      try await until("it came") { sidecar.sends(id, .settle) >= 1 }
      sidecar.answer(holding(60_000))
      try await sidecar.hangUp()
      try await until("it is settled") { scene.client.statistics.settled == 1 }
      #expect(sidecar.sends(id, .settle) >= 2)
      #expect(sidecar.settles.allSatisfy { $0.items == [item("a", 3)] })
    }
  }

  @Test func whatNobodyWillChargeIsHandedBack() async throws {
    let refused = NIOLockedValueBox<[RefusedSettle]>([])
    try await withScene(configure: {
      $0.onRefusedSettle = { settle in refused.withLockedValue { $0.append(settle) } }
    }) { scene in
      scene.sidecar.answer { request in
        request.opcode == .settle ? .error(.overrunRejected) : holding(60_000)(request)
      }
      let ended = try await scene.client.withReservation(
        ada, [item("a", 10)], overrun: .reject
      ) { held in try held.used(name("a"), 30) }
      guard case .unsettled(_, .rejected(.overrunRejected, _)) = ended else { throw Broken() }
      #expect(refused.withLockedValue { $0.map(\.use.items) } == [[item("a", 30)]])
    }
  }

  /// The answer to a draw is lost with its connection: it is asked for again before the end, so
  /// that it finds the hold it is to be drawn from.
  @Test func aDrawInDoubtIsToldBeforeTheEnd() async throws {
    try await withScene { scene in
      let sidecar = scene.sidecar
      let answersDraws = NIOLockedValueBox(false)
      sidecar.answer { request in
        let isDraw = request.settles.first?.isFinal == false
        if isDraw, !answersDraws.withLockedValue({ $0 }) { return .error(.outcomeUnknown) }
        return holding(60_000)(request)
      }
      _ = try await scene.client.withReservation(
        ada, [item("a", 10)], deadline: .seconds(600)
      ) { held in
        try held.used(name("a"), 3)
        let draw = Task { try await held.settle() }
        try await until("it was sent") { !sidecar.settles.isEmpty }
        draw.cancel()
        _ = await draw.result
        answersDraws.withLockedValue { $0 = true }
        try await until("it is settled") { scene.client.statistics.settled == 1 }
        try held.used(name("a"), 4)
      }
      let draw = try #require(sidecar.settles.first)
      let last = try #require(sidecar.settles.last)
      #expect(!draw.isFinal && last.isFinal)
      #expect(draw.items == [item("a", 3)] && last.items == [item("a", 4)])
      // The last word before the end is that of the draw, under its id.
      #expect(sidecar.settles.dropLast().last?.id == draw.id)
      #expect(Set(sidecar.settles.map(\.id)).count == 2)
    }
  }

  @Test func anUnansweredReserveIsReleased() async throws {
    try await withScene(configure: { $0.appliesFailurePolicies = false }) { scene in
      let sidecar = scene.sidecar
      sidecar.answer { $0.opcode == .reserve ? .hold : holding(60_000)($0) }
      // On a busy machine a short deadline may pass before anything was sent: nothing is held then.
      var deadline = Duration.milliseconds(20)
      repeat {
        let error = await thrown {
          _ = try await scene.client.withReservation(
            ada, [item("a", 10)], deadline: deadline
          ) { _ in Issue.record("it ran") }
        }
        #expect(error is TollgateError)
        deadline *= 4
      } while !sidecar.opcodes.contains(.reserve)
      try await until("it is released") { sidecar.opcodes.contains(.release) }
    }
  }
}
