// Changes on real processes: one effect per id through a lost Redis, a history that outlives it,
// operators told apart, and an import that is killed, resumed, and slowed down by its ledger.

import Foundation
import Testing
import TollgateCore
import TollgateTesting

extension LiveTests {
  @Suite(.serialized) struct Changes {
    private func json(_ result: Stack.CommandResult) throws -> Document {
      try Document(json: Array(result.output.utf8))
    }

    private func elements(_ document: Document?) -> [Document] {
      if case .list(let values)? = document { return values }
      return []
    }

    private func text(_ document: Document?) -> String {
      if case .string(let text)? = document { return text }
      return ""
    }

    private func number(_ document: Document?) -> Int64 {
      if case .integer(let number)? = document { return number }
      return -1
    }

    @Test func aChangeKeepsItsAnswerThroughALostRedis() throws {
      let stack = try Stack(.init(sidecars: 1, persistence: .none, accounts: ["acme": "small"]))
      var random = SeededRandom.fromEnvironment("changes")
      func id() -> String {
        let now = WallTime(milliseconds: Int64(Date().timeIntervalSince1970 * 1000))
        return OperationID(time: now, using: &random).hex
      }
      func set(_ plan: String, _ id: String) throws -> Stack.CommandResult {
        try stack.cli(["account", "set", "acme", "--plan", plan, "--id", id, "--json"])
      }
      let oldest = id()
      #expect(text(try json(try set("big", oldest))["result"]) == "applied")
      let resetID = id()
      let reset = [
        "reset", "acme", "calls.month", "--reason", "test", "--id", resetID, "--json",
      ]
      _ = try stack.cli(["consume", "acme/m", "calls=3"])
      #expect(number(try json(try stack.cli(reset))["forgiven"]) == 3)
      var ids: [String] = []
      for round in 0..<34 {
        ids.append(id())
        #expect(
          text(try json(try set(round % 2 == 0 ? "small" : "big", ids[round]))["result"])
            == "applied")
      }
      let global = ["bypass", "calls", "--for", "30m", "--reason", "r", "--json", "--id", id()]
      #expect(text(try json(try stack.cli(global))["result"]) == "applied")
      try stack.command(["account", "set", "acme", "--frozen", "--wait", "ledger"])
      try eventually(within: .seconds(10), "everything is delivered") {
        try json(try stack.cli(["audit-log", "--json", "--limit", "5"]))["entries"].map {
          elements($0).allSatisfy { $0["delivered"] == .bool(true) }
        } ?? false
      }

      func check(_ when: Comment) throws {
        // The last of them is remembered, with its version; the first may have been forgotten.
        let again = try json(try set("big", ids[33]))
        #expect(text(again["result"]) == "replayed", when)
        #expect(number(again["version"]) == 36, when)
        let other = try set("small", ids[33])
        #expect(other.status == .exited(4) && other.errors.contains("the same kind"), when)
        let old = try set("big", oldest)
        #expect(old.status == .exited(4) && old.errors.contains("older than the changes"), when)
        #expect(try stack.cli(reset).errors.contains("older than the changes"), when)
        #expect(text(try json(try stack.cli(global))["result"]) == "replayed", when)
        let account = try json(try stack.cli(["account", "show", "acme", "--json"]))
        #expect(number(account["version"]) == 37 && account["frozen"] == .bool(true), when)
      }
      try check("before")
      let client = try stack.redis.connect()
      try client.command("FLUSHALL")
      try stack.waitReady(0)
      try eventually(within: .seconds(20), every: .milliseconds(50), "the account is back") {
        try stack.cli(["account", "show", "acme"]).status == .exited(0)
          && stack.cli(["bypass", "list"]).output.contains("calls")
      }
      try check("after FLUSHALL")
      #expect(try stack.books("verify").status == .exited(0))
    }

    @Test func theAuditLogTellsWhoAndOutlivesRedis() throws {
      let stack = try Stack(.init(sidecars: 1, persistence: .none, accounts: ["acme": "small"]))
      for (who, plan) in [("ann", "big"), ("bob", "small")] {
        let result = try stack.cli(
          ["account", "set", "acme", "--plan", plan, "--actor", "ops", "--wait", "ledger"],
          token: "\(who)-token")
        #expect(result.status == .exited(0), "\(result.errors)")
      }
      try stack.command(["reset", "acme", "calls.month", "--reason", "no use"])
      try stack.command(["account", "set", "other", "--plan", "big", "--wait", "ledger"])
      func log(_ arguments: [String] = []) throws -> Document {
        try json(try stack.cli(["audit-log", "--json"] + arguments))
      }
      func actors(_ document: Document) -> [String] {
        elements(document["entries"]).map { text($0["actor"]) }
      }
      let uid = getuid()
      let user = ProcessInfo.processInfo.environment["USER"] ?? "uid \(uid)"
      let expected = [
        "ops (credential bob, uid \(uid))", "ops (credential ann, uid \(uid))",
        "\(user) (credential admin, uid \(uid))",
      ]
      let before = try log(["acme"])
      #expect(actors(before) == expected && text(before["ledger"]) == "read")
      #expect(Set(elements(before["entries"]).map { text($0["operation"]).count }) == [32])
      // Page by page it is the same list, without a repetition.
      var paged: [String] = []
      var next: String?
      repeat {
        let page = try log(["acme", "--limit", "1"] + (next.map { ["--after", $0] } ?? []))
        paged += actors(page)
        next = page["next"].map { text($0) }
      } while next != nil
      #expect(paged == expected)
      try stack.redis.connect().command("FLUSHALL")
      try stack.waitReady(0)
      #expect(actors(try log(["acme"])) == expected)
      #expect(actors(try log()).count >= 5)
      // Without the ledger only what Redis has is listed, and that is said.
      stack.ledger?.kill()
      try eventually(within: .seconds(10), "the sidecar has noticed") {
        text(try log(["acme"])["ledger"]) == "unreachable"
      }
      let plain = try stack.cli(["audit-log", "acme"])
      #expect(plain.errors.contains("the ledger cannot be reached"), "\(plain.errors)")
    }

    @Test func aRequestWithTooManyLimitsIsRefusedAndOneThatFitsIsNot() throws {
      let names = (0..<5).map { "f\($0)" }
      let limits = { (name: String) in
        (0..<8).map { "      - {id: \(name).l\($0), quota: 50, per: \($0 + 60)s}\n" }.joined()
      }
      let catalog =
        "levels: [account]\nfeatures:\n"
        + names.map { "  \($0): {metered: true}\n" }.joined() + "plans:\n  big:\n"
        + names.map { "    \($0):\n\(limits($0))" }.joined()
      let stack = try Stack(
        .init(sidecars: 1, persistence: .none, catalog: catalog, accounts: ["acme": "big"]))
      for verb in ["check", "consume"] {
        let refused = try stack.cli([verb, "acme"] + names)
        #expect(refused.status == .exited(2), "\(refused.output)\(refused.errors)")
        #expect(refused.errors.contains("40 limits together; at most 32"), "\(refused.errors)")
        #expect(try stack.cli([verb, "acme"] + names.prefix(4)).status == .exited(0))
      }
      let usage = try stack.cli(["usage", "acme", "--json"])
      #expect(!usage.output.contains("\"settled\": 2"), "\(usage.output)")
    }

    // MARK: - Import

    /// Every tenth row is about one account, which changes its plan each time.
    private func file(_ stack: Stack, rows: Int) throws -> String {
      let lines = (0..<rows).map { row -> String in
        guard row % 10 == 0 else { return "a\(row),\(row % 3 == 0 ? "big" : "small")" }
        return "many,\(row / 10 % 2 == 0 ? "small" : "big")"
      }
      return try stack.directory.write(
        "rows.csv", "account,plan\n" + lines.joined(separator: "\n") + "\n")
    }

    private func progress(_ file: String) -> Int64 {
      guard let data = FileManager.default.contents(atPath: file + ".progress"),
        let document = try? Document(json: Array(data))
      else { return -1 }
      return number(document["rows"])
    }

    private func checkImported(_ stack: Stack, rows: Int) throws {
      let listed = try json(try stack.cli(["account", "list", "--all", "--json"]))
      let accounts = elements(listed["accounts"])
      #expect(accounts.count == rows - rows / 10 + 1)
      for account in accounts {
        let expected = text(account["account"]) == "many" ? Int64(rows / 10) : 1
        #expect(number(account["version"]) == expected, "\(account)")
      }
      let many = try #require(accounts.first { text($0["account"]) == "many" })
      #expect(text(many["plan"]) == ((rows / 10 - 1) % 2 == 0 ? "small" : "big"))
      try eventually(within: .seconds(30), "the ledger has every change") {
        let log = try json(try stack.cli(["audit-log", "many", "--limit", "1000", "--json"]))
        return elements(log["entries"]).filter { $0["delivered"] == .bool(true) }.count
          == rows / 10
      }
      #expect(try stack.books("verify").status == .exited(0))
    }

    @Test func anImportThatIsKilledIsResumedAndDoesNoRowTwice() throws {
      let rows = 5000
      let stack = try Stack(.init(sidecars: 1, persistence: .none))
      let file = try file(stack, rows: rows)
      let arguments = ["account", "import", file, "--batch", "50", "--in-flight", "2"]
      let dry = try stack.cli(arguments + ["--dry-run"])
      #expect(dry.output.contains("5000 would change"), "\(dry.output)\(dry.errors)")
      let child = try stack.start(arguments)
      try eventually(within: .seconds(60), every: .milliseconds(1), "half is done") {
        progress(file) >= Int64(rows / 2) || !child.isRunning
      }
      child.kill()
      let reached = progress(file)
      #expect(reached >= 2500 && reached < 5000, "killed at row \(reached)")
      // The kill may come between an answer and its note: two batches that are done are sent again.
      let noted = try String(contentsOfFile: file + ".progress", encoding: .utf8)
      try noted.replacing("\"rows\":\(reached)", with: "\"rows\":\(reached - 100)")
        .write(toFile: file + ".progress", atomically: true, encoding: .utf8)
      let result = try stack.cli(arguments + ["--json"])
      #expect(result.status == .exited(0), "\(result.errors)")
      let reply = try json(result)
      #expect(number(reply["applied"]) + number(reply["replayed"]) == Int64(rows) + 100)
      #expect(number(reply["replayed"]) >= 100)
      print("import killed at row \(reached); \(number(reply["replayed"])) rows were known again")
      #expect(!FileManager.default.fileExists(atPath: file + ".progress"))
      try checkImported(stack, rows: rows)
    }

    /// An account whose counters are loaded is changed without asking the ledger, so only the
    /// outbox holds such an import back.
    @Test func anImportWaitsForItsLedgerAndDoesNotFillTheOutbox() throws {
      let rows = 3000
      let stack = try Stack(
        .init(sidecars: 1, buckets: 2, persistence: .none, accounts: ["many": "big"]))
      #expect(try stack.cli(["consume", "many/m", "calls=1"]).status == .exited(0))
      let lines = (0..<rows).map { "many,\($0 % 2 == 0 ? "small" : "big")" }
      let file = try stack.directory.write("rows.csv", lines.joined(separator: "\n"))
      let arguments = ["account", "import", file, "--patience", "2s", "--timeout", "15s"]
      try stack.ledger?.pause()
      let result = try stack.cli(arguments)
      #expect(result.status == .exited(3), "\(result.status) \(result.output)\(result.errors)")
      #expect(result.errors.contains("the ledger is behind"), "\(result.errors)")
      let client = try stack.redis.connect()
      let lengths = try client.command("KEYS", "*:out").strings.map {
        try #require(try client.command("XLEN", $0).integer)
      }
      // Full to the brim of what an import may add, and not beyond.
      let most = try #require(lengths.max())
      #expect((1900...2100).contains(most), "\(lengths)")
      stack.ledger?.resume()
      let rest = try stack.cli(["account", "import", file, "--timeout", "15s"])
      #expect(rest.status == .exited(0), "\(rest.output)\(rest.errors)")
      let many = try json(try stack.cli(["account", "show", "many", "--json"]))
      #expect(number(many["version"]) == Int64(rows) + 1 && text(many["plan"]) == "big")
      try stack.command(["account", "set", "many", "--frozen", "--wait", "ledger"])
      #expect(try stack.books("verify").status == .exited(0))
    }
  }
}
