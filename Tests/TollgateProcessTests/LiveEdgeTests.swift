// The edge of a running sidecar while what stands behind it is frozen: a stop ends within its grace
// time, an admin request is answered by its deadline, and clients hear of new failure policies on
// the connections they have (promises 6, 8).

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Edge {
    private static func record(
      _ subject: String, _ random: inout SeededRandom
    ) throws -> OperationRecord {
      let time = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
      return OperationRecord(
        id: OperationID(time: time, using: &random), subject: try Subject(subject),
        items: [Item(feature: try Name("calls"), amount: 1)])
    }

    /// Which of them stand still while the sidecar is told to go.
    enum Frozen: String, CaseIterable { case redis, ledger, both }

    static let drainMilliseconds = 2000

    @Test(arguments: Frozen.allCases)
    func aStopEndsWithinItsGraceTime(_ frozen: Frozen) throws {
      var random = SeededRandom.fromEnvironment("drain \(frozen)")
      let stack = try Stack(
        .init(
          sidecars: 1, extra: "limits: {drain_ms: \(Self.drainMilliseconds)}",
          accounts: ["acme": "big"]))
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      _ = try connection.operate([try Self.record("acme/m", &random)], deadline: 5000)
      let ledger = try #require(stack.ledger)
      if frozen != .redis { ledger.signal(SIGSTOP) }
      if frozen != .ledger { try stack.redis.pause() }
      // Something for the drain to wait for: a request in flight longer than the grace time, and
      // (with the ledger frozen) a delta that cannot be delivered.
      var buffer = ByteBuffer()
      buffer.writeFrame(
        .consume, OperationBatch([try Self.record("acme/m", &random)]),
        correlation: connection.nextCorrelation(), deadlineMilliseconds: 20_000)
      try connection.send(buffer)
      try eventually(within: .seconds(10), "it is in flight or answered") {
        (stack.metric("tollgate_in_flight", sidecar: 0) ?? 0) >= 1 || frozen == .ledger
      }
      let child = try #require(stack.sidecar(0))
      let began = ContinuousClock.now
      child.signal(SIGTERM)
      #expect(try child.wait(within: .seconds(20)) == .exited(0))
      let took = ContinuousClock.now - began
      print("drain with \(frozen) frozen: exit 0 after \(took)")
      // Beyond the grace time there is only the end of the process itself.
      #expect(took < .milliseconds(Self.drainMilliseconds + 400))
      stack.redis.resume()
      ledger.signal(SIGCONT)
    }

    private static func ask(
      _ connection: WireConnection, _ method: AdminMethod, _ document: String, deadline: UInt32
    ) throws -> (status: ErrorCode?, document: Document, took: Duration) {
      let id = connection.nextCorrelation()
      var buffer = ByteBuffer()
      buffer.writeFrame(
        AdminRequest(method, body: Array(document.utf8)), correlation: id,
        deadlineMilliseconds: deadline)
      let began = ContinuousClock.now
      try connection.send(buffer)
      let frame = try connection.frame(.adminReply, within: Int(deadline) + 15_000)
      let took = ContinuousClock.now - began
      #expect(frame.header.correlation == id)
      let reply = try AdminReply.decode(frame)
      return (reply.status, try Document(json: reply.body), took)
    }

    @Test func anAdminRequestIsAnsweredByItsDeadline() throws {
      var random = SeededRandom.fromEnvironment("admin deadline")
      let stack = try Stack(.init(sidecars: 1, accounts: ["acme": "big"]))
      let check = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      _ = try check.operate([try Self.record("acme/m", &random)], deadline: 5000)
      let admin = try WireConnection(stack.endpoint(0), token: Stack.adminToken, role: .admin)
      let ledger = try #require(stack.ledger)

      ledger.signal(SIGSTOP)
      let read = try Self.ask(
        admin, .reconcile, "{\"account\":\"acme\",\"limit\":10,\"verbose\":false}", deadline: 300)
      ledger.signal(SIGCONT)
      #expect(read.status == .deadlineExceeded)
      #expect(read.document["name"] == .string("DEADLINE_EXCEEDED"))

      let id = try Self.record("acme", &random).id.hex
      let change =
        "{\"account\":\"acme\",\"plan\":\"small\","
        + "\"change\":{\"actor\":\"test\",\"operation\":\"\(id)\"}}"
      try stack.redis.pause()
      let write = try Self.ask(admin, .accountSet, change, deadline: 300)
      stack.redis.resume()
      #expect(write.status == .outcomeUnknown)
      guard case .string(let fix)? = write.document["fix"] else {
        throw StackFailure(description: "no fix in \(write.document.json())")
      }
      #expect(fix.contains(id))
      print("admin deadline of 300 ms: read after \(read.took), change after \(write.took)")
      #expect(read.took < .milliseconds(600))
      #expect(write.took < .milliseconds(600))

      // Whatever became of the first attempt, the same id makes it once and says so.
      try eventually(within: .seconds(20), "the change is known") {
        try Self.ask(admin, .accountSet, change, deadline: 5000).status == nil
      }
      let shown = try Self.ask(admin, .accountShow, "{\"account\":\"acme\"}", deadline: 5000)
      #expect(shown.document["plan"] == .string("small"))
      let again = try Self.ask(admin, .accountSet, change, deadline: 5000)
      let result = again.document["result"]
      #expect(result == .string("replayed") || result == .string("unchanged"))
    }

    /// DESIGN 5: whoever asks about names that are no accounts must not fill Redis for ever.
    @Test func lookingAtUnknownAccountsLeavesNothingThatStays() throws {
      var random = SeededRandom.fromEnvironment("unknown accounts")
      let catalog = Stack.catalog.replacing(
        "features:", with: "unknown_account: {plan: small}\nfeatures:", maxReplacements: 1)
      let stack = try Stack(.init(sidecars: 1, persistence: .none, catalog: catalog))
      let redis = try stack.redis.connect()
      func staying() throws -> Set<String> {
        var keys: Set<String> = []
        for key in try redis.command("KEYS", "*:a:*").strings
        where try redis.command("PTTL", key).string == "-1" { keys.insert(key) }
        return keys
      }
      #expect(try staying() == [])
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let records = try (0..<50).map { try Self.record("probe\($0)/m", &random) }
      for answer in try connection.operate(records, as: .check, deadline: 5000) {
        guard case .decision(let decision) = answer else {
          throw StackFailure(description: "\(answer)")
        }
        #expect(decision.isAllowed)
      }
      let rows = (0..<20).map { "row\($0),big" }.joined(separator: "\n")
      let file = try stack.directory.write("rows.csv", rows + "\n")
      try stack.command(["account", "import", file, "--dry-run", "--reason", "test"])
      try stack.command(["account", "set", "dry", "--plan", "big", "--dry-run"])
      try stack.command([
        "reset", "dry2", "calls.month", "--reason", "test", "--dry-run",
      ])
      try stack.command(["usage", "look"])
      try stack.command(["account", "show", "look2"])
      #expect(try staying() == [])
      #expect(try redis.command("KEYS", "*:a:probe0").strings.count == 1)

      // What is counted stays: the same account, used.
      let used = try connection.operate([try Self.record("probe0/m", &random)], deadline: 5000)
      guard case .decision(let decision)? = used.first else {
        throw StackFailure(description: "\(used)")
      }
      #expect(decision.isAllowed && decision.items.first?.settled == 1)
      #expect(try staying().count == 1)
      #expect(try stack.command(["account", "list", "--json"]).contains("probe0"))
      #expect(!(try stack.command(["account", "list", "--json"]).contains("probe1")))
    }

    @Test func aConnectedClientHearsOfNewFailurePolicies() throws {
      let stack = try Stack(.init(sidecars: 1, persistence: .none))
      // The answer to a hello comes first, whatever changes at that moment.
      for _ in 0..<20 {
        let each = try WireConnection(stack.endpoint(0))
        var hello = ByteBuffer()
        hello.writeFrame(
          Hello(role: .check, client: "first", token: Stack.checkToken), correlation: 5)
        try each.send(hello)
        #expect(try each.next(within: 5000).header.correlation == 5)
      }
      let connection = try WireConnection(stack.endpoint(0), token: Stack.checkToken)
      let calls = try Name("calls")
      #expect(connection.welcome?.policies.first { $0.feature == calls }?.policy == .closed)
      let catalog = """
        levels: [account, member]
        features:
          calls: {metered: true, importance: money, unit: call}
          tokens: {metered: true, importance: money, unit: token}
          pings: {metered: false, importance: volume, unit: ping}
        plans:
          open:
            calls:
              - {id: calls.month, quota: 1000000000, per: month, on_failure: {open: 7}}
        """
      try stack.command(
        [
          "catalog", "apply", try stack.directory.write("next.yaml", catalog), "--reason", "test",
        ])
      let frame = try connection.frame(.welcome, within: 2000)
      #expect(frame.header.correlation == 0)
      let told = try Welcome.decode(frame)
      #expect(
        told.policies.first { $0.feature == calls }?.policy == .open(allowance: 7))
      #expect(told.globalVersion > connection.welcome?.globalVersion ?? .max)
      #expect(told.frameBytesMax == connection.welcome?.frameBytesMax)
    }
  }
}
