// The built `tollgate` binary: exit codes, tables, JSON. Each test runs it as a process against a
// mini sidecar whose state and clock are fixed, so that output can be compared as a whole.

import Foundation
import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.serialized, .blocking) struct CommandLineTests {
  // MARK: Exit codes

  @Test(arguments: [
    ["nosuch"], ["check", "acme"], ["check", "bad subject", "x"], ["check", "acme", "x=-1"],
    ["limit", "set", "acme", "x"], ["limit", "set", "acme", "x", "--amount", "1", "--unlimited"],
    ["limit", "set", "acme", "x", "--amount", "1", "--expires", "soon"],
    ["bypass", "--for", "30m", "--reason", "r"], ["bypass", "x", "--for", "1", "--reason", "r"],
    ["account", "set", "acme"], ["account", "set", "acme", "--plan", "p", "--source-id", "s"],
    ["status", "--timeout", "soon"], ["status", "--tcp", "nohost"],
    ["consume", "acme", "x", "--id", "zz"], ["reset", "acme", "x"],
    ["adjust", "acme", "x", "5", "--reason", "r"], ["adjust", "acme", "x", "+5"],
    ["adjust", "acme", "x", "+0", "--reason", "r"],
    ["adjust", "acme", "x", "-5x", "--reason", "r"],
    ["adjust", "acme", "x", "-5", "--reason", "r", "--period", "2026-10", "--operation", "ff"],
    ["usage", "acme", "--by", "day"], ["usage", "acme", "--history", "--from", "then"],
    ["top", "--count", "0"], ["top", "--window", "2m"], ["tail", "--limit", "0"],
    ["catalog", "validate", "/nonexistent/file"], ["status", "--token-file", "/nonexistent/file"],
  ])
  func aUsageErrorIsTwo(_ arguments: [String]) async throws {
    let directory = try TemporaryDirectory("cli")
    let run = try await CommandHarness.run(arguments, directory)
    #expect(run.code == 2, "\(arguments): \(run.error)")
    #expect(run.error.hasPrefix("Error: "))
    #expect(run.out.isEmpty)
  }

  @Test(arguments: [
    (["status", "--tcp", "nohost"], "--tcp nohost: give HOST:PORT"),
    (["status", "--timeout", "soon"], "--timeout soon: give 1ms"),
    (["account", "list", "--limit", "many"], "many"),
    (["consume", "acme", "x=-1"], "x=-1"), (["check", "bad subject", "x"], "bad subject"),
    (["limit", "set", "acme", "x", "--amount", "-1", "--reason", "r"], "--amount"),
    (["reset", "acme", "x"], "--reason"),
    (
      ["status", "--token-file", "/nonexistent/file"],
      "--token-file /nonexistent/file cannot be read: there is no such file"
    ),
  ])
  func aUsageErrorIsJSONOnRequest(_ arguments: [String], _ wanted: String) async throws {
    let directory = try TemporaryDirectory("cli")
    let run = try await CommandHarness.run(arguments + ["--json"], directory)
    #expect(run.code == 2)
    let document = try Document(json: run.out)
    #expect(document["name"] == "BAD_REQUEST" && document["code"] == 5)
    guard case .string(let message)? = document["message"] else {
      throw AdminFailure(.badFrame, run.out)
    }
    #expect(message.contains(wanted))
    #expect(run.error.contains(wanted))
  }

  @Test func aSocketPathThatIsTooLongIsAUsageError() async throws {
    let directory = try TemporaryDirectory("cli")
    let path = "/tmp/" + String(repeating: "x", count: 150)
    let option = try await CommandHarness.run(["status", "--unix", path], directory)
    #expect(option.code == 2)
    #expect(option.error.contains("has at most 107 bytes, and this one has 155"))
    let variable = try await CommandHarness.run(["status"], directory, ["TOLLGATE_UNIX": path])
    #expect(variable.code == 2 && variable.error.contains("TOLLGATE_UNIX=/tmp/xxx"))
  }

  @Test func checkConfigNamesEveryProblem() async throws {
    let directory = try TemporaryDirectory("cli")
    let file = try directory.write(
      "c.yaml",
      """
      deployment: {id: t, buckets: 4, mode: dev}
      listen: {unix: /tmp/x.sock}
      credentials: {check: \(String(repeating: "c", count: 600)), admin_file: \(
        try directory.write("admin", String(repeating: "a", count: 513)))}
      redis: {address: "unix:/tmp/r.sock"}
      ledger: none
      journal: ""

      """)
    let run = try await CommandHarness.run(
      ["serve", "--config", file, "--check-config"], directory,
      ["TOLLGATE_SIDECAR_ID": "bad name!"])
    #expect(run.code == 2)
    for wanted in [
      "TOLLGATE_SIDECAR_ID: \"bad name!\": ", "credentials/check: (hidden): has 600 bytes",
      "credentials/admin_file: (hidden): has 513 bytes; at most 512", "journal: \"\": must be",
    ] {
      #expect(run.error.contains(wanted), "\(wanted) in \(run.error)")
    }
    #expect(!run.error.contains("ccc") && !run.error.contains("aaa"), "no secret is printed")
    let environment = try await CommandHarness.run(
      ["serve", "--config", file, "--check-config"], directory,
      ["TOLLGATE_CHECK_TOKEN": String(repeating: "e", count: 513)])
    #expect(environment.error.contains("TOLLGATE_CHECK_TOKEN: (hidden): has 513 bytes"))
  }

  @Test func helpAndVersionAreZero() async throws {
    let directory = try TemporaryDirectory("cli")
    let help = try await CommandHarness.run(["--help"], directory)
    #expect(help.code == 0)
    #expect(help.out.contains("Exit codes: 0 ok or allowed, 1 denied"))
    #expect(try await CommandHarness.run(["--version"], directory).code == 0)
    let script = try await CommandHarness.run(["--generate-completion-script", "bash"], directory)
    #expect(script.code == 0)
    #expect(script.out.contains("_tollgate"))
  }

  @Test func noSidecarIsThreeAndSaysHowToNameOne() async throws {
    let directory = try TemporaryDirectory("cli")
    let run = try await CommandHarness.run(["status", "--unix", directory.file("none")], directory)
    #expect(run.code == 3)
    #expect(run.error.contains("No such file or directory"))
    #expect(run.error.contains("→ start one (tollgate serve --config FILE)"))
  }

  @Test func aWrongCredentialIsFive() async throws {
    let harness = try await CommandHarness()
    let run = try await harness.run("status", "--token", "wrong")
    #expect(run.code == 5)
    #expect(run.error.contains("--token-file FILE or TOLLGATE_TOKEN"))
  }

  @Test func aRefusalIsFourAndJSONOnRequest() async throws {
    let harness = try await CommandHarness()
    let run = try await harness.run("account", "set", "acme", "--plan", "gold", "--json")
    #expect(run.code == 4)
    #expect(run.error.contains("→ use one of: free, pro"))
    let document = try Document(json: run.out)
    #expect(document["name"] == "NOT_FOUND")
  }

  @Test func anUnsoundCatalogNamesFileAndLine() async throws {
    let directory = try TemporaryDirectory("cli")
    let file = try directory.write(
      "c.yaml", AdminFixture.catalogYAML.replacing("quota: 100,", with: "quota: -1,"))
    let run = try await CommandHarness.run(["catalog", "validate", file], directory)
    #expect(run.code == 4)
    #expect(run.error.contains("\(file):9: plans/free/chat.requests/0/quota: -1: "))
  }

  @Test func anAnswerThatDoesNotComeIsSixWithTheID() async throws {
    let harness = try await CommandHarness()
    harness.fixture.backend.edit { $0.failing = AdminFailure(.outcomeUnknown, "cut off") }
    let id = AdminFixture.id(7).hex
    let run = try await harness.run("account", "set", "acme", "--plan", "pro", "--id", id)
    #expect(run.code == 6)
    #expect(run.error.contains("→ run it again with --id \(id): it is applied once"))
  }

  // MARK: Data path

  @Test func consumeTellsTheDecisionAndItsExitCode() async throws {
    let harness = try await CommandHarness { record in
      var decision = Decision(
        reason: record.items[0].amount > 5 ? .quotaExceeded : .allowed, source: .redis,
        time: WallTime(milliseconds: 1_763_700_000_000))
      if record.items[0].amount > 5 {
        decision.binding = try? Name("chat.month")
        decision.retryAfter = 90_000
      }
      decision.items = [
        .init(
          limit: try? Name("chat.month"), remaining: 4, settled: 96, held: 0,
          reset: WallTime(milliseconds: 1_764_547_200_000))
      ]
      return .decision(decision)
    }
    let id = AdminFixture.id(1).hex
    let denied = try await harness.run("consume", "acme", "chat.requests=6", "--id", id)
    #expect(denied.code == 1)
    #expect(
      denied.out == """
        denied (QUOTA_EXCEEDED) by limit chat.month
        can succeed in 1 m 30 s
        FEATURE        ASKED  LIMIT       SETTLED  HELD  REMAINING  RESET
        chat.requests      6  chat.month       96     0          4  2025-12-01T00:00:00Z
        id \(id)

        """)
    let allowed = try await harness.run("check", "acme", "chat.requests", "--json")
    #expect(allowed.code == 0)
    #expect(try Document(json: allowed.out)["allowed"] == true)
  }

  // MARK: Tables

  @Test func explainIsATable() async throws {
    let harness = try await CommandHarness()
    try harness.fixture.use(harness.fixture.acme, "chat.requests", .month, settled: 99)
    let run = try await harness.run("explain", "acme", "chat.requests=2")
    #expect(run.code == 1)
    #expect(
      run.out == """
        acme: denied by chat.month; can succeed in 9 d 19 h (QUOTA_EXCEEDED)

        plan      free (account)
        versions  catalog 1, global 1, account 1
        bucket    0, ready, epoch 1
        at        2025-11-21T04:40:00Z

           #  FEATURE        LIMIT       OF    RULE                  ENFORCEMENT  VERDICT         WHY
        →  1  chat.requests  chat.month  acme  100 per month         hard         QUOTA_EXCEEDED  99 of 100 used; 2 asked, 1 left
           2  chat.requests  chat.rpm    acme  10 per 1 m, burst 10  hard         passes          2 asked, 10 available now

        """)
  }

  @Test func usageIsATable() async throws {
    let harness = try await CommandHarness()
    try harness.fixture.use(harness.fixture.acme, "chat.requests", .month, settled: 40)
    let run = try await harness.run("usage", "acme")
    #expect(run.code == 0)
    #expect(
      run.out == """
        acme, plan free, at 2025-11-21T04:40:00Z
        FEATURE        LIMIT       OF    WINDOW  SETTLED  HELD  AMOUNT  REMAINING  RESET                 UNIT
        chat.requests  chat.month  acme  month        40     0     100         60  2025-12-01T00:00:00Z  request
        chat.requests  chat.rpm    acme  rate          0     0      10         10  2025-11-21T04:40:00Z  request
        tokens.output  (billed)    acme  month         0     0       -          -  2025-12-01T00:00:00Z  token

        """)
  }

  @Test func aChangeTellsBeforeAfterAndTheID() async throws {
    let harness = try await CommandHarness()
    let id = AdminFixture.id(9).hex
    let run = try await harness.run(
      "limit", "set", "acme", "chat.month", "--amount", "5", "--reason", "abuse", "--id", id)
    #expect(run.code == 0)
    #expect(
      run.out == """
          acme chat.month: as in the plan → amount=5
        applied (version 2, durable: redis, id \(id))

        """)
    #expect(harness.fixture.account()?.overrides.first?.author == "ann (test)")
    let again = try await harness.run(
      "limit", "set", "acme", "chat.month", "--amount", "5", "--reason", "abuse", "--id", id)
    #expect(again.out == "unchanged: the override is already as asked\n")
  }

  @Test func aDryRunSaysSo() async throws {
    let harness = try await CommandHarness()
    try harness.fixture.use(harness.fixture.acme, "chat.requests", .month, settled: 60)
    let run = try await harness.run(
      "limit", "set", "acme", "chat.month", "--amount", "60", "--reason", "r", "--dry-run")
    #expect(
      run.out == """
          acme chat.month: as in the plan → amount=60
        dry-run: nothing was changed
        1 account affected, 1 denied at once
          denied at once: acme

        """)
  }

  // MARK: What an open policy let through

  @Test func fallbackListRetryAndDrop() async throws {
    let harness = try await CommandHarness()
    let empty = try await harness.run("fallback", "list")
    #expect(empty.code == 0)
    #expect(empty.out == "nothing is parked in sidecar-1; 0 to post, 0 of them deferred\n")
    let ids = [AdminFixture.id(1), AdminFixture.id(2)]
    harness.fixture.backend.edit { state in
      state.fallback.parked = ids.map {
        .init(
          operation: $0, subject: harness.fixture.acme,
          amounts: ["tokens.output": 7, "chat.requests": 3], reason: "answered GATE_CLOSED",
          time: WallTime(milliseconds: 1_763_700_000_000))
      }
    }
    let list = try await harness.run("fallback")
    #expect(list.code == 1)
    #expect(list.out.contains("chat.requests=3 tokens.output=7"))
    #expect(list.out.contains("\(ids[1].hex)") && list.out.contains("answered GATE_CLOSED"))
    #expect(list.out.hasSuffix("2 parked in sidecar-1; 0 to post, 0 of them deferred\n"))
    let json = try Document(json: try await harness.run("fallback", "list", "--json").out)
    #expect(json["sidecar"] == "sidecar-1")
    guard case .list(let rows)? = json["parked"] else { throw AdminFailure(.badFrame, "\(list)") }
    #expect(rows.count == 2 && rows[0]["amounts"]?["tokens.output"] == 7)

    let dry = try await harness.run("fallback", "retry", ids[0].hex, "--dry-run")
    #expect(dry.code == 0 && dry.out.hasPrefix("would be posted again: \(ids[0].hex) acme chat"))
    let retried = try await harness.run("fallback", "retry", ids[0].hex, "--reason", "mended")
    #expect(retried.code == 0 && retried.out.hasPrefix("posted again: \(ids[0].hex)"))
    let again = try await harness.run("fallback", "retry", ids[0].hex, "--json")
    #expect(again.code == 4 && again.out.contains("NOT_FOUND"))
    #expect(again.error.contains("no operation \(ids[0].hex) is parked in this sidecar"))

    #expect(try await harness.run("fallback", "drop", ids[1].hex).code == 2, "without a reason")
    let dropped = try await harness.run(
      "fallback", "drop", ids[1].hex, "--reason", "by hand", "--actor", "bob")
    #expect(dropped.code == 0 && dropped.out.hasPrefix("dropped: \(ids[1].hex)"))
    let done = harness.fixture.backend.read(\.unparked)
    #expect(done.count == 2)
    #expect(done[0].hasPrefix("retry by ann") && done[0].hasSuffix(": mended"))
    #expect(done[1].hasPrefix("drop by bob") && done[1].hasSuffix(": by hand"))
  }

  @Test func leaseListAndRelease() async throws {
    let harness = try await CommandHarness()
    let empty = try await harness.run("lease", "list")
    #expect(empty.code == 0 && empty.out == "nothing is leased\n")
    let acme = harness.fixture.acme
    let feature = try Name("chat.requests")
    harness.fixture.backend.edit { state in
      state.leases = [LeaseReport.State.live, .inDoubt, .settling].enumerated().map {
        LeaseReport(
          account: acme, lessee: LesseeID(UInt64($0 + 1)), own: $0 == 0, state: $1,
          until: WallTime(milliseconds: 1_763_700_000_000),
          portions: [
            .init(
              subject: acme, feature: feature, window: "day", limit: nil,
              units: 40)
          ])
      }
    }
    let list = try await harness.run("lease", "list")
    #expect(list.code == 1)
    #expect(list.out.contains("0000000000000001  live, this sidecar"))
    #expect(list.out.contains("chat.requests 40 in day"))
    let doubts = try await harness.run("lease", "list", "acme", "--in-doubt", "--json")
    guard case .list(let rows)? = try Document(json: doubts.out)["leases"] else {
      throw AdminFailure(.badFrame, "\(doubts)")
    }
    #expect(rows.map { $0["state"] } == ["in-doubt", "settling"])

    let id = "0000000000000002"
    #expect(try await harness.run("lease", "release", "acme", id).code == 2, "without a reason")
    let dry = try await harness.run("lease", "release", "acme", id, "--reason", "lost", "--dry-run")
    #expect(dry.code == 0 && dry.out.contains("free again: chat.requests 40 in day"))
    #expect(harness.fixture.backend.read(\.leases).count == 3)
    let done = try await harness.run(
      "lease", "release", "acme", id, "--reason", "node 7 is gone")
    #expect(done.code == 0 && done.out.contains("40 units are free"))
    #expect(harness.fixture.backend.read(\.leases).map(\.state) == [.live, .settling])
    // Who may still let through keeps what it has.
    for live in ["0000000000000001", "0000000000000003"] {
      #expect(try await harness.run("lease", "release", "acme", live, "--reason", "x").code == 4)
    }
    #expect(try await harness.run("lease", "release", "acme", id, "--reason", "x").code == 4)
    let log = harness.fixture.backend.read(\.audit).map(\.change)
    #expect(log.map(\.action) == ["lease.release"])
    #expect(log.map(\.reason) == ["node 7 is gone (lessee \(id))"])
  }

  @Test func catalogApplyRefusesAnotherImportance() async throws {
    let harness = try await CommandHarness()
    let file = try harness.directory.write(
      "c.yaml", AdminFixture.catalogYAML.replacing("importance: volume", with: "importance: money"))
    let run = try await harness.run("catalog", "apply", file, "--reason", "r")
    #expect(run.code == 4)
    #expect(
      run.error.contains(
        "features/tokens.output/importance: \"money\": a feature's class is fixed: bills and "
          + "operation records are kept by it"))
    #expect(harness.fixture.backend.read { $0.global?.version } == 1)
  }

  @Test func catalogDiffAndApply() async throws {
    let harness = try await CommandHarness()
    let file = try harness.directory.write(
      "c.yaml", AdminFixture.catalogYAML.replacing("quota: 100,", with: "quota: 120,"))
    let diff = try await harness.run("catalog", "diff", file)
    #expect(diff.code == 1)
    #expect(diff.out.contains("~ plans/free/chat.requests/chat.month quota: 100 → 120"))
    #expect(try await harness.run("catalog", "apply", file).code == 0)
    #expect(try await harness.run("catalog", "diff", file).code == 0)
    let shown = try await harness.run("catalog", "show")
    let back = try harness.directory.write("back.json", shown.out)
    #expect(try await harness.run("catalog", "diff", back).code == 0)
  }

  @Test func theDefaultOfBypassIsToSetOne() async throws {
    let harness = try await CommandHarness()
    #expect(
      try await harness.run("bypass", "chat.requests", "--for", "30m", "--reason", "r").code == 0)
    let list = try await harness.run("bypass", "list")
    #expect(list.out.contains("chat.requests  2025-11-21T05:10:00Z  30 m  ann (test)  r"))
    #expect(try await harness.run("bypass", "clear", "--all").code == 0)
    #expect(try await harness.run("bypass", "list").out == "no bypass is in force\n")
  }

  @Test func statusOfADegradedSidecarIsOne() async throws {
    let harness = try await CommandHarness()
    #expect(try await harness.run("status").code == 0)
    harness.fixture.backend.edit { $0.health.redis.breaker = "open" }
    let run = try await harness.run("status")
    #expect(run.code == 1)
    #expect(run.out.hasPrefix("sidecar     sidecar-1 0.1.0, ready, degraded, up 1 h 2 m\n"))
  }

  @Test func reconcileEndsWithTheDifference() async throws {
    let harness = try await CommandHarness()
    let month = Window.month.period(containing: harness.fixture.backend.read(\.now))
    let acme = harness.fixture.acme
    let total = { (settled: Int64) in
      BillingTotal(feature: try Name("chat.requests"), period: month, settled: settled)
    }
    let ledger = LedgerBilling(
      cursor: StreamPosition(epoch: 1, sequence: 3), totals: [try total(7)])
    var store = StoreBilling(
      time: harness.fixture.backend.read(\.now), bucketState: .ready, isLoaded: true,
      last: StreamPosition(epoch: 1, sequence: 3), firstSequence: 1, month: month,
      totals: [try total(7)], undelivered: [])
    let equal = store
    harness.fixture.backend.edit {
      $0.ledger[acme] = [ledger]
      $0.store[acme] = [equal]
    }
    let good = try await harness.run("reconcile")
    #expect(good.code == 0)
    #expect(
      good.out == """
        1 accounts, 1 totals: redis 7 = ledger 7 + undelivered 0
        difference 0

        """)
    store.totals = [try total(9)]
    let unequal = store
    harness.fixture.backend.edit { $0.store[acme] = [unequal] }
    let bad = try await harness.run("reconcile")
    #expect(bad.code == 1)
    #expect(bad.out.hasSuffix("difference 2\n"))
  }

  // MARK: Import

  @Test func anImportGoesOnWhereItWasStopped() async throws {
    let harness = try await CommandHarness()
    let text = "account,plan\n" + (1...250).map { "b\($0),free" }.joined(separator: "\n")
    let file = try harness.directory.write("rows.csv", text)
    // Of a small file the first and the last window are the whole of it.
    var hash = StableHash()
    for byte in Array(text.utf8) + Array(text.utf8) { hash.combine(byte) }
    let operation = AdminFixture.id(77)
    func stopped(_ rows: Int, content: String) throws {
      let done =
        #"{"applied":150,"unchanged":50,"ignored":0,"replayed":0,"failed":[],"#
        + #""failed_unlisted":0,"dry_run":false,"denied_at_once":0,"durable":"redis"}"#
      _ = try harness.directory.write(
        "rows.csv.progress",
        #"{"file":"\#(file)","bytes":\#(text.utf8.count),"content":"\#(content)","#
          + #""rows":\#(rows),"operation":"\#(operation)","done":\#(done)}"#)
    }
    try stopped(200, content: "0")
    let changed = try await harness.run("account", "import", file)
    #expect(changed.code == 2 && changed.error.contains("changed since"), "\(changed.error)")
    try stopped(200, content: String(hash.value, radix: 16))
    let run = try await harness.run("account", "import", file, "--batch", "20")
    #expect(run.code == 0, "\(run.error)")
    #expect(run.out.contains("200 applied, 50 unchanged"), "\(run.out)")
    #expect(run.out.contains("of these 200 rows were done before"))
    #expect(harness.fixture.backend.read { $0.accounts.count } == 51)
    #expect(!FileManager.default.fileExists(atPath: file + ".progress"))
    // Ten rows that were not done are done now, the others are as asked.
    try stopped(190, content: String(hash.value, radix: 16))
    let again = try await harness.run("account", "import", file, "--batch", "20")
    #expect(again.out.contains("160 applied, 100 unchanged"), "\(again.out)")
    _ = try harness.directory.write("rows.csv.progress", "?")
    #expect(try await harness.run("account", "import", file).code == 2)
    #expect(try await harness.run("account", "import", file, "--restart").code == 0)
  }

  @Test func anImportReadsJSONLinesAndReportsBadRows() async throws {
    let harness = try await CommandHarness()
    let file = try harness.directory.write(
      "rows.jsonl",
      """
      # A comment.
      {"account":"x","plan":"free"}
      {"account":"y","paln":"free"}

      {"account":"z","plan":"gold"}
      """)
    let run = try await harness.run("account", "import", file)
    #expect(run.code == 4)
    #expect(run.out.contains("1 applied"))
    #expect(run.out.contains("line 3: "), "\(run.out)")
    #expect(run.out.contains("line 5 z: the catalog (version 1) has no plan gold (NOT_FOUND)"))
  }

  @Test func aColumnTooManyIsNotPassedOver() async throws {
    let harness = try await CommandHarness()
    let odd = try harness.directory.write("odd.csv", "account,paln\nx,free\n")
    let run = try await harness.run("account", "import", odd)
    #expect(run.code == 2 && run.error.contains("has a column paln"), "\(run.error)")
    let wide = try harness.directory.write("wide.csv", "account,plan\nx,free\ny,free,true\n")
    let rows = try await harness.run("account", "import", wide)
    #expect(rows.code == 4 && rows.out.contains("line 3: has 3 fields"), "\(rows.out)")
  }

  @Test func anImportReadsZonesAndAnchors() async throws {
    let harness = try await CommandHarness()
    let file = try harness.directory.write(
      "rows.csv",
      """
      account,zone,plan,anchor
      a,Asia/Tokyo,free,2026-01-31T09:00:00+09:00
      b,,free,
      c,Asia/Tokio,free,
      d,,free,31.1.2026
      """)
    let run = try await harness.run("account", "import", file)
    #expect(run.code == 4 && run.out.contains("2 applied"), "\(run.out)\(run.error)")
    #expect(run.out.contains("line 4 c: zone: \"Asia/Tokio\" no such zone in "), "\(run.out)")
    #expect(
      run.out.contains(
        "line 5: anchor: \"31.1.2026\" must be an instant such as 2026-01-31T09:00:00Z"),
      "\(run.out)")
    let lines = try harness.directory.write(
      "rows.jsonl",
      #"{"account":"a","plan":"free","zone":"Asia/Tokyo","anchor":"2026-01-31T00:00:00Z"}"#)
    let again = try await harness.run("account", "import", lines)
    #expect(again.code == 0 && again.out.contains("1 unchanged"), "\(again.out)")
    let show = try await harness.run("account", "show", "a")
    #expect(
      show.out.contains("calendar  Asia/Tokyo, anchored at 2026-01-31T00:00:00Z\n"), "\(show.out)")
    let other = try await harness.run("account", "show", "b")
    #expect(other.out.contains("calendar  UTC\n"), "\(other.out)")
  }

  @Test func showTellsTheCalendarInWords() async throws {
    let harness = try await CommandHarness()
    let set = try await harness.run(
      "account", "set", "acme", "--zone", "Europe/Berlin", "--restart")
    #expect(set.code == 0, "\(set.error)")
    let show = try await harness.run("account", "show", "acme")
    #expect(
      show.out.contains(
        "calendar  UTC\ncalendar  Europe/Berlin, anchored at 2025-11-21T04:40:02Z, from "
          + "2025-11-21T04:40:02Z on, beginning a new period\n"), "\(show.out)")
    let wrong = try await harness.run("account", "set", "acme", "--zone", "Europe/Berln")
    #expect(wrong.code != 0 && wrong.error.contains("Europe/Berln"), "\(wrong)")
  }

  @Test(arguments: ["bash", "zsh", "fish"])
  func theShellCompletesEveryCommand(_ shell: String) async throws {
    let directory = try TemporaryDirectory("cli")
    let script = try await CommandHarness.run(["--generate-completion-script", shell], directory)
    #expect(script.code == 0)
    for word in ["catalog", "audit-log", "bypass", "reconcile", "doctor", "import"] {
      #expect(script.out.contains(word), "\(word)")
    }
  }

  @Test func aDryRunOfAnImportWritesNothing() async throws {
    let harness = try await CommandHarness()
    let file = try harness.directory.write("rows.csv", "x,free\ny,pro\n")
    let run = try await harness.run("account", "import", file, "--dry-run")
    #expect(run.out.contains("2 would change"))
    #expect(harness.fixture.backend.read { $0.accounts.count } == 1)
  }
}
