// account plan | freeze | past-due, grant, and explain of rich plans, as the built command.

import Foundation
import Testing
import TollgateCore
import TollgateServer
import TollgateTesting
import TollgateWire

@Suite(.serialized, .blocking) struct AccountCommandLineTests {
  private let directory: TemporaryDirectory
  private let fixture: AdminFixture
  private let sidecar: MiniSidecar

  init() async throws {
    directory = try TemporaryDirectory("cli")
    fixture = try RichCatalog.fixture()
    sidecar = try await MiniSidecar(fixture, directory: directory)
  }

  private func run(_ arguments: String...) async throws -> CommandRun {
    try await CommandHarness.run(arguments, directory, ["TOLLGATE_UNIX": sidecar.path])
  }

  @Test(arguments: [
    ["account", "plan", "acme"], ["account", "plan", "acme", "free", "--at", "soon"],
    ["account", "plan", "acme", "free", "--until", "14d"],
    ["account", "plan", "acme", "free", "--then", "none"],
    ["account", "plan", "acme", "free", "--at", "now", "--until", "14d", "--then", "none"],
    ["account", "plan", "acme", "free", "--withdraw"],
    ["account", "plan", "acme", "free", "--source-id", "s"], ["account", "freeze", "acme"],
    ["account", "past-due", "acme"], ["account", "past-due", "acme", "--grace", "3d", "--clear"],
    ["account", "past-due", "acme", "--grace", "soon"], ["grant", "add", "acme", "spend"],
    ["grant", "add", "acme", "spend", "0"], ["grant", "add", "acme", "spend", "5", "--kind", "x"],
    ["grant", "add", "acme", "spend", "5", "--expires", "soon"],
    ["grant", "add", "acme", "spend", "5", "--every", "fortnight"],
    ["grant", "add", "acme", "spend", "5", "--rollover-min", "1"], ["grant", "void", "acme", "x"],
    ["explain", "acme", "tokens", "--with", "small"],
  ])
  func aUsageErrorIsTwo(_ arguments: [String]) async throws {
    let process = try ChildProcess(
      ChildProcess.tollgateBinary(), arguments,
      environment: ["PATH": "/usr/bin:/bin", "USER": "ann"])
    let status = try await process.waitAsync()
    #expect(status == .exited(2), "\(arguments): \(process.standardError)")
    #expect(process.standardError.hasPrefix("Error: "))
  }

  @Test func aDowngradeIsToldAndShown() async throws {
    let plan = try await run("account", "plan", "acme", "free")
    #expect(plan.code == 0)
    #expect(plan.lines.first == "  plan: pro, then free from 2025-12-01T00:00:00Z on")
    let show = try await run("account", "show", "acme")
    #expect(show.lines.contains("plan      pro"))
    #expect(show.lines.contains("next      then free from 2025-12-01T00:00:00Z on"))
    let explain = try await run("explain", "acme", "chat")
    #expect(explain.lines.contains("next      then free from 2025-12-01T00:00:00Z on"))
    #expect(try await run("account", "plan", "acme", "--withdraw").code == 0)
    #expect(!(try await run("account", "show", "acme")).out.contains("next"))
  }

  @Test func aPlanWithoutARankNeedsATime() async throws {
    let refused = try await run("account", "plan", "acme", "pilot")
    #expect(refused.code == 2)
    #expect(refused.error.contains("→ say when: --at now or --at period-end"))
    #expect(try await run("account", "plan", "acme", "pilot", "--at", "now").code == 0)
  }

  @Test func freezeAndUnfreeze() async throws {
    #expect(try await run("account", "freeze", "acme", "--reason", "fraud").code == 0)
    #expect(fixture.account()?.frozen == true)
    #expect(try await run("account", "unfreeze", "acme").code == 0)
    #expect(fixture.account()?.frozen == false)
  }

  @Test func pastDueIsShownAndDenies() async throws {
    #expect(try await run("account", "past-due", "acme", "--grace", "3d").code == 0)
    let grace = try await run("explain", "acme", "chat")
    #expect(grace.code == 0)
    #expect(
      grace.lines.contains(
        "past due  since 2025-11-21T04:40:00Z, grace until 2025-11-24T04:40:00Z"))
    fixture.backend.edit { $0.now = $0.now + 3 * 86_400_000 }
    let late = try await run("explain", "acme", "chat")
    #expect(late.code == 1)
    #expect(late.lines.first?.hasSuffix("(PAST_DUE)") == true)
    #expect(try await run("account", "past-due", "acme", "--clear").code == 0)
    #expect(try await run("explain", "acme", "chat").code == 0)
  }

  @Test func anOldEventIsIgnoredAndSaidSo() async throws {
    let event = ["--source-id", "stripe", "--source-version"]
    #expect(
      try await run("account", "plan", "acme", "ultra", event[0], event[1], event[2], "7").code
        == 0)
    let late = try await run("account", "plan", "acme", "free", event[0], event[1], event[2], "6")
    #expect(late.code == 0)
    #expect(late.lines == ["ignored: older source version 6; 7 was applied"])
    #expect(fixture.account()?.plan?.text == "ultra")
  }

  @Test func grantsAreAddedListedAndVoided() async throws {
    let add = try await run(
      "grant", "add", "acme", "spend", "40", "--grant", "promo", "--kind", "promotional",
      "--priority", "5", "--expires", "2025-12-24", "--reason", "launch")
    #expect(add.code == 0)
    #expect(
      add.lines.first
        == "  grant promo: 40 of spend, promotional, priority 5, from \(CivilDate.text(fixture.backend.read(\.now)))"
        + " until 2025-12-24T00:00:00Z")
    let list = try await run("grant", "list", "acme")
    #expect(list.lines.count == 4)
    #expect(list.lines[2].contains("promo") && list.lines[2].contains("active"))
    #expect(list.lines[3].contains("spend.pro") && list.lines[3].contains("active (plan)"))
    let again = try await run("grant", "add", "acme", "spend", "41", "--grant", "promo")
    #expect(again.code == 4)
    #expect(try await run("grant", "void", "acme", "promo", "--reason", "mistake").code == 0)
    #expect(try await run("grant", "list", "acme").lines[2].contains("voided"))
    let json = try Document(json: await run("grant", "list", "acme", "--json").out)
    guard case .list(let grants)? = json["grants"] else {
      throw AdminFailure(.internalError, "no grants")
    }
    #expect(grants.map { $0["state"] } == ["voided", "active"])
  }

  @Test func explainPrintsPricesAndGrants() async throws {
    let run = try await run("explain", "acme", "tokens=5", "--with", "model=small")
    #expect(run.code == 0)
    #expect(
      run.lines.contains(
        "price     tokens.small: 5 tokens at 3 per 2 (after 0 this month) → 7 of spend"))
    #expect(
      run.lines.contains(
        "  spend.pro 1. spend.pro: 500, 0 burnt, 0 held, 500 left, until 2025-12-01T00:00:00Z; burns 7"
      ))
  }
}
