// What an operator relies on around delivery: a sidecar that is told to go leaves no delta behind,
// and what nobody can deliver any more is a number on a screen.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Delivery {
    /// One frame of operations of one unit each; all are admitted.
    private func consume(
      _ count: Int, _ stack: Stack, _ tally: inout LoadTally, _ random: inout SeededRandom
    ) throws {
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      let records = try (0..<count).map { _ in
        OperationRecord(
          id: OperationID(time: time, using: &random), subject: try Subject("acme/m"),
          items: [Item(feature: try Name("tokens"), amount: 1)])
      }
      for answer in try connection.operate(records, deadline: 5000) {
        guard case .decision(let decision) = answer, decision.isAllowed else {
          Issue.record("\(answer)")
          continue
        }
        tally.admitted["acme tokens", default: 0] += 1
      }
    }

    @Test func sigtermHandsOverWhatIsUndeliveredWhereTheLedgerIsLinked() throws {
      var random = SeededRandom.fromEnvironment("drain, linked")
      let stack = try Stack(
        .init(sidecars: 1, cutOff: 0, extra: "outbox: {batch: 50}", accounts: ["acme": "big"]))
      var tally = LoadTally()
      try consume(1, stack, &tally, &random)
      // Six batches, each on its way for a while: none can be through when the signal comes.
      stack.ledgerProxy?.delay(toServer: .milliseconds(150))
      try consume(300, stack, &tally, &random)
      let child = try #require(stack.sidecar(0))
      child.signal(SIGTERM)
      let delivered = try Audit.totals(stack)["acme tokens"] ?? 0
      #expect(delivered < 301, "all was delivered before the signal: the test tests nothing")
      #expect(try child.wait(within: .seconds(15)) == .exited(0))
      #expect(try Audit.totals(stack)["acme tokens"] == 301)
      print("drain: \(delivered) of 301 delivered at SIGTERM, all at exit")
      stack.ledgerProxy?.delay()
      try stack.startSidecar(0)
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }

    @Test func sigtermWithoutALedgerLeavesDeltasInTheOutboxForTheNext() throws {
      var random = SeededRandom.fromEnvironment("drain, cut off")
      let stack = try Stack(
        .init(
          sidecars: 1, cutOff: 0, extra: "limits: {drain_ms: 4000}", accounts: ["acme": "big"]))
      var tally = LoadTally()
      try consume(1, stack, &tally, &random)
      try eventually(within: .seconds(10), "the first is delivered") {
        try Audit.totals(stack)["acme tokens"] == 1
      }
      stack.ledgerProxy?.mode = .refuse
      try eventually(within: .seconds(10), "the ledger is away") {
        stack.metric("tollgate_ledger_up", sidecar: 0) == 0
      }
      try consume(200, stack, &tally, &random)
      let child = try #require(stack.sidecar(0))
      child.signal(SIGTERM)
      #expect(try child.wait(within: .seconds(8)) == .exited(0))
      #expect(try Audit.totals(stack)["acme tokens"] == 1)
      stack.ledgerProxy?.mode = .forward
      try stack.startSidecar(0)
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }

    /// Until somebody has looked at a loss, every status is degraded; then none is.
    private func acknowledge(_ stack: Stack) throws {
      func losses(_ words: [String]) throws -> Stack.CommandResult {
        let child = try ChildProcess(
          stack.binary, ["ledger", "losses"] + words + ["--database", stack.database])
        let status = try child.wait(within: .seconds(30))
        return .init(
          status: status, output: child.standardOutput, errors: child.standardError)
      }
      let before = try stack.cli(["status"])
      #expect(before.status == .exited(1))
      #expect(before.output.contains("5 losses (0 acknowledged)"))
      let listed = try losses(["list"])
      #expect(listed.status == .exited(1))
      let id = try #require(
        listed.output.split(separator: "\n").last?.split(separator: " ").first.map { String($0) })
      let unknown = try losses(["acknowledge", id, "9/9/9", "--reason", "r"])
      #expect(unknown.status == .exited(4) && unknown.errors.contains("no loss 9/9/9"))
      #expect(try losses(["acknowledge", "x", "--reason", "r"]).status == .exited(2))
      #expect(try losses(["acknowledge", id]).status == .exited(2), "without a reason")
      let done = try losses(["acknowledge", id, "--reason", "incident 7", "--actor", "ann"])
      #expect(done.status == .exited(0) && done.output == "1 acknowledged\n")
      let after = try losses([])
      #expect(after.status == .exited(0) && after.output.contains("by ann: incident 7"))
      try eventually(within: .seconds(25), every: .milliseconds(250), "status is in order") {
        let status = try stack.cli(["status"])
        return status.status == .exited(0) && status.output.contains("5 losses (5 acknowledged)")
      }
      #expect(stack.metric("tollgate_ledger_lost_acknowledged_entries", sidecar: 0) == 5)
    }

    /// A hole that nobody can fill is written into the books, and every sidecar shows it.
    @Test func whatTheLedgerClosedAsLostIsOnEverySidecarsGauge() throws {
      var random = SeededRandom.fromEnvironment("losses")
      let stack = try Stack(.init(sidecars: 1, buckets: 1, accounts: ["acme": "big"]))
      var tally = LoadTally()
      try consume(3, stack, &tally, &random)
      try eventually(within: .seconds(10), "all is delivered") {
        try Audit.totals(stack)["acme tokens"] == 3
      }
      #expect(stack.metric("tollgate_ledger_lost_entries", sidecar: 0) == 0)
      // Another sidecar has seen five entries more in Redis than anybody holds.
      let witness = try WireConnection(
        .unix(stack.directory.file("ledger.sock")), token: "ledger-token", role: .ledger)
      var buffer = ByteBuffer()
      buffer.writeFrame(
        Link(
          deployment: Deployment(id: try Name("live"), buckets: 1, mode: .dev),
          sidecar: try Name("witness"), incarnation: 1), correlation: 90)
      try witness.send(buffer)
      let linked = try Linked.decode(try witness.frame(.linked, within: 5000))
      let bucket = try #require(linked.buckets.first { $0.bucket == 0 })
      buffer.clear()
      buffer.writeFrame(
        Recover(
          bucket: 0, epoch: bucket.epoch, metaEpoch: bucket.epoch,
          metaSequence: bucket.cursor + 5), correlation: 0)
      try witness.send(buffer)
      _ = try PresentRequest.decode(try witness.frame(.presentRequest, within: 5000))
      buffer.clear()
      buffer.writeFrame(Present(bucket: 0, epoch: bucket.epoch, entries: []), correlation: 0)
      try witness.send(buffer)
      let notice = try EpochNotice.decode(try witness.frame(.epoch, within: 8000))
      #expect(notice.previousLast == bucket.cursor + 5)
      try eventually(within: .seconds(25), every: .milliseconds(100), "the gauge shows the loss") {
        stack.metric("tollgate_ledger_lost_entries", sidecar: 0) == 5
      }
      #expect(try Audit.verify(stack).lostSequences == 5)
      try acknowledge(stack)
      // And the bucket goes on.
      try eventually(within: .seconds(15), "the bucket is open again") {
        (stack.metric("tollgate_buckets_fenced", sidecar: 0) ?? 1) == 0
      }
      try Audit.touch(stack, ["acme/m"], feature: "tokens")
      try consume(4, stack, &tally, &random)
      try Audit.check(stack, tally, subjects: ["acme/m"], lossesAllowed: true)
    }
  }
}
