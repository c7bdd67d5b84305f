// The client over a real socket, against a fake sidecar that does what the test says.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

private let ada = subject("acme/ada")

private func open(_ feature: String, _ allowance: Int64) -> FeaturePolicy {
  FeaturePolicy(feature: name(feature), policy: .open(allowance: allowance))
}

@Suite(.blocking) struct ClientTests {
  @Test func checkAndConsumeAreAnswered() async throws {
    try await withScene { scene in
      #expect(try await scene.client.check(ada, [item("a")]).isAllowed)
      scene.sidecar.answer { _ in .deny(.quotaExceeded) }
      let denied = try await scene.client.consume(ada, [item("a"), item("b", 5)])
      #expect(denied.reason == .quotaExceeded)
      #expect(scene.sidecar.requests.map(\.opcode) == [.check, .consume])
      #expect(scene.sidecar.requests[1].records[0].items == [item("a"), item("b", 5)])
      #expect(scene.sidecar.accepted == 1)
    }
  }

  @Test func manyCallsAreInFlightAndAnswersMayComeInAnyOrder() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { _ in .hold }
      let versions = try await withThrowingTaskGroup(of: (Int64, Int64).self) { group in
        for amount in 1...100 as ClosedRange<Int64> {
          group.addTask {
            (amount, try await client.consume(ada, [item("a", amount)]).accountVersion)
          }
        }
        try await until("all are in flight") { sidecar.requests.count == 100 }
        for request in sidecar.requests.reversed() { sidecar.respond(request, .allow) }
        return try await group.reduce(into: []) { $0.append($1) }
      }
      #expect(versions.count == 100)
      #expect(versions.allSatisfy { $0.0 == $0.1 })
      #expect(sidecar.accepted == 1)
    }
  }

  @Test func aBatchTravelsInOneFrameAndIsAnsweredInOrder() async throws {
    try await withScene { scene in
      let answers = await scene.client.decide(
        (1...50).map { Request(.consume, subject: ada, items: [item("a", $0)]) })
      #expect(answers.map { try? $0.get().accountVersion } == (1...50).map { Int64($0) })
      #expect(scene.sidecar.requests.count == 1)
      #expect(await scene.client.decide([]).isEmpty)
    }
  }

  @Test func aDeadlineEndsTheCallAndTheLateAnswerIsDropped() async throws {
    try await withScene(configure: { $0.appliesFailurePolicies = false }) { scene in
      let sidecar = scene.sidecar
      sidecar.answer { _ in .hold }
      let id = scene.client.newOperationID()
      let late = await outcome { () async throws(TollgateError) in
        try await scene.client.consume(ada, [item("a", 1)], id: id, deadline: .seconds(5))
      }
      #expect(late.error == .outcomeUnknown(id))
      let sent = try #require(sidecar.requests.first)
      #expect(sent.deadline <= 4990 && sent.deadline > 0)
      sidecar.answer { _ in .allow }
      sidecar.respond(sent, .allow)
      // The next answer belongs to the next call: nothing has shifted.
      let answer = try await scene.client.consume(ada, [item("a", 2)])
      #expect(answer.accountVersion == 2)
      #expect(scene.client.statistics.lateAnswers == 1)
    }
  }

  @Test func aCancelledTaskLeavesAtOnceAndTheSlotStays() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { _ in .hold }
      let id = client.newOperationID()
      let task = Task {
        await outcome { () async throws(TollgateError) in
          try await client.consume(ada, [item("a", 1)], id: id)
        }
      }
      try await until("it is sent") { sidecar.sends(id, .consume) == 1 }
      task.cancel()
      #expect(await task.value.error == .outcomeUnknown(id))
      sidecar.answer { _ in .allow }
      sidecar.respond(sidecar.requests[0], .allow)
      #expect(try await client.consume(ada, [item("a", 2)]).accountVersion == 2)
    }
  }

  @Test func aTaskCancelledBeforehandSendsNothing() async throws {
    try await withScene { scene in
      let client = scene.client
      scene.sidecar.answer { _ in .hold }
      let task = Task {
        unsafe withUnsafeCurrentTask { unsafe $0?.cancel() }
        return await outcome { () async throws(TollgateError) in
          try await client.check(ada, [item("a")])
        }
      }
      #expect(await task.value.error == .notSent(.cancelled))
    }
  }

  @Test func anOverloadedSidecarIsAskedAgainUnderTheSameId() async throws {
    try await withScene { scene in
      let sidecar = scene.sidecar
      let id = scene.client.newOperationID()
      sidecar.answer { _ in
        switch sidecar.sends(id, .consume) {
        case 1: .error(.overloaded)
        case 2: .refuse(.draining)
        default: .allow
        }
      }
      let answer = try await scene.client.consume(ada, [item("a")], id: id)
      #expect(answer.isAllowed)
      #expect(sidecar.sends(id, .consume) == 3)
      #expect(scene.client.statistics.retries == 2)
    }
  }

  @Test(arguments: [ErrorCode.forbidden, .idempotencyMismatch, .idTooOld, .deadlineExceeded])
  func whatIsFinalIsSentOnce(code: ErrorCode) async throws {
    try await withScene { scene in
      scene.sidecar.answer { _ in .error(code) }
      let id = scene.client.newOperationID()
      let end = await outcome { () async throws(TollgateError) in
        try await scene.client.consume(ada, [item("a")], id: id)
      }
      #expect(end.error == .rejected(code, message: "so said the test"))
      #expect(scene.sidecar.sends(id, .consume) == 1)
    }
  }

  @Test func aConnectionLostInFlightIsRetriedOnceWithTheSameId() async throws {
    try await withScene { scene in
      let sidecar = scene.sidecar
      _ = try await scene.client.check(ada, [item("a")])
      let id = scene.client.newOperationID()
      sidecar.answer { _ in sidecar.sends(id, .consume) == 1 ? .hangUp : .allow }
      #expect(try await scene.client.consume(ada, [item("a")], id: id).isAllowed)
      #expect(sidecar.sends(id, .consume) == 2)
      #expect(sidecar.accepted == 2)
    }
  }

  @Test func anotherSidecarTakesOverAndKeepsTheClient() async throws {
    try await withScene(sidecars: 2) { scene in
      _ = try await scene.client.check(ada, [item("a")])
      try await scene.sidecars[0].kill()
      let id = scene.client.newOperationID()
      #expect(try await scene.client.consume(ada, [item("a")], id: id).isAllowed)
      #expect(scene.sidecars[1].sends(id, .consume) == 1)
      try await scene.sidecars[0].start()
      for _ in 0..<5 { _ = try await scene.client.check(ada, [item("a")]) }
      #expect(scene.sidecars[0].accepted == 1)
      #expect(scene.sidecars[1].accepted == 1)
    }
  }

  @Test func goAwayFinishesWhatIsInFlightAndConnectsAnew() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      _ = try await client.check(ada, [item("a")])
      let id = client.newOperationID()
      sidecar.answer { $0.records[0].id == id ? .hold : .allow }
      async let held = client.consume(ada, [item("a", 7)], id: id)
      try await until("it is in flight") { sidecar.sends(id, .consume) == 1 }
      sidecar.goAway()
      try await until("it connects anew") { sidecar.accepted == 2 }
      #expect(try await client.consume(ada, [item("a", 8)]).accountVersion == 8)
      let first = try #require(sidecar.requests.first { $0.records[0].id == id })
      sidecar.respond(first, .allow)
      #expect(try await held.accountVersion == 7)
      #expect(sidecar.sends(id, .consume) == 1)
      try await until("the old connection is closed") { sidecar.open == 1 }
    }
  }

  @Test func anIdleConnectionIsKeptByPings() async throws {
    var manners = FakeSidecar.Manners()
    manners.idleTimeout = 1500
    try await withScene(manners) { scene in
      // Kept by most of them: a machine that stands still for two intervals may end one connection.
      try await until("pings") { scene.sidecar.pings >= 6 }
      #expect(scene.sidecar.accepted <= 2)
    }
  }

  @Test func aSidecarThatAnswersNoPingIsLeft() async throws {
    var manners = FakeSidecar.Manners()
    manners.idleTimeout = 30
    manners.answersPings = false
    try await withScene(manners) { scene in
      try await until("another connection") { scene.sidecar.accepted >= 2 }
    }
  }

  @Test func outstandingCallsAreBounded() async throws {
    try await withScene(configure: { $0.outstandingMax = 3 }) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { _ in .hold }
      let tasks = (1...3).map { amount in
        Task { try await client.consume(ada, [item("a", Int64(amount))]) }
      }
      try await until("they are in flight") { sidecar.requests.count == 3 }
      let fourth = await outcome { () async throws(TollgateError) in
        try await client.consume(ada, [item("a")])
      }
      #expect(fourth.error == .notSent(.queueFull))
      for request in sidecar.requests { sidecar.respond(request, .allow) }
      for task in tasks { _ = try await task.value }
      sidecar.answer { _ in .allow }
      #expect(try await client.consume(ada, [item("a")]).isAllowed)
    }
  }

  @Test func theSidecarsInFlightBoundIsKept() async throws {
    var manners = FakeSidecar.Manners()
    manners.inFlightMax = 2
    try await withScene(manners) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { _ in .hold }
      try await withThrowingTaskGroup(of: Void.self) { group in
        for _ in 0..<6 { group.addTask { _ = try await client.check(ada, [item("a")]) } }
        for answered in 0..<6 {
          try await until("the next is sent") {
            sidecar.requests.count >= min(answered + 2, 6)
          }
          #expect(sidecar.requests.count <= answered + 2)
          sidecar.respond(sidecar.requests[answered], .allow)
        }
        try await group.waitForAll()
      }
    }
  }

  /// One answer too many means that the two sides do not agree on what was asked: nothing that
  /// comes after it on that connection can be believed.
  @Test func pitfall50_anAnswerNobodyAwaitsEndsTheConnection() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      _ = try await client.consume(ada, [item("a")])
      sidecar.answer { _ in .hold }
      let id = client.newOperationID()
      async let held = client.consume(ada, [item("a")], id: id)
      try await until("it is in flight") { sidecar.requests.count == 2 }
      sidecar.answer { _ in .allow }
      sidecar.respond(sidecar.requests[0], .deny(.quotaExceeded))
      // It is not taken for the answer to what is in flight, which is asked anew elsewhere.
      #expect(try await held.reason == .allowed)
      #expect(sidecar.sends(id, .consume) == 2)
      #expect(client.statistics.connections == 2)
    }
  }

  @Test func aWrongCredentialIsToldInWords() async throws {
    var manners = FakeSidecar.Manners()
    manners.credential = "secret"
    try await withScene(manners, waits: false) { scene in
      try await until("the hello is refused") { scene.client.statistics.connectFailures > 0 }
      let end = await outcome { () async throws(TollgateError) in
        try await scene.client.check(ada, [item("a")], deadline: .milliseconds(100))
      }
      guard case .notSent(.deadlinePassed(let text))? = end.error else {
        Issue.record("\(end)")
        return
      }
      #expect(text.contains("UNAUTHENTICATED"))
      #expect(!text.contains("secret"))
    }
    try await withScene(manners, configure: { $0.credential = "secret" }) { scene in
      let answer = try await scene.client.check(ada, [item("a")])
      #expect(answer.isAllowed)
    }
  }

  @Test func idsAreMintedFromTheSidecarsClock() async throws {
    var manners = FakeSidecar.Manners()
    manners.ahead = 3_600_000
    try await withScene(manners) { scene in
      #expect(scene.client.newOperationID().time - Clock.wall > 3_500_000)
    }
  }

  @Test func readinessIsAwaitedAndGivenUp() async throws {
    let directory = try TemporaryDirectory("tgc")
    let client = TollgateClient(
      configuration: ClientConfiguration(endpoints: [.unix(directory.file("none.sock"))]))
    client.start()
    await #expect(throws: TollgateError.self) {
      try await client.waitUntilReady(within: .milliseconds(30))
    }
    await client.shutdown(grace: .zero)
    let end = await outcome { () async throws(TollgateError) in
      try await client.check(ada, [item("a")])
    }
    #expect(end.error == .notSent(.notRunning))
  }
}

@Suite(.blocking) struct FallbackTests {
  @Test func aKilledSidecarsPolicyAppliesAndNothingIsLost() async throws {
    var manners = FakeSidecar.Manners()
    manners.policies = [open("a", 10)]
    try await withScene(manners) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      _ = try await client.check(ada, [item("a")])
      try await sidecar.kill()
      var letThrough: [OperationID] = []
      for _ in 0..<15 {
        let id = client.newOperationID()
        let answer = try await client.consume(ada, [item("a")], id: id)
        #expect(answer.source == .clientFallback)
        if answer.isAllowed { letThrough.append(id) }
      }
      #expect(letThrough.count == 10)
      #expect(try await client.consume(ada, [item("b")]).reason == .storeUnavailable)
      // Back, but busy at first.
      sidecar.answer { _ in sidecar.requests.count < 3 ? .error(.overloaded) : .allow }
      sidecar.change { $0.policies = [open("a", 10)] }
      try await sidecar.start()
      try await until("all is posted") { client.statistics.unposted == 0 }
      #expect(client.statistics.posted == 10)
      for id in letThrough {
        #expect(sidecar.sends(id, .post) >= 1)
        #expect(sidecar.sends(id, .consume) == 0)
      }
      #expect(
        sidecar.requests.filter { $0.opcode == .post }.allSatisfy { $0.flags == .clientFallback })
    }
  }

  @Test func aSilentSidecarsPolicyAppliesByTheDeadlineAndThePostHasTheSameId() async throws {
    var manners = FakeSidecar.Manners()
    manners.policies = [open("a", 10)]
    try await withScene(manners) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { $0.opcode == .consume ? .hold : .allow }
      let id = client.newOperationID()
      let answer = try await client.consume(
        ada, [item("a")], id: id, deadline: .seconds(5))
      #expect(answer.reason == .allowedFailOpen)
      try await until("it is posted") { client.statistics.posted == 1 }
      #expect(sidecar.sends(id, .consume) == 1)
      #expect(sidecar.sends(id, .post) == 1)
    }
  }

  @Test func whatWasDeniedThoughItMayBeAppliedIsTakenBackWhenTheSidecarIsBack() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      _ = try await client.check(ada, [item("a")])
      sidecar.answer { _ in .hold }
      let id = client.newOperationID()
      async let answer = client.consume(ada, [item("a")], id: id)
      try await until("it is in flight") { sidecar.sends(id, .consume) == 1 }
      try await sidecar.kill()
      #expect(try await answer.reason == .storeUnavailable)
      #expect(client.statistics.uncancelled == 1)
      sidecar.answer { _ in .deny(.cancelled) }
      try await sidecar.start()
      try await until("it is taken back") { client.statistics.cancelled == 1 }
      #expect(sidecar.sends(id, .cancel) == 1)
      #expect(sidecar.sends(id, .consume) == 1)
    }
  }

  @Test func newPoliciesApplyWithoutAReconnect() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.push([open("a", 5)])
      // Frames of one connection are read in order: once this is answered, the push was read.
      _ = try await client.check(ada, [item("a")])
      try await sidecar.kill()
      #expect(try await client.consume(ada, [item("a")]).reason == .allowedFailOpen)
    }
  }

  @Test func aFinallyRefusedPostIsHandedOver() async throws {
    var manners = FakeSidecar.Manners()
    manners.policies = [open("a", 10)]
    let (stream, sink) = AsyncStream.makeStream(of: RefusedPost.self)
    try await withScene(manners, configure: { $0.onRefusedPost = { sink.yield($0) } }) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { $0.opcode == .consume ? .hold : .error(.idTooOld) }
      let id = client.newOperationID()
      _ = try await client.consume(ada, [item("a", 3)], id: id, deadline: .milliseconds(20))
      var iterator = stream.makeAsyncIterator()
      let refused = await iterator.next()
      #expect(refused?.operation.id == id)
      #expect(refused?.operation.items == [item("a", 3)])
      try await until("it is counted") { client.statistics.postsRefused == 1 }
    }
  }

  @Test func shutdownHandsOverWhatIsOwedAndTheNextClientPaysIt() async throws {
    var manners = FakeSidecar.Manners()
    manners.policies = [open("a", 10)]
    try await withScene(manners) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      _ = try await client.check(ada, [item("a")])
      try await sidecar.kill()
      let id = client.newOperationID()
      _ = try await client.consume(ada, [item("a", 3)], id: id)
      let owed = await client.shutdown(grace: .milliseconds(1))
      #expect(owed.unposted.map(\.id) == [id])
      #expect(await client.shutdown(grace: .zero) == owed)
      try await sidecar.start()
      let next = TollgateClient(configuration: ClientConfiguration(endpoints: [sidecar.endpoint]))
      next.adopt(owed)
      next.start()
      try await until("it is posted") { next.statistics.posted == 1 }
      #expect(sidecar.sends(id, .post) == 1)
      #expect(await next.shutdown().isEmpty)
    }
  }

  @Test func shutdownWaitsForWhatIsInFlight() async throws {
    try await withScene { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      sidecar.answer { _ in .hold }
      async let held = client.consume(ada, [item("a", 4)])
      try await until("it is in flight") { sidecar.requests.count == 1 }
      async let stopped = client.shutdown(grace: .seconds(10))
      try await eventually("it takes nothing new") {
        await outcome { () async throws(TollgateError) in
          try await client.check(ada, [item("a")], deadline: .milliseconds(5))
        }.error == .notSent(.notRunning)
      }
      sidecar.respond(sidecar.requests[0], .allow)
      #expect(try await held.accountVersion == 4)
      #expect(await stopped.isEmpty)
    }
  }

  @Test func everyCallEndsOnceWhileTheSidecarComesAndGoes() async throws {
    var manners = FakeSidecar.Manners()
    manners.policies = [open("a", 1_000_000)]
    try await withScene(manners, configure: { $0.defaultDeadline = .milliseconds(200) }) { scene in
      let (client, sidecar) = (scene.client, scene.sidecar)
      let ended = try await withThrowingTaskGroup(of: Int.self) { group in
        for _ in 0..<8 {
          group.addTask {
            var ended = 0
            for _ in 0..<150 {
              _ = await outcome { () async throws(TollgateError) in
                try await client.consume(ada, [item("a")])
              }
              ended += 1
            }
            return ended
          }
        }
        for round in 1...5 {
          try await until("calls go on") {
            client.statistics.requests >= Int64(round * 150)
          }
          try await sidecar.kill()
          try await until("calls go on") {
            client.statistics.requests >= Int64(round * 150 + 75)
          }
          try await sidecar.start()
        }
        return try await group.reduce(0, +)
      }
      #expect(ended == 1200)
      try await until("all is paid back") {
        client.statistics.unposted == 0 && client.statistics.uncancelled == 0
      }
      let s = client.statistics
      let outcomes =
        s.allowed + s.denied + s.fallbackAllowed + s.fallbackDenied + s.rejected + s.notSent
      #expect(outcomes + s.outcomeUnknown == s.requests)
      #expect(s.posted == s.fallbackAllowed)
      #expect(s.outstanding == 0)
    }
  }
}
