// An epoch that the ledger issued and nobody opened in Redis, because who asked for it was killed in
// between. The next sidecar must not go on under the epoch before: the ledger has fenced it, and
// what is counted under it would be lost when the bucket is opened at last (promise 3). Where the
// sidecar could not know, because the ledger was away, it is found in Redis and delivered.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Epochs {
    /// Another sidecar of this deployment, speaking the ledger's stream by hand, has the bucket's
    /// epoch closed and holds nothing of it; it says so when `meanwhile` is over.
    private static func closeEpoch(
      _ stack: Stack, meanwhile: () throws -> Void = {}
    ) throws -> EpochNotice {
      let other = try WireConnection(.unix(stack.directory.file("ledger.sock")))
      try other.hello(token: "ledger-token", role: .ledger)
      var buffer = ByteBuffer()
      buffer.writeFrame(
        Link(
          deployment: Deployment(id: try Name("live"), buckets: 1, mode: .dev),
          sidecar: try Name("other"), incarnation: 1), correlation: other.nextCorrelation())
      try other.send(buffer)
      let linked = try Linked.decode(try other.frame(.linked, within: 5000))
      let bucket = try #require(linked.buckets.first { $0.bucket == 0 })
      buffer.clear()
      buffer.writeFrame(
        Recover(
          bucket: 0, epoch: bucket.epoch, metaEpoch: bucket.epoch, metaSequence: bucket.cursor),
        correlation: 0)
      try other.send(buffer)
      let request = try PresentRequest.decode(try other.frame(.presentRequest, within: 5000))
      #expect(request.epoch == bucket.epoch)
      try meanwhile()
      buffer.clear()
      buffer.writeFrame(Present(bucket: 0, epoch: request.epoch, entries: []), correlation: 0)
      try other.send(buffer)
      let notice = try EpochNotice.decode(try other.frame(.epoch, within: 5000))
      #expect(notice.epoch == bucket.epoch + 1)
      return notice
    }

    @Test func anEpochThatNobodyOpenedLosesNothing() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, buckets: 1, extra: LiveTests.ExactLimit.patient, accounts: ["acme": "big"]))
      var tally = LoadTally()
      let before = try Caller(stack)
      for _ in 0..<5 { #expect(try before.consume("acme/m", ("calls", 1)).isAllowed) }
      tally.admitted["acme calls"] = 5
      try Audit.check(stack, tally, subjects: ["acme/m"])
      stack.sidecar(0)?.kill()

      _ = try Self.closeEpoch(stack)

      try stack.startSidecar(0)
      try stack.waitReady(0)
      let after = try Caller(stack)
      // How far the epoch in Redis had come nobody can tell any more: its records count as lost, and
      // an id minted before that was found is refused.
      for _ in 0..<20 {
        let record = try after.record("acme/m", [("calls", 1)])
        guard case .decision(let decision) = try after.answer(record), decision.isAllowed else {
          continue
        }
        tally.admitted["acme calls", default: 0] += 1
      }
      #expect(tally.units("acme", "calls") > 5)
      // Killed as well, before or after it has delivered: what it counted is in Redis.
      try stack.restartSidecar(0)
      try stack.waitReady(0)
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }

    /// What a sidecar let through under an epoch that the ledger had closed, because the ledger was
    /// down when it was started. It is killed, and the ledger comes back.
    private static func stranded(
      _ tally: inout LoadTally, sidecars: Int = 1
    ) throws -> Stack {
      let stack = try Stack(
        .init(
          sidecars: sidecars, buckets: 1, extra: LiveTests.ExactLimit.patient,
          accounts: ["acme": "big", "tiny": "small", "beta": "big"]))
      let before = try Caller(stack)
      #expect(try before.consume("acme/m", ("calls", 5)).isAllowed)
      #expect(try before.consume("tiny/m", ("calls", 100)).isAllowed)
      tally.admitted = ["acme calls": 5, "tiny calls": 100]
      try Audit.check(stack, tally, subjects: ["acme/m", "tiny/m", "beta"])
      for index in 0..<sidecars { stack.sidecar(index)?.kill() }
      _ = try closeEpoch(stack)
      stack.ledger?.kill()

      try stack.startSidecar(0)
      let caller = try Caller(stack)
      try eventually(within: .seconds(20), "it works under the epoch that Redis names") {
        guard case .decision(let first) = try caller.answer(caller.record("acme/m", [("calls", 0)]))
        else { return false }
        return first.isAllowed && first.source == .redis
      }
      for amount: Int64 in 1...20 {
        let decision = try caller.consume("acme/m", ("calls", amount))
        #expect(decision.isAllowed && decision.source == .redis)
        tally.admitted["acme calls", default: 0] += amount
      }
      #expect(try caller.consume("tiny/m", ("calls", 390)).isAllowed)
      tally.admitted["tiny calls"] = 490
      try stack.command(["account", "set", "beta", "--plan", "small", "--reason", "stranded"])
      try stack.command(["reset", "acme", "calls.month", "--reason", "stranded"])
      stack.sidecar(0)?.kill()
      try stack.startLedger()
      return stack
    }

    /// Nothing of it is lost, and the limit of the small plan holds from the first answer on.
    private static func checkStranded(_ stack: Stack, _ tally: LoadTally) throws {
      let caller = try Caller(stack)
      try eventually(within: .seconds(20), "a limit is judged") {
        let answer = try caller.answer(caller.record("tiny/m", [("calls", 11)]))
        guard case .decision(let decision) = answer, decision.source == .redis else { return false }
        #expect(decision.reason == .quotaExceeded, "units that were used are not seen")
        return true
      }
      try Audit.check(stack, tally, subjects: ["acme/m", "tiny/m", "beta"])
      let redis = try stack.redis.connect()
      let keys = KeySpace(deployment: try Name("live"), map: BucketMap(buckets: 1))
      #expect(try redis.command("KEYS", "*late*").strings == [])
      #expect(try redis.command("HGET", keys.meta(0), "lt").string ?? "" == "")
      // And the changes of configuration are in the ledger: it has them when Redis has nothing.
      try redis.command("FLUSHALL")
      try eventually(within: .seconds(20), every: .milliseconds(50), "the ledger has the changes") {
        let shown = try stack.cli(["account", "show", "beta", "--json"])
        let usage = try stack.cli(["usage", "acme", "--json"])
        let text = (shown.output + usage.output).filter { !$0.isWhitespace }
        return text.contains("\"plan\":\"small\"") && text.contains("\"forgiven\":215")
      }
    }

    @Test func whatAKilledSidecarCountedUnderAClosedEpochIsDelivered() throws {
      var tally = LoadTally()
      let stack = try Self.stranded(&tally)
      try stack.startSidecar(0)
      try stack.waitReady(0)
      try Self.checkStranded(stack, tally)
      #expect((stack.metric("tollgate_late_reposted_total", sidecar: 0) ?? 0) >= 23)
    }

    /// Who opened the next epoch is killed before it has read the outbox that it set aside, or
    /// when it has moved a part of it.
    @Test(arguments: [0, 7])
    func theOpenerKilledBeforeItHasPostedThemAnewLosesNothing(_ moved: Int) throws {
      var tally = LoadTally()
      let stack = try Self.stranded(&tally)
      let notice = try Self.closeEpoch(stack)
      let redis = try stack.redis.connect()
      let keys = KeySpace(deployment: try Name("live"), map: BucketMap(buckets: 1))
      let parts = (try redis.command("HGET", keys.meta(0), "f").string ?? "").split(separator: " ")
        .map(String.init)
      let standing = try #require(Int64(parts[1]))
      let delivered = try redis.command("HGET", keys.meta(0), "ack").integer ?? 0
      #expect(standing < notice.epoch - 1)
      let fence = Fence(
        deployment: try Name("live"), epoch: notice.epoch, runID: parts[2],
        replicationID: parts[3], seenSequence: 0)
      func run(_ call: some ScriptCall) throws {
        var words = [Array("EVAL".utf8), ScriptLibrary.shared.source(call.script)]
        words.append(Array("\(call.keys.count)".utf8))
        words += call.keys.map { Array($0.utf8) }
        words += call.arguments.map { argument in
          switch argument {
          case .string(let text): Array(text.utf8)
          case .bytes(let bytes): bytes
          case .integer(let value): Array("\(value)".utf8)
          }
        }
        let reply = try redis.pipeline([words])[0]
        #expect(reply.elements.first?.integer == 0, "\(reply)")
      }
      try run(
        OpenCall(
          keySpace: keys, bucket: 0, fence: fence, globalVersion: 1, hadPredecessor: true,
          records: .init(known: nil, found: nil, milliseconds: 0), lateEpoch: standing))
      let late = try redis.command("XRANGE", keys.late(0, epoch: standing), "-", "+").elements
      let sequences = late.compactMap { $0.elements.first?.string?.split(separator: "-").last }
        .compactMap { Int64($0) }
        .filter { $0 > delivered }
      #expect(sequences.count >= 23)
      if moved > 0 {
        try run(
          MoveLateCall(
            keySpace: keys, bucket: 0, fence: fence, epoch: standing,
            through: sequences[moved - 1], unknown: Array(sequences.prefix(moved))))
      }
      try stack.startSidecar(0)
      try stack.waitReady(0)
      try Self.checkStranded(stack, tally)
    }

    /// One of two sidecars is cut off from the ledger and writes on after the other has read and
    /// presented the outbox, until the next epoch is opened; then it is killed.
    @Test func whatACutOffSidecarWroteAfterTheOutboxWasReadIsDelivered() throws {
      var random = SeededRandom.fromEnvironment("cut off and killed")
      let stack = try Stack(
        .init(
          sidecars: 2, buckets: 1, cutOff: 1, extra: LiveTests.ExactLimit.patient,
          accounts: ["acme": "big"]))
      let proxy = try #require(stack.ledgerProxy)
      try Audit.touch(stack, ["acme"])
      proxy.mode = .refuse
      try eventually(within: .seconds(20), "the ledger link is down") {
        stack.metric("tollgate_ledger_up", sidecar: 1) == 0
      }
      var load = LoadDriver.Options(
        threads: 4, subjects: ["acme/alice", "acme/bob"], features: ["calls"], amounts: 1...5)
      load.pause = .milliseconds(1)
      load.recordsMayBeLost = true
      let driver = LoadDriver([stack.endpoint(1)], load, seed: &random)
      func pass(_ what: String) throws {
        let before = driver.soFar.decided
        try eventually(within: .seconds(20), "load passes \(what)") {
          driver.soFar.decided > before + 50
        }
      }
      try pass("under the old epoch")
      // The living sidecar has answered long before the other one does.
      _ = try Self.closeEpoch(stack) { try pass("while the ledger waits") }
      let keys = KeySpace(deployment: try Name("live"), map: BucketMap(buckets: 1))
      let redis = try stack.redis.connect()
      try eventually(within: .seconds(20), "the next epoch is open and settled") {
        try redis.command("HGET", keys.meta(0), "lm").string ?? "0" != "0"
          && redis.command("HGET", keys.meta(0), "lt").string == ""
      }
      let tally = try driver.finish()
      stack.sidecar(1)?.kill()
      try Audit.check(
        stack, tally, subjects: ["acme/alice", "acme/bob"], lossesAllowed: true)
      let moved = stack.metric("tollgate_late_reposted_total", sidecar: 0) ?? 0
      print("cut off and killed: \(moved) posted anew")
      #expect(moved > 0, "nothing was written meanwhile: the test tests nothing")
    }

    @Test func killedAgainAndAgainWhileItRecoversItLosesNothing() throws {
      var random = SeededRandom.fromEnvironment("killed while it recovers")
      var tally = LoadTally()
      let stack = try Self.stranded(&tally)
      for _ in 0..<8 {
        try stack.startSidecar(0)
        Thread.sleep(forTimeInterval: random.unit() * 0.4)
        stack.sidecar(0)?.kill()
      }
      try stack.startSidecar(0)
      try stack.waitReady(0)
      try Self.checkStranded(stack, tally)
    }
  }
}
