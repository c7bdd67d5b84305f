// The ledger's commands as a program meets them: with --json a failure is the same document on
// standard output as everywhere else, and a list without rows is an empty list.

import Foundation
import Testing
import TollgateCore
import TollgateLedger
import TollgateTesting

@Suite(.serialized, .blocking) struct LedgerCommandLineTests {
  let directory: TemporaryDirectory
  let database: String

  init() throws {
    directory = try TemporaryDirectory("tg-led")
    database = directory.file("books.sqlite")
  }

  /// Books of a deployment with `losses` rows of loss, and nothing else.
  private func make(losses: Int = 0) throws {
    let store = try LedgerStore(path: database, bodies: .wire)
    let now = WallTime(milliseconds: 1_795_000_000_000)
    try store.adopt(Deployment(id: try Name("test"), buckets: 4, mode: .dev), now: now)
    func recover(_ epoch: Int64, _ entries: [OutboxEntry]) throws {
      _ = try store.recover(
        RecoveryRequest(
          bucket: 0, epoch: epoch, highestSeen: entries.last?.sequence ?? 0, entries: entries,
          requester: "test"), now: now)
    }
    if losses > 0 {
      try recover(0, [])
      // What cannot be read is parked, and holds its position: every other one is lost.
      try recover(
        1,
        (1...losses).map { number in
          OutboxEntry(
            sequence: Int64(number) * 2, kind: .usage,
            id: DeltaID(operation: OperationID(high: 1, low: UInt64(number)), index: 0), time: now,
            actual: 1, charged: 1, absorbed: 0, body: [0xDE, 0xAD])
        })
    }
    try store.close()
  }

  private func run(_ words: [String], _ path: String? = nil) async throws -> (
    code: Int32, out: String, error: String
  ) {
    let process = try ChildProcess(
      ChildProcess.tollgateBinary(), ["ledger"] + words + ["--database", path ?? database],
      environment: ["PATH": "/usr/bin:/bin", "USER": "ann"])
    guard case .exited(let code) = try await process.waitAsync() else { return (-1, "", "") }
    return (code, process.standardOutput, process.standardError)
  }

  @Test(arguments: [
    (["losses", "list"], "losses"), (["losses"], "losses"), (["balances"], "totals"),
    (["balances", "--account", "acme"], "totals"),
    (["balances", "--account", "acme", "--counters"], "counters"),
  ])
  func anEmptyListIsAList(_ words: [String], _ name: String) async throws {
    try make()
    let run = try await run(words + ["--json"])
    #expect(run.code == 0 && run.error.isEmpty)
    #expect(try Document(json: run.out)[name] == .list([]), "\(run.out)")
  }

  @Test func everyLossIsListed() async throws {
    try make(losses: 1500)
    let run = try await run(["losses", "--json"])
    #expect(run.code == 1)
    guard
      case .list(let rows)? = try Document(json: Array(run.out.utf8), bytesMax: 1 << 20)["losses"]
    else {
      Issue.record("no list in \(run.out.prefix(200))")
      return
    }
    #expect(rows.count == 1500)
    let table = try await self.run(["losses"])
    #expect(table.code == 1)
    #expect(table.out.split(separator: "\n").count == 1501)
    let all = try await self.run(["losses", "acknowledge", "--all", "--reason", "r", "--json"])
    #expect(all.code == 0 && all.out == "{\"acknowledged\":1500}\n")
    #expect(try await self.run(["losses"]).code == 0)
  }

  @Test(arguments: [
    ["losses"], ["balances"], ["verify"], ["statement", "acme"], ["export"], ["replay"],
    ["losses", "acknowledge", "--all", "--reason", "r"],
    ["close", "--through", "2020-01", "--reason", "r"],
  ])
  func aFileThatIsNotThereIsTheUsualDocument(_ words: [String]) async throws {
    let run = try await run(words + ["--json"])
    #expect(run.code == 4)
    let document = try Document(json: run.out)
    #expect(document["name"] == .string("CONFLICT") && document["code"] != nil)
    #expect(document["fix"] != nil && document["problems"] == .list([]))
    guard case .string(let message)? = document["message"] else {
      Issue.record("no message in \(run.out)")
      return
    }
    #expect(message.contains("\(database) does not exist"))
    #expect(run.error == "Error: \(message)\n")
    let text = try await self.run(words)
    #expect(text.code == 4 && text.out.isEmpty && text.error == run.error)
  }

  @Test func aMonthIsClosedOnceAndNotBeforeItIsOver() async throws {
    try make()
    let words = ["close", "--reason", "invoices", "--json", "--through"]
    let first = try await run(words + ["2020-01"])
    #expect(first.code == 0 && first.out == "{\"through\":\"2020-01\",\"changed\":true}\n")
    let again = try await run(words + ["2019-12"])
    #expect(again.code == 0 && again.out == "{\"through\":\"2019-12\",\"changed\":false}\n")
    let one = try await run(["close", "--reason", "r", "--through", "2020-02", "--account", "acme"])
    #expect(one.code == 0 && one.out == "months of acme are closed through 2020-02\n")
    let running = try await run(words + ["9998-01"])
    #expect(running.code == 2)
    #expect(try Document(json: running.out)["name"] == .string("BAD_REQUEST"))
    #expect(try await run(["close", "--reason", "r", "--through", "2020-13"]).code == 2)
    #expect(try await run(["verify"]).code == 0)
  }

  @Test func whatIsRefusedHasItsCode() async throws {
    try make(losses: 1)
    let words = ["losses", "acknowledge", "--reason", "r", "--json"]
    let unknown = try await run(words + ["0/1/9"])
    #expect(unknown.code == 4)
    #expect(try Document(json: unknown.out)["name"] == .string("NOT_FOUND"))
    let unreadable = try await run(words + ["0/1"])
    #expect(unreadable.code == 2)
    #expect(try Document(json: unreadable.out)["name"] == .string("BAD_REQUEST"))
    let empty = try directory.write("empty", "")
    let none = try await run(["verify", "--json"], empty)
    #expect(none.code == 4)
    #expect(try Document(json: none.out)["name"] == .string("NOT_FOUND"))
    let text = try directory.write("text", "levels: [account]\n")
    let foreign = try await run(["losses", "--json"], text)
    #expect(foreign.code == 4)
    #expect(try Document(json: foreign.out)["name"] == .string("CONFLICT"))
    let token = try await run(
      ["run", "--unix", directory.file("s"), "--token-file", "/nonexistent", "--json"])
    #expect(token.code == 2)
    #expect(try Document(json: token.out)["name"] == .string("BAD_REQUEST"))
  }
}
