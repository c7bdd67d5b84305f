// The link against a real redis-server: order, authentication, loss, freeze and return.

import Logging
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Testing
import TollgateRedis
import TollgateTesting

/// Collects what callbacks said, from any thread.
private final class Journal<Entry: Sendable>: Sendable {
  private let entries = NIOLockedValueBox<[Entry]>([])
  func add(_ entry: Entry) { entries.withLockedValue { $0.append(entry) } }
  var all: [Entry] { entries.withLockedValue { $0 } }
  var count: Int { entries.withLockedValue { $0.count } }
}

/// Waits without holding a thread: the pool is small and the answers come on a loop.
private func until(_ what: String, _ condition: () async throws -> Bool) async throws {
  try await eventually(what) { () async throws -> Bool in try await condition() }
}

@Suite(.serialized, .blocking) struct RedisLinkTests {
  private let loop = MultiThreadedEventLoopGroup.singleton.next()

  private func link(
    _ endpoint: RedisEndpoint, _ credentials: RedisCredentials? = nil,
    events: Journal<RedisLinkEvent> = Journal(),
    _ adjust: (inout RedisLinkConfiguration) -> Void = { _ in }
  ) -> RedisLink {
    var configuration = RedisLinkConfiguration(endpoint: endpoint, credentials: credentials)
    adjust(&configuration)
    let link = RedisLink(
      configuration, on: loop, seed: 1,
      logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
    ) { events.add($0) }
    link.start()
    return link
  }

  private func untilReady(_ link: RedisLink) async throws -> ServerIdentity {
    try await until("the link is ready") { await link.currentIdentity() != nil }
    return try #require(await link.currentIdentity())
  }

  private func endpoint(_ server: RedisServerProcess) throws -> RedisEndpoint {
    .tcp(host: "127.0.0.1", port: Int(try #require(server.port)))
  }

  /// Runs on the loop and waits for it to have run.
  private func onLoop(_ body: @escaping @Sendable () -> Void) async throws {
    try await loop.submit(body).get()
  }

  @Test(arguments: [true, false])
  func tenThousandPipelinedCommandsAnswerInOrder(_ tcp: Bool) async throws {
    let server = try RedisServerProcess(.init(tcp: tcp))
    let link = link(tcp ? try endpoint(server) : .unix(path: server.socketPath))
    let identity = try await untilReady(link)
    #expect(identity.runID.count == 40 && identity.replicationID.count == 40)
    #expect(identity.role == .master)
    let answers = Journal<Result<RESPReply, RedisFailure>>()
    try await onLoop {
      for _ in 0..<10_000 {
        link.send(deadline: .now() + .seconds(30)) { buffer in
          RESPWriter.write(["INCR", "n"], to: &buffer)
        } completion: {
          answers.add($0)
        }
      }
    }
    try await until("all answers") { answers.count == 10_000 }
    #expect(answers.all == (1...10_000).map { .success(.integer($0)) })
    await link.stop()
  }

  @Test func arraysAndErrorsComeBackAsReplies() async throws {
    let server = try RedisServerProcess()
    let link = link(.unix(path: server.socketPath))
    _ = try await untilReady(link)
    let reply = try await link.command([
      "EVAL", "return {1, 'two', {3, false}, redis.status_reply('OK')}", 0,
    ])
    #expect(
      reply
        == .array([
          .integer(1), .string([UInt8]("two".utf8)), .array([.integer(3), .null]), .status("OK"),
        ]))
    let failure = try await link.command(["EVALSHA", .string(String(repeating: "0", count: 40)), 0])
    #expect(failure.errorCode == "NOSCRIPT")
    await link.stop()
  }

  @Test func passwordAndAclUserAuthenticate() async throws {
    let server = try RedisServerProcess(.init(password: "se cret"))
    let link = link(.unix(path: server.socketPath), RedisCredentials(password: "se cret"))
    _ = try await untilReady(link)
    let answer = try await link.command(
      ["ACL", "SETUSER", "gate", "on", ">pw", "+@all", "~*"])
    #expect(answer == .status("OK"))
    let user = self.link(
      .unix(path: server.socketPath), RedisCredentials(username: "gate", password: "pw"))
    _ = try await untilReady(user)
    #expect(try await user.command(["ACL", "WHOAMI"]).text == "gate")
    await user.stop()
    await link.stop()
  }

  @Test func aWrongOrMissingPasswordNeverBecomesReady() async throws {
    let server = try RedisServerProcess(.init(password: "right"))
    for credentials in [RedisCredentials(password: "wrong"), nil] {
      let events = Journal<RedisLinkEvent>()
      let link = link(.unix(path: server.socketPath), credentials, events: events)
      try await until("two refused attempts") { events.count >= 2 }
      for event in events.all {
        switch event {
        case .disconnected(.authenticationRejected): #expect(credentials != nil)
        case .disconnected(.identificationRejected): #expect(credentials == nil)
        case .connected, .identityChanged, .disconnected: Issue.record("unexpected \(event)")
        }
      }
      await #expect(throws: RedisFailure.notSent(.disconnected)) {
        try await link.command(["PING"])
      }
      await link.stop()
    }
  }

  @Test func aKilledServerFailsWhatWasSentAndComesBackWithANewRunID() async throws {
    let server = try RedisServerProcess(.init(tcp: true))
    let events = Journal<RedisLinkEvent>()
    let link = link(try endpoint(server), events: events)
    let before = try await untilReady(link)
    let answers = Journal<Result<RESPReply, RedisFailure>>()
    try server.pause()
    try await onLoop {
      for _ in 0..<3 {
        link.send {
          RESPWriter.write(["INCR", "n"], to: &$0)
        } completion: {
          answers.add($0)
        }
      }
    }
    server.kill()
    try await until("the commands failed") { answers.count == 3 }
    #expect(answers.all.allSatisfy { $0 == .failure(.outcomeUnknown(.connectionLost)) })
    await #expect(throws: RedisFailure.notSent(.disconnected)) { try await link.command(["PING"]) }
    try server.start()
    let after = try await untilReady(link)
    #expect(after.runID != before.runID)
    #expect(try await link.command(["PING"]) == .status("PONG"))
    await link.stop()
  }

  @Test func whatTheSocketDidNotTakeIsNotSent() async throws {
    let server = try RedisServerProcess()
    let link = link(.unix(path: server.socketPath))
    _ = try await untilReady(link)
    try server.pause()
    let answers = Journal<(Int, Result<RESPReply, RedisFailure>)>()
    let payload = RESPArgument.bytes([UInt8](repeating: 120, count: 100_000))
    // Each turn of the loop writes 100 kB; a frozen server's socket takes only the first few.
    for number in 0..<40 {
      try await onLoop {
        link.send {
          RESPWriter.write(["SET", "k", payload], to: &$0)
        } completion: {
          answers.add((number, $0))
        }
      }
    }
    server.kill()
    try await until("the commands failed") { answers.count == 40 }
    let failures = answers.all.sorted { $0.0 < $1.0 }.map(\.1)
    #expect(failures.first == .failure(.outcomeUnknown(.connectionLost)))
    #expect(failures.last == .failure(.notSent(.disconnected)))
    let firstNotSent = try #require(failures.firstIndex(of: .failure(.notSent(.disconnected))))
    #expect(failures[firstNotSent...].allSatisfy { $0 == .failure(.notSent(.disconnected)) })
    await link.stop()
  }

  @Test func pitfall51_aFrozenServerTimesOutAndLateRepliesGoToTheirOwnHandler() async throws {
    let server = try RedisServerProcess()
    let link = link(.unix(path: server.socketPath))
    let identity = try await untilReady(link)
    try server.pause()
    let first = Journal<Result<RESPReply, RedisFailure>>()
    let late = Journal<Result<RESPReply, RedisFailure>>()
    try await onLoop {
      for index in 0..<10 {
        link.send(
          deadline: .now() + .milliseconds(20), late: index < 5 ? { late.add($0) } : nil
        ) { buffer in
          RESPWriter.write(["INCR", "n"], to: &buffer)
        } completion: {
          first.add($0)
        }
      }
    }
    try await until("all timed out") { first.count == 10 }
    #expect(first.all.allSatisfy { $0 == .failure(.outcomeUnknown(.timedOut)) })
    #expect(late.count == 0)
    let following = Journal<Result<RESPReply, RedisFailure>>()
    try await onLoop {
      for _ in 0..<10 {
        link.send(deadline: .now() + .seconds(20)) { buffer in
          RESPWriter.write(["INCR", "n"], to: &buffer)
        } completion: {
          following.add($0)
        }
      }
    }
    server.resume()
    try await until("the later commands answered") { following.count == 10 }
    #expect(late.all == (1...5).map { .success(.integer($0)) })
    #expect(following.all == (11...20).map { .success(.integer($0)) })
    #expect(first.count == 10)
    #expect(await link.currentIdentity()?.openedAt == identity.openedAt)
    await link.stop()
  }

  @Test func theBoundOnPendingCommandsIsNotSentSaturated() async throws {
    let server = try RedisServerProcess()
    let link = link(.unix(path: server.socketPath)) { $0.limits.pendingCommandsMax = 5 }
    _ = try await untilReady(link)
    let answers = Journal<Result<RESPReply, RedisFailure>>()
    try await onLoop {
      for _ in 0..<7 {
        link.send {
          RESPWriter.write(["PING"], to: &$0)
        } completion: {
          answers.add($0)
        }
      }
    }
    try await until("all answered") { answers.count == 7 }
    let refused = answers.all.filter { $0 == .failure(.notSent(.saturated)) }
    #expect(refused.count == 2)
    #expect(answers.all.filter { $0 == .success(.status("PONG")) }.count == 5)
    await link.stop()
  }

  @Test func aPromotionIsSeenOnTheOpenConnection() async throws {
    let server = try RedisServerProcess(.init(tcp: true))
    let other = try RedisServerProcess(.init(tcp: true))
    let events = Journal<RedisLinkEvent>()
    let link = link(.unix(path: server.socketPath), events: events) {
      $0.limits.refreshInterval = 10_000_000
    }
    let before = try await untilReady(link)
    let port = String(try #require(other.port))
    _ = try await link.command(["REPLICAOF", "127.0.0.1", .string(port)])
    try await until("the role changed") {
      await link.currentIdentity()?.role == .replica
    }
    _ = try await link.command(["REPLICAOF", "NO", "ONE"])
    try await until("a promotion has a new replication id") {
      let now = await link.currentIdentity()
      return now?.role == .master && now?.replicationID != before.replicationID
    }
    #expect(await link.currentIdentity()?.runID == before.runID)
    #expect(events.all.contains { if case .identityChanged = $0 { true } else { false } })
    await link.stop()
  }

  /// Neither what is sent without a deadline nor an idle connection waits for a peer that is gone
  /// without a word.
  @Test(arguments: [true, false])
  func aPeerThatFallsSilentIsLeft(_ isAsked: Bool) async throws {
    let server = try RedisServerProcess()
    let events = Journal<RedisLinkEvent>()
    let link = link(.unix(path: server.socketPath), events: events) {
      $0.limits.refreshInterval = 50_000_000
      $0.limits.stallMax = 500_000_000
    }
    _ = try await untilReady(link)
    try server.pause()
    let answers = Journal<Result<RESPReply, RedisFailure>>()
    if isAsked {
      try await onLoop {
        link.send {
          RESPWriter.write(["PING"], to: &$0)
        } completion: {
          answers.add($0)
        }
      }
    }
    try await until("it is left") { await link.currentIdentity() == nil }
    if isAsked { try await until("it is told") { answers.count == 1 } }
    #expect(answers.all.allSatisfy { if case .failure = $0 { true } else { false } })
    server.resume()
    _ = try await untilReady(link)
    await link.stop()
  }

  @Test func stopAnswersWhatIsPendingFirst() async throws {
    let server = try RedisServerProcess()
    let link = link(.unix(path: server.socketPath))
    _ = try await untilReady(link)
    let answers = Journal<Result<RESPReply, RedisFailure>>()
    try await onLoop {
      for _ in 0..<100 {
        link.send {
          RESPWriter.write(["INCR", "n"], to: &$0)
        } completion: {
          answers.add($0)
        }
      }
    }
    await link.stop()
    #expect(answers.all == (1...100).map { .success(.integer($0)) })
    await #expect(throws: RedisFailure.notSent(.disconnected)) { try await link.command(["PING"]) }
  }

  @Test(arguments: [true, false])
  func stopWhileTheServerIsAbsentReturns(_ tcp: Bool) async throws {
    let server = try RedisServerProcess(.init(tcp: true))
    server.kill()
    let events = Journal<RedisLinkEvent>()
    let link = link(tcp ? try endpoint(server) : .unix(path: server.socketPath), events: events) {
      $0.backoff = Backoff(initial: 3_600_000_000_000, max: 3_600_000_000_000)
    }
    try await until("a failed attempt") { events.count >= 1 }
    await link.stop()
    await link.stop()
    link.start()
    #expect(await link.currentIdentity() == nil)
    #expect(events.count == 1)
  }

  @Test func aMissingServerIsRetriedUntilItIsThere() async throws {
    let server = try RedisServerProcess()
    server.kill()
    let events = Journal<RedisLinkEvent>()
    let link = link(.unix(path: server.socketPath), events: events)
    try await until("some failed attempts") { events.count >= 3 }
    try server.start()
    _ = try await untilReady(link)
    await link.stop()
  }
}
