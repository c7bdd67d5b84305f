// account set | show | list; plan, freeze and the like stand in AccountPlan.swift.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct AccountCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "account", abstract: "Which plan an account is on, now and later.",
    subcommands: [
      AccountSet.self, AccountPlan.self, AccountFreeze.self, AccountUnfreeze.self,
      AccountPastDue.self, AccountShow.self, AccountList.self, AccountImport.self,
    ])
}

struct AccountSet: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Set an account's plan, zone or anchor; freeze or thaw it.",
    discussion: """
      --source-id and --source-version name the event of an outside system: one that is older \
      than the last applied changes nothing and is answered `ignored`.

      Periods follow the calendar of --zone; windows that the catalog calls anchored are laid out \
      from --anchor. A change cuts no period short: the one that runs ends where it would have, \
      and the next at the first boundary of the new calendar by which half of it has gone. \
      --restart begins a new one of the anchored windows at once.
      """)

  @Argument(help: "The account.") var account: Subject
  @Option(help: "A plan of the catalog.") var plan: Name?
  @Flag(inversion: .prefixedNo, help: "Deny everything; --no-frozen thaws.") var frozen: Bool?
  @Option(help: "IANA name of the zone, e.g. Europe/Berlin.") var zone: String?
  @Option(help: "Billing anchor, e.g. 2026-01-31T09:00:00Z; none: no anchor.") var anchor: String?
  @Flag(help: "Begin a new period of anchored windows now.") var restart = false
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard plan != nil || frozen != nil || zone != nil || anchor != nil || restart else {
      throw ValidationError(
        "Give --plan, --frozen, --no-frozen, --zone, --anchor or --restart.")
    }
    if let anchor, anchor != "none", Durations.instant(anchor, now: .now) == nil {
      throw ValidationError("--anchor \(anchor): give e.g. 2026-01-31T09:00:00Z, or none.")
    }
    if anchor == "none", restart {
      throw ValidationError("--restart needs an anchor: leave out --anchor none.")
    }
  }

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    let request = AccountSetRequest(
      account: account, plan: plan, frozen: frozen, zone: zone,
      anchor: anchor.flatMap { $0 == "none" ? nil : Durations.instant($0, now: .now) },
      dropAnchor: anchor == "none" ? true : nil, restart: restart ? true : nil,
      sourceID: source.sourceId, sourceVersion: source.sourceVersion, change: options)
    try await Changing.run(.accountSet, request, options, connection, output)
  }
}

struct AccountShow: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show", abstract: "What is known of one account.")

  @Argument(help: "The account.") var account: Subject
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (reply, body) = try await Changing.ask(
      .accountShow, AccountRequest(account: account), as: AccountReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
  }

  static func text(of reply: AccountReply) -> String {
    var plan = reply.plan?.text ?? "none (the catalog's rule for unknown accounts applies)"
    if reply.plan != nil && !reply.planKnown { plan += " (not in the catalog)" }
    var lines = ["account   \(reply.account)", "plan      \(plan)"]
    if let next = reply.next { lines.append("next      \(next.text)") }
    lines.append("frozen    \(reply.frozen ? "yes" : "no")")
    if let owed = reply.pastDue { lines.append("past due  \(owed.text)") }
    lines.append("version   \(reply.version)")
    if reply.calendar.first.map({ $0.since != nil }) ?? true { lines.append("calendar  UTC") }
    for setting in reply.calendar {
      let anchor = setting.anchor.map { ", anchored at \(CivilDate.text($0))" } ?? ""
      let since = setting.since.map { ", from \(CivilDate.text($0)) on" } ?? ""
      let restart = setting.restarts ? ", beginning a new period" : ""
      lines.append("calendar  \(setting.zone)\(anchor)\(since)\(restart)")
    }
    if let source = reply.sourceID {
      lines.append("source    \(source) version \(reply.sourceVersion)")
    }
    for other in reply.otherSources {
      lines.append("source    \(other.id) version \(other.version)")
    }
    if reply.grants > 0 { lines.append("grants    \(reply.grants) (grant list)") }
    lines.append(
      "bucket    \(reply.bucket)"
        + (reply.loaded ? "" : " (counters not loaded; rebuilt at the next request)"))
    if !reply.overrides.isEmpty { lines.append(LimitList.overrides(reply.overrides)) }
    return lines.joined(separator: "\n")
  }
}

struct AccountList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Accounts, page by page.")

  @Option(help: "Only accounts of this plan.") var plan: Name?
  @Option(help: "How many, 1 … 1000.") var limit: Int = 100
  @Option(help: ArgumentHelp("Continue where the last page ended.", valueName: "cursor"))
  var after: String?
  @Flag(help: "Every page.") var all = false
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (1...AccountListRequest.limitMax).contains(limit) else {
      throw ValidationError("--limit must be from 1 to \(AccountListRequest.limitMax).")
    }
  }

  func run() async throws {
    let server = try await connection.open()
    var table = Table(
      .text("ACCOUNT"), .text("PLAN"), .text("FROZEN"), .number("OVERRIDES"), .number("VERSION"),
      .text("LATER"))
    var rows: [AccountListReply.Row] = []
    var cursor = after
    repeat {
      let (reply, _) = try await server.admin(
        .accountList,
        AccountListRequest(
          after: cursor, limit: all ? AccountListRequest.limitMax : limit, plan: plan),
        as: AccountListReply.self)
      rows += reply.accounts
      cursor = reply.next
    } while all && cursor != nil
    await server.close()
    if output.json { return Output.json(AccountListReply(accounts: rows, next: cursor)) }
    for row in rows {
      table.add(
        row.account.path, row.plan?.text ?? "-", row.frozen ? "yes" : "", "\(row.overrides)",
        "\(row.version)", (row.pastDue == true ? "past due; " : "") + (row.next?.text ?? ""))
    }
    Output.line(table.text)
    if let cursor { Output.line("more: --after \(cursor)") }
  }
}
