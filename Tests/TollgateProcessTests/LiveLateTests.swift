// Deltas that cannot take the usual way: their epoch was closed while their sidecar was cut off from
// the ledger, their operation is older than the dedupe window, or the one who was to take their
// second effect back was killed. Nothing is lost and nothing counts twice (promise 3).

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateRedis
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Late {
    static let subjects = ["acme/alice", "acme/bob", "beta", "gamma/x", "delta/d"]
    static let accounts = ["acme": "big", "beta": "big", "gamma": "big", "delta": "big"]

    private static func now() -> WallTime {
      WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
    }

    private static func record(
      _ subject: String, _ items: [(String, Int64)], at time: WallTime,
      _ random: inout SeededRandom
    ) throws -> OperationRecord {
      OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject(subject),
        items: try items.map { Item(feature: try Name($0.0), amount: $0.1) })
    }

    private func link(_ stack: Stack, _ sidecar: Int, isUp: Bool) throws {
      try eventually(within: .seconds(20), "the ledger link of \(sidecar) is up: \(isUp)") {
        stack.metric("tollgate_ledger_up", sidecar: sidecar) == (isUp ? 1 : 0)
      }
    }

    /// One of two sidecars cannot reach the ledger when Redis loses everything, and so presents
    /// nothing when the other heals the buckets.
    @Test func whatACutOffSidecarLetThroughIsDeliveredAlthoughRedisLostIt() throws {
      var random = SeededRandom.fromEnvironment("cut off")
      let stack = try Stack(.init(sidecars: 2, cutOff: 1, accounts: Self.accounts))
      let proxy = try #require(stack.ledgerProxy)
      var load = LoadDriver.Options(
        threads: 6, subjects: Self.subjects, features: ["calls", "tokens"], amounts: 1...5)
      load.pause = .milliseconds(2)
      load.recordsMayBeLost = true
      let driver = LoadDriver(stack.endpoints, load, seed: &random)
      func pass(_ count: Int, _ what: String) throws {
        let before = driver.soFar.decided
        try eventually(within: .seconds(40), "load passes \(what)") {
          driver.soFar.decided > before + count
        }
      }
      for round in 0..<3 {
        try pass(100, "before loss \(round)")
        proxy.mode = .refuse
        try link(stack, 1, isUp: false)
        try pass(100, "while cut off, \(round)")
        try stack.redis.connect().command("FLUSHALL")
        try pass(100, "after loss \(round)")
        // In the last round nobody asks for anything new once the link is back.
        if round == 2 { break }
        proxy.mode = .forward
        try link(stack, 1, isUp: true)
      }
      let tally = try driver.finish()
      let late = stack.metric("tollgate_late_deltas", sidecar: 1)
      proxy.mode = .forward
      try link(stack, 1, isUp: true)
      try eventually(within: .seconds(20), "every late delta is on record or in the outbox") {
        stack.metric("tollgate_late_deltas", sidecar: 1) == 0
      }
      try Audit.check(stack, tally, subjects: Self.subjects, lossesAllowed: true)
      let reposted = stack.metric("tollgate_late_reposted_total", sidecar: 1) ?? 0
      print("late: \(late ?? -1) before the last link, \(reposted) posted anew")
      #expect(reposted > 0, "nothing was late: the test tests nothing")
      for index in 0..<2 {
        #expect(stack.metric("tollgate_retained_dropped_total", sidecar: index) == 0)
      }
    }

    /// The cut-off sidecar is told to go before it ever sees the ledger again: what only it holds it
    /// leaves in the outbox, for the other to deliver.
    @Test func aCutOffSidecarThatGoesLeavesItsLateDeltasInTheOutbox() throws {
      var random = SeededRandom.fromEnvironment("cut off and gone")
      let stack = try Stack(
        .init(
          sidecars: 2, cutOff: 1, extra: "limits: {drain_ms: 5000}", accounts: Self.accounts))
      let proxy = try #require(stack.ledgerProxy)
      var load = LoadDriver.Options(
        threads: 6, subjects: Self.subjects, features: ["calls", "tokens"], amounts: 1...5)
      load.pause = .milliseconds(2)
      load.recordsMayBeLost = true
      let driver = LoadDriver(stack.endpoints, load, seed: &random)
      func pass(_ count: Int, _ what: String) throws {
        let before = driver.soFar.decided
        try eventually(within: .seconds(40), "load passes \(what)") {
          driver.soFar.decided > before + count
        }
      }
      proxy.mode = .refuse
      try link(stack, 1, isUp: false)
      try pass(200, "while cut off")
      try stack.redis.connect().command("FLUSHALL")
      try pass(200, "after the loss")
      let tally = try driver.finish()
      try Audit.touch(stack, Self.subjects)
      let child = try #require(stack.sidecar(1))
      child.signal(SIGTERM)
      #expect(try child.wait(within: .seconds(9)) == .exited(0))
      try Audit.check(stack, tally, subjects: Self.subjects, lossesAllowed: true)
      let books = try Audit.verify(stack)
      print("cut off and gone: \(books.lostSequences) made good, \(books.duplicates) twice")
      #expect(books.lostSequences + books.duplicates > 0, "nothing was late: nothing was tested")
    }

    /// Changes made through a sidecar, then lost by Redis before anybody delivered them: in force
    /// again, and in the ledger's history.
    @Test func changesOfConfigurationThatRedisLostAreInForceAgain() throws {
      var random = SeededRandom.fromEnvironment("late changes")
      let stack = try Stack(
        .init(sidecars: 2, cutOff: 1, accounts: ["acme": "big", "beta": "big"]))
      let proxy = try #require(stack.ledgerProxy)
      let connection = try WireConnection(stack.endpoint(1), token: Stack.checkToken)
      let record = try Self.record("acme/m", [("calls", 5)], at: Self.now(), &random)
      guard case .decision(let decision)? = try connection.operate([record], deadline: 2000).first
      else { throw StackFailure(description: "no decision") }
      #expect(decision.isAllowed)
      try Audit.touch(stack, ["beta"])
      try eventually(within: .seconds(10), "the units are delivered") {
        try Audit.totals(stack)["acme calls"] == 5
      }
      // What a command answers, without blanks; empty where it fails.
      func shown(_ arguments: [String], _ sidecar: Int = 0) throws -> String {
        let result = try stack.cli(arguments + ["--json"], sidecar: sidecar)
        return result.status == .exited(0) ? result.output.filter { !$0.isWhitespace } : ""
      }
      stack.ledger?.kill()
      for index in 0..<2 { try link(stack, index, isUp: false) }
      let why = ["--reason", "late"]
      try stack.command(["account", "set", "beta", "--plan", "small"] + why, sidecar: 1)
      try stack.command(["bypass", "tokens", "--for", "30m"] + why, sidecar: 1)
      try stack.command(["reset", "acme", "calls.month"] + why, sidecar: 1)
      #expect(try shown(["usage", "acme"]).contains("\"forgiven\":5"))
      let version = stack.metric("tollgate_config_version", sidecar: 1)
      try eventually(within: .seconds(10), "the other sidecar has heard of the bypass") {
        stack.metric("tollgate_config_version", sidecar: 0) == version
      }
      try stack.redis.connect().command("FLUSHALL")
      proxy.mode = .refuse
      try stack.startLedger()
      try link(stack, 0, isUp: true)
      try eventually(within: .seconds(20), "all is as the ledger knew it") {
        // The bypass is not lost: the other sidecar had heard of it, and put it back.
        try shown(["account", "show", "beta"]).contains("\"plan\":\"big\"")
          && shown(["bypass", "list"]).contains("tokens")
      }
      try Audit.touch(stack, ["acme/m", "beta"])
      proxy.mode = .forward
      try link(stack, 1, isUp: true)
      try eventually(within: .seconds(20), "no change is late any more") {
        stack.metric("tollgate_late_deltas", sidecar: 1) == 0
      }
      for index in 0..<2 {
        try eventually(within: .seconds(10), "sidecar \(index) shows what was changed") {
          try shown(["account", "show", "beta"], index).contains("\"plan\":\"small\"")
            && shown(["bypass", "list"], index).contains("tokens")
        }
      }
      #expect(try shown(["usage", "acme"]).contains("\"forgiven\":5"))
      #expect((stack.metric("tollgate_late_reposted_total", sidecar: 1) ?? 0) >= 3)
      var tally = LoadTally()
      tally.admitted["acme calls"] = 5
      try Audit.check(stack, tally, subjects: ["acme/m", "beta"], lossesAllowed: true)
    }

    /// The reply to a decision was lost, its repetition was answered from the record, and then Redis
    /// lost record, counter and delta: the sidecar has them from the record's answer.
    @Test func aDeltaKnownFromAReplayOnlyIsRetained() throws {
      var random = SeededRandom.fromEnvironment("replayed")
      let stack = try Stack(
        .init(
          sidecars: 1, proxies: true, extra: "limits: {redis_slow_ms: 5000}",
          accounts: ["acme": "big"]))
      let ledger = try #require(stack.ledgerProxy)
      let redis = try #require(stack.redisProxy)
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      func consume(_ amount: Int64) throws -> Decision? {
        let record = try Self.record("acme/m", [("tokens", amount)], at: Self.now(), &random)
        let answer = try connection.operate([record], deadline: 8000).first
        guard case .decision(let decision)? = answer else { return nil }
        return decision
      }
      #expect(try consume(1)?.reason == .allowed)
      ledger.mode = .refuse
      try link(stack, 0, isUp: false)
      // Heartbeats pass on other connections: the reply that is lost may be one of theirs.
      var replayed = false
      var units: Int64 = 1
      for _ in 0..<20 where !replayed {
        redis.cutNow()
        let decision = try #require(try consume(7))
        #expect(decision.reason == .allowed)
        units += 7
        replayed = decision.replayed
      }
      #expect(replayed, "no reply of a decision was lost: the test tests nothing")
      try stack.redis.connect().command("FLUSHALL")
      ledger.mode = .forward
      try link(stack, 0, isUp: true)
      try eventually(within: .seconds(20), "the bucket is healed") {
        try consume(0)?.source == .redis
      }
      var tally = LoadTally()
      tally.admitted["acme tokens"] = units
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }

    /// The same for what a cancel bore: its reversal is told by a repetition only.
    @Test func aReversalKnownFromAReplayOnlyIsRetained() throws {
      var random = SeededRandom.fromEnvironment("replayed cancel")
      let stack = try Stack(
        .init(
          sidecars: 1, proxies: true, extra: "limits: {redis_slow_ms: 5000}",
          accounts: ["acme": "big"]))
      let ledger = try #require(stack.ledgerProxy)
      let redis = try #require(stack.redisProxy)
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      func send(_ record: OperationRecord, _ opcode: Opcode) throws -> Decision? {
        let answer = try connection.operate([record], as: opcode, deadline: 8000).first
        guard case .decision(let decision)? = answer else { return nil }
        return decision
      }
      func record(_ amount: Int64) throws -> OperationRecord {
        try Self.record("acme/m", [("tokens", amount)], at: Self.now(), &random)
      }
      #expect(try send(try record(1), .consume)?.reason == .allowed)
      ledger.mode = .refuse
      try link(stack, 0, isUp: false)
      var replayed = false
      for _ in 0..<100 where !replayed {
        let operation = try record(7)
        #expect(try send(operation, .consume)?.isAllowed == true)
        // A cancel takes two calls: the reply that is lost must be the second's.
        redis.cut(.random(seed: random.next(), meanClientBytes: 700))
        var decision = try send(operation, .cancel)
        redis.cut(.never)
        try eventually(within: .seconds(10), "the cancel has an answer") {
          if decision == nil { decision = try send(operation, .cancel) }
          return decision != nil
        }
        #expect(decision?.reason == .cancelled)
        replayed = decision?.replayed ?? false
      }
      #expect(replayed, "no reply of an annulment was lost: the test tests nothing")
      try stack.redis.connect().command("FLUSHALL")
      ledger.mode = .forward
      try link(stack, 0, isUp: true)
      try eventually(within: .seconds(20), "the bucket is healed") {
        try send(try record(0), .consume)?.source == .redis
      }
      var tally = LoadTally()
      tally.admitted["acme tokens"] = 1
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }

    @Test func postsOlderThanTheDedupeWindowAreCountedOnce() throws {
      var random = SeededRandom.fromEnvironment("older than the window")
      let stack = try Stack(
        .init(
          sidecars: 1, cutOff: 0, extra: "dedupe: {window_ms: 8000}",
          accounts: ["ajar": "open", "acme": "big"]))
      let proxy = try #require(stack.ledgerProxy)
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      var tally = LoadTally()
      func ask(
        _ record: OperationRecord, _ opcode: Opcode = .consume
      ) throws -> DecisionRecord? {
        try connection.operate(
          [record], as: opcode, deadline: 3000, flags: opcode == .post ? .clientFallback : []
        ).first
      }
      func reason(_ record: OperationRecord, _ opcode: Opcode = .post) throws -> Reason? {
        guard case .decision(let decision)? = try ask(record, opcode) else { return nil }
        return decision.reason
      }

      // Let through by this sidecar, and posted when it is older than the window.
      let known = try Self.record("acme/m", [("tokens", 5)], at: Self.now(), &random)
      #expect(try reason(known, .consume) == .allowed)
      #expect(
        try reason(
          try Self.record("ajar/m", [("calls", 1)], at: Self.now(), &random), .consume) == .allowed)
      try eventually(within: .seconds(10), "the first deltas are delivered") {
        try Audit.totals(stack) == ["acme tokens": 5, "ajar calls": 1]
      }
      try stack.redis.stop()
      for _ in 0..<10 {
        #expect(
          try reason(
            try Self.record("ajar/m", [("calls", 2)], at: Self.now(), &random), .consume)
            == .allowedFailOpen)
      }
      let last = Self.now()
      try eventually(within: .seconds(20), every: .milliseconds(100), "the window has passed") {
        Self.now() - last > 8_500
      }
      try stack.redis.start()
      try stack.waitReady(0)
      try eventually(within: .seconds(20), "what was let through is posted") {
        stack.metric("tollgate_fallback_posted_total", sidecar: 0) == 10
      }
      #expect(stack.metric("tollgate_late_posts_total", sidecar: 0) == 10)
      // A gauge is written each round of the poster.
      try eventually(within: .seconds(5), "nothing is pending") {
        stack.metric("tollgate_fallback_pending", sidecar: 0) == 0
      }
      tally.admitted = ["ajar calls": 21, "acme tokens": 5]

      // A client's POST, long after; in one body several features.
      let old = try Self.record(
        "acme/m", [("tokens", 7), ("calls", 3), ("pings", 1)], at: Self.now() + (-600_000), &random)
      #expect(try reason(old) == .allowedPosted)
      tally.admitted["acme tokens", default: 0] += 7
      tally.admitted["acme calls"] = 3
      // Repeated before the ledger has it, and after; and one that Redis had decided in its time.
      for _ in 0..<3 { #expect(try reason(old) == .allowedPosted) }
      try eventually(within: .seconds(10), "the posted deltas are in the ledger") {
        try Audit.totals(stack)["acme calls"] == 3
      }
      for record in [old, known] {
        guard case .decision(let decision)? = try ask(record, .post) else {
          Issue.record("no decision")
          continue
        }
        #expect(decision.reason == .allowedPosted && decision.replayed)
      }
      // Nothing can be counted for a feature that the catalog does not know, as in the window; and
      // the operation is one: nothing else of it is.
      let unknown = try Self.record(
        "acme/m", [("nowhere", 3), ("calls", 1)], at: Self.now() + (-600_000), &random)
      #expect(try reason(unknown) == .unknownFeature)
      // What a counter cannot hold is refused for good, as in the window, and not for ever unknown.
      let huge = try Self.record(
        "acme/m", [("pings", 1), ("tokens", Quantity.maximum)], at: Self.now() + (-600_000),
        &random)
      guard case .error(.amountOutOfRange, _)? = try ask(huge, .post) else {
        Issue.record("a POST that no counter can hold was answered \(try ask(huge, .post) as Any)")
        return
      }
      // A CONSUME would be a new admission: it stays refused.
      let consumed = try Self.record(
        "acme/m", [("tokens", 7)], at: Self.now() + (-600_000), &random)
      guard case .error(.idTooOld, _)? = try ask(consumed, .consume) else {
        Issue.record("a CONSUME beyond the window was not refused")
        return
      }

      // Without the ledger nobody can tell: an error that says so, and nothing is lost.
      proxy.mode = .refuse
      try link(stack, 0, isUp: false)
      let pending = try Self.record("acme/m", [("tokens", 9)], at: Self.now() + (-60_000), &random)
      guard case .error(.unavailable, let text)? = try ask(pending, .post) else {
        Issue.record("a POST that nobody can judge was answered")
        return
      }
      #expect(text.contains("ledger"))
      proxy.mode = .forward
      try link(stack, 0, isUp: true)
      try eventually(within: .seconds(20), "the repeated POST is recorded") {
        try reason(pending) == .allowedPosted
      }
      tally.admitted["acme tokens", default: 0] += 9
      try Audit.check(stack, tally, subjects: ["acme/m", "ajar/m"])
    }

    /// The one who delivered duplicates was killed before their second effect on the counters was
    /// taken back; the ledger is ahead of what Redis has noted.
    @Test func aShipperKilledBeforeItsReversalsIsMadeGoodByTheNext() throws {
      var random = SeededRandom.fromEnvironment("killed before its reversals")
      // Batches of one entry: the ledger stands more than a batch ahead.
      let stack = try Stack(
        .init(sidecars: 1, buckets: 1, extra: "outbox: {batch: 1}", accounts: ["acme": "big"]))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      var tally = LoadTally()
      for amount: Int64 in 1...4 {
        let record = try Self.record("acme/m", [("tokens", amount)], at: Self.now(), &random)
        guard case .decision(let decision)? = try connection.operate([record], deadline: 2000).first
        else { throw StackFailure(description: "no decision") }
        #expect(decision.isAllowed)
        tally.admitted["acme tokens", default: 0] += amount
      }
      let redis = try stack.redis.connect()
      let keys = KeySpace(deployment: try Name("live"), map: BucketMap(buckets: 1))
      func meta(_ field: String) throws -> String {
        try redis.command("HGET", keys.meta(0), field).string ?? ""
      }
      // The account's configuration is the first entry.
      try eventually(within: .seconds(10), "all is delivered and noted") {
        let (noted, last) = (try meta("ack"), try meta("seq"))
        return noted == "5" && last == "5"
      }
      stack.sidecar(0)?.kill()

      // Two of the deltas once more, as a repost whose reply was lost leaves them.
      let parts = try meta("f").split(separator: " ").map(String.init)
      let epoch = try #require(Int64(parts[1]))
      let fence = Fence(
        deployment: try Name("live"), epoch: epoch, runID: parts[2], replicationID: parts[3],
        seenSequence: 5)
      var duplicates: [OutboxEntry] = []
      for sequence: Int64 in [2, 4] {
        let position = "\(epoch)-\(sequence)"
        let found = try redis.command("XRANGE", keys.outbox(0), position, position)
        let fields = try #require(found.elements.first?.elements.last?.elements)
        let (numbers, body) = (fields[1].bytes ?? [], fields[3].bytes ?? [])
        let operation = try #require(OperationID(bytes: numbers.prefix(16)))
        let amount = sequence - 1
        var entry = OutboxEntry(
          sequence: 0, kind: .usage, id: DeltaID(operation: operation, index: 0),
          time: operation.time, actual: amount, charged: amount, absorbed: 0, body: body)
        let usage = try UsageBody.decode(body)
        let call = RepostCall(
          keySpace: keys, fence: fence, entry: entry, subject: usage.subject,
          feature: usage.feature, counts: usage.counts(charged: entry.charged))
        var words = [Array("EVAL".utf8), ScriptLibrary.shared.source(.repost)]
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
        entry.sequence = 6 + Int64(duplicates.count)
        #expect(reply.elements.first?.integer == 0, "\(reply)")
        duplicates.append(entry)
      }
      #expect(try meta("seq") == "7")

      // Delivered by somebody who hears which are duplicates and takes nothing back.
      do {
        let dead = try WireConnection(
          .unix(stack.directory.file("ledger.sock")), token: "ledger-token", role: .ledger)
        var buffer = ByteBuffer()
        buffer.writeFrame(
          Link(
            deployment: Deployment(id: try Name("live"), buckets: 1, mode: .dev),
            sidecar: try Name("dead"), incarnation: 1), correlation: 90)
        try dead.send(buffer)
        _ = try dead.frame(.linked, within: 5000)
        for entry in duplicates {
          buffer.clear()
          buffer.writeFrame(
            DeltaBatch(bucket: 0, epoch: epoch, previous: entry.sequence - 1, entries: [entry]),
            correlation: UInt64(entry.sequence))
          try dead.send(buffer)
          let reply = try BatchReply.decode(try dead.frame(.batchReply, within: 5000))
          #expect(reply.status == .ack && reply.cursor == entry.sequence)
          #expect(reply.duplicates == [entry.id])
        }
      }
      try stack.startSidecar(0)
      try stack.waitReady(0)
      try Audit.check(stack, tally, subjects: ["acme/m"], within: .seconds(15))
      #expect(stack.metric("tollgate_duplicates_absorbed_total", sidecar: 0) == 2)
    }
  }
}
